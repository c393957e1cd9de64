"""Spans of both sides, as exported: they join up where agreed and hold nothing personal. And reflection."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fedlearn import keys
from fedlearn.bench import serve as bench
from fedlearn.bench.pair import free_port
from fedlearn.contract import Service, Tls, Traces, load_party
from fedlearn.service import rpc
from fedlearn.service.answering import Answering
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import Metrics, Models, Refusal
from fedlearn.service.deciding import Deciding
from fedlearn.service.registry import open_registry
from fedlearn.service.rpc import Client, Server
from fedlearn.service.scorer import active_scorer, passive_scorer
from fedlearn.service.store import open_store
from fedlearn.service.tracing import SPANS, TracedStore, Tracer
from fedlearn.v1 import serve_pb2 as pb

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tracing")
    files = bench._prepare(folder, bench.Setting(trees=3, depth=2))
    keys.issue(folder / "authority", folder / "other", "other")
    return files


@dataclass
class Side:
    """A service in this process, and the spans it exported."""

    party: str
    tls: Tls
    service: Service
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    client: Client | None = None

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@contextmanager
def side(prepared: dict[str, Path], party: str, to_peer: bool) -> Iterator[Side]:
    own = load_party(prepared[party])
    assert own.service is not None
    registry, contract = open_registry(own)
    running = Side(party, own.tls, own.service)
    traces = Traces(url="http://127.0.0.1:1/v1/traces", to_peer=to_peer)
    tracer = Tracer(traces, party, running.exporter)
    features = dict(contract.side(party).features)
    store = TracedStore(open_store(own.service.store, contract.align.key, features), tracer)
    scorer = active_scorer if party == "active" else passive_scorer
    models = Models(registry, contract, party, lambda share: scorer(share, list(features), contract))
    models.refresh()
    with ExitStack() as stack:
        audit = AuditLog(prepared[party].parent / "traced.jsonl", party, own.tls.key)
        stack.callback(audit.close)
        if party == "active":
            peer = Client(str(own.service.peer), own.tls, party, "passive", "Parts", tracer)
            stack.callback(peer.close)
            answer: Any = Deciding(contract, own.service, models, store, audit, peer, Metrics()).answer
        else:
            answer = Answering(contract, party, own.service, models, store, audit).answer
        stream, call = rpc.METHODS[party]
        server = Server(own.service.listen, own.tls, party, stream, answer, 2, ("active",), tracer, call=call)
        stack.callback(lambda: server.drain(1))
        stack.callback(tracer.close)
        server.start()
        yield running


@contextmanager
def both(prepared: dict[str, Path], to_peer: bool) -> Iterator[tuple[Side, Side, Client]]:
    with side(prepared, "passive", to_peer) as passive, side(prepared, "active", to_peer) as active:
        client = Client(active.service.listen, active.tls, "active", "active", "Scores")
        try:
            yield active, passive, client
        finally:
            client.close()


def asked(number: int, **fields: Any) -> bytes:
    usual = {"protocol": 1, "request_id": f"secret-id-{number}", "applicant": f"{number:09d}", "purpose": "bench",
             "consent": f"secret-consent-{number}", "consent_expires": "2999-12-31"}  # fmt: skip
    return pb.ScoreRequest(**(usual | fields)).SerializeToString()


@pytest.mark.parametrize("to_peer", [False, True])
def test_spans_of_both_sides_hold_nothing_personal(prepared: dict[str, Path], to_peer: bool) -> None:
    with both(prepared, to_peer) as (active, passive, client):
        reply = pb.ScoreReply.FromString(client.ask(asked(1357), 10))
        with pytest.raises(Refusal, match="applicant"):
            client.ask(asked(999_999_999), 10)
        with pytest.raises(Refusal):
            client.ask(asked(1358, consent_expires="2020-01-01"), 10)
        deadline = time.monotonic() + 10
        while len(passive.spans) < 2 or len(active.spans) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [span.name for span in active.spans] == ["store", "peer", "request", "store", "request", "request"]
    assert [span.name for span in passive.spans] == ["store", "request"]
    first, theirs = active.spans[2], passive.spans[1]
    inner = active.spans[:2]
    assert first.context is not None
    assert all(span.parent and span.parent.span_id == first.context.span_id for span in inner)
    assert theirs.context is not None
    assert (theirs.context.trace_id == first.context.trace_id) == to_peer
    statuses = [(span.attributes or {}).get("fedlearn.status") for span in active.spans if span.name == "request"]
    assert statuses == [None, "unknown-applicant", "consent-expired"]
    for span in (*active.spans, *passive.spans):
        assert span.name in SPANS
        assert set(span.attributes or {}) <= {"fedlearn.status"}
        assert set(span.resource.attributes) == {"service.name", "service.version"}
        assert not span.events
        assert not span.links
        assert not span.status.description
        written = span.to_json()
        for word in ("secret", f"{1357:09d}", "999999999", "2999-12-31", "bench", f"{reply.margin:.6f}"):
            assert word not in written


def test_a_caller_may_say_where_its_trace_stands(prepared: dict[str, Path]) -> None:
    with both(prepared, False) as (active, passive, _):
        with channel(active, "active") as open_channel:
            call = open_channel.unary_unary("/fedlearn.v1.Serving/Score")
            call(asked(1359), timeout=10, metadata=(("traceparent", PARENT), ("baggage", "applicant=1359")))
            call(asked(1360), timeout=10, metadata=(("traceparent", "x" * 1000),))
        traces = [f"{s.context.trace_id:032x}" for s in active.spans if s.name == "request" and s.context is not None]
        assert traces[0] == PARENT.split("-")[1] != traces[1]
        assert all(s.context is not None and f"{s.context.trace_id:032x}" != traces[0] for s in passive.spans)


def test_spans_reach_a_collector_and_nobody_waits_for_one_that_is_away() -> None:
    got = threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            if self.path == "/v1/traces":
                got.set()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        tracer = Tracer(Traces(url=f"http://127.0.0.1:{server.server_port}/v1/traces"), "bank")
        with tracer.span("request"):
            pass
        tracer.close()
        assert got.is_set()
        server.shutdown()
    away = Tracer(Traces(url=f"http://127.0.0.1:{free_port()}/v1/traces"), "bank")
    for _ in range(1000):
        with away.span("request"):
            pass
    away.close()


@contextmanager
def channel(to: Side, name: str) -> Iterator[Any]:
    folder = to.tls.key.parent.parent / name
    files = [(folder / file).read_bytes() for file in ("authority.pem", f"{name}.key", f"{name}.pem")]
    options = [("grpc.ssl_target_name_override", to.party)]
    with grpc.secure_channel(to.service.listen, grpc.ssl_channel_credentials(*files), options) as made:
        yield made


def test_reflection_is_for_callers(prepared: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_REFLECTING", 3.0)
    with side(prepared, "active", False) as active:
        with channel(active, "active") as open_channel:
            base = ProtoReflectionDescriptorDatabase(open_channel)
            assert set(base.get_services()) >= {"fedlearn.v1.Serving", "grpc.health.v1.Health"}
            found = base.FindFileContainingSymbol("fedlearn.v1.Serving")
            assert {method.name for method in found.service[0].method} == {"Score", "Scores", "Parts"}
            assert {message.name for message in found.message_type} >= {"ScoreRequest", "ScoreReply"}
            raw = open_channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
            held = raw(iter(lambda: time.sleep(0.05) or b"\x3a\x00", None))  # list_services for ever
            next(held)
            with pytest.raises(grpc.RpcError) as refused:
                list(raw(iter([b"\x3a\x00"])))
            assert dict(refused.value.trailing_metadata())["fedlearn-status"] == "too-many"
            with pytest.raises(grpc.RpcError):  # it is ended
                list(held)
        with channel(active, "other") as open_channel, pytest.raises(grpc.RpcError) as refused:
            ProtoReflectionDescriptorDatabase(open_channel).get_services()
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
