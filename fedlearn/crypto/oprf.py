"""An oblivious pseudorandom function for every bin of a table, from oblivious-transfer extension.

The batched OPRF of Kolesnikov, Kumaresan, Rosulek and Trieu (CCS 2016). The *receiver* has one item x_b for each bin b
and learns F_b(x_b); the *sender* can compute every F_b and learns nothing. It is the extension of
:mod:`fedlearn.crypto.ot` with a code of as many words as there are items::

    receiver                                              sender, with Δ from the base transfers
      u_b = t_b ⊕ t'_b ⊕ C(x_b)                   ──►     q_b = g_b ⊕ (u_b ∧ Δ) = t_b ⊕ (C(x_b) ∧ Δ)
      F_b(x_b) = hash(b, t_b)                             F_b(y) = hash(b, q_b ⊕ (C(y) ∧ Δ))

where t, t' and g are rows of the streams that the seeds give. C is four AES-128 permutations of the item under keys
that both sides derive from the base transfers, cut to :func:`code_bits`: a pseudorandom code. Two given items are
closer than :data:`SECURITY` with the probability that a fair coin shows fewer heads in so many throws; the length is
such that over all pairs that meet (each of the sender's three values of an item with the bin's item) this is below
2^-STATISTICAL. Hence for y ≠ x_b the receiver would have to guess 128 bits of Δ: F_b(y) is random to it, for BLAKE2s
(salted with session and bin) a random oracle, or correlation-robust in the paper's sense.

Items are 128-bit digests, so that among n of them two coincide with probability n^2 2^-129.

Semi-honest only. A receiver that sends rows which are no code words can learn bits of Δ from values of items that it
knows the sender to have; with Δ it can evaluate every F_b alone, without bound.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedlearn.crypto import cuckoo
from fedlearn.crypto.cuckoo import STATISTICAL
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.ot import SECURITY
from fedlearn.kernels import psi as kernel
from fedlearn.kernels.threads import CORES, ranges, spread

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
B1 = NDArray[np.bool_]

_ITEM_WORDS = 4
_LONG = b"\xff" * (kernel.SHORT - 32)  # begins no UTF-8 text; the digest of a longer ID follows it


@dataclass(frozen=True)
class Plan:
    """Sizes that both sides compute from the lengths of their lists.

    Attributes:
        receiver: IDs of the receiver, at most.
        sender: IDs of the sender.
        segment: bins of each third of the receiver's table.
        bits: length of a code word, a multiple of 8; as many base transfers are needed.
        value_bytes: bytes of an OPRF value on the wire: 2^-STATISTICAL that any of receiver · sender pairs coincides.
    """

    receiver: int
    sender: int
    segment: int
    bits: int
    value_bytes: int

    @classmethod
    def of(cls, receiver: int, sender: int) -> Plan:
        """The plan for two lists of these lengths."""
        value_bits = STATISTICAL + math.log2(receiver) + math.log2(sender)
        return cls(
            receiver, sender, cuckoo.segment_for(receiver), code_bits(3 * sender), min(math.ceil(value_bits / 8), 12)
        )

    @property
    def bins(self) -> int:
        """Bins of the receiver's table."""
        return 3 * self.segment

    @property
    def row_bytes(self) -> int:
        """Bytes of a masked row on the wire."""
        return self.bits // 8


@lru_cache
def code_bits(pairs: int) -> int:
    """Length of a random code in which ``pairs`` pairs of words all differ in SECURITY bits, but for 2^-STATISTICAL.

    Raises:
        ValueError: no code word that fits a row is long enough.
    """
    for bits in range(2 * SECURITY, 32 * kernel.ROW_WORDS + 1, 8):
        close = sum(math.comb(bits, distance) for distance in range(SECURITY))
        if pairs * close << STATISTICAL <= 1 << bits:
            return bits
    raise ValueError(f"{pairs} evaluations are too many for a row of {32 * kernel.ROW_WORDS} bits")


# --- items -------------------------------------------------------------------------------------------


def digests(ids: pa.BinaryArray, tag: bytes) -> U32:
    """Each ID's digest under a tag of 16 bytes: four words that stand for the ID, and four that choose its bins.

    Args:
        ids: binary or large_binary (n,), without nulls.
        tag: both sides have the same.

    Returns:
        uint32 (n, 8).
    """
    ids = ids.cast(pa.large_binary())
    ids = _shortened(ids)
    _, offsets, content = ids.buffers()
    ends = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    data = np.frombuffer(content, np.uint8) if content else np.zeros(0, np.uint8)
    return kernel.digest_ids(ends, data, np.frombuffer(tag, "<u4").astype(np.uint32))


