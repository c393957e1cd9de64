"""The inner loops of private set intersection by transfers: digests, cuckoo hashing, rows of bits, matching, tables.

A *row* is 16 words of 32 bits, one cache line: the sender looks rows up at random, one for each ID and hash function.
Hashes are BLAKE2s-256 of one 64-byte block, worked on LANES at a time (:mod:`fedlearn.kernels.ot`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS
from fedlearn.kernels.ot import LANES, blake2s_lanes, transpose_block
from fedlearn.kernels.threads import CORES, ranges, spread

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

#: 32-bit words of a row.
ROW_WORDS = 16

#: Rows that are transposed at once.
BLOCK = 32 * LANES

#: Bytes of an ID that fit in one block beside its length.
SHORT = 4 * (ROW_WORDS - 1)

#: Words of a digest and of an OPRF value that are kept.
DIGEST_WORDS = 8
VALUE_WORDS = 3


# --- digests of IDs ----------------------------------------------------------------------------------


@njit(**_FLAGS)
def _digest_ids(offsets: I64, content: U8, tag: U32, first: int, last: int, out: U32) -> None:
    m = np.zeros((20, LANES), np.uint32)
    digest = np.empty((8, LANES), np.uint32)
    for w in range(4):
        m[16 + w, :] = tag[w]
    for start in range(first, last, LANES):
        count = min(LANES, last - start)
        m[:16] = 0
        for lane in range(count):
            begin, end = offsets[start + lane], offsets[start + lane + 1]
            m[0, lane] = np.uint32(end - begin)
            for k in range(min(end - begin, SHORT)):
                m[1 + (k >> 2), lane] |= np.uint32(content[begin + k]) << np.uint32(8 * (k & 3))
        blake2s_lanes(m, digest)  # type: ignore[call-arg]
        for lane in range(count):
            for w in range(DIGEST_WORDS):
                out[start + lane, w] = digest[w, lane]


def digest_ids(offsets: I64, content: U8, tag: U32) -> U32:
    """BLAKE2s-256 of each ID, salted with ``tag``: of its length (4 bytes, little-endian) and its bytes, zero-padded.

    Args:
        offsets: int64 (n + 1,), where in ``content`` each ID begins; an ID has at most SHORT bytes (what is beyond
            is not hashed).
        content: uint8, the IDs one after another.
        tag: uint32 (4,).

    Returns:
        uint32 (n, DIGEST_WORDS).
    """
    count = len(offsets) - 1
    out = np.empty((count, DIGEST_WORDS), np.uint32)
    spread(lambda part: _digest_ids(offsets, content, tag, part.start, part.stop, out), ranges(count, CORES))
    return out


# --- cuckoo hashing ----------------------------------------------------------------------------------


@njit(**_FLAGS)
def places(digests: U32, segment: int) -> I32:
    """The three bins of each ID: one in each third of 3·``segment`` bins, from words 4 to 6 of its digest.

    A word is scaled to the third by a multiplication: no bin's probability is off by more than a part in
    2^32/``segment``.

    Returns:
        int32 (n, 3).
    """
    out = np.empty((digests.shape[0], 3), np.int32)
    for i in range(digests.shape[0]):
        for k in range(3):
            scaled = (np.uint64(digests[i, 4 + k]) * np.uint64(segment)) >> np.uint64(32)
            out[i, k] = np.int32(np.int64(scaled) + k * segment)
    return out


@njit(**_FLAGS)
def insert(bins: I32, table: I32) -> int:
    """Place each item in one of its bins, one item to a bin, moving others along a shortest path of exchanges.

    The search is exhaustive (breadth first), so it fails only if no placement exists.

    Args:
        bins: int32 (n, 3), the bins of each item.
        table: int32 (B,), filled with the number of the item in each bin, -1 for none.

    Returns:
        -1, or the first item for which no placement of it and all before it exists.
    """
    table[:] = -1
    seen = np.full(table.shape[0], -1, np.int32)
    queue = np.empty(table.shape[0], np.int32)
    parent = np.empty(table.shape[0], np.int32)  # by bin: from where it was reached, -1 for the item's own bins
    for item in range(bins.shape[0]):
        head, tail, free = 0, 0, -1
        for k in range(3):
            at = bins[item, k]
            if seen[at] == item:
                continue
            seen[at], parent[at] = item, -1
            queue[tail] = at
            tail += 1
            if table[at] < 0:
                free = at
                break
        while free < 0 and head < tail:
            come = queue[head]
            head += 1
            for k in range(3):
                at = bins[table[come], k]
                if seen[at] == item:
                    continue
                seen[at], parent[at] = item, come
                queue[tail] = at
                tail += 1
                if table[at] < 0:
                    free = at
                    break
        if free < 0:
            return item
        while parent[free] >= 0:
            table[free] = table[parent[free]]
            free = parent[free]
        table[free] = item
    return -1


# --- rows --------------------------------------------------------------------------------------------


@njit(**_FLAGS)
def _gather_block(columns: U32, at: int, squares: U32, rows: U32, first: int) -> None:
    """Transpose one block of columns to BLOCK rows, from row ``first`` on. Row 16·r + l is the kernel's [r, l]."""
    transpose_block(columns, at, squares)
    for r in range(32):
        for lane in range(LANES):
            for m in range(ROW_WORDS):
                rows[first + r * LANES + lane, m] = squares[m, r, lane]


