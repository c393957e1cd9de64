"""``fedlearn contract`` and ``fedlearn party``: look at what the TOML files may say and do say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedlearn.cli.show import out
from fedlearn.contract import Contract, PartyFile, load_contract, load_party

contract_app = typer.Typer(help="The contract that both sides hold.", no_args_is_help=True)
party_app = typer.Typer(help="This party's own settings.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="the TOML file")]


@contract_app.command("schema")
def contract_schema() -> None:
    """Print the JSON schema of contract.toml.

    Example: fedlearn contract schema > contract.schema.json
    """
    out.print_json(json.dumps(Contract.model_json_schema()))


@contract_app.command("hash")
def contract_hash(file: File, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Print the hash that both sides must agree on.

    Example: fedlearn contract hash contract.toml      (and the peer compares it with its own)
    """
    found = load_contract(file).hash().hex()
    print(json.dumps({"hash": found}) if as_json else found)


@contract_app.command("show")
def contract_show(file: File) -> None:
    """Print a contract with every default filled in, as JSON.

    Example: fedlearn contract show contract.toml
    """
    out.print_json(load_contract(file).model_dump_json())


@party_app.command("schema")
def party_schema() -> None:
    """Print the JSON schema of party.toml.

    Example: fedlearn party schema > party.schema.json
    """
    out.print_json(json.dumps(PartyFile.model_json_schema()))


@party_app.command("show")
def party_show(file: File) -> None:
    """Print a party file with every default filled in, as JSON.

    Example: fedlearn party show party.toml
    """
    out.print_json(load_party(file).model_dump_json())
