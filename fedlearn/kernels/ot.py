"""The inner loops of oblivious transfer (:mod:`fedlearn.crypto.ot`): bit-matrix transposition, hashes, one bit a row.

The extension holds a matrix of code bits by columns (one bit stream each) and hashes it by rows. Both happen block by
block, 512 rows at a time in the first-level cache: 16 words of 32 bits of the same column lie side by side in
:data:`LANES`, so that each step of the transposition and of the hash is one operation on a 512-bit register (two or
four on smaller ones). Lane l of step b holds row 32·l + b of the block; so what comes out of step b is bit b of 16
output words, and no row is ever gathered or scattered.

Both hashes are a single call of a compression function on a message of at most 64 bytes: BLAKE3 (O'Connor, Aumasson,
Neves and Wilcox-O'Hearn, 2020, https://github.com/BLAKE3-team/BLAKE3-specs), unkeyed, for the pads of bits here, and
BLAKE2s (RFC 7693), salted, in :mod:`fedlearn.kernels.psi`. They share the round; BLAKE3 has seven, BLAKE2s ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS
from fedlearn.kernels.threads import CORES, ranges, spread

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

#: 32-bit words that are worked on side by side: a 512-bit register.
LANES = 16

#: 32-bit words of one row: codes have at most 256 bits.
WORDS = 8

#: Bytes of each column in one block; columns are padded to whole blocks.
BLOCK_BYTES = 4 * LANES

_I32 = ir.IntType(32)
_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
# How BLAKE3 permutes the message from round to round, and its flags of a block that is first, last and the root.
_PERMUTED = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_ONLY_BLOCK = 1 | 2 | 8
# The state words that the four column steps and the four diagonal steps of a round mix.
_MIXED = tuple((i, 4 + (i + d) % 4, 8 + (i + 2 * d) % 4, 12 + (i + 3 * d) % 4) for d in range(2) for i in range(4))


def _constant(value: int) -> Any:
    return ir.Constant(_I32, value & 0xFFFFFFFF)


_VECTOR = ir.VectorType(_I32, LANES)


def _all_lanes(value: int) -> Any:
    return ir.Constant(_VECTOR, [value & 0xFFFFFFFF] * LANES)


def _mix(builder: Any, v: list[Any], m: list[Any], schedule: Sequence[int], constant: Any) -> None:
    """One round: ``v`` is mixed with the words of ``m`` in the order of ``schedule``; words beyond ``m`` are zero."""

    def rotate(word: Any, right: int) -> Any:
        return builder.or_(builder.lshr(word, constant(right)), builder.shl(word, constant(32 - right)))

    for step, (a, b, c, d) in enumerate(_MIXED):
        for half, (first, second) in enumerate(((16, 12), (8, 7))):
            taken = schedule[2 * step + half]
            v[a] = builder.add(v[a], v[b])
            if taken < len(m):
                v[a] = builder.add(v[a], m[taken])
            v[d] = rotate(builder.xor(v[d], v[a]), first)
            v[c] = builder.add(v[c], v[d])
            v[b] = rotate(builder.xor(v[b], v[c]), second)


def _blake2s(builder: Any, m: list[Any], parameters: list[Any], constant: Any) -> list[Any]:
    """The eight words of a BLAKE2s-256 digest, as straight-line code over words, or over vectors of words.

    Args:
        builder: where the code goes.
        m: up to 16 words of the message, which they fill.
        parameters: eight words of the parameter block (RFC 7693 2.5).
        constant: makes a constant of the kind that the words are.
    """
    h = [builder.xor(constant(iv), p) for iv, p in zip(_IV, parameters, strict=True)]
    v = [*h, *(constant(x) for x in _IV)]
    v[12] = constant(_IV[4] ^ 4 * len(m))  # bytes so far
    v[14] = constant(~_IV[6])  # the last block
    for schedule in _SIGMA:
        _mix(builder, v, m, schedule, constant)
    return [builder.xor(builder.xor(v[i], v[i + 8]), h[i]) for i in range(8)]


def _blake3(builder: Any, m: list[Any], constant: Any) -> list[Any]:
    """As :func:`_blake2s`, the first eight words of BLAKE3: one block that is a whole message, without a key."""
    v = [constant(x) for x in (*_IV, *_IV[:4], 0, 0, 4 * len(m), _ONLY_BLOCK)]  # counter 0, bytes, flags
    schedule: Sequence[int] = range(16)
    for _ in range(7):
        _mix(builder, v, m, schedule, constant)
        schedule = [schedule[i] for i in _PERMUTED]
    return [builder.xor(v[i], v[i + 8]) for i in range(8)]


#: First parameter word: digest of 32 bytes, no key, fanout and depth 1.
_UNKEYED = 0x01010020


@intrinsic
def blake3(typing_context: Any, message: Any) -> Any:
    """First word of the BLAKE3 digest of a message of up to 16 little-endian 32-bit words, given as a tuple.

    Emitted as straight-line code, so that LLVM turns a loop around it into vector code and drops what the first word
    of the digest does not need.
    """
    count = len(message)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = [builder.extract_value(arguments[0], i) for i in range(count)]
        words = [w if w.type == _I32 else builder.trunc(w, _I32) for w in words]  # Numba widens uint32 to uint64
        return _blake3(builder, words, _constant)[0]

    return types.uint32(message), emit


@intrinsic
def blake2s_lanes(typing_context: Any, block: Any, digests: Any) -> Any:
    """BLAKE2s-256 of LANES messages of 64 bytes each, salted.

    ``block`` is uint32 (20, LANES): 16 words of message, then two of salt and two of personalisation; ``digests``,
    uint32 (8, LANES), receives the digests.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(kind: Any, array: Any, row: int) -> Any:
            index = [ir.Constant(ir.IntType(64), i) for i in (row, 0)]
            item = cgutils.get_item_pointer(context, builder, kind, array, index)
            return builder.bitcast(item, _VECTOR.as_pointer())

        source = context.make_array(block)(context, builder, arguments[0])
        target = context.make_array(digests)(context, builder, arguments[1])
        words = [builder.load(place(block, source, i), align=4) for i in range(20)]
        parameters = [_all_lanes(_UNKEYED), *[_all_lanes(0)] * 3, *words[16:]]
        for i, word in enumerate(_blake2s(builder, words[:16], parameters, _all_lanes)):
            builder.store(word, place(digests, target, i), align=4)
        return context.get_dummy_value()

    return types.void(block, digests), emit


