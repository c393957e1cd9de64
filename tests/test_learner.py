"""The learner against XGBoost and scikit-learn on pooled rows, setting by setting."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xgboost
from pydantic import ValidationError
from sklearn import metrics
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from fedlearn.contract import Boost
from fedlearn.errors import NoOverlap
from fedlearn.learner import booster
from fedlearn.learner.objective import objective_of
from fedlearn.protocols import boost
from tests.boosting import Case, leaves_of, numbers, sides_of

XGBOOST = {
    "logistic": {"objective": "binary:logistic"},
    "softmax": {"objective": "multi:softprob"},
    "squared": {"objective": "reg:squarederror"},
    "poisson": {"objective": "count:poisson"},
    "tweedie": {"objective": "reg:tweedie", "tweedie_variance_power": 1.5},
}


def grid(n: int, seed: int, values: int = 12) -> tuple[dict[str, Any], np.ndarray]:
    """Columns of few values, so that our bins and XGBoost's are the same, and a signal of about unit size."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (n, 4)).astype(float)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    return {f"x{i}": x[:, i] for i in range(4)}, (z[:, 0] + z[:, 3] + z[:, 1] * z[:, 2]) / 2


def labels(objective: str, signal: np.ndarray, classes: int = 3) -> np.ndarray:
    rng = np.random.default_rng(9)
    noisy = signal + rng.normal(size=len(signal)) / 2
    if objective == "logistic":
        return noisy > 0.3
    if objective == "softmax":
        return np.searchsorted(np.quantile(noisy, np.arange(1, classes) / classes), noisy)
    if objective == "squared":
        return 3 * noisy + 5
    counts = rng.poisson(np.exp(signal / 2))
    return counts if objective == "poisson" else counts * rng.gamma(2, 1, len(signal))


def by_xgboost(case: Case, margins: bool = True, **more: Any) -> np.ndarray:
    """XGBoost's margins (K, m) on the pooled rows under the same settings."""
    s = case.settings
    parameters = {
        **XGBOOST[s.objective], "tree_method": "hist", "max_depth": s.depth, "max_bin": 256, "eta": s.learning_rate,
        "lambda": s.reg_lambda, "alpha": s.reg_alpha, "gamma": s.gamma, "min_child_weight": s.min_child_weight,
        "max_delta_step": s.max_delta_step, "scale_pos_weight": s.scale_pos_weight, "nthread": 2, **more,
    }  # fmt: skip
    if s.objective != "logistic":
        del parameters["scale_pos_weight"]
    if s.objective == "softmax":
        parameters["num_class"] = case.contract().outputs
    x = np.stack(list(case.columns.values()), axis=1)
    data = xgboost.DMatrix(x, case.label, weight=case.active.rows.weight)
    found = xgboost.train(parameters, data, s.trees).predict(data, output_margin=True)
    return np.atleast_2d(found.T)


def loss_of(case: Case, margins: np.ndarray) -> float:
    objective = objective_of(case.settings, case.contract().outputs)
    return float(np.average(objective.loss(margins, case.label), weights=case.active.rows.weight))


