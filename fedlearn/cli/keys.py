"""``fedlearn keys``: an authority that both trust, and a certificate for each party."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlearn.cli.show import told

app = typer.Typer(help="Certificates: an authority, requests, signatures.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Folder = Annotated[Path, typer.Argument(help="folder to write to, or to read the authority from")]


@app.command()
def authority(
    folder: Folder,
    name: Annotated[str, typer.Option(help="name in the certificate")] = "fedlearn",
    as_json: Json = False,
) -> None:
    """Make a certificate authority. Keep authority.key to yourself; give authority.pem to both parties.

    Example: fedlearn keys authority authority --name "our authority"
    """
    from fedlearn import keys

    told(f"authority in {folder}", vars(keys.create_authority(folder, name)), as_json)


@app.command()
def request(
    folder: Folder,
    party: Annotated[str, typer.Option(help="the party's name in the contract")],
    as_json: Json = False,
) -> None:
    """Make a party's private key and its request; the key never leaves the party.

    Example: fedlearn keys request keys --party bank
    """
    from fedlearn import keys

    told(f"{party}: for the authority to sign", {"request": keys.create_request(folder, party)}, as_json)


@app.command()
def renew(
    folder: Folder,
    party: Annotated[str, typer.Option(help="the party's name in the contract")],
    as_json: Json = False,
) -> None:
    """Request a new certificate for the key that is there; registry and audit log stay valid.

    Example: fedlearn keys renew keys --party bank
    """
    from fedlearn import keys

    told(f"{party}: for the authority to sign", {"request": keys.renew_request(folder, party)}, as_json)


@app.command()
def sign(
    folder: Folder,
    request: Annotated[Path, typer.Option(help="the party's request")],
    certificate: Annotated[Path, typer.Option(help="where to write the party's certificate")],
    days: Annotated[int, typer.Option(help="how long it is valid")] = 825,
    as_json: Json = False,
) -> None:
    """Sign a party's request with the authority in FOLDER.

    Example: fedlearn keys sign authority --request keys/bank.csr --certificate keys/bank.pem
    """
    from fedlearn import keys

    told(str(certificate), vars(keys.sign_request(folder, request, certificate, days)), as_json)
