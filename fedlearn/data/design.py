"""A design matrix from a table: the same code at training and at scoring.

Numbers stand as they are, missing ones at their training mean; a category becomes a column for each text but the most
frequent; or, with weights of evidence, every feature becomes the WOE of its bin. Columns are standardised with the
means and deviations of the training rows. All this is the owning party's own; nothing here is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.contract import Glm, Kind
from fedlearn.data.binning import Binning, FeatureBins, fit_binning
from fedlearn.data.table import PartyTable
from fedlearn.errors import ConstantColumns, WrongModel
from fedlearn.kernels.threads import spread

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Codes:
    """Bins of one feature with bins of their own for special values; before merging.

    Attributes:
        bins: of the regular values; its last bin is for missing ones.
        special: values that are codes, not amounts; bin ``bins.bins + k`` is for ``special[k]``.
    """

    bins: FeatureBins
    special: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Number of bins, those for missing and special values included."""
        return self.bins.bins + len(self.special)

    def of(self, table: PartyTable) -> npt.NDArray[np.uint8]:
        """The bin of every row, uint8 (n,)."""
        codes: npt.NDArray[np.uint8] = Binning((self.bins,)).transform(table)[0]
        for k, value in enumerate(self.special):
            codes[np.asarray(table.columns[self.bins.name]) == value] = self.bins.bins + k
        return codes

    def label(self, code: int) -> str:
        """A bin in words, for points tables."""
        if code >= self.bins.bins:
            return f"= {self.special[code - self.bins.bins]:g}"
        if code == self.bins.regular:
            return "missing"
        if self.bins.kind == "category":
            return self.bins.categories[code] if self.bins.categories else "any"
        return self._interval(code, code)

    def labels(self, codes: I64) -> list[str]:
        """Some bins in words, neighbouring intervals as one; ``codes`` ascend."""
        said: list[str] = []
        numbers = codes[codes < self.bins.regular] if self.bins.kind == "number" else codes[:0]
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            if len(run):
                said.append(self._interval(int(run[0]), int(run[-1])))
        return said + [self.label(int(code)) for code in codes[len(numbers) :]]

    def _interval(self, first: int, last: int) -> str:
        edges = self.bins.edges
        low = f"{edges[first - 1]:.6g} < " if first else ""
        high = f" <= {edges[last]:.6g}" if last < len(edges) else ""
        return f"{low}x{high}" if low or high else "any"


def fit_codes(table: PartyTable, kinds: Mapping[str, Kind], glm: Glm) -> tuple[Codes, ...]:
    """Bins of a table's features before merging: quantiles or equal widths, special values apart."""
    special = {name: tuple(glm.special.get(name, ())) for name in kinds}
    regular = dict(table.columns)
    for name, values in special.items():
        column = regular[name]
        if values and isinstance(column, np.ndarray):
            regular[name] = np.where(np.isin(column, values), np.nan, column)
    bare = replace(table, columns=regular)
    binning = fit_binning(bare, glm.bins, kinds)
    if glm.binning == "width":
        binning = Binning(tuple(_equal_width(f, bare, glm.bins) for f in binning.features))
    return tuple(Codes(f, special[f.name] if f.kind == "number" else ()) for f in binning.features)


def _equal_width(feature: FeatureBins, table: PartyTable, bins: int) -> FeatureBins:
    if feature.kind != "number":
        return feature
    values = np.asarray(table.columns[feature.name])
    values = values[~np.isnan(values)]
    if not len(values) or values.min() == values.max():
        return feature
    return replace(feature, edges=np.unique(np.linspace(values.min(), values.max(), bins + 1)[1:-1]))


