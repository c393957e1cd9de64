"""The learner against XGBoost and LightGBM, tree by tree where gradients are whole, by AUC where rows are sampled.

A gradient that is a whole multiple of its unit survives quantisation unchanged. Labels, starting margin and bits are
chosen here so that all gradients of the first round are such (32767 = 7 · 4681, 63 = 7 · 9): the trees of that round
must then be the others' trees, node for node, at every depth. Two trees are compared by the leaf in which each row
ends, by leaf values and by gains: names of nodes, and where a threshold lies between two values, do not matter.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from fedlearn.bench import bits as bench
from fedlearn.cli import main
from fedlearn.contract import Boost
from fedlearn.errors import FileMissing
from fedlearn.learner import booster
from fedlearn.learner.booster import Fit
from fedlearn.protocols import boost
from tests.boosting import Case, Plain, numbers

TOP = 32767  # of 16 bits
N = 1200


@dataclass
class Table:
    """Columns, label and settings with whole gradients, and what the others are to be told besides."""

    columns: dict[str, Any]
    label: np.ndarray
    settings: dict[str, Any]
    weight: np.ndarray | None = None
    monotone: dict[str, int] = field(default_factory=dict)
    by_xgboost: dict[str, Any] = field(default_factory=dict)
    by_lightgbm: dict[str, Any] = field(default_factory=dict)

    def case(self) -> Case:
        names = list(self.columns)
        settings = {"trees": 1, "depth": 3, "bins": 255, "gradient_bits": 16, "learning_rate": 0.5, "start": 0.0}
        return Case(
            self.columns, self.label, names[len(names) // 2 :], weight=self.weight, monotone=self.monotone,
            **settings | self.settings,
        )  # fmt: skip


def grid(n: int = N, values: int = 12, seed: int = 1) -> tuple[dict[str, Any], np.ndarray]:
    """Four columns of few values, so that everybody's bins are the same, and a signal of unit size."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (n, 4)).astype(float)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    signal = (z[:, 0] + z[:, 3] + z[:, 1] * z[:, 2] + rng.normal(size=n)) / 2
    return {f"x{i}": x[:, i] for i in range(4)}, signal


def whole(signal: np.ndarray, top: int = TOP) -> np.ndarray:
    """Labels for squared error from 0: whole, the largest exactly ``top``, so that one unit is 1."""
    return np.round(signal / np.abs(signal).max() * top)


def squared(**settings: Any) -> Table:
    columns, signal = grid()
    return Table(columns, whole(signal), {"objective": "squared", **settings})


def with_gaps() -> Table:
    columns, signal = grid()
    rng = np.random.default_rng(5)
    gaps = {name: np.where(rng.random(N) < 0.3, np.nan, values) for name, values in columns.items()}
    return Table(gaps, whole(signal + np.isnan(gaps["x3"])), {"objective": "squared", "depth": 4})


def without_information() -> Table:
    """Columns that are constant or missing throughout, on both sides."""
    columns, signal = grid()
    one, gone = np.ones(N), np.full(N, np.nan)
    columns = {"one": one, "gone": gone, **columns, "too": one, "neither": gone}
    return Table(columns, whole(signal), {"objective": "squared"})


def duplicated() -> Table:
    columns, signal = grid(300)
    return Table({n: np.tile(v, 4) for n, v in columns.items()}, np.tile(whole(signal), 4), {"objective": "squared"})


def one_row_nodes() -> Table:
    """Deep enough for every row to have a leaf; two rows may be told apart in several ways of equal gain."""
    rng = np.random.default_rng(2)
    columns = {f"x{i}": rng.permutation(60).astype(float) for i in range(4)}
    label = whole(rng.normal(size=60))
    return Table(columns, label, {"objective": "squared", "depth": 12, "min_child_weight": 0.0, "reg_lambda": 0.01})


