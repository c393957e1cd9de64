"""``export``: this party's share of a model for readers, and for XGBoost where the contract allows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedlearn.cli import show
from fedlearn.cli.party import PartyPath
from fedlearn.contract import load_contract, load_party
from fedlearn.errors import NotDisclosed, NotInContract, OutputExists, OwnMistake

Folder = Annotated[
    Path | None, typer.Argument(help="folder of this side's model share; [output] folder/model by default")
]
Format = Annotated[str, typer.Option("--format", help="view (JSON), text, or xgboost (a model for XGBoost 3.1+)")]
Out = Annotated[Path | None, typer.Option("--out", help="write to this new file instead of printing")]


def export(
    party: PartyPath,
    run_folder: Folder = None,
    style: Format = "view",
    out: Out = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="say in JSON where it was written; view and xgboost are JSON")
    ] = False,
) -> None:
    """Write this party's share of a model in its features' own terms; nothing is sent to anybody.

    Example: party-b export --format text
    """
    from fedlearn.models import export as formats
    from fedlearn.models import share as shares

    if style not in ("view", "text", "xgboost") or (as_json and style == "text" and out is None):
        raise OwnMistake(f"--format {style} is not view, text or xgboost; --json prints no text")
    if out is not None and out.exists():
        raise OutputExists(f"{out} already exists")
    settings = load_party(party)
    contract = load_contract(settings.contract)
    if contract.kmeans is not None:
        raise NotInContract("clusters are no trees to export: share.json and run.json have the centres in plain JSON")
    if contract.glm is not None:
        raise NotInContract(
            "a regression is no trees to export: run.json has its coefficients, a scorecard's points are in"
            " scorecard.json and scorecard.pmml"
        )
    share = shares.load(run_folder or settings.output.folder / "model", contract, settings.party)
    if style == "text":
        written = formats.text(share, contract, settings.party)
    elif style == "view":
        written = json.dumps(formats.view(share, contract, settings.party), indent=1) + "\n"
    else:
        contract.check_not_expired()
        if not isinstance(share, shares.ActiveShare):
            raise NotDisclosed(f"the share of {settings.party!r} is the passive half, which holds no trees to export")
        written = json.dumps(formats.xgboost(share, contract)) + "\n"
    if out is None:
        print(written, end="")
        return
    out.write_text(written, encoding="utf-8")
    print(json.dumps({"written": str(out)})) if as_json else show.out.print(f"wrote {out}")
