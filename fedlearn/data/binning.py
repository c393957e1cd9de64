"""Binning: each feature of a :class:`~fedlearn.data.table.PartyTable` becomes a column of small integers.

Boosting sees bins only. Each party bins its own features by itself, and keeps the edges: neither edges nor bins leave
this party. Every feature has ``regular`` bins, 0 .. regular - 1, and one more, number ``regular``, for missing values;
that one exists also where nothing is missing, because new rows may have gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedlearn.contract import Kind
from fedlearn.data.table import Column, PartyTable
from fedlearn.errors import BadConfig, ColumnMissing, TooManyCategories, WrongModel
from fedlearn.kernels.threads import spread

MAX_BINS = 255  #: regular bins of a feature at most; with the bin for missing values, numbers still fit in a uint8


@dataclass(frozen=True, eq=False)
class FeatureBins:
    """The bins of one feature, owned by the party that owns the feature.

    Attributes:
        name: the column.
        kind: ``number`` or ``category``.
        edges: for a number, float64, shape (regular - 1,), strictly ascending and finite: bin b holds the values x
            with edges[b-1] < x <= edges[b]. Empty for a category.
        categories: for a category, the text of each bin, the most frequent first. Empty for a number.
    """

    name: str
    kind: Kind
    edges: npt.NDArray[np.float64]
    categories: tuple[str, ...] = ()

    @property
    def regular(self) -> int:
        """The number of regular bins, which is also the number of the bin for missing values; at least 1."""
        return len(self.edges) + 1 if self.kind == "number" else max(1, len(self.categories))

    @property
    def bins(self) -> int:
        """The number of bins, the one for missing values included."""
        return self.regular + 1


@dataclass(frozen=True, eq=False)
class Binning:
    """The bins of one party's features, in the order in which :meth:`transform` returns them."""

    features: tuple[FeatureBins, ...]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each feature's bins start if all are laid in one row: int64, shape (F + 1,), the total last."""
        return np.cumsum([0, *(feature.bins for feature in self.features)], dtype=np.int64)

    def transform(self, table: PartyTable) -> npt.NDArray[np.uint8]:
        """The bin of every value: uint8, shape (F, n), C-contiguous.

        A missing value and a category that was not there when the bins were fitted go to the last bin.

        Raises:
            ColumnMissing, BadConfig: the table lacks a feature, or has it as another kind.
        """
        codes = np.empty((len(self.features), table.rows), np.uint8)

        def fill(row: int) -> None:
            feature = self.features[row]
            values = _column(table, feature.name, feature.kind)
            codes[row] = _number_codes(feature, values) if feature.kind == "number" else _text_codes(feature, values)

        spread(fill, range(len(self.features)))  # NumPy sorts and searches without the interpreter lock
        return codes

    def encode(self, table: PartyTable) -> dict[str, npt.NDArray[np.uint8]]:
        """As :meth:`transform`, by name: what a table to score is read as."""
        return dict(zip((feature.name for feature in self.features), self.transform(table), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, from which :meth:`from_json` restores every edge exactly."""
        return {
            "features": [
                {"name": f.name, "kind": f.kind, "edges": f.edges.tolist()}
                if f.kind == "number"
                else {"name": f.name, "kind": f.kind, "categories": list(f.categories)}
                for f in self.features
            ]
        }

    @staticmethod
    def from_json(saved: dict[str, Any]) -> Binning:
        """The inverse of :meth:`to_json`. Raises WrongModel for anything that it cannot have written."""
        if not isinstance(saved, dict) or set(saved) != {"features"} or not isinstance(saved["features"], list):
            raise WrongModel("the saved bins are damaged: there is no list of features")
        features = tuple(_restored(entry, number) for number, entry in enumerate(saved["features"], 1))
        if len({feature.name for feature in features}) != len(features):
            raise WrongModel("the saved bins are damaged: a feature occurs twice")
        return Binning(features)


def fit_binning(table: PartyTable, max_bins: int, kinds: Mapping[str, Kind]) -> Binning:
    """Choose bins from this party's own rows.

    A number gets quantile bins: equally many rows in each, as far as repeated values allow. A value with more rows
    than one bin's share takes one bin, and the other values share the other bins equally. A column with no more than
    ``max_bins`` distinct values gets a bin for each. Edges lie midway between neighbouring values, so that no bin is
    empty. A category gets a bin for each text, by descending frequency, then by text. A column that is constant or
    missing throughout gets one regular bin.

    Args:
        table: the rows to fit on.
        max_bins: regular bins of a feature at most, 1 to 255.
        kinds: the features, in the order that the result keeps.

    Raises:
        TooManyCategories: a category column has more distinct values than ``max_bins``.
        ColumnMissing, BadConfig: the table lacks a feature, or has it as another kind; ``max_bins`` out of range.
    """
    if not 1 <= max_bins <= MAX_BINS:
        raise BadConfig(f"the number of bins must be 1 to {MAX_BINS}, not {max_bins}")

    def fit(item: tuple[str, Kind]) -> FeatureBins:
        name, kind = item
        values = _column(table, name, kind)
        if kind == "number":
            return FeatureBins(name, kind, _quantile_edges(values, max_bins))
        return FeatureBins(name, kind, np.empty(0), _frequent_categories(name, values, max_bins))

    return Binning(tuple(spread(fit, kinds.items())))


def _quantile_edges(values: npt.NDArray[np.float64], max_bins: int) -> npt.NDArray[np.float64]:
    """Edges for values (float64, shape (n,), NaN for missing): float64, shape (at most max_bins - 1,)."""
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(distinct) <= max_bins:
        cuts = np.arange(1, len(distinct))  # a cut at j lies just below distinct[j]
    else:
        below = np.concatenate([[0.0], np.cumsum(np.minimum(counts, _share(counts, max_bins)))])  # weight below j
        due = below[-1] * np.arange(1, max_bins) / max_bins
        after = np.searchsorted(below, due)
        nearest = np.where(due - below[after - 1] < below[after] - due, after - 1, after)
        cuts = np.unique(np.clip(nearest, 1, len(distinct) - 1))
    return _midpoints(distinct[cuts - 1], distinct[cuts])


def _share(counts: npt.NDArray[np.int64], max_bins: int) -> float:
    """The weight of one bin, such that a value of more rows counts as one full bin and no more.

    Without this cap a column that is mostly zero would spend most of its bins on the zero.
    """
    share = float(counts.sum() / max_bins)
    while True:
        heavy = counts > share
        lower = float(counts[~heavy].sum() / (max_bins - heavy.sum()))
        if lower >= share:
            return share
        share = lower


def _midpoints(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Numbers m with low <= m < high, midway where floating point allows; low < high elementwise."""
    middle = low / 2 + high / 2  # halves first: the sum may overflow
    return np.where((low <= middle) & (middle < high), middle, low)


def _frequent_categories(name: str, values: pa.DictionaryArray, max_bins: int) -> tuple[str, ...]:
    texts = values.dictionary.to_pylist()
    counts = np.bincount(values.indices.drop_null().to_numpy(), minlength=len(texts))
    present = [(-int(count), text) for count, text in zip(counts, texts, strict=True) if count]
    if len(present) > max_bins:
        raise TooManyCategories(
            f"category column {name!r} has {len(present)} distinct values, but the contract has {max_bins} bins"
        )
    return tuple(text for _, text in sorted(present))


def _number_codes(feature: FeatureBins, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    codes = np.searchsorted(feature.edges, values).astype(np.uint8)
    codes[np.isnan(values)] = feature.regular
    return codes


def _text_codes(feature: FeatureBins, values: pa.DictionaryArray) -> npt.NDArray[np.uint8]:
    last = feature.regular
    code_of = {text: code for code, text in enumerate(feature.categories)}
    texts = values.dictionary.to_pylist()
    lookup = np.array([*(code_of.get(text, last) for text in texts), last], np.uint8)
    codes: npt.NDArray[np.uint8] = lookup[values.indices.fill_null(len(texts)).to_numpy()]
    return codes


def _column(table: PartyTable, name: str, kind: Kind) -> Column:
    if name not in table.columns:
        raise ColumnMissing(f"column {name!r} is not in the table, which has: {', '.join(table.columns)}")
    values = table.columns[name]
    if isinstance(values, np.ndarray) != (kind == "number"):
        raise BadConfig(f"column {name!r} of the table is not a {kind}")
    return values


def _restored(entry: Any, number: int) -> FeatureBins:
    """One feature of :meth:`Binning.from_json`; ``number`` counts from 1, for messages."""
    where = f"the saved bins are damaged: feature {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise WrongModel(f"{where} has no name")
    kind = entry.get("kind")
    content = {"number": "edges", "category": "categories"}.get(kind) if isinstance(kind, str) else None
    if content is None or set(entry) != {"name", "kind", content}:
        raise WrongModel(f"{where} ({entry['name']!r}) has not the fields of a number or of a category")
    values = entry[content]
    valid = _valid_edges(values) if kind == "number" else _valid_categories(values)
    if not valid:
        raise WrongModel(f"{where} ({entry['name']!r}) has unusable {content}")
    if kind == "number":
        return FeatureBins(entry["name"], "number", np.array(values, np.float64))
    return FeatureBins(entry["name"], "category", np.empty(0), tuple(values))


def _valid_edges(edges: Any) -> bool:
    """Whether these are at most 254 finite floats, strictly ascending."""
    if not isinstance(edges, list) or len(edges) >= MAX_BINS:
        return False
    if not all(type(edge) is float and math.isfinite(edge) for edge in edges):
        return False
    return all(low < high for low, high in pairwise(edges))


def _valid_categories(texts: Any) -> bool:
    """Whether these are at most 255 distinct texts."""
    return (
        isinstance(texts, list)
        and len(texts) <= MAX_BINS
        and all(isinstance(text, str) for text in texts)
        and len(set(texts)) == len(texts)
    )