@pytest.mark.parametrize(
    ("objective", "classes"),
    [("logistic", 2), ("softmax", 3), ("softmax", 10), ("squared", 1), ("poisson", 1), ("tweedie", 1)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_those_of_xgboost(objective, classes, weighted):
    """At equal bins only quantisation (16 bits) and float32 differ, so a split may fall otherwise near a tie."""
    columns, signal = grid(3000, 1)
    weight = np.random.default_rng(2).integers(1, 5, 3000) if weighted else None
    more = {"max_delta_step": 0.7} if objective == "poisson" else {}
    case = Case(
        columns, labels(objective, signal, classes), 2, weight=weight, objective=objective, trees=10, depth=3,
        learning_rate=0.3, gradient_bits=16, **more,
    )  # fmt: skip
    ours = loss_of(case, case.fit_pooled().margins)
    start = objective_of(case.settings, classes).start(case.label, case.active.rows.weight)
    begun = loss_of(case, np.repeat(start[:, None], 3000, axis=1))
    theirs = loss_of(case, by_xgboost(case))
    assert begun - theirs > 0.02
    assert abs(ours - theirs) < 0.02 * (begun - theirs)


@pytest.mark.parametrize("objective", list(XGBOOST))
def test_gradients_are_the_derivatives_of_the_loss(objective):
    rng = np.random.default_rng(0)
    columns, signal = grid(40, 1)
    case = Case(columns, labels(objective, signal), 2, objective=objective, depth=1)
    loss = objective_of(case.settings, case.contract().outputs)
    margins = rng.normal(size=(loss.outputs, 40))
    gradient, hessian = loss.gradients(margins, case.label)
    for k in range(loss.outputs):
        step = np.zeros_like(margins)
        step[k] = 1e-5
        slope = (loss.loss(margins + step, case.label) - loss.loss(margins - step, case.label)) / 2e-5
        np.testing.assert_allclose(gradient[k], slope, atol=1e-6)
    assert (hessian > 0).all()


def test_integer_weights_are_duplicated_rows():
    columns, signal = grid(1200, 3)
    label = labels("logistic", signal)
    weight = np.random.default_rng(4).integers(1, 4, 1200)
    rows = np.repeat(np.arange(1200), weight)
    settings = {"trees": 8, "depth": 3, "gradient_bits": 16, "learning_rate": 0.3}
    weighted = Case(columns, label, 2, weight=weight, **settings)
    repeated = Case({n: v[rows] for n, v in columns.items()}, label[rows], 2, **settings)
    ours, theirs = weighted.fit_pooled().margins[0][rows], repeated.fit_pooled().margins[0]
    assert np.abs(ours - theirs).mean() < 0.01 * theirs.std()


def test_weight_of_positive_rows_and_start():
    columns, signal = grid(2000, 3)
    label = labels("logistic", signal)
    settings = {"trees": 8, "depth": 3, "gradient_bits": 16, "learning_rate": 0.3}
    case = Case(columns, label, 2, scale_pos_weight=5.0, start=0.0, **settings)
    same = Case(columns, label, 2, weight=np.where(label, 5.0, 1.0), start=0.0, **settings)
    np.testing.assert_array_equal(case.fit_pooled().margins, same.fit_pooled().margins)
    theirs = by_xgboost(case, base_score=0.5)
    assert np.abs(case.fit_pooled().margins - theirs).mean() < 0.02 * theirs.std()
    assert Case(columns, label, 2, start=-1.5, **settings).fit_pooled().forest.base == [-1.5]


@pytest.mark.parametrize(
    "rule", [{"reg_alpha": 20.0}, {"max_delta_step": 0.2}, {"gamma": 15.0}, {"min_child_weight": 60.0}]
)
def test_rules_are_those_of_xgboost(rule):
    columns, signal = grid(2000, 3)
    case = Case(columns, labels("logistic", signal), 2, trees=6, depth=3, gradient_bits=16, learning_rate=0.3, **rule)
    ours, theirs = case.fit_pooled().margins, by_xgboost(case)
    free = replace_rules(case)
    assert np.abs(ours - theirs).mean() < 0.02 * theirs.std()
    assert np.abs(ours - free).mean() > 2 * np.abs(ours - theirs).mean()


def replace_rules(case: Case) -> np.ndarray:
    return case.fit_pooled(reg_alpha=0.0, max_delta_step=0.0, gamma=0.0, min_child_weight=1.0).margins


def test_bounds_on_leaves():
    columns, signal = grid(1000, 3)
    case = Case(columns, labels("logistic", signal), 2, trees=3, depth=3, learning_rate=0.5, max_delta_step=0.3)
    value = case.fit_pooled().forest.value
    assert np.abs(value).max() == pytest.approx(0.15)
    assert np.abs(case.fit_pooled(max_delta_step=0.0).forest.value).max() > 0.2
    assert not case.fit_pooled(reg_alpha=1e6).forest.value.any()


def half_mse(label: np.ndarray, mean: np.ndarray) -> float:
    return float(metrics.mean_squared_error(label, mean)) / 2


METRICS = {
    "logistic": ("loss", "error", "auc", "rmse", "mae"),
    "softmax": ("loss", "error"),
    "squared": ("loss", "rmse", "mae"),
}


@pytest.mark.parametrize(
    ("objective", "metric"), [(objective, metric) for objective, metrics in METRICS.items() for metric in metrics]
)
def test_early_stopping_follows_the_metric(objective, metric):
    columns, signal = grid(600, 3)
    case = Case(
        columns, labels(objective, signal), 2, objective=objective, metric=metric, trees=60, depth=3,
        learning_rate=0.8, validation=0.3, early_stopping=4,
    )  # fmt: skip
    fit, valid = case.fit_pooled(), booster.split_of(600, case.settings).valid
    label, margins = case.label[valid], fit.margins[:, valid]
    mean = objective_of(case.settings, case.contract().outputs).mean(margins)
    best = {
        "loss": lambda: {"logistic": metrics.log_loss, "softmax": metrics.log_loss, "squared": half_mse}[objective](
            label, mean.T if len(mean) > 1 else mean[0]
        ),
        "error": lambda: np.mean((margins.argmax(axis=0) if len(margins) > 1 else margins[0] > 0) != label),
        "auc": lambda: -metrics.roc_auc_score(label, margins[0]),
        "rmse": lambda: metrics.root_mean_squared_error(label, mean[0]),
        "mae": lambda: metrics.mean_absolute_error(label, mean[0]),
    }[metric]()
    assert min(fit.history) == pytest.approx(best)
    assert fit.forest.trees == len(margins) * (1 + int(np.argmin(fit.history)))


def test_small_numbers_are_no_reason_to_stop():
    """Rates and shares of a thousandth: what improves them is small too."""
    columns, signal = grid(600, 3)
    fit = Case(
        columns, labels("squared", signal) / 4096, 2, objective="squared", trees=60, depth=3, validation=0.3,
        early_stopping=4,
    ).fit_pooled()  # fmt: skip
    assert fit.forest.trees == 1 + int(np.argmin(fit.history)) > 10


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective": "squared", "metric": "error"},
        {"objective": "poisson", "metric": "error"},
        {"objective": "poisson", "scale_pos_weight": 2.0},
        {"objective": "softmax", "scale_pos_weight": 2.0},
        {"objective": "squared", "start": float("nan")},
        {"learning_rate": float("inf")},
    ],
)
def test_settings_without_a_meaning_are_refused(parameters):
    with pytest.raises(ValidationError):
        Boost(**parameters)