@intrinsic
def _transpose_squares(typing_context: Any, columns: Any, first: Any, at: Any, rows: Any, square: Any) -> Any:
    """Transpose LANES squares of 32 × 32 bits: words ``at``, at + 1, ... of 32 columns, into ``rows[square]``.

    The recursion of Hacker's Delight 7-3 (swap the off-diagonal quarters, then those of the quarters, ...), least
    significant bit first. Vectors are spelled out: left to itself, LLVM unrolls loops as short as these to scalars.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(kind: Any, array: Any, *index: Any) -> Any:
            item = cgutils.get_item_pointer(context, builder, kind, array, index)
            return builder.bitcast(item, _VECTOR.as_pointer())

        source = context.make_array(columns)(context, builder, arguments[0])
        target = context.make_array(rows)(context, builder, arguments[3])
        index = [ir.Constant(arguments[1].type, i) for i in range(32)]
        words = [
            builder.load(place(columns, source, builder.add(arguments[1], i), arguments[2]), align=4) for i in index
        ]
        for step, mask in ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
            for i in (i for i in range(32) if not i & step):
                low, high = words[i], words[i + step]
                moved = builder.and_(builder.xor(builder.lshr(low, _all_lanes(step)), high), _all_lanes(mask))
                words[i] = builder.xor(low, builder.shl(moved, _all_lanes(step)))
                words[i + step] = builder.xor(high, moved)
        for i, word in zip(index, words, strict=True):
            builder.store(word, place(rows, target, arguments[4], i, index[0]), align=4)
        return context.get_dummy_value()

    return types.void(columns, types.intp, types.intp, rows, types.intp), emit


@njit(**_FLAGS)
def transpose_block(columns: U32, at: int, rows: U32) -> None:
    """Transpose one block of a bit matrix.

    Args:
        columns: uint32 (32·K, words): bit r of word g of column c is the bit of row 32·g + r.
        at: first word of the block, which has LANES words of each column.
        rows: uint32 (K or more, 32, LANES), receives at [m, r, l] bits 32·m to 32·m + 31 of row 32·(at + l) + r.
    """
    for m in range(columns.shape[0] // 32):
        _transpose_squares(columns, 32 * m, at, rows, m)  # type: ignore[call-arg]


@njit(**_FLAGS)
def _add_pads(columns: U32, offsets: U32, tag: U32, batch: int, first: int, last: int, out: U32) -> None:
    """As :func:`add_pads` for the words from ``first`` to ``last`` of each column."""
    rows = np.zeros((WORDS, 32, LANES), np.uint32)
    pads = np.empty(LANES, np.uint32)
    t0, t1, t2, t3, call = tag[0], tag[1], tag[2], tag[3], np.uint32(batch)
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for at in range(first, last, LANES):
        transpose_block(columns, at, rows)
        for w in range(offsets.shape[0]):
            o = offsets[w]
            o0, o1, o2, o3, o4, o5, o6, o7 = o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]
            pads[:] = 0
            for b in range(32):
                for lane in range(LANES):
                    digest = blake3(  # type: ignore[call-arg, var-annotated]
                        (
                            t0,
                            t1,
                            t2,
                            t3,
                            call,
                            np.uint32(32 * (at + lane) + b),
                            r0[b, lane] ^ o0,
                            r1[b, lane] ^ o1,
                            r2[b, lane] ^ o2,
                            r3[b, lane] ^ o3,
                            r4[b, lane] ^ o4,
                            r5[b, lane] ^ o5,
                            r6[b, lane] ^ o6,
                            r7[b, lane] ^ o7,
                        )
                    )
                    pads[lane] |= np.uint32((digest & np.uint32(1)) << np.uint32(b))
            for lane in range(LANES):
                out[w, at + lane] ^= pads[lane]


def add_pads(columns: U8, offsets: U32, tag: U32, batch: int, out: U8) -> None:
    """XOR hash bits into ``out``: for row j and offset w, bit 0 of BLAKE3(tag, batch, j, row_j ⊕ offset_w).

    The hashed message has 56 bytes: the tag (16), batch and row (4 each, little-endian), the row's bits (32, zero
    beyond the columns).

    Args:
        columns: uint8 (32·K, bytes), K ≤ WORDS: bit r of byte g of column c is the bit of row 8·g + r. The bytes of
            a column are a multiple of BLOCK_BYTES.
        offsets: uint32 (s, WORDS), XORed to the rows before hashing.
        tag: uint32 (4,), the session's.
        batch: number of the batch of rows in the session, below 2^32.
        out: uint8 (s, bytes), one bit for each row, XORed to.
    """
    wide, words = columns.view(np.uint32), out.view(np.uint32)

    def piece(blocks: range) -> None:
        _add_pads(wide, offsets, tag, batch, blocks.start * LANES, blocks.stop * LANES, words)

    spread(piece, ranges(columns.shape[1] // BLOCK_BYTES, 4 * CORES))


@njit(**_FLAGS)
def mask_columns(zeros: U8, zeros_at: I64, ones: U8, ones_at: I64, columns: U8, masks: U8) -> None:
    """The receiver's columns: ``columns`` = zeros, ``masks`` = zeros ⊕ ones.

    Args:
        zeros, ones: uint8 (columns, bytes), both streams of each column.
        zeros_at, ones_at: int64 (columns,), where a column's part of its stream starts.
        columns: uint8 (columns or more, width or more), receives the first stream.
        masks: uint8 (columns, width).
    """
    width = masks.shape[1]
    for i in range(masks.shape[0]):
        zero, one = zeros[i, zeros_at[i] : zeros_at[i] + width], ones[i, ones_at[i] : ones_at[i] + width]
        own, out = columns[i], masks[i]
        for j in range(width):
            own[j] = zero[j]
            out[j] = zero[j] ^ one[j]


@njit(**_FLAGS)
def add_words(words: U8, masks: U8) -> None:
    """XOR code words to ``masks``, uint8 (columns, width); words uint8 (period, width), columns that repeat."""
    for i in range(masks.shape[0]):
        word, out = words[i % words.shape[0]], masks[i]
        for j in range(masks.shape[1]):
            out[j] ^= word[j]


@njit(**_FLAGS)
def unmask_columns(streams: U8, at: I64, masked: U8, choices: U8, columns: U8) -> None:
    """The sender's columns: its stream of each, ⊕ the masked column where it chose the second stream.

    Args:
        streams, at: as for :func:`mask_columns`.
        masked: uint8 (columns, width), received.
        choices: uint8 (columns or more,), 0 or 1: the sender's secret. No branch depends on it.
        columns: uint8 (columns or more, width or more).
    """
    width = masked.shape[1]
    for i in range(masked.shape[0]):
        stream, taken = streams[i, at[i] : at[i] + width], np.uint8(0) - choices[i]
        own, received = columns[i], masked[i]
        for j in range(width):
            own[j] = stream[j] ^ (received[j] & taken)


@njit(**_FLAGS)
def add_chosen(bits: U8, choices: U8, out: U8) -> None:
    """XOR to each row of ``out`` its chosen bit.

    Args:
        bits: uint8 (s, bytes), one bit for each row and option.
        choices: uint8 (n,); a choice of s or more takes nothing and sets the row's bit to zero.
        out: uint8 (⌈n/8⌉,), XORed to; bits beyond n are set to zero.
    """
    options, count = bits.shape[0], choices.shape[0]
    for g in range(out.shape[0]):
        taken, kept = np.uint8(0), np.uint8(0)
        for r in range(min(8, count - 8 * g)):
            choice = choices[8 * g + r]
            if choice < options:
                taken |= bits[choice, g] & np.uint8(1 << r)
                kept |= np.uint8(1 << r)
        out[g] = (out[g] ^ taken) & kept
