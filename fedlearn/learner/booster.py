"""Rounds of boosting on the side that has labels: gradients, sampling, quantisation, leaf refit, early stopping, folds.

Several models (cross-validation folds and the final one) are boosted in lock-step, so that folds cost encrypted vectors
but no round trips, and one hint serves them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Boost
from fedlearn.crypto.draws import Draws
from fedlearn.kernels import trees as kernel
from fedlearn.learner.grower import Features, Passive, Tree, grow, rules_of
from fedlearn.learner.objective import Objective, metric_of, objective_of
from fedlearn.models.forest import Forest, Growth

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """What the active side trains on, in its own order of rows.

    Attributes:
        bins: uint8 (F, m), own features; the last bin of each is for missing values.
        features: of the own features.
        label: float64 (m,): 0 or 1, a class number, or a value.
        weight: float64 (m,), positive.
        classes: number of classes (``softmax``), else 1.
        trains: bool (m,), rows that may train or validate; the others ride along. None: all may.
        more: float64 (K - 1, m), further labels of the same rows; none by default.
        also: their objectives.
    """

    bins: U8
    features: Features
    label: F64
    weight: F64
    classes: int = 1
    more: F64 | None = None
    also: tuple[str, ...] = ()
    trains: NDArray[np.bool_] | None = None

    @property
    def training(self) -> I64:
        """The rows that may train or validate, int64, ascending."""
        return np.arange(len(self.label)) if self.trains is None else np.flatnonzero(self.trains)

    @property
    def targets(self) -> F64:
        """What the objective takes for labels: float64 (m,), or (K, m) where there are several."""
        return self.label if self.more is None else np.concatenate([self.label[None], self.more])

    def objective(self, boost: Boost) -> Objective:
        """The objective of all labels together."""
        return objective_of(boost, self.classes, self.also)


@dataclass(frozen=True)
class Split:
    """Which own rows train and which validate (int64, ascending); the rest only ride along."""

    train: I64
    valid: I64


@dataclass(frozen=True)
class Fit:
    """One fitted model.

    Attributes:
        forest: the trees up to the best round.
        margins: float64 (K, m) of every own row after those trees, training rows and others alike.
        history: the metric on the validation rows after each round; empty without such rows.
    """

    forest: Forest
    margins: F64
    history: list[float]


@dataclass
class Model:
    """A model while it is boosted.

    Attributes:
        number: names its random choices; folds count from 0, the final model comes last.
        split: its rows.
        margins: float64 (K, m).
        base: float64 (K,), where margins start.
        growth: its trees so far.
        output: which margin each tree adds to.
        best: metric, number of trees and margins of the best round so far.
    """

    number: int
    split: Split
    margins: F64
    base: F64
    growth: Growth = field(default_factory=Growth)
    output: list[int] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    best: tuple[float, int, F64] | None = None
    stopped: bool = False


def stream(boost: Boost, purpose: str) -> Draws:
    """Repeatable choices that are no secret from the active side: folds, samples, rounding. From the seed."""
    return Draws(hashlib.sha256(f"fedlearn/1 boost {boost.seed} {purpose}".encode()).digest())


def folds_of(label: F64, boost: Boost) -> I64:
    """Cross-validation fold of each own row, int64 (m,), -1 without folds; stratified by label where it has classes."""
    fold = np.full(len(label), -1, np.int64)
    if boost.folds:
        groups = label if boost.objective in ("logistic", "softmax") else np.zeros(len(label))
        for value in np.unique(groups):
            rows = np.flatnonzero(groups == value)
            order = stream(boost, f"folds {int(value)}").permutation(len(rows))
            fold[rows[order]] = np.arange(len(rows)) % boost.folds
    return fold


def split_of(rows: int, boost: Boost, held_out: NDArray[np.bool_] | None = None) -> Split:
    """Rows to train and to validate on, given the rows held out from both."""
    kept = np.arange(rows) if held_out is None else np.flatnonzero(~held_out)
    count = round(boost.validation * len(kept))
    order = stream(boost, "validation").permutation(len(kept))
    return Split(np.sort(kept[order[count:]]), np.sort(kept[order[:count]]))


def fit(
    rows: Rows,
    boost: Boost,
    splits: list[Split],
    passive: Passive | None,
    *,
    least_size: int = 1,
    round_done: Callable[[int, list[Model]], None] | None = None,
    models: list[Model] | None = None,
    first_round: int = 0,
) -> list[Fit]:
    """Boost one model for each split, in lock-step.

    Args:
        rows: the active side's rows.
        boost: the contract's settings.
        splits: training and validation rows of each model.
        passive: the peer, or None for the active side's own features alone.
        least_size: least number of training rows in a child, ``boost.min_child_size`` or a larger floor.
        round_done: called after each round with the number of rounds done and the models (progress, checkpoints).
        models, first_round: what to go on from: a checkpoint, or an earlier model (warm start).

    Returns:
        A fit for each split.
    """
    objective = rows.objective(boost)
    if models is None:
        models = [_begin(k, rows, boost, split, objective) for k, split in enumerate(splits)]
    rounds = 1 if boost.forest == "random" else boost.trees
    for number in range(first_round, rounds):
        running = [model for model in models if not model.stopped]
        if not running:
            break
        _round(number, running, rows, boost, objective, passive, max(least_size, boost.min_child_size))
        if round_done is not None:
            round_done(number + 1, models)
    return [_end(model, boost, objective) for model in models]


def _begin(number: int, rows: Rows, boost: Boost, split: Split, objective: Objective) -> Model:
    base = objective.start(rows.targets[..., split.train], weights_of(rows, boost)[split.train])
    if boost.start is not None:
        base = np.full(objective.outputs, boost.start)
    return Model(number, split, np.repeat(base[:, None], len(rows.label), axis=1), base)


def go_on(forest: Forest, margins: F64, rows: Rows, boost: Boost, splits: list[Split]) -> list[Model]:
    """The model that goes on from earlier trees (warm start); without folds, as no fold's trees are kept.

    Its best round so far is the earlier model's last one, so early stopping never returns fewer trees than those.

    Args:
        forest, margins: the earlier trees, and float64 (K, m) of the rows after them.
        rows, boost: as for :func:`fit`.
        splits: training and validation rows of the one model.
    """
    (split,) = splits
    model = Model(0, split, margins, forest.base, Growth.of(forest), forest.output.tolist())
    if len(split.valid):
        value = _metric(model, rows, boost, rows.objective(boost))
        model.best = (value, forest.trees, margins.copy())
    return [model]


def _end(model: Model, boost: Boost, objective: Objective) -> Fit:
    trees, margins = len(model.output), model.margins
    if boost.early_stopping and model.best is not None:
        _, trees, margins = model.best
    return Fit(model.growth.freeze(model.base, trees, model.output), margins, model.history)


def weights_of(rows: Rows, boost: Boost) -> F64:
    """Row weights with the positive rows' factor, float64 (m,)."""
    if boost.scale_pos_weight == 1.0:
        return rows.weight
    return np.where(rows.label == 1, boost.scale_pos_weight, 1.0) * rows.weight


