"""Real numbers as small integers: stochastic rounding, and balanced digits of an odd base.

An integer q with |q| ≤ (g^L − 1)/2 is q = Σ_l g^l·d_l with |d_l| ≤ (g − 1)/2 (Knuth, TAOCP vol. 2, 4.1). Rounding up
with the probability of the fraction makes every rounded value right in the mean, so errors of sums over n rows grow as
√n only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS, F64

I8 = NDArray[np.int8]

#: Values whose digits are taken at once: whole numbers in floating point, which vectorises where division does not.
_BLOCK = 4096
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@njit(**_FLAGS)
def quantise(values: F64, scale: float, largest: int, noise: U8, position: I64, out: I32) -> None:
    """Round values·scale and put each at its row's place.

    Args:
        values: float64 (m,).
        scale: factor; |values|·scale ≤ largest.
        largest: bound on the result.
        noise: uint8 (m,), uniform random bytes.
        position: int64 (m,), places in ``out``.
        out: int32 (n,); rows without a value keep what they have.
    """
    for i in range(values.shape[0]):
        q = np.floor(values[i] * scale + (noise[i] + 0.5) / 256)
        out[position[i]] = np.int32(max(-largest, min(largest, q)))


@njit(**_FLAGS)
def remainder(values: F64, scale: float, largest: int, noise: U8, position: I64, out: I32) -> None:
    """What rounding values·scale to the nearest integer leaves over, times 2·largest; arguments as above."""
    for i in range(values.shape[0]):
        exact = values[i] * scale
        q = np.floor((exact - np.rint(exact)) * (2 * largest) + (noise[i] + 0.5) / 256)
        out[position[i]] = np.int32(max(-largest, min(largest, q)))


@njit(**_FLAGS)
def nearest(values: F64, scale: float, position: I64, out: I32) -> None:
    """Values·scale rounded to the nearest integer; with :func:`remainder` the high half of a value."""
    for i in range(values.shape[0]):
        out[position[i]] = np.int32(np.rint(values[i] * scale))


@njit(**_FLAGS)
def split(left: F64, right: F64, scale: float, base: int, noise: U8, out: I8) -> None:
    """Digits of left·right·scale.

    Args:
        left, right: float64 (n,); ``right`` is all ones for a column by itself.
        scale: factor; |left·right|·scale ≤ (base^L − 1)/2.
        base: odd, at most 255.
        noise: uint8 (n,), uniform random bytes.
        out: int8 (L, n), the lowest digit first.
    """
    digits, half = out.shape[0], (base - 1) // 2
    largest = 0
    for _ in range(digits):
        largest = largest * base + half
    rest, inverse = np.empty(_BLOCK), 1.0 / base
    for start in range(0, left.shape[0], _BLOCK):
        count = min(_BLOCK, left.shape[0] - start)
        for i in range(count):
            j = start + i
            q = np.floor(left[j] * right[j] * scale + (noise[j] + 0.5) / 256) + largest
            rest[i] = min(max(q, 0.0), 2.0 * largest)
        for d in range(digits):
            row = out[d]
            for i in range(count):
                # Half a unit more than the whole number, so that rounding of the quotient cannot cross one.
                quotient = np.floor((rest[i] + 0.5) * inverse)
                row[start + i] = np.int8(rest[i] - quotient * base - half)
                rest[i] = quotient
