"""Every way to get it wrong: one sentence, an exit code of its own, nothing half-written, no hang.

Local mistakes run in this process; whatever involves a peer runs as two real processes over mutual TLS.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedlearn import PROTOCOL_VERSION
from fedlearn.cli.main import run as command_line
from fedlearn.errors import (
    BadCertificate,
    BadConfig,
    BadLabel,
    BeyondContract,
    ColumnMissing,
    ContractExpired,
    ContractMismatch,
    DuplicateIds,
    EmptyTable,
    FedlearnError,
    FileMissing,
    Interrupted,
    InvalidPoint,
    JobMismatch,
    LedgerMismatch,
    Malformed,
    NoOverlap,
    NotFinite,
    NotInContract,
    NotNumeric,
    NullIds,
    OutOfOrder,
    OutputExists,
    OverBudget,
    OwnMistake,
    PeerAborted,
    PeerAbsent,
    PeerLost,
    PeerSilent,
    PeerUntrusted,
    Replayed,
    UnknownKey,
    VersionMismatch,
    WrongLength,
    WrongModel,
)
from tests.parties import MODULES, Ended, Pair, Process, digits, make_keys, make_pair

Make = Callable[..., Pair]
Alone = Callable[..., Ended]

#: Training that is still under way whenever a signal arrives.
LONG = {"trees": 3000, "depth": 2}


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def make(tmp_path: Path, keyring: Path) -> Iterator[Make]:
    """Makes a pair; whatever a test does with it must leave nothing in the output folders."""
    made: list[Pair] = []

    def build(**how: Any) -> Pair:
        made.append(make_pair(tmp_path, keyring, **how))
        return made[-1]

    yield build
    for pair in made:
        assert pair.written() == set()


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str]) -> Alone:
    """Runs one party in this process, to show a mistake that it must find without its peer."""

    def run(pair: Pair, job: str = "train", *more: str, party: str = "bank") -> Ended:
        code = command_line(pair.arguments(party, job, *more))
        said = capsys.readouterr()
        return Ended(party, code, said.out, said.err)

    return run


def failed(pair: Pair, ended: Ended, error: type[FedlearnError], *words: str) -> None:
    """It ended with this error's code, said so in one sentence with these words, and gave nothing away."""
    said = [line for line in ended.err.splitlines() if not line.startswith('{"progress"')]
    assert ended.code == error.exit_code, ended
    assert ended.out == ""
    assert len(said) == 1, ended.err
    body = json.loads(said[0])
    message = body.pop("message")
    assert body == {"error": error.__name__, "resolve": error.resolve, "exit_code": error.exit_code}
    assert "\n" not in message
    for word in words:
        assert any(choice in message for choice in word.split("|")), message
    peer = next(party for party in MODULES if party != ended.party)
    for row in pair.rows[peer]:
        for cell in (digits(row.get("phone", "")), *row.values()):
            assert len(cell) < 6 or cell not in ended.err


def both_failed(pair: Pair, ended: dict[str, Ended], error: type[FedlearnError], *words: str) -> None:
    for party in MODULES:
        failed(pair, ended[party], error, *words)


# --- one side's own mistakes -------------------------------------------------------------------------


def column(name: str, change: Callable[[int, str], str | None]) -> Callable[[Pair], None]:
    """Change a column of the bank's table, given row number (from 1) and cell; None removes the cell."""

    def spoil(pair: Pair) -> None:
        for number, row in enumerate(pair.rows["bank"], start=1):
            cell = change(number, row.pop(name))
            if cell is not None:
                row[name] = cell

    return spoil


def cell(name: str, row: int, text: str) -> Callable[[Pair], None]:
    return column(name, lambda number, old: text if number == row else old)


def repeat_an_id(pair: Pair) -> None:
    pair.rows["bank"][6]["phone"] = digits(pair.rows["bank"][2]["phone"])


def setting(table: str, **fields: Any) -> Callable[[Pair], None]:
    return lambda pair: pair.settings["bank"].setdefault(table, {}).update(fields)


