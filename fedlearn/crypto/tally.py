"""How many of n shared bits are one: each side has a bit x, y of every row, and they learn the sum of x ⊕ y, no more.

Gilboa's product (CRYPTO 1999) by correlated oblivious transfer: x ⊕ y = y + x(1 - 2y), and for each row the receiver's
bit x chooses between two numbers of the sender, all modulo 2^32::

    receiver, x                                            sender, y, with Δ from the base transfers
      u = t ⊕ t' ⊕ (x, x, ..., x)                 ──►       q = t ⊕ (x ∧ Δ), so that F(0) = hash(q), F(1) = hash(q ⊕ Δ)
      v = F(x) + x·c                              ◄──       c = F(0) + (1 - 2y) - F(1)
        = F(0) + x(1 - 2y)
      Σ v + total = Σ (x ⊕ y)                     ◄──       total = Σ y - Σ F(0)

It is the extension of :mod:`fedlearn.crypto.oprf` with the repetition code of :data:`SECURITY` bits for two options
(Ishai, Kilian, Nissim and Petrank, CRYPTO 2003), on seeds derived from the same base transfers. To the receiver each
F(1 - x) is random, so each c is, and ``total`` tells the sum and nothing else. The sender sees masked rows only. The
hash is salted apart from that of any other use. Semi-honest only.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.draws import Draws
from fedlearn.crypto.oprf import B1, U8, U32, End
from fedlearn.crypto.ot import SECURITY
from fedlearn.kernels import psi as kernel
from fedlearn.kernels.threads import CORES, ranges, spread

#: Bytes of a row on the wire, and of a correction.
ROW_BYTES = SECURITY // 8
SUM_BYTES = 4

_BITS = NDArray[np.uint8]  # one bit a byte


def _derived(what: bytes, secret: bytes) -> bytes:
    return hashlib.sha256(b"fedlearn/1 tally " + what + secret).digest()


def _stream(seed: bytes) -> Draws:
    return Draws(_derived(b"seed", seed))


class _End(End):
    def __init__(self, tag: bytes) -> None:
        super().__init__(_derived(b"tag", tag)[:16])
        self.sum = 0

    def _add(self, numbers: U32) -> None:
        self.sum = (self.sum + int(numbers.sum(dtype=np.uint64))) % 2**32

    def _hashed(self, rows: U32) -> U32:
        """One word of the hash of each row: uint32 (n,)."""
        out = np.empty((len(rows), kernel.VALUE_WORDS), np.uint32)
        spread(
            lambda part: kernel.own_values(rows, self.bin, self.salt, part.start, part.stop, out),
            ranges(len(rows), CORES),
        )
        return np.ascontiguousarray(out[:, 0])


class Receiver(_End):
    """The receiver's end: piece by piece, in step with the sender.

    Args:
        tag: 16 bytes that both sides have, of this session alone.
        seeds: both seeds of SECURITY base transfers or more.
    """

    def __init__(self, tag: bytes, seeds: list[tuple[bytes, bytes]]) -> None:
        super().__init__(tag)
        self._zero = [_stream(zero) for zero, _ in seeds[:SECURITY]]
        self._one = [_stream(one) for _, one in seeds[:SECURITY]]

    def ask(self, bits: _BITS) -> tuple[bytes, U32]:
        """Masked rows of bits x uint8 (n,), to send; and F(x), uint32 (n,), to keep for :meth:`take`."""
        count = len(bits)
        own, other = self.rows(self._zero, count), self.rows(self._one, count)
        words = np.zeros((4, count, 4), np.uint32)
        words[0] = (np.uint32(0) - bits.astype(np.uint32))[:, None]
        masked = np.empty((count, ROW_BYTES), np.uint8)
        spread(
            lambda part: kernel.mask_rows(own, other, words, part.start, part.stop, ROW_BYTES, masked),
            ranges(count, CORES),
        )
        kept = self._hashed(own)
        self.bin += count
        return masked.tobytes(), kept

    def take(self, bits: _BITS, kept: U32, corrections: bytes) -> None:
        """Add up a piece: n · SUM_BYTES bytes from :meth:`Sender.answer`."""
        self._add(kept + bits * np.frombuffer(corrections, "<u4").astype(np.uint32))

    def result(self, total: int) -> int:
        """Σ (x ⊕ y) of all pieces, given the sender's total."""
        return (self.sum + total) % 2**32


class Sender(_End):
    """The sender's end.

    Args:
        tag: as for the receiver.
        choices: bool (SECURITY or more,), Δ.
        seeds: the chosen seeds.
    """

    def __init__(self, tag: bytes, choices: B1, seeds: list[bytes]) -> None:
        super().__init__(tag)
        self._streams = [_stream(seed) for seed in seeds[:SECURITY]]
        self._delta = np.zeros(kernel.ROW_WORDS, np.uint32)
        self._delta.view(np.uint8)[:ROW_BYTES] = np.packbits(choices[:SECURITY], bitorder="little")

    def answer(self, masked: bytes, bits: _BITS) -> bytes:
        """Corrections for a piece of the receiver's rows, as many as there are bits y uint8 (n,).

        Raises:
            ValueError: other than n · ROW_BYTES bytes.
        """
        count = len(bits)
        if len(masked) != count * ROW_BYTES:
            raise ValueError(f"{len(masked)} bytes are not {count} rows")
        rows, received = self.rows(self._streams, count), _rows_of(masked)
        spread(
            lambda part: kernel.unmask_rows(received, self._delta, part.start, part.stop, rows), ranges(count, CORES)
        )
        zero = self._hashed(rows)
        rows ^= self._delta
        one = self._hashed(rows)
        self.bin += count
        own = bits.astype(np.uint32)
        self._add(own - zero)
        corrections = zero + (np.uint32(1) - np.uint32(2) * own) - one
        return corrections.astype("<u4").tobytes()

    @property
    def total(self) -> int:
        """To be sent after the last piece."""
        return self.sum


def _rows_of(masked: bytes) -> U8:
    return np.frombuffer(masked, np.uint8).reshape(-1, ROW_BYTES)
