"""Scorecards: points of a logistic model on weights of evidence, each party for its own columns.

Score = offset + factor·(−η) with factor = pdo/ln 2 and offset = base_score − factor·ln(base_odds), odds being good to
bad and η the log-odds of the label's positive (bad) value (Siddiqi, "Credit Risk Scorecards", 2006). A row's score is
the sum of the points of its bins on both sides; the active side's points carry offset and intercept, spread over its
columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Scorecard, Side
from fedlearn.data.design import Column, Evidence
from fedlearn.data.table import PartyTable
from fedlearn.errors import WrongModel
from fedlearn.models.linear import LinearShare

F64 = NDArray[np.float64]


Eta = TypeVar("Eta", float, F64)


def total(settings: Scorecard, eta: Eta) -> Eta:
    """The score of a linear predictor: what all points of both sides add up to."""
    return settings.base_score - settings.pdo / math.log(2) * (math.log(settings.base_odds) + eta)


@dataclass(frozen=True, eq=False)
class Points:
    """One side's points.

    Attributes:
        columns: the design's, each with weights of evidence.
        points: for each column float64 (groups,).
        codes: reason code of each column, or None.
        named: this side's reason codes by the contract, sorted.
        settings: the contract's.
    """

    columns: tuple[Column, ...]
    points: tuple[F64, ...]
    codes: tuple[str | None, ...]
    named: tuple[str, ...]
    settings: Scorecard

    @classmethod
    def of(cls, share: LinearShare, settings: Scorecard, side: Side) -> Points:
        """Points of a share. Raises WrongModel when its columns are not weights of evidence."""
        factor = settings.pdo / math.log(2)
        slopes, constant = share.raw
        offset = settings.base_score - factor * math.log(settings.base_odds) if share.role == "active" else 0.0
        each = (offset - factor * constant) / max(1, len(slopes))
        points = tuple(
            each - factor * slope * evidence_of(column).woe
            for slope, column in zip(slopes, share.design.columns, strict=True)
        )
        codes = tuple(settings.codes.get(column.feature) for column in share.design.columns)
        return cls(share.design.columns, points, codes, codes_of(settings, side), settings)

    def of_rows(self, table: PartyTable) -> F64:
        """Points of every row by column, float64 (p, n)."""
        return self.of_groups([evidence_of(column).groups(table) for column in self.columns])

    def of_groups(self, groups: Sequence[NDArray[np.uint8]]) -> F64:
        """Points of every row by column, float64 (p, n), from each column's groups, uint8 (n,)."""
        return np.stack([points[group] for points, group in zip(self.points, groups, strict=True)])

    def lost(self, points: F64) -> F64:
        """Points that each column lost against its best bin, or against its mean over the training rows, (p, n)."""
        return np.asarray(np.array(self.references)[:, None] - points)

    @property
    def references(self) -> list[float]:
        """What each column's points are held against."""
        return [self._reference(j) for j in range(len(self.columns))]

    def _reference(self, j: int) -> float:
        rows = evidence_of(self.columns[j]).rows
        filled = rows > 0
        if self.settings.against == "mean":
            return float(np.average(self.points[j][filled], weights=rows[filled]))
        return float(self.points[j][filled].max())

    def reasons(self, points: F64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The codes whose columns cost each row most, the dearest first.

        Returns:
            uint8 (n, k): index into ``named``, 255 where no more points were lost; and float32 (n, k), the points.
        """
        lost, rows = self.lost(points), points.shape[1]
        by_code = np.zeros((len(self.named), rows))
        for j, code in enumerate(self.codes):
            if code is not None:
                by_code[self.named.index(code)] += lost[j]
        order = np.argsort(-by_code, axis=0, kind="stable")[: reasons_due(self.settings, self.named)]
        amounts = np.take_along_axis(by_code, order, axis=0)
        found = np.where(amounts > 0, order, 255).astype(np.uint8)
        return np.ascontiguousarray(found.T), np.ascontiguousarray(np.maximum(amounts, 0).T.astype(np.float32))

    def table(self) -> list[dict[str, Any]]:
        """Points by column and bin, for people and for other programs (see :meth:`export`)."""
        lines = []
        for column, points in zip(self.columns, self.points, strict=True):
            evidence = evidence_of(column)
            for g, value in enumerate(points):
                bins = evidence.codes.labels(np.flatnonzero(evidence.group == g))
                lines.append(
                    {
                        "column": column.name, "bins": bins, "rows": int(evidence.rows[g]),
                        "woe": float(evidence.woe[g]), "points": float(value),
                    }
                )  # fmt: skip
        return lines

    def export(self) -> dict[str, Any]:
        """All that another program needs to score this side: edges, texts, special values, and points by bin."""
        columns = []
        for column, points, code in zip(self.columns, self.points, self.codes, strict=True):
            evidence = evidence_of(column)
            bins, by_bin = evidence.codes.bins, points[evidence.group]
            entry: dict[str, Any] = {"column": column.name, "kind": column.kind, "reason": code}
            if column.kind == "number":
                entry["upper_edges"] = bins.edges.tolist()
            else:
                entry["texts"] = list(bins.categories)
            entry["points"] = by_bin[: bins.regular].tolist()
            entry["points_missing"] = float(by_bin[bins.regular])
            special = evidence.codes.special
            entry["special"] = [
                {"value": value, "points": float(by_bin[bins.bins + k])} for k, value in enumerate(special)
            ]
            columns.append(entry)
        settings = self.settings
        scaling = {"base_score": settings.base_score, "base_odds": settings.base_odds, "pdo": settings.pdo}
        return {"format": 1, "scaling": scaling, "columns": columns}


def codes_of(settings: Scorecard, side: Side) -> tuple[str, ...]:
    """A side's reason codes, sorted: both sides know them from the contract."""
    return tuple(sorted({settings.codes[name] for name in side.features if name in settings.codes}))


def reasons_due(settings: Scorecard, codes: tuple[str, ...]) -> int:
    """How many reasons a side gives for each row."""
    return min(settings.reasons, len(codes))


def evidence_of(column: Column) -> Evidence:
    """A column's weights of evidence. Raises WrongModel when it has none."""
    if column.evidence is None:
        raise WrongModel(f"column {column.name!r} has no weights of evidence, so it has no points")
    return column.evidence
