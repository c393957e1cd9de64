"""Which columns to leave out before a fit: too much alike, or explained by the others.

Before a fit each side does this with its own columns alone; the job ``statistics`` does it across the sides, where the
contract has correlations. Columns that a joint fit finds superfluous go by their p-value during the fit: see
:mod:`fedlearn.learner.glm`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Select

F64 = NDArray[np.float64]


def redundant(columns: F64, worth: F64, settings: Select, names: tuple[str, ...]) -> dict[int, str]:
    """Columns to leave out, with the reason in words.

    Args:
        columns: float64 (p, n), standardised.
        worth: float64 (p,), for instance information values.
        settings: the contract's limits.
        names: of the columns, for the reasons.
    """
    correlation: F64 = np.atleast_2d(np.corrcoef(columns))
    return by_correlation(correlation, worth, settings.correlation, settings.vif, names)


def by_correlation(correlation: F64, worth: F64, limit: float, vif: float, names: tuple[str, ...]) -> dict[int, str]:
    """Columns to leave out by their correlations, with the reason in words.

    Of two columns that correlate beyond the limit the one of less worth goes; then, as long as a variance inflation
    factor is above its limit, the column that has the largest.

    Args:
        correlation: float64 (p, p).
        worth: float64 (p,), for instance information values.
        limit: of correlations.
        vif: limit of variance inflation; 0 for none.
        names: of the columns, for the reasons.
    """
    out: dict[int, str] = {}
    kept: list[int] = []
    for j in np.argsort(-worth, kind="stable").tolist():
        near = [k for k in kept if abs(correlation[j, k]) > limit]
        if near:
            out[j] = f"correlation {correlation[j, near[0]]:.3f} with {names[near[0]]}"
        else:
            kept.append(j)
    while vif and len(kept) > 1:
        inflation = np.diag(np.linalg.pinv(correlation[np.ix_(kept, kept)], hermitian=True))
        # The pseudo-inverse of columns that repeat each other exactly is small where the factor is infinite.
        values, vectors = np.linalg.eigh(correlation[np.ix_(kept, kept)])
        inflation = np.where((vectors[:, values < 1e-10] ** 2).sum(axis=1) > 1e-6, np.inf, inflation)
        if inflation.max() <= vif:
            break
        tied = np.flatnonzero(inflation >= inflation.max() * (1 - 1e-9))
        worst = kept.pop(int(min(tied, key=lambda k: worth[kept[k]])))
        out[worst] = f"variance inflation {inflation.max():.3g}"
    return out
