"""Secret randomness: a known answer, and distributions (under fixed keys, so that no statistic ever flickers)."""

import math

import numpy as np
import pytest
from scipy import stats

from fedlearn.crypto.draws import Draws
from fedlearn.kernels import lattice


def draws(number: int) -> Draws:
    return Draws(bytes([number]) * 32)


def uniform(counts: np.ndarray) -> bool:
    """Whether equally likely outcomes occur about equally often."""
    return stats.chisquare(counts).pvalue > 1e-4


# --- the stream --------------------------------------------------------------------------------------


def test_known_answer() -> None:
    """AES-256 under the zero key of counters 0, 1 and 2, as test cases 13 and 14 of the GCM specification have them.

    McGrew and Viega, "The Galois/Counter Mode of Operation" (2005), appendix B: H and T of case 13, C of case 14.
    """
    blocks = [
        "dc95c078a2408989ad48a21492842087",
        "530f8afbc74536b9a963b4f1c4cb738b",
        "cea7403d4d606b6e074ec5d3baf39d18",
    ]
    assert Draws(bytes(32)).bytes(48).tobytes().hex() == "".join(blocks)


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    size = (1 << 20) + 77  # over one internal piece
    whole, cut = draws(1).bytes(2 * size), draws(1)
    pieces = [cut.bytes(n) for n in (0, 1, 15, 17, size, size - 33)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_fixed_keys_repeat_and_fresh_keys_differ() -> None:
    def everything(d: Draws) -> list[bytes]:
        low, high = d.noise_bits(2, 9)
        rest = (d.words(4), d.ternary(2, 9), d.gaussian(2.0**20, (3,)), d.permutation(20))
        return [x.tobytes() for x in (low, high, *rest)]

    assert everything(draws(2)) == everything(draws(2))
    assert not set(everything(draws(2))) & set(everything(draws(3)))
    assert not set(everything(Draws())) & set(everything(Draws()))


# --- ternary -----------------------------------------------------------------------------------------


def test_ternary_values_and_their_neighbours_are_uniform() -> None:
    values = draws(4).ternary(100, 3000)
    assert values.dtype == np.int8
    assert uniform(np.bincount(values.ravel() + 1, minlength=3))
    for gap in range(1, 6):  # digits of one byte, and of the next
        pairs = 3 * (values[:, :-gap] + 1) + values[:, gap:] + 1
        assert uniform(np.bincount(pairs[:, :: gap + 1].ravel(), minlength=9))


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 4), (1, 5), (1, 6), (3, 7), (2, 4096)])
def test_ternary_shapes(shape: tuple[int, int]) -> None:
    values = draws(5).ternary(*shape)
    assert values.shape == shape
    assert set(values.ravel().tolist()) <= {-1, 0, 1}


def test_ternary_draws_again_when_many_bytes_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = draws(6)
    rounds = iter([np.full(500, 243, np.uint8), np.array([242, 255, 0], np.uint8), np.full(500, 121, np.uint8)])
    monkeypatch.setattr(stream, "bytes", lambda _count: next(rounds))
    assert stream.ternary(1, 15).tolist() == [[1] * 5 + [-1] * 5 + [0] * 5]


# --- centred binomial --------------------------------------------------------------------------------


def test_binomial_distribution() -> None:
    count = 1_000_000
    low, high = draws(7).noise_bits(1, count)
    out = np.empty(count, np.uint64)
    lattice.noise(low[0], high[0], out)
    values = out.view(np.int64)
    assert abs(values.mean()) < 5 * math.sqrt(10 / count)
    assert abs(values.var() - 10) < 5 * math.sqrt(2 * 100 / count)
    inner = np.abs(values) <= 13  # further out too few are expected for the test
    expected = np.array([math.comb(40, 20 + v) / 2**40 for v in range(-13, 14)])
    counts = np.bincount(values[inner] + 13, minlength=27)
    assert stats.chisquare(counts, expected / expected.sum() * inner.sum()).pvalue > 1e-4


def test_binomial_range() -> None:
    low, high = np.array([0, 2**32 - 1, 2**32 - 1, 0], np.uint32), np.array([0, 255, 0, 255], np.uint8)
    out = np.empty(4, np.uint64)
    lattice.noise(low, high, out)
    assert out.view(np.int64).tolist() == [-20, 20, 12, -12]


# --- Gaussian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10.0, 25.5, 46.0, 47.0])
def test_gaussian_distribution(bits: float) -> None:
    count, deviation = 200_000, 2.0**bits
    values = draws(8).gaussian(deviation, (count // 2, 2))
    assert values.shape == (count // 2, 2)
    scaled = values.ravel() / deviation
    assert abs(scaled.std() - 1) < 5 / math.sqrt(2 * count)
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    for tail in (2.0, 3.0, 4.0):
        due = 2 * stats.norm.sf(tail) * count
        assert abs((np.abs(scaled) > tail).sum() - due) < 5 * math.sqrt(due)


def test_gaussian_low_bits_are_uniform() -> None:
    """Double precision does not run out: the last byte of a value of up to 50 bits carries no pattern."""
    values = draws(9).gaussian(2.0**46, (200_000,))
    assert uniform(np.bincount(values & 255, minlength=256))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 2**63), (2**64 - 1, 0), (2**64 - 1, 2**64 - 1)])
def test_gaussian_extremes_stay_in_range(first: int, second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = draws(10)
    pair = iter([np.array([first], np.uint64), np.array([second], np.uint64)])
    monkeypatch.setattr(stream, "words", lambda _count: next(pair))
    assert abs(int(stream.gaussian(2.0**47, (1,))[0])) <= 9.42 * 2**47


# --- permutation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutations_are_permutations(count: int) -> None:
    assert sorted(Draws().permutation(count).tolist()) == list(range(count))


def test_permutations_are_uniform() -> None:
    stream = draws(11)
    codes = [tuple(stream.permutation(4).tolist()) for _ in range(4800)]
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert uniform(counts)


def test_what_is_filled_in_is_the_stream() -> None:
    for count in (0, 1, 17, (1 << 20) + 5):
        out = np.empty(count, np.uint8)
        filling, plain = Draws(bytes(32)), Draws(bytes(32))
        filling.fill(out)
        np.testing.assert_array_equal(out, plain.bytes(count))
        np.testing.assert_array_equal(filling.bytes(9), plain.bytes(9))
