"""Kernels release the GIL; this spreads them over the machine's cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

CORES = os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="kernel")


def spread(work: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """``work`` on each piece, on all cores; results in order. Never call it from within ``work``.

    The calling thread works too, so a helper that does not come in time is not waited for.
    """
    pieces = list(pieces)
    results: list[R | None] = [None] * len(pieces)
    todo = iter(range(len(pieces)))  # its steps are not interrupted: each number goes to one thread

    def some() -> None:
        try:
            for i in todo:
                results[i] = work(pieces[i])
        except BaseException:
            deque(todo, 0)  # nobody is to begin another piece
            raise

    helpers = [_pool().submit(some) for _ in range(min(CORES, len(pieces)) - 1)]
    try:
        some()
    finally:
        late = [helper for helper in helpers if not helper.cancel()]
        wait(late)
    for helper in late:
        helper.result()
    return cast(list[R], results)


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
