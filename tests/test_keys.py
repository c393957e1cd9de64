"""Certificates: held against cryptography's own path validation, and each thing that can be wrong with one's own."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedlearn import keys
from fedlearn.contract import Tls
from fedlearn.errors import BadCertificate, BadConfig, FedlearnError, FileMissing, OutputExists
from tests.authorities import reissue, with_sub_authority

PEM = serialization.Encoding.PEM


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    keys.create_authority(tmp_path / "authority", "Test Authority")
    return tmp_path / "authority"


@pytest.fixture
def own(authority: Path, tmp_path: Path) -> Tls:
    return keys.issue(authority, tmp_path / "bank", "bank")


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def redate(authority: Path, tls: Tls, first_day: int, last_day: int) -> None:
    """Replace the bank's certificate by one valid between two days from now."""
    begin, end = (datetime.now(UTC) + timedelta(days=day) for day in (first_day, last_day))
    reissue(authority, tls.certificate, "bank", begin, end)


# --- making them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("party", ["bank", "Platform-2", "a.b_c.example"])
def test_a_party_may_be_server_and_client_by_another_validator(authority: Path, tmp_path: Path, party: str) -> None:
    tls = keys.issue(authority, tmp_path / "party", party)
    builder = PolicyBuilder().store(Store([load(tls.authority)]))
    leaf = load(tls.certificate)
    client = builder.build_client_verifier().verify(leaf, [])
    assert client.subjects == [x509.DNSName(party)]
    if "_" not in party:  # that validator takes strict host names only
        builder.build_server_verifier(x509.DNSName(party)).verify(leaf, [])
        with pytest.raises(VerificationError):
            builder.build_server_verifier(x509.DNSName("somebody-else")).verify(leaf, [])


def test_what_the_certificates_say(authority: Path, own: Tls) -> None:
    root, leaf = load(authority / "authority.pem"), load(own.certificate)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert root.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert leaf.subject.rfc4514_string() == "CN=bank"
    assert keys.party_names(leaf) == ["bank"]
    assert keys.party_names(root) == []
    assert leaf.signature_hash_algorithm is not None
    assert leaf.signature_hash_algorithm.name == "sha256"


def test_private_keys_are_for_their_owner_only(authority: Path, own: Tls) -> None:
    for path in (authority / "authority.key", own.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_private_key_stays_with_the_party(authority: Path, tmp_path: Path) -> None:
    request = keys.create_request(tmp_path / "party", "bank")
    summary = keys.sign_request(authority, request, tmp_path / "signed" / "bank.pem")
    private = (tmp_path / "party" / "bank.key").read_bytes()
    everywhere_else = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "bank.key"]
    assert everywhere_else
    assert all(private not in path.read_bytes() for path in everywhere_else)
    certificate = load(tmp_path / "signed" / "bank.pem")
    assert summary.subject == "bank"
    assert summary.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert summary.not_after == certificate.not_valid_after_utc


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    root = keys.create_authority(tmp_path / "authority", "short", days=10)
    keys.issue(tmp_path / "authority", tmp_path / "party", "bank")
    assert load(tmp_path / "party" / "bank.pem").not_valid_after_utc == root.not_after


def test_nothing_is_overwritten(authority: Path, own: Tls, tmp_path: Path) -> None:
    folder = own.certificate.parent
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for attempt in (
        lambda: keys.create_authority(authority, "again"),
        lambda: keys.create_request(folder, "bank"),
        lambda: keys.sign_request(authority, folder / "bank.csr", folder / "bank.pem"),
        lambda: keys.issue(authority, folder, "bank"),
    ):
        with pytest.raises(OutputExists, match="not overwritten"):
            attempt()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_parties_may_share_a_folder_but_not_two_authorities(authority: Path, own: Tls, tmp_path: Path) -> None:
    folder = own.certificate.parent
    assert keys.issue(authority, folder, "platform").authority == own.authority
    keys.create_authority(tmp_path / "other", "other")
    with pytest.raises(OutputExists, match=r"authority\.pem"):
        keys.issue(tmp_path / "other", folder, "third")
    assert not (folder / "third.key").exists()


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "*.bank", "10.0.0.1", "::1", "a..b", "bank.", "-bank", "x" * 64, "bänk"]
)
def test_names_that_tls_cannot_compare_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadConfig, match="host name"):
        keys.create_request(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_validity_in_days_has_a_range(tmp_path: Path, days: int) -> None:
    with pytest.raises(BadConfig, match="1 to 36500 days"):
        keys.create_authority(tmp_path, "Test", days)


# --- requests that are not signed ------------------------------------------------------------------


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()).public_bytes(PEM)


