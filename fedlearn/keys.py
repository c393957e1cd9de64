"""Certificates for mutual TLS: an authority both parties trust, and one certificate per party.

ECDSA on P-256 (FIPS 186-5), X.509 v3 (RFC 5280). A party's certificate carries its name in the contract as common
name and as its only DNS alternative name, and may act as TLS client and server, so that either side may listen. The
private key is made where it is used: a party sends the authority a request (PKCS #10, RFC 2986), never the key.

Files in a folder: ``authority.pem``, ``authority.key``; ``<party>.key``, ``<party>.csr``, ``<party>.pem``. Nothing is
ever overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.contract import Tls
from fedlearn.errors import BadCertificate, BadConfig, FileMissing, OutputExists

_CLOCK_SKEW = timedelta(minutes=5)
_LABELS = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*"
)


@dataclass(frozen=True)
class CertificateSummary:
    """What to show of a certificate.

    Attributes:
        subject: the party's (or the authority's) name.
        fingerprint: SHA-256 of the DER certificate, hexadecimal, to compare by telephone.
        not_after: last moment of its validity, UTC.
    """

    subject: str
    fingerprint: str
    not_after: datetime


# --- making them -----------------------------------------------------------------------------------


def create_authority(folder: Path, name: str, days: int = 3650) -> CertificateSummary:
    """Make a certificate authority: ``authority.pem`` for everybody, ``authority.key`` for nobody else.

    It may sign parties' certificates, and no further authority.

    Raises:
        BadConfig: the name cannot stand in a certificate, or ``days`` is out of range.
        OutputExists: there is one already.
    """
    if not 0 < len(name) <= 64:
        raise BadConfig(f"an authority's name has 1 to 64 characters, not {len(name)}")
    _refuse_existing(folder / "authority.pem", folder / "authority.key")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign_authority(name, key, _from_now(days))
    _write_private(folder / "authority.key", key)
    _write(folder / "authority.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return _summary(certificate)


def create_request(folder: Path, party: str) -> Path:
    """Make a party's private key (readable by its owner only) and the request for its certificate.

    Returns:
        ``<party>.csr``, to be sent to the authority; the key stays in ``<party>.key``.

    Raises:
        BadConfig: the party's name cannot stand in a certificate.
        OutputExists: the party has a key or a request already.
    """
    _check_name(party)
    key_path, request_path = folder / f"{party}.key", folder / f"{party}.csr"
    _refuse_existing(key_path, request_path)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_common_name(party))
    request = builder.add_extension(_alternative_name(party), critical=False).sign(key, hashes.SHA256())
    _write_private(key_path, key)
    _write(request_path, request.public_bytes(serialization.Encoding.PEM))
    return request_path


def renew_request(folder: Path, party: str) -> Path:
    """A request for a new certificate for the key that a party has: what it signed stays signed.

    Returns:
        ``<party>-renewal.csr``, to be sent to the authority.

    Raises:
        FileMissing, BadCertificate: there is no such key.
        OutputExists: there is such a request already.
    """
    key, path = _signing_key(folder / f"{party}.key"), folder / f"{party}-renewal.csr"
    builder = x509.CertificateSigningRequestBuilder().subject_name(_common_name(party))
    request = builder.add_extension(_alternative_name(party), critical=False).sign(key, hashes.SHA256())
    _write(path, request.public_bytes(serialization.Encoding.PEM))
    return path


def sign_request(authority_folder: Path, csr_path: Path, out_path: Path, days: int = 825) -> CertificateSummary:
    """Sign a party's request. Only its name and public key are taken over; all else is this release's choice.

    Whoever runs this vouches that the request came from that party; compare ``subject`` of the result. The
    certificate never outlives the authority.

    Raises:
        FileMissing: the request, or the authority's key or certificate, cannot be read.
        BadCertificate: the request is damaged or not for one ECDSA P-256 key and one party; the authority has expired.
        BadConfig: ``days`` is out of range.
        OutputExists: ``out_path`` exists.
    """
    _refuse_existing(out_path)
    issuer, issuer_key = _load_authority(authority_folder)
    party, public_key = _check_request(csr_path)
    start, end = _from_now(days)
    validity = max(start, issuer.not_valid_before_utc), min(end, issuer.not_valid_after_utc)
    certificate = _sign_party(party, public_key, issuer, issuer_key, validity)
    _write(out_path, certificate.public_bytes(serialization.Encoding.PEM))
    return _summary(certificate)


def issue(authority_folder: Path, folder: Path, party: str) -> Tls:
    """Request and sign in one go, for a demo on one machine, and put the authority's certificate beside the result.

    Raises:
        See :func:`create_request` and :func:`sign_request`. OutputExists also when ``folder`` has the certificate of
        another authority.
    """
    tls = Tls(certificate=folder / f"{party}.pem", key=folder / f"{party}.key", authority=folder / "authority.pem")
    _load_authority(authority_folder)  # what is wrong with it shows before anything is written
    authority = _read(authority_folder / "authority.pem")
    known = tls.authority.exists() and _read(tls.authority) == authority
    _refuse_existing(tls.certificate, *(() if known else (tls.authority,)))
    sign_request(authority_folder, create_request(folder, party), tls.certificate)
    if not known:
        _write(tls.authority, authority)
    return tls


# --- checking them ---------------------------------------------------------------------------------


def check_own(tls: Tls, party: str) -> CertificateSummary:
    """Check this party's own certificate, key and authority before any connection is tried.

    Args:
        tls: where the three PEM files are. The certificate must be signed by (one of) the authorities directly.
        party: the name that the certificate must carry.

    Raises:
        FileMissing: a file cannot be read.
        BadCertificate: with the reason: not PEM, another key, expired, not yet valid, self-signed or from another
            authority, for another name, or for another use.
    """
    certificate = _load_certificates(tls.certificate)[0]
    authorities = _load_certificates(tls.authority)
    if _load_key(tls.key).public_key() != certificate.public_key():
        raise BadCertificate(f"the key {tls.key} does not belong to the certificate {tls.certificate}")
    _check_dates(certificate, f"the certificate {tls.certificate}")
    issuer = _issuer_of(certificate, authorities)
    if issuer is None:
        how = "is self-signed" if _issuer_of(certificate, [certificate]) else "was signed by another authority"
        raise BadCertificate(f"the certificate {tls.certificate} {how}, not by {tls.authority}")
    _check_dates(issuer, f"the authority {tls.authority}")
    names = party_names(certificate)
    if names != [party]:
        found = " and ".join(repr(name) for name in names) or "no party"
        raise BadCertificate(f"the certificate {tls.certificate} is for {found}, not for {party!r}")
    if not _usable_for_tls(certificate):
        raise BadCertificate(f"the certificate {tls.certificate} may not be used by a TLS client and server")
    return _summary(certificate)


def authorities(path: Path) -> list[x509.Certificate]:
    """The authorities in a PEM file. Raises FileMissing, BadCertificate."""
    return _load_certificates(path)


def valid_until(chain: bytes, signers: list[x509.Certificate]) -> datetime | None:
    """Until when a certificate, and all between it and one of the authorities, are valid.

    Args:
        chain: PEM; the certificate, then those between, as TLS has accepted them.
        signers: the authorities.

    Returns:
        the first of their last moments; None where the chain does not lead to one of the authorities.
    """
    try:
        found, *between = x509.load_pem_x509_certificates(chain)
    except ValueError:
        return None
    until = found.not_valid_after_utc
    for _ in range(1 + len(between)):
        ends = [signer.not_valid_after_utc for signer in signers if _issuer_of(found, [signer]) is not None]
        if ends:  # several, where an authority was renewed for the same key
            return min(until, max(ends))
        if (above := _issuer_of(found, between)) is None:
            return None
        found, until = above, min(until, above.not_valid_after_utc)
    return None


def sign(key: Path, what: bytes) -> bytes:
    """This party's signature (ECDSA with SHA-256, DER) by the private key in a PEM file.

    Raises:
        FileMissing, BadCertificate: the key cannot be read, or is not one for elliptic curves.
    """
    return _signing_key(key).sign(what, ec.ECDSA(hashes.SHA256()))


def is_signed(key: Path, what: bytes, signature: bytes) -> bool:
    """Whether this very key signed; raises as :func:`sign`."""
    try:
        _signing_key(key).public_key().verify(signature, what, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def key_fingerprint(key: Path) -> str:
    """SHA-256 of the public half of a party's key (SubjectPublicKeyInfo), hexadecimal. Raises BadCertificate."""
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public = _signing_key(key).public_key().public_bytes(serialization.Encoding.DER, kind)
    return hashlib.sha256(public).hexdigest()


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadCertificate(f"the key {path} is not for an elliptic curve, and so cannot sign results")
    return key


