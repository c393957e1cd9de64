"""Work spread over threads: every piece once, results in order, errors in the caller."""

import threading
import time

import pytest

from fedlearn.kernels import threads


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_every_piece_once_and_in_order(count: int) -> None:
    done = []

    def work(piece: int) -> int:
        done.append(piece)
        return piece * piece

    assert threads.spread(work, iter(range(count))) == [n * n for n in range(count)]
    assert sorted(done) == list(range(count))


def test_the_caller_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers that are busy elsewhere are not waited for."""
    monkeypatch.setattr(threads, "CORES", 4)
    free = threading.Event()
    busy = [threads._pool().submit(free.wait) for _ in range(threads._pool()._max_workers)]
    try:
        assert threads.spread(lambda _: threading.get_ident(), range(5)) == [threading.get_ident()] * 5
    finally:
        free.set()
        for one in busy:
            one.result()


@pytest.mark.parametrize("bad", [0, 1, 7])
def test_an_error_ends_the_work(bad: int) -> None:
    """It reaches the caller, whichever thread it came from, and pieces far behind are not begun."""
    begun = []

    def work(piece: int) -> None:
        begun.append(piece)
        if piece == bad:
            raise ValueError(str(piece))
        time.sleep(0.001)

    with pytest.raises(ValueError, match=str(bad)):
        threads.spread(work, range(2000))
    assert len(begun) < 2000
