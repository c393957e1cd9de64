"""The inner loops of the hint scheme (:mod:`fedlearn.crypto.lwe`): products with public ring elements, sums of words.

All words are uint64 and wrap, which is arithmetic modulo q = 2^64. Transforms are laid out ``(2, 2, H)``: limb (low,
high), then real and imaginary part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS, F64, U64, H, N, _transpose8, inverse, transform

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

# Blocks accumulated in the transform domain before rounding, for rows of zeros and ones and of up to 8 bits. Public
# elements are random, so the distance from an integer grows as the root of the number of blocks times the entries'
# size; at these numbers it is below 0.01 and 0.2.
_FLUSH = 64
_FLUSH_DENSE = 4

# A bin's samples in one block are added one by one up to this number; beyond it a transform is cheaper.
_FEW = 8

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


@intrinsic
def _bits(typing_context: Any, number: Any) -> Any:
    """The 64 bits of a float64 as a word."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.uint64(types.float64), emit


# Added to a number below 2^51 it leaves no room for a fraction: the sum is rounded to the nearest integer, ties to the
# even one, and the low bits of its representation are that integer. Vector units without a conversion to 64-bit
# integers (AVX2) would otherwise convert one number at a time.
_ROUNDING = 1.5 * 2.0**52
_ROUNDING_BITS = np.float64(_ROUNDING).view(np.uint64)


@njit(**_FLAGS)
def _rounded(number: float) -> np.uint64:
    """The nearest integer to a number below 2^51 in absolute value, as a wrapping word."""
    return _bits(number + _ROUNDING) - _ROUNDING_BITS  # type: ignore[call-arg]


