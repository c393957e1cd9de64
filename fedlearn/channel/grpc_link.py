"""Frames over one gRPC stream with mutual TLS. The only module that imports grpc.

One bidirectional stream, ``/fedlearn.v1.Party/Converse``, carries frames as raw bytes. Either party may be the
one that listens; after the stream is open both ends are alike. There is no way to switch TLS off.

Who is who: both ends demand a certificate from the common authority, and that its DNS name is the peer's name in
the contract. gRPC itself would only say that a handshake failed, so :func:`dial` first makes one TLS connection
with Python's ``ssl``, whose verdict is precise, and then the real one to the same address.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedlearn.channel.link import LinkClosed, Pipe
from fedlearn.contract import Tls
from fedlearn.errors import BadCertificate, BadConfig, PeerAbsent, PeerSilent, PeerUntrusted, VersionMismatch
from fedlearn.keys import authorities, check_own, party_names, valid_until

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our own errors say it better; must be set before the import
import grpc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SERVICE, _METHOD = "fedlearn.v1.Party", "Converse"
_ADMITTED = ("fedlearn-admitted", "1")  # initial metadata: the listener took this stream for the session
_SAN, _PEM = "x509_subject_alternative_name", "x509_pem_cert"  # of the verified certificate, in gRPC's auth context
_GONE = "the other end is gone"
_DEPTH = 4  # frames put and not yet taken by gRPC's writer
_CLOSE_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10.0
_PATIENCE = 0.2  # seconds between two attempts to dial

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]
_SERVER_OPTIONS = [
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", int(1000 * _HANDSHAKE_SECONDS)),
]
_CLIENT_OPTIONS = [
    *_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]


def _keep_buffers() -> None:
    """Have glibc keep freed megabytes for the next frame.

    Frames of about a megabyte come and go in gRPC and here. By default each is mapped and unmapped, and the kernel's
    clearing of fresh pages costs as much as a copy does. Other C libraries have no such switch and are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 64 << 20)
    mallopt(_M_TRIM_THRESHOLD, 128 << 20)


