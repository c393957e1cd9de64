"""Columns that are mostly one value: leaving out the fullest bin changes no word of a hint or an answer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlearn.crypto import lwe
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Dense, Indicator
from fedlearn.kernels import lattice, trees
from fedlearn.kernels.negacyclic import N
from tests.test_lwe import SEED, key

SAMPLES = st.one_of(st.integers(1, 50), st.sampled_from([N - 1, N, N + 1, 2 * N]), st.integers(1, 3 * N))


class NoFlood(Draws):
    """Answers without their noise."""

    def gaussian(self, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.int64)


def skewed(rng: np.random.Generator, sizes: list[int], samples: int) -> Indicator:
    """Features whose fullest bin, any of them, holds any share of the samples up to all."""
    bins = np.empty((len(sizes), samples), np.uint8)
    for own, size in zip(bins, sizes, strict=True):
        own[:] = rng.integers(0, size, samples)
        own[rng.random(samples) < rng.choice([0, 0.5, 0.95, 0.999, 1])] = rng.integers(size)
    return Indicator(bins, np.array(sizes))


def one_hot(matrix: Indicator) -> np.ndarray:
    """The rows written out, int64 (R, n)."""
    rows = [bins == bin_ for bins, size in zip(matrix.bins, matrix.sizes, strict=True) for bin_ in range(size)]
    return np.array(rows, np.int64)


def packed(rng: np.random.Generator, plan: lwe.Plan, count: int) -> tuple[np.ndarray, bytes]:
    """Uniform words of the plan's width, uint64 (count, words), and the same on the wire."""
    words = rng.integers(0, 2**64, (count, plan.words), np.uint64)
    words &= np.uint64(2**64 - 2 ** (64 - 8 * plan.width))
    return words, on_the_wire(words, plan, range(plan.words))


def on_the_wire(words: np.ndarray, plan: lwe.Plan, part: range) -> bytes:
    """A piece of them."""
    raw = np.empty((len(words), plan.width * len(part)), np.uint8)
    for vector, packed in zip(words, raw, strict=True):
        lattice.pack(vector[part.start : part.stop], plan.width, packed, 0)
    return raw.tobytes()


@settings(max_examples=60, deadline=None)
@example(samples=1, sizes=[1], count=1, width=8, seed=0)
@example(samples=2 * N, sizes=[256, 1, 2], count=8, width=7, seed=1)
@example(samples=N + 1, sizes=[1] * 9 + [256] * 3, count=17, width=6, seed=2)
@given(
    samples=SAMPLES,
    sizes=st.lists(st.sampled_from([1, 2, 3, 33, 256]), min_size=1, max_size=6),
    count=st.integers(1, 17),
    width=st.sampled_from([4, 5, 6, 7, 8]),
    seed=st.integers(0, 2**32),
)
def test_answers_are_the_integer_product(samples: int, sizes: list[int], count: int, width: int, seed: int) -> None:
    """[T | M]·b word for word, against NumPy on the rows written out."""
    rng = np.random.default_rng(seed)
    matrix = skewed(rng, sizes, samples)
    plan = lwe.Plan(matrix.rows, samples, 1, 40, 1.0, width, count, 0.0)
    mask = rng.integers(-1, 2, (matrix.rows, N)).astype(np.int8)
    words, raw = packed(rng, plan, count)
    due = words[:, : N + samples] @ np.concatenate([mask, one_hot(matrix)], axis=1).view(np.uint64).T
    for ciphertext in (raw, memoryview(b"." + raw)[1:]):  # from any buffer, at any alignment
        answer = lwe.respond(matrix, mask, ciphertext, count, plan, NoFlood())
        np.testing.assert_array_equal(np.frombuffer(answer, "<u8").reshape(count, -1), due)
    sums = np.zeros(due.shape, np.uint64)
    for part in plan.pieces(count):
        lwe.accumulate(matrix, mask, on_the_wire(words, plan, part), part, plan, sums)
    np.testing.assert_array_equal(sums, due)


@settings(max_examples=25, deadline=None)
@example(samples=1, sizes=[1], seed=0)
@example(samples=N, sizes=[256], seed=1)
@given(
    samples=SAMPLES,
    sizes=st.lists(st.sampled_from([1, 2, 3, 20, 256]), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_hints_are_those_of_the_rows_written_out(samples: int, sizes: list[int], seed: int) -> None:
    """Same masks, same errors, same words as the dense matrix of zeros and ones, which is transformed row by row."""
    matrix = skewed(np.random.default_rng(seed), sizes, samples)
    public = lwe.expand(SEED, samples)
    hint, mask = lwe.make_hint(matrix, public, key("hint"))
    due, same_mask = lwe.make_hint(Dense(one_hot(matrix)), public, key("hint"))
    np.testing.assert_array_equal(mask, same_mask)
    np.testing.assert_array_equal(hint, due)


def test_lists_hold_every_sample_but_those_of_the_fullest_bins() -> None:
    matrix = skewed(np.random.default_rng(3), [5, 1, 256, 2], 2 * N + 77)
    lists, rows = matrix.sorted, one_hot(matrix)
    fullest = rows.sum(axis=1)
    for f, (first, last) in enumerate(zip(matrix.offsets[:-1], matrix.offsets[1:], strict=True)):
        assert fullest[lists.fullest[f]] == fullest[first:last].max()
    rows[lists.fullest] = 0
    for r, row in enumerate(rows):
        found = [
            b * N + lists.order[lists.starts[b * matrix.rows + r] : lists.starts[b * matrix.rows + r + 1]].astype(int)
            for b in range(3)
        ]
        np.testing.assert_array_equal(np.concatenate(found), np.flatnonzero(row))


def test_many_rows() -> None:
    """More rows than are looked up at a time."""
    rng = np.random.default_rng(4)
    matrix = skewed(rng, [256, 256, 33], 100)
    plan = lwe.Plan(matrix.rows, 100, 1, 40, 1.0, 7, 3, 0.0)
    mask = np.where(rng.random((matrix.rows, N)) < 0.5, -1, 1).astype(np.int8)
    words, raw = packed(rng, plan, 3)
    due = words[:, : N + 100] @ np.concatenate([mask, one_hot(matrix)], axis=1).view(np.uint64).T
    answer = lwe.respond(matrix, mask, raw, 3, plan, NoFlood())
    np.testing.assert_array_equal(np.frombuffer(answer, "<u8").reshape(3, -1), due)
    assert replace(plan, width=8).query_bytes == 8 * plan.words


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("largest", [1, 127, 2**31 - 1])
@pytest.mark.parametrize("zeros", [0.0, 0.95, 1.0])
def test_own_histograms(count: int, largest: int, zeros: float) -> None:
    """Against NumPy; the largest values would overflow where two share a word."""
    rng = np.random.default_rng(5)
    samples, sizes = 3001, np.array([33, 256, 1])
    bins = np.array([rng.integers(0, size, samples) for size in sizes], np.uint8)
    bins[rng.random(bins.shape) < zeros] = 0
    values = rng.integers(-largest, largest, (count, samples), endpoint=True).astype(np.int32)
    values[:, : samples // 2] = -largest
    picks = [np.arange(samples), np.arange(0), np.array([7]), np.sort(rng.choice(samples, 998, replace=False))]
    due = []
    for rows in picks:
        node = [np.zeros((size, count), np.int64) for size in sizes]
        for sums, own in zip(node, bins, strict=True):
            np.add.at(sums, own[rows], values[:, rows].T)
        due.append(np.concatenate(node))
    found = trees.histograms(bins, sizes, [(values, rows) for rows in picks])
    np.testing.assert_array_equal(found, np.array(due))
