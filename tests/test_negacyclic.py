"""The transform against numpy.fft, and products through it against exact integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import H, N, inverse, transform

Words = NDArray[np.uint64]


def forward(x: NDArray[np.float64]) -> NDArray[np.complex128]:
    re, im = np.empty(H), np.empty(H)
    transform(x[:H].copy(), x[H:].copy(), re, im)
    return re + 1j * im


def backward(points: NDArray[np.complex128]) -> NDArray[np.float64]:
    re, im = np.empty(H), np.empty(H)
    inverse(points.real.copy(), points.imag.copy(), re, im)
    return np.concatenate([re, im])


def limbs(words: Words) -> NDArray[np.float64]:
    """Low and high centred 32-bit limbs, float64 (2, N)."""
    low = words.astype(np.uint32).view(np.int32).astype(np.int64)
    high = ((words - low.view(np.uint64)) >> np.uint64(32)).astype(np.uint32).view(np.int32)
    return np.stack([low, high]).astype(np.float64)


def exact_product(a: Words, s: NDArray[np.int8]) -> Words:
    """a·s by schoolbook, modulo 2^64 and X^N + 1."""
    twice = np.concatenate([np.uint64(0) - a, a])  # the window that begins at N - j is X^j·a
    out = np.zeros(N, np.uint64)
    for j in np.flatnonzero(s):
        out += np.uint64(int(s[j]) % 2**64) * twice[N - j : 2 * N - j]
    return out


def product(a: Words, s: NDArray[np.int8]) -> Words:
    """a·s as an encryption of nothing without noise: 20 ones among 40 bits are the noise 0."""
    public, secret, out = np.empty((1, 2, 2, H)), np.empty((1, 2, H)), np.empty((1, 8 * N), np.uint8)
    lattice.transform_public(a[None], public)
    lattice.transform_small(s[None], secret)
    low, high = np.full((1, N), 0xFFFFF, np.uint32), np.zeros((1, N), np.uint8)
    lattice.encrypt(public, secret, low, high, np.empty((1, 0), np.int32), 0, -1, 8, out)
    return out.view(np.uint64)[0]


def correlation(a: Words, m: NDArray[np.int64]) -> Words:
    """Σ_i m_i·(row i of A) through the hint's kernel."""
    public, out = np.zeros((2, 2, 2, H)), np.zeros((1, N), np.uint64)
    lattice.transform_public(a[None], public[1:])
    lattice.hint_dense(public, m[None], np.zeros((1, 2, H)), out)
    return out[0]


def word_of(low: int, high: int) -> int:
    return (low + (high << 32)) % 2**64


rng = np.random.default_rng(1)
SIGNS = rng.choice([-1, 1], N).astype(np.int8)
ONES = np.ones(N, np.int8)
# A secret whose product with words of one sign, or of alternating signs, piles up in single coefficients.
SECRETS = {
    "ones": ONES,
    "minus ones": -ONES,
    "alternating": np.where(np.arange(N) % 2, -ONES, ONES),
    "signs": SIGNS,
    "uniform": rng.integers(-1, 2, N).astype(np.int8),
    "one": np.eye(1, N, 77, dtype=np.int8)[0],
    "zero": 0 * ONES,
}
LOWEST, HIGHEST = word_of(-(2**31), -(2**31)), word_of(2**31 - 1, 2**31 - 1)
WORDS = {
    "lowest limbs": np.full(N, LOWEST, np.uint64),
    "highest limbs": np.full(N, HIGHEST, np.uint64),
    "alternating limbs": np.where(np.arange(N) % 2, np.uint64(LOWEST), np.uint64(HIGHEST)),
    # Reversed signs: coefficient N - 1 of the product with SIGNS is N·2^31 in both limbs.
    "aligned limbs": np.where(SIGNS[::-1] > 0, np.uint64(LOWEST), np.uint64(HIGHEST)),
    "all bits": np.full(N, 2**64 - 1, np.uint64),
    "uniform": rng.integers(0, 2**64, N, np.uint64),
}