@njit(**_FLAGS)
def rows_of(columns: U32, first: int, last: int, rows: U32) -> None:
    """Rows of a bit matrix that is given by columns: blocks ``first`` to ``last``.

    Within a block of BLOCK rows their order is not that of the bits in a column, but always the same.

    Args:
        columns: uint32 (32·ROW_WORDS, words), a bit for each row.
        first, last: which blocks.
        rows: uint32 (BLOCK·blocks, ROW_WORDS), receives the rows.
    """
    squares = np.empty((ROW_WORDS, 32, LANES), np.uint32)
    for block in range(first, last):
        _gather_block(columns, block * LANES, squares, rows, block * BLOCK)


@njit(**_FLAGS)
def mask_rows(own: U32, other: U32, codes: U32, first: int, last: int, width: int, out: U8) -> None:
    """own ⊕ other ⊕ code of each row, its first ``width`` bytes.

    Args:
        own, other: uint32 (n, ROW_WORDS).
        codes: uint32 (4, n, 4): the code word of a row, 128 bits in each plane.
        first, last: which rows.
        width: bytes of a row on the wire.
        out: uint8 (n, width).
    """
    for j in range(first, last):
        for k in range(width):
            m, shift = k >> 2, np.uint32(8 * (k & 3))
            word = own[j, m] ^ other[j, m] ^ codes[m >> 2, j, m & 3]
            out[j, k] = np.uint8((word >> shift) & np.uint32(255))


@njit(**_FLAGS)
def unmask_rows(masked: U8, delta: U32, first: int, last: int, rows: U32) -> None:
    """rows ^= masked ∧ delta, in place: uint8 (n, width), uint32 (ROW_WORDS,), uint32 (n, ROW_WORDS)."""
    width = masked.shape[1]
    for j in range(first, last):
        for k in range(width):
            m, shift = k >> 2, np.uint32(8 * (k & 3))
            rows[j, m] ^= (np.uint32(masked[j, k]) << shift) & delta[m]


# --- values ------------------------------------------------------------------------------------------


@njit(**_FLAGS)
def own_values(rows: U32, first_bin: int, tag: U32, first: int, last: int, out: U32) -> None:
    """The OPRF of the item in each bin, at the receiver: BLAKE2s of its row, salted with tag and bin.

    Args:
        rows: uint32 (n, ROW_WORDS), of bins ``first_bin`` and on.
        first_bin: number of the first row's bin.
        tag: uint32 (3,).
        first, last: which rows; a multiple of LANES apart, or to the end.
        out: uint32 (n, VALUE_WORDS).
    """
    m = np.zeros((20, LANES), np.uint32)
    digest = np.empty((8, LANES), np.uint32)
    for w in range(3):
        m[16 + w, :] = tag[w]
    for start in range(first, last, LANES):
        count = min(LANES, last - start)
        for lane in range(count):
            m[19, lane] = np.uint32(first_bin + start + lane)
            for w in range(ROW_WORDS):
                m[w, lane] = rows[start + lane, w]
        blake2s_lanes(m, digest)  # type: ignore[call-arg]
        for lane in range(count):
            for w in range(VALUE_WORDS):
                out[start + lane, w] = digest[w, lane]


@njit(**_FLAGS)
def all_values(rows: U32, codes: U32, delta: U32, bins: I32, tag: U32, first: int, last: int, out: U8) -> None:
    """The OPRF of each item in each of its three bins, at the sender.

    Args:
        rows: uint32 (B, ROW_WORDS), the sender's row of each bin.
        codes: uint32 (4, n, 4), code words of the items.
        delta: uint32 (ROW_WORDS,).
        bins: int32 (n, 3).
        tag: uint32 (3,).
        first, last: which items.
        out: uint8 (n, 3·length), the first ``length`` bytes of the three values of each.
    """
    length = out.shape[1] // 3
    m = np.zeros((20, LANES), np.uint32)
    digest = np.empty((8, LANES), np.uint32)
    for w in range(3):
        m[16 + w, :] = tag[w]
    for start in range(first, last, LANES):
        count = min(LANES, last - start)
        for k in range(3):
            for lane in range(count):
                item = start + lane
                at = bins[item, k]
                m[19, lane] = np.uint32(at)
                for w in range(ROW_WORDS):
                    m[w, lane] = rows[at, w] ^ (codes[w >> 2, item, w & 3] & delta[w])
            blake2s_lanes(m, digest)  # type: ignore[call-arg]
            for lane in range(count):
                for b in range(length):
                    word = digest[b >> 2, lane] >> np.uint32(8 * (b & 3))
                    out[start + lane, k * length + b] = np.uint8(word & np.uint32(255))


# --- matching ----------------------------------------------------------------------------------------