def test_auc_needs_both_labels_among_the_rows_that_validate():
    columns, _ = grid(600, 3)
    rare = np.zeros(600)
    case = Case(columns, rare, 2, metric="auc", trees=3, validation=0.1, early_stopping=2)
    train = booster.split_of(600, case.settings).train
    rare[train[:5]] = 1
    case = Case(columns, rare, 2, metric="auc", trees=3, validation=0.1, early_stopping=2)
    with pytest.raises(NoOverlap, match="metric auc needs both"):
        case.train()


# --- monotone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("objective", ["logistic", "squared"])
def test_monotone_on_both_sides(sign, objective):
    """Along each constrained feature, all else equal, margins keep their direction; whichever way bins were flipped."""
    columns, signal = grid(1500, 5)
    wave = signal + 0.8 * np.sin(columns["x0"]) + 0.8 * np.sin(columns["x3"])
    label = labels(objective, sign * wave)
    constraints = {"x0": sign, "x3": sign}
    case = Case(
        columns, label, 2, monotone=constraints, objective=objective, trees=10, depth=4, learning_rate=0.3,
        gradient_bits=16,
    )  # fmt: skip
    for _ in range(3):  # each session flips at random
        result, served = case.train()
        forest = result.fit.forest
        for side, feature, data in ((0, 0, case.active.rows), (1, 1, case.passive)):
            margins = []
            for b in range(12):
                bins = data.bins.copy()
                bins[feature] = b
                changed = Case.__new__(Case)
                changed.__dict__ |= case.__dict__
                if side:
                    changed.passive = replace(case.passive, bins=bins)
                own = case.active.rows.bins if side else bins
                margins.append(forest.margins(own, sides_of(changed, served), case.active.position)[0])
            assert (sign * np.diff(margins, axis=0) >= -1e-12).all()
            assert np.ptp(margins) > 0.5
    theirs = by_xgboost(case, monotone_constraints=f"({sign},0,0,{sign})")
    ours, free = loss_of(case, result.fit.margins), loss_of(case, case.fit_pooled().margins)
    assert ours == pytest.approx(free, rel=1e-9)
    assert abs(ours - loss_of(case, theirs)) < 0.02 * loss_of(case, theirs)


# --- growth and sampling -----------------------------------------------------------------------------


def test_growth_by_leaf():
    case = Case(*numbers(600, 4, seed=1), 2, trees=3, depth=4, gradient_bits=12)
    by_level = case.fit_pooled()
    unlimited = case.fit_pooled(growth="leaf", max_leaves=64)
    np.testing.assert_allclose(unlimited.margins, by_level.margins, rtol=1e-12)
    for most in (2, 5, 9):
        forest = case.fit_pooled(growth="leaf", max_leaves=most, depth=8).forest
        assert {len(leaves_of(forest, t)) for t in range(3)} == {most}


