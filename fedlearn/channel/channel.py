"""A channel: whole, checked, counted protobuf messages over a link that carries frames.

Sending splits a message into frames with consecutive numbers; receiving puts them together and refuses what is
not the very next frame of this session, not a message of the protocol, or not its turn. A reader thread
takes frames off the link so that heartbeats keep arriving while the protocol computes; the protocol itself is plain
blocking code.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, cast

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from fedlearn.channel import wire
from fedlearn.channel.link import Link, LinkClosed
from fedlearn.channel.transcript import Ledger, OutOfTurn, Table, Transcript
from fedlearn.errors import (
    BeyondContract,
    FedlearnError,
    Interrupted,
    Malformed,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    PeerLost,
    PeerMisbehaved,
    PeerSilent,
    Replayed,
    all_errors,
)
from fedlearn.v1 import session_pb2 as pb

M = TypeVar("M", bound=ProtobufMessage)

_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()
_INBOX = 16  # frames that the reader thread takes off the link ahead of the protocol


@dataclass(frozen=True)
class Limits:
    """Times in seconds and sizes in bytes that bound what a peer can make this side wait for or hold.

    Attributes:
        silence: longest time without any frame from the peer (heartbeats come every ``heartbeat``).
        step: longest time to wait for one message, or for the peer to take one, heartbeats or not.
        heartbeat: interval between this side's heartbeats.
        frame: payload of one frame; below gRPC's default limit of 4 MiB.
        message: largest message that is accepted.
    """

    silence: float = 15.0
    step: float = 1800.0
    heartbeat: float = 2.0
    frame: int = 2 << 20
    message: int = 1 << 30

    @property
    def ahead(self) -> int:
        """Frames that a side takes in while it waits to send: those of one message.

        Who asks for more answers than that before it takes the first may wait for ever, and so may its peer.
        """
        return self.message // self.frame + 1


@dataclass(frozen=True)
class Progress:
    """One report of how far a phase has come, for whoever shows it."""

    phase: str
    done: int
    total: int
    unit: str
    seconds: float
    bytes_sent: int
    bytes_received: int


@dataclass
class Phase:
    """What one phase of a session cost this side; ``cpu_seconds`` are its process's, on all cores."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass
class _Assembly:
    """A message of which not all pieces have arrived.

    Several pieces are gathered as they come: kept apart, pieces of a byte would take hundreds of times their size.
    """

    type: str
    total: int
    first: memoryview
    joined: bytearray = field(default_factory=bytearray)

    @property
    def size(self) -> int:
        """How many bytes have arrived."""
        return len(self.joined) or len(self.first)

    def add(self, data: memoryview) -> None:
        """Take the next piece."""
        if not self.joined:
            self.joined += self.first
        self.joined += data

    @property
    def body(self) -> memoryview:
        """The message, read-only; a single piece is not copied."""
        return memoryview(self.joined).toreadonly() if self.joined else self.first


@dataclass(frozen=True)
class _Received:
    """A content frame: its fields, those of its chunk, the chunk's data, and its size on the wire."""

    frame: pb.Frame
    chunk: pb.Chunk
    data: memoryview
    size: int


#: Why no more frames follow. Made into an error when the protocol gets there, to name the step it is at by then.
_Ending = Callable[[], FedlearnError]


