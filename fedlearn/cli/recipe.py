"""``recipe``: whole examples on real tables, both sides on one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedlearn.cli import show
from fedlearn.errors import OwnMistake


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="Try it on one machine")(recipe)


def recipe(
    name: Annotated[str | None, typer.Argument(help="which recipe; --list shows them")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="where everything is written; runs/<name> by default")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="show all recipes")] = False,
    rows: Annotated[int | None, typer.Option("--rows", min=100, help="take at most this many customers")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Play a recipe: two parties made from one real table; alone, joint and pooled results side by side.

    Example: fedlearn recipe marketing-propensity
    """
    from fedlearn import recipes

    if listed:
        found = recipes.names()
        print(json.dumps(found)) if as_json else show.out.print(show.facts_table("Recipes", found))
        return
    if name is None:
        raise OwnMistake("recipe needs a name, or --list")
    with show.progress(name, "none" if as_json else "auto") as report:
        summary = recipes.play(name, folder or Path("runs") / name, rows, report)
    if as_json:
        print(json.dumps(summary))
        return
    show.out.print(show.figures_table(summary["figures"], f"{name}: {summary['rows_shared']:,} rows, {summary['on']}"))
    show.out.print(show.facts_table("Reports", summary["reports"]))
    show.out.print(f"{summary['seconds']:.0f} s in all; the recipe's page is {recipes.home() / name / 'README.md'}")