def auc(case: Case, margins: np.ndarray) -> float:
    return float(roc_auc_score(case.label, margins[0]))


@pytest.mark.parametrize(
    "sampling", [{"subsample": 0.5}, {"feature_share": 0.5}, {"goss_top": 0.2, "goss_rest": 0.1}, {"active_trees": 5}]
)
def test_sampling_costs_little(sampling):
    case = Case(*numbers(3000, 6, seed=1), 3, trees=25, folds=2, learning_rate=0.2)
    full, less = (case.train(case.contract(**more))[0] for more in ({}, sampling))
    assert auc(case, less.held_out) > auc(case, full.held_out) - 0.012
    assert (less.held_out != full.held_out).any()
    sizes = less.fit.forest.size[less.fit.forest.roots]
    if "subsample" in sampling:
        assert abs(sizes.mean() / 3000 - 0.5) < 0.02
    if "goss_top" in sampling:
        assert abs(sizes.mean() / 3000 - 0.3) < 0.02


def test_first_trees_without_the_peer():
    case = Case(*numbers(400, 4, seed=1), 2, trees=4, depth=3, active_trees=2)
    result, _ = case.train()
    forest = result.fit.forest
    passive = np.flatnonzero((forest.left >= 0) & (forest.feature < 0))
    assert passive.min() >= forest.roots[2]
    alone = case.fit_alone(trees=2).forest
    np.testing.assert_array_equal(forest.value[: forest.roots[2]], alone.value)
    none, served = case.train(case.contract(active_trees=4))
    assert len(served.feature) == 0
    np.testing.assert_array_equal(none.fit.margins, case.fit_alone().margins)


def test_random_forest():
    columns, label = numbers(2000, 6, seed=1)
    settings = {"trees": 40, "depth": 6, "forest": "random", "subsample": 0.63, "feature_share": 0.7, "folds": 2}
    case = Case(columns, label, 3, min_child_weight=0.0, reg_lambda=0.1, **settings)
    result, _ = case.train()
    x = np.stack(list(columns.values()), axis=1)
    theirs = np.empty(2000)
    for k in (0, 1):
        model = RandomForestClassifier(40, max_depth=6, random_state=0, n_jobs=2)
        out = result.fold == k
        theirs[out] = model.fit(x[~out], label[~out]).predict_proba(x[out])[:, 1]
    assert abs(auc(case, result.held_out) - roc_auc_score(label, theirs)) < 0.02
    assert result.fit.forest.trees == 40


def test_least_rows_of_the_contract():
    case = Case(*numbers(400, 4, seed=3), 2, trees=3, depth=5, budget={"least_rows": 25})
    forest = case.train()[0].fit.forest
    assert forest.size[forest.left < 0].min() >= 25
    assert boost.least_size(case.contract(min_child_size=40)) == 40


# --- data that are not usual -------------------------------------------------------------------------


def test_two_hundred_categories():
    rng = np.random.default_rng(0)
    group = np.concatenate([np.arange(200), rng.integers(0, 200, 5800)])
    effect = rng.normal(size=200)
    label = effect[group] + rng.normal(size=6000) / 2 > 0
    case = Case(
        {"noise": rng.normal(size=6000), "town": np.array([f"t{g}" for g in group])}, label, 1, trees=5, bins=200
    )
    margins = case.train()[0].fit.margins
    assert auc(case, margins) > 0.97 * roc_auc_score(label, effect[group])
    np.testing.assert_array_equal(margins, case.fit_pooled().margins)


@pytest.mark.parametrize("depth", [1, 10])
@pytest.mark.parametrize("rare", [False, True])
def test_depths_and_rare_positives(depth, rare):
    columns, signal = grid(4000, 1)
    label = signal > np.quantile(signal, 0.95) if rare else labels("logistic", signal)
    case = Case(columns, label, 2, trees=8, depth=depth, gradient_bits=16, learning_rate=0.3)
    ours = loss_of(case, case.fit_pooled().margins)
    assert ours == pytest.approx(loss_of(case, by_xgboost(case)), rel=0.03)


def test_columns_without_information():
    columns, signal = grid(500, 1)
    label = labels("logistic", signal)
    empty = {"constant": np.ones(500), "missing": np.full(500, np.nan)}
    settings = {"trees": 4, "depth": 3, "gradient_bits": 16}
    with_them = Case(columns | empty, label, 3, **settings).train()[0].fit
    np.testing.assert_array_equal(with_them.margins, Case(columns, label, 2, **settings).fit_pooled().margins)
