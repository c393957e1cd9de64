"""Which neighbouring bins to join so that information value is largest and event rates go one way: exactly.

Information value is a sum over groups, and whether rates go one way shows in neighbouring groups, so the best groups up
to a bin need only be known for each last group: Bellman's recursion over intervals, O(groups·bins³). The problem is
that of Navas-Palencia, "Optimal binning: mathematical programming formulation" (arXiv:2001.08025), who solves it by
constraint programming.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS, F64

I64 = NDArray[np.int64]


@njit(**_FLAGS)
def best_groups(
    cells: F64, totals: F64, least: float, least_events: float, least_rate: float, most: int, sign: float, out: I64
) -> tuple[float, int]:
    """The groups of neighbouring bins of the largest information value.

    Args:
        cells: float64 (B, 2), whole numbers: events and non-events of each bin, in order.
        totals: float64 (2,), of the whole feature, positive.
        least: rows of a group at least; a group never is empty.
        least_events: events, and non-events, of a group at least.
        least_rate: share of events, and of non-events, in a group at least.
        most: groups at most.
        sign: 1 where event rates must not fall from group to group, -1 where they must not rise.
        out: int64 (B,), filled with where the groups after the first begin.

    Returns:
        the information value, and the number of groups; -1.0 and 0 where no grouping obeys the bounds.
    """
    bins = cells.shape[0]
    sums = np.zeros((bins + 1, 2))
    for k in range(bins):
        sums[k + 1] = sums[k] + cells[k]
    value = np.full((bins, bins + 1), -1.0)
    for a in range(bins):
        for b in range(a + 1, bins + 1):
            hits, rest = sums[b, 0] - sums[a, 0], sums[b, 1] - sums[a, 1]
            enough = min(hits, rest) >= max(least_events, least_rate * (hits + rest))
            if hits + rest >= max(least, 1.0) and enough:
                half = 0.5 if min(hits, rest) == 0.0 else 0.0
                good, bad = (rest + half) / totals[1], (hits + half) / totals[0]
                value[a, b] = (good - bad) * np.log(good / bad)
    deepest = min(most, bins)
    came = np.full((deepest, bins, bins + 1), -1, np.int16)
    before, now = np.full((bins, bins + 1), -1.0), np.full((bins, bins + 1), -1.0)
    before[0] = value[0]
    best, count, last = before[0, bins], 1, 0
    for g in range(1, deepest):
        now[:] = -1.0
        for a in range(g, bins):
            for b in range(a + 1, bins + 1):
                if value[a, b] < 0.0:
                    continue
                hits, rows = sums[b, 0] - sums[a, 0], sums[b, 0] + sums[b, 1] - sums[a, 0] - sums[a, 1]
                for c in range(g - 1, a):
                    if before[c, a] < 0.0 or before[c, a] + value[a, b] <= now[a, b]:
                        continue
                    left = sums[a, 0] - sums[c, 0]
                    size = sums[a, 0] + sums[a, 1] - sums[c, 0] - sums[c, 1]
                    if sign * (hits * size - left * rows) >= 0.0:
                        now[a, b] = before[c, a] + value[a, b]
                        came[g, a, b] = c
            if now[a, bins] > best + 1e-12:
                best, count, last = now[a, bins], g + 1, a
        before, now = now, before
    if best < 0.0:
        return -1.0, 0
    end = bins
    for g in range(count - 1, 0, -1):
        out[g - 1] = last
        last, end = came[g, last, end], last
    return best, count
