"""What a report shows of scores against outcomes: curves, bands, cut-offs, and intervals by DeLong's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def delong(label: F64, scores: F64) -> tuple[F64, F64]:
    """Areas under ROC curves of several scores of the same rows, and their covariance.

    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves", Biometrics 44 (1988); by midranks after X. Sun and W. Xu (2014).

    Args:
        label: float64 (n,) of 0 and 1, at least two of each.
        scores: float64 (k, n).

    Returns:
        Areas, float64 (k,), and covariance, float64 (k, k).
    """
    from scipy.stats import rankdata

    bad = label == 1
    m, n = int(bad.sum()), int((~bad).sum())
    everyone = rankdata(scores, axis=1)
    above_good = (everyone[:, bad] - rankdata(scores[:, bad], axis=1)) / n  # share of goods below each bad
    above_bad = 1.0 - (everyone[:, ~bad] - rankdata(scores[:, ~bad], axis=1)) / m
    covariance = np.atleast_2d(np.cov(above_good)) / m + np.atleast_2d(np.cov(above_bad)) / n
    return np.asarray(above_good.mean(axis=1)), np.asarray(covariance)


def auc_of(label: F64, score: F64) -> Estimate | None:
    """AUC with DeLong's interval, within 0 and 1; None with fewer than two rows of a class."""
    if min(label.sum(), len(label) - label.sum()) < 2:
        return None
    area, covariance = delong(label, score[None])
    half = Z95 * float(np.sqrt(covariance[0, 0]))
    return Estimate(float(area[0]), max(0.0, float(area[0]) - half), min(1.0, float(area[0]) + half))


def uplift_of(label: F64, joint: F64, alone: F64) -> Estimate | None:
    """AUC of ``joint`` less that of ``alone`` on the same rows, with DeLong's paired interval; None as in `auc_of`."""
    if min(label.sum(), len(label) - label.sum()) < 2:
        return None
    area, c = delong(label, np.stack([joint, alone]))
    half = Z95 * float(np.sqrt(max(0.0, c[0, 0] + c[1, 1] - 2 * c[0, 1])))
    gain = float(area[0] - area[1])
    return Estimate(gain, gain - half, gain + half)


def mean_of(values: F64) -> Estimate:
    """The mean of independent rows with its normal interval."""
    half = Z95 * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def wilson(count: F64, rows: F64) -> tuple[F64, F64]:
    """Wilson's 95 % interval of shares ``count / rows`` (E. B. Wilson, 1927)."""
    share, z2 = count / rows, Z95**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z95 * np.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2)) / (1 + z2 / rows)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def distributions(label: F64, score: F64) -> tuple[F64, F64, F64]:
    """Share of either class at or below each distinct score: scores, of label 0, of label 1. KS is their distance."""
    values, place = np.unique(score, return_inverse=True)
    bad = np.bincount(place, label, len(values))
    good = np.bincount(place, 1 - label, len(values))
    return values, np.cumsum(good) / good.sum(), np.cumsum(bad) / bad.sum()


def gains(label: F64, score: F64) -> tuple[F64, F64]:
    """Share of rows taken from the highest score on, and share of the label's total among them; both from 0."""
    order = np.argsort(-score, kind="stable")
    captured = np.cumsum(label[order]) / max(float(label.sum()), 1e-300)
    return np.arange(len(label) + 1) / len(label), np.concatenate([[0.0], captured])


def bands(score: F64, count: int = 10) -> list[NDArray[np.int64]]:
    """Rows in ``count`` bands of equal size, the highest score first; ties are broken by the rows' order."""
    order = np.argsort(-score, kind="stable")
    return [part for part in np.array_split(order, min(count, len(order))) if len(part)]


def band_table(label: F64, score: F64, predicted: F64, count: int = 10) -> list[dict[str, Any]]:
    """Each band's size, scores, mean label and prediction, lift, and what is captured up to it."""
    base, total = float(label.mean()), max(float(label.sum()), 1e-300)
    lines: list[dict[str, Any]] = []
    seen = captured = 0.0
    for rows in bands(score, count):
        seen, captured = seen + len(rows), captured + float(label[rows].sum())
        mean = float(label[rows].mean())
        lines.append(
            {
                "band": len(lines) + 1, "rows": len(rows), "lowest": float(score[rows].min()),
                "highest": float(score[rows].max()), "sum": float(label[rows].sum()), "mean": mean,
                "predicted": float(predicted[rows].mean()), "lift": mean / base if base else 0.0,
                "captured": captured / total, "mean_so_far": captured / seen,
            }
        )  # fmt: skip
    return lines


def cut_offs(
    label: F64, probability: F64, accepted: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
) -> list[dict[str, Any]]:
    """Confusion where the share ``accepted`` with the lowest probabilities is taken and the rest refused.

    A row is refused when its probability is at or above the cut-off, so with ties somewhat fewer may be accepted.
    """
    lines, ranked = [], np.sort(probability)
    for share in accepted:
        cut = float(ranked[min(int(np.ceil(share * len(ranked))), len(ranked) - 1)])
        refused, bad = probability >= cut, label == 1
        tp, fp = int((refused & bad).sum()), int((refused & ~bad).sum())
        fn, tn = int((~refused & bad).sum()), int((~refused & ~bad).sum())
        lines.append(
            {
                "cut": cut, "accepted": (tn + fn) / len(label), "tp": tp, "fp": fp, "fn": fn, "tn": tn,
                "precision": tp / max(tp + fp, 1), "recall": tp / max(tp + fn, 1), "bad_accepted": fn / max(fn + tn, 1),
            }
        )  # fmt: skip
    return lines
