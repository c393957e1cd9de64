"""The services over gRPC with mutual TLS: a server of streams and single calls, and kept streams to the other party's.

A call of its own for each request costs half as much again as a message on a stream that is open, so both sides and
callers with many requests use streams (docs/decisions/0036-streams.md). A stream is answered in its order, one request
at a time; several are answered at once on several streams.

On a stream a refusal is an ``Answered`` with its name and sentence; of a call it becomes a gRPC status with the
sentence for details and the name in the trailing metadata (``fedlearn-status``). ``grpc.health.v1.Health/Check``
answers as the standard has it, and server reflection tells those who may ask for scores what can be asked, so that
grpcurl needs no proto files. Certificates that are replaced on disk are used from the next connection on, so that they
are rotated without a pause. TLS looks at a caller's certificate when a connection begins, and connections last for
days; so each stream and call is held against the authority as it is now, and streams end when their certificate does.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from google.protobuf.message import DecodeError

from fedlearn.contract import Tls
from fedlearn.errors import BadConfig, FedlearnError
from fedlearn.keys import authorities, check_own, valid_until
from fedlearn.service.common import MOST_BYTES, STATUSES, Refusal, log
from fedlearn.service.tracing import HEADER, OFF, Tracer
from fedlearn.v1 import serve_pb2 as pb

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as reflected

Answer = Callable[[str, bytes], bytes]

SERVICE = "fedlearn.v1.Serving"
#: By the role of who serves: the method of streams, and that of single calls or nothing.
METHODS = {"active": ("Scores", "Score"), "passive": ("Parts", "")}
_HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)  # of the same messages
_REFLECTING = 10.0  # seconds after which a stream of questions is ended; there is one at a time
_LINGER = 65.0  # seconds for requests under way on a connection that another has replaced: more than any deadline
_CHECKS, _CHECKING = 8, 5.0  # questions about health at once, and seconds for each
_WAITING = 256  # requests that may wait for their turn; more are refused at once
_STREAMS = 256  # a client keeps at most so many; a server takes twice as many, since those of an old certificate linger
_STATUS = "fedlearn-status"
_AWAY = "the server cannot be reached"
_SAN, _CHAIN = "x509_subject_alternative_name", ("x509_pem_cert", "x509_pem_cert_chain")
_ANEW = 5.0  # seconds at least between two new connections to a server that refuses the certificate of the last
_KNOWN = 1000  # certificates that are remembered as valid
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", 16 * MOST_BYTES),
    ("grpc.max_receive_message_length", 16 * MOST_BYTES),  # larger ones are cut off before they are read
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_500),
]
_CLIENT_OPTIONS = [
    *_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class Server:
    """Serves one kind of request, health, and reflection."""

    def __init__(
        self, address: str, tls: Tls, me: str, stream: str, answer: Answer, workers: int, callers: Collection[str],
        tracer: Tracer = OFF, *, call: str = "", turned_away: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Bind ``address``; :meth:`start` serves ``/fedlearn.v1.Serving/<stream>``, and ``<call>`` if there is one.

        Args:
            address: host:port.
            tls: this party's certificate and key, and the authority.
            me: the name in this party's certificate.
            stream: method whose requests come on streams.
            answer: gives the answer to a caller's request, or raises Refusal.
            workers: how many requests are answered at once; others wait.
            callers: the names that may ask anything but for health.
            tracer: of the spans of requests.
            call: method of single calls with the same requests.
            turned_away: called for each request that is refused because too many wait.

        Raises:
            BadConfig: the address cannot be bound.
            OwnMistake: as :func:`fedlearn.keys.check_own`.
        """
        self._answer, self.serving, self._tls, self._me = answer, False, tls, me
        self._callers, self._tracer = callers, tracer
        self._stamp = self._seen = stamp(tls)  # as gRPC has the files for new connections, and as they are trusted
        self.turns, self._streams, self._trust = _Turns(workers, turned_away), _Streams(), _Trust(tls.authority)
        self._reflection = reflection.ReflectionServicer((SERVICE, _HEALTH, *_REFLECTION))
        self._reflecting, self._checking = threading.BoundedSemaphore(1), threading.BoundedSemaphore(_CHECKS)
        methods = {stream: grpc.stream_stream_rpc_method_handler(self._converse)}
        if call:
            methods[call] = grpc.stream_unary_rpc_method_handler(self._handle)
        health = {"Check": grpc.stream_unary_rpc_method_handler(self._health)}
        handlers = [
            grpc.method_handlers_generic_handler(service, served)
            for service, served in ((SERVICE, methods), (_HEALTH, health))
        ]
        reflect = grpc.stream_stream_rpc_method_handler(
            self._reflect,
            reflected.ServerReflectionRequest.FromString,
            reflected.ServerReflectionResponse.SerializeToString,
        )
        handlers += [
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": reflect}) for service in _REFLECTION
        ]
        options = [*_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.server_handshake_timeout_ms", 10_000)]
        threads = workers + 2 * _STREAMS * len(callers)  # an open stream holds one, which mostly sleeps
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="serve")
        self._server = grpc.server(
            self._pool, handlers=handlers, options=options, maximum_concurrent_rpcs=threads + _WAITING
        )
        credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._fetch, require_client_authentication=True
        )
        try:
            bound = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise BadConfig(f"cannot listen at {address}: the address is in use, or is not one of this machine's")

    def start(self) -> None:
        """Accept requests."""
        self._server.start()
        self.serving = True

    def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait for those under way."""
        self.serving = False
        stopped = self._server.stop(seconds)
        self._streams.close()
        stopped.wait()
        self._pool.shutdown(wait=False)  # gRPC leaves it to its owner

    def renew(self) -> None:
        """Hold open streams against the authority's file as it is now, and the clock; end those that may not go on.

        Raises:
            OwnMistake: as :func:`fedlearn.keys.check_own`; what was trusted before is trusted until it is mended.
        """
        now = stamp(self._tls)
        try:
            if now != self._seen:
                check_own(self._tls, self._me)
                self._trust, self._seen = _Trust(self._tls.authority), now
        finally:
            self._streams.end(lambda chain: not self._trust.admits(chain))

    def _configuration(self) -> Any:
        check_own(self._tls, self._me)
        pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], self._tls.authority.read_bytes())

    def _fetch(self) -> Any:
        """New certificates when the files have changed; what cannot be used yet is left for the next connection."""
        now = stamp(self._tls)
        if now == self._stamp:
            return None
        try:
            found = self._configuration()
            self._trust = _Trust(self._tls.authority)  # whom TLS lets in from now on may also ask
        except (FedlearnError, OSError) as error:
            log("certificate-unusable", message=str(error))
            return None
        self._stamp = now
        log("certificate-rotated")
        return found

    def _handle(self, raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """A single call. For gRPC it is a stream of one message: it would wait for a single one before it asked us."""
        self._admitted(context)
        raw = _only(raws, context)
        caller = self._admitted(context)  # the message may have come long after the call
        parent = next((str(value) for name, value in context.invocation_metadata() if name == HEADER), "")
        try:
            with self.turns, self._tracer.span("request", parent):
                return self._answer(caller, raw)
        except Refusal as refusal:
            _abort(context, refusal)
        raise AssertionError  # abort raises

    def _admitted(self, context: grpc.ServicerContext) -> str:
        """The caller's name, if it may ask."""
        caller = _caller(context)
        if caller not in self._callers:
            log("refused", caller=caller[:63], status="not-a-caller")
            _abort(context, Refusal("not-a-caller", "nobody of this name may ask"))
        if not self._trust.admits(_chain(context)):
            log("refused", caller=caller[:63], status="not-a-caller")
            said = "the certificate of this connection has expired, or its authority is not trusted any more"
            _abort(context, Refusal("not-a-caller", f"{said}: connect anew"))
        return caller

    def _converse(self, raws: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """The requests of one stream. It holds a thread for as long as it is open: hence the bound."""
        caller = self._admitted(context)
        try:
            self._streams.open(context, caller, _chain(context))
        except Refusal as refusal:
            log("refused", caller=caller[:63], status=refusal.status)
            _abort(context, refusal)
        try:
            for raw in raws:
                if not self._streams.set_at_work(context, True):
                    return
                yield self._answered(caller, raw)
                if not self._streams.set_at_work(context, False):
                    return
        finally:
            self._streams.forget(context)

    def _answered(self, caller: str, raw: bytes) -> bytes:
        try:
            asked = pb.Asked.FromString(raw)
        except DecodeError:
            return pb.Answered(status="malformed", sentence="the message is no Asked").SerializeToString()
        answered = pb.Answered(number=asked.number)
        try:
            with self.turns, self._tracer.span("request", asked.traceparent):
                answered.reply = self._answer(caller, asked.request)
        except Refusal as refusal:
            answered.status, answered.sentence = refusal.status, str(refusal)
        return answered.SerializeToString()

    def _reflect(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """What grpcurl asks. A stream holds one of the threads that answer requests: hence the bounds."""
        self._admitted(context)
        if not self._reflecting.acquire(timeout=1.0):  # the one before may be about to end
            _abort(context, Refusal("too-many", "reflection answers one at a time"))
        try:
            with _at_most(_REFLECTING, context):
                yield from self._reflection.ServerReflectionInfo(requests, context)
        finally:
            self._reflecting.release()

    def _health(self, raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """HealthCheckResponse: field 1, SERVING (1) or NOT_SERVING (2). Any certificate may ask, so few at once."""
        if not self._checking.acquire(blocking=False):
            _abort(context, Refusal("too-many", f"{_CHECKS} questions about health are open already"))
        try:
            with _at_most(_CHECKING, context):
                _only(raws, context)
        finally:
            self._checking.release()
        return b"\x08\x01" if self.serving else b"\x08\x02"


def _caller(context: grpc.ServicerContext) -> str:
    """The name in the caller's certificate; empty where it has none, or several."""
    verified: Any = context.auth_context()
    names = [name.decode(errors="replace") for name in verified.get(_SAN, [])]
    return names[0] if len(names) == 1 else ""


def _chain(context: grpc.ServicerContext) -> bytes:
    """The caller's certificate and those above it, PEM, as TLS accepted them when the connection began."""
    verified: Any = context.auth_context()
    return b"\n".join(part for name in _CHAIN for part in verified.get(name, []))


def _only(raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """The one message of a call."""
    raw = next(raws, None)
    if raw is None:
        _abort(context, Refusal("malformed", "the call has no message"))
    return raw or b""


@contextmanager
def _at_most(seconds: float, context: grpc.ServicerContext) -> Iterator[None]:
    """Ends the call if what is done here takes longer."""
    timer = threading.Timer(seconds, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> None:
    context.set_trailing_metadata(((_STATUS, refusal.status),))
    context.abort(getattr(grpc.StatusCode, STATUSES[refusal.status][0]), str(refusal))


class _Turns:
    """So many requests at work at once; entered by each, and left. Raises Refusal when too many wait already."""

    def __init__(self, workers: int, turned_away: Callable[[], object]) -> None:
        self._free, self._lock, self._waiting = threading.Semaphore(workers), threading.Lock(), 0
        self._turned_away = turned_away

    def __enter__(self) -> None:
        if self._free.acquire(blocking=False):
            return
        with self._lock:
            if self._waiting >= _WAITING:
                self._turned_away()
                raise Refusal("too-many", f"{_WAITING} requests wait already")
            self._waiting += 1
        self._free.acquire()
        with self._lock:
            self._waiting -= 1

    def __exit__(self, *_: object) -> None:
        self._free.release()


class _Trust:
    """Which certificates may ask, by the authority's file as it was when this was made, and by the clock."""

    def __init__(self, authority: Path) -> None:
        self._authorities, self._until = authorities(authority), dict[bytes, float]()

    def admits(self, chain: bytes) -> bool:
        """Whether a certificate (PEM, with those above it) is still valid and leads to an authority that is trusted."""
        until = self._until.get(chain)
        if until is None:
            found = valid_until(chain, self._authorities)
            until = 0.0 if found is None else found.timestamp()
            if len(self._until) >= _KNOWN:
                self._until.clear()
            self._until[chain] = until
        return time.time() < until


@dataclass
class _Open:
    """A stream: whose it is, whether a request of it is at work, and whether it is to end after that."""

    caller: str
    chain: bytes
    at_work: bool = False
    ended: bool = False


class _Streams:
    """The open streams of a server."""

    def __init__(self) -> None:
        self._lock, self._open, self._closed = threading.Lock(), dict[grpc.ServicerContext, _Open](), False

    def open(self, context: grpc.ServicerContext, caller: str, chain: bytes) -> None:
        """Enter a stream. Raises Refusal when the caller has too many."""
        with self._lock:
            if sum(stream.caller == caller for stream in self._open.values()) >= 2 * _STREAMS:
                raise Refusal("too-many", f"more than {2 * _STREAMS} streams of one caller")
            self._open[context] = _Open(caller, chain, ended=self._closed)

    def set_at_work(self, context: grpc.ServicerContext, at_work: bool) -> bool:
        """Enter whether a request of a stream is at work; returns whether the stream is to go on."""
        with self._lock:
            stream = self._open[context]
            stream.at_work = at_work
            return not stream.ended

    def forget(self, context: grpc.ServicerContext) -> None:
        """A stream has ended."""
        with self._lock:
            del self._open[context]

    def close(self) -> None:
        """End every stream, and those that come, as :meth:`end` does."""
        with self._lock:
            self._closed = True
        self.end(lambda _: True)

    def end(self, which: Callable[[bytes], bool]) -> None:
        """End the streams of some certificates: those at work after their answer, the others now."""
        with self._lock:
            found = [(context, stream) for context, stream in self._open.items() if which(stream.chain)]
            for _, stream in found:
                stream.ended = True
            idle = [context for context, stream in found if not stream.at_work]
        for context in idle:
            context.cancel()


class Stream:
    """The asking end of a stream. Answers come in the order of requests."""

    def __init__(self, channel: Any, method: str) -> None:
        """Open it on a gRPC channel."""
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self.channel, self.late = channel, False
        self._sent = self._taken = 0
        self._call: Any = channel.stream_stream(f"/{SERVICE}/{method}")(iter(self._requests.get, None))

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return bool(self._call.is_active())

    @property
    def idle(self) -> bool:
        """Whether it has not ended, and every request has its answer."""
        return self._sent == self._taken and self.open

    def put(self, raw: bytes, traceparent: str = "") -> None:
        """Send a request."""
        self._sent += 1
        asked = pb.Asked(request=raw, number=self._sent, traceparent=traceparent)
        self._requests.put(asked.SerializeToString())

    def take(self) -> bytes:
        """The next answer. Raises Refusal: the server's, or because the stream broke or is broken off."""
        try:
            answered = pb.Answered.FromString(next(self._call))
        except StopIteration:
            raise Refusal("peer-unavailable", _AWAY) from None
        except grpc.RpcError as error:
            raise _refusal(error) from None
        except DecodeError:
            self.end()
            raise Refusal("peer-misbehaved", "the server sent what is no Answered") from None
        if answered.number != self._taken + 1:  # or one applicant's answer might be taken for another's
            self.end()
            raise Refusal("peer-misbehaved", "the server's answers are not in the order of the requests")
        self._taken += 1
        if answered.status:
            raise _named(answered.status, answered.sentence)
        return answered.reply

    def end(self) -> None:
        """End it now; whoever waits for an answer gets an error."""
        self._requests.put(None)  # ends gRPC's thread that waits for requests
        self._call.cancel()


class _Watch:
    """Ends streams whose answer is late. gRPC has a deadline for a whole stream only."""

    def __init__(self) -> None:
        self._changed, self._due = threading.Condition(), dict[Stream, float]()
        self._look, self._last, self._closed = math.inf, 0.0, False
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def begin(self, stream: Stream, end: float) -> None:
        """An answer is due by this moment of the monotonic clock."""
        with self._changed:
            self._due[stream], self._last = end, end
            if end < self._look:
                self._changed.notify()

    def end(self, stream: Stream) -> None:
        """The answer is there, or is not to be had."""
        with self._changed:
            self._due.pop(stream, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for stream in [stream for stream, end in self._due.items() if end <= now]:
                    del self._due[stream]
                    stream.late = True
                    stream.end()
                # Until the last request's moment, even if it is answered: then quick answers at a steady rate wake this
                # thread once in so long, not with each request.
                later = self._last if self._last > now else math.inf
                self._look = min(self._due.values(), default=later)
                self._changed.wait(None if self._look == math.inf else self._look - now)


class Client:
    """Kept streams to a :class:`Server`, one for each request under way; they come back by themselves."""

    def __init__(self, address: str, tls: Tls, me: str, peer: str, method: str, tracer: Tracer = OFF) -> None:
        """Connects at the first request.

        Args:
            address: host:port.
            tls: this party's certificate and key, and the authority.
            me: the name in this party's certificate.
            peer: the name that the server's certificate must carry.
            method: of ``fedlearn.v1.Serving``, whose requests come on streams.
            tracer: of the spans of questions.

        Raises:
            OwnMistake: as :func:`fedlearn.keys.check_own`.
        """
        self._address, self._tls, self._me, self._peer, self._method = address, tls, me, peer, method
        self._channel: Any = None
        self._tracer = tracer
        self._stamp: tuple[int, ...] = ()
        self._renewing, self._renewed = threading.Lock(), 0.0
        self._idle: list[Stream] = []  # the last that was used is the first to be used again
        self._turns = threading.Semaphore(_STREAMS)
        self.renew()
        self._watch = _Watch()

    def renew(self) -> None:
        """Connect anew if the certificates on disk have changed; requests under way keep the connection they have.

        Raises:
            OwnMistake: as :func:`fedlearn.keys.check_own`; the connection stays.
        """
        with self._renewing:
            now = stamp(self._tls)
            if now == self._stamp:
                return
            check_own(self._tls, self._me)
            tls = self._tls
            credentials = grpc.ssl_channel_credentials(
                tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()
            )
            options = [*_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", self._peer)]
            old, self._channel = self._channel, grpc.secure_channel(self._address, credentials, options=options)
            self._stamp, self._renewed = now, time.monotonic()
            if old is not None:
                closing = threading.Timer(_LINGER, old.close)
                closing.daemon = True
                closing.start()

    def _connect_anew(self) -> None:
        """The server takes no requests under the certificate that the connection began with: connect anew."""
        with self._renewing:
            if time.monotonic() - self._renewed < _ANEW:
                return
            self._stamp, self._renewed = (), time.monotonic()
        log("refused-by-server", server=self._peer)
        with suppress(FedlearnError, OSError):  # which the next look says
            self.renew()

    def ask(self, raw: bytes, seconds: float) -> bytes:
        """The answer to one request. Raises Refusal: with the server's status, or ``peer-unavailable``."""
        end, late = time.monotonic() + seconds, f"there was no answer within {1000 * seconds:.0f} ms"
        with self._tracer.span("peer"), self._borrowed(end, late) as stream:
            self._watch.begin(stream, end)
            try:
                stream.put(raw, self._tracer.traceparent())
                return stream.take()
            except Refusal as refusal:
                if stream.late:
                    raise Refusal("peer-unavailable", late) from None
                if refusal.status == "not-a-caller":
                    self._connect_anew()
                raise
            finally:
                self._watch.end(stream)

    def call(self, method: str, raw: bytes, seconds: float, done: Callable[[bool], None]) -> None:
        """Send a request as a single call, and go on; ``done`` is told, in another thread, whether it was answered."""
        call: Any = self._channel.unary_unary(f"/{SERVICE}/{method}").future(raw, timeout=seconds)
        call.add_done_callback(lambda ended: done(ended.code() == grpc.StatusCode.OK))

    def stream(self) -> Stream:
        """A stream of its own, to end by whoever asked for it."""
        return Stream(self._channel, self._method)

    def close(self) -> None:
        """Close the connection."""
        self._watch.close()
        for stream in self._idle:
            stream.end()
        self._channel.close()

    @contextmanager
    def _borrowed(self, end: float, late: str) -> Iterator[Stream]:
        if not self._turns.acquire(timeout=max(0.0, end - time.monotonic())):
            raise Refusal("peer-unavailable", late)
        try:
            stream = self._free()
            try:
                yield stream
            finally:
                if stream.idle:
                    self._idle.append(stream)
                else:
                    stream.end()
        finally:
            self._turns.release()

    def _free(self) -> Stream:
        while self._idle:
            stream = self._idle.pop()
            if stream.open and stream.channel is self._channel:
                return stream
            stream.end()
        return self.stream()


def stamp(tls: Tls) -> tuple[int, ...]:
    """Changes when one of the files is replaced."""
    return tuple(path.stat().st_mtime_ns for path in (tls.certificate, tls.key, tls.authority) if path.exists())


def _refusal(error: Any) -> Refusal:
    """The status that the server gave, never gRPC's text."""
    given = {str(name): str(value) for name, value in error.trailing_metadata() or ()}.get(_STATUS, "")
    if given:
        return _named(given, error.details())
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refusal("too-many", "the server has too many requests under way")
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return Refusal("old-client", "the server does not offer this method")
    return Refusal("peer-unavailable", _AWAY)


def _named(status: str, sentence: str) -> Refusal:
    if status in STATUSES:
        return Refusal(status, sentence)
    return Refusal("peer-misbehaved", "the server gave an unknown status")