@njit(**_FLAGS)
def _round_into(low_re: F64, low_im: F64, high_re: F64, high_im: F64, out: U64) -> None:
    """out += low + 2^32·high for coefficients in folded order, rounded to integers, modulo 2^64."""
    for j in range(H):
        out[j] += _rounded(low_re[j]) + (_rounded(high_re[j]) << np.uint64(32))
    for j in range(H):
        out[j + H] += _rounded(low_im[j]) + (_rounded(high_im[j]) << np.uint64(32))


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
def count_blocks(bins: U8, out: I64) -> None:
    """Samples of one feature by (block, bin). Args: bins uint8 (n,); out int64 (B, bins), zero on entry."""
    for i in range(bins.shape[0]):
        out[i // N, bins[i]] += 1


@njit(**_FLAGS)
def sort_blocks(bins: U8, left_out: int, fill: I64, order: U16) -> None:
    """Samples of one feature ordered by (block, bin).

    Args:
        bins: uint8 (n,).
        left_out: the bin whose samples are not listed.
        fill: int64 (B, bins), where in ``order`` each block and bin starts; overwritten (where it stops).
        order: uint16, receives positions within their block.
    """
    for i in range(bins.shape[0]):
        v = bins[i]
        if v != left_out:
            order[fill[i // N, v]] = i % N
            fill[i // N, v] += 1


@njit(**_FLAGS)
def reversed_words(public: F64, out: U64) -> None:
    """The words behind transforms of public elements, last coefficient first.

    Args:
        public: float64 (B, 2, 2, H), from :func:`transform_public`.
        out: uint64 (B, N).
    """
    work, words = np.empty((6, H)), np.empty(N, np.uint64)
    for b in range(public.shape[0]):
        for limb in range(2):
            work[4], work[5] = public[b, limb, 0], public[b, limb, 1]
            inverse(work[4], work[5], work[2 * limb], work[2 * limb + 1])
        words[:] = 0
        _round_into(work[0], work[1], work[2], work[3], words)
        out[b] = words[::-1]


@njit(**_FLAGS)
def _add_sample(words: U64, at: int, out: U64) -> None:
    """out += the public row of the sample at place ``at`` of a block whose element is ``words``, last word first."""
    head, tail, end = out[: at + 1], out[at + 1 :], words[N - 1 - at :]
    for j in range(head.shape[0]):
        head[j] += end[j]
    for j in range(tail.shape[0]):
        tail[j] -= words[j]


@njit(**_FLAGS)
def ones_row(public: F64, samples: int, out: U64) -> None:
    """The sum of the public rows of all samples, added to ``out``, uint64 (N,). No mask's element in ``public``."""
    sums, work, ones = np.zeros((4, H)), np.empty((4, H)), np.empty((2, H))
    re, im = np.empty(H), np.empty(H)
    for b in range(public.shape[0]):
        count = min(N, samples - b * N)
        if b == 0 or count < N:  # the first block's serves all that are whole
            for j in range(H):
                re[j], im[j] = np.float64(j < count), np.float64(j + H < count)
            transform(re, im, ones[0], ones[1])
        _correlate(public[b], ones[0], ones[1], sums)
        if b % _FLUSH == _FLUSH - 1:
            _flush(sums, work, out)
    _flush(sums, work, out)


@njit(**_FLAGS)
def hint_indicator(
    public: F64,
    words: U64,
    ones: U64,
    order: U16,
    starts: I64,
    first: int,
    rows: int,
    fullest: int,
    masks: F64,
    out: U64,
) -> None:
    """Hint rows of one feature: for each bin, the sum of the public rows of its samples, plus the mask's.

    The fullest bin's row is the row of ones less the other bins' rows. All are integers modulo 2^64 by then, so
    nothing is lost. What the mask adds is still in those rows, so the sum of all masks takes its place: a polynomial
    of up to 256 ternary ones, which is rounded more safely than rows of integers up to 255.

    Args:
        public: float64 (1 + B, 2, 2, H); the first element is the mask's.
        words: uint64 (B, N), from :func:`reversed_words`, without the mask's element.
        ones: uint64 (N,), from :func:`ones_row`.
        order, starts: of :class:`fedlearn.crypto.matrix.Sorted`.
        first: the matrix's row of the feature's first bin.
        rows: number of rows R of the whole matrix.
        fullest: the bin that is not in the lists.
        masks: float64 (bins, 2, H), transforms of each row's secret mask.
        out: uint64 (bins, N); holds the errors on entry, the hint on return.
    """
    sums, work = np.zeros((4, H)), np.empty((4, H))
    re, im = np.empty(H), np.empty(H)
    all_masks, rest = np.zeros((2, H)), ones.copy()
    for v in range(out.shape[0]):
        all_masks += masks[v]
        if v == fullest:
            continue
        row = out[v]
        rest += row
        for b in range(words.shape[0]):
            place = b * rows + first + v
            begin, end = starts[place], starts[place + 1]
            if end - begin <= _FEW:
                for i in range(begin, end):
                    _add_sample(words[b], np.int64(order[i]), row)
            else:
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
                _flush(sums, work, row)
        _correlate(public[0], masks[v, 0], masks[v, 1], sums)
        _flush(sums, work, row)
        rest -= row
    _correlate(public[0], all_masks[0], all_masks[1], sums)
    _flush(sums, work, rest)
    out[fullest] += rest


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


#: Balanced 16-bit digits of a word.
DIGITS = 4

# Coefficients that are taken for all secrets before the next: their digits stay in the first-level cache.
_PART = 1024


@njit(**_FLAGS)
def split_words(words: U64, out: I16) -> None:
    """Words as four digits of -2^15 to 2^15 - 1 each, the lowest first: word = Σ digit·2^16i modulo 2^64.

    Args:
        words: uint64 (R, N).
        out: int16 (R, 4, N).
    """
    # Adding 2^15 at every digit carries where a digit is large; taking it off again without borrows is an exclusive or.
    halves = np.uint64(0x8000800080008000)
    for r in range(words.shape[0]):
        for digit in range(DIGITS):
            row = out[r, digit]
            for j in range(row.shape[0]):
                word = (words[r, j] + halves) ^ halves
                row[j] = np.int16(np.uint16(word >> np.uint64(16 * digit)))


@intrinsic
def _digit_dot(typing_context: Any, digits: Any, at: Any, secrets: Any, place: Any) -> Any:
    """Σ_j word_j·s_j modulo 2^64, j below _PART, from the digits of words: digits[at + N·i + j], secrets[place + j].

    Products of pairs of neighbours are added as one, which is a single instruction where there is a vector unit
    (pmaddwd); written as a loop LLVM does not find it. _PART digits times ternary secrets fit 32 bits; of the top
    digits' sum 16 bits count.
    """
    lanes = 16

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, short, int_ = ir.IntType(64), ir.IntType(16), ir.IntType(32)
        narrow, wide, half = ir.VectorType(short, lanes), ir.VectorType(int_, lanes), ir.VectorType(int_, lanes // 2)
        data, secret = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 2))

        def load(base: Any, place: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(base, [place]), narrow.as_pointer()), align=2)

        def pick(vector: Any, first: int) -> Any:
            order = ir.Constant(half, list(range(first, lanes, 2)))
            return builder.shuffle_vector(vector, ir.Constant(wide, None), order)

        kinds = [half] * (DIGITS - 1) + [narrow]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for kind in kinds]
        zero, stop, step = (ir.Constant(word, n) for n in (0, _PART, lanes))
        with cgutils.for_range_slice(builder, zero, stop, step, word) as (j, _):
            right = load(secret, builder.add(arguments[3], j))
            for digit, total in enumerate(sums):
                left = load(data, builder.add(builder.add(arguments[1], ir.Constant(word, digit * N)), j))
                if digit == DIGITS - 1:
                    term = builder.mul(left, right)
                else:
                    product = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
                    term = builder.add(pick(product, 0), pick(product, 1))
                builder.store(builder.add(builder.load(total), term), total)
        found = ir.Constant(word, 0)
        for digit, total in enumerate(sums):
            vector = builder.load(total)
            lane_sum = ir.Constant(vector.type.element, 0)
            for lane in range(vector.type.count):
                lane_sum = builder.add(lane_sum, builder.extract_element(vector, ir.Constant(int_, lane)))
            found = builder.add(found, builder.shl(builder.sext(lane_sum, word), ir.Constant(word, 16 * digit)))
        return found

    return types.uint64(digits, types.int64, secrets, types.int64), emit


@njit(**_FLAGS)
def known_sums(digits: I16, secrets: I16, out: U64) -> None:
    """out[k, r] = Σ_j word[r, j]·secrets[k, j] modulo 2^64.

    Args:
        digits: int16 (R, 4, N), contiguous, from :func:`split_words`.
        secrets: int16 (K, N), contiguous, ternary.
        out: uint64 (K, R).
    """
    flat, small = digits.reshape(-1), secrets.reshape(-1)
    out[:] = 0
    for r in range(digits.shape[0]):
        for part in range(0, N, _PART):
            for k in range(secrets.shape[0]):
                out[k, r] += _digit_dot(flat, r * DIGITS * N + part, small, k * N + part)  # type: ignore[call-arg]


# --- the holder's answer: words of several vectors side by side, one lane each ------------------------


# Typed Any: type checkers do not know that an intrinsic is called without its first argument.
_with_literals: Any = intrinsic(prefer_literal=True)


@_with_literals
def _load(typing_context: Any, raw: Any, at: Any, bits: Any) -> Any:
    """The little-endian word of 8, 16 or 32 bits (a literal) at any byte of a uint8 array, as uint64."""
    size = bits.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(size).as_pointer())
        return builder.zext(builder.load(place, align=1), ir.IntType(64))

    return types.uint64(raw, types.int64, bits), emit


