"""Figures of merit of a score, as risk modellers use them; computed by scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def figures(label: NDArray[np.int8], margins: NDArray[np.float64]) -> dict[str, float]:
    """AUC, KS and log-loss of log-odds.

    KS is the largest distance between the score distributions of the two classes (Kolmogorov and Smirnov), in 0..1.

    Args:
        label: int8 (m,), 0 or 1, both present.
        margins: float64 (m,), log-odds.
    """
    from sklearn.metrics import log_loss, roc_auc_score, roc_curve  # a second to import, and few runs evaluate

    false_positive, true_positive, _ = roc_curve(label, margins)
    return {
        "auc": float(roc_auc_score(label, margins)),
        "ks": float(np.max(true_positive - false_positive)),
        "log_loss": float(log_loss(label, probabilities(margins))),
    }


def probabilities(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the positive class from log-odds."""
    return np.asarray(1 / (1 + np.exp(-margins)))
