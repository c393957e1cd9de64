"""The gRPC link with real TLS over loopback: who gets in, who does not and is told why, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn import keys
from fedlearn.channel import BOTH, START, Channel, Limits, LinkClosed, Message, Table, grpc_link, nothing
from fedlearn.channel.grpc_link import GrpcLink, dial, listen
from fedlearn.contract import Tls
from fedlearn.errors import (
    BadCertificate,
    BadConfig,
    FedlearnError,
    PeerAbsent,
    PeerLost,
    PeerSilent,
    PeerUntrusted,
    VersionMismatch,
)
from fedlearn.v1.align_pb2 import AlignDoubled
from tests.authorities import reissue, with_sub_authority

TOY = Table("toy", ("bank", "platform"), (Message(AlignDoubled, BOTH, (START, "AlignDoubled"), nothing("a test")),))
DAY = timedelta(days=1)

# --- certificates ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ``ca`` and ``other``, and certificates of both, each in a folder of its own."""
    base = tmp_path_factory.mktemp("keys")
    keys.create_authority(base / "ca", "Test Authority")
    keys.create_authority(base / "other", "Other Authority")
    for party in ("bank", "platform", "third"):
        keys.issue(base / "ca", base / party, party)
        keys.issue(base / "other", base / f"{party}-other", party)
        keys.issue(base / "ca", base / f"{party}-expired", party)
        keys.issue(base / "ca", base / f"{party}-future", party)
        keys.issue(base / "ca", base / f"{party}-self", party)
        redate(base, party, "expired", -3, -1)
        redate(base, party, "future", 2, 3)
        key = keys._load_key(base / f"{party}-self" / f"{party}.key")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        validity = (datetime.now(UTC) - DAY, datetime.now(UTC) + DAY)
        itself = keys._sign_authority(party, key, validity)
        own = keys._sign_party(party, key.public_key(), itself, key, validity)
        (base / f"{party}-self" / f"{party}.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    return base


def redate(base: Path, party: str, kind: str, first_day: int, last_day: int) -> None:
    begin, end = (datetime.now(UTC) + day * DAY for day in (first_day, last_day))
    reissue(base / "ca", base / f"{party}-{kind}" / f"{party}.pem", party, begin, end)


def files(folder: Path, party: str, kind: str = "") -> Tls:
    """A party's files. It trusts the common authority, whatever its own certificate is."""
    own = folder / (f"{party}-{kind}" if kind else party)
    return Tls(certificate=own / f"{party}.pem", key=own / f"{party}.key", authority=folder / "ca" / "authority.pem")


# --- connections -----------------------------------------------------------------------------------


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a party try with a certificate that its own check would refuse."""
    monkeypatch.setattr(grpc_link, "check_own", lambda *_: None)


Links = tuple[GrpcLink, GrpcLink]


@pytest.fixture
def links(folder: Path, address: str, background: Callable[..., Future[Any]]) -> Iterator[Links]:
    """A listening bank and a dialling platform."""
    listening = background(listen, address, files(folder, "bank"), "bank", "platform", 10)
    dialled = dial(address, files(folder, "platform"), "platform", "bank", 10)
    pair = listening.result(), dialled
    yield pair
    closing = [background(link.close) for link in pair]
    for done in closing:
        done.result()


def everything(link: GrpcLink) -> list[bytes]:
    """All frames until the link ends."""
    frames = []
    try:
        while True:
            frames.append(link.get())
    except LinkClosed:
        return frames


@contextmanager
def plain_server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A TCP server that is no party; ``answer`` gets each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    answer(connection)
                    stop.wait(5 if answer is silence else 0)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def answer_of(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except OSError:
        return b""


def silence(_: socket.socket) -> None:
    """Says nothing, and keeps the connection."""


# --- the good path ---------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["bank", "platform"])
def test_either_side_may_listen_and_large_messages_cross(
    folder: Path, address: str, background: Callable[..., Future[Any]], listener: str
) -> None:
    dialler = "platform" if listener == "bank" else "bank"
    message = AlignDoubled(points=os.urandom(5_000_000))

    def converse(link: GrpcLink, me: str, peer: str) -> tuple[int, int, bytes]:
        channel = Channel(link, me=me, peer=peer, limits=Limits(step=20))
        channel.open(TOY, me)
        for _ in range(3):
            channel.send(message)
            assert channel.receive(AlignDoubled) == message
        channel.close()
        return channel.bytes_sent, channel.bytes_received, channel.ledger.digest()

    listening = background(
        lambda: converse(listen(address, files(folder, listener), listener, dialler, 10), listener, dialler)
    )
    dialled = dial(address, files(folder, dialler), dialler, listener, 10)
    sent, received, digest = converse(dialled, dialler, listener)
    assert listening.result() == (received, sent, digest)
    assert sent > 15_000_000


def test_a_dialler_may_come_first(folder: Path, address: str, background: Callable[..., Future[Any]]) -> None:
    dialled = background(dial, address, files(folder, "platform"), "platform", "bank", 10)
    time.sleep(0.5)
    listening = listen(address, files(folder, "bank"), "bank", "platform", 10)
    assert dialled.result().put(b"hello", timeout=1)
    assert listening.get() == b"hello"
    done = background(everything, listening)
    dialled.result().close()
    assert done.result() == []
    listening.close()


@pytest.mark.parametrize("first", ["listener", "dialler"])
def test_close_flushes(links: Links, background: Callable[..., Future[Any]], first: str) -> None:
    closing, other = links if first == "listener" else links[::-1]
    for number in range(4):
        assert closing.put(bytes([number]) * 200_000, timeout=1)
    arrived = background(everything, other)
    closing.close()
    assert [frame[0] for frame in arrived.result()] == [0, 1, 2, 3]


def test_a_full_link_says_so(links: Links) -> None:
    listening, dialled = links
    put = 0
    while dialled.put(bytes(1 << 20), timeout=0.5):
        put += 1
        assert put < 64
    assert listening.get() == bytes(1 << 20)
    while not dialled.put(b"there is room again", timeout=0.5):
        listening.get()


def test_after_close_nothing_is_left(links: Links, address: str, folder: Path) -> None:
    listening, dialled = links
    closing = threading.Thread(target=everything, args=(dialled,))
    closing.start()
    for link in (listening, dialled, listening):
        link.close()
    closing.join()
    for link in (listening, dialled):
        with pytest.raises(LinkClosed):
            link.put(b"late", timeout=1)
        with pytest.raises(LinkClosed):
            link.get()
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))):
        pass
    with pytest.raises(PeerAbsent):
        dial(address, files(folder, "platform"), "platform", "bank", 0.3)


def test_a_frame_over_the_limit_ends_the_link(links: Links) -> None:
    listening, dialled = links
    assert dialled.put(bytes(9 << 20), timeout=1)
    for link in links:
        with pytest.raises(LinkClosed):
            link.get()
    with pytest.raises(LinkClosed):
        listening.put(b"x", timeout=1)


# --- the wrong certificate -------------------------------------------------------------------------


def test_own_certificate_is_checked_before_anything_else(folder: Path, address: str) -> None:
    for connect in (listen, dial):
        with pytest.raises(BadCertificate, match="is for 'platform', not for 'bank'"):
            connect(address, files(folder, "platform"), "bank", "platform", 5)
        with pytest.raises(BadCertificate, match="expired on"):
            connect(address, files(folder, "bank", "expired"), "bank", "platform", 5)


@pytest.mark.parametrize(
    ("party", "kind", "words"),
    [
        ("third", "", r"is for 'third', not for 'bank'"),
        ("bank", "expired", "has expired"),
        ("bank", "future", "is not valid yet"),
        ("bank", "self", "is self-signed"),
        ("bank", "other", "is from another authority"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_listener_with_a_wrong_certificate_is_not_trusted(
    folder: Path, address: str, background: Callable[..., Future[Any]], party: str, kind: str, words: str
) -> None:
    listening = background(listen, address, files(folder, party, kind), "bank", "platform", 0.8)
    with pytest.raises(PeerUntrusted, match=rf"certificate of the peer 'bank' at {address} {words}"):
        dial(address, files(folder, "platform"), "platform", "bank", 5)
    with pytest.raises(PeerAbsent, match=rf"the peer 'platform' has not connected to {address}"):
        listening.result()


@pytest.mark.parametrize(
    ("party", "kind", "words", "seen"),
    [
        ("third", "", "expects another party", PeerUntrusted),
        ("platform", "expired", "hung up on this party's certificate|refused", PeerAbsent),
        ("platform", "future", "hung up on this party's certificate|refused", PeerAbsent),
        ("platform", "self", "hung up on this party's certificate|refused", PeerAbsent),
        ("platform", "other", "hung up on this party's certificate|refused", PeerAbsent),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_dialler_with_a_wrong_certificate_is_told(
    folder: Path,
    address: str,
    background: Callable[..., Future[Any]],
    party: str,
    kind: str,
    words: str,
    seen: type[FedlearnError],
) -> None:
    listening = background(listen, address, files(folder, "bank"), "bank", "platform", 0.8)
    with pytest.raises(BadCertificate, match=words):
        dial(address, files(folder, party, kind), party, "bank", 5)
    with pytest.raises(seen, match="'third' was refused" if seen is PeerUntrusted else "or has no valid certificate"):
        listening.result()


@pytest.mark.usefixtures("unchecked")
def test_a_certificate_of_a_sub_authority_is_not_enough(
    tmp_path: Path, address: str, background: Callable[..., Future[Any]]
) -> None:
    """Whoever the authority lets sign could otherwise be either party."""
    tls = with_sub_authority(tmp_path, "bank", "platform")
    listening = background(listen, address, tls["bank"], "bank", "platform", 0.8)
    with pytest.raises(BadCertificate, match="expects another party"):
        dial(address, tls["platform-sub"], "platform", "bank", 5)
    with pytest.raises(PeerUntrusted, match="'platform', not signed by the authority itself, was refused"):
        listening.result()
    listening = background(listen, address, tls["bank-sub"], "bank", "platform", 0.8)
    with pytest.raises(PeerUntrusted, match=r"was not signed by the authority .*root\.pem itself"):
        dial(address, tls["platform"], "platform", "bank", 5)
    with pytest.raises(PeerAbsent):
        listening.result()


def test_the_right_party_gets_in_after_others_were_refused(
    folder: Path, address: str, background: Callable[..., Future[Any]]
) -> None:
    listening = background(listen, address, files(folder, "bank"), "bank", "platform", 10)
    with pytest.raises(BadCertificate):
        dial(address, files(folder, "third"), "third", "bank", 5)
    host, _, port = address.partition(":")
    nobody = ssl.create_default_context(cafile=folder / "ca" / "authority.pem")
    with socket.create_connection((host, int(port))) as plain, nobody.wrap_socket(plain, server_hostname="bank") as tls:
        assert answer_of(tls) == b""
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer_of(plain)
    assert not listening.done()
    dialled = dial(address, files(folder, "platform"), "platform", "bank", 5)
    assert dialled.put(b"hello", timeout=1)
    assert listening.result().get() == b"hello"
    done = background(everything, listening.result())
    dialled.close()
    done.result()
    listening.result().close()


# --- nobody, or something else ---------------------------------------------------------------------


def test_nobody_is_there(folder: Path, address: str) -> None:
    with pytest.raises(PeerAbsent, match=rf"the peer 'bank' at {address} could not be reached within 0 s \(.*refused"):
        dial(address, files(folder, "platform"), "platform", "bank", 0.3)
    with pytest.raises(PeerAbsent, match=r"known|resolution"):
        dial("nobody.invalid:5000", files(folder, "platform"), "platform", "bank", 0.3)
    with pytest.raises(PeerAbsent, match=rf"the peer 'platform' has not connected to {address} within 0 s"):
        listen(address, files(folder, "bank"), "bank", "platform", 0.3)
    with pytest.raises(PeerAbsent):  # and the port is free again
        listen(address, files(folder, "bank"), "bank", "platform", 0.1)


def test_an_address_in_use_cannot_be_listened_at(folder: Path) -> None:
    with plain_server(silence) as taken, pytest.raises(BadConfig, match=f"cannot listen at {taken}"):
        listen(taken, files(folder, "bank"), "bank", "platform", 5)
    with pytest.raises(BadConfig, match="cannot listen at"):
        listen("192.0.2.1:5000", files(folder, "bank"), "bank", "platform", 5)


def test_a_port_that_says_nothing(folder: Path) -> None:
    with plain_server(silence) as address, pytest.raises(PeerSilent, match="has not answered"):
        dial(address, files(folder, "platform"), "platform", "bank", 0.5)


def test_a_port_that_is_not_tls(folder: Path) -> None:
    with (
        plain_server(lambda connection: connection.sendall(b"220 mail ready\r\n" * 10)) as address,
        pytest.raises(PeerUntrusted, match="does not speak TLS"),
    ):
        dial(address, files(folder, "platform"), "platform", "bank", 5)


def test_a_port_that_hangs_up(folder: Path) -> None:
    with plain_server(lambda _: None) as address, pytest.raises(PeerAbsent, match=r"closed|reset"):
        dial(address, files(folder, "platform"), "platform", "bank", 0.5)


def test_a_peer_without_the_service(folder: Path, address: str) -> None:
    own = files(folder, "bank")
    pair = (own.key.read_bytes(), own.certificate.read_bytes())
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_secure_port(address, grpc.ssl_server_credentials([pair], own.authority.read_bytes(), True))
    server.start()
    with pytest.raises(VersionMismatch, match=r"does not offer fedlearn\.v1\.Party/Converse"):
        dial(address, files(folder, "platform"), "platform", "bank", 5)
    server.stop(None).wait()


def test_a_second_stream_is_refused_while_one_is_open(links: Links, address: str, folder: Path) -> None:
    listening, dialled = links
    with pytest.raises(PeerAbsent, match="busy with another session"):
        dial(address, files(folder, "platform"), "platform", "bank", 0.5)
    dialled.put(b"still here", timeout=1)
    assert listening.get() == b"still here"


# --- processes -------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from fedlearn.channel.grpc_link import dial, listen
from fedlearn.contract import Tls
how, address, base, me, peer, then = sys.argv[1:]
tls = Tls(certificate=f"{base}/{me}/{me}.pem", key=f"{base}/{me}/{me}.key", authority=f"{base}/ca/authority.pem")
link = {"dial": dial, "listen": listen}[how](address, tls, me, peer, 10)
link.put(b"ready", 1)
if then == "fail":
    raise SystemExit(7)
while then == "talk":
    link.put(bytes(1 << 20), 1)
time.sleep(60)
"""


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.processes
@pytest.mark.parametrize("how", ["dial", "listen"])
@pytest.mark.parametrize("then", ["sleep", "talk"])
def test_a_killed_peer_is_noticed(folder: Path, address: str, how: str, then: str) -> None:
    with child(how, address, str(folder), "platform", "bank", then) as process:
        connect = listen if how == "dial" else dial
        link = connect(address, files(folder, "bank"), "bank", "platform", 10)
        assert link.get() == b"ready"
        process.send_signal(signal.SIGKILL)
        process.wait()
        everything(link)
        with pytest.raises(LinkClosed):
            link.put(b"x", timeout=1)
        link.close()


@pytest.mark.processes
def test_a_killed_peer_is_lost_to_the_channel(folder: Path, address: str) -> None:
    with child("listen", address, str(folder), "platform", "bank", "sleep") as process:
        link = dial(address, files(folder, "bank"), "bank", "platform", 10)
        assert link.get() == b"ready"
        channel = Channel(link, me="bank", peer="platform")
        channel.open(TOY, "bank")
        process.kill()
        with pytest.raises(PeerLost, match=r"the connection to 'platform' broke at step toy\.AlignDoubled"):
            channel.receive(AlignDoubled)
        channel.close()


@pytest.mark.processes
@pytest.mark.parametrize("how", ["dial", "listen"])
def test_a_process_that_fails_without_closing_ends_at_once_and_quietly(folder: Path, address: str, how: str) -> None:
    with child(how, address, str(folder), "platform", "bank", "fail") as process:
        connect = listen if how == "dial" else dial
        link = connect(address, files(folder, "bank"), "bank", "platform", 10)
        assert process.wait(timeout=10) == 7
        everything(link)
        link.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
