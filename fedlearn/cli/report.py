"""``report`` and ``explain``: what a run did, as one HTML page or in plain words. Nothing is sent to anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlearn.cli import show
from fedlearn.cli.party import PartyPath
from fedlearn.contract import load_contract, load_party
from fedlearn.errors import OutputExists

if TYPE_CHECKING:
    from fedlearn.report.page import Run

Folder = Annotated[Path | None, typer.Argument(help="folder of this side's run; [output] folder/model by default")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (report, explain):
        app.command(rich_help_panel="Look at what came of it")(command)


def report(
    party: PartyPath,
    run_folder: Folder = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="write to this new file; report.html in the run's folder by default")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print where the report is as JSON")] = False,
) -> None:
    """Write this party's report of a run as one HTML file: figures, curves, bands, model, ledger, timings.

    Example: fedlearn report results/model --party party.toml --out committee.html
    """
    from fedlearn.report.page import page

    if out is not None and out.exists():
        raise OutputExists(f"{out} already exists")
    run = _load(party, run_folder)
    path = out or _folder(party, run_folder) / "report.html"
    path.write_text(page(run), encoding="utf-8")
    print(json.dumps({"report": str(path)})) if as_json else show.out.print(f"wrote {path}")


def explain(
    party: PartyPath,
    run_folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the sentences as JSON")] = False,
) -> None:
    """Tell in plain words what a run did, who learned what, and where its files are.

    Example: fedlearn explain results/model --party party.toml
    """
    from fedlearn.report import words

    found = words.explain(_load(party, run_folder), _folder(party, run_folder))
    if as_json:
        print(json.dumps(found))
        return
    for title, sentences in found.items():
        show.out.print(f"\n{title}")
        for sentence in sentences:
            show.out.print(f"  {sentence}", soft_wrap=True)


def _folder(party: Path, given: Path | None) -> Path:
    return given or load_party(party).output.folder / "model"


def _load(party: Path, given: Path | None) -> Run:
    from fedlearn.report.page import load

    settings = load_party(party)
    return load(_folder(party, given), load_contract(settings.contract), settings.party)