def agreed(table: str, **fields: Any) -> Callable[[Pair], None]:
    return lambda pair: pair.contract.setdefault(table, {}).update(fields)


def certificate(kind: str) -> Callable[[Pair], None]:
    return lambda pair: pair.use_certificate("bank", kind)


def another_key(pair: Pair) -> None:
    pair.settings["bank"]["tls"]["key"] = pair.settings["platform"]["tls"]["key"]


MISTAKES: dict[str, tuple[Callable[[Pair], object], type[FedlearnError], tuple[str, ...]]] = {
    "contract missing": (lambda p: p.settings["bank"].update(contract="no.toml"), FileMissing, ("no.toml",)),
    "table missing": (setting("data", path="no.csv"), FileMissing, ("no.csv",)),
    "table is a folder": (setting("data", path="."), FileMissing, ("bank",)),
    "certificate missing": (setting("tls", certificate="no.pem"), FileMissing, ("no.pem",)),
    "key missing": (setting("tls", key="no.key"), FileMissing, ("no.key",)),
    "feature missing": (column("income", lambda *_: None), ColumnMissing, ("'income'", "table.csv")),
    "key column missing": (column("phone", lambda *_: None), ColumnMissing, ("'phone'", "table.csv")),
    "label missing": (column("outcome", lambda *_: None), ColumnMissing, ("'outcome'", "table.csv")),
    "duplicate ids": (repeat_an_id, DuplicateIds, ("table.csv", "'phone'", "row 7", "row 3")),
    "null id": (cell("phone", 5, ""), NullIds, ("table.csv", "'phone'", "row 5")),
    "no id left": (cell("phone", 5, "none"), NullIds, ("table.csv", "'phone'", "row 5")),
    "three labels": (cell("outcome", 9, "unclear"), BadLabel, ("'outcome'", "table.csv", "3 distinct")),
    "constant label": (column("outcome", lambda *_: "good"), BadLabel, ("'outcome'", "table.csv", "constant")),
    "label gap": (cell("outcome", 9, ""), BadLabel, ("'outcome'", "table.csv", "row 9")),
    "never positive": (agreed("label", positive="worst"), BadLabel, ("'outcome'", "'worst'")),
    "text": (cell("income", 12, "12,5"), NotNumeric, ("'income'", "table.csv", "row 12", "'12,5'")),
    "infinite": (cell("debt", 4, "inf"), NotFinite, ("'debt'", "table.csv", "row 4")),
    "minus infinite": (cell("debt", 4, "-1e999"), NotFinite, ("'debt'", "table.csv", "row 4")),
    "unknown key in contract": (agreed("boost", tres=3), UnknownKey, ("contract.toml", "'boost.tres'")),
    "unknown table in contract": (lambda p: p.contract.update(extra={}), UnknownKey, ("contract.toml", "'extra'")),
    "unknown key in party file": (setting("tls", verify=False), UnknownKey, ("party.toml", "'tls.verify'")),
    "out of range": (agreed("boost", depth=99), BadConfig, ("contract.toml", "boost.depth")),
    "listens and connects": (
        setting("network", listen="localhost:1", connect="localhost:2"),
        BadConfig,
        ("party.toml", "network"),
    ),
    "no host": (
        lambda p: p.settings["bank"].update(network={"connect": "a..b:5000"}),
        BadConfig,
        ("party.toml", "host:port"),
    ),
    "waits for ever": (
        setting("network", connect_seconds=float("inf")),
        BadConfig,
        ("party.toml", "network.connect_seconds"),
    ),
    "not a party": (lambda p: p.settings["bank"].update(party="broker"), BadConfig, ("'broker'", "'test'")),
    "contract expired": (lambda p: p.contract.update(expires="2020-01-31"), ContractExpired, ("'test'", "2020-01-31")),
    "certificate expired": (certificate("expired"), BadCertificate, ("bank.pem", "expired on")),
    "certificate self-signed": (certificate("self"), BadCertificate, ("bank.pem", "self-signed")),
    "certificate of another authority": (certificate("other"), BadCertificate, ("bank.pem", "another authority")),
    "certificate of the peer": (certificate("platform"), BadCertificate, ("'platform'", "'bank'")),
    "key of the peer": (another_key, BadCertificate, ("platform.key", "bank.pem")),
    "too many own rows": (agreed("budget", rows=100), OverBudget, ("table.csv", "100")),
    "too many vectors": (agreed("budget", vectors=10), OverBudget, ("vectors", "'test'")),
    "too much leakage": (agreed("budget", kl_nats=1e-60), OverBudget, ("leak", "1e-60")),
    "privacy without a delta": (agreed("privacy", epsilon=1.0), BadConfig, ("contract.toml", "privacy.delta")),
    "privacy of no meaning": (agreed("privacy", epsilon=1.0, delta=2.0), BadConfig, ("contract.toml", "privacy.delta")),
    "nothing to train on": (agreed("align", mode="cardinality"), NotInContract, ("cardinality",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_own_mistakes_are_found_before_anybody_connects(make: Make, alone: Alone, mistake: str) -> None:
    change, error, words = MISTAKES[mistake]
    pair = make(change=change)
    failed(pair, alone(pair), error, *words)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("table.csv", "phone,income,debt,work,outcome\n", EmptyTable, ("table.csv", "no rows")),
        ("table.csv", "", EmptyTable, ("table.csv", "empty")),
        ("contract.toml", "name = ", BadConfig, ("contract.toml", "not valid TOML")),
        ("party.toml", "[[[", BadConfig, ("party.toml", "not valid TOML")),
        ("party.toml", f"x = {'[' * 100_000}", BadConfig, ("party.toml", "not valid TOML")),
        ("party.toml", "", BadConfig, ("party.toml", "field")),
    ],
)
def test_files_without_content(
    make: Make, alone: Alone, name: str, content: str, error: type[FedlearnError], words: tuple[str, ...]
) -> None:
    pair = make()
    (pair.folder / "bank" / name).write_text(content, encoding="utf-8")
    failed(pair, alone(pair), error, *words)


def test_the_party_file_is_missing(make: Make, alone: Alone) -> None:
    pair = make()
    for path in (pair.folder / "bank" / "no.toml", pair.folder):
        failed(pair, alone(pair, "train", "--party", str(path)), FileMissing, str(path))


def test_a_damaged_certificate(make: Make, alone: Alone) -> None:
    pair = make(change=setting("tls", certificate="bank.pem"))
    (pair.folder / "bank" / "bank.pem").write_text("-----BEGIN CERTIFICATE-----\n!\n", encoding="utf-8")
    failed(pair, alone(pair), BadCertificate, "bank.pem", "PEM")


def test_the_output_folder_cannot_be_made(make: Make, alone: Alone) -> None:
    pair = make()
    pair.output("bank").touch()
    failed(pair, alone(pair), BadConfig, "results")


def test_no_share_to_predict_with(make: Make, alone: Alone) -> None:
    pair = make()
    failed(pair, alone(pair, "predict"), FileMissing, "model")
    (pair.folder / "model").mkdir()
    (pair.folder / "model" / "share.json").write_text("{}", encoding="utf-8")
    (pair.folder / "model" / "share.arrow").write_text("", encoding="utf-8")
    failed(pair, alone(pair, "predict", "--model", str(pair.folder / "model")), WrongModel, "share.json")


def test_a_style_that_does_not_exist(make: Make, alone: Alone) -> None:
    pair = make()
    failed(pair, alone(pair, "train", "--progress", "loud"), OwnMistake, "loud")


def test_wrong_usage_has_the_usual_code(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trian"], ["train", "--speed", "9"], ["simulate"]):
        assert command_line(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.processes
def test_a_real_process_says_it_in_one_sentence(make: Make) -> None:
    pair = make(change=cell("income", 12, "12,5"))
    with pair.one("bank", *pair.arguments("bank", "train")) as process:
        failed(pair, process.wait(), NotNumeric, "'income'", "row 12")


@pytest.mark.processes
def test_people_are_told_how_to_resolve_it(make: Make) -> None:
    pair = make(change=cell("income", 12, "12,5"))
    with pair.one("bank", "train", "--party", "party.toml") as process:
        ended = process.wait()
    assert ended.code == NotNumeric.exit_code
    assert ended.out == ""
    what, resolve = ended.err.splitlines()
    assert what.startswith("error: column 'income' of ")
    assert what.endswith("holds '12,5' in row 12, but is declared numeric")
    assert resolve == f"to resolve: {NotNumeric.resolve} (exit code {NotNumeric.exit_code})"


# --- results that are there already ------------------------------------------------------------------


@pytest.mark.parametrize("job", ["align", "train", "predict"])
def test_nothing_is_overwritten(tmp_path: Path, keyring: Path, alone: Alone, job: str) -> None:
    pair = make_pair(tmp_path, keyring)
    earlier = pair.output("bank") / {"align": "alignment", "train": "model", "predict": "predictions"}[job]
    earlier.mkdir(parents=True)
    (earlier / "precious").write_text("kept", encoding="utf-8")
    before = pair.written()
    failed(pair, alone(pair, job), OutputExists, str(earlier))
    failed(pair, alone(pair, job, "--out", str(earlier)), OutputExists, str(earlier))
    assert pair.written() == before
    assert (earlier / "precious").read_text(encoding="utf-8") == "kept"


# --- two processes that do not fit together ----------------------------------------------------------


def other(party: str) -> str:
    return "platform" if party == "bank" else "bank"


def rogue(misdeed: str) -> list[str]:
    """The command of a party that commits it."""
    return ["-m", "tests.rogue", misdeed]


def network(**fields: Any) -> Callable[[Pair], None]:
    """Limits of both parties."""
    return lambda pair: [settings["network"].update(fields) for settings in pair.settings.values()] and None


def strangers(pair: Pair) -> None:
    for row in pair.rows["bank"]:
        row["phone"] = "9" + row["phone"]


def another_contract(pair: Pair) -> None:
    pair.contracts["bank"] = pair.contract | {"purpose": "something that the other side never agreed to"}


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["mutual", "one-sided"])
def test_no_id_is_shared(make: Make, mode: str) -> None:
    pair = make(change=strangers, mode=mode)
    ended = pair.run("train")
    failed(pair, ended["bank"], NoOverlap, "'platform'")
    if mode == "mutual":
        failed(pair, ended["platform"], NoOverlap, "'bank'")
    else:  # it may not know, and is told that the other ended
        failed(pair, ended["platform"], PeerAborted, "'bank'", f"exit code {NoOverlap.exit_code}")


@pytest.mark.processes
def test_contracts_differ(make: Make) -> None:
    pair = make(change=another_contract)
    ended = pair.run("train")
    both_failed(pair, ended, ContractMismatch, "holds contract")
    assert "never agreed" not in ended["platform"].err


@pytest.mark.processes
def test_other_versions(make: Make) -> None:
    pair = make()
    newer = "import fedlearn; fedlearn.PROTOCOL_VERSION = 99; from party_b.launch import main; main()"
    ended = pair.run("train", commands={"bank": ["-c", newer]})
    both_failed(pair, ended, VersionMismatch, "version 99", f"version {PROTOCOL_VERSION}")


@pytest.mark.processes
def test_other_jobs(make: Make) -> None:
    pair = make()
    check = "import sys; sys.argv[1] = 'check'; from party_b.launch import main; main()"
    both_failed(pair, pair.run("train", commands={"bank": ["-c", check]}), JobMismatch, "'train'", "'check'")


@pytest.mark.processes
@pytest.mark.parametrize("party", ["bank", "platform"])
def test_the_peer_is_absent(make: Make, party: str) -> None:
    pair = make(change=network(connect_seconds=1))
    with pair.one(party, *pair.arguments(party, "check")) as process:
        failed(pair, process.wait(), PeerAbsent, f"'{other(party)}'", "127.0.0.1:", "1 s")


@pytest.mark.processes
def test_diallers_with_bad_certificates_are_turned_away_until_the_right_one_comes(make: Make) -> None:
    pair = make()
    listen = pair.arguments("platform", "check")
    with pair.one("platform", *listen) as listener:
        for kind in ("expired", "self", "other", "platform"):
            pair.use_certificate("bank", kind)
            pair.write()
            with pair.one("bank", *pair.arguments("bank", "check"), command=rogue("unchecked")) as dialler:
                failed(pair, dialler.wait(), BadCertificate, "the peer 'platform'")
        pair.use_certificate("bank", "bank")
        pair.write()
        with pair.one("bank", *pair.arguments("bank", "check")) as dialler:
            assert dialler.wait().result["peer_rows"] == 280
        assert listener.wait().result["peer_rows"] == 280


@pytest.mark.processes
def test_the_listener_says_who_came_instead(make: Make) -> None:
    def change(pair: Pair) -> None:
        pair.use_certificate("bank", "platform")
        pair.settings["platform"]["network"]["connect_seconds"] = 5

    pair = make(change=change)
    ended = pair.run("check", commands={"bank": rogue("unchecked")})
    failed(pair, ended["bank"], BadCertificate, "the peer 'platform'")
    failed(pair, ended["platform"], PeerUntrusted, "'bank'", "a certificate for 'platform' was refused")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("expired", "has expired"),
        ("self", "is self-signed"),
        ("other", "is from another authority"),
        ("bank", "is for 'bank', not for 'platform'"),
    ],
)
def test_the_listener_has_a_bad_certificate(make: Make, kind: str, verdict: str) -> None:
    pair = make(change=lambda pair: pair.use_certificate("platform", kind))
    with pair.started("check", commands={"platform": rogue("unchecked")}) as processes:
        failed(pair, processes["bank"].wait(), PeerUntrusted, "the certificate of the peer 'platform'", verdict)


