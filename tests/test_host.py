"""What holds a service together, with real sockets and TLS: certificates, models, the end, slow callers, the bound."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn import keys
from fedlearn.bench import serve as bench
from fedlearn.bench.pair import free_port
from fedlearn.contract import Contract, PartyFile, Tls, load_party
from fedlearn.errors import WrongModel
from fedlearn.service import audit, host, web
from fedlearn.service.common import Models, Refusal
from fedlearn.service.registry import Registry, open_registry
from fedlearn.service.rpc import Client, stamp
from fedlearn.service.web import Web, scoring, status_page
from fedlearn.v1 import serve_pb2 as pb
from tests.authorities import moved, reissue
from tests.parties import wait_for

BODY = json.dumps({"request_id": "request-1", "applicant": "1", "purpose": "bench", "protocol": 1}).encode()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both sides, and a system that asks with a certificate of this authority (``desk``) and of the next (``new``)."""
    folder = tmp_path_factory.mktemp("host")
    files = bench._prepare(folder, bench.Setting(trees=3, depth=2))
    keys.create_authority(folder / "next", "the next authority")
    keys.issue(folder / "authority", folder / "desk", "desk")
    keys.issue(folder / "next", folder / "new", "desk")
    return files


@dataclasses.dataclass
class Running:
    """A service in a thread of this process."""

    stop: threading.Event
    ended: Future[None]