def _round(
    number: int,
    models: list[Model],
    rows: Rows,
    boost: Boost,
    objective: Objective,
    passive: Passive | None,
    least_size: int,
) -> None:
    """One round of every model that still runs: K trees each (all trees at once in a random forest)."""
    layers = boost.trees if boost.forest == "random" else 1
    planted: list[tuple[Model, int, I64, F64, F64, Tree]] = []
    targets = rows.targets
    for model in models:
        gradient, hessian = objective.gradients(model.margins, targets)
        weight = weights_of(rows, boost)
        for layer in range(layers):
            draws = stream(boost, f"model {model.number} round {number} layer {layer}")
            train, factor = _sampled(boost, model.split.train, gradient * weight, draws)
            for output in range(objective.outputs):
                g, h = gradient[output] * weight * factor, hessian[output] * weight * factor
                tree = _plant(boost, train, g, h, draws, rows, passive, number, least_size)
                planted.append((model, output, train, g, h, tree))
    grow([tree for *_, tree in planted], rows.bins, rows.features, boost, least_size, passive)
    rate = 1.0 / layers if boost.forest == "random" else boost.learning_rate
    for model, output, train, g, h, tree in planted:
        _refit(tree, boost, train, g, h, rate)
        model.margins[output] += np.array(tree.growth.value)[tree.node]
        model.growth.append(tree.growth)
        model.output.append(output)
    for model in models:
        _judge(model, rows, boost, objective)