# --- a peer that goes, or says nothing ---------------------------------------------------------------


@contextmanager
def training(pair: Pair) -> Iterator[dict[str, Process]]:
    """Both processes, when trees are growing."""
    with pair.started("train", "--progress", "json") as processes:
        for process in processes.values():
            process.wait_until_said('"phase": "trees"')
        yield processes


@pytest.mark.processes
@pytest.mark.parametrize("victim", ["bank", "platform"])
def test_killed_amid_the_trees(tmp_path: Path, keyring: Path, victim: str) -> None:
    pair = make_pair(tmp_path, keyring, **LONG)
    with training(pair) as processes:
        processes[victim].signal(signal.SIGKILL)
        failed(pair, processes[other(victim)].wait(), PeerLost, f"'{victim}'", "at step ")
    assert pair.written(other(victim)) == set()


@pytest.mark.processes
def test_stopped_amid_the_trees(make: Make) -> None:
    victim = "platform"
    pair = make(change=network(silence_seconds=4), **LONG)
    with training(pair) as processes:
        processes[victim].signal(signal.SIGSTOP)
        failed(pair, processes[other(victim)].wait(), PeerSilent, f"'{victim}'", "has sent nothing for ", "at step ")
        processes[victim].signal(signal.SIGCONT)
        ended = processes[victim].wait()
    # What it notices first when it wakes up: the other's word, the broken connection, or the time that has passed.
    assert ended.code in {PeerAborted.exit_code, PeerLost.exit_code, PeerSilent.exit_code}, ended
    assert "Traceback" not in ended.err