@njit(**_FLAGS)
def unpack(raw: U8, words: int, width: int, first: int, out: U64) -> None:
    """The inverse of :func:`pack` for a stretch of one vector.

    Args:
        raw: uint8 (width·words,), a packed vector or a piece of one.
        words: its words.
        width: bytes of a word on the wire, 4 to 8.
        first: the first word wanted.
        out: uint64 (m,), receives words first to first + m.
    """
    middle = 4 * words + 2 * first
    low = (6 if width == 7 else 4) * words + first
    if width == 8:
        for i in range(out.shape[0]):
            at = 8 * (first + i)
            out[i] = (_load(raw, at + 4, 32) << np.uint64(32)) | _load(raw, at, 32)
    elif width == 7:
        for i in range(out.shape[0]):
            out[i] = (
                (_load(raw, 4 * (first + i), 32) << np.uint64(32))
                | (_load(raw, middle + 2 * i, 16) << np.uint64(16))
                | (_load(raw, low + i, 8) << np.uint64(8))
            )
    elif width == 6:
        for i in range(out.shape[0]):
            out[i] = (_load(raw, 4 * (first + i), 32) << np.uint64(32)) | (
                _load(raw, middle + 2 * i, 16) << np.uint64(16)
            )
    elif width == 5:
        for i in range(out.shape[0]):
            out[i] = (_load(raw, 4 * (first + i), 32) << np.uint64(32)) | (_load(raw, low + i, 8) << np.uint64(24))
    else:
        for i in range(out.shape[0]):
            out[i] = _load(raw, 4 * (first + i), 32) << np.uint64(32)