def _shortened(ids: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """The same, with a marked digest in place of every ID that is longer than one block takes."""
    lengths = np.diff(np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1])
    if lengths.max(initial=0) <= kernel.SHORT:
        return ids
    mask = pa.array(lengths > kernel.SHORT)
    marked = [_LONG + hashlib.blake2s(one).digest() for one in ids.filter(mask).to_pylist()]
    return pc.replace_with_mask(ids, mask, pa.array(marked, pa.large_binary()))


def draw_items(count: int) -> U32:
    """Digests of nobody: uint32 (count, 8), for bins and rows that only fill up."""
    return Draws().bytes(32 * count).view(np.uint32).reshape(count, 8)


def codes(items: U32, tag: bytes) -> U32:
    """C of each item uint32 (n, 4), in planes of 128 bits: uint32 (4, n, 4)."""
    out = np.empty((4, len(items), _ITEM_WORDS), np.uint32)
    if not len(items):
        return out
    source = memoryview(np.ascontiguousarray(items)).cast("B")  # type: ignore[arg-type]

    def plane(k: int) -> None:
        key = hashlib.sha256(b"fedlearn/1 oprf code" + tag + bytes([k])).digest()[:16]
        cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (a permutation of single blocks)
        out[k] = np.frombuffer(cipher.update(source), np.uint32).reshape(-1, _ITEM_WORDS)

    spread(plane, range(4))
    return out


# --- the two ends ------------------------------------------------------------------------------------