@pytest.mark.processes
@pytest.mark.parametrize(("victim", "number"), [("bank", signal.SIGINT), ("platform", signal.SIGTERM)])
def test_the_operator_ends_it(make: Make, victim: str, number: signal.Signals) -> None:
    pair = make(**LONG)
    with training(pair) as processes:
        processes[victim].signal(number)
        failed(pair, processes[victim].wait(), Interrupted, "interrupted by the operator")
        ended = processes[other(victim)].wait()
    failed(pair, ended, PeerAborted, f"'{victim}'", f"exit code {Interrupted.exit_code}", "at its step ")


def answers(port: int) -> bool:
    time.sleep(0.05)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.processes
def test_the_operator_ends_a_listener_that_waits(make: Make) -> None:
    pair = make()
    port = int(pair.settings["platform"]["network"]["listen"].rpartition(":")[2])
    with pair.one("platform", *pair.arguments("platform", "check")) as process:
        while not answers(port):
            assert process.process.poll() is None
        process.signal(signal.SIGINT)
        failed(pair, process.wait(), Interrupted, "interrupted by the operator")


@pytest.mark.processes
def test_the_operator_ends_a_dialler_that_waits(make: Make) -> None:
    pair = make()
    port = int(pair.settings["bank"]["network"]["connect"].rpartition(":")[2])
    with (
        socket.create_server(("127.0.0.1", port)) as mute,
        pair.one("bank", *pair.arguments("bank", "check")) as process,
        mute.accept()[0],
    ):
        process.signal(signal.SIGTERM)
        failed(pair, process.wait(), Interrupted, "interrupted by the operator")


