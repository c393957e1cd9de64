"""What a channel stands on: something that carries whole frames, in order, between two ends."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol


class LinkClosed(Exception):
    """The link is closed at this end, or the other end is gone. ``str`` says what the link knows of why."""


class Link(Protocol):
    """One end of a connection. Frames are opaque bytes of at most a few MiB, never empty; the order is kept.

    Implementations: :class:`fedlearn.channel.memory.MemoryLink`, :class:`fedlearn.channel.grpc_link.GrpcLink`
    and, for tests, :class:`fedlearn.channel.faulty.FaultyLink`.
    """

    def put(self, frame: bytes, timeout: float) -> bool:
        """Hand over one frame. False when the link stayed full for ``timeout`` seconds (back-pressure).

        Raises:
            LinkClosed: the link is closed or the other end is gone.
        """

    def get(self) -> bytes:
        """The next frame, waiting for it as long as it takes. One thread at a time may wait.

        Raises:
            LinkClosed: the link is closed or the other end is gone, and no frame is left.
        """

    def close(self) -> None:
        """Flush what was put (for a few seconds at most), then close. Closing twice does nothing."""


class Pipe:
    """A bounded queue of frames in one direction that can be closed from either end.

    (``queue.Queue`` cannot be closed before Python 3.13; with a sentinel, closing a full queue has to wait.)
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._frames: deque[bytes] = deque()
        # Taken by its own `with`, never through the condition's: that one is Python code, in which a signal's exception
        # can arrive between taking the lock and guarding it, and then nobody could send a farewell any more.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed: str | None = None

    def put(self, frame: bytes, timeout: float) -> bool:
        """Append a frame. False if there was no room for ``timeout`` seconds. Raises LinkClosed once closed."""
        with self._lock:
            self._changed.wait_for(lambda: self._closed is not None or len(self._frames) < self._depth, timeout)
            if self._closed is not None:
                raise LinkClosed(self._closed)
            if len(self._frames) >= self._depth:
                return False
            self._frames.append(frame)
            self._changed.notify_all()
            return True

    def get(self) -> bytes:
        """Wait for the first frame and take it off. Raises LinkClosed when it is closed and no frame is left."""
        with self._lock:
            self._changed.wait_for(lambda: self._frames or self._closed is not None)
            if not self._frames:
                raise LinkClosed(self._closed)
            self._changed.notify_all()
            return self._frames.popleft()

    def close(self, why: str, *, discard: bool = False) -> None:
        """Let nothing more in; what is in stays to be got, unless ``discard``. The first reason given stands."""
        with self._lock:
            if self._closed is None:
                self._closed = why
            if discard:
                self._frames.clear()
            self._changed.notify_all()
