"""``fedlearn new``: a few questions, and a contract and both party files to start from."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from fedlearn.cli import show
from fedlearn.errors import BadConfig, OwnMistake

if TYPE_CHECKING:
    from fedlearn import drafting
    from fedlearn.contract import Kind
    from fedlearn.data.outline import Outline

Columns = Annotated[
    list[str] | None, typer.Option(help="a feature as name=number or name=category; again for each, where no table is")
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="Set up")(new)


def new(
    folder: Annotated[Path, typer.Argument(help="a folder that is not there yet")],
    active: Annotated[str | None, typer.Option(help="name of the side with the labels")] = None,
    passive: Annotated[str | None, typer.Option(help="name of the side with features only")] = None,
    active_table: Annotated[Path | None, typer.Option(help="its CSV or Parquet file, if it is on this machine")] = None,
    passive_table: Annotated[Path | None, typer.Option(help="likewise")] = None,
    active_feature: Columns = None,
    passive_feature: Columns = None,
    key: Annotated[str | None, typer.Option(help="column that identifies a customer in both tables")] = None,
    label: Annotated[str | None, typer.Option(help="label column of the active side")] = None,
    positive: Annotated[str | None, typer.Option(help="label value whose probability is predicted")] = None,
    model: Annotated[str | None, typer.Option(help="trees, regression or scorecard")] = None,
    mode: Annotated[str | None, typer.Option(help="of the alignment: mutual or one-sided")] = None,
    purpose: Annotated[str | None, typer.Option(help="why these data may be used")] = None,
    days: Annotated[int, typer.Option(min=1, help="how long the contract is valid")] = 365,
    address: Annotated[
        str | None, typer.Option(help="host:port at which the passive side listens, as the active side sees it")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="ask nothing; take what was not said from the defaults")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print where the files are as JSON; asks nothing")] = False,
) -> None:
    """Draft a contract and both party files, with comments, from a few answers and the header of a table.

    Example: fedlearn new joint --active-table applications.csv --passive-feature spend=number --passive-feature city=category
    """  # noqa: E501
    from fedlearn import drafting
    from fedlearn.models.share import refuse_existing

    refuse_existing(folder)
    ask = _Asking(yes or as_json)
    active_name = ask.word("Who has the labels?", active, "bank", "--active")
    passive_name = ask.word("Who brings features only?", passive, "platform", "--passive")
    active_file = ask.table(f"Table of {active_name} (empty if it is not on this machine)", active_table)
    passive_file = ask.table(f"Table of {passive_name} (empty if it is not on this machine)", passive_table)
    common = _common(active_file, passive_file)
    key_name = ask.word("Column that identifies a customer, in both tables", key, common, "--key")
    label_name = ask.word(f"Label column of {active_name}", label, "", "--label")
    if active_file is None:
        target = drafting.Target(label_name, ask.word("Its positive value", positive, "1", "--positive"))
    else:
        drafting.features_of(active_file, key_name, label_name)
        target = drafting.target_of(active_file, label_name, positive)
    own, unused = _side(ask, active_name, active_file, active_feature, (key_name, label_name), "--active-feature")
    theirs, unusable = _side(ask, passive_name, passive_file, passive_feature, (key_name,), "--passive-feature")
    left_out = unused + unusable
    chosen = ask.one_of("Model", model, ("trees", "regression", "scorecard"), "--model")
    if (target.classes and chosen != "trees") or (not target.positive and chosen == "scorecard"):
        raise OwnMistake(f"a {chosen} does not fit the label {label_name!r}, which has not two values: choose trees")
    aligned = ask.one_of("Alignment", mode, ("mutual", "one-sided"), "--mode")
    draft = drafting.Draft(
        name=folder.name,
        purpose=ask.word("Purpose, as the contract states it", purpose, "Estimate the risk of applicants", "--purpose"),
        expires=date.today() + timedelta(days=days),
        active=own,
        passive=theirs,
        target=target,
        key=key_name,
        normalise=drafting.normalisation_of(key_name),
        mode=cast(Literal["mutual", "one-sided"], aligned),
        algorithm=cast("drafting.Algorithm", chosen),
        listener=passive_name,
        address=ask.word(f"Where {passive_name} listens, as {active_name} sees it", address,
                         f"{passive_name}.example:7443", "--address"),
    )  # fmt: skip
    files = drafting.write(draft, folder)
    if as_json:
        print(json.dumps({name: str(path) for name, path in files.items()} | {"left_out": left_out}))
        return
    show.out.print(show.facts_table(f"Drafted in {folder}", files))
    if left_out:
        show.out.print(f"Left out, since they look like neither a number nor a category: {'; '.join(left_out)}")
    show.out.print(_next_steps(draft, folder))


def _side(
    ask: _Asking, name: str, found: Outline | None, told: list[str] | None, others: tuple[str, ...], option: str
) -> tuple[drafting.Party, list[str]]:
    """A side with the features that were told, else those of its table; and the columns of the table left out."""
    from fedlearn import drafting

    if told or found is None:
        return drafting.Party(name, _told(told or ask.columns(name, option)), found.path if found else None), []
    features, left_out = drafting.features_of(found, *others)
    return drafting.Party(name, features, found.path), [f"{name}: {column}" for column in left_out]


class _Asking:
    """Answers: as given on the command line, else asked at the terminal, else the default."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent

    def word(self, question: str, given: str | None, default: str, option: str) -> str:
        if given is not None:
            return given
        if self.silent:
            if not default:
                raise OwnMistake(f"{option} is needed: {question[0].lower()}{question[1:]}")
            return default
        return str(typer.prompt(question, default=default or None)).strip()

    def one_of(self, question: str, given: str | None, choices: tuple[str, ...], option: str) -> str:
        found = self.word(f"{question} ({', '.join(choices)})", given, choices[0], option)
        if found not in choices:
            raise OwnMistake(f"{option} is one of {', '.join(choices)}, not {found!r}")
        return found

    def table(self, question: str, given: Path | None) -> Outline | None:
        from fedlearn.data.outline import outline

        if given is None and not self.silent:
            answer = str(typer.prompt(question, default="", show_default=False)).strip()
            given = Path(answer) if answer else None
        return None if given is None else outline(given)

    def columns(self, name: str, option: str) -> list[str]:
        if self.silent:
            raise OwnMistake(f"which columns {name} brings is not known: name them with {option}, or its table")
        answer = typer.prompt(f"Features of {name}, as name=number or name=category, with commas between")
        return [part.strip() for part in str(answer).split(",") if part.strip()]


def _common(one: Outline | None, other: Outline | None) -> str:
    """The first column that both tables have, or that the one table starts with."""
    if one is not None and other is not None:
        return next((name for name in one.kinds if name in other.kinds), "")
    known = one or other
    return next(iter(known.kinds), "") if known else ""


def _told(columns: list[str]) -> dict[str, Kind]:
    features: dict[str, Kind] = {}
    for column in columns:
        name, _, kind = column.rpartition("=")
        if not name or kind not in ("number", "category"):
            raise BadConfig(f"{column!r} is not name=number or name=category")
        features[name] = cast("Kind", kind)
    return features


def _next_steps(draft: drafting.Draft, folder: Path) -> str:
    name, keys = draft.active.name, folder / "keys"
    return f"""\
Next, each side for itself (here {name}):
  read and change {folder / "contract.toml"}; both sides hold the same file, with the same `fedlearn contract hash`
  fedlearn keys request {keys} --party {name}; have it signed (`fedlearn keys authority`, `keys sign`), and put
    {name}.pem and authority.pem there
  fedlearn check --party {folder / f"{name}.toml"} --alone, then both sides at about the same time without --alone
  fedlearn train --party {folder / f"{name}.toml"}, both sides"""