@njit(**_FLAGS)
def index_values(values: U32, table: I32, top: int, slots: I32) -> None:
    """Enter the value of each full bin into ``slots``, by its first word: open addressing, linear probing.

    Args:
        values: uint32 (B, VALUE_WORDS), already cut to their length.
        table: int32 (B,), the item in each bin, -1 for none.
        top: right shift of a word to a slot, 32 - log2 of the number of slots.
        slots: int32 (2^k,), filled with -1 or the number of a bin.
    """
    slots[:] = -1
    wrap = slots.shape[0] - 1
    for at in range(values.shape[0]):
        if table[at] >= 0:
            slot = np.int64(values[at, 0] >> np.uint32(top))
            while slots[slot] >= 0:
                slot = (slot + 1) & wrap
            slots[slot] = at


@njit(**_FLAGS)
def match_values(received: U8, values: U32, top: int, slots: I32, segment: int, out: I32) -> None:
    """For each row of three received values, the bin whose own value equals the one for that bin's third.

    Args:
        received: uint8 (n, 3·length).
        values, top, slots: as for :func:`index_values`.
        segment: bins of a third.
        out: int32 (n,), the bin; -1 for none, -2 where two bins fit.
    """
    length = received.shape[1] // 3
    wrap = slots.shape[0] - 1
    word = np.empty(VALUE_WORDS, np.uint32)
    for row in range(received.shape[0]):
        found = np.int32(-1)
        for k in range(3):
            word[:] = 0
            for b in range(length):
                word[b >> 2] |= np.uint32(received[row, k * length + b]) << np.uint32(8 * (b & 3))
            slot = np.int64(word[0] >> np.uint32(top))
            while slots[slot] >= 0:
                at = slots[slot]
                same = values[at, 0] == word[0] and values[at, 1] == word[1] and values[at, 2] == word[2]
                if same and at // segment == k:
                    found = np.int32(-2) if found != -1 else at
                slot = (slot + 1) & wrap
        out[row] = found


# --- a table that gives each key its value -----------------------------------------------------------

#: Slots of a key, one in each part of the table: words of the item's 512-bit code, five for each of its three keys.
SPREAD = 5


@njit(**_FLAGS)
def _slot(codes: U32, item: int, third: int, part: int, segment: int) -> int:
    """The slot in ``part`` of the key (item, third)."""
    word = SPREAD * third + part
    scaled = (np.uint64(codes[word >> 2, item, word & 3]) * np.uint64(segment)) >> np.uint64(32)
    return int(np.int64(scaled)) + part * segment


@njit(**_FLAGS)
def peel(codes: U32, segment: int, order: I32, owner: I32) -> int:
    """Remove keys one after another, each from a slot that no other key left has.

    Args:
        codes: uint32 (4, n, 4), of n items with three keys each: key 3i + k is (i, k).
        segment: slots of each of SPREAD parts.
        order: int32 (3n,), receives the keys in the order in which they were removed.
        owner: int32 (3n,), receives the slot of each of these.

    Returns:
        How many were removed; fewer than 3n if each slot of those left is shared.
    """
    size = SPREAD * segment
    degree, mixed = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for item in range(codes.shape[1]):
        for third in range(3):
            for part in range(SPREAD):
                at = _slot(codes, item, third, part, segment)
                degree[at] += 1
                mixed[at] ^= np.int32(3 * item + third)
    stack = np.empty(size, np.int32)
    height, done = 0, 0
    for at in range(size):
        if degree[at] == 1:
            stack[height] = at
            height += 1
    while height:
        height -= 1
        free = stack[height]
        if degree[free] != 1:
            continue
        key = np.int64(mixed[free])
        order[done], owner[done] = key, free
        done += 1
        for part in range(SPREAD):
            at = _slot(codes, key // 3, key % 3, part, segment)
            degree[at] -= 1
            mixed[at] ^= np.int32(key)
            if degree[at] == 1:
                stack[height] = at
                height += 1
    return done


@njit(**_FLAGS)
def fill(codes: U32, segment: int, order: I32, owner: I32, values: U64, table: U64) -> None:
    """Set each key's own slot so that its slots add up (⊕) to its value, those removed last first.

    Args:
        codes, segment, order, owner: as for :func:`peel`.
        values: uint64 (3n,).
        table: uint64 (SPREAD·segment,), random; changed in place.
    """
    for at in range(order.shape[0] - 1, -1, -1):
        key, own = np.int64(order[at]), owner[at]
        total = values[key]
        for part in range(SPREAD):
            slot = _slot(codes, key // 3, key % 3, part, segment)
            if slot != own:
                total ^= table[slot]
        table[own] = total


@njit(**_FLAGS)
def look_up(codes: U32, thirds: U8, segment: int, table: U64, first: int, last: int, out: U64) -> None:
    """out[i] ^= the sum (⊕) of the slots of key (i, thirds[i]), for items ``first`` to ``last``."""
    for i in range(first, last):
        for part in range(SPREAD):
            out[i] ^= table[_slot(codes, i, thirds[i], part, segment)]
