"""Both parties in one process: for notebooks, tests and the scikit-learn façade.

Every message is still serialised, framed, checked and counted, exactly as over gRPC.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from fedlearn.channel.channel import Channel, Limits
from fedlearn.channel.link import Link, Pipe

A = TypeVar("A")
P = TypeVar("P")


class MemoryLink:
    """One end of an in-process connection: two bounded pipes of frames."""

    def __init__(self, outgoing: Pipe, incoming: Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    def put(self, frame: bytes, timeout: float) -> bool:
        """See :meth:`fedlearn.channel.link.Link.put`."""
        return self._outgoing.put(frame, timeout)

    def get(self) -> bytes:
        """See :meth:`fedlearn.channel.link.Link.get`."""
        return self._incoming.get()

    def close(self) -> None:
        """See :meth:`fedlearn.channel.link.Link.close`. What was put stays for the other end to get."""
        self._outgoing.close("the connection was closed")
        self._incoming.close("the connection was closed", discard=True)


def memory_links(depth: int = 64) -> tuple[MemoryLink, MemoryLink]:
    """Two connected ends; each direction holds at most ``depth`` frames before ``put`` waits."""
    there, back = Pipe(depth), Pipe(depth)
    return MemoryLink(there, back), MemoryLink(back, there)


def simulate(
    active: Callable[[Channel], A],
    passive: Callable[[Channel], P],
    *,
    names: tuple[str, str] = ("active", "passive"),
    links: tuple[Link, Link] | None = None,
    limits: Limits | None = None,
) -> tuple[A, P]:
    """Run both roles of a protocol in one process, each in its own thread, and return both results.

    Args:
        active: what the active side does with its end of the channel.
        passive: what the passive side does.
        names: the parties' names, active first.
        links: two connected links; by default a new pair in memory.
        limits: time and size limits for both ends.

    Raises:
        Exception: the first error that either side raised. The other side is told and ended.
    """
    ends = links or memory_links()
    channels = (
        Channel(ends[0], me=names[0], peer=names[1], limits=limits),
        Channel(ends[1], me=names[1], peer=names[0], limits=limits),
    )
    results: list[object] = [None, None]
    failures: list[tuple[int, BaseException]] = []

    def play(side: int, role: Callable[[Channel], object]) -> None:
        try:
            results[side] = role(channels[side])
        except BaseException as error:  # carried over to the caller's thread below
            failures.append((side, error))
            channels[side].abort(error)

    thread = threading.Thread(target=play, args=(1, passive), name="passive", daemon=True)
    thread.start()
    try:
        play(0, active)
        thread.join()
    finally:
        for channel in channels:
            channel.close()
    if failures:
        raise failures[0][1]
    return results[0], results[1]  # type: ignore[return-value]
