"""The active side's endpoint in HTTP/JSON with mutual TLS, and on either side a plain page of health and metrics.

``POST /v1/score`` takes and gives the fields of ScoreRequest and ScoreReply; ``GET /openapi.json`` describes them. The
status page (``/healthz``, ``/readyz``, ``/metrics``) tells nothing about applicants, and is for the machine's own
supervisors: bind it to an address that only they reach.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from google.protobuf import json_format

from fedlearn import __version__
from fedlearn.contract import Tls
from fedlearn.errors import BadConfig
from fedlearn.keys import check_own, party_names
from fedlearn.service.common import MOST_BYTES, STATUSES, Refusal
from fedlearn.service.tracing import HEADER, OFF, Tracer
from fedlearn.v1 import serve_pb2 as pb

Answer = Callable[[str, bytes], bytes]
_SECONDS = 10.0  # for a handshake, and between requests of a kept connection
_MOST_CONNECTIONS = 64
_MOST_DISCARDED = 1 << 20


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None) -> None:
        host, _, port = address.rpartition(":")
        self._tls, self._free = tls, threading.BoundedSemaphore(_MOST_CONNECTIONS)
        try:
            super().__init__((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise BadConfig(f"cannot listen at {address}: {error.strerror}") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a slow handshake holds up nobody else."""
        try:
            request.settimeout(_SECONDS)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke; what fails in a request is answered and counted there."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fedlearn", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one write

    def log_message(self, *_: Any) -> None:
        pass

    def tell(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Web:
    """An HTTP server in a thread of its own."""

    def __init__(self, address: str, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None) -> None:
        """Bind and serve. Raises BadConfig when the address cannot be bound."""
        self._server = _Server(address, handler, context)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def tls_context(tls: Tls, me: str) -> ssl.SSLContext:
    """Server side of mutual TLS; load the chain again to rotate the certificate.

    Raises:
        OwnMistake: as :func:`fedlearn.keys.check_own`.
    """
    check_own(tls, me)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def scoring(answer: Answer, tracer: Tracer = OFF) -> type[BaseHTTPRequestHandler]:
    """The handler of the scoring endpoint."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            if self.path == "/openapi.json":
                self.tell(200, json.dumps(openapi()).encode())
            else:
                self._refuse(404, "unknown-path", "there are POST /v1/score and GET /openapi.json")

        def do_POST(self) -> None:
            try:
                size = int(self.headers.get("Content-Length", "-1"))
                if not 0 <= size <= MOST_BYTES:
                    self.close_connection = True
                    self.rfile.read(max(0, min(size, _MOST_DISCARDED)))  # or the answer would be lost with the rest
                    raise Refusal("oversized", f"the request must say its length, of at most {MOST_BYTES} bytes")
                body = self.rfile.read(size)
                if self.path != "/v1/score":
                    self._refuse(404, "unknown-path", "there are POST /v1/score and GET /openapi.json")
                    return
                with tracer.span("request", self.headers.get(HEADER, "")):
                    reply = pb.ScoreReply.FromString(answer(self._caller(), _request(body)))
                self.tell(200, json.dumps(_plain(reply)).encode())
            except Refusal as refusal:
                self._refuse(STATUSES[refusal.status][1], refusal.status, str(refusal))
            except ValueError:
                self._refuse(400, "malformed", "Content-Length is not a number")

        def _refuse(self, code: int, status: str, sentence: str) -> None:
            self.tell(code, json.dumps({"status": status, "message": sentence}).encode())

        def _caller(self) -> str:
            certificate = self.connection.getpeercert(binary_form=True)
            names = party_names(x509.load_der_x509_certificate(certificate or b""))
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
