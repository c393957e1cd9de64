"""``fedlearn demo``: the whole job on one machine, with two real processes and a real credit table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedlearn.cli import show


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="Try it on one machine")(demo)


def demo(
    folder: Annotated[
        Path, typer.Argument(help="where everything is written; an earlier demo there is replaced")
    ] = Path("runs/demo"),
    prepare: Annotated[
        bool, typer.Option("--prepare", help="only make tables and certificates, for two terminals")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json instead of tables")] = False,
) -> None:
    """A bank and a platform align, train, evaluate, save, reload and score on one machine.

    Example: fedlearn demo --prepare runs/credit      (then party-a train and party-b train in two terminals)
    """
    from fedlearn import demo as story

    if prepare:
        story.prepare(folder)
        show.out.print(f"tables and certificates of both parties are in {folder}")
        return
    summary = story.play(folder, quiet=as_json)
    if as_json:
        print(json.dumps(summary))
    else:
        _print(summary, folder)


def _print(summary: dict[str, object], folder: Path) -> None:
    s: dict[str, dict] = summary  # type: ignore[type-arg, assignment]
    show.out.print()
    show.out.print(
        show.facts_table(
            "Who met",
            {
                "platform's customers": s["rows_platform"],
                "bank's applications": s["rows_bank"],
                "shared, found by private set intersection": s["rows_shared"],
                "processes (platform, bank)": ", ".join(map(str, s["pids"])),
            },
        )
    )
    show.out.print(show.figures_table(s["figures"], "Held-out customers: 5 folds, same learner, same folds"))
    show.out.print(
        show.figures_table(s["figures_new"], "New customers, scored by the saved and reloaded pair of shares")
    )
    show.out.print(show.importance_table(s["importance"]))
    show.out.print(show.phases_table(s["phases"]))
    show.out.print(show.ledger_table(s["ledger"], s["kl_nats"]))  # type: ignore[arg-type]
    show.out.print(show.facts_table("Where everything is", s["written"]))
    show.out.print(f"{s['seconds']:.1f} s in all; written to {folder / 'summary.json'}")