def _sampled(boost: Boost, train: I64, gradient: F64, draws: Draws) -> tuple[I64, F64 | float]:
    """Training rows of one round, and the factor on gradients that makes up for rows left out.

    GOSS (Ke et al., LightGBM, NeurIPS 2017) keeps the rows with the largest gradients and a sample of the others; its
    weights stand in the encrypted vectors, so the passive side sees nothing of it.
    """
    if boost.goss_top == 0 and boost.subsample == 1:
        return train, 1.0
    uniform = draws.words(len(train)) * 2.0**-64
    if boost.goss_top > 0:
        size = np.abs(gradient[:, train]).sum(axis=0)
        top = np.zeros(len(train), np.bool_)
        top[np.argsort(-size, kind="stable")[: round(boost.goss_top * len(train))]] = True
        share = min(1.0, boost.goss_rest / max(1e-12, 1 - boost.goss_top))
        kept = top | (uniform < share)
        factor = np.ones(gradient.shape[1])
        factor[train[kept & ~top]] = 1 / share
        return train[kept], factor
    return train[uniform < boost.subsample], 1.0


def _plant(
    boost: Boost,
    train: I64,
    gradient: F64,
    hessian: F64,
    draws: Draws,
    rows: Rows,
    passive: Passive | None,
    number: int,
    least_size: int,
) -> Tree:
    """A tree of one leaf with quantised gradients and the features it may use."""
    values = np.zeros((3 if least_size > 1 else 2, len(gradient)), np.int32)
    top = largest_value(boost)
    units = np.ones(2)
    for k, exact in enumerate((gradient, hessian)):
        units[k] = max(float(np.abs(exact[train]).max(initial=0.0)), 1e-12) / top
        kernel.quantise(exact, train, units[k], draws.words(len(exact)), values[k])
    if len(values) == 3:
        values[2, train] = 1
    count = len(rows.features.sizes)
    if passive is not None and number >= boost.active_trees:
        count += len(passive.features.sizes)
    allowed = np.ones(count, np.bool_)
    if boost.feature_share < 1:
        allowed[:] = False
        allowed[draws.permutation(count)[: max(1, round(boost.feature_share * count))]] = True
    return Tree.plant(values, units, allowed, train)


def largest_value(boost: Boost) -> int:
    """Largest absolute quantised gradient."""
    return (1 << (boost.gradient_bits - 1)) - 1


def _refit(tree: Tree, boost: Boost, train: I64, gradient: F64, hessian: F64, rate: float) -> None:
    """Leaf weights from exact gradients, within the bounds of monotone splits; cover and size of every node."""
    growth, rules = tree.growth, rules_of(boost, 1)
    count = len(growth.left)
    sums, n = np.zeros((count, 2)), np.zeros(count, np.int64)
    kernel.leaf_sums(tree.node, train, gradient, hessian, sums, n)
    g, h = sums[:, 0], sums[:, 1]
    for at in range(count - 1, -1, -1):
        left = growth.left[at]
        if left >= 0:
            h[at], n[at] = h[left] + h[left + 1], n[left] + n[left + 1]
        elif n[at]:
            growth.value[at] = rate * kernel.leaf_weight(g[at], h[at], *rules[:3], *tree.bounds[at])
        growth.cover[at], growth.size[at] = float(h[at]), int(n[at])


def _judge(model: Model, rows: Rows, boost: Boost, objective: Objective) -> None:
    """Metric on the validation rows; stop when it has not improved for long enough."""
    if not len(model.split.valid):
        return
    value = _metric(model, rows, boost, objective)
    model.history.append(value)
    trees = len(model.output)
    if model.best is None or value < model.best[0]:
        model.best = (value, trees, model.margins.copy())
    elif boost.early_stopping:
        rounds_since = (trees - model.best[1]) // objective.outputs
        model.stopped = rounds_since >= boost.early_stopping


def _metric(model: Model, rows: Rows, boost: Boost, objective: Objective) -> float:
    valid = model.split.valid
    _, metric = metric_of(boost, objective)
    return metric(model.margins[:, valid], rows.targets[..., valid], rows.weight[valid])