@dataclass(frozen=True, eq=False)
class Evidence:
    """A feature replaced by weights of evidence.

    Attributes:
        codes: its bins.
        group: int64 (bins,), group of each bin.
        woe: float64 (groups,).
        rows: int64 (groups,), own training rows in each group, for the mean of points.
        iv: information value.
    """

    codes: Codes
    group: I64
    woe: F64
    rows: I64
    iv: float

    def groups(self, table: PartyTable) -> npt.NDArray[np.uint8]:
        """The group of every row, uint8 (n,)."""
        return self.group.astype(np.uint8)[self.codes.of(table)]


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the design.

    Attributes:
        name: for reports: the feature, or ``feature=text``.
        feature, kind: the table's column.
        text: of a category's column; None else.
        evidence: with weights of evidence; None else.
        mean, scale: of the training rows; missing numbers stand at the mean.
    """

    name: str
    feature: str
    kind: Kind
    text: str | None = None
    evidence: Evidence | None = None
    mean: float = 0.0
    scale: float = 1.0

    def raw(self, table: PartyTable) -> F64:
        """Values before standardisation, float64 (n,)."""
        values: Any = table.columns[self.feature]
        if self.evidence is not None:
            return np.asarray(self.evidence.woe[self.evidence.groups(table)], np.float64)
        if self.text is not None:
            return np.asarray(pc.fill_null(pc.equal(values.cast(pa.string()), self.text), False)).astype(np.float64)
        numbers = np.asarray(values, np.float64)
        return np.where(np.isnan(numbers), self.mean, numbers)


@dataclass(frozen=True, eq=False)
class Design:
    """The columns of one side, in order."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def means(self) -> F64:
        """Of the training rows, float64 (p,)."""
        return np.array([column.mean for column in self.columns])

    @property
    def scales(self) -> F64:
        """Deviations of the training rows, float64 (p,)."""
        return np.array([column.scale for column in self.columns])

    def raw(self, table: PartyTable) -> F64:
        """Values before standardisation, float64 (p, n)."""
        out = np.empty((len(self.columns), table.rows))

        def fill(j: int) -> None:
            out[j] = self.columns[j].raw(table)

        spread(fill, range(len(self.columns)))
        return out

    def standardised(self, table: PartyTable) -> F64:
        """Float64 (p, n), of mean 0 and variance 1 on the training rows."""
        out = self.raw(table)
        out -= self.means[:, None]
        out /= self.scales[:, None]
        return out

    def unseen(self, table: PartyTable) -> list[str]:
        """Warnings about texts of categories that training never saw: they count as missing."""
        return _warnings({feature: int(rows.sum()) for feature, rows in self.strange(table).items()})

    def flagged(self, table: PartyTable) -> dict[str, npt.NDArray[np.bool_]]:
        """:meth:`strange` as a table to score keeps it: ``unseen <feature>``, for :func:`unseen_in`."""
        return {_UNSEEN + feature: rows for feature, rows in self.strange(table).items()}

    def strange(self, table: PartyTable) -> dict[str, npt.NDArray[np.bool_]]:
        """By category, the rows whose text training never saw, bool (n,)."""
        found = {}
        for feature in dict.fromkeys(column.feature for column in self.columns if column.kind == "category"):
            columns = [column for column in self.columns if column.feature == feature]
            evidence = columns[0].evidence
            own = [column.text for column in columns]
            known = [*own, *self.reference(feature)] if evidence is None else list(evidence.codes.bins.categories)
            values: Any = table.columns[feature]
            texts = values.cast(pa.string())
            seen = pc.or_(pc.is_in(texts, pa.array(known, pa.string())), pc.is_null(texts))
            found[feature] = ~np.asarray(seen, np.bool_)
        return found

    def reference(self, feature: str) -> tuple[str, ...]:
        """The text of a category that has no column of its own."""
        return tuple(r for f, r in self.references if f == feature)

    references: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, from which :meth:`from_json` restores the design exactly."""
        return {"columns": [_saved(c) for c in self.columns], "references": [list(r) for r in self.references]}

    @staticmethod
    def from_json(saved: Any) -> Design:
        """The inverse of :meth:`to_json`. Raises WrongModel for anything that it cannot have written."""
        try:
            references = tuple((str(f), str(t)) for f, t in saved["references"])
            design = Design(tuple(_restored(entry) for entry in saved["columns"]), references)
        except (KeyError, TypeError, ValueError) as error:
            raise WrongModel(f"the saved design is damaged: {error}") from None
        if not np.isfinite(design.means).all() or np.any(design.scales <= 0):
            raise WrongModel("the saved design is damaged: a mean or a scale is not a number")
        return design


_UNSEEN = "unseen "  # among what a table to score is encoded to


def _warnings(strange: Mapping[str, int]) -> list[str]:
    """In words, how many rows of each category have a text that training never saw."""
    return [f"column {f!r} has texts that training never saw in {n} row(s)" for f, n in strange.items() if n]


def unseen_in(table: PartyTable, rows: I64) -> list[str]:
    """As :meth:`Design.unseen`, for some rows of a table encoded for scoring."""
    flags = {name: values for name, values in table.encoded.items() if name.startswith(_UNSEEN)}
    return _warnings({name.removeprefix(_UNSEEN): int(values[rows].sum()) for name, values in flags.items()})


def fit_design(
    table: PartyTable,
    kinds: Mapping[str, Kind],
    evidence: tuple[Evidence, ...] | None = None,
    most: int = 255,
    least_iv: float = 0.0,
) -> tuple[Design, list[str]]:
    """Choose columns from the training rows.

    Args:
        table: aligned rows.
        kinds: the features, in order.
        evidence: one per feature, to take weights of evidence.
        most: texts of a category at most.
        least_iv: features of a smaller information value are left out.

    Returns:
        the design, and warnings: columns left out because they are constant, missing values at the mean.

    Raises:
        ConstantColumns: no column is left.
        TooManyCategories: a category has more texts than ``most``.
    """
    said: list[str] = []
    columns, references = [], []
    for place, (name, kind) in enumerate(kinds.items()):
        if evidence is not None:
            if evidence[place].iv < least_iv:
                said.append(f"column {name!r} is left out: its information value is below {least_iv:g}")
            else:
                columns.append(Column(name, name, kind, evidence=evidence[place]))
        elif kind == "number":
            values = np.asarray(table.columns[name])
            missing = int(np.isnan(values).sum())
            mean = float(np.nanmean(values)) if missing < len(values) else 0.0
            if missing:
                said.append(f"column {name!r} is missing in {missing} row(s), which count as its mean")
            columns.append(Column(name, name, kind, mean=mean))
        else:
            texts = fit_binning(table, most, {name: kind}).features[0].categories
            references += [(name, text) for text in texts[:1]]
            columns += [Column(f"{name}={text}", name, kind, text=text) for text in texts[1:]]
            if len(texts) < 2:
                said.append(f"column {name!r} is constant and is left out")
    kept = []
    for column in columns:
        values = column.raw(table)
        mean, scale = float(values.mean()), float(values.std())
        if scale <= 1e-12 * max(1.0, abs(mean)):
            said.append(f"column {column.name!r} is constant and is left out")
        else:
            kept.append(replace(column, mean=mean, scale=scale))
    if not kept:
        raise ConstantColumns(
            f"none of the columns {', '.join(kinds)} varies over the {table.rows} aligned rows"
            + (f" and has an information value of {least_iv:g}" if least_iv else "")
        )
    return Design(tuple(kept), tuple(references)), said


def _saved(column: Column) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": column.name, "feature": column.feature, "kind": column.kind, "text": column.text,
        "mean": column.mean, "scale": column.scale, "evidence": None,
    }  # fmt: skip
    if column.evidence is not None:
        e = column.evidence
        entry["evidence"] = {
            "bins": Binning((e.codes.bins,)).to_json(),
            "special": list(e.codes.special),
            "group": e.group.tolist(),
            "woe": e.woe.tolist(),
            "rows": e.rows.tolist(),
            "iv": e.iv,
        }
    return entry


def _restored(entry: dict[str, Any]) -> Column:
    if entry["kind"] not in ("number", "category"):
        raise ValueError("a column is neither a number nor a category")
    evidence = None
    if entry["evidence"] is not None:
        e = entry["evidence"]
        codes = Codes(Binning.from_json(e["bins"]).features[0], tuple(float(v) for v in e["special"]))
        group, woe = np.array(e["group"], np.int64), np.array(e["woe"], np.float64)
        if len(group) != codes.count or group.min() < 0 or group.max() >= len(woe) or not np.isfinite(woe).all():
            raise ValueError("groups do not fit their bins")
        evidence = Evidence(codes, group, woe, np.array(e["rows"], np.int64), float(e["iv"]))
    text = None if entry["text"] is None else str(entry["text"])
    return Column(
        str(entry["name"]), str(entry["feature"]), entry["kind"], text, evidence,
        float(entry["mean"]), float(entry["scale"]),
    )  # fmt: skip
