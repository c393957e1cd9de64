"""What a tree is fitted to: gradients and hessians of a loss in the margin, starting scores, metrics.

Formulas and constants follow XGBoost (Chen & Guestrin, KDD 2016, and its `objective` implementations), so that results
can be compared; the Tweedie deviance follows Jørgensen, "The Theory of Dispersion Models" (1997).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Boost

F64 = NDArray[np.float64]

#: XGBoost's smallest hessian of a class.
_LEAST_HESSIAN = 1e-16


@dataclass(frozen=True)
class Objective:
    """A loss. Margins are float64 (K, m): log-odds, log-means or means; labels float64 (m,); weights float64 (m,).

    Attributes:
        name: as in the contract.
        outputs: K, number of margins per row.
        gradients: (margins, label) to gradient and hessian, (K, m) each, unweighted.
        start: (label, weight) to the starting margins, (K,).
        mean: margins to predictions: probabilities (K, m) or means.
        loss: (margins, label) to the loss of each row, (m,): what early stopping follows by default.
    """

    name: str
    outputs: int
    gradients: Callable[[F64, F64], tuple[F64, F64]]
    start: Callable[[F64, F64], F64]
    mean: Callable[[F64], F64]
    loss: Callable[[F64, F64], F64]


def objective_of(boost: Boost, classes: int, also: tuple[str, ...] = ()) -> Objective:
    """The contract's objective; ``classes`` counts the label values of ``softmax``.

    ``also`` are the objectives of further labels; then labels are float64 (K, m), one for each margin.
    """
    if also:
        return _several([objective_of(boost, 1), *(objective_of(_of(boost, name), 1) for name in also)])
    if boost.objective == "softmax":
        return _softmax(classes)
    if boost.objective == "tweedie":
        return _tweedie(boost.tweedie_power)
    if boost.objective == "poisson":
        return _poisson(boost.step_bound)
    return {"logistic": LOGISTIC, "squared": _SQUARED}[boost.objective]


def _of(boost: Boost, objective: str) -> Boost:
    return boost.model_copy(update={"objective": objective})


def _several(objectives: list[Objective]) -> Objective:
    """One margin for each of several labels, which have nothing to do with one another but their rows."""

    def each(function: str, margins: F64, labels: F64) -> list[tuple[F64, F64] | F64]:
        return [getattr(objective, function)(margins[k : k + 1], labels[k]) for k, objective in enumerate(objectives)]

    def gradients(margins: F64, labels: F64) -> tuple[F64, F64]:
        found = each("gradients", margins, labels)
        return np.concatenate([g for g, _ in found]), np.concatenate([h for _, h in found])

    return Objective(
        "several",
        len(objectives),
        gradients,
        lambda labels, weight: np.concatenate([o.start(labels[k], weight) for k, o in enumerate(objectives)]),
        lambda margins: np.concatenate([o.mean(margins[k : k + 1]) for k, o in enumerate(objectives)]),
        lambda margins, labels: np.mean(each("loss", margins, labels), axis=0),
    )


def metric_of(boost: Boost, objective: Objective) -> tuple[str, Callable[[F64, F64, F64], float]]:
    """Name and function (margins, label, weight) of the metric that early stopping minimises."""
    name = boost.metric or "loss"
    function = {
        "loss": lambda margins, label, weight: _mean(objective.loss(margins, label), weight),
        "error": lambda margins, label, weight: _mean(_wrong(objective, margins, label), weight),
        "auc": _minus_auc,
        "rmse": lambda margins, label, weight: _mean((objective.mean(margins)[0] - label) ** 2, weight) ** 0.5,
        "mae": lambda margins, label, weight: _mean(np.abs(objective.mean(margins)[0] - label), weight),
    }[name]
    return name, function


def _minus_auc(margins: F64, label: F64, weight: F64) -> float:
    from sklearn.metrics import roc_auc_score  # takes a second to import, and most runs do not stop by AUC

    return -float(roc_auc_score(label, margins[0], sample_weight=weight))


def _mean(values: F64, weight: F64) -> float:
    return float(np.average(values, weights=weight))


def _wrong(objective: Objective, margins: F64, label: F64) -> F64:
    guess = margins.argmax(axis=0) if objective.outputs > 1 else (margins[0] > 0)
    return np.asarray(guess != label, np.float64)


def sigmoid(margins: F64) -> F64:
    """1/(1 + exp(-x)) without overflow (logaddexp would do, at twenty times the cost)."""
    return np.asarray(1 / (1 + np.exp(-np.maximum(margins, -700.0))))


def _logistic_gradients(margins: F64, label: F64) -> tuple[F64, F64]:
    chance = sigmoid(margins)
    return chance - label, np.maximum(chance * (1 - chance), _LEAST_HESSIAN)


def _logistic_start(label: F64, weight: F64) -> F64:
    rate = np.clip(np.average(label, weights=weight), 1e-6, 1 - 1e-6)
    return np.log([rate / (1 - rate)])


LOGISTIC = Objective(
    "logistic",
    1,
    _logistic_gradients,
    _logistic_start,
    sigmoid,
    lambda margins, label: np.logaddexp(0, margins[0]) - label * margins[0],
)

_SQUARED = Objective(
    "squared",
    1,
    lambda margins, label: (margins - label, np.ones_like(margins)),
    lambda label, weight: np.array([np.average(label, weights=weight)]),
    lambda margins: margins,
    lambda margins, label: (margins[0] - label) ** 2 / 2,
)


def _log_mean(label: F64, weight: F64) -> F64:
    return np.log([max(float(np.average(label, weights=weight)), 1e-16)])


def _poisson(step: float) -> Objective:
    """Counts, log link; the bound on steps enters the hessian, which keeps the exponential in check."""
    return Objective(
        "poisson",
        1,
        lambda margins, label: (np.exp(margins) - label, np.exp(margins + step)),
        _log_mean,
        np.exp,
        lambda margins, label: np.exp(margins[0]) - label * margins[0],
    )


def _tweedie(power: float) -> Objective:
    """Compound Poisson-gamma with variance power between 1 and 2, log link."""

    def gradients(margins: F64, label: F64) -> tuple[F64, F64]:
        low, high = np.exp((1 - power) * margins), np.exp((2 - power) * margins)
        return high - label * low, (2 - power) * high - (1 - power) * label * low

    def loss(margins: F64, label: F64) -> F64:
        low, high = np.exp((1 - power) * margins[0]), np.exp((2 - power) * margins[0])
        return np.asarray(high / (2 - power) - label * low / (1 - power))

    return Objective("tweedie", 1, gradients, _log_mean, np.exp, loss)


def _softmax(classes: int) -> Objective:
    """Multinomial logistic with one tree per class and round; hessian 2p(1 - p), as XGBoost has it."""

    def log_chances(margins: F64) -> F64:
        shifted = margins - margins.max(axis=0)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=0)))

    def gradients(margins: F64, label: F64) -> tuple[F64, F64]:
        chance = np.exp(log_chances(margins))
        target = np.arange(classes)[:, None] == label
        return chance - target, np.maximum(2 * chance * (1 - chance), _LEAST_HESSIAN)

    def loss(margins: F64, label: F64) -> F64:
        return -log_chances(margins)[label.astype(np.int64), np.arange(len(label))]

    return Objective(
        "softmax",
        classes,
        gradients,
        lambda label, weight: np.full(classes, 0.5),
        lambda margins: np.exp(log_chances(margins)),
        loss,
    )