def _row(context: Any, builder: Any, signature: Any, arguments: Any, array: int, index: Any, lanes: int) -> Any:
    """Pointer to a row of ``lanes`` words, as one vector, of the array that is argument ``array``."""
    data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
    vector = ir.VectorType(ir.IntType(64), lanes)
    return builder.bitcast(builder.gep(data, [builder.mul(index, index.type(lanes))]), vector.as_pointer())


@_with_literals
def _gather(
    typing_context: Any, target: Any, at: Any, source: Any, order: Any, start: Any, stop: Any, lanes: Any
) -> Any:
    """target[at] += Σ source[order[i]] for i from start to stop; rows of ``lanes`` words (a literal).

    Left to itself LLVM must expect the sums to overlap the words, and adds word by word at three times the cost.
    """
    width = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        picks = context.make_array(signature.args[3])(context, builder, arguments[3]).data
        out = _row(context, builder, signature, arguments, 0, arguments[1], width)
        total = cgutils.alloca_once_value(builder, builder.load(out, align=8))
        start, stop = arguments[4], arguments[5]
        with cgutils.for_range_slice(builder, start, stop, start.type(1), start.type) as (i, _):
            pick = builder.zext(builder.load(builder.gep(picks, [i])), start.type)
            found = builder.load(_row(context, builder, signature, arguments, 2, pick, width), align=8)
            builder.store(builder.add(builder.load(total), found), total)
        builder.store(builder.load(total), out, align=8)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, order, types.int64, types.int64, lanes), emit


@_with_literals
def _set_sum(typing_context: Any, target: Any, at: Any, left: Any, i: Any, right: Any, j: Any, lanes: Any) -> Any:
    """target[at] = left[i] + right[j]; rows of ``lanes`` words (a literal)."""
    width = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = (
            builder.load(_row(context, builder, signature, arguments, k, arguments[k + 1], width), align=8)
            for k in (2, 4)
        )
        out = _row(context, builder, signature, arguments, 0, arguments[1], width)
        builder.store(builder.add(a, b), out, align=8)
        return context.get_dummy_value()

    return types.void(target, types.int64, left, types.int64, right, types.int64, lanes), emit


@njit(**_FLAGS)
def _side_by_side(raw: U8, words: int, width: int, first: int, rows: U64, out: U64) -> None:
    """out[i, k] = word first + i of vector k; ``rows`` is scratch (lanes, m), zero in lanes that have no vector."""
    count, lanes = out.shape
    for k in range(raw.shape[0]):
        unpack(raw[k], words, width, first, rows[k, :count])
    done = 0
    if lanes == LANES:
        done = count - count % 8
        source, target = rows.reshape(-1).view(np.float64), out.reshape(-1).view(np.float64)
        for i in range(0, done, 8):
            _transpose8(target, 8 * i, 8, source, i, rows.shape[1])  # type: ignore[call-arg]
    for i in range(done, count):
        for k in range(lanes):
            out[i, k] = rows[k, i]


# Words of a block that are unpacked at once, so that a block's words side by side are all that fills the second-level
# cache.
_UNPACKED = 512

# Columns of the mask are taken in strips of _STRIP; each four of a strip, _QUARTER apart, are the digits of a number
# below 3^4 = 81 that picks from a table of their possible sums ("four Russians": Arlazarov et al., 1970). _TABLES such
# tables fit the first-level cache, the picks of _CHUNK rows the second.
_STRIP, _QUARTER, _TABLES, _CHUNK = 256, 64, 4, 512
#: Strips of a mask row.
STRIPS = N // _STRIP


@njit(**_FLAGS)
def _picks(mask: I8, first: int, out: U16) -> None:
    """Places in the tables for the strip from column ``first``: mask int8 (R, N), out uint16 (R·_QUARTER,)."""
    for r in range(mask.shape[0]):
        row = mask[r, first : first + _STRIP]
        for j in range(_QUARTER):
            low = np.int16(row[j]) + np.int16(3) * np.int16(row[j + _QUARTER])
            high = np.int16(row[j + 2 * _QUARTER]) + np.int16(3) * np.int16(row[j + 3 * _QUARTER])
            out[r * _QUARTER + j] = np.uint16(np.int16(40 + 81 * (j % _TABLES)) + low + np.int16(9) * high)


