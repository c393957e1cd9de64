"""``fedlearn registry`` and ``fedlearn audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlearn.cli import show
from fedlearn.contract import load_party

if TYPE_CHECKING:
    from fedlearn.service.registry import Entry, Registry

registry_app = typer.Typer(help="This party's models, by name and version.", no_args_is_help=True)
audit_app = typer.Typer(help="This party's audit log.", no_args_is_help=True)

PartyPath = Annotated[
    Path, typer.Option("--party", "-p", envvar="FEDLEARN_PARTY", help="this party's TOML file", show_default=False)
]
Name = Annotated[str, typer.Argument(help="the model's name")]
Version = Annotated[int, typer.Argument(help="its version")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@registry_app.command()
def add(
    party: PartyPath,
    model: Annotated[Path | None, typer.Option(help="folder of the share; <output>/model by default")] = None,
    name: Annotated[str | None, typer.Option(help="[service] model by default")] = None,
    as_json: Json = False,
) -> None:
    """Enter this side's share of a model, as the next version of its name.

    Example: fedlearn registry add --party party.toml
    """
    from fedlearn.service.registry import open_registry

    own = load_party(party)
    registry, contract = open_registry(own)
    chosen = name or (own.service.model if own.service else "model")
    _tell(registry.add(model or own.output.folder / "model", chosen, contract, own.party), as_json)


@registry_app.command("list")
def list_(party: PartyPath, as_json: Json = False) -> None:
    """All models and their states.

    Example: fedlearn registry list --party party.toml
    """
    found = _registry(party).list()
    if as_json:
        print(json.dumps([{**entry.facts, "state": entry.state} for entry in found]))
        return
    names = ("name", "version", "kind", "model_id", "added")
    lines = [{**{name: entry.facts[name] for name in names}, "state": entry.state} for entry in found]
    show.out.print(show.lines_table(lines or [{"name": "no models"}], "Models"))


@registry_app.command("show")
def show_(
    party: PartyPath,
    name: Name,
    version: Annotated[int | None, typer.Argument(help="the latest by default")] = None,
    as_json: Json = False,
) -> None:
    """Everything that is on record of one model.

    Example: fedlearn registry show model 1 --party party.toml
    """
    _tell(_registry(party).show(name, version), as_json)


@registry_app.command("compare")
def compare_(party: PartyPath, name: Name, one: Version, other: Version, as_json: Json = False) -> None:
    """What two versions differ in.

    Example: fedlearn registry compare model 1 2 --party party.toml
    """
    from fedlearn.service.registry import compare

    registry = _registry(party)
    found = compare(registry.show(name, one), registry.show(name, other))
    if as_json:
        print(json.dumps(found))
        return
    lines = [{"": key, str(one): str(a), str(other): str(b)} for key, (a, b) in found.items()]
    show.out.print(show.lines_table(lines, name))


@registry_app.command()
def promote(
    party: PartyPath,
    name: Name,
    version: Version,
    state: Annotated[str, typer.Option("--as", help="champion or challenger")] = "champion",
    as_json: Json = False,
) -> None:
    """Serve a model; running services change to it within a second. The passive side first, then the active one.

    Example: fedlearn registry promote model 2 --party party.toml
    """
    _tell(_registry(party).promote(name, version, state), as_json)


@registry_app.command()
def retire(party: PartyPath, name: Name, version: Version, as_json: Json = False) -> None:
    """Never serve a model again.

    Example: fedlearn registry retire model 1 --party party.toml
    """
    _tell(_registry(party).retire(name, version), as_json)


@registry_app.command()
def resign(
    party: PartyPath,
    former: Annotated[Path, typer.Option(help="PEM file of the key that signed so far")],
    as_json: Json = False,
) -> None:
    """Sign the registry anew after this party's key was replaced.

    Example: fedlearn registry resign --former keys/old.key --party party.toml
    """
    signed = _registry(party).resign(former)
    show.told("registry", {"entries_and_states_signed": signed}, as_json)


def _registry(party: Path) -> Registry:
    from fedlearn.service.registry import open_registry

    return open_registry(load_party(party))[0]


def _tell(entry: Entry, as_json: bool) -> None:
    facts: dict[str, Any] = {**entry.facts, "state": entry.state}
    if as_json:
        print(json.dumps(facts))
        return
    plain = {name: value for name, value in facts.items() if not isinstance(value, list | dict)}
    for table in ("metrics", "alignment"):
        plain |= {f"{table}: {name}": str(value) for name, value in facts[table].items()}
    show.out.print(show.facts_table(entry.label, plain))


@audit_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="the audit log")],
    party: Annotated[Path | None, typer.Option("--party", "-p", help="check seals with this party's key")] = None,
    passive: Annotated[Path | None, typer.Option(help="the passive side's log, to compare request IDs with")] = None,
    as_json: Json = False,
) -> None:
    """Check every entry of a log; exit code 38 when one was changed.

    Example: fedlearn audit verify audit.log --party party.toml
    """
    from fedlearn.service import audit as logs

    found = logs.verify(file, load_party(party).tls.key if party else None)
    if passive is not None:
        logs.verify(passive)
        found["agreement"] = logs.agree(file, passive)
    print(json.dumps(found)) if as_json else show.out.print(show.facts_table(str(file), found))
