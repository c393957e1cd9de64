"""The inner loops of the hint scheme (:mod:`fedlearn.crypto.lwe`): products with public ring elements, sums of words.

All words are uint64 and wrap, which is arithmetic modulo q = 2^64. Transforms are laid out ``(2, 2, H)``: limb (low,
high), then real and imaginary part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fedlearn.kernels.negacyclic import _FLAGS, F64, U64, H, N, inverse, transform

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

# Blocks accumulated in the transform domain before rounding, for rows of zeros and ones and of up to 8 bits. Public
# elements are random, so the distance from an integer grows as the root of the number of blocks times the entries'
# size; at these numbers it is below 0.01 and 0.2.
_FLUSH = 64
_FLUSH_DENSE = 4

#: Vectors that share one pass over the holder's bins: eight words fill a 512-bit register.
LANES = 8


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """Number of one bits of a word (LLVM's ctpop)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), emit


@njit(**_FLAGS)
def binomial40(low: NDArray[np.uint32], high: U8, i: int) -> np.uint64:
    """Centred binomial value from 40 random bits, as a wrapping word: ones minus 20, variance 10.

    The difference of two sums of 20 bits has the same distribution as the sum of 40 bits minus 20.
    """
    bits = (np.uint64(low[i]) << np.uint64(8)) | np.uint64(high[i])
    return _ones(bits) - np.uint64(20)  # type: ignore[call-arg]


@njit(**_FLAGS)
def transform_public(words: U64, out: F64) -> None:
    """Transforms of both centred 32-bit limbs of public ring elements.

    Args:
        words: uint64 (B, N), the elements.
        out: float64 (B, 2, 2, H).
    """
    re, im = np.empty(H), np.empty(H)
    for b in range(words.shape[0]):
        for limb in range(2):
            for j in range(N):
                word = words[b, j]
                low = np.int64(np.int32(np.uint32(word & np.uint64(0xFFFFFFFF))))
                value = low
                if limb == 1:
                    value = np.int64(np.int32(np.uint32((word - np.uint64(low)) >> np.uint64(32))))
                if j < H:
                    re[j] = np.float64(value)
                else:
                    im[j - H] = np.float64(value)
            transform(re, im, out[b, limb, 0], out[b, limb, 1])


@njit(**_FLAGS)
def transform_small(values: I8, out: F64) -> None:
    """Transforms of small polynomials. Args: values int8 (K, N); out float64 (K, 2, H)."""
    re, im = np.empty(H), np.empty(H)
    for k in range(values.shape[0]):
        for j in range(H):
            re[j], im[j] = np.float64(values[k, j]), np.float64(values[k, j + H])
        transform(re, im, out[k, 0], out[k, 1])


@njit(**_FLAGS)
def _round_into(low_re: F64, low_im: F64, high_re: F64, high_im: F64, out: U64) -> None:
    """out += low + 2^32·high for coefficients in folded order, rounded to integers, modulo 2^64."""
    for j in range(H):
        out[j] += np.uint64(np.int64(np.rint(low_re[j]))) + (np.uint64(np.int64(np.rint(high_re[j]))) << np.uint64(32))
    for j in range(H):
        out[j + H] += np.uint64(np.int64(np.rint(low_im[j]))) + (
            np.uint64(np.int64(np.rint(high_im[j]))) << np.uint64(32)
        )


@njit(**_FLAGS)
def _correlate(public: F64, re: F64, im: F64, sums: F64) -> None:
    """sums += conj(public) · transform of one polynomial, for both limbs."""
    for limb in range(2):
        ar, ai, sr, si = public[limb, 0], public[limb, 1], sums[2 * limb], sums[2 * limb + 1]
        for j in range(H):
            sr[j] += ar[j] * re[j] + ai[j] * im[j]
            si[j] += ar[j] * im[j] - ai[j] * re[j]


@njit(**_FLAGS)
def _flush(sums: F64, work: F64, out: U64) -> None:
    """Round what was accumulated into the hint row and start the sums again from zero."""
    inverse(sums[0], sums[1], work[0], work[1])
    inverse(sums[2], sums[3], work[2], work[3])
    _round_into(work[0], work[1], work[2], work[3], out)
    sums[:] = 0.0


@njit(**_FLAGS)
def sort_blocks(bins: U8, count: int) -> tuple[I32, I32]:
    """Samples of one feature ordered by (block, bin).

    Args:
        bins: uint8 (n,), one feature.
        count: number of bins.

    Returns:
        order: int32 (n,), positions within their block; and starts: int32 (B, count + 1) into ``order``.
    """
    samples = bins.shape[0]
    blocks = (samples + N - 1) // N
    order = np.empty(samples, np.int32)
    starts = np.zeros((blocks, count + 1), np.int32)
    fill = np.empty(count, np.int32)
    for b in range(blocks):
        begin, end = b * N, min((b + 1) * N, samples)
        for i in range(begin, end):
            starts[b, bins[i] + 1] += 1
        starts[b, 0] = begin
        for v in range(count):
            starts[b, v + 1] += starts[b, v]
            fill[v] = starts[b, v]
        for i in range(begin, end):
            order[fill[bins[i]]] = i - begin
            fill[bins[i]] += 1
    return order, starts


@njit(**_FLAGS)
def hint_indicator(public: F64, order: I32, starts: I32, masks: F64, out: U64) -> None:
    """Hint rows of one feature: for each bin, the sum of the public rows of its samples, plus the mask's.

    Args:
        public: float64 (1 + B, 2, 2, H); the first element is the mask's.
        order, starts: from :func:`sort_blocks`.
        masks: float64 (bins, 2, H), transforms of each row's secret mask.
        out: uint64 (bins, N); holds the errors on entry, the hint on return.
    """
    blocks = starts.shape[0]
    sums, work = np.zeros((4, H)), np.empty((4, H))
    re, im = np.empty(H), np.empty(H)
    for v in range(out.shape[0]):
        for b in range(blocks):
            begin, end = starts[b, v], starts[b, v + 1]
            if begin < end:
                re[:] = 0.0
                im[:] = 0.0
                for i in range(begin, end):
                    at = order[i]
                    if at < H:
                        re[at] = 1.0
                    else:
                        im[at - H] = 1.0
                transform(re, im, work[0], work[1])
                _correlate(public[1 + b], work[0], work[1], sums)
            if b % _FLUSH == _FLUSH - 1:
                _flush(sums, work, out[v])
        _correlate(public[0], masks[v, 0], masks[v, 1], sums)
        _flush(sums, work, out[v])


@njit(**_FLAGS)
def hint_dense(public: F64, matrix: I64, masks: F64, out: U64) -> None:
    """As :func:`hint_indicator` for rows of small integers, int64 (R, n)."""
    blocks, samples = public.shape[0] - 1, matrix.shape[1]
    sums, work = np.zeros((4, H)), np.empty((4, H))
    re, im = np.empty(H), np.empty(H)
    for r in range(out.shape[0]):
        for b in range(blocks):
            for j in range(H):
                i, k = b * N + j, b * N + H + j
                re[j] = np.float64(matrix[r, i]) if i < samples else 0.0
                im[j] = np.float64(matrix[r, k]) if k < samples else 0.0
            transform(re, im, work[0], work[1])
            _correlate(public[1 + b], work[0], work[1], sums)
            if b % _FLUSH_DENSE == _FLUSH_DENSE - 1:
                _flush(sums, work, out[r])
        _correlate(public[0], masks[r, 0], masks[r, 1], sums)
        _flush(sums, work, out[r])


@njit(**_FLAGS)
def dots(rows: Any, columns: Any, out: U64) -> None:
    """out[k, r] += Σ_j rows[r, j]·columns[k, j] modulo 2^64, for integer arrays of any width."""
    for r in range(rows.shape[0]):
        row = rows[r]
        for k in range(columns.shape[0]):
            column = columns[k]
            total = np.uint64(0)
            for j in range(row.shape[0]):
                total += np.uint64(np.int64(row[j])) * np.uint64(np.int64(column[j]))
            out[k, r] += total


def _histogram(lanes: int) -> Any:
    @njit(**_FLAGS)
    def histogram(bins: U8, words: U64, out: U64) -> None:
        for i in range(bins.shape[0]):
            v = bins[i]
            for lane in range(lanes):
                out[v, lane] += words[i, lane]

    return histogram


#: Sums of words by bin for one feature and 1, 2, 4 or LANES vectors at once, by their number. Arguments: bins uint8
#: (n,); words uint64 (n, lanes); out uint64 (bins, lanes), added to.
HISTOGRAMS = {lanes: _histogram(lanes) for lanes in (1, 2, 4, LANES)}


@njit(**_FLAGS)
def pack(words: U64, width: int, out: U8, at: int) -> None:
    """Drop the low bits of words, rounding, and lay the rest out in planes of 32, 16 and 8 bits.

    Planes instead of packed bytes let every store be a whole vector. A tie goes to the even neighbour: if it always
    went up, what is dropped would have mean 1/2 instead of 0, and over a row's many samples that mean would outgrow
    the deviation that the plan counts.

    Args:
        words: uint64 (c,), words ``at`` to ``at + c`` of a vector.
        width: bytes kept, 4 to 8. Widths 4 to 7 have a plane of the top 32 bits of all words, then (6 and 7) one of
            the next 16, then (5 and 7) one of the next 8; 8 keeps whole words.
        out: uint8 (width·m,), the whole vector's bytes, aligned to 8; m is a multiple of 8.
        at: the first word's place in it.
    """
    count, end = out.shape[0] // width, at + words.shape[0]
    if width == 8:
        out.view(np.uint64)[at:end] = words
        return
    top = out[: 4 * count].view(np.uint32)[at:end]
    shift = np.uint64(64 - 8 * width)
    half = (np.uint64(1) << (shift - np.uint64(1))) - np.uint64(1)  # rounds a tie down; an odd neighbour adds one
    if width == 7:
        middle, low = out[4 * count : 6 * count].view(np.uint16)[at:end], out[6 * count :][at:end]
        for i in range(words.shape[0]):
            word = words[i] + half + ((words[i] >> shift) & np.uint64(1))
            top[i] = word >> np.uint64(32)
            middle[i] = word >> np.uint64(16)
            low[i] = word >> np.uint64(8)
    elif width == 6:
        middle = out[4 * count :].view(np.uint16)[at:end]
        for i in range(words.shape[0]):
            word = words[i] + half + ((words[i] >> shift) & np.uint64(1))
            top[i] = word >> np.uint64(32)
            middle[i] = word >> np.uint64(16)
    elif width == 5:
        low = out[4 * count :][at:end]
        for i in range(words.shape[0]):
            word = words[i] + half + ((words[i] >> shift) & np.uint64(1))
            top[i] = word >> np.uint64(32)
            low[i] = word >> np.uint64(24)
    else:
        for i in range(words.shape[0]):
            word = words[i] + half + ((words[i] >> shift) & np.uint64(1))
            top[i] = word >> np.uint64(32)


@njit(**_FLAGS)
def encrypt(
    public: F64,
    secrets: F64,
    low: NDArray[np.uint32],
    high: U8,
    values: I32,
    shift: int,
    first: int,
    width: int,
    out: U8,
) -> None:
    """Blocks of ``a·s + e + 2^shift·v`` for several vectors, packed.

    Args:
        public: float64 (B, 2, 2, H), transforms of the public elements of these blocks.
        secrets: float64 (K, 2, H), transforms of the secrets.
        low, high: uint32 and uint8 (K, B·N), 40 random bits per word.
        values: int32 (K, n); words outside them encrypt zero.
        shift: log2 Δ.
        first: index into ``values`` of the first word; negative for the mask's block.
        width: bytes kept of a word, 4 to 8.
        out: uint8 (K, width·m), m ≤ B·N words of each vector, as :func:`pack` lays them out; a vector's start is
            aligned to 8 bytes.
    """
    blocks, samples, count = public.shape[0], values.shape[1], out.shape[1] // width
    work, words = np.empty((6, H)), np.empty(N, np.uint64)
    for b in range(blocks):
        here = min(N, count - b * N)
        for k in range(secrets.shape[0]):
            for limb in range(2):
                ar, ai, sr, si = public[b, limb, 0], public[b, limb, 1], secrets[k, 0], secrets[k, 1]
                pr, pi = work[4], work[5]
                for j in range(H):
                    pr[j] = ar[j] * sr[j] - ai[j] * si[j]
                    pi[j] = ar[j] * si[j] + ai[j] * sr[j]
                inverse(pr, pi, work[2 * limb], work[2 * limb + 1])
            lo, hi = low[k, b * N : (b + 1) * N], high[k, b * N : (b + 1) * N]
            for j in range(N):
                words[j] = binomial40(lo, hi, j)
            start = first + b * N
            if start >= 0:
                for j in range(min(N, samples - start)):
                    words[j] += np.uint64(np.int64(values[k, start + j])) << np.uint64(shift)
            _round_into(work[0], work[1], work[2], work[3], words)
            pack(words[:here], width, out[k], b * N)


@njit(**_FLAGS)
def unpack(raw: U8, width: int, lane: int, out: U64) -> None:
    """The inverse of :func:`pack` for one vector, uint8 (width·m,), written to one lane of uint64 (m, lanes)."""
    count = raw.shape[0] // width
    if width == 8:
        words = raw.view(np.uint64)
        for i in range(count):
            out[i, lane] = words[i]
        return
    top = raw[: 4 * count].view(np.uint32)
    if width == 7:
        middle, low = raw[4 * count : 6 * count].view(np.uint16), raw[6 * count :]
        for i in range(count):
            out[i, lane] = (
                (np.uint64(top[i]) << np.uint64(32))
                | (np.uint64(middle[i]) << np.uint64(16))
                | (np.uint64(low[i]) << np.uint64(8))
            )
    elif width == 6:
        middle = raw[4 * count :].view(np.uint16)
        for i in range(count):
            out[i, lane] = (np.uint64(top[i]) << np.uint64(32)) | (np.uint64(middle[i]) << np.uint64(16))
    elif width == 5:
        low = raw[4 * count :]
        for i in range(count):
            out[i, lane] = (np.uint64(top[i]) << np.uint64(32)) | (np.uint64(low[i]) << np.uint64(24))
    else:
        for i in range(count):
            out[i, lane] = np.uint64(top[i]) << np.uint64(32)


@njit(**_FLAGS)
def noise(low: NDArray[np.uint32], high: U8, out: U64) -> None:
    """Centred binomial words from 40 random bits each: all arrays (m,)."""
    for i in range(out.shape[0]):
        out[i] = binomial40(low, high, i)