def _lane_kernels(lanes: int) -> tuple[Any, Any]:
    @njit(**_FLAGS)
    def sums_by_bin(
        raw: U8,
        words: int,
        width: int,
        order: U16,
        starts: I64,
        offsets: I64,
        fullest: I64,
        first: int,
        last: int,
        at: int,
        samples: int,
        out: U64,
    ) -> None:
        """Sums of words by bin over blocks first to last. See SUMS_BY_BIN."""
        height = out.shape[0]
        rows, body = np.zeros((lanes, _UNPACKED + 8), np.uint64), np.empty((N, lanes), np.uint64)
        total = np.zeros(lanes, np.uint64)
        for b in range(first, last):
            block = body[: min(N, samples - b * N)]
            for top in range(0, block.shape[0], _UNPACKED):
                strip = block[top : top + _UNPACKED]
                _side_by_side(raw, words, width, at + (b - first) * N + top, rows, strip)
                for lane in range(lanes):
                    total[lane] += rows[lane, : strip.shape[0]].sum()
            for r in range(height):
                _gather(out, r, block, order, starts[b * height + r], starts[b * height + r + 1], lanes)
        for f in range(fullest.shape[0]):
            for lane in range(lanes):
                rest = np.uint64(0)
                for r in range(offsets[f], offsets[f + 1]):
                    rest += out[r, lane]
                out[fullest[f], lane] = total[lane] - rest

    @njit(**_FLAGS)
    def sums_by_mask(raw: U8, words: int, width: int, mask: I8, first: int, last: int, out: U64) -> None:
        """Products with the mask's strips first to last. See SUMS_BY_MASK."""
        rows, head = np.zeros((lanes, _STRIP + 8), np.uint64), np.empty((_STRIP, lanes), np.uint64)
        table = np.empty((_TABLES * 81, lanes), np.uint64)
        picks = np.empty(_CHUNK * _QUARTER, np.uint16)
        for strip in range(first, last):
            _side_by_side(raw, words, width, strip * _STRIP, rows, head)
            for top in range(0, mask.shape[0], _CHUNK):
                height = min(_CHUNK, mask.shape[0] - top)
                _picks(mask[top : top + height], strip * _STRIP, picks)
                for j in range(0, _QUARTER, _TABLES):
                    for t in range(_TABLES):
                        base = 81 * t
                        for lane in range(lanes):
                            table[base, lane] = np.uint64(0)
                            for digit in range(4):
                                table[base, lane] -= head[j + t + digit * _QUARTER, lane]
                        power = 1
                        for digit in range(4):
                            for at in range(base + power, base + 3 * power):
                                _set_sum(table, at, table, at - power, head, j + t + digit * _QUARTER, lanes)
                            power *= 3
                    for r in range(height):
                        at = r * _QUARTER + j
                        _gather(out, top + r, table, picks, at, at + _TABLES, lanes)

    return sums_by_bin, sums_by_mask


_LANE_KERNELS = {lanes: _lane_kernels(lanes) for lanes in (1, 2, 4, LANES)}
#: Sums of words by bin for up to 1, 2, 4 or LANES vectors at once, by that number. Arguments: raw uint8 (K, bytes),
#: packed ciphertexts; words and bytes per word (int); order, starts, offsets and fullest of
#: :class:`fedlearn.crypto.matrix.Sorted`; first and last block of samples, where the first one's words start, number of
#: samples in all (int); out uint64 (R, lanes), zero on entry.
SUMS_BY_BIN = {lanes: kernels[0] for lanes, kernels in _LANE_KERNELS.items()}
#: Products of the mask with the first N words. Arguments as there: raw, words and bytes per word; mask int8 (R, N),
#: ternary; first and last strip of columns (int); out uint64 (R, lanes), added to.
SUMS_BY_MASK = {lanes: kernels[1] for lanes, kernels in _LANE_KERNELS.items()}


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
def noise(low: NDArray[np.uint32], high: U8, out: U64) -> None:
    """Centred binomial words from 40 random bits each: all arrays (m,)."""
    for i in range(out.shape[0]):
        out[i] = binomial40(low, high, i)
