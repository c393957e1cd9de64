"""``check``, ``align``, ``statistics``, ``train``, ``predict``: what each party runs for itself; and ``simulate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlearn.cli import show
from fedlearn.contract import load_contract, load_party
from fedlearn.errors import OutputExists, OwnMistake

if TYPE_CHECKING:
    from fedlearn.jobs import Job

PartyPath = Annotated[
    Path, typer.Option("--party", "-p", envvar="FEDLEARN_PARTY", help="this party's TOML file", show_default=False)
]
DataPath = Annotated[Path | None, typer.Option("--data", help="read this table instead of [data] path")]
OutPath = Annotated[Path | None, typer.Option("--out", help="write the result here instead of under [output] folder")]
ModelPath = Annotated[Path | None, typer.Option("--model", help="folder of this side's model share")]
Listen = Annotated[str | None, typer.Option(help="host:port to listen on instead of [network]")]
Connect = Annotated[str | None, typer.Option(help="host:port to connect to instead of [network]")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Style = Annotated[str, typer.Option("--progress", help="auto, lines, json or none")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with what broke off; on both sides")]
From = Annotated[
    Path | None, typer.Option("--from", help="folder of this side's share of a model to go on from; on both sides")
]
Plan = Annotated[
    Path | None,
    typer.Option("--plan", help="folder of a statistics run: train on the columns of its plan; on both sides"),
]
Alone = Annotated[bool, typer.Option("--alone", help="check this side only; do not reach the peer")]


def add_to(app: typer.Typer) -> None:
    """Register the jobs on the command tree."""
    for command in (check, prepare, align, statistics, train, train_alone, predict):
        app.command(rich_help_panel="Work with the other party")(command)
    app.command(rich_help_panel="Look at what came of it")(weigh)
    app.command(rich_help_panel="Put a model to work")(serve)
    app.command(rich_help_panel="Try it on one machine")(simulate)


def check(
    party: PartyPath,
    alone: Alone = False,
    data: DataPath = None,
    listen: Listen = None,
    connect: Connect = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Check this side's file, data and certificate, reach the peer, compare contracts; change nothing.

    Example: party-a check      (and party-b check at the other end)
    """
    _run("check", party, as_json, style, alone=alone, overrides=_overrides(data, listen, connect))


def prepare(party: PartyPath, data: DataPath = None, as_json: Json = False, style: Style = "auto") -> None:
    """Evaluate the large side's table ahead, for method cached; again for new rows, and after an interruption.

    Example: party-a prepare      (the platform of the demo, where its side is the large one)
    """
    from fedlearn import jobs

    _check_style(style)
    loaded = load_party(party, _overrides(data, None, None))
    with show.progress(loaded.party, style) as report:
        result = jobs.prepare_table(loaded, report)
    print(json.dumps(result)) if as_json else show.out.print(show.facts_table(f"{loaded.party}: prepared", result))


