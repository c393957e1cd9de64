"""Weight of evidence from counts per bin: merging bins, WOE and information value. Needs counts only, no rows.

WOE of a group = ln((share of non-events in it) / (share of events in it)); IV = Σ (difference of shares)·WOE (Siddiqi,
"Credit Risk Scorecards", 2006). The first ``regular`` bins of a feature may be merged, neighbours only where they have
an order; bins for missing and special values stay by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Glm
from fedlearn.kernels import bins as kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """The bins of one feature after merging.

    Attributes:
        group: int64 (bins,), the group of each bin; groups are numbered from 0 without gaps.
        woe: float64 (groups,); 0 for a group without rows.
        events, rows: int64 (groups,).
        iv: information value of the feature.
        one_sided: groups with rows but without events, or with events only; their WOE comes from counts plus a half.
    """

    group: I64
    woe: F64
    events: I64
    rows: I64
    iv: float
    one_sided: tuple[int, ...]


def merge(events: I64, rows: I64, regular: int, ordered: bool, glm: Glm) -> Groups:
    """Merge the bins of one feature by the contract's rules.

    Args:
        events, rows: int64 (bins,), rows with label 1 and all rows of each bin.
        regular: bins that may be merged; the others are for missing and special values.
        ordered: whether these have an order; else they are ordered by their event rate.
        glm: ``binning``, ``max_groups``, ``least_share``, ``least_events``, ``least_rate``.
    """
    rate = (events[:regular] + 0.5) / (rows[:regular] + 1.0)
    order = np.arange(regular) if ordered else np.argsort(rate, kind="stable")
    cells = np.stack([events[:regular][order], (rows - events)[:regular][order]], axis=1).astype(np.float64)
    cuts = _merged(cells, int(rows.sum()), float(events.sum()), glm)
    number = np.searchsorted(cuts, np.arange(regular), side="right")
    group = np.empty(len(rows), np.int64)
    group[order] = number
    group[regular:] = len(cuts) + 1 + np.arange(len(rows) - regular)
    return evidence(events, rows, group)


def evidence(events: I64, rows: I64, group: I64) -> Groups:
    """WOE and IV of given groups; arguments as in :class:`Groups`, but counts by bin."""
    count = int(group.max()) + 1
    hits = np.bincount(group, events, count)
    rest = np.bincount(group, rows - events, count)
    filled = hits + rest > 0
    one_sided = filled & ((hits == 0) | (rest == 0))
    half = np.where(one_sided, 0.5, 0.0)
    share_of_rest = (rest + half) / max(rest.sum(), 1)
    share_of_hits = (hits + half) / max(hits.sum(), 1)
    woe = np.zeros(count)
    woe[filled] = np.log(share_of_rest[filled] / share_of_hits[filled])
    iv = float(((share_of_rest - share_of_hits) * woe)[filled].sum())
    whole = (hits + rest).astype(np.int64)
    return Groups(group, woe, hits.astype(np.int64), whole, iv, tuple(np.flatnonzero(one_sided).tolist()))


def stability(before: F64 | I64, now: F64 | I64) -> float:
    """Population stability index Σ (a − b)·ln(a/b) of the shares of two counts by bin; half a row stands for none."""
    a, b = (np.where(count > 0, count, 0.5) / max(float(count.sum()), 1.0) for count in (now, before))
    return float(((a - b) * np.log(a / b))[(before > 0) | (now > 0)].sum())


@dataclass(frozen=True, eq=False)
class Tenths:
    """Scores of the training rows, by their deciles.

    Attributes:
        cuts: float64 (9,), the deciles, ascending.
        rows: int64 (10,), training rows up to each, and beyond the last. Where scores repeat, not a tenth.
    """

    cuts: F64
    rows: I64

    @classmethod
    def of(cls, scores: F64) -> Tenths:
        """Of scores float64 (n,)."""
        cuts = np.quantile(scores, np.arange(1, 10) / 10)
        return cls(cuts, cls(cuts, np.empty(0, np.int64)).count(scores))

    def count(self, scores: F64) -> I64:
        """How many of other scores fall between the cuts, int64 (10,)."""
        return np.bincount(np.searchsorted(self.cuts, scores), minlength=10)

    def stability(self, now: I64) -> float:
        """Stability index of counts int64 (10,) against the training rows."""
        return stability(self.rows, now)

    def to_json(self) -> dict[str, list[float]]:
        """As numbers."""
        return {"cuts": self.cuts.tolist(), "rows": self.rows.tolist()}

    @classmethod
    def from_json(cls, saved: dict[str, list[float]]) -> Tenths:
        """Back again. Raises KeyError, TypeError, ValueError when it is damaged."""
        tenths = cls(np.array(saved["cuts"], np.float64), np.array(saved["rows"], np.int64))
        if tenths.cuts.shape != (9,) or tenths.rows.shape != (10,) or not np.isfinite(tenths.cuts).all():
            raise ValueError("nine deciles and ten counts are due")
        return tenths


def score_stability(before: F64, now: F64) -> float:
    """Stability index of scores float64 (m,) and (n,), over the deciles of the former."""
    tenths = Tenths.of(before)
    return tenths.stability(tenths.count(now))


def _merged(cells: F64, total: int, events: float, glm: Glm) -> I64:
    """Where groups of neighbouring cells (events, non-events) begin, the first at 0 not named: int64 (groups − 1,)."""
    totals = np.maximum(np.array([events, total - events]), 1.0)
    if glm.binning == "tree":
        return _tree(cells, totals, total, glm)
    if glm.binning == "monotone":
        return _monotone(cells, totals, total, glm)
    groups = [(k, k + 1) for k in range(len(cells))]
    least = glm.least_share * total
    while len(groups) > 1:
        sums = np.array([cells[a:b].sum(axis=0) for a, b in groups])
        few = sums.min(axis=1) < np.maximum(glm.least_events, glm.least_rate * sums.sum(axis=1))
        small = (sums.sum(axis=1) < least) | few | (sums.sum(axis=1) == 0)
        if not small.any():
            break
        at = int(np.argmin(np.where(small, sums.sum(axis=1), np.inf)))
        rate = (sums[:, 0] + 0.5) / (sums.sum(axis=1) + 1.0)
        near = [k for k in (at - 1, at + 1) if 0 <= k < len(groups)]
        with_ = min(near, key=lambda k: abs(rate[k] - rate[at]))
        groups = _joined(groups)[min(at, with_)]
    return np.array([a for a, _ in groups[1:]], np.int64)


def _monotone(cells: F64, totals: F64, total: int, glm: Glm) -> I64:
    """Where the groups of the largest information value begin, of those whose event rates go one way."""
    best, found = -1.0, np.zeros(0, np.int64)
    for sign in (1.0, -1.0):
        begins = np.zeros(len(cells), np.int64)
        value, count = kernel.best_groups(
            cells,
            totals,
            glm.least_share * total,
            float(glm.least_events),
            glm.least_rate,
            glm.max_groups,
            sign,
            begins,
        )
        if value > best + 1e-12:
            best, found = value, begins[: count - 1]
    return found


def _joined(groups: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The groupings that joining one pair of neighbours gives, by the left one's number."""
    return [[*groups[:k], (groups[k][0], groups[k + 1][1]), *groups[k + 2 :]] for k in range(len(groups) - 1)]