def weighted() -> Table:
    columns, signal = grid()
    weight = np.random.default_rng(3).integers(1, 8, N).astype(float)
    weight[np.argmax(np.abs(signal))] = 7.0  # so that the largest weighted gradient is 7 · 4681
    return Table(columns, whole(signal, TOP // 7), {"objective": "squared"}, weight=weight)


def categories(depth: int) -> Table:
    rng = np.random.default_rng(4)
    level = np.concatenate([np.arange(200), rng.integers(0, 200, 3800)])
    effect = rng.normal(size=200)
    columns = {"noise": rng.integers(0, 9, 4000).astype(float), "town": np.array([f"t{k:03}" for k in level])}
    return Table(
        columns, whole(effect[level] + rng.normal(size=4000) / 2), {"objective": "squared", "depth": depth},
        by_xgboost={"max_cat_to_onehot": 1, "max_cat_threshold": 256},
        by_lightgbm={
            "max_cat_to_onehot": 1, "max_cat_threshold": 256, "cat_l2": 0, "cat_smooth": 0, "min_data_per_group": 1,
        },
    )  # fmt: skip


def logistic(rate: float, **settings: Any) -> Table:
    """From a margin of 0 all gradients are ±½: two bits carry them. With a factor of 7 on positives, four bits."""
    columns, signal = grid(4000)
    label = signal > np.quantile(signal, 1 - rate)
    return Table(columns, label, {"gradient_bits": 4 if "scale_pos_weight" in settings else 2, **settings})


def classes() -> Table:
    """Gradients 0.1 and -0.9, hessians all alike: 7 bits, of which the unit is 1/70."""
    columns, signal = grid(3000)
    label = np.searchsorted(np.quantile(signal, np.arange(1, 10) / 10), signal)
    settings = {"objective": "softmax", "gradient_bits": 7, "start": 0.5}
    return Table(columns, label, settings)


def counts(objective: str) -> Table:
    """Counts of at most 8, from a mean of 1: gradients 1 - y; Tweedie's hessians are (1 + y)/2."""
    columns, signal = grid(3000)
    label = np.minimum(np.random.default_rng(6).poisson(np.exp(signal)), 8)
    return Table(columns, label, {"objective": objective, "gradient_bits": 4 if objective == "poisson" else 7})


def monotone(sign: int) -> Table:
    columns, signal = grid()
    label = whole(signal + np.sin(columns["x0"]) + np.sin(columns["x3"]))
    constraints = {"x0": sign, "x3": sign}
    settings = {"objective": "squared", "depth": 4}
    directions = [sign, 0, 0, sign]
    return Table(
        columns, label, settings, monotone=constraints,
        by_xgboost={"monotone_constraints": f"({sign},0,0,{sign})"},
        by_lightgbm={"monotone_constraints": directions, "monotone_constraints_method": "basic"},
    )  # fmt: skip


TABLES: dict[str, Callable[[], Table]] = {
    "depth 1": lambda: squared(depth=1),
    "depth 3": squared,
    "depth 10": lambda: squared(depth=10),
    "gaps": with_gaps,
    "constant and missing columns": without_information,
    "duplicates": duplicated,
    "nodes of one row": one_row_nodes,
    "weights": weighted,
    "200 categories, one split": lambda: categories(1),
    "200 categories": lambda: categories(4),
    "L1": lambda: squared(reg_alpha=2e5, depth=5),
    "L2": lambda: squared(reg_lambda=50.0, depth=5),
    "largest step": lambda: squared(max_delta_step=3000.0, depth=5),
    "least gain": lambda: squared(gamma=3e9, depth=6),
    "least child": lambda: squared(min_child_weight=60.0, depth=6),
    "half positive": lambda: logistic(0.5),
    "5 % positive": lambda: logistic(0.05),
    "5 % positive, depth 10": lambda: logistic(0.05, depth=10),
    "weight of positives": lambda: logistic(0.1, scale_pos_weight=7.0),
    "10 classes": classes,
    "poisson": lambda: counts("poisson"),
    "tweedie": lambda: counts("tweedie"),
    "monotone up": lambda: monotone(1),
    "monotone down": lambda: monotone(-1),
    "by leaf": lambda: squared(growth="leaf", max_leaves=9, depth=12),
}


# --- the others --------------------------------------------------------------------------------------


@dataclass
class Trees:
    """Anybody's trees: leaf of each row, int (T, m), names without meaning; margins (K, m); sum of all gains."""

    leaf: np.ndarray
    margins: np.ndarray
    gain: float


def of_fit(case: Case, fit: Fit) -> Trees:
    """Ours, which must use own features only to be walked here."""
    forest = fit.forest
    numbered = replace(
        forest, base=np.zeros(forest.trees), output=np.arange(forest.trees, dtype=np.int32),
        value=np.arange(len(forest.left), dtype=float),
    )  # fmt: skip
    rows = case.pooled()
    leaf = numbered.margins(rows.bins, np.zeros((0, 1), np.uint8), np.arange(len(rows.label)))
    return Trees(leaf.astype(int), fit.margins, float(forest.gain[forest.left >= 0].sum()))


def matrix(case: Case) -> tuple[np.ndarray, list[str]]:
    """Values and types; categories by the number of their text."""
    columns, types = [], []
    for values in case.columns.values():
        is_number = values.dtype.kind == "f"
        columns.append(values if is_number else np.unique(values, return_inverse=True)[1])
        types.append("q" if is_number else "c")
    return np.stack(columns, axis=1).astype(float), types


def xgboost_settings(case: Case) -> dict[str, Any]:
    s = case.settings
    objective = {
        "logistic": "binary:logistic", "softmax": "multi:softprob", "squared": "reg:squarederror",
        "poisson": "count:poisson", "tweedie": "reg:tweedie",
    }[s.objective]  # fmt: skip
    start = {"squared": 0.0, "poisson": 1.0, "tweedie": 1.0}.get(s.objective, 0.5)
    settings = {
        "objective": objective, "base_score": start, "tree_method": "hist", "max_depth": s.depth, "max_bin": s.bins + 1,
        "eta": s.learning_rate, "lambda": s.reg_lambda, "alpha": s.reg_alpha, "gamma": s.gamma, "nthread": 2,
        "min_child_weight": s.min_child_weight, "max_delta_step": s.step_bound,
    }  # fmt: skip
    if s.objective == "logistic":
        settings["scale_pos_weight"] = s.scale_pos_weight
    if s.objective == "tweedie":
        settings["tweedie_variance_power"] = s.tweedie_power
    if s.objective == "softmax":
        settings["num_class"] = case.contract().outputs
    if s.growth == "leaf":
        settings |= {"grow_policy": "lossguide", "max_leaves": s.max_leaves}
    return settings


def by_xgboost(case: Case, **more: Any) -> Trees:
    values, types = matrix(case)
    data = xgboost.DMatrix(
        values, case.label, weight=case.active.rows.weight, feature_types=types, enable_categorical=True
    )
    model = xgboost.train(xgboost_settings(case) | more, data, case.settings.rounds)
    leaf = model.predict(data, pred_leaf=True).reshape(len(values), -1).T
    gain = sum(model.get_score(importance_type="total_gain").values())
    return Trees(leaf, np.atleast_2d(model.predict(data, output_margin=True).T), gain)


def lightgbm_settings(case: Case) -> dict[str, Any]:
    s = case.settings
    objective = {"logistic": "binary", "squared": "regression"}.get(s.objective, s.objective)
    settings = {
        "objective": objective, "boost_from_average": False, "max_depth": s.depth, "max_bin": s.bins,
        "num_leaves": s.max_leaves if s.growth == "leaf" else 2**s.depth, "learning_rate": s.learning_rate,
        "lambda_l1": s.reg_alpha, "lambda_l2": s.reg_lambda, "min_gain_to_split": s.gamma, "min_data_in_leaf": 1,
        "min_sum_hessian_in_leaf": s.min_child_weight, "max_delta_step": s.step_bound, "min_data_in_bin": 1,
        "feature_pre_filter": False, "num_threads": 2, "verbose": -1,
    }  # fmt: skip
    if s.objective == "logistic":
        settings["scale_pos_weight"] = s.scale_pos_weight
    if s.objective == "poisson":
        settings["poisson_max_delta_step"] = s.step_bound
    if s.objective == "tweedie":
        settings["tweedie_variance_power"] = s.tweedie_power
    return settings


def by_lightgbm(case: Case, **more: Any) -> Trees:
    values, types = matrix(case)
    settings = lightgbm_settings(case) | more
    named = [i for i, kind in enumerate(types) if kind == "c"]
    data = lightgbm.Dataset(
        values, case.label, weight=case.active.rows.weight, categorical_feature=named, params=settings
    )
    model = lightgbm.train(settings, data, case.settings.rounds)
    leaf = model.predict(values, pred_leaf=True).reshape(len(values), -1).T
    return Trees(
        leaf.astype(int), np.atleast_2d(model.predict(values, raw_score=True).T),
        float(model.feature_importance("gain").sum()),
    )  # fmt: skip


def same_trees(ours: Trees, theirs: Trees) -> None:
    for own, other in zip(ours.leaf, theirs.leaf, strict=True):
        leaves = len(np.unique(own))
        assert leaves == len(np.unique(other)) == len(np.unique(np.stack([own, other]), axis=1).T)
    scale = np.abs(theirs.margins).max()
    np.testing.assert_allclose(ours.margins, theirs.margins, atol=2e-6 * scale)
    assert ours.gain == pytest.approx(theirs.gain, rel=1e-5)


# --- tree by tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_trees_are_those_of_xgboost(name):
    table = TABLES[name]()
    case = table.case()
    fit = case.fit_pooled()
    same_trees(of_fit(case, fit), by_xgboost(case, **table.by_xgboost))
    np.testing.assert_array_equal(case.fit_plain().margins, fit.margins)


#: LightGBM has other hessians for classes and other rules for monotone trees and for categories below the first split;
#: and it gives a feature up in all nodes below one where no cut gained, which it does in small nodes only.
BY_LIGHTGBM = [
    "depth 1", "depth 3", "gaps", "constant and missing columns", "duplicates", "weights", "200 categories, one split",
    "least gain", "least child", "half positive", "weight of positives", "poisson", "tweedie", "by leaf",
]  # fmt: skip
FOR_LIGHTGBM: dict[str, Callable[[], Table]] = {name: TABLES[name] for name in BY_LIGHTGBM} | {
    "depth 6": lambda: squared(depth=6, reg_lambda=0.0),
    "L1": lambda: squared(reg_alpha=2e5),
    "L2": lambda: squared(reg_lambda=50.0, depth=4),
    "largest step": lambda: squared(max_delta_step=3000.0, reg_lambda=0.0),
    "5 % positive": lambda: logistic(0.05, depth=4, reg_lambda=0.0),
}


@pytest.mark.parametrize("name", FOR_LIGHTGBM)
def test_trees_are_those_of_lightgbm(name):
    table = FOR_LIGHTGBM[name]()
    case = table.case()
    same_trees(of_fit(case, case.fit_pooled()), by_lightgbm(case, **table.by_lightgbm))


@pytest.mark.parametrize("name", ["constant and missing columns", "gaps", "200 categories", "10 classes", "by leaf"])
def test_trees_of_the_protocol_are_those_of_xgboost(name):
    table = TABLES[name]()
    case = table.case()
    result, _ = case.train()
    theirs = by_xgboost(case, **table.by_xgboost)
    np.testing.assert_allclose(result.fit.margins, theirs.margins, atol=2e-6 * np.abs(theirs.margins).max())
    assert result.fit.forest.gain.sum() == pytest.approx(theirs.gain, rel=1e-5)


def test_the_yardstick_would_notice():
    """A rule that one side has and the other lacks, or one label changed, gives other trees."""
    case = squared().case()
    with pytest.raises(AssertionError):
        same_trees(of_fit(case, case.fit_pooled(reg_lambda=5.0)), by_xgboost(case))
    other = replace(case.active.rows, label=np.where(np.arange(N) == 7, -case.label, case.label))
    changed = booster.fit(
        replace(case.pooled(), label=other.label), case.settings, [booster.split_of(N, case.settings)], None
    )
    with pytest.raises(AssertionError):
        same_trees(of_fit(case, changed[0]), by_xgboost(case))


# --- the order of rows -------------------------------------------------------------------------------


def permuted(case: Case, order: np.ndarray) -> Case:
    label, columns = case.label[order], {name: values[order] for name, values in case.columns.items()}
    return Case(columns, label, list(case.sides[1]), weight=case.active.rows.weight[order], **case.parameters)


@pytest.mark.parametrize("name", ["gaps", "weights", "200 categories", "10 classes", "by leaf", "tweedie"])
def test_the_order_of_rows_does_not_matter_to_whole_gradients(name):
    case = TABLES[name]().case()
    order = np.random.default_rng(1).permutation(len(case.label))
    ours, moved = case.fit_plain(), permuted(case, order).fit_plain()
    np.testing.assert_allclose(moved.margins, ours.margins[:, order], rtol=1e-12)
    for field_ in ("left", "feature", "opaque", "masks", "size", "gain"):
        np.testing.assert_array_equal(getattr(moved.forest, field_), getattr(ours.forest, field_))


def test_the_order_of_rows_matters_by_rounding_only():
    """A row's rounding goes by its place in the active side's table: order acts like another seed, and bits tame it."""
    columns, label = numbers(2000, 6, seed=3, missing=0.1)
    order = np.random.default_rng(1).permutation(2000)
    off = {}
    for bits in (4, 16):
        case = Case(columns, label, 3, trees=10, depth=3, gradient_bits=bits)
        ours, moved = case.fit_plain().margins[0], permuted(case, order).fit_plain().margins[0]
        seeded = case.fit_plain(seed=1).margins[0]
        off[bits] = np.sqrt(np.mean((moved - ours[order]) ** 2)) / ours.std()
        assert off[bits] < 2 * np.sqrt(np.mean((seeded - ours) ** 2)) / ours.std() + 1e-12
    assert off[16] < off[4] / 3


# --- rounds ------------------------------------------------------------------------------------------


def test_early_stopping_at_the_round_of_xgboost():
    """Many bits and the same validation rows: both histories have the same course, so they stop together."""
    columns, signal = grid(3000)
    label = signal + np.random.default_rng(7).normal(size=3000) > 0.3
    case = Case(
        columns, label, 2, trees=200, depth=3, bins=32, gradient_bits=16, learning_rate=0.3, validation=0.3,
        early_stopping=10,
    )  # fmt: skip
    fit, split = case.fit_plain(), booster.split_of(3000, case.settings)
    values, _ = matrix(case)
    train, valid = (xgboost.DMatrix(values[part], case.label[part]) for part in (split.train, split.valid))
    settings = xgboost_settings(case) | {"base_score": float(label[split.train].mean())}
    history: dict[str, Any] = {}
    model = xgboost.train(
        settings, train, 200, evals=[(valid, "valid")], early_stopping_rounds=10, evals_result=history,
        verbose_eval=False,
    )  # fmt: skip
    np.testing.assert_allclose(fit.history, history["valid"]["logloss"], rtol=2e-3)
    assert fit.forest.trees == model.best_iteration + 1
    assert len(fit.history) == model.best_iteration + 11


def out_of_fold(case: Case, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Mean AUC over our folds of another learner: predict(train, out) gives margins of the rows that are out."""
    fold = booster.folds_of(case.label, case.settings)
    parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(case.settings.folds)]
    return float(np.mean([roc_auc_score(case.label[out], predict(train, out)) for train, out in parts]))


def ours_out_of_fold(case: Case) -> float:
    peer = Plain(case.passive.bins, case.passive.features)
    _, held_out, _ = boost.cross_validate(case.contract(), case.active.rows, peer)
    return out_of_fold(case, lambda _, out: held_out[0, out])


def test_random_forest_of_xgboost():
    """Rows and features are drawn by other generators, so AUC is what can agree."""
    case = Case(
        *numbers(4000, 8, seed=1, missing=0.05), 4, trees=30, depth=6, forest="random", subsample=0.6,
        feature_share=0.6, folds=3,
    )  # fmt: skip
    values, _ = matrix(case)

    def theirs(train: np.ndarray, out: np.ndarray) -> np.ndarray:
        settings = xgboost_settings(case) | {
            "num_parallel_tree": 30, "eta": 1.0, "subsample": 0.6, "colsample_bytree": 0.6,
        }  # fmt: skip
        del settings["base_score"]
        model = xgboost.train(settings, xgboost.DMatrix(values[train], case.label[train]), 1)
        return model.predict(xgboost.DMatrix(values[out]), output_margin=True)

    assert abs(ours_out_of_fold(case) - out_of_fold(case, theirs)) < 0.012


def test_random_forest_without_sampling_is_one_tree_of_xgboost():
    case = replace(squared(), settings={"objective": "squared", "forest": "random", "trees": 3}).case()
    fit = case.fit_plain()
    theirs = by_xgboost(case, num_parallel_tree=3, eta=1.0)
    np.testing.assert_allclose(fit.margins, theirs.margins, rtol=1e-5)
    assert fit.forest.gain.sum() == pytest.approx(theirs.gain, rel=1e-5)


def test_goss_of_lightgbm():
    case = Case(
        *numbers(6000, 8, seed=2, missing=0.05), 4, trees=30, depth=4, goss_top=0.2, goss_rest=0.1, folds=3,
        learning_rate=0.1,
    )  # fmt: skip
    values, _ = matrix(case)

    def theirs(train: np.ndarray, out: np.ndarray) -> np.ndarray:
        settings = lightgbm_settings(case) | {
            "boost_from_average": True, "data_sample_strategy": "goss", "top_rate": 0.2, "other_rate": 0.1,
        }  # fmt: skip
        data = lightgbm.Dataset(values[train], case.label[train], params=settings)
        return lightgbm.train(settings, data, 30).predict(values[out], raw_score=True)

    assert abs(ours_out_of_fold(case) - out_of_fold(case, theirs)) < 0.008


def test_growth_by_leaf_of_lightgbm():
    case = Case(
        *numbers(6000, 8, seed=2, missing=0.05), 4, trees=30, depth=12, growth="leaf", max_leaves=15, folds=3,
        gradient_bits=12,
    )  # fmt: skip
    values, _ = matrix(case)

    def theirs(train: np.ndarray, out: np.ndarray) -> np.ndarray:
        settings = lightgbm_settings(case) | {"boost_from_average": True}
        data = lightgbm.Dataset(values[train], case.label[train], params=settings)
        return lightgbm.train(settings, data, 30).predict(values[out], raw_score=True)

    assert abs(ours_out_of_fold(case) - out_of_fold(case, theirs)) < 0.005


# --- real tables, through the benchmark ----------------------------------------------------------------


def test_auc_on_a_real_table():
    """Five folds in lock-step, two rounding seeds, which alone differ by 0.001; a fold's AUC is good to 0.015."""
    table = bench._packaged("modeldata", "credit_data", "Status", "bad", ())
    found = bench._of_table(bench.Setting(bits=(Boost().gradient_bits,), seeds=2, trees=40, depth=4), table)
    assert found["auc_xgboost"] > 0.83
    (ours,) = found["by_bits"].values()
    assert abs(ours["difference"]) < 0.004


def test_benchmark_of_bits(tmp_path):
    """The command, on a file with a gap, a category and a column to leave out."""
    columns, label = numbers(400, 4, seed=1, missing=0.1)
    text = {
        "town": np.where(columns["x0"] > 0, "east", "west"),
        "number": np.arange(400),
        "bad": np.where(label, "yes", "no"),
    }
    pd.DataFrame(columns | text).to_csv(tmp_path / "some.csv", index=False)
    asked = ["--file", str(tmp_path / "some.csv"), "--label", "bad", "--positive", "yes", "--leave-out", "number"]
    small = ["--trees", "3", "--depth", "2", "--folds", "2", "--seeds", "2", "--json"]
    run = CliRunner().invoke(main.app, ["bench", "bits", *asked, *small])
    assert run.exit_code == 0
    told = json.loads(run.output)
    table = told["tables"]["some.csv"]
    assert (table["rows"], table["features"]) == (400, 5)
    assert list(table["by_bits"]) == [str(b) for b in bench.BITS]
    for found in table["by_bits"].values():
        assert found["difference"] == pytest.approx(np.mean(found["difference_by_fold"]))
        assert abs(found["difference"]) < 0.05
    for by_bits in told["bytes_per_word"].values():
        fitting = [width for width in by_bits.values() if width]
        assert fitting == sorted(fitting)
        assert by_bits["8"] <= 8
    wrong = CliRunner().invoke(main.app, ["bench", "bits", *asked[:2], "--label", "good"])
    assert isinstance(wrong.exception, FileMissing)