# --- a peer that misbehaves --------------------------------------------------------------------------


#: Misdeed, who commits it, what the honest side says, with these words.
ROGUES: list[tuple[str, str, type[FedlearnError], tuple[str, ...]]] = [
    ("silent from the start", "platform", PeerSilent, ("has sent nothing for", "session.Hello")),
    ("silent in alignment", "bank", PeerSilent, ("has sent nothing for", "align.AlignBlinded")),
    ("waits for ever", "platform", PeerSilent, ("did not finish step align.AlignDoubled within 3 s",)),
    ("another name", "platform", PeerUntrusted, ("introduces itself as",)),
    ("random bytes", "platform", Malformed, ("not a frame|unknown here", "align.AlignOpen")),
    ("random message", "platform", Malformed, ("AlignBlinded",)),
    ("replayed frame", "bank", Replayed, ("frame 2 where frame 3 was due", "align.AlignBlinded")),
    ("another session", "platform", Replayed, ("another session", "align.AlignOpen")),
    ("out of order", "bank", OutOfOrder, ("AlignDoubled out of order, where AlignOpen was due",)),
    ("a point too few", "platform", WrongLength, ("8928 bytes where 280 points of 32 were due", "align.AlignBlinded")),
    ("not a point", "bank", InvalidPoint, ("point 0 of 280", "align.AlignBlinded")),
    ("too many rows", "platform", BeyondContract, ("1000000000 rows where the contract allows 1000",)),
    ("too many vectors", "bank", BeyondContract, ("asked for vector", "matvec.MatvecQuery")),
    ("short query", "bank", WrongLength, ("bytes for", "matvec.MatvecQuery")),
    ("too many splits", "bank", BeyondContract, ("500 splits in one level", "boost.BoostSplits")),
    ("short sides", "platform", WrongLength, ("sides", "boost.BoostSides")),
    ("short transfers", "platform", WrongLength, ("answered", "transfer.TransferBits")),
    ("another ledger", "platform", LedgerMismatch, ("another ledger", "session.Farewell")),
]


@pytest.mark.processes
@pytest.mark.parametrize(("misdeed", "who", "error", "words"), ROGUES)
def test_a_rogue_is_named_and_left(
    tmp_path: Path, keyring: Path, misdeed: str, who: str, error: type[FedlearnError], words: tuple[str, ...]
) -> None:
    limits = {"silent": {"silence_seconds": 4}, "waits": {"step_seconds": 3}}.get(misdeed.split(maxsplit=1)[0], {})
    routing = "bits" if misdeed == "short sides" else "oblivious"
    pair = make_pair(tmp_path, keyring, change=network(**limits), routing=routing)
    ended = pair.run("train", commands={who: rogue(misdeed)})
    honest = other(who)
    failed(pair, ended[honest], error, f"the peer '{who}'", *words)
    assert pair.written(honest) == set()
    if misdeed not in ("another ledger", "waits for ever"):  # as far as they know, all went well; both gave up at once
        failed(pair, ended[who], PeerAborted, f"'{honest}'", f"exit code {error.exit_code}")
