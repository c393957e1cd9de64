"""The holder's side of the encrypted product: matrices of small integers that do not change during a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import OverBudget
from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import N
from fedlearn.kernels.threads import spread

#: Largest entry of a dense matrix: keeps the transforms of :mod:`fedlearn.kernels.negacyclic` exact.
LARGEST_ENTRY = 255


@dataclass(frozen=True)
class Sorted:
    """The samples of an indicator matrix by block of N samples and row, without those of each feature's fullest bin.

    Rows of a feature add up to the row of ones, so the fullest bin's sums follow from the others'; a feature that is
    mostly one value costs next to nothing.

    Attributes:
        order: uint16, positions of samples within their block.
        starts: int64 (B·R + 1,); the samples of row r in block b are those from starts[b·R + r] to the next.
        fullest: int64 (F,), the row of each feature that is left out.
    """

    order: NDArray[np.uint16]
    starts: NDArray[np.int64]
    fullest: NDArray[np.int64]


@dataclass(frozen=True)
class Indicator:
    """One row per (feature, bin): 1 where the sample falls into the bin.

    Attributes:
        bins: uint8 (F, n), C-contiguous; the bin of each sample in each feature.
        sizes: int64 (F,), number of bins of each feature.

    Raises:
        ValueError: shapes differ, or a bin is not below its feature's number (the kernels index with it unchecked).
    """

    bins: NDArray[np.uint8]
    sizes: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.bins.ndim != 2 or self.bins.dtype != np.uint8 or self.sizes.shape != self.bins.shape[:1]:
            raise ValueError("bins must be uint8 (features, samples) with one size per feature")
        if np.any(self.bins.max(axis=1, initial=0) >= self.sizes):
            raise ValueError("a bin is not below its feature's number of bins")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (F + 1,): rows of feature f are offsets[f] to offsets[f + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def sorted(self) -> Sorted:
        """The same matrix as lists of samples, made once: 2 bytes per sample outside its feature's fullest bin."""
        offsets, blocks = self.offsets, -(-self.samples // N)
        counts = np.zeros((blocks, self.rows), np.int64)

        def count(f: int) -> int:
            own = counts[:, offsets[f] : offsets[f + 1]]
            lattice.count_blocks(self.bins[f], own)
            bin_ = int(own.sum(axis=0).argmax())
            own[:, bin_] = 0
            return bin_

        fullest = spread(count, range(len(self.sizes)))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        order = np.empty(int(starts[-1]), np.uint16)
        fill = starts[:-1].reshape(counts.shape).copy()

        def sort(f: int) -> None:
            lattice.sort_blocks(self.bins[f], fullest[f], fill[:, offsets[f] : offsets[f + 1]], order)

        spread(sort, range(len(self.sizes)))
        return Sorted(order, starts, offsets[:-1] + np.array(fullest, np.int64))

    @property
    def rows(self) -> int:
        """Number of rows R."""
        return int(self.offsets[-1])

    @property
    def samples(self) -> int:
        """Number of columns n."""
        return int(self.bins.shape[1])

    @property
    def largest(self) -> int:
        """Largest absolute entry."""
        return 1

    @property
    def squares(self) -> int:
        """Sum of the squares of all entries: each sample is in one bin of every feature."""
        return int(self.bins.size)


@dataclass(frozen=True)
class Dense:
    """Rows of small integers.

    Attributes:
        entries: int64 or int8 (R, n), absolute values at most ``bound``.
        bound: what both sides take as the largest absolute entry; at most :data:`LARGEST_ENTRY`.

    Raises:
        OverBudget: an entry, or the bound, is larger.
    """

    entries: NDArray[np.int64] | NDArray[np.int8]
    bound: int = LARGEST_ENTRY

    def __post_init__(self) -> None:
        bound = min(self.bound, LARGEST_ENTRY)
        largest = max(int(self.entries.max(initial=0)), -int(self.entries.min(initial=0)), self.bound)
        if largest > bound:
            raise OverBudget(f"matrix entries must not exceed {bound} for the encrypted product to be exact")

    @property
    def rows(self) -> int:
        """Number of rows R."""
        return int(self.entries.shape[0])

    @property
    def samples(self) -> int:
        """Number of columns n."""
        return int(self.entries.shape[1])

    @property
    def largest(self) -> int:
        """Largest absolute entry (its bound, so that the shape message says nothing of the data)."""
        return self.bound

    @property
    def squares(self) -> int:
        """Bound on the sum of the squares of all entries."""
        return self.entries.size * self.bound**2


Matrix = Indicator | Dense
