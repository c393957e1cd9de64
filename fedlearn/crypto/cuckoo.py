"""Cuckoo hashing without a stash: how many bins are enough, by a bound that is proved and computed here.

Every item may stand in three bins, one chosen at random in each third of the table; a bin holds one item. By Hall's
theorem there is no placement if and only if some t items have all their 3t bins among t - 1. Take such a set with
fewest items: each of its t - 1 bins is then a bin of two of its items at least (else leave bin and item out).
With m bins in each third, B = 3m, and n items, the expected number of such sets is at most

    Σ_{t ≥ 4}  C(n, t) · C(B, t-1) · (t!)^3 · (e^x - 1 - x)^(t-1) / (x·m)^(3t)      for any x > 0 of each t:

t! (e^x - 1 - x)^a / x^t bounds the number of maps of t items onto a bins that hit each twice or more (its exponential
generating function), the sum over how t - 1 bins fall to the three thirds is Vandermonde's, and fewer than four items
cannot fail, since one item has three bins already. Fountoulakis and Panagiotou (SODA 2010) and Frieze and Melsted show
that 1.09 n bins are enough in the limit; the bound here asks for some 1.33 n of large sets, and for more of small ones,
where t = 4 alone decides. (Pinkas, Schneider and Zohner, TOPS 2018, found 1.27 n by experiment.)

:func:`fedlearn.kernels.psi.insert` searches exhaustively, so it fails only where no placement exists.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

#: Statistical security in bits: a failure has probability at most 2^-STATISTICAL.
STATISTICAL = 40

_SIZES = (64, 96, 128, 192, 256)  # bins of a third, for few items
_EXPANSIONS = (1.33, 1.36, 1.4, 1.45, 1.5, 1.6, 1.7, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0)
_STEP = 1 << 20  # terms summed at once
_FEW = 512  # up to here the best x differs from that in the limit, the first here
_X = (2.1491, 2.2, 2.3, 2.5, 2.8, 3.2, 3.7)


def failure_log2(count: int, segment: int) -> float:
    """Logarithm to base 2 of the bound on the probability that ``count`` items have no placement.

    Args:
        count: n.
        segment: m, bins of each third.
    """
    if count < 4:
        return -math.inf
    total = -math.inf
    starts = (4, *range(_FEW, count + 1, _STEP))
    for start, stop in zip(starts, (*starts[1:], count + 1), strict=True):
        t = np.arange(start, min(stop, count + 1), dtype=np.float64)
        total = np.logaddexp(total, log_sum(_log_terms(t, count, segment)))
    return float(total / math.log(2))


@lru_cache
def segment_for(count: int) -> int:
    """The least third of a table, among sizes tried, with which ``count`` items fail with 2^-STATISTICAL at most."""
    sizes = (math.ceil(expansion * count / 3) + 1 for expansion in _EXPANSIONS)
    for segment in (*sizes, *_SIZES):
        if segment >= _SIZES[0] and failure_log2(count, segment) <= -STATISTICAL:
            return segment
    raise ValueError(f"no table is large enough for {count} items")


def _log_terms(t: F64, count: int, segment: int) -> F64:
    bins = 3 * segment
    spent = t - 1 <= bins
    chosen = log_choose(count, t) + log_choose(bins, np.where(spent, t - 1, bins)) + 3 * log_factorial(t)
    maps = np.full(len(t), np.inf)
    for x in _X if t[0] < _FEW else _X[:1]:
        maps = np.minimum(maps, (t - 1) * math.log(math.expm1(x) - x) - 3 * t * math.log(x * segment))
    return np.where(spent, chosen + maps, -np.inf)


def log_choose(n: int, k: F64) -> F64:
    """ln C(n, k)."""
    return log_factorial(np.array([float(n)])) - log_factorial(k) - log_factorial(n - k)


def log_factorial(k: F64) -> F64:
    """ln k!, by Stirling's series; its error is below 10^-3 from 1 on, and below 10^-7 from 4 on."""
    k = np.maximum(k, 0.0)
    safe = np.maximum(k, 1.0)
    series = safe * np.log(safe) - safe + 0.5 * np.log(2 * np.pi * safe) + 1 / (12 * safe) - 1 / (360 * safe**3)
    return np.where(k < 1, 0.0, series)


def log_sum(terms: F64) -> float:
    """ln of the sum of exp(terms)."""
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))
