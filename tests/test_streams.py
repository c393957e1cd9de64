"""Streams of requests between services, over gRPC with mutual TLS in one process."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from fedlearn import keys
from fedlearn.bench.pair import free_port
from fedlearn.contract import Tls
from fedlearn.errors import BadCertificate
from fedlearn.service import rpc
from fedlearn.service.common import Refusal
from fedlearn.service.rpc import Client, Server, Stream
from fedlearn.v1 import serve_pb2 as pb
from tests.authorities import moved
from tests.parties import wait_for

Certificates = dict[str, Tls]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("streams")
    keys.create_authority(folder / "authority", "streams")
    return {name: keys.issue(folder / "authority", folder / name, name) for name in ("bank", "platform", "other")}


def echo(_caller: str, raw: bytes) -> bytes:
    if raw.startswith(b"no"):
        raise Refusal("unknown-applicant", "there are no features of this applicant")
    return raw


class Stage:
    """A service of the platform's and clients of it."""

    def __init__(self, certificates: Certificates, stack: ExitStack) -> None:
        self.address, self._certificates, self._stack = f"127.0.0.1:{free_port()}", certificates, stack
        self.turned_away: list[int] = []

    def server(self, answer: Callable[[str, bytes], bytes] = echo, workers: int = 4) -> Server:
        tls = self._certificates["platform"]
        made = Server(
            self.address, tls, "platform", "Parts", answer, workers, ("bank",), call="Score",
            turned_away=lambda: self.turned_away.append(1),
        )  # fmt: skip
        made.start()
        self._stack.callback(made.drain, 1.0)
        return made

    def client(self, name: str = "bank") -> Client:
        made = Client(self.address, self._certificates[name], name, "platform", "Parts")
        self._stack.callback(made.close)
        return made

    def channel(self, name: str = "bank") -> Any:
        """Straight to the service, for what a Client does not send."""
        tls = self._certificates[name]
        files = [file.read_bytes() for file in (tls.authority, tls.key, tls.certificate)]
        options = [("grpc.ssl_target_name_override", "platform")]
        return self._stack.enter_context(
            grpc.secure_channel(self.address, grpc.ssl_channel_credentials(*files), options)
        )


@pytest.fixture
def stage(certificates: Certificates) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(certificates, stack)


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        work()
    assert str(refusal.value)
    return refusal.value.status


@contextmanager
def asked(client: Client, count: int, raw: bytes = b"wait") -> Iterator[list[str]]:
    """So many requests at once; what became of them."""
    became: list[str] = []

    def ask() -> None:
        try:
            client.ask(raw, 20)
            became.append("answered")
        except Refusal as refusal:
            became.append(refusal.status)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield became
    for thread in threads:
        thread.join()


def test_answers_come_in_the_order_of_requests_and_a_refusal_ends_nothing(stage: Stage) -> None:
    stage.server()
    stream = stage.client().stream()
    sent = [f"{'no' if n % 7 == 3 else 'row'} {n}".encode() for n in range(200)]
    for raw in sent:
        stream.put(raw)
    for raw in sent:
        if raw.startswith(b"no"):
            assert refused(stream.take) == "unknown-applicant"
        else:
            assert stream.take() == raw
    assert stream.open
    stream.end()
    assert refused(stream.take) == "peer-unavailable"


def test_a_client_uses_one_stream_again_and_again_and_several_at_once(stage: Stage) -> None:
    free = threading.Event()
    free.set()

    def answer(_caller: str, raw: bytes) -> bytes:
        free.wait(20)
        return raw

    server, client = stage.server(answer, workers=8), stage.client()
    for n in range(20):
        assert client.ask(b"%d" % n, 5) == b"%d" % n
    assert len(client._idle) == 1
    free.clear()
    with asked(client, 5) as became:
        wait_for(lambda: sum(stream.at_work for stream in server._streams._open.values()) == 5, 20)
        free.set()
    assert became == ["answered"] * 5
    assert len(client._idle) == 5


def test_a_late_answer_is_given_up_and_spoils_no_other(stage: Stage) -> None:
    free = threading.Event()

    def answer(_caller: str, raw: bytes) -> bytes:
        if raw == b"slow":
            free.wait(20)
        return raw

    stage.server(answer)
    client = stage.client()
    assert client.ask(b"quick", 5) == b"quick"
    begun = time.monotonic()
    with asked(client, 1, b"quick") as became:
        assert refused(lambda: client.ask(b"slow", 0.3)) == "peer-unavailable"
    assert 0.3 <= time.monotonic() - begun < 5
    assert became == ["answered"]
    for n in range(10):  # never the answer to the request that was given up
        assert client.ask(b"%d" % n, 5) == b"%d" % n
    free.set()


def test_who_may_open_streams_and_how_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_STREAMS", 1)
    stage.server()
    assert refused(lambda: stage.client("other").ask(b"row", 5)) == "not-a-caller"
    client = stage.client()
    held = [client.stream() for _ in range(2)]
    for stream in held:
        stream.put(b"row")
        assert stream.take() == b"row"
    assert refused(lambda: client.ask(b"row", 5)) == "too-many"
    held[0].end()
    wait_for(lambda: outcome(client) == "answered", 20)
    held[1].end()


