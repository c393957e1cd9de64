"""Links that misbehave on purpose, for tests: as a hostile or broken peer would, or as a slow network does.

``FaultyLink`` spoils single outgoing frames of a link it wraps; ``SlowLink`` delays all of them. They can be stacked.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from google.protobuf.message import Message as ProtobufMessage

from fedlearn.channel.link import Link, LinkClosed
from fedlearn.v1 import session_pb2 as pb

M = TypeVar("M", bound=ProtobufMessage)


@dataclass(frozen=True)
class Fault:
    """What happens to one outgoing frame.

    Attributes:
        at: which frame: its number among the outgoing content frames, from 0 (heartbeats are not counted), or the
            name of a message type, which means the first frame of every message of that type.
        kind: ``drop``, ``duplicate``, ``reorder`` (it leaves after the next one), ``corrupt`` (the bits of byte
            ``where`` are flipped), ``truncate`` (to its first ``where`` bytes), ``replace`` (by ``edit`` of it),
            ``close`` (the link closes before it, as if this end were killed) or ``stall`` (neither it nor anything
            after it leaves).
        where: a byte's position in the frame; negative ones count from the end.
        edit: makes the frame that is sent instead.
    """

    at: int | str
    kind: Literal["drop", "duplicate", "reorder", "corrupt", "truncate", "replace", "close", "stall"]
    where: int = -1
    edit: Callable[[bytes], bytes] = bytes


class FaultyLink:
    """A link whose outgoing frames suffer the given faults. See :class:`fedlearn.channel.link.Link`."""

    def __init__(self, link: Link, faults: Sequence[Fault]) -> None:
        self._link = link
        self._faults = faults
        self._count = 0
        self._held: list[bytes] = []
        self._stalled = False
        self._putting = threading.Lock()

    def put(self, frame: bytes, timeout: float) -> bool:
        """Hand over what the faults leave of the frame."""
        with self._putting:
            parsed = pb.Frame.FromString(frame)
            if self._stalled:
                return True
            if parsed.WhichOneof("content") != "chunk":
                return self._link.put(frame, timeout)
            fault = next((f for f in self._faults if f.at in (self._count, parsed.chunk.type)), None)
            frames = [frame] if fault is None else self._suffer(fault, frame)
            if frames and not self._link.put(frames[0], timeout):
                return False
            self._count += 1
            rest = frames[1:]
            if fault is None or fault.kind != "reorder":
                rest += self._held
                self._held = []
            for extra in rest:
                while not self._link.put(extra, timeout=1.0):
                    pass
            return True

    def get(self) -> bytes:
        """The next frame, as it came."""
        return self._link.get()

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _suffer(self, fault: Fault, frame: bytes) -> list[bytes]:
        """The frames that leave in place of one."""
        if fault.kind == "close":
            self._link.close()
            raise LinkClosed("closed by a fault")
        self._stalled = fault.kind == "stall"
        if fault.kind == "reorder":
            self._held = [frame]
        flipped = bytearray(frame)
        flipped[fault.where] ^= 0xFF
        instead = {
            "duplicate": [frame, frame],
            "corrupt": [bytes(flipped)],
            "truncate": [frame[: fault.where]],
            "replace": [fault.edit(frame)],
        }
        return instead.get(fault.kind, [])


def editing(kind: type[M], change: Callable[[M], object]) -> Callable[[bytes], bytes]:
    """An ``edit`` for a message of one frame: ``change`` alters the message in place, its framing stays correct."""

    def edit(raw: bytes) -> bytes:
        frame = pb.Frame.FromString(raw)
        message = kind()
        message.ParseFromString(frame.chunk.data)
        change(message)
        frame.chunk.data = message.SerializeToString(deterministic=True)
        frame.chunk.total = len(frame.chunk.data)
        return frame.SerializeToString()

    return edit


class SlowLink:
    """A link whose outgoing frames take as long as over a network. See :class:`fedlearn.channel.link.Link`.

    Args:
        link: what carries the frames in the end.
        delay_seconds: time from a frame's departure to its arrival (half a round trip).
        bytes_per_second: rate at which bytes depart.
    """

    def __init__(self, link: Link, *, delay_seconds: float = 0.0, bytes_per_second: float = math.inf) -> None:
        self._link = link
        self._delay = delay_seconds
        self._rate = bytes_per_second
        self._free = 0.0  # when the last frame put has departed
        self._putting = threading.Lock()
        self._underway: queue.Queue[tuple[float, bytes] | None] = queue.Queue(64)
        self._closed = threading.Event()
        self._carrier = threading.Thread(target=self._carry, name="slow-link", daemon=True)
        self._carrier.start()

    def put(self, frame: bytes, timeout: float) -> bool:
        """Hand over a frame; False when more is underway than a network holds."""
        with self._putting:
            if self._closed.is_set():
                raise LinkClosed("the connection was closed")
            departed = max(self._free, time.monotonic()) + len(frame) / self._rate
            try:
                self._underway.put((departed + self._delay, frame), timeout=timeout)
            except queue.Full:
                return False
            self._free = departed
            return True

    def get(self) -> bytes:
        """The next frame, as it came."""
        return self._link.get()

    def close(self) -> None:
        """Let what is underway arrive, for a few seconds, then close the link."""
        with self._putting:
            if not self._closed.is_set():
                self._closed.set()
                with suppress(queue.Full):
                    self._underway.put(None, timeout=5.0)
        self._carrier.join(timeout=5.0)
        self._link.close()

    def _carry(self) -> None:
        with suppress(LinkClosed):
            while (item := self._underway.get()) is not None:
                arrival, frame = item
                time.sleep(max(0.0, arrival - time.monotonic()))
                while not self._link.put(frame, timeout=1.0):
                    pass
        self._closed.set()