class Channel:
    """One end of a conversation with one peer. One thread at a time sends and receives.

    Attributes:
        me: this party's name.
        peer: the peer's name, as the contract and its certificate have it.
        session: 16 bytes that every frame carries after the handshake; empty before.
        ledger: what was revealed so far.
        phases: seconds and bytes by phase, in order.
        bulk: the large field of the message received last (see :class:`Message`), not copied; empty without one.
        bytes_sent, bytes_received: serialised messages with their framing.
    """

    def __init__(
        self,
        link: Link,
        *,
        me: str,
        peer: str,
        limits: Limits | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.me = me
        self.peer = peer
        self.session = b""
        self.ledger = Ledger()
        self.phases: dict[str, Phase] = {}
        self.bulk = memoryview(b"")
        self.bytes_sent = 0
        self.bytes_received = 0
        self.limits = limits or Limits()
        self.on_progress = on_progress
        self._link = link
        self._transcripts: dict[str, Transcript] = {}
        self._by_type: dict[type[ProtobufMessage], Transcript] = {}
        self._phase = ""
        self._phase_started = time.monotonic()
        self._step = "connect"
        self._next_out = 0
        self._next_in = 0
        self._inbox: queue.Queue[_Received | _Ending] = queue.Queue(_INBOX)
        self._ahead: deque[_Received | _Ending] = deque()  # older than what is in the inbox
        self._ahead_bytes = 0
        self._last_heard = time.monotonic()
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"{me}-reader", daemon=True)
        self._reader.start()
        self._heart = threading.Thread(target=self._beat, name=f"{me}-heartbeat", daemon=True)
        self._heart.start()

    # --- what protocols use ------------------------------------------------------------------------

    def open(self, table: Table, role: str) -> None:
        """Begin a protocol (again): its messages become legal, from its start, with this side in ``role``."""
        if role not in table.roles:
            raise ValueError(f"{role} is not a role of {table.protocol}")
        transcript = Transcript(table, role)
        self._transcripts[table.protocol] = transcript
        self._by_type.update({message.type: transcript for message in table.messages})

    def table(self, protocol: str) -> Table:
        """The message table that an open protocol runs by. Raises KeyError for one that is not open."""
        return self._transcripts[protocol].table

    def send(self, message: ProtobufMessage, bulk: bytes | memoryview = b"") -> None:
        """Send one message, waiting while the peer is slow to take it; ``bulk`` becomes its large field.

        Raises:
            ValueError: it is not this side's turn to send it (our own mistake, found before anything leaves).
            OverBudget: it is larger than a message may be.
            PeerLost, PeerSilent, PeerAborted: the peer is gone.
        """
        transcript = self._transcript(type(message))
        try:
            entry = transcript.advance(type(message), sent=True)
        except OutOfTurn as wrong:
            raise ValueError(f"{transcript.table.protocol}: {wrong}") from None
        self._step = f"{transcript.table.protocol}.{entry.name}"
        body: list[bytes | memoryview] = [message.SerializeToString(deterministic=True)]
        if len(bulk):
            body += [wire.prefix(entry.bulk_field, len(bulk)), bulk]
        total = sum(map(len, body))
        if total > self.limits.message:
            raise OverBudget(
                f"a {entry.name} of {total} bytes is over the {self.limits.message} that a message may have"
            )
        self.ledger.record(transcript.table.protocol, entry, message, total, self.me, self.peer)
        deadline = time.monotonic() + self.limits.step
        size = self.limits.frame
        if total <= size:
            self._put_piece(pb.Chunk(type=entry.name, total=total, last=True), body, deadline)
            return
        view = memoryview(b"".join(body))
        for start in range(0, total, size):
            header = pb.Chunk(last=start + size >= total)
            if start == 0:
                header.type, header.total = entry.name, total
            self._put_piece(header, [view[start : start + size]], deadline)

    def receive(self, kind: type[M], *others: type[ProtobufMessage]) -> M:
        """The next message, which must be of one of the given types and its turn.

        Raises:
            PeerMisbehaved: it is not (the subclass says in what way); the error names peer and step.
            PeerLost, PeerSilent, PeerAborted: the peer is gone.
        """
        kinds: tuple[type[ProtobufMessage], ...] = (kind, *others)
        expected = {str(k.DESCRIPTOR.name): k for k in kinds}
        self._step = f"{self._transcript(kind).table.protocol}.{'|'.join(expected)}"
        deadline = time.monotonic() + self.limits.step
        assembly = self._first_piece(expected, deadline)
        while assembly.size < assembly.total:
            received = self._next_chunk(deadline)
            if received.chunk.type or received.chunk.total:
                raise self.misbehaved(Malformed, "began a message before it had ended the last one")
            assembly.add(received.data)
            self._check_piece(assembly, received)
        message = expected[assembly.type]()
        bulk_field = self._transcript(type(message)).table.entry(type(message)).bulk_field
        body: bytes | memoryview = assembly.body
        try:
            self.bulk = memoryview(b"")
            if bulk_field:
                body, self.bulk = wire.split(memoryview(body), bulk_field)
            message.ParseFromString(bytes(body))
        except (DecodeError, ValueError):
            raise self.misbehaved(Malformed, f"sent bytes that are not a {assembly.type}") from None
        # A later release's greeting may say more; it must still be read as far as its version, to name that.
        if _has_unknown_fields_within(message) and not isinstance(message, pb.Hello):
            raise self.misbehaved(Malformed, f"sent a {assembly.type} with fields that this release does not know")
        transcript = self._transcript(type(message))
        try:
            entry = transcript.advance(type(message), sent=False)
        except OutOfTurn as wrong:
            raise self.misbehaved(OutOfOrder, f"sent a message out of order ({wrong})") from None
        self._step = f"{transcript.table.protocol}.{entry.name}"
        self.ledger.record(transcript.table.protocol, entry, message, assembly.total, self.peer, self.me)
        return cast(M, message)

    def misbehaved(self, kind: type[PeerMisbehaved], what: str) -> PeerMisbehaved:
        """An error that names the peer and the step, for protocols to raise."""
        return kind(f"the peer {self.peer!r} {what}, at step {self._step}")

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Account seconds and bytes to a named phase of the session."""
        outer, outer_started = self._phase, self._phase_started
        record = self.phases.setdefault(name, Phase())
        started, cpu = time.monotonic(), time.process_time()
        sent, received = self.bytes_sent, self.bytes_received
        self._phase, self._phase_started = name, started
        try:
            yield record
        finally:
            record.seconds += time.monotonic() - started
            record.cpu_seconds += time.process_time() - cpu
            record.bytes_sent += self.bytes_sent - sent
            record.bytes_received += self.bytes_received - received
            self._phase, self._phase_started = outer, outer_started

    def progress(self, done: int, total: int, unit: str = "") -> None:
        """Report how far the current phase has come."""
        if self.on_progress is not None:
            seconds = time.monotonic() - self._phase_started
            self.on_progress(Progress(self._phase, done, total, unit, seconds, self.bytes_sent, self.bytes_received))

    def abort(self, error: BaseException) -> None:
        """Tell the peer (exit code and step only) that this side ends the session because of ``error``."""
        if not isinstance(error, PeerAborted | PeerLost):
            code = error.exit_code if isinstance(error, FedlearnError) else 1
            if isinstance(error, KeyboardInterrupt):
                code = Interrupted.exit_code
            frame = pb.Frame(session=self.session, abort=pb.Abort(exit_code=code, step=self._step[:100]))
            with suppress(LinkClosed):
                self._link.put(frame.SerializeToString(), timeout=1.0)
        self.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Leave with an error and the peer is told; leave in any way and the conversation is over."""
        if error is not None:
            self.abort(error)
        self.close()

    def close(self) -> None:
        """End the conversation at this end, and its threads. Closing twice does nothing."""
        self._ended.set()
        self._link.close()
        for thread in (self._reader, self._heart):
            if thread is not threading.current_thread():
                thread.join(timeout=1.0)

    # --- frames out --------------------------------------------------------------------------------

    def _put_piece(self, header: pb.Chunk, data: list[bytes | memoryview], deadline: float) -> None:
        frame = encode_chunk(self.session, self._next_out, header, *data)
        while not self._offer(frame):
            self._read_ahead()
            self._raise_if_gone(deadline)
        self._next_out += 1
        self.bytes_sent += len(frame)

    def _offer(self, frame: bytes) -> bool:
        try:
            return self._link.put(frame, timeout=0.02)
        except LinkClosed as closed:
            raise self._gone(closed) from None

    def _read_ahead(self) -> None:
        """Make room in the inbox while this side waits to send.

        Both sides may send large messages at the same time (blinded points, for one); if neither took anything in
        before its own was out, neither would ever finish. One message's worth is enough to rule that out; it is
        counted in bytes, and in frames because small ones take more memory than their bytes.
        """
        while self._ahead_bytes < self.limits.message and len(self._ahead) < self.limits.ahead:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._ahead.append(item)
            if not isinstance(item, _Received):
                raise item()
            self._ahead_bytes += item.size

    def _beat(self) -> None:
        while not self._ended.wait(self.limits.heartbeat):
            try:
                self._link.put(_HEARTBEAT, timeout=self.limits.heartbeat)
            except LinkClosed:
                return

    # --- frames in ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Reader thread: drop heartbeats, keep everything else in order, note when the peer was last heard."""
        try:
            while True:
                raw = self._link.get()
                self._last_heard = time.monotonic()
                item = self._check_frame(raw)
                if item is not None:
                    self._last_heard = math.inf  # waiting for room in the inbox is our slowness, not theirs
                    self._deliver(item)
                    self._last_heard = time.monotonic()
                    if not isinstance(item, _Received):
                        return
        except LinkClosed as closed:
            self._deliver(partial(self._lost, closed))

    def _check_frame(self, raw: bytes) -> _Received | _Ending | None:
        """A content frame, what ends the session, or None for a heartbeat."""
        if raw == _HEARTBEAT:
            return None
        try:
            outer, inner = wire.split(memoryview(raw), pb.Frame.CHUNK_FIELD_NUMBER)
            rest, data = wire.split(inner, pb.Chunk.DATA_FIELD_NUMBER)
            frame, chunk = pb.Frame.FromString(outer), pb.Chunk.FromString(rest)
        except (DecodeError, ValueError):
            return partial(self.misbehaved, Malformed, "sent bytes that are not a frame")
        kind = frame.WhichOneof("content")
        content = chunk if kind is None else getattr(frame, kind)
        if (kind is None) != bool(len(inner)) or _has_unknown_fields(frame) or _has_unknown_fields(content):
            return partial(self.misbehaved, Malformed, "sent a frame with no content, or with fields unknown here")
        if kind == "abort":
            return partial(self._aborted, frame.abort)
        return _Received(frame, chunk, data, len(raw)) if kind is None else None

    def _deliver(self, item: _Received | _Ending) -> None:
        """Put into the inbox as soon as it has room; once this end is closed nobody wants it any more."""
        while not self._ended.is_set():
            try:
                self._inbox.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def _aborted(self, abort: pb.Abort) -> PeerAborted:
        known = {e.exit_code: (e.__doc__ or "").splitlines()[0] for e in all_errors()}
        reason = known.get(abort.exit_code, "Unknown reason.")
        step = "".join(c for c in abort.step[:100] if c.isascii() and (c.isalnum() or c in "._|"))
        return PeerAborted(
            f"the peer {self.peer!r} ended the session at its step {step or 'unknown'} "
            f"with exit code {abort.exit_code} ({reason.rstrip('.')})"
        )

    def _next_chunk(self, deadline: float) -> _Received:
        received = self._next_frame(deadline)
        frame = received.frame
        if frame.session != self.session:
            raise self.misbehaved(Replayed, "sent a frame of another session")
        if frame.sequence != self._next_in:
            raise self.misbehaved(
                Replayed, f"sent frame {frame.sequence} where frame {self._next_in} was due (replayed or lost)"
            )
        self._next_in += 1
        self.bytes_received += received.size
        return received

    def _next_frame(self, deadline: float) -> _Received:
        while True:
            item = self._take()
            if item is None or time.monotonic() > deadline:  # a peer that keeps dribbling has a deadline, too
                self._raise_if_gone(deadline)
            elif isinstance(item, _Received):
                return item
            else:
                self._ahead.appendleft(item)  # whoever asks again hears the same
                raise item()

    def _take(self) -> _Received | _Ending | None:
        if self._ahead:
            item = self._ahead.popleft()
            self._ahead_bytes -= item.size if isinstance(item, _Received) else 0
            return item
        try:
            return self._inbox.get(timeout=0.25)
        except queue.Empty:
            return None

    def _first_piece(self, expected: dict[str, type[ProtobufMessage]], deadline: float) -> _Assembly:
        received = self._next_chunk(deadline)
        chunk = received.chunk
        if chunk.type not in expected:
            known = {m.name for t in self._transcripts.values() for m in t.table.messages}
            if chunk.type in known:
                raise self.misbehaved(
                    OutOfOrder, f"sent {chunk.type} out of order, where {' or '.join(expected)} was due"
                )
            raise self.misbehaved(Malformed, "sent a message of an unknown type")
        if chunk.total > self.limits.message:
            raise self.misbehaved(
                BeyondContract, f"announced a message of {chunk.total} bytes, over the {self.limits.message} allowed"
            )
        assembly = _Assembly(chunk.type, chunk.total, received.data)
        self._check_piece(assembly, received)
        return assembly

    def _check_piece(self, assembly: _Assembly, received: _Received) -> None:
        complete = assembly.size == assembly.total
        empty = not len(received.data) and not complete
        if assembly.size > assembly.total or received.chunk.last != complete or empty:
            raise self.misbehaved(Malformed, f"sent pieces that do not make up one {assembly.type}")

    # --- liveness ----------------------------------------------------------------------------------

    def _raise_if_gone(self, deadline: float) -> None:
        now = time.monotonic()
        quiet = now - self._last_heard
        if quiet > self.limits.silence:
            raise PeerSilent(f"the peer {self.peer!r} has sent nothing for {quiet:.0f} s at step {self._step}")
        if now > deadline:
            raise PeerSilent(f"the peer {self.peer!r} did not finish step {self._step} within {self.limits.step:.0f} s")

    def _gone(self, closed: LinkClosed) -> FedlearnError:
        """The peer's farewell, if one is waiting behind unread messages, says more than a broken link."""
        wait_until = time.monotonic() + 1.0
        while time.monotonic() < wait_until:
            item = self._take()
            if item is not None and not isinstance(item, _Received):
                self._ahead.appendleft(item)
                return item()
        return self._lost(closed)

    def _lost(self, closed: LinkClosed) -> PeerLost:
        return PeerLost(f"the connection to {self.peer!r} broke at step {self._step}: {closed}")

    def _transcript(self, kind: type[ProtobufMessage]) -> Transcript:
        try:
            return self._by_type[kind]
        except KeyError:
            raise ValueError(f"no open protocol has the message {kind.DESCRIPTOR.name}") from None


def encode_chunk(session: bytes, sequence: int, header: pb.Chunk, *data: bytes | memoryview) -> bytes:
    """A serialised ``pb.Frame`` whose chunk is ``header`` (without data) with ``data``, joined."""
    chunk = header.SerializeToString() + wire.prefix(pb.Chunk.DATA_FIELD_NUMBER, sum(map(len, data)))
    outer = pb.Frame(session=session, sequence=sequence).SerializeToString()
    size = len(chunk) + sum(map(len, data))
    return b"".join((outer, wire.prefix(pb.Frame.CHUNK_FIELD_NUMBER, size), chunk, *data))


def _has_unknown_fields(message: ProtobufMessage) -> bool:
    return len(UnknownFieldSet(message)) > 0


def _has_unknown_fields_within(message: ProtobufMessage) -> bool:
    """Or has one in a message that is part of it."""
    if _has_unknown_fields(message):
        return True
    parts = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(
        _has_unknown_fields_within(part)
        for value in parts
        for part in ([value] if isinstance(value, ProtobufMessage) else value)
    )
