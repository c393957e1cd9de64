"""Encrypted products of real numbers: what a regression needs, on top of :mod:`fedlearn.protocols.matvec`.

The holder's real columns become integers of some 15 bits (stochastic rounding), and these a few rows of balanced digits
each, small enough for the 64-bit budget of the hint scheme; the querier's real vectors become integers of some 10
bits. The sums of a column's digits, weighted by powers of the base, are the product.

What each side learns is what matvec reveals, row by row: the querier learns the exact sum of its vector over *each
digit* of a column, and so a few more linear functions of the column than the product alone. Both sides agree on the
digits by computing the same :class:`Layout` from the sizes and the leakage budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Dense
from fedlearn.errors import Malformed, OverBudget
from fedlearn.kernels import digits as kernel
from fedlearn.kernels.threads import spread
from fedlearn.protocols import matvec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

#: Bases to choose from, the fewest digits first. Entries are at most half of it.
_BASES = (15, 9, 7, 5, 3)
#: Bits of a vector's entries, sign not counted: wanted at least, at least with the smallest base, and at most.
_GOOD_BITS, _LEAST_BITS, _MOST_BITS = 9, 5, 14


@dataclass(frozen=True)
class Layout:
    """How real numbers are written as integers; computed alike by both sides.

    Attributes:
        columns, samples: size of the real matrix.
        base, digits: of an entry of the matrix.
        terms: of the encrypted product; ``largest_value`` bounds a vector's entries.
    """

    columns: int
    samples: int
    base: int
    digits: int
    terms: matvec.Terms

    @property
    def largest(self) -> int:
        """Largest integer that the digits can write."""
        return int((self.base**self.digits - 1) // 2)

    @property
    def shape(self) -> matvec.Shape:
        """Of the matrix of digits."""
        return _shape(self.columns * self.digits, self.samples, self.base)

    @classmethod
    def choose(cls, terms: matvec.Terms, columns: int, samples: int, bits: int, flags: bool = False) -> Layout:
        """The fewest digits that leave a vector's entries enough bits within the leakage budget.

        Args:
            terms: of the product; ``largest_value`` is chosen here.
            columns, samples: size of the real matrix.
            bits: of an entry of the matrix, sign included.
            flags: whether vectors hold zeros and ones only, which need one bit.

        Raises:
            OverBudget: not even single ternary digits fit.
        """
        for base in _BASES:
            digits = math.ceil(bits / math.log2(base))
            wanted = range(_MOST_BITS, (_LEAST_BITS if base == _BASES[-1] else _GOOD_BITS) - 1, -1)
            for value_bits in (1,) if flags else wanted:
                agreed = replace(terms, largest_value=(1 << value_bits) - 1)
                if _fits(_shape(columns * digits, samples, base), agreed):
                    return cls(columns, samples, base, digits, agreed)
        raise OverBudget(
            f"{terms.vectors} encrypted vectors over {samples} rows and {columns} columns do not fit the leakage "
            f"budget of {terms.kl_nats:.2g} nats with values of {_LEAST_BITS} bits or more"
        )


def _shape(rows: int, samples: int, base: int) -> matvec.Shape:
    half = base // 2
    return matvec.Shape(rows, samples, half, rows * samples * half**2)


def _fits(shape: matvec.Shape, terms: matvec.Terms) -> bool:
    if terms.backend == "paillier":
        return (shape.samples * shape.largest * terms.largest_value).bit_length() < 64
    try:
        shape.plan(terms)
    except OverBudget:
        return False
    return True


def rounded_up(values: F64) -> F64:
    """Bounds as they are told: to the next quarter power of two, so that a largest value is not told exactly."""
    return np.asarray(2.0 ** (np.floor(4 * np.log2(np.maximum(values, 2.0**-20)) + 1) / 4))


def largest_of(columns: F64) -> F64:
    """Bounds float64 (p,) of columns float64 (p, n), as they are told."""
    return rounded_up(np.abs(columns).max(axis=1, initial=0.0))


def check_largest(channel: Channel, largest: F64) -> None:
    """Whether told bounds are those of standardised columns. Raises Malformed."""
    if not np.all((largest > 0) & (largest < 1e6)):
        raise channel.misbehaved(Malformed, "announced bounds that standardised columns cannot have")


def open_holder(
    channel: Channel, layout: Layout, factors: Callable[[int], tuple[F64, F64]], largest: F64
) -> matvec.Holder:
    """The holder's end for columns that are products of two factors.

    Args:
        channel: after the calling protocol has agreed the layout.
        layout: as the querier has it.
        factors: column number to two arrays float64 (n,), whose product is the column.
        largest: float64 (columns,), bound on the absolute values of each column; known to the querier.
    """
    entries = np.empty((layout.columns * layout.digits, layout.samples), np.int8)

    def column(j: int) -> None:
        left, right = factors(j)
        out = entries[j * layout.digits : (j + 1) * layout.digits]
        kernel.split(left, right, layout.largest / largest[j], layout.base, Draws().bytes(layout.samples), out)

    spread(column, range(layout.columns))
    return matvec.open_holder(channel, Dense(entries, layout.base // 2), layout.terms)


@dataclass(frozen=True)
class Querier:
    """The querier's end: products with real vectors.

    Attributes:
        querier: ready for queries.
        layout, largest: as the holder has them.
        position: int64 (m,), place of each of the querier's rows among the samples; the others count zero.
    """

    querier: matvec.Querier
    layout: Layout
    largest: F64
    position: I64

    @classmethod
    def open(cls, channel: Channel, layout: Layout, largest: F64, position: I64) -> Querier:
        """Receive the hint (or send the key). Raises as :func:`matvec.open_querier`."""
        return cls(matvec.open_querier(channel, layout.shape, layout.terms), layout, largest, position)

    def ask(self, fine: list[F64], rough: Callable[[int], F64], count: int) -> F64:
        """Products of the columns with some vectors.

        Args:
            fine: vectors float64 (m,) that are sent as two integers each, for twice the bits.
            rough: number to vector float64 (m,), for ``count`` vectors of single precision.
            count: how many of these.

        Returns:
            float64 (len(fine) + count, columns).
        """
        vectors = _Vectors(self, fine, rough, count)
        parts = [slice(first, first + matvec.AT_ONCE) for first in range(0, len(vectors), matvec.AT_ONCE)]
        answers = [self.querier.ask(vectors[part]) for part in parts]
        sums = np.concatenate([answer() for answer in answers])
        powers = float(self.layout.base) ** np.arange(self.layout.digits)
        whole = sums.reshape(len(sums), self.layout.columns, self.layout.digits) @ powers
        whole *= self.largest / self.layout.largest
        high, low = whole[: 2 * len(fine) : 2], whole[1 : 2 * len(fine) : 2]
        joined = high + low / (2 * self.layout.terms.largest_value)
        return np.asarray(np.concatenate([joined, whole[2 * len(fine) :]]) / vectors.scales[:, None])


class _Vectors:
    """Vectors as integers, made batch by batch in the shared order."""

    def __init__(self, querier: Querier, fine: list[F64], rough: Callable[[int], F64], count: int) -> None:
        self.querier, self.fine, self.rough = querier, fine, rough
        self.bound = querier.layout.terms.largest_value
        self.scales = np.array(
            [self._scale(values) for values in fine] + spread(lambda j: self._scale(rough(j)), range(count))
        )

    def _scale(self, values: F64) -> float:
        largest = float(np.abs(values).max(initial=0.0))
        return self.bound / largest if largest > 0 else 1.0

    def __len__(self) -> int:
        return len(self.fine) + len(self.scales)

    def __getitem__(self, part: slice) -> NDArray[np.int32]:
        asked = range(len(self))[part]
        out = np.zeros((len(asked), self.querier.layout.samples), np.int32)

        def one(at: int) -> None:
            number, place = asked[at], self.querier.position
            half = 2 * len(self.fine)
            source = number // 2 if number < half else number - len(self.fine)
            values = self.fine[source] if number < half else self.rough(source - len(self.fine))
            if number < half and number % 2 == 0:
                kernel.nearest(values, self.scales[source], place, out[at])
                return
            round_off = kernel.remainder if number < half else kernel.quantise
            round_off(values, self.scales[source], self.bound, Draws().bytes(len(values)), place, out[at])

        spread(one, range(len(asked)))
        return out