class End:
    """What both ends have: streams of columns in step, and the salt of the hash."""

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.salt = np.frombuffer(tag[:12], "<u4").astype(np.uint32)
        self.bin = 0  # the next piece's first

    def rows(self, streams: list[Draws], count: int) -> U32:
        """The next ``count`` rows of the matrix whose columns the streams give: uint32 (count, ROW_WORDS)."""
        blocks = -(-count // kernel.BLOCK)
        width = blocks * kernel.BLOCK // 8
        columns = np.zeros((32 * kernel.ROW_WORDS, width), np.uint8)

        def fill(part: range) -> None:
            for i in part:
                columns[i] = streams[i].bytes(width)

        spread(fill, ranges(len(streams), CORES))
        out = np.empty((blocks * kernel.BLOCK, kernel.ROW_WORDS), np.uint32)
        wide = columns.view(np.uint32)
        spread(lambda part: kernel.rows_of(wide, part.start, part.stop, out), ranges(blocks, CORES))
        return out[:count]


class Receiver(End):
    """The receiver's end: piece by piece, in step with the sender.

    Args:
        tag: 16 bytes, from :func:`fedlearn.crypto.ot.offer`.
        seeds: both seeds of ``plan.bits`` base transfers.
        plan: agreed sizes.
    """

    def __init__(self, tag: bytes, seeds: list[tuple[bytes, bytes]], plan: Plan) -> None:
        super().__init__(tag)
        self.plan = plan
        self._zero = [Draws(zero) for zero, _ in seeds]
        self._one = [Draws(one) for _, one in seeds]

    def ask(self, items: U32) -> tuple[bytes, U32]:
        """Masked code words of the items in the next bins, and their values.

        Args:
            items: uint32 (n, 8), digests, one for each bin; n is a multiple of BLOCK, but for the last piece.

        Returns:
            n · ``plan.row_bytes`` bytes to send; F of each, uint32 (n, VALUE_WORDS), cut to ``plan.value_bytes``.
        """
        count, width = len(items), self.plan.row_bytes
        own, other = self.rows(self._zero, count), self.rows(self._one, count)
        words = codes(items[:, :_ITEM_WORDS], self.tag)
        masked = np.empty((count, width), np.uint8)
        values = np.empty((count, kernel.VALUE_WORDS), np.uint32)

        def work(part: range) -> None:
            kernel.mask_rows(own, other, words, part.start, part.stop, width, masked)
            kernel.own_values(own, self.bin, self.salt, part.start, part.stop, values)

        spread(work, ranges(count, CORES))
        self.bin += count
        values.view(np.uint8).reshape(count, -1)[:, self.plan.value_bytes :] = 0
        return masked.tobytes(), values


class Sender(End):
    """The sender's end: takes all pieces, then evaluates.

    Args:
        tag: 16 bytes, from :func:`fedlearn.crypto.ot.accept`.
        choices: bool (``plan.bits``,), Δ.
        seeds: the chosen seeds.
        plan: agreed sizes.
    """

    def __init__(self, tag: bytes, choices: B1, seeds: list[bytes], plan: Plan) -> None:
        super().__init__(tag)
        self.plan = plan
        self._streams = [Draws(seed) for seed in seeds]
        self._delta = np.zeros(kernel.ROW_WORDS, np.uint32)
        self._delta.view(np.uint8)[: plan.row_bytes] = np.packbits(choices, bitorder="little")
        self._rows = np.empty((plan.bins, kernel.ROW_WORDS), np.uint32)

    def take(self, masked: bytes) -> None:
        """The next piece of the receiver's rows.

        Raises:
            ValueError: not whole rows, or more than the plan's bins.
        """
        count, rest = divmod(len(masked), self.plan.row_bytes)
        if rest or not count or self.bin + count > self.plan.bins:
            raise ValueError(f"{len(masked)} bytes are not rows of {self.plan.bins} bins")
        rows = self._rows[self.bin : self.bin + count]
        rows[:] = self.rows(self._streams, count)
        received = np.frombuffer(masked, np.uint8).reshape(count, -1)
        spread(
            lambda part: kernel.unmask_rows(received, self._delta, part.start, part.stop, rows), ranges(count, CORES)
        )
        self.bin += count

    def values(self, items: U32) -> bytes:
        """F of some items, each in its three bins, once all pieces are taken.

        Args:
            items: uint32 (n, 8), digests, in the order in which their values are to be sent.

        Returns:
            n · 3 · ``plan.value_bytes`` bytes.
        """
        words, bins = codes(items[:, :_ITEM_WORDS], self.tag), kernel.places(items, self.plan.segment)
        out = np.empty((len(items), 3 * self.plan.value_bytes), np.uint8)

        def work(part: range) -> None:
            kernel.all_values(self._rows, words, self._delta, bins, self.salt, part.start, part.stop, out)

        spread(work, ranges(len(items), CORES))
        return out.tobytes()


# --- matching ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """The receiver's items in their bins.

    Attributes:
        items: uint32 (n, 8), digests.
        table: int32 (B,), the item in each bin, -1 for none.
    """

    items: U32
    table: I32

    def piece(self, first: int, last: int) -> U32:
        """Digests for the bins from ``first`` to ``last``; an empty bin has a digest of nobody."""
        table = self.table[first:last]
        out = draw_items(len(table))
        full = table >= 0
        out[full] = self.items[table[full]]
        return out


def place(items: U32, plan: Plan) -> Placed | None:
    """Cuckoo hashing of the receiver's items uint32 (n, 8), n ≤ ``plan.receiver``; None if no placement exists."""
    table = np.empty(plan.bins, np.int32)
    stuck = kernel.insert(kernel.places(items, plan.segment), table)
    return Placed(items, table) if stuck < 0 else None


class Index:
    """The receiver's values, to look the sender's up in.

    Args:
        values: uint32 (B, VALUE_WORDS), of all bins.
        table: int32 (B,), the item in each bin, -1 for none.
        segment: bins of a third.
    """

    def __init__(self, values: U32, table: I32, segment: int) -> None:
        bits = max(int(2 * np.count_nonzero(table >= 0)).bit_length(), 4)
        self._values, self._segment, self._top = values, segment, 32 - bits
        self._slots = np.empty(1 << bits, np.int32)
        kernel.index_values(values, table, self._top, self._slots)

    def match(self, received: U8) -> I32:
        """The bin that holds the same item as each row: int32 (n,), -1 for none, -2 where two bins fit.

        Args:
            received: uint8 (n, 3 · value_bytes), from :meth:`Sender.values`.
        """
        out = np.empty(len(received), np.int32)

        def work(part: range) -> None:
            kernel.match_values(
                received[part.start : part.stop], self._values, self._top, self._slots, self._segment,
                out[part.start : part.stop],
            )  # fmt: skip

        spread(work, ranges(len(received), CORES))
        return out
