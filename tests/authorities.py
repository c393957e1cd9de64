"""Certificates as `fedlearn keys` makes none: of a sub-authority, valid at other times; and files to be replaced."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn import keys
from fedlearn.contract import Tls

PEM = serialization.Encoding.PEM


def moved(tls: Tls, folder: Path) -> Tls:
    """The same files in a folder of their own, to be replaced there."""
    for path in (tls.certificate, tls.key, tls.authority):
        shutil.copy(path, folder)
    return Tls(**{name: folder / path.name for name, path in tls})


def reissue(authority: Path, certificate: Path, party: str, begin: datetime, end: datetime) -> None:
    """Replace a party's certificate by one of the authority's that is valid between two moments."""
    issuer, issuer_key = keys._load_authority(authority)
    public_key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    made = keys._sign_party(party, public_key, issuer, issuer_key, (begin, end))
    certificate.write_bytes(made.public_bytes(PEM))


def with_sub_authority(folder: Path, *parties: str) -> dict[str, Tls]:
    """Files of each party, signed by the root, and as ``<party>-sub`` by its sub-authority; all trust the root."""
    now = datetime.now(UTC)
    validity = (now - timedelta(days=1), now + timedelta(days=9))
    root_key, sub_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def authority(name: str, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.Certificate:
        common = keys._common_name
        builder = keys._builder(common(name), common(issuer), key.public_key(), validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return builder.add_extension(keys._usage(authority=True), critical=True).sign(root_key, hashes.SHA256())

    root, sub = authority("root", root_key, "root"), authority("sub", sub_key, "root")
    (folder / "root.pem").write_bytes(root.public_bytes(PEM))
    made = {}
    for party in parties:
        by_sub = (f"{party}-sub", sub, sub_key, sub.public_bytes(PEM))
        for name, issuer, issuer_key, above in ((party, root, root_key, b""), by_sub):
            key = ec.generate_private_key(ec.SECP256R1())
            own = keys._sign_party(party, key.public_key(), issuer, issuer_key, validity)
            keys._write_private(folder / f"{name}.key", key)
            (folder / f"{name}.pem").write_bytes(own.public_bytes(PEM) + above)
            made[name] = Tls(
                certificate=folder / f"{name}.pem", key=folder / f"{name}.key", authority=folder / "root.pem"
            )
    return made