def outcome(client: Client) -> str:
    try:
        client.ask(b"row", 5)
    except Refusal as refusal:
        return refusal.status
    return "answered"


def test_calls_that_never_send_hold_no_threads(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has any certificate may open calls and say nothing; the callers are answered all the same."""
    monkeypatch.setattr(rpc, "_CHECKING", 1.0)
    stage.server()
    silence = threading.Event()

    def nothing() -> Iterator[bytes]:
        silence.wait(30)
        yield from ()

    channels = [stage.channel("other") for _ in range(4)]
    held = [
        channels[n % 4].stream_unary(method).future(nothing())
        for n, method in enumerate(["/grpc.health.v1.Health/Check", "/fedlearn.v1.Serving/Score"] * 60)
    ]
    client = stage.client()
    for _ in range(5):
        assert client.ask(b"row", 5) == b"row"
    codes = {call.code() for call in held}
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.CANCELLED}
    health = stage.channel("other").unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"", timeout=5) == b"\x08\x01"
    silence.set()


def test_requests_wait_for_their_turn_and_not_too_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_WAITING", 2)
    free = threading.Event()

    def answer(_caller: str, raw: bytes) -> bytes:
        free.wait(20)
        return raw

    server, client = stage.server(answer, workers=1), stage.client()
    with asked(client, 3) as became:
        wait_for(lambda: server.turns._waiting == 2, 20)
        assert refused(lambda: client.ask(b"row", 5)) == "too-many"
        with pytest.raises(grpc.RpcError) as single:  # a single call waits with them
            stage.channel().unary_unary("/fedlearn.v1.Serving/Score")(b"row", timeout=5)
        assert dict(single.value.trailing_metadata())["fedlearn-status"] == "too-many"
        free.set()
    assert became == ["answered"] * 3
    assert server.turns._waiting == 0
    assert stage.turned_away == [1, 1]


@pytest.mark.parametrize(
    ("answered", "status", "kept"),
    [
        (b"\xff", "peer-misbehaved", 0),
        (pb.Answered(number=2).SerializeToString(), "peer-misbehaved", 0),
        (pb.Answered(number=1, status="fine").SerializeToString(), "peer-misbehaved", 1),
        (pb.Answered(number=1, status="too-many", sentence="later").SerializeToString(), "too-many", 1),
    ],
)
def test_answers_that_do_not_fit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answered: bytes, status: str, kept: int
) -> None:
    monkeypatch.setattr(Server, "_answered", lambda *_: answered)
    stage.server()
    client = stage.client()
    assert refused(lambda: client.ask(b"row", 5)) == status
    assert len(client._idle) == kept


def test_a_stream_with_an_answer_still_to_come_is_not_used_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Stream) -> bytes:
        raise KeyboardInterrupt

    stage.server()
    client = stage.client()
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.ask(b"first", 5)
    assert client._idle == []
    assert client.ask(b"second", 5) == b"second"


def test_a_message_that_is_no_request(stage: Stage) -> None:
    stage.server()
    call = stage.channel().stream_stream("/fedlearn.v1.Serving/Parts")(iter([b"\xff", pb.Asked().SerializeToString()]))
    assert [pb.Answered.FromString(raw).status for raw in call] == ["malformed", ""]


def test_a_method_that_is_not_there(stage: Stage, certificates: Certificates) -> None:
    stage.server()
    client = Client(stage.address, certificates["bank"], "bank", "platform", "Elsewhere")
    assert refused(lambda: client.ask(b"row", 5)) == "old-client"
    client.close()


def holding() -> tuple[Callable[[str, bytes], bytes], threading.Event, threading.Event]:
    """Answers at once, but holds `wait` until the first event is set; the second is set when that has come."""
    free, at_work = threading.Event(), threading.Event()

    def answer(_caller: str, raw: bytes) -> bytes:
        if raw == b"wait":
            at_work.set()
            free.wait(20)
        return raw

    return answer, free, at_work


def test_draining_answers_what_is_at_work_and_ends_idle_streams_at_once(stage: Stage) -> None:
    answer, free, at_work = holding()
    server, client = stage.server(answer), stage.client()
    idle = client.stream()
    idle.put(b"row")
    idle.take()
    with asked(client, 1) as became:
        at_work.wait(20)
        begun = time.monotonic()
        draining = threading.Thread(target=server.drain, args=(20.0,))
        draining.start()
        assert refused(idle.take) == "peer-unavailable"
        assert not became
        free.set()
        draining.join()
    assert time.monotonic() - begun < 10
    assert became == ["answered"]
    assert refused(lambda: client.ask(b"row", 5)) == "peer-unavailable"
    stage.server()
    wait_for(lambda: outcome(client) == "answered", 20)
    idle.end()


def test_new_certificates_are_for_new_streams(stage: Stage, certificates: Certificates, tmp_path: Path) -> None:
    stage.server()
    client = stage.client()
    assert client.ask(b"row", 5) == b"row"
    old = client._idle[0]
    client.renew()  # nothing has changed
    assert client.ask(b"row", 5) == b"row"
    assert client._idle == [old]
    certificates["bank"].certificate.touch()
    client.renew()
    assert client.ask(b"row", 5) == b"row"
    assert len(client._idle) == 1
    assert client._idle[0] is not old
    assert not old.open


def test_streams_of_a_former_authority_end(certificates: Certificates, tmp_path: Path) -> None:
    """On the connection that they have, too: those at work after their answer, the others at once."""
    answer, free, at_work = holding()
    tls = moved(certificates["platform"], tmp_path)
    keys.create_authority(tmp_path / "next", "next")
    request = keys.renew_request(tmp_path, "platform")
    with ExitStack() as stack:
        stage = Stage({**certificates, "platform": tls}, stack)
        server, client = stage.server(answer), stage.client()
        idle = client.stream()
        idle.put(b"row")
        idle.take()
        early = SimpleQueue[bytes | None]()  # a call whose message comes later
        single = stage.channel().stream_unary("/fedlearn.v1.Serving/Score").future(iter(early.get, None))
        good = tls.authority.read_bytes()
        tls.authority.write_bytes(b"no certificate")
        with pytest.raises(BadCertificate):
            server.renew()
        tls.authority.write_bytes(good + (tmp_path / "next" / "authority.pem").read_bytes())  # both, for a while
        server.renew()
        idle.put(b"row")
        assert idle.take() == b"row"
        with asked(client, 1) as became:
            at_work.wait(20)
            keys.sign_request(tmp_path / "next", request, tls.certificate.with_name("new.pem"))
            shutil.copy(tmp_path / "next" / "authority.pem", tls.authority)
            tls.certificate.with_name("new.pem").replace(tls.certificate)
            server.renew()
            assert refused(idle.take) == "peer-unavailable"
            assert not became
            free.set()
        assert became == ["answered"]
        wait_for(lambda: not any(stream.open for stream in client._idle), 20)
        assert refused(lambda: client.ask(b"row", 5)) == "not-a-caller"
        done = SimpleQueue[bool]()
        client.call("Score", b"row", 5, done.put)
        assert done.get(timeout=20) is False
        early.put(b"row")
        with pytest.raises(grpc.RpcError, match="connect anew"):
            single.result(20)
        early.put(None)


def test_a_certificate_that_expires_ends_its_streams(certificates: Certificates, tmp_path: Path) -> None:
    tls = moved(certificates["platform"], tmp_path)
    with ExitStack() as stack:
        stage = Stage({**certificates, "platform": tls}, stack)
        server, client = stage.server(), stage.client()
        stream = client.stream()
        stream.put(b"row")
        stream.take()
        server.renew()
        assert stream.open
        (certificate,) = server._trust._until
        server._trust._until[certificate] = time.time() - 1
        assert refused(lambda: client.ask(b"row", 5)) == "not-a-caller"
        tls.authority.write_bytes(b"no certificate")  # which the service's own trouble does not put off
        with pytest.raises(BadCertificate):
            server.renew()
        assert refused(stream.take) == "peer-unavailable"


def test_a_client_that_is_refused_connects_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rpc, "_ANEW", 1000.0)
    server, client = stage.server(), stage.client()
    assert client.ask(b"row", 5) == b"row"
    first = client._channel
    (certificate,) = server._trust._until
    server._trust._until[certificate] = 0.0
    server.renew()
    wait_for(lambda: not client._idle[0].open, 20)
    assert refused(lambda: client.ask(b"row", 5)) == "not-a-caller"
    assert client._channel is first  # it is new itself
    monkeypatch.setattr(rpc, "_ANEW", 0.0)
    assert refused(lambda: client.ask(b"row", 5)) == "not-a-caller"
    assert client._channel is not first
    assert "refused-by-server" in capsys.readouterr().err
    server._trust._until.clear()
    assert client.ask(b"row", 5) == b"row"


def test_few_certificates_are_remembered(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_KNOWN", 2)
    trust = rpc._Trust(certificates["bank"].authority)
    for name in ("bank", "platform", "other", "bank"):
        assert trust.admits(certificates[name].certificate.read_bytes())
        assert not trust.admits(name.encode())
        assert len(trust._until) <= 2


def test_no_thread_is_left(stage: Stage) -> None:
    before = set(threading.enumerate())
    server, client = stage.server(), stage.client()
    assert client.ask(b"row", 5) == b"row"
    refused(lambda: client.ask(b"no", 5))
    client.close()
    server.drain(1)
    wait_for(lambda: not {thread for thread in set(threading.enumerate()) - before if thread.is_alive()}, 20)


def test_a_stream_is_not_read_beyond_its_end(stage: Stage) -> None:
    server = stage.server()
    stream: Stream = stage.client().stream()
    stream.put(b"row")
    stream.take()
    server.drain(1)
    assert refused(stream.take) == "peer-unavailable"
    assert not stream.open
    stream.end()