def party_names(certificate: x509.Certificate) -> list[str]:
    """The DNS alternative names of a certificate; ours have one, the party's."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def _usable_for_tls(certificate: x509.Certificate) -> bool:
    """Whether the key usages, where the certificate restricts them, allow both ends of a TLS connection."""
    try:
        extensions = {type(extension.value): extension.value for extension in certificate.extensions}
    except ValueError:
        return False
    usage, extended = extensions.get(x509.KeyUsage), extensions.get(x509.ExtendedKeyUsage)
    signs = not isinstance(usage, x509.KeyUsage) or usage.digital_signature
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    return signs and (not isinstance(extended, x509.ExtendedKeyUsage) or both.issubset(extended))


def _check_dates(certificate: x509.Certificate, what: str) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise BadCertificate(f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise BadCertificate(f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")


def _issuer_of(certificate: x509.Certificate, candidates: list[x509.Certificate]) -> x509.Certificate | None:
    for candidate in candidates:
        try:
            certificate.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return candidate
    return None


def _check_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The party and public key of a request whose sender proved to hold the private key."""
    try:
        request = x509.load_pem_x509_csr(_read(path))
        names = [attribute.value for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        valid = request.is_signature_valid
        public_key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate(f"{path} is not a certificate request in PEM format") from None
    if not valid or not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp256r1":
        raise BadCertificate(f"the request {path} is not signed by the ECDSA P-256 key that it asks for")
    if len(names) != 1 or not isinstance(names[0], str):
        raise BadCertificate(f"the request {path} does not name one party")
    _check_name(names[0])
    return names[0], public_key


# --- X.509 -----------------------------------------------------------------------------------------


def _sign_authority(
    name: str, key: ec.EllipticCurvePrivateKey, validity: tuple[datetime, datetime]
) -> x509.Certificate:
    """A self-signed authority, valid from the first moment given to the second."""
    builder = _builder(_common_name(name), _common_name(name), key.public_key(), validity)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def _sign_party(
    party: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate,
    issuer_key: CertificateIssuerPrivateKeyTypes,
    validity: tuple[datetime, datetime],
) -> x509.Certificate:
    """A party's certificate, valid from the first moment given to the second."""
    builder = _builder(_common_name(party), issuer.subject, public_key, validity)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    issuer_id = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(both, critical=False)
    builder = builder.add_extension(_alternative_name(party), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer_id, None, None), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(validity[0]).not_valid_after(validity[1])
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(party: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(party)])