class Stage:
    """The active side with files of its own, and callers."""

    def __init__(self, prepared: dict[str, Path], folder: Path) -> None:
        own = load_party(prepared["active"])
        assert own.service is not None
        self.base, self.folder = prepared["active"].parent.parent, folder
        self.tls = moved(own.tls, folder)
        self.listen, self.http, self.status = (f"127.0.0.1:{free_port()}" for _ in range(3))
        changed = {"listen": self.listen, "http": self.http, "status": self.status, "audit": folder / "audit.jsonl"}
        self.party: PartyFile = own.model_copy(
            update={"tls": self.tls, "service": own.service.model_copy(update=changed)}
        )

    @contextmanager
    def running(self, **service: Any) -> Iterator[Running]:
        assert self.party.service is not None
        party = self.party.model_copy(update={"service": self.party.service.model_copy(update=service)})
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(host.serve, party, stop)
            try:
                wait_for(lambda: ended.done() or self.page("/readyz")[0] == 200)
                yield Running(stop, ended)
            finally:
                stop.set()
            ended.result(30)

    def page(self, path: str) -> tuple[int, str]:
        """A page of the status server; 0 where there is no answer."""
        try:
            with urllib.request.urlopen(f"http://{self.status}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def context(self, name: str) -> ssl.SSLContext:
        """Trusts either authority, so that only the service refuses."""
        context = ssl.create_default_context(cafile=self.base / "authority" / "authority.pem")
        context.load_verify_locations(self.base / "next" / "authority.pem")
        context.check_hostname = False
        context.load_cert_chain(self.base / name / "desk.pem", self.base / name / "desk.key")
        return context

    def caller(self, name: str = "desk") -> http.client.HTTPSConnection:
        address, _, port = self.http.rpartition(":")
        return http.client.HTTPSConnection(address, int(port), context=self.context(name), timeout=20)

    def served(self, name: str) -> bool:
        """Whether a new connection is answered."""
        made = self.caller(name)
        try:
            return call(made, "GET", "/openapi.json")[0] == 200
        except OSError:
            return False
        finally:
            made.close()

    def change_authority(self) -> None:
        """The service's certificate, for the same key, and the authority that it trusts."""
        request = keys.renew_request(self.folder, "active")
        keys.sign_request(self.base / "next", request, self.folder / "fresh.pem")
        shutil.copy(self.base / "next" / "authority.pem", self.folder / "next.pem")
        (self.folder / "next.pem").replace(self.tls.authority)
        (self.folder / "fresh.pem").replace(self.tls.certificate)


@pytest.fixture
def stage(prepared: dict[str, Path], tmp_path: Path) -> Stage:
    return Stage(prepared, tmp_path)


class Desk:
    """Stands for Deciding: answers once it is let, and enters it in the audit log."""

    def __init__(self) -> None:
        self.let, self.begun, self.lock = threading.Event(), threading.Semaphore(0), threading.Lock()
        self.now = self.most = 0
        self.audit: Any = None

    def answer(self, caller: str, raw: bytes) -> bytes:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.begun.release()
        self.let.wait(30)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1
        if self.audit is not None:
            self.audit.add("score", request="request-1", caller=caller)
        return pb.ScoreReply(model="model-1").SerializeToString()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk()

    def deciding(*parts: Any) -> Desk:
        made.audit = next(part for part in parts if isinstance(part, audit.AuditLog))
        return made

    monkeypatch.setattr(host, "Deciding", deciding)
    yield made
    made.let.set()


def call(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> tuple[int, dict[str, Any], bool]:
    """Status, answer, and whether the connection ends with it."""
    connection.request(method, path, body)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read()), reply.getheader("Connection") == "close"


def post(stage: Stage) -> tuple[int, dict[str, Any], bool]:
    """Score over a connection of its own."""
    made = stage.caller()
    try:
        return call(made, "POST", "/v1/score", BODY)
    finally:
        made.close()


# --- certificates ------------------------------------------------------------------------------------


def test_a_changed_authority_is_taken_over(stage: Stage, desk: Desk) -> None:
    """Also by callers: one of the removed authority is no longer served, not even on the connection it has."""
    with stage.running():
        kept = stage.caller()
        assert call(kept, "GET", "/openapi.json")[2] is False
        assert not stage.served("new")
        stage.change_authority()
        wait_for(lambda: stage.served("new"), 8)
        assert not stage.served("desk")
        assert call(kept, "GET", "/openapi.json")[2] is True
        with pytest.raises(OSError):  # noqa: PT011  (it connects anew; how TLS says no depends on the moment)
            call(kept, "GET", "/openapi.json")
        kept.close()


def test_a_certificate_that_expires_on_an_open_connection(stage: Stage, desk: Desk, tmp_path: Path) -> None:
    desk.let.set()
    tls = keys.issue(stage.base / "authority", tmp_path / "brief", "desk")
    context, (address, _, port) = stage.context("desk"), stage.http.rpartition(":")
    with stage.running():
        end = datetime.now(UTC) + timedelta(seconds=5)
        reissue(stage.base / "authority", tls.certificate, "desk", end - timedelta(minutes=1), end)
        context.load_cert_chain(tls.certificate, tls.key)
        kept = http.client.HTTPSConnection(address, int(port), context=context, timeout=20)
        assert call(kept, "POST", "/v1/score", BODY)[0] == 200
        wait_for(lambda: datetime.now(UTC) > end)
        status, told, _ = call(kept, "POST", "/v1/score", BODY)
        assert (status, told["status"]) == (403, "not-a-caller")
        assert "expired" in told["message"]
        kept.close()


def test_an_open_stream_of_a_removed_authority_ends(stage: Stage, desk: Desk, prepared: dict[str, Path]) -> None:
    desk.let.set()
    with stage.running():
        client = Client(stage.listen, load_party(prepared["active"]).tls, "active", "active", "Scores")
        assert client.ask(b"row", 5)
        stream = client._idle[0]
        stage.change_authority()
        wait_for(lambda: not stream.open, 8)
        with pytest.raises(Refusal, match="connect anew"):
            client.ask(b"row", 5)
        client.close()


@pytest.mark.parametrize("moment", ["start", "renewal"])
def test_a_replacement_while_certificates_are_loaded_is_seen(
    stage: Stage, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = web.tls_context

    def loading(tls: Tls, me: str) -> ssl.SSLContext:
        found = load(tls, me)
        monkeypatch.undo()
        stage.change_authority()
        return found

    if moment == "start":
        monkeypatch.setattr(web, "tls_context", loading)
    made = Web(stage.http, scoring(lambda *_: b""), stage.tls, "active")
    try:
        if moment == "renewal":
            monkeypatch.setattr(web, "tls_context", loading)
            stage.tls.authority.touch()
            made.renew()
        assert not stage.served("new")
        made.renew()
        assert stage.served("new")
        assert not stage.served("desk")
    finally:
        made.close()


@pytest.mark.parametrize("damage", [WrongModel("the share is damaged"), ValueError("damaged JSON")])
def test_damaged_models_hold_up_no_certificate(
    stage: Stage, desk: Desk, damage: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither that of the endpoint nor that of the client, and the service goes on."""

    def damaged(*_: Any) -> bool:
        raise damage

    renew, renewed = Client.renew, list[tuple[int, ...]]()
    monkeypatch.setattr(Client, "renew", lambda client: (renew(client), renewed.append(client._stamp)))
    with stage.running() as service:
        monkeypatch.setattr(Models, "refresh", damaged)
        stage.change_authority()
        wait_for(lambda: stage.served("new"), 8)
        wait_for(lambda: renewed[-1] == stamp(stage.tls), 8)
        assert not service.ended.done()
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any(line["event"] == "not-reloaded" and str(damage) in line["message"] for line in said)


# --- models ------------------------------------------------------------------------------------------


@pytest.fixture
def models(prepared: dict[str, Path], tmp_path: Path) -> tuple[Registry, Models, Callable[[str], int]]:
    """An empty registry of the passive side's, its models, and what adds one: returns its version."""
    own = load_party(prepared["passive"])
    _, contract = open_registry(own)
    registry = Registry(tmp_path / "registry", own.tls.key)
    return (
        registry,
        Models(registry, contract, "passive", lambda share: share),
        lambda name: add(registry, contract, name, tmp_path),
    )


def add(registry: Registry, contract: Contract, name: str, folder: Path) -> int:
    number = len(registry.list()) + 1
    half = bench.shares(bench.Setting(trees=3, depth=2), np.random.default_rng(number))["passive"]
    place = folder / f"share-{number}"
    place.mkdir()
    bench.save(dataclasses.replace(half, model_id=bytes([number]) * 16), place, contract, "passive")
    return int(registry.add(place, name, contract, "passive").facts["version"])


def damage(registry: Registry, label: str) -> Callable[[], None]:
    """Damages a model's first file; what is returned mends it."""
    path = min(path for path in (registry.folder / "models" / label).iterdir() if path.is_file())
    whole = path.read_bytes()
    path.write_bytes(b"{")
    return lambda: path.write_bytes(whole) and None


def labels(models: Models) -> list[str]:
    return host._labels(models)


def test_a_damaged_model_holds_up_no_retirement(models: Any) -> None:
    registry, served, new = models
    for name in ("one", "other"):
        registry.promote(name, new(name))
    assert served.refresh()
    assert labels(served) == ["one-1 champion", "other-1 champion"]
    kept = served.in_state("other", "champion")
    for name in ("bad", "later"):
        registry.promote(name, new(name))
    mend = damage(registry, "bad-1")
    registry.retire("one", 1)
    for _ in range(2):
        with pytest.raises(WrongModel):
            served.refresh()
        assert sorted(labels(served)) == ["later-1 champion", "other-1 champion"]
        assert served.retired == {registry.show("one").facts["model_id"]}
    now = served.in_state("other", "champion")
    assert (now.scorer, now.drift) == (kept.scorer, kept.drift)
    mend()
    assert served.refresh()
    assert not served.refresh()
    assert sorted(labels(served)) == ["bad-1 champion", "later-1 champion", "other-1 champion"]


def test_what_is_retired_is_out_before_anything_is_loaded(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until then there is a champion, though another was promoted."""
    registry, served, new = models
    for name in ("one", "other"):
        registry.promote(name, new(name))
    served.refresh()
    registry.promote("other", new("other"))
    registry.retire("one", 1)
    load, seen = Models._load, list[list[str]]()
    monkeypatch.setattr(Models, "_load", lambda self, entry: (seen.append(labels(self)), load(self, entry))[1])
    served.refresh()
    assert seen == [["other-1 champion"]]
    assert labels(served) == ["other-1 superseded", "other-2 champion"]


def test_a_damaged_champion_does_not_take_the_place(models: Any) -> None:
    registry, served, new = models
    registry.promote("one", new("one"))
    served.refresh()
    registry.promote("one", new("one"))
    damage(registry, "one-2")
    for _ in range(2):
        with pytest.raises(WrongModel):
            served.refresh()
        assert labels(served) == ["one-1 champion"]
    registry.promote("one", new("one"))
    with pytest.raises(WrongModel):
        served.refresh()
    assert labels(served) == ["one-1 superseded", "one-3 champion"]
    registry.retire("one", 1)
    registry.retire("one", 2)
    assert served.refresh()
    assert labels(served) == ["one-3 champion"]


def test_a_service_starts_beside_damage_that_others_can_do_without(models: Any) -> None:
    registry, served, new = models
    for name in ("bad", "one"):
        registry.promote(name, new(name))
    mend = damage(registry, "bad-1")
    host._first_look(served, "one")
    host._first_look(served, None)  # the passive side, which answers for any model
    assert labels(served) == ["one-1 champion"]
    with pytest.raises(WrongModel):  # the champion of what is served
        host._first_look(served, "bad")
    registry.retire("one", 1)
    with pytest.raises(WrongModel):  # nothing at all
        host._first_look(served, None)
    mend()
    host._first_look(served, "bad")
    assert labels(served) == ["bad-1 champion"]


def test_a_registry_that_is_locked_holds_up_no_certificate(stage: Stage, desk: Desk, monkeypatch: Any) -> None:
    free, entered = threading.Event(), threading.Event()
    with stage.running():
        monkeypatch.setattr(Models, "refresh", lambda _: (entered.set(), free.wait(30)))
        try:
            assert entered.wait(20)
            stage.change_authority()
            wait_for(lambda: stage.served("new"), 20)
            assert not free.is_set()
        finally:
            free.set()


def test_what_goes_wrong_is_logged_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(host, "_LOOK", 0.0)
    stop, turns = threading.Event(), iter(["a", "a", "b", "b", "", "b", "b"])

    def look() -> None:
        found = next(turns, None)
        if found is None:
            stop.set()
        elif found:
            raise WrongModel(found)

    host._watch([look, lambda: None], stop)
    said = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert said == ["a", "b", "b"]


def test_a_retirement_beside_damage_is_logged(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    registry, served, new = models
    registry.promote("one", new("one"))
    served.refresh()
    registry.promote("bad", new("bad"))
    damage(registry, "bad-1")
    registry.retire("one", 1)
    for _ in range(2):
        with pytest.raises(WrongModel):
            host._look_at(served)
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["served"]) == ("models", [])


# --- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grpc_too", [False, True])
def test_what_is_under_way_is_finished_over_http_and_grpc(stage: Stage, desk: Desk, grpc_too: bool) -> None:
    with stage.running() as service, ThreadPoolExecutor(2) as pool:
        kept = stage.caller()
        assert call(kept, "GET", "/openapi.json")[0] == 200
        client = Client(stage.listen, stage.tls, "active", "active", "Scores")
        by_http = pool.submit(post, stage)
        by_grpc = pool.submit(client.ask, b"", 20) if grpc_too else None
        for _ in range(1 + grpc_too):
            assert desk.begun.acquire(timeout=10)
        service.stop.set()
        wait_for(lambda: stage.page("/readyz")[0] == 503)  # which still says so
        code, said, ends = call(kept, "POST", "/v1/score", BODY)
        assert (code, said["status"], ends) == (503, "stopping", True)
        assert said["message"]
        with pytest.raises(ConnectionRefusedError):
            call(kept, "GET", "/openapi.json")  # it connects anew
        kept.close()
        time.sleep(0.5)
        assert not by_http.done()
        assert not service.ended.done()
        desk.let.set()
        code, said, ends = by_http.result(10)
        assert (code, said["model"], ends) == (200, "model-1", True)
        assert by_grpc is None or pb.ScoreReply.FromString(by_grpc.result(10)).model == "model-1"
        service.ended.result(10)
        client.close()
    assert [e["kind"] for e in audit.entries(stage.folder / "audit.jsonl")].count("score") == 1 + grpc_too


def test_http_and_grpc_drain_in_the_same_seconds(stage: Stage, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_GRACE", 2.0)
    with stage.running() as service, ThreadPoolExecutor(2) as pool:
        client = Client(stage.listen, stage.tls, "active", "active", "Scores")
        by_http, by_grpc = pool.submit(post, stage), pool.submit(client.ask, b"", 20)
        for _ in range(2):
            assert desk.begun.acquire(timeout=10)
        begun = time.monotonic()
        service.stop.set()
        service.ended.result(20)
        assert 1.9 < time.monotonic() - begun < 3.7
        desk.let.set()
        with pytest.raises(Refusal):
            by_grpc.result(10)
        assert by_http.result(10)[0] == 500  # too late for the audit log, so there is no score
        client.close()


def test_the_status_page_ends_too(stage: Stage) -> None:
    made = Web(stage.status, status_page(lambda: True, lambda: ""))
    kept = http.client.HTTPConnection(stage.status, timeout=10)
    kept.request("GET", "/healthz")
    assert kept.getresponse().read() == b"alive\n"
    made.close()
    kept.request("GET", "/healthz")
    with kept.getresponse() as reply:
        assert (reply.status, reply.getheader("Connection")) == (503, "close")
        assert b"stopping" in reply.read()
    kept.close()
    made.close()  # once more does no harm


# --- slow callers ------------------------------------------------------------------------------------

_HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few connections and short deadlines."""
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 6)
    for name in ("_HANDSHAKE", "_IDLE", "_REQUEST"):
        monkeypatch.setattr(web, name, 1.0)


@pytest.mark.parametrize("part", ["handshake", "nothing", "line", "headers", "body"])
def test_slow_callers_do_not_hold_the_connections(stage: Stage, narrow: None, part: str) -> None:
    made = Web(stage.http, scoring(lambda *_: b""), stage.tls, "active")
    address, _, port = stage.http.rpartition(":")
    slow: list[socket.socket] = []
    stop = threading.Event()

    def drip() -> None:
        """A byte to each every tenth of a second."""
        for byte in {"handshake": b"\x16\x03\x01\x0f\xff" + bytes(200), "nothing": b""}.get(part, b"a" * 200):
            for connection in slow:
                with suppress(OSError):
                    connection.send(bytes([byte]))
            if stop.wait(0.1):
                return

    dripping = threading.Thread(target=drip)
    try:
        for _ in range(6):
            connection = socket.create_connection((address, int(port)), 10)
            if part != "handshake":
                connection = stage.context("desk").wrap_socket(connection)
                connection.sendall({"line": b"GET /", "headers": _HEAD[:-2] + b"X: ", "body": _HEAD}.get(part, b""))
            slow.append(connection)
        dripping.start()
        begun = time.monotonic()
        assert not stage.served("desk")
        wait_for(lambda: stage.served("desk"), 6)
        assert time.monotonic() - begun < 6
        for connection in slow:  # each was shut
            with suppress(ConnectionError):
                while connection.recv(4096):
                    pass
    finally:
        stop.set()
        dripping.join()
        for connection in slow:
            connection.close()
        made.close()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_addresses_of_either_family(family: int, host: str) -> None:
    try:
        with socket.socket(family) as free:
            free.bind((host, 0))
            address = f"[{host}]:{free.getsockname()[1]}" if ":" in host else f"{host}:{free.getsockname()[1]}"
    except OSError:
        pytest.skip("this machine has no IPv6")
    made = Web(address, status_page(lambda: True, lambda: ""))
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as reply:
            assert reply.status == 200
    finally:
        made.close()


def test_a_kept_connection_that_is_idle_is_shut(stage: Stage, narrow: None) -> None:
    made = Web(stage.http, scoring(lambda *_: b""), stage.tls, "active")
    kept = stage.caller()
    assert call(kept, "GET", "/openapi.json")[0] == 200
    time.sleep(0.6)
    assert call(kept, "GET", "/openapi.json")[0] == 200
    begun = time.monotonic()
    assert kept.sock.recv(1) == b""
    assert 0.8 < time.monotonic() - begun < 5
    kept.close()
    made.close()


def test_an_answer_may_take_longer_than_its_request(stage: Stage, narrow: None) -> None:
    def answer(*_: Any) -> bytes:
        time.sleep(1.5)
        return pb.ScoreReply(model="model-1").SerializeToString()

    made = Web(stage.http, scoring(answer), stage.tls, "active")
    assert post(stage)[0] == 200
    made.close()


# --- bounds ------------------------------------------------------------------------------------------


def test_http_and_grpc_share_the_workers(stage: Stage, desk: Desk) -> None:
    with stage.running(workers=1), ThreadPoolExecutor(4) as pool:
        clients = [Client(stage.listen, stage.tls, "active", "active", "Scores") for _ in range(2)]
        asked: list[Future[Any]] = [pool.submit(post, stage) for _ in range(2)]
        asked += [pool.submit(client.ask, b"", 20) for client in clients]
        assert desk.begun.acquire(timeout=10)
        assert not desk.begun.acquire(timeout=1)
        desk.let.set()
        for answer in asked:
            answer.result(20)
        assert desk.most == 1
        for client in clients:
            client.close()


def test_a_thread_that_cannot_start_gives_its_place_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 2)
    made = Web(stage.status, status_page(lambda: True, lambda: ""))
    start, tried = threading.Thread.start, list[bool]()

    def cannot(thread: threading.Thread) -> None:
        if "process_request_thread" in thread.name:
            tried.append(True)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", cannot)
    for _ in range(5):
        assert stage.page("/healthz") == (0, "")
    assert len(tried) == 5
    monkeypatch.undo()
    assert stage.page("/healthz") == (200, "alive\n")
    made.close()