class GrpcLink:
    """One end of an open stream; made by :func:`listen` or :func:`dial`. See :class:`fedlearn.channel.link.Link`."""

    def __init__(self, incoming: Iterator[bytes], outgoing: Pipe, hang_up: Callable[[float], None]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._hang_up = hang_up
        self._closing = threading.Lock()
        self._closed = False
        # gRPC's own clean-up may wait for ever on a lock of one of its threads once the interpreter is ending.
        atexit.register(self._end, 0.0)

    def put(self, frame: bytes, timeout: float) -> bool:
        """See :meth:`fedlearn.channel.link.Link.put`."""
        return self._outgoing.put(frame, timeout)

    def get(self) -> bytes:
        """See :meth:`fedlearn.channel.link.Link.get`."""
        try:
            return next(self._incoming)
        except StopIteration:
            why = "the other end closed the connection"
        except grpc.RpcError as error:
            why = _reason(error)
        # Nobody is there to read any more. At the listening end this also ends the stream, which tells the
        # other end's close() that all its frames have arrived.
        self._outgoing.close(why)
        raise LinkClosed("the connection was closed" if self._closed else why)

    def close(self) -> None:
        """See :meth:`fedlearn.channel.link.Link.close`. Leaves no thread and no port behind."""
        self._end(_CLOSE_SECONDS)

    def _end(self, seconds: float) -> None:
        """Close, giving what was put so many seconds to arrive."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._outgoing.close("the connection was closed")
                self._hang_up(seconds)
        atexit.unregister(self._end)


# --- listening -------------------------------------------------------------------------------------


def listen(address: str, tls: Tls, me: str, peer: str, seconds: float) -> GrpcLink:
    """Wait at an address until the peer has opened its stream.

    Args:
        address: host:port to bind.
        tls: this party's certificate and key, and the authority.
        me: this party's name, which its certificate must carry.
        peer: the only party that is let in; every other is refused while the wait goes on.
        seconds: how long to wait.

    Raises:
        BadCertificate, FileMissing: this party's own files, see :func:`fedlearn.keys.check_own`.
        BadConfig: the address cannot be bound.
        PeerAbsent: nobody came in time.
        PeerUntrusted: somebody came, but under another name.
    """
    check_own(tls, me)
    _keep_buffers()
    door = _Door(peer, authorities(tls.authority))
    method = grpc.stream_stream_rpc_method_handler(door.converse)  # no serialisers: raw bytes
    handler = grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})
    threads: Any = _DaemonThreads()
    server = grpc.server(threads, handlers=[handler], options=_SERVER_OPTIONS, maximum_concurrent_rpcs=4)
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())], tls.authority.read_bytes(), require_client_auth=True
    )
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise BadConfig(f"cannot listen at {address}: the address is in use, or is not one of this machine's")
    try:
        server.start()
        incoming, outgoing = door.wait(address, seconds)
    except BaseException:
        server.stop(None)
        raise

    def hang_up(seconds: float) -> None:
        """The stream ends by itself once the peer has all frames; cut it off after a while."""
        server.stop(seconds).wait(seconds + 1.0)

    return GrpcLink(incoming, outgoing, hang_up)


class _Door:
    """Lets in the first stream from the peer, and nobody else."""

    def __init__(self, peer: str, signers: list[x509.Certificate]) -> None:
        self._peer, self._authorities = peer, signers
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._stream: tuple[Iterator[bytes], Pipe] | None = None
        self._shut = False
        self._refused = ""

    def converse(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """The RPC's handler, in a thread of the server's: what it returns is sent until the pipe is closed."""
        verified: Any = context.auth_context()
        names = [name.decode(errors="replace") for name in verified.get(_SAN, [])]
        direct = valid_until(b"".join(verified.get(_PEM, [])), self._authorities) is not None
        if names != [self._peer] or not direct:
            self._refused = " and ".join(repr(name[:80]) for name in names) or "no party"
            self._refused += "" if direct else ", not signed by the authority itself,"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not the party expected")
        outgoing = Pipe(_DEPTH)
        with self._lock:
            admitted = not self._shut
            if admitted:
                self._shut, self._stream = True, (incoming, outgoing)
        if not admitted:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        if not context.add_callback(lambda: outgoing.close(_GONE)):
            outgoing.close(_GONE)
        self._arrived.set()
        context.send_initial_metadata((_ADMITTED,))
        return _drain(outgoing)

    def wait(self, address: str, seconds: float) -> tuple[Iterator[bytes], Pipe]:
        """The peer's stream. Raises as :func:`listen` does."""
        self._arrived.wait(seconds)
        with self._lock:
            self._shut = True
            if self._stream is not None:
                return self._stream
        missing = f"the peer {self._peer!r} has not connected to {address} within {seconds:.0f} s"
        if self._refused:
            raise PeerUntrusted(f"{missing}; a party with a certificate for {self._refused} was refused")
        raise PeerAbsent(f"{missing}, or has no valid certificate of the agreed authority")


class _DaemonThreads(Executor):
    """A daemon thread per stream. ThreadPoolExecutor's threads would keep a process that failed from ending."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # handed to the server, which asked for it
                future.set_exception(error)

        threading.Thread(target=run, name="grpc-stream", daemon=True).start()
        return future


# --- dialling --------------------------------------------------------------------------------------


class _NotYet(Exception):
    """Nobody is there so far; ``str`` says what was seen. It is worth another try."""


def dial(address: str, tls: Tls, me: str, peer: str, seconds: float) -> GrpcLink:
    """Open the stream to a peer that listens, trying again while nobody does.

    Args:
        address: host:port of the peer.
        tls: this party's certificate and key, and the authority.
        me: this party's name, which its certificate must carry.
        peer: the name that the listener's certificate must carry.
        seconds: how long to try.

    Raises:
        BadCertificate, FileMissing: this party's own files, or the peer does not accept them.
        PeerAbsent: nobody listened in time, or only one that was busy with another session.
        PeerSilent: something accepts connections but does not answer.
        PeerUntrusted: the listener's certificate is expired, self-signed, from another authority or for another
            name; or it does not speak TLS.
        VersionMismatch: it is the peer, but without this service.
    """
    check_own(tls, me)
    where = f"the peer {peer!r} at {address}"
    deadline = time.monotonic() + seconds
    _keep_buffers()
    while True:
        left = min(_HANDSHAKE_SECONDS, max(0.5, deadline - time.monotonic()))
        try:
            return _open_stream(_preflight(address, tls, peer, left, where), tls, peer, left, where)
        except _NotYet as why:
            if time.monotonic() + _PATIENCE > deadline:
                raise PeerAbsent(f"{where} could not be reached within {seconds:.0f} s ({why})") from None
        time.sleep(_PATIENCE)


def _preflight(address: str, tls: Tls, peer: str, seconds: float, where: str) -> str:
    """Make one TLS connection to find out precisely what is wrong with either certificate, if anything.

    Returns:
        The numeric address that answered, as a gRPC target.
    """
    host, _, port = address.rpartition(":")
    context = _client_context(tls)
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=seconds)
    except OSError as error:
        raise _NotYet(error.strerror or "no answer") from None
    with plain:
        ip = plain.getpeername()[0]
        plain.settimeout(seconds)
        try:
            with context.wrap_socket(plain, server_hostname=peer) as secure:
                _check_certificate(secure, tls, peer, where)
                _check_accepted(secure, tls, where)
        except ssl.SSLCertVerificationError as error:
            raise PeerUntrusted(f"the certificate of {where} {_verdict(error)}") from None
        except ssl.SSLEOFError:
            raise _NotYet("the connection was closed at once") from None
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                raise BadCertificate(
                    f"{where} refused this party's certificate {tls.certificate} ({_alert(error)})"
                ) from None
            raise PeerUntrusted(f"what answers for {where} does not speak TLS") from None
        except TimeoutError:
            raise PeerSilent(f"{where} accepts connections but has not answered for {seconds:.0f} s") from None
        except OSError as error:
            raise _NotYet(error.strerror or "the connection was closed at once") from None
    return f"ipv6:[{ip}]:{port}" if ":" in ip else f"ipv4:{ip}:{port}"


def _client_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # _check_name is stricter, and says whose certificate it is
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def _check_certificate(secure: ssl.SSLSocket, tls: Tls, peer: str, where: str) -> None:
    certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    names = party_names(certificate)
    if names != [peer]:
        found = " and ".join(repr(name[:80]) for name in names) or "no party"
        raise PeerUntrusted(f"the certificate of {where} is for {found}, not for {peer!r}")
    if valid_until(certificate.public_bytes(Encoding.PEM), authorities(tls.authority)) is None:
        raise PeerUntrusted(f"the certificate of {where} was not signed by the authority {tls.authority} itself")


def _check_accepted(secure: ssl.SSLSocket, tls: Tls, where: str) -> None:
    """In TLS 1.3 the listener judges our certificate after our handshake is done; if content, it speaks first."""
    try:
        accepted = secure.recv(1)
    except ConnectionError:
        accepted = b""
    if not accepted:
        raise BadCertificate(
            f"{where} hung up on this party's certificate {tls.certificate}: "
            "by its clock or its authority it is not valid"
        )


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    """In words, OpenSSL's X509_V_ERR code."""
    return {
        9: "is not valid yet",
        10: "has expired",
        18: "is self-signed",
        19: "is from another authority",
        20: "is from another authority",
        7: "has a wrong signature",
        26: "is not for TLS servers",
    }.get(error.verify_code, f"is not acceptable ({error.verify_message})")


def _alert(error: ssl.SSLError) -> str:
    return (error.reason or "").partition("ALERT_")[2].replace("_", " ").lower()


def _open_stream(target: str, tls: Tls, peer: str, seconds: float, where: str) -> GrpcLink:
    credentials = grpc.ssl_channel_credentials(
        tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()
    )
    options = [*_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", peer)]
    channel: Any = grpc.secure_channel(target, credentials, options=options)
    outgoing = Pipe(_DEPTH)
    ended = threading.Event()
    call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")(_drain(outgoing))
    call.add_callback(ended.set)
    call.add_callback(lambda: outgoing.close(_GONE))
    impatience = threading.Timer(seconds, call.cancel)
    impatience.daemon = True
    impatience.start()

    def hang_up(seconds: float) -> None:
        """The peer ends the stream when it has read all frames; cut it off after a while."""
        ended.wait(seconds)
        call.cancel()
        ended.wait(1.0)
        channel.close()

    try:
        admitted = _ADMITTED in [tuple(pair) for pair in call.initial_metadata()]
        if not admitted:
            raise _refusal(call.code(), where)
    except BaseException:
        outgoing.close("refused")
        call.cancel()
        channel.close()
        raise
    finally:
        impatience.cancel()
    return GrpcLink(call, outgoing, hang_up)


def _refusal(code: grpc.StatusCode, where: str) -> Exception:
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return BadCertificate(f"{where} expects another party than the one this certificate is for")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _NotYet("it is busy with another session")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatch(f"{where} does not offer {_SERVICE}/{_METHOD}")
    if code == grpc.StatusCode.CANCELLED:
        return PeerSilent(f"{where} accepts connections but does not answer")
    return _NotYet("the connection was closed at once")


def _drain(pipe: Pipe) -> Iterator[bytes]:
    """What gRPC's writer takes, one frame when it is ready for one, until the pipe is closed and empty."""
    while True:
        try:
            yield pipe.get()
        except LinkClosed:
            return


def _reason(error: grpc.RpcError) -> str:
    """The status in words of ours; gRPC's details may quote what the peer wrote."""
    code = error.code() if isinstance(error, grpc.Call) else None
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "a frame was over the size limit"
    return _GONE