def _summary(certificate: x509.Certificate) -> CertificateSummary:
    name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    subject = str(name[0].value) if name else certificate.subject.rfc4514_string()
    return CertificateSummary(subject, certificate.fingerprint(hashes.SHA256()).hex(), certificate.not_valid_after_utc)


def _from_now(days: int) -> tuple[datetime, datetime]:
    if not 1 <= days <= 36_500:
        raise BadConfig(f"a certificate is valid for 1 to 36500 days, not {days}")
    now = datetime.now(UTC).replace(microsecond=0)
    return now - _CLOCK_SKEW, now + timedelta(days=days)


def _check_name(party: str) -> None:
    """A party's name must also be a DNS name, and not an address, to be compared as one in TLS."""
    try:
        ip_address(party)
    except ValueError:
        if len(party) <= 63 and _LABELS.fullmatch(party):
            return
    raise BadConfig(f"the party's name {party[:80]!r} cannot stand in a certificate: it must be like a host name")


# --- files -----------------------------------------------------------------------------------------


def _load_authority(folder: Path) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes]:
    certificate, key = _load_certificates(folder / "authority.pem")[0], _load_key(folder / "authority.key")
    if key.public_key() != certificate.public_key():
        raise BadCertificate(f"authority.key does not belong to authority.pem in {folder}")
    _check_dates(certificate, f"the authority {folder / 'authority.pem'}")
    return certificate, key


def _load_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise BadCertificate(f"{path} is not a certificate in PEM format") from None


def _load_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except TypeError:
        raise BadCertificate(f"the key {path} is protected by a passphrase, which is not supported") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate(f"{path} is not a private key in PEM format") from None
    return key  # type: ignore[return-value]  # Diffie-Hellman keys match no certificate and are told so


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}") from None


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise OutputExists(f"{path} exists already and is not overwritten")


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write(path, key.private_bytes(encoding, form, serialization.NoEncryption()), mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise OutputExists(f"{path} exists already and is not overwritten") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
