"""Figures of merit of a score, as risk modellers use them; computed by scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Glm
from fedlearn.learner.glm import family_of
from fedlearn.learner.objective import Objective

F64 = NDArray[np.float64]


def figures(objective: Objective, label: F64, margins: F64) -> dict[str, float]:
    """Figures that suit the objective.

    ``logistic``: AUC, KS and log-loss; KS is the largest distance between the score distributions of the two classes
    (Kolmogorov and Smirnov), in 0..1. ``softmax``: log-loss and accuracy. Otherwise: root mean square and mean absolute
    error of the predicted mean, and R².

    Args:
        objective: the contract's.
        label: float64 (m,).
        margins: float64 (K, m).
    """
    from sklearn import metrics  # takes a second to import, and most commands print no figures

    loss = float(objective.loss(margins, label).mean())
    if objective.name == "logistic":
        false_positive, true_positive, _ = metrics.roc_curve(label, margins[0])
        return {
            "auc": float(metrics.roc_auc_score(label, margins[0])),
            "ks": float(np.max(true_positive - false_positive)),
            "log_loss": loss,
        }
    if objective.name == "softmax":
        return {"log_loss": loss, "accuracy": float(np.mean(margins.argmax(axis=0) == label))}
    mean = objective.mean(margins)[0]
    return {
        "rmse": float(metrics.root_mean_squared_error(label, mean)),
        "mae": float(metrics.mean_absolute_error(label, mean)),
        "r2": float(metrics.r2_score(label, mean)),
    }


def linear_figures(glm: Glm, label: F64, eta: F64) -> dict[str, float]:
    """Figures of a regression on its training rows: for ``logistic`` AUC, KS and log-loss, else RMSE, MAE and R².

    Args:
        glm: the contract's settings.
        label: float64 (m,).
        eta: float64 (m,), linear predictor.
    """
    from sklearn import metrics

    if glm.family == "logistic":
        false_positive, true_positive, _ = metrics.roc_curve(label, eta)
        return {
            "auc": float(metrics.roc_auc_score(label, eta)),
            "ks": float(np.max(true_positive - false_positive)),
            "log_loss": float(np.mean(np.logaddexp(0, eta) - label * eta)),
        }
    mean = family_of(glm).mean(eta)
    return {
        "rmse": float(metrics.root_mean_squared_error(label, mean)),
        "mae": float(metrics.mean_absolute_error(label, mean)),
        "r2": float(metrics.r2_score(label, mean)),
    }
