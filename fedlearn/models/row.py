"""One row at a time through bins and splits, for scoring online.

The same numbers as of whole tables, without an array per feature. What depends on the model alone is laid out once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.binning import FeatureBins
from fedlearn.data.design import Codes
from fedlearn.kernels import trees as kernel
from fedlearn.models.share import PassiveShare

U8 = NDArray[np.uint8]
Value = float | str | None  #: a missing number is NaN, a missing text None


class RowBins:
    """Bins of one row, as :meth:`fedlearn.data.binning.Binning.transform` has them."""

    def __init__(self, features: Sequence[FeatureBins], names: Sequence[str]) -> None:
        numbers = [(place, f) for place, f in enumerate(features) if f.kind == "number"]
        self._numbers = [names.index(f.name) for _, f in numbers]
        self._places = np.array([place for place, _ in numbers], np.int64)
        self._edges = np.concatenate([np.empty(0), *(f.edges for _, f in numbers)])
        self._first = np.cumsum([0, *(len(f.edges) for _, f in numbers)], dtype=np.int64)
        self._texts = [
            (place, names.index(f.name), coder(Codes(f))) for place, f in enumerate(features) if f.kind == "category"
        ]
        self._count = len(features)
        self._last: tuple[tuple[Value, ...], U8] = ((), np.empty(0, np.uint8))

    def codes(self, row: tuple[Value, ...]) -> U8:
        """The same row may be asked for twice, for its score and for the counts."""
        last, codes = self._last
        if last is not row:
            codes = np.empty(self._count, np.uint8)
            values = np.array([row[at] for at in self._numbers], np.float64)
            kernel.row_codes(values, self._edges, self._first, self._places, codes)
            for place, at, code in self._texts:
                codes[place] = code(row[at])
            self._last = row, codes
        return codes


def coder(codes: Codes) -> Callable[[Value], int]:
    """The bin of one value, as :meth:`fedlearn.data.design.Codes.of` has it."""
    bins, last = codes.bins, codes.bins.regular
    if bins.kind == "category":
        known = {text: code for code, text in enumerate(bins.categories)}
        return lambda value: known.get(value, last)  # type: ignore[arg-type]
    edges = bins.edges.tolist()
    special = {value: bins.bins + k for k, value in enumerate(codes.special)}

    def number(value: Value) -> int:
        if value in special:
            return special[value]
        return bisect_left(edges, value) if value == value else last  # noqa: PLR0124

    return number


def row_sides(share: PassiveShare, codes: U8) -> bytes:
    """The side of every passive split, one bit each, the first in the lowest; ``codes`` uint8 (F,), the row's bins."""
    sides = np.empty(-(-len(share.feature) // 8), np.uint8)
    kernel.row_sides(codes, share.feature, share.masks, sides)
    return sides.tobytes()
