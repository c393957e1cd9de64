"""From a model's margin to a probability that holds on rows it has not seen; part of the active side's share.

Fitted on the margins of held-out folds (``[boost] folds``) against the labels. With a thousand rows or more: isotonic
regression, straight lines between the ends of its steps (Zadrozny and Elkan, KDD 2002). With fewer, where steps would
follow the noise: a logistic curve with Platt's targets (Platt 1999, in the form of Lin, Lin and Weng 2007). A margin
beyond those seen gets the nearest probability of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_ROWS_FOR_STEPS = 1000


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone curve: probabilities float64 (p,) at margins float64 (p,); or with p = 0 the logistic curve.

    Attributes:
        margins: strictly ascending.
        chances: not descending, in 0..1.
        slope, intercept: of the logistic curve.
    """

    margins: F64
    chances: F64
    slope: float = 1.0
    intercept: float = 0.0

    def of(self, margins: F64) -> F64:
        """Calibrated probabilities of margins of any shape."""
        if len(self.margins):
            return np.asarray(np.interp(margins, self.margins, self.chances))
        return np.asarray(1 / (1 + np.exp(-np.maximum(self.slope * margins + self.intercept, -700.0))))

    @property
    def method(self) -> str:
        """``isotonic`` or ``logistic``."""
        return "isotonic" if len(self.margins) else "logistic"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, from which :meth:`from_json` restores the curve exactly."""
        numbers = {"slope": self.slope, "intercept": self.intercept}
        return {"margins": self.margins.tolist(), "chances": self.chances.tolist(), **numbers}

    @staticmethod
    def from_json(saved: Any) -> Calibration:
        """The inverse. Raises ValueError, KeyError or TypeError for anything that it cannot have written."""
        margins, chances = (np.array(saved[name], np.float64) for name in ("margins", "chances"))
        found = Calibration(margins, chances, float(saved["slope"]), float(saved["intercept"]))
        if margins.ndim != 1 or margins.shape != chances.shape:
            raise ValueError("the calibration has not as many margins as probabilities")
        if not np.isfinite([*margins, found.slope, found.intercept]).all() or np.any(np.diff(margins) <= 0):
            raise ValueError("the margins of the calibration do not ascend")
        if np.any(np.diff(chances) < 0) or not np.all((chances >= 0) & (chances <= 1)):
            raise ValueError("the probabilities of the calibration do not ascend from 0 to 1")
        return found


def fit(margins: F64, label: F64, weight: F64) -> Calibration:
    """The curve for margins float64 (n,) of rows that the model did not see; label (n,) 0 or 1; weight (n,)."""
    return _steps(margins, label, weight) if len(margins) >= _ROWS_FOR_STEPS else _logistic(margins, label, weight)


def _steps(margins: F64, label: F64, weight: F64) -> Calibration:
    from scipy.optimize import isotonic_regression

    distinct, place = np.unique(margins, return_inverse=True)
    total = np.bincount(place, weight)
    kept = total > 0
    distinct, total = distinct[kept], total[kept]
    mean = np.bincount(place, weight * label)[kept] / total
    chances = np.clip(isotonic_regression(mean, weights=total).x, 0.0, 1.0)
    same = np.diff(chances) == 0
    inner = np.concatenate([[False], same[:-1] & same[1:], [False]]) if len(same) else np.zeros(len(chances), np.bool_)
    return Calibration(distinct[~inner], chances[~inner])


def _logistic(margins: F64, label: F64, weight: F64) -> Calibration:
    """Newton's steps on the cross-entropy against Platt's targets, halved while they do not help."""
    bad, good = float(weight @ label), float(weight @ (1 - label))
    target = np.where(label > 0, (bad + 1) / (bad + 2), 1 / (good + 2))
    columns = np.stack([margins, np.ones_like(margins)])

    def loss(at: F64) -> float:
        eta = at @ columns
        return float(weight @ (np.logaddexp(0, eta) - target * eta))

    at = np.array([0.0, np.log((bad + 1) / (good + 1))])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(at @ columns, -700, 700)))
        gradient = columns @ (weight * (chance - target))
        curvature = (columns * (weight * np.maximum(chance * (1 - chance), 1e-12))) @ columns.T
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while loss(at - size * step) > loss(at) and size > 1e-10:
            size /= 2
        at = at - size * step
        if np.abs(size * step).max() < 1e-10 * max(1.0, np.abs(at).max()):
            break
    none = np.empty(0)
    return Calibration(none, none, float(at[0]), float(at[1]))
