"""The active side's endpoint in HTTP/JSON with mutual TLS, and on either side a plain page of health and metrics.

``POST /v1/score`` takes and gives the fields of ScoreRequest and ScoreReply; ``GET /openapi.json`` describes them. The
status page (``/healthz``, ``/readyz``, ``/metrics``) tells nothing about applicants, and is for the machine's own
supervisors: bind it to an address that only they reach.

A connection has a thread of its own, and there are few: hence a deadline for each request as a whole, from its first
byte on, so that nobody keeps a connection by sending slowly.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from google.protobuf import json_format

from fedlearn import __version__
from fedlearn.contract import Tls
from fedlearn.errors import BadConfig
from fedlearn.keys import check_own, party_names
from fedlearn.service.common import MOST_BYTES, STATUSES, Refusal, log
from fedlearn.service.rpc import stamp
from fedlearn.service.tracing import HEADER, OFF, Tracer
from fedlearn.v1 import serve_pb2 as pb

Answer = Callable[[str, bytes], bytes]
_HANDSHAKE = 10.0  # seconds
_IDLE = 10.0  # seconds until the first byte of a request
_REQUEST = 10.0  # seconds from then until the last byte of its body
_REPLY = 10.0  # seconds for the caller to take the answer
_MOST_CONNECTIONS = 64
_MOST_DISCARDED = 1 << 20
_STOPPING = ("stopping", "the service is stopping: ask again when it is back")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.tls, self.closing = tls, False  # tls is of new connections
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._changed, self._count = threading.Condition(), 0
        try:
            super().__init__((host, int(port)), handler)
        except OSError as error:
            raise BadConfig(f"cannot listen at {address}: {error.strerror}") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be started, so none gives the place back
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a slow handshake holds up nobody else."""
        try:
            request.settimeout(_HANDSHAKE)
            tls = self.tls
            if tls is not None:
                request = tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke; what fails in a request is answered and counted there."""

    @contextmanager
    def under_way(self) -> Iterator[bool]:
        """A request is under way; whether it is to be served, since it came before the server began to close."""
        with self._changed:
            self._count += 1
            served = not self.closing
        try:
            yield served
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Serve no further request."""
        with self._changed:
            self.closing = True
        self.shutdown()
        self.server_close()

    def wait(self, seconds: float) -> None:
        """Until no request is under way, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count, max(0.0, seconds))

    def is_last(self, connection: Any) -> bool:
        """Whether a connection has to end with the answer that is given now: so that a former authority's ends, too."""
        return self.closing or getattr(connection, "context", None) is not self.tls


class _Timed(io.RawIOBase):
    """A connection's bytes until a moment; a socket's own timeout begins anew with each byte that comes."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._end = connection, 0.0

    def allow(self, seconds: float) -> None:
        """Read and write for so long from now on; then raise TimeoutError."""
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._arm()
        return int(self._connection.recv_into(buffer))

    def write(self, data: Any) -> int:
        self._arm()
        return int(self._connection.send(data))

    def _arm(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fedlearn", ""
    server: _Server
    rfile: io.BufferedReader

    def setup(self) -> None:
        self.connection, self._timed, self._served = self.request, _Timed(self.request), True
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile = io.BufferedReader(self._timed)
        self.wfile = io.BufferedWriter(self._timed)  # head and body in one write

    def handle_one_request(self) -> None:
        """Wait for the first byte; from there on it is a request, which is under way until it is answered."""
        try:
            self._timed.allow(_IDLE)
            if not self.rfile.peek(1):
                self.close_connection = True
                return
        except TimeoutError:
            self.close_connection = True
            return
        self._timed.allow(_REQUEST)
        with self.server.under_way() as self._served:
            super().handle_one_request()

    def parse_request(self) -> bool:
        """Also refuses what came on a kept connection after the server began to close."""
        if not super().parse_request():
            return False
        if not self._served:
            self.discard()
            self.tell_stopping()
            self.wfile.flush()
        return self._served

    def log_message(self, *_: Any) -> None:
        pass

    def discard(self) -> None:
        """Read the body that the request says it has, or the answer would be lost with the rest."""
        self.rfile.read(min(max(self.length(), 0), _MOST_DISCARDED))

    def length(self) -> int:
        """Bytes of the body; -1 where the request does not say so in so many digits, and nothing else."""
        size = self.headers.get("Content-Length", "")
        told = size.isascii() and size.isdecimal() and len(size) < 20 and "Transfer-Encoding" not in self.headers
        return int(size) if told else -1

    def tell(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self._timed.allow(_REPLY)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection or self.server.is_last(self.connection):
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def tell_stopping(self) -> None:
        self.tell(503, f"{_STOPPING[1]}\n".encode(), "text/plain")


class Web:
    """An HTTP server in a thread of its own."""

    def __init__(
        self, address: str, handler: type[BaseHTTPRequestHandler], tls: Tls | None = None, me: str = ""
    ) -> None:
        """Bind and serve.

        Args:
            address: host:port.
            handler: :func:`scoring` or :func:`status_page`.
            tls: this party's certificate and key, and the authority; plain HTTP without.
            me: the name in this party's certificate.

        Raises:
            BadConfig: the address cannot be bound.
            OwnMistake: as :func:`fedlearn.keys.check_own`.
        """
        self._tls, self._me = tls, me
        self._stamp = stamp(tls) if tls is not None else ()  # taken before loading: what is replaced meanwhile is seen
        self._server = _Server(address, handler, tls_context(tls, me) if tls is not None else None)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Take over the certificate, key and authority if they have changed on disk.

        New connections are under them. A connection from before ends with its next answer, which says so to the
        caller; so one of a removed authority does not last.

        Raises:
            OwnMistake, OSError: they cannot be used (yet); those from before stay.
        """
        if self._tls is None or (now := stamp(self._tls)) == self._stamp:
            return
        self._server.tls = tls_context(self._tls, self._me)
        self._stamp = now
        log("certificate-rotated")

    def stop(self) -> None:
        """Accept no more connections, and answer those that are kept with 503; what is under way goes on."""
        self._server.stop()
        self._thread.join()

    def close(self, seconds: float = 0.0) -> None:
        """Stop, and wait for requests under way, for at most so long."""
        self.stop()
        self._server.wait(seconds)