def test_bad_requests_are_refused(authority: Path, tmp_path: Path) -> None:
    good = ec.generate_private_key(ec.SECP256R1())
    forged = bytearray(x509.load_pem_x509_csr(request(good, "bank")).public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    path, out = tmp_path / "some.csr", tmp_path / "some.pem"
    for content, words in (
        (b"nonsense", "PEM"),
        (x509.load_der_x509_csr(bytes(forged)).public_bytes(PEM), "not signed by|PEM"),
        (request(ec.generate_private_key(ec.SECP384R1()), "bank"), "P-256"),
        (request(rsa.generate_private_key(65537, 2048), "bank"), "P-256"),
        (request(good), "one party"),
        (request(good, "bank", "platform"), "one party"),
        (request(good, "*.bank"), "host name"),
    ):
        path.write_bytes(content)
        with pytest.raises((BadCertificate, BadConfig), match=words):
            keys.sign_request(authority, path, out)
    with pytest.raises(FileMissing):
        keys.sign_request(authority, tmp_path / "absent.csr", out)
    assert not out.exists()


def test_what_a_request_asks_for_beyond_its_name_is_ignored(authority: Path, tmp_path: Path) -> None:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "bank"), x509.NameAttribute(NameOID.COUNTRY_NAME, "SG")]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("platform")]), critical=False)
    csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    (tmp_path / "x.csr").write_bytes(csr.public_bytes(PEM))
    keys.sign_request(authority, tmp_path / "x.csr", tmp_path / "x.pem")
    certificate = load(tmp_path / "x.pem")
    assert certificate.subject.rfc4514_string() == "CN=bank"
    assert keys.party_names(certificate) == ["bank"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


# --- one's own files -------------------------------------------------------------------------------


def test_good_files_pass(own: Tls) -> None:
    assert keys.check_own(own, "bank").fingerprint == load(own.certificate).fingerprint(hashes.SHA256()).hex()


def test_an_authority_file_may_hold_several(own: Tls, tmp_path: Path) -> None:
    keys.create_authority(tmp_path / "other", "other")
    both = (tmp_path / "other" / "authority.pem").read_bytes() + own.authority.read_bytes()
    own.authority.write_bytes(both)
    assert keys.check_own(own, "bank").subject == "bank"


def encrypt_key(own: Tls, _: Path) -> None:
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    form, how = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    own.key.write_bytes(key.private_bytes(PEM, form, how))


def self_sign(own: Tls, _: Path) -> None:
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    certificate = keys._sign_authority("bank", key, (now, now + timedelta(days=1)))
    own.certificate.write_bytes(certificate.public_bytes(PEM))


def other_authority(own: Tls, authority: Path) -> None:
    keys.create_authority(authority.parent / "other", "Test Authority")  # the same name, another key
    own.authority.write_bytes((authority.parent / "other" / "authority.pem").read_bytes())


def other_key(own: Tls, authority: Path) -> None:
    own.key.write_bytes((authority / "authority.key").read_bytes())


def expired_authority(own: Tls, authority: Path) -> None:
    key = keys._load_key(authority / "authority.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    expired = keys._sign_authority("Test Authority", key, (now - timedelta(days=9), now - timedelta(days=1)))
    own.authority.write_bytes(expired.public_bytes(PEM))


def swapped(own: Tls, authority: Path) -> None:
    other = keys.issue(authority, authority.parent / "platform", "platform")
    own.certificate.write_bytes(other.certificate.read_bytes())
    own.key.write_bytes(other.key.read_bytes())


def no_tls(own: Tls, authority: Path) -> None:
    issuer, issuer_key = keys._load_authority(authority)
    key = keys._load_key(own.key)
    builder = keys._builder(
        keys._common_name("bank"), issuer.subject, key.public_key(), (datetime.now(UTC), issuer.not_valid_after_utc)
    )
    builder = builder.add_extension(keys._alternative_name("bank"), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    own.certificate.write_bytes(builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM))


WRONG: dict[str, tuple[Callable[[Tls, Path], object], type[FedlearnError], str]] = {
    "no certificate": (lambda own, _: own.certificate.unlink(), FileMissing, r"cannot read .*bank\.pem"),
    "no key": (lambda own, _: own.key.unlink(), FileMissing, r"cannot read .*bank\.key"),
    "no authority": (lambda own, _: own.authority.unlink(), FileMissing, r"cannot read .*authority\.pem"),
    "certificate not PEM": (lambda own, _: own.certificate.write_bytes(b"x"), BadCertificate, r"bank\.pem is not a"),
    "key not PEM": (lambda own, _: own.key.write_bytes(b"x"), BadCertificate, r"bank\.key is not a private key"),
    "authority not PEM": (lambda own, _: own.authority.write_bytes(b""), BadCertificate, r"authority\.pem is not a"),
    "passphrase": (encrypt_key, BadCertificate, "passphrase"),
    "another key": (other_key, BadCertificate, "does not belong to"),
    "expired": (lambda own, ca: redate(ca, own, -3, -1), BadCertificate, r"expired on \d{4}-\d\d-\d\d"),
    "not yet valid": (lambda own, ca: redate(ca, own, 2, 3), BadCertificate, r"not valid before \d{4}-\d\d-\d\d"),
    "self-signed": (self_sign, BadCertificate, "is self-signed"),
    "another authority": (other_authority, BadCertificate, "signed by another authority"),
    "authority expired": (expired_authority, BadCertificate, r"the authority .* expired on \d{4}"),
    "another use": (no_tls, BadCertificate, "may not be used by a TLS client and server"),
    "another party": (swapped, BadCertificate, "is for 'platform', not for 'bank'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_thing_wrong_with_ones_own_files_has_its_sentence(own: Tls, authority: Path, name: str) -> None:
    spoil, kind, words = WRONG[name]
    spoil(own, authority)
    with pytest.raises(kind, match=words) as caught:
        keys.check_own(own, "bank")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_an_expired_authority_signs_nothing(authority: Path, own: Tls, tmp_path: Path) -> None:
    expired_authority(Tls(certificate=own.certificate, key=own.key, authority=authority / "authority.pem"), authority)
    with pytest.raises(BadCertificate, match=r"the authority .* expired"):
        keys.issue(authority, tmp_path / "late", "platform")
    assert not (tmp_path / "late").exists()


def test_until_when_a_certificate_is_valid(authority: Path, own: Tls, tmp_path: Path) -> None:
    signers = keys.authorities(own.authority)
    assert keys.valid_until(own.certificate.read_bytes(), signers) == load(own.certificate).not_valid_after_utc
    redate(authority, own, 0, 9_000)  # longer than the authority's own
    assert keys.valid_until(own.certificate.read_bytes(), signers) == load(own.authority).not_valid_after_utc
    keys.create_authority(tmp_path / "next", "Next")
    others = keys.authorities(tmp_path / "next" / "authority.pem")
    assert keys.valid_until(own.certificate.read_bytes(), others) is None
    assert keys.valid_until(own.certificate.read_bytes(), others + signers) is not None
    assert keys.valid_until(b"no certificate", signers) is None


def test_certificates_between(tmp_path: Path) -> None:
    tls = with_sub_authority(tmp_path, "bank")
    signers = keys.authorities(tls["bank"].authority)
    both = tls["bank-sub"].certificate.read_bytes()
    leaf, sub = x509.load_pem_x509_certificates(both)
    for chain in (both, leaf.public_bytes(PEM) + both):  # gRPC may name the first one twice
        assert keys.valid_until(chain, signers) == sub.not_valid_after_utc
    assert keys.valid_until(leaf.public_bytes(PEM), signers) is None
    assert keys.valid_until(leaf.public_bytes(PEM), [sub]) is not None
    assert keys.valid_until(tls["bank"].certificate.read_bytes() + both, signers) is not None
    own = load(tls["bank"].authority)
    assert keys.valid_until(own.public_bytes(PEM) * 3, [sub]) is None  # signed by itself
