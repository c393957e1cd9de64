"""The command tree and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from fedlearn import PROTOCOL_VERSION, __version__
from fedlearn.cli import agreement, bench, demo, export, keys, new, party, recipe, report, service
from fedlearn.cli.show import err
from fedlearn.errors import CannotWrite, FedlearnError, Interrupted

app = typer.Typer(
    name="fedlearn",
    help="Two companies that may not pool their data train one model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
new.add_to(app)
party.add_to(app)
demo.add_to(app)
app.command(rich_help_panel="Look at what came of it")(export.export)
report.add_to(app)
recipe.add_to(app)
app.add_typer(keys.app, name="keys", rich_help_panel="Set up")
app.add_typer(agreement.contract_app, name="contract", rich_help_panel="Set up")
app.add_typer(agreement.party_app, name="party", rich_help_panel="Set up")
app.add_typer(service.registry_app, name="registry", rich_help_panel="Put a model to work")
app.add_typer(service.audit_app, name="audit", rich_help_panel="Put a model to work")
app.add_typer(bench.app, name="bench", rich_help_panel="Measure")


@app.command(rich_help_panel="Set up")
def version(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Print the release.

    Example: fedlearn version
    """
    print(json.dumps({"release": __version__, "protocol": PROTOCOL_VERSION}) if as_json else __version__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 well done, 2 wrong usage, else the error's own code (docs/errors.md)."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where SIGINT was ignored, as in a script's background job
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    interrupted = Interrupted("interrupted by the operator")
    try:
        code = app(arguments, standalone_mode=False)
    except FedlearnError as error:
        return _fail(error, as_json="--json" in arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(interrupted, as_json="--json" in arguments)
    except OSError as error:
        return _fail(CannotWrite(f"the operating system refused: {error}"), as_json="--json" in arguments)
    except Exception as error:
        show = getattr(error, "show", None)  # the command-line library's own usage errors
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if code == Interrupted.exit_code:  # what typer makes of KeyboardInterrupt
        return _fail(interrupted, as_json="--json" in arguments)
    return 0


def _fail(error: FedlearnError, *, as_json: bool) -> int:
    if as_json:
        body = {"error": type(error).__name__, "message": str(error), "resolve": error.resolve}
        print(json.dumps(body | {"exit_code": error.exit_code}), file=sys.stderr)
    else:
        advice = f" {error.resolve} (exit code {error.exit_code})"
        err.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        err.print(Text.assemble(("to resolve:", "dim"), advice), soft_wrap=True)
    return error.exit_code


def _interrupt(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