def align(
    party: PartyPath,
    data: DataPath = None,
    out: OutPath = None,
    listen: Listen = None,
    connect: Connect = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Find the shared customers by private set intersection; kept for the training runs that follow.

    Example: party-a align      (and party-b align at the other end)
    """
    _run("align", party, as_json, style, out=out, overrides=_overrides(data, listen, connect))


def statistics(
    party: PartyPath,
    data: DataPath = None,
    out: OutPath = None,
    listen: Listen = None,
    connect: Connect = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Information values, correlations, variance inflation, stability, missing rates, as far as the contract allows.

    Each party keeps its half of the plan of columns that comes of it, for train --plan.

    Example: party-a statistics      (and party-b statistics at the other end)
    """
    _run("statistics", party, as_json, style, out=out, overrides=_overrides(data, listen, connect))


def weigh(
    party: PartyPath,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write")],
    run_folder: Annotated[
        Path | None, typer.Option("--statistics", help="folder of the run; <output>/statistics by default")
    ] = None,
    data: DataPath = None,
    as_json: Json = False,
) -> None:
    """Replace the columns of this side's table by the weights of evidence of a statistics run; nothing is sent.

    Example: party-a weigh --data new_customers.csv --out weighed.csv
    """
    from fedlearn.jobs_statistics import weigh as job

    if out.exists():
        raise OutputExists(f"{out} already exists")
    own = load_party(party, _overrides(data, None, None))
    contract = load_contract(own.contract)
    result = job(own.data, contract, contract.role_of(own.party), run_folder or own.output.folder / "statistics", out)
    if as_json:
        print(json.dumps(result))
        return
    plain = {name: value for name, value in result.items() if name != "warnings"}
    show.out.print(show.facts_table(f"{own.party}: weighed", plain))
    for warning in result["warnings"]:
        show.out.print(f"warning: {warning}")


def train(
    party: PartyPath,
    data: DataPath = None,
    out: OutPath = None,
    resume: Resume = False,
    earlier: From = None,
    plan: Plan = None,
    listen: Listen = None,
    connect: Connect = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Align, train on encrypted gradients, evaluate; each party saves its own share of the model.

    Each finished round is kept beside the result, so that training goes on after a crash of either side:

    Example: party-a train --resume      (and party-b train --resume at the other end)
    """
    _run(
        "train", party, as_json, style, out=out, resume=resume, earlier=earlier, plan=plan,
        overrides=_overrides(data, listen, connect),
    )  # fmt: skip


def predict(
    party: PartyPath,
    data: DataPath = None,
    model: ModelPath = None,
    out: OutPath = None,
    form: Annotated[str, typer.Option("--format", help="csv or parquet")] = "csv",
    resume: Resume = False,
    listen: Listen = None,
    connect: Connect = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Score new rows with the pair of model shares; the active side gets the scores.

    A large batch (but of k-means) is scored in pieces, and goes on after a crash of either side with --resume on both.

    Example: party-b predict --data new_applicants.csv
    """
    if form not in ("csv", "parquet"):
        raise OwnMistake(f"--format {form} is not csv or parquet")
    _run(
        "predict", party, as_json, style, model=model, out=out, resume=resume, form=form,
        overrides=_overrides(data, listen, connect),
    )  # fmt: skip


def train_alone(
    party: PartyPath,
    out: Annotated[Path | None, typer.Option("--out", help="<output>/alone by default")] = None,
    as_json: Json = False,
) -> None:
    """Train a model of the side with labels alone, as a fallback for online scoring; the peer is not asked.

    Example: party-b train-alone
    """
    from fedlearn.jobs_alone import train_alone as job

    own = load_party(party)
    result = job(own, out or own.output.folder / "alone")
    if as_json:
        print(json.dumps(result))
    else:
        plain = {name: value for name, value in result.items() if not isinstance(value, list | dict)}
        show.out.print(show.facts_table(f"{own.party} alone", plain))


def serve(party: PartyPath) -> None:
    """Score applicants online until SIGTERM; the log goes to standard error, one JSON object a line.

    Example: party-a serve      (and party-b serve at the other end)
    """
    import threading

    from fedlearn.service.host import serve as run

    run(load_party(party), threading.Event())


def simulate(
    parties: Annotated[list[Path], typer.Argument(help="the two party files")],
    job: Annotated[str, typer.Option(help="check, align, statistics, train or predict")] = "train",
    resume: Resume = False,
    plan: Annotated[list[Path] | None, typer.Option("--plan", help="the two plans' folders, in that order")] = None,
    as_json: Json = False,
    style: Style = "auto",
) -> None:
    """Run both parties of a job in this one process; no network, every message still serialised and checked.

    Example: fedlearn simulate bank.toml platform.toml --job train --json
    """
    from fedlearn import jobs

    if len(parties) != 2 or job not in ("check", "align", "statistics", "train", "predict"):
        raise OwnMistake("simulate takes two party files and --job check, align, statistics, train or predict")
    if plan and (len(plan) != 2 or job != "train"):
        raise OwnMistake("--plan is given twice, once for each party file, and with --job train only")
    folders: list[Path | None] = [*plan] if plan else [None, None]
    sides = {
        own.role: own
        for own in (
            jobs.prepare(load_party(path), job, resume=resume, plan=folder)  # type: ignore[arg-type]
            for path, folder in zip(parties, folders, strict=True)
        )
    }
    if set(sides) != {"active", "passive"}:
        raise OwnMistake(f"{parties[0]} and {parties[1]} are the same side of the contract")
    active, passive = sides["active"], sides["passive"]
    with show.progress(active.party, style) as first, show.progress(passive.party, "none") as second:
        results = jobs.simulate_both(job, active, passive, (first, second))  # type: ignore[arg-type]
    if as_json:
        print(json.dumps({"active": results[0], "passive": results[1]}))
    else:
        for result in results:
            show.summary(result)


def _check_style(style: str) -> None:
    if style not in ("auto", "lines", "json", "none"):
        raise OwnMistake(f"--progress {style} is not auto, lines, json or none")


def _overrides(data: Path | None, listen: str | None, connect: str | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if data is not None:
        chosen["data.path"], chosen["data.url"] = data, None
        if data.suffix not in (".duckdb", ".db"):
            chosen["data.query"] = None
    if listen is not None:
        chosen["network.listen"], chosen["network.connect"] = listen, None
    if connect is not None:
        chosen["network.connect"], chosen["network.listen"] = connect, None
    return chosen


def _run(
    job: Job,
    path: Path,
    as_json: bool,
    style: str,
    *,
    alone: bool = False,
    model: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    earlier: Path | None = None,
    plan: Path | None = None,
    form: str = "csv",
    overrides: dict[str, Any],
) -> None:
    from fedlearn import jobs

    _check_style(style)
    party = load_party(path, overrides)
    contract = load_contract(party.contract)
    own = jobs.prepare(party, job, model=model, out=out, resume=resume, earlier=earlier, plan=plan, form=form)
    if alone:
        from fedlearn.keys import check_own

        certificate = check_own(party.tls, party.party)
        result: dict[str, Any] = {
            "job": job,
            "party": own.party,
            "rows": own.table.rows,
            "certificate_sha256": certificate.fingerprint,
            "certificate_expires": certificate.not_after.isoformat(),
        }
        print(json.dumps(result)) if as_json else show.out.print(show.facts_table(f"{own.party}: fit to run", result))
        return
    with show.progress(own.party, style) as report, jobs.connect(party, contract, report) as channel:
        result = jobs.run(job, channel, own)
    if as_json:
        print(json.dumps(result))
    else:
        show.summary(result)