def _value(cells: F64, groups: list[tuple[int, int]], totals: F64) -> float:
    """Information value, with half a row added to every cell so that it stays finite."""
    shares = np.array([(cells[a:b].sum(axis=0) + 0.5) / totals for a, b in groups])
    return float(((shares[:, 1] - shares[:, 0]) * np.log(shares[:, 1] / shares[:, 0])).sum())


def _tree(cells: F64, totals: F64, total: int, glm: Glm) -> I64:
    """Best-first splits by information value, within the least sizes."""
    least, cuts = glm.least_share * total, [0, len(cells)]
    before = np.vstack([np.zeros(2), np.cumsum(cells, axis=0)])
    while len(cuts) - 1 < glm.max_groups:
        best, gain = -1, 1e-6
        for a, b in pairwise(cuts):
            whole = _value(cells, [(a, b)], totals)
            for cut in range(a + 1, b):
                left, right = before[cut] - before[a], before[b] - before[cut]
                fits = min(left.sum(), right.sum()) >= max(least, 1)
                if fits and all(
                    part.min() >= max(glm.least_events, glm.least_rate * part.sum()) for part in (left, right)
                ):
                    gained = _value(cells, [(a, cut), (cut, b)], totals) - whole
                    best, gain = (cut, gained) if gained > gain else (best, gain)
        if best < 0:
            break
        cuts = sorted([*cuts, best])
    return np.array(cuts[1:-1], np.int64)