def test_evaluates_at_the_odd_powers_of_the_root() -> None:
    """The order of points is the module's own: the transform of X tells which root each is."""
    roots = forward(np.eye(1, N, 1)[0])
    powers = np.rint(np.angle(roots) * N / np.pi).astype(int) % (2 * N)
    assert sorted(powers) == list(range(1, 2 * N, 4))
    x = rng.uniform(-1, 1, N)
    everywhere = np.fft.ifft(x, 2 * N) * 2 * N  # Σ x_j ζ^(jm) for every m
    np.testing.assert_allclose(forward(x), everywhere[powers], rtol=0, atol=1e-12)


def test_round_trip() -> None:
    for x in (rng.uniform(-(2.0**31), 2.0**31, N), np.full(N, -(2.0**31)), np.eye(N)[N - 1] * 2.0**31):
        np.testing.assert_allclose(backward(forward(x)), x, rtol=0, atol=2.0**-15)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("words", WORDS)
def test_products_are_exact(words: str, secret: str) -> None:
    a, s = WORDS[words], SECRETS[secret]
    np.testing.assert_array_equal(product(a, s), exact_product(a, s))


@pytest.mark.parametrize("words", WORDS)
def test_rounding_is_far_from_a_tie(words: str) -> None:
    """The worst that limbs and secrets can do: a distance from the integers far below the module's bound of 1/8."""
    for s in SECRETS.values():
        for limb in limbs(WORDS[words]):
            raw = backward(forward(limb) * forward(s.astype(np.float64)))
            assert np.abs(raw - np.rint(raw)).max() < 2.0**-6


def test_product_against_python_integers() -> None:
    """Some coefficients with integers that cannot wrap."""
    a, s = WORDS["uniform"], SECRETS["uniform"]
    got = product(a, s)
    for c in (0, 1, H - 1, H, N - 1):
        terms = (int(a[c - j]) * int(s[j]) if j <= c else -int(a[c - j + N]) * int(s[j]) for j in range(N))
        assert int(got[c]) == sum(terms) % 2**64


@pytest.mark.parametrize("largest", [1, 255])
def test_the_adjoint_is_exact(largest: int) -> None:
    """m·A is the transpose: (m·A)·s = m·(A·s) for every s, here with one s at a time for single words."""
    a = WORDS["uniform"]
    for m in (np.full(N, largest), largest * SIGNS.astype(np.int64), rng.integers(-largest, largest + 1, N)):
        row = correlation(a, m.astype(np.int64))
        for j in (0, 1, H, N - 1):
            s = np.eye(1, N, j, dtype=np.int8)[0]
            assert row[j] == np.sum(m.astype(np.int64).view(np.uint64) * exact_product(a, s))


def test_public_limbs() -> None:
    """The transform of public words is that of limbs in [-2^31, 2^31) that make up the word."""
    edges = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 2**31, 2**64 - 2**31, 2**64 - 1]
    words = np.resize(np.array(edges, np.uint64), N)
    out = np.empty((1, 2, 2, H))
    lattice.transform_public(words[None], out)
    low, high = (np.rint(backward(out[0, limb, 0] + 1j * out[0, limb, 1])).astype(np.int64) for limb in range(2))
    assert [word_of(int(x), int(y)) for x, y in zip(low[:11], high[:11], strict=True)] == edges
    for limb in (low, high):
        assert -(2**31) <= limb.min() <= limb.max() < 2**31


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_known_sums(ends: list[int], seed: int) -> None:
    """Digit by digit as in Python integers; the first words are chosen where digits carry, or by hypothesis."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, (3, N), np.uint64)
    edges = [0x7FFF, 0x8000, 0x7FFF7FFF7FFF7FFF, 0x8000800080008000, 2**64 - 1, 0x7FFFFFFFFFFFFFFF, *ends]
    words[0, : len(edges)] = edges
    words[1] = 0x8000800080008000  # every digit at its lowest, with secrets of one sign: the largest partial sums
    secrets = rng.integers(-1, 2, (2, N)).astype(np.int16)
    secrets[1] = seed % 3 - 1
    digits, out = np.empty((3, 4, N), np.int16), np.empty((2, 3), np.uint64)
    lattice.split_words(words, digits)
    lattice.known_sums(digits, secrets, out)
    due = [
        [sum(w * s for w, s in zip(row, s, strict=True)) % 2**64 for row in words.tolist()] for s in secrets.tolist()
    ]
    assert out.tolist() == due
