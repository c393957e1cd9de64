"""The services over gRPC with mutual TLS: a server of single calls, and the kept connection to the other party's.

A refusal becomes a gRPC status with its sentence for details and its own name in the trailing metadata
(``fedlearn-status``). ``grpc.health.v1.Health/Check`` answers as the standard has it, and server reflection tells those
who may ask for scores what can be asked, so that grpcurl needs no proto files. Certificates that are replaced on
disk are used from the next connection on, so that they are rotated without a pause.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fedlearn.contract import Tls
from fedlearn.errors import BadConfig, FedlearnError
from fedlearn.keys import check_own
from fedlearn.service.common import MOST_BYTES, STATUSES, Refusal, log
from fedlearn.service.tracing import HEADER, OFF, Tracer

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as reflected

Answer = Callable[[str, bytes], bytes]

SERVICE = "fedlearn.v1.Serving"
_HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)  # of the same messages
_REFLECTING = 10.0  # seconds after which a stream of questions is ended; there is one at a time
_WAITING = 256  # requests that may wait for a thread; more are refused at once
_STATUS = "fedlearn-status"
_SAN = "x509_subject_alternative_name"
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
    """Serves one method, health, and reflection."""

    def __init__(
        self, address: str, tls: Tls, me: str, method: str, answer: Answer, workers: int,
        callers: Collection[str] = (), tracer: Tracer = OFF,
    ) -> None:  # fmt: skip
        """Bind ``address``; :meth:`start` serves ``/fedlearn.v1.Serving/<method>``.

        ``callers`` are the names that reflection answers; ``answer`` decides by itself whom it answers.

        Raises:
            BadConfig: the address cannot be bound.
            OwnMistake: as :func:`fedlearn.keys.check_own`.
        """
        self._answer, self.serving, self._tls, self._me = answer, False, tls, me
        self._stamp, self._callers, self._tracer = stamp(tls), callers, tracer
        self._reflection = reflection.ReflectionServicer((SERVICE, _HEALTH, *_REFLECTION))
        self._reflecting = threading.BoundedSemaphore(1)
        handlers = [
            grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(handle)})
            for service, name, handle in ((SERVICE, method, self._handle), (_HEALTH, "Check", self._health))
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
        pool = ThreadPoolExecutor(workers, thread_name_prefix="serve")
        self._server = grpc.server(pool, handlers=handlers, options=options, maximum_concurrent_rpcs=workers + _WAITING)
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
        self._server.stop(seconds).wait()

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
        except (FedlearnError, OSError) as error:
            log("certificate-unusable", message=str(error))
            return None
        self._stamp = now
        log("certificate-rotated")
        return found

    def _handle(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        parent = next((str(value) for name, value in context.invocation_metadata() if name == HEADER), "")
        try:
            with self._tracer.span("request", parent):
                return self._answer(_caller(context), raw)
        except Refusal as refusal:
            _abort(context, refusal)
        raise AssertionError  # abort raises

    def _reflect(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """What grpcurl asks. A stream holds one of the threads that answer requests: hence the bounds."""
        if _caller(context) not in self._callers:
            _abort(context, Refusal("not-a-caller", "reflection answers those only who may ask for scores"))
        if not self._reflecting.acquire(timeout=1.0):  # the one before may be about to end
            _abort(context, Refusal("too-many", "reflection answers one at a time"))
        timer = threading.Timer(_REFLECTING, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield from self._reflection.ServerReflectionInfo(requests, context)
        finally:
            timer.cancel()
            self._reflecting.release()

    def _health(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """HealthCheckResponse: field 1, SERVING (1) or NOT_SERVING (2)."""
        return b"\x08\x01" if self.serving else b"\x08\x02"


def _caller(context: grpc.ServicerContext) -> str:
    """The name in the caller's certificate; empty where it has none, or several."""
    verified: Any = context.auth_context()
    names = [name.decode(errors="replace") for name in verified.get(_SAN, [])]
    return names[0] if len(names) == 1 else ""


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> None:
    context.set_trailing_metadata(((_STATUS, refusal.status),))
    context.abort(getattr(grpc.StatusCode, STATUSES[refusal.status][0]), str(refusal))


class Client:
    """A kept connection to a :class:`Server`; it comes back by itself."""

    def __init__(self, address: str, tls: Tls, me: str, peer: str, method: str, tracer: Tracer = OFF) -> None:
        """Connects at the first request.

        Args:
            address: host:port.
            tls: this party's certificate and key, and the authority.
            me: the name in this party's certificate.
            peer: the name that the server's certificate must carry.
            method: of ``fedlearn.v1.Serving``.
            tracer: of the spans of questions.

        Raises:
            OwnMistake: as :func:`fedlearn.keys.check_own`.
        """
        self._address, self._tls, self._me, self._peer, self._method = address, tls, me, peer, method
        self._channel: Any = None
        self._tracer = tracer
        self._stamp: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self.renew()

    def renew(self) -> None:
        """Connect anew if the certificates on disk have changed; calls under way keep the connection they have."""
        now = stamp(self._tls)
        if now == self._stamp:
            return
        check_own(self._tls, self._me)
        tls = self._tls
        credentials = grpc.ssl_channel_credentials(
            tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()
        )
        options = [*_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", self._peer)]
        fresh: Any = grpc.secure_channel(self._address, credentials, options=options)
        with self._lock:
            old, self._channel, self._stamp = self._channel, fresh, now
            self._call = fresh.unary_unary(f"/{SERVICE}/{self._method}")
        if old is not None:
            closing = threading.Timer(10.0, old.close)
            closing.daemon = True
            closing.start()

    def ask(self, raw: bytes, seconds: float) -> bytes:
        """The answer to one request. Raises Refusal: with the server's status, or ``peer-unavailable``."""
        with self._tracer.span("peer"):
            try:
                return self._call(raw, timeout=seconds, metadata=self._tracer.headers())  # type: ignore[no-any-return]
            except grpc.RpcError as error:
                raise _refusal(error, seconds) from None

    def begin(self, raw: bytes, seconds: float, done: Callable[[bool], None]) -> None:
        """Send a request and go on; ``done`` is told, in another thread, whether it was answered."""
        call: Any = self._call.future(raw, timeout=seconds)
        call.add_done_callback(lambda ended: done(ended.code() == grpc.StatusCode.OK))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def stamp(tls: Tls) -> tuple[int, ...]:
    """Changes when one of the files is replaced."""
    return tuple(path.stat().st_mtime_ns for path in (tls.certificate, tls.key, tls.authority) if path.exists())


def _refusal(error: Any, seconds: float) -> Refusal:
    """The status that the server gave, never its text; 2000 ms and no answer is ``peer-unavailable``."""
    code = error.code()
    given = {str(name): str(value) for name, value in error.trailing_metadata() or ()}.get(_STATUS, "")
    if given:
        status = given if given in STATUSES else "peer-misbehaved"
        return Refusal(status, error.details() if status != "peer-misbehaved" else "the server gave an unknown status")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refusal("too-many", "the server has too many requests under way")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Refusal("old-client", "the server does not offer this method")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Refusal("peer-unavailable", f"there was no answer within {1000 * seconds:.0f} ms")
    return Refusal("peer-unavailable", "the server cannot be reached")