def tls_context(tls: Tls, me: str) -> ssl.SSLContext:
    """Server side of mutual TLS, of the files as they are now.

    Raises:
        OwnMistake: as :func:`fedlearn.keys.check_own`.
        OSError: a file was replaced meanwhile.
    """
    check_own(tls, me)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def scoring(
    answer: Answer, tracer: Tracer = OFF, turns: AbstractContextManager[None] | None = None
) -> type[BaseHTTPRequestHandler]:
    """The handler of the scoring endpoint.

    Args:
        answer: gives the answer to a caller's request, or raises Refusal.
        tracer: of the spans of requests.
        turns: entered for each answer; bounds how many are made at once, and raises Refusal when too many wait.
    """
    bound = nullcontext() if turns is None else turns

    class Handler(_Handler):
        def do_GET(self) -> None:
            if self.path == "/openapi.json":
                self.tell(200, json.dumps(openapi()).encode())
            else:
                self._refuse(404, "unknown-path", "there are POST /v1/score and GET /openapi.json")

        def do_POST(self) -> None:
            try:
                size = self.length()
                if not 0 <= size <= MOST_BYTES:
                    self.close_connection = True
                    self.discard()
                    raise Refusal("oversized", f"the request must say its length, of at most {MOST_BYTES} bytes")
                body = self.rfile.read(size)
                if self.path != "/v1/score":
                    self._refuse(404, "unknown-path", "there are POST /v1/score and GET /openapi.json")
                    return
                with bound, tracer.span("request", self.headers.get(HEADER, "")):
                    reply = pb.ScoreReply.FromString(answer(self._caller(), _request(body)))
                self.tell(200, json.dumps(_plain(reply)).encode())
            except Refusal as refusal:
                self._refuse(STATUSES[refusal.status][1], refusal.status, str(refusal))

        def _refuse(self, code: int, status: str, sentence: str) -> None:
            self.tell(code, json.dumps({"status": status, "message": sentence}).encode())

        def tell_stopping(self) -> None:
            self._refuse(503, *_STOPPING)

        def _caller(self) -> str:
            certificate = x509.load_der_x509_certificate(self.connection.getpeercert(binary_form=True) or b"")
            names = party_names(certificate)
            if datetime.now(UTC) > certificate.not_valid_after_utc:  # TLS looked when the connection began
                log("refused", caller=names[0][:63] if names else "", status="not-a-caller")
                raise Refusal("not-a-caller", "the certificate of this connection has expired: connect anew")
            return names[0] if len(names) == 1 else ""

    return Handler


def status_page(ready: Callable[[], bool], metrics: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    """The handler of the status page."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                self.tell(200, b"alive\n", "text/plain")
            elif self.path == "/readyz":
                self.tell(200 if ready() else 503, b"ready\n" if ready() else b"not ready\n", "text/plain")
            elif self.path == "/metrics":
                self.tell(200, metrics().encode(), "text/plain; version=0.0.4")
            else:
                self.tell(404, b"there are /healthz, /readyz and /metrics\n", "text/plain")

    return Handler


def _request(body: bytes) -> bytes:
    try:
        parsed = json_format.Parse(body, pb.ScoreRequest())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise Refusal("malformed", "the body is no JSON object with the fields of a score request") from None
    return parsed.SerializeToString(deterministic=True)


def _plain(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def openapi() -> dict[str, Any]:
    """The endpoint's description (OpenAPI 3.1), made from the messages."""
    fields = {"request_id": "8 to 64 letters, digits, _.:-; the same request again gets the same answer",
              "applicant": "identifier", "purpose": "one of the contract's", "consent": "reference",
              "consent_expires": "last day, YYYY-MM-DD", "protocol": "1"}  # fmt: skip
    request = {name: {"description": text} | _kind(pb.ScoreRequest, name) for name, text in fields.items()}
    reply = {name: _kind(pb.ScoreReply, name) for name in pb.ScoreReply.DESCRIPTOR.fields_by_name}
    error = {"type": "object", "properties": {"status": {"type": "string"}, "message": {"type": "string"}}}
    by_code: dict[int, list[str]] = {}
    for status, (_, code, meaning) in STATUSES.items():
        by_code.setdefault(code, []).append(f"{status}: {meaning}")
    by_code[503].append(": ".join(_STOPPING))
    responses: dict[str, Any] = {
        str(code): {"description": "; ".join(said), "content": _json(error)} for code, said in sorted(by_code.items())
    }
    responses["200"] = {"description": "a score", "content": _json({"type": "object", "properties": reply})}
    body = {"type": "object", "properties": request, "required": list(fields)}
    post = {"summary": "Score one applicant", "requestBody": {"required": True, "content": _json(body)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedlearn scoring", "version": __version__},
        "paths": {"/v1/score": {"post": post | {"responses": responses}}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _kind(message: Any, name: str) -> dict[str, Any]:
    field = message.DESCRIPTOR.fields_by_name[name]
    kinds = {field.TYPE_STRING: "string", field.TYPE_BOOL: "boolean", field.TYPE_UINT32: "integer"}
    if name == "reasons":
        return {"type": "array", "items": {"type": "string"}}
    return {"type": kinds.get(field.type, "number")}
