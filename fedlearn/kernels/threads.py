"""Kernels release the GIL; this spreads them over the machine's cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

CORES = os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="kernel")


def spread(work: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """``work`` on each piece, on all cores; results in order. Never call it from within ``work``."""
    pieces = list(pieces)
    if len(pieces) <= 1:
        return [work(piece) for piece in pieces]
    return list(_pool().map(work, pieces))


def ahead(work: Callable[[T], R], pieces: Iterable[T]) -> Iterator[R]:
    """Results of ``work`` in order, with as many pieces under way as there are cores while the taker does its part."""
    pending: deque[Future[R]] = deque()
    for piece in pieces:
        pending.append(_pool().submit(work, piece))
        if len(pending) > CORES:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def ranges(count: int, pieces: int) -> list[range]:
    """range(count) in at most ``pieces`` runs of nearly equal length."""
    pieces = max(1, min(pieces, count))
    return [range(count * p // pieces, count * (p + 1) // pieces) for p in range(pieces)]
