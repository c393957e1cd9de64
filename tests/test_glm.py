"""Exact vertical regression against statsmodels on pooled rows; encrypted products of reals; bad peers, bad columns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.outliers_influence import variance_inflation_factor

from fedlearn.contract import Contract, Glm, Select
from fedlearn.errors import (
    BadLabel,
    BeyondContract,
    Collinear,
    FedlearnError,
    Malformed,
    NoOverlap,
    OverBudget,
    Separation,
    WrongLength,
)
from fedlearn.kernels import digits as kernel
from fedlearn.learner import glm as learner
from fedlearn.protocols import matvec, products, regression
from fedlearn.v1 import glm_pb2 as pb
from tests.boosting import spoiling
from tests.regression import contract, data, meet

LOG = sm.families.links.Log()
FAMILIES = {
    "logistic": sm.families.Binomial(),
    "linear": sm.families.Gaussian(),
    "poisson": sm.families.Poisson(),
    "gamma": sm.families.Gamma(LOG),
    "tweedie": sm.families.Tweedie(LOG, var_power=1.5),
}


class Table:
    """Columns, labels of every family, weights and offsets; two columns correlate across the sides."""

    def __init__(self, n: int = 2500, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(6, n))
        x[4] = rng.lognormal(0, 1, n)
        x[5] += x[0]
        self.x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
        self.weight, self.offset = rng.uniform(0.5, 2, n), rng.normal(size=n) * 0.2
        eta = -0.5 + self.offset + np.array([0.5, -0.3, 0.2, 0, 0.1, -0.2]) @ self.x
        mean = np.exp(eta)
        self.label = {
            "logistic": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
            "linear": eta + rng.normal(size=n),
            "poisson": rng.poisson(mean).astype(float),
            "gamma": rng.gamma(2, mean / 2),
            "tweedie": np.array([rng.gamma(1, 1, k).sum() for k in rng.poisson(1, n)]) * mean,
        }

    def pooled(self, family: str) -> Any:
        model = sm.GLM(
            self.label[family], sm.add_constant(self.x.T), family=FAMILIES[family], var_weights=self.weight,
            offset=self.offset,
        )  # fmt: skip
        return model.fit(tol=1e-12)


TABLE = Table()


def in_order(
    fit: regression.ActiveResult, passive: regression.PassiveResult, own: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and errors with the passive columns in their own order."""
    assert fit.fit.errors is not None
    assert passive.errors is not None
    mine = slice(0, 1 + own)
    return (
        np.concatenate([fit.fit.coefficients[mine], passive.coefficients]),
        np.concatenate([fit.fit.errors[mine], passive.errors]),
    )


# --- against statsmodels -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_learner_alone_is_statsmodels(family: str) -> None:
    rows = learner.Rows(TABLE.x, TABLE.label[family], TABLE.weight, TABLE.offset)
    found = learner.fit(rows, Glm(family=family, tolerance=1e-8, max_steps=30))  # type: ignore[arg-type]
    due = TABLE.pooled(family)
    np.testing.assert_allclose(found.coefficients, due.params, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.errors, due.bse, rtol=1e-3)
    assert found.deviance == pytest.approx(due.deviance, rel=1e-9)
    assert found.null_deviance == pytest.approx(due.null_deviance, rel=1e-9)
    if family != "tweedie":
        assert found.aic == pytest.approx(due.aic, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_sides_find_the_pooled_fit(family: str) -> None:
    agreed = contract(3, 3, family=family)
    sides = data(TABLE.x, TABLE.label[family], 3, TABLE.weight, TABLE.offset, extra=400)
    (active, ledger), (passive, same) = meet(agreed, *sides)
    due = TABLE.pooled(family)
    coefficients, errors = in_order(active, passive, 3)
    assert np.abs((coefficients - due.params) / due.bse).max() < 0.03
    np.testing.assert_allclose(errors, due.bse, rtol=5e-3)
    assert active.fit.deviance == pytest.approx(due.deviance, rel=1e-5) == passive.facts["deviance"]
    if family != "tweedie":
        assert passive.facts["aic"] == pytest.approx(due.aic, rel=1e-5)
    assert passive.converged
    assert passive.changes == active.fit.changes
    assert active.model_id == passive.model_id
    assert ledger.digest() == same.digest()
    assert 0 < ledger.kl_nats < agreed.budget.kl_nats


@pytest.mark.parametrize("tail", [1.0, 1.5, 2.0])
def test_gamma_converges_on_heavy_tailed_columns(tail: float) -> None:
    """Fisher's steps with plain halving crawl here: statsmodels takes up to 34 of them."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 4000))
    x[3:] = rng.lognormal(0, tail, (3, 4000))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    mean = np.exp(-0.5 + np.array([0.5, -0.3, 0.2, 0.1, 0.3, -0.5]) @ x)
    y = rng.gamma(2, mean / 2) + 1e-12
    due = sm.GLM(y, sm.add_constant(x.T), family=sm.families.Gamma(LOG)).fit(tol=1e-12)
    alone = learner.fit(learner.Rows(x, y, np.ones(4000), np.zeros(4000)), Glm(family="gamma"))
    assert alone.converged
    np.testing.assert_allclose(alone.coefficients, due.params, atol=1e-5)
    np.testing.assert_allclose(alone.errors, due.bse, rtol=1e-3)
    if tail == 1.5:
        (active, _), (passive, _) = meet(contract(3, 3, family="gamma", max_steps=20), *data(x, y, 3))
        coefficients, errors = in_order(active, passive, 3)
        assert np.abs((coefficients - due.params) / due.bse).max() < 0.05
        np.testing.assert_allclose(errors, due.bse, rtol=0.02)
        assert passive.converged


def test_elastic_net_is_that_of_the_pooled_rows() -> None:
    agreed = contract(3, 3, l1=0.02, l2=0.01, max_steps=20)
    sides = data(TABLE.x, TABLE.label["logistic"], 3)
    (active, _), (passive, _) = meet(agreed, *sides)
    model = sm.GLM(TABLE.label["logistic"], sm.add_constant(TABLE.x.T), family=sm.families.Binomial())
    alpha = np.array([0, *[0.03] * 6])
    due = model.fit_regularized(alpha=alpha, L1_wt=2 / 3, cnvrg_tol=1e-12, maxiter=2000).params
    found = np.concatenate([active.fit.coefficients[:4], passive.coefficients])
    np.testing.assert_allclose(found, due, atol=2e-3)
    assert (found == 0).sum() == (due == 0).sum() > 0
    assert passive.errors is None


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("offset", [False, True])
def test_linear_labels_may_have_any_unit(unit: float, offset: bool) -> None:
    base = unit * (50 + 3 * TABLE.x[2]) if offset else np.zeros(2500)
    label = base + unit * (10 + TABLE.label["linear"])
    (active, _), (passive, _) = meet(contract(3, 3, family="linear"), *data(TABLE.x, label, 3, offset=base))
    due = sm.GLM(label, sm.add_constant(TABLE.x.T), family=sm.families.Gaussian(), offset=base).fit()
    coefficients, errors = in_order(active, passive, 3)
    assert passive.converged
    assert np.abs((coefficients - due.params) / due.bse).max() < 0.03
    np.testing.assert_allclose(errors, due.bse, rtol=5e-3)
    for name in ("deviance", "null_deviance", "aic"):
        assert passive.facts[name] == pytest.approx(getattr(due, name), rel=1e-5)
    assert passive.facts["dispersion"] == pytest.approx(due.scale, rel=1e-5)
    np.testing.assert_allclose(active.fit.eta, due.fittedvalues, atol=3e-3 * unit)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4, 1e6])
def test_a_penalty_is_the_same_in_any_unit(unit: float) -> None:
    label = unit * (10 + TABLE.label["linear"])
    (active, _), (passive, _) = meet(contract(3, 3, family="linear", l2=0.1), *data(TABLE.x, label, 3))
    due = np.linalg.solve(TABLE.x @ TABLE.x.T / 2500 + 0.1 * np.eye(6), TABLE.x @ (label - label.mean()) / 2500)
    coefficients, errors = in_order(active, passive, 3)
    assert np.abs((coefficients[1:] - due) / errors[1:]).max() < 0.03
    assert coefficients[0] == pytest.approx(label.mean(), abs=0.03 * errors[0])
    assert passive.converged


def test_an_l1_penalty_goes_with_the_unit_of_the_label() -> None:
    label = TABLE.label["linear"]
    one, tiny = (
        learner.fit(
            learner.Rows(TABLE.x, unit * label, TABLE.weight, np.zeros(2500)), Glm(family="linear", l1=0.05 * unit)
        )
        for unit in (1.0, 1e-9)
    )
    assert 0 < (one.coefficients == 0).sum() < 6
    np.testing.assert_allclose(tiny.coefficients / 1e-9, one.coefficients, atol=1e-7)


def test_rows_out_of_time_are_scored_in_the_unit_of_the_label() -> None:
    active, passive = data(TABLE.x, 1e6 * TABLE.label["linear"], 3, extra=200)
    later = np.setdiff1d(np.arange(2700), active.position)
    (found, _), (theirs, _) = meet(contract(3, 3, family="linear"), replace(active, later=later), passive)
    np.testing.assert_allclose(found.later, theirs.coefficients @ passive.columns[:, later], atol=1.0)


def test_labels_too_far_apart_to_be_squared() -> None:
    label = TABLE.label["linear"]
    for unit in (1e-150, 1e150):
        with pytest.raises(BadLabel, match="in another unit"):
            regression.check_label(unit * label, Glm(family="linear"))
    regression.check_label(1e150 * label, Glm(family="poisson"))


def test_a_perfect_linear_fit_has_no_likelihood() -> None:
    assert learner.log_likelihood("linear", np.ones(3), np.ones(3), np.ones(3), 0.0, 1.0) is None


@pytest.mark.parametrize("family", ["linear", "logistic"])
def test_partial_scores_fit_whatever_the_coefficients(family: Any) -> None:
    largest = np.array([3.0, 900.0])
    peer: Any = SimpleNamespace(glm=Glm(family=family), by_column=SimpleNamespace(largest=largest))
    for size in 10.0 ** np.arange(-30, 31):
        unit = regression._Peer._unit(peer, np.array([-size, 0.4 * size]))
        reach = (1 + 0.4 * 300) * 3 * size / unit
        assert reach < 2**15 - 1
        assert np.log2(unit) == np.rint(np.log2(unit))
        if family == "linear":
            assert reach > 100
    assert family == "linear" or regression._Peer._unit(peer, np.array([1.0, 1.0])) == 1
    assert regression._Peer._unit(peer, np.zeros(2)) > 0


def test_paillier_finds_the_same_fit() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 30))
    label = (rng.random(30) < 1 / (1 + np.exp(-x.sum(axis=0)))).astype(float)
    agreed = contract(1, 1, backend="paillier", max_steps=6, tolerance=0.05)
    (active, _), (passive, _) = meet(agreed, *data(x, label, 1))
    due = sm.GLM(label, sm.add_constant(x.T), family=sm.families.Binomial()).fit()
    coefficients, errors = in_order(active, passive, 1)
    assert np.abs((coefficients - due.params) / due.bse).max() < 0.05
    np.testing.assert_allclose(errors, due.bse, rtol=1e-2)


def test_an_active_side_without_a_useful_start_still_converges() -> None:
    """A strong passive column, so that full Newton steps from the active side's own fit overshoot."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 3000))
    label = rng.poisson(np.exp(-2 + 1.7 * x[1])).astype(float)
    (active, _), _ = meet(contract(1, 1, family="poisson", max_steps=20), *data(x, label, 1))
    due = sm.GLM(label, sm.add_constant(x.T), family=sm.families.Poisson()).fit()
    np.testing.assert_allclose(active.fit.coefficients, due.params, atol=0.05 * due.bse.min())


# --- what is told ------------------------------------------------------------------------------------


def test_one_sided_the_passive_side_is_not_told_what_counts_the_rows() -> None:
    sides = data(TABLE.x, TABLE.label["logistic"], 3, extra=400)
    (_, _), (passive, _) = meet(contract(3, 3, mode="one-sided", errors=False), *sides)
    assert passive.facts == {}
    assert passive.errors is None
    assert passive.changes == []
    assert passive.steps > 1


def test_names_are_told_only_if_agreed() -> None:
    sides = data(TABLE.x, TABLE.label["logistic"], 3)
    (active, _), (passive, _) = meet(contract(3, 3, disclosure={"names": True}), *sides)
    by_name = dict(zip(active.names, active.fit.coefficients[4:], strict=True))
    assert [by_name[f"x{j}"] for j in (3, 4, 5)] == pytest.approx(passive.coefficients.tolist())
    (active, _), _ = meet(contract(3, 3), *sides)
    assert active.names == ()


def test_partial_scores_are_told_once_a_step() -> None:
    (active, ledger), _ = meet(contract(3, 3), *data(TABLE.x, TABLE.label["logistic"], 3))
    (line,) = [line for line in ledger.lines() if line["message"] == "GlmScores"]
    assert line["values"] == (len(active.fit.changes) - 1) * TABLE.x.shape[1]


def test_statistics_are_those_of_the_pooled_columns() -> None:
    agreed = contract(3, 3, statistics=True, disclosure={"names": True})
    (active, _), (passive, _) = meet(agreed, *data(TABLE.x, TABLE.label["logistic"], 3, extra=300))
    assert active.statistics is not None
    order = [0, 1, 2, *(int(name[1:]) for name in active.names)]
    due = np.corrcoef(TABLE.x)
    np.testing.assert_allclose(active.statistics.correlation, due[np.ix_(order, order)], atol=2e-3)
    inflation = [variance_inflation_factor(TABLE.x.T - TABLE.x.T.mean(axis=0), j) for j in range(6)]
    np.testing.assert_allclose(active.statistics.inflation, np.array(inflation)[order], rtol=5e-3)
    np.testing.assert_allclose(passive.inflation, inflation[3:], rtol=5e-3)


# --- columns that cannot be fitted -------------------------------------------------------------------


def failing(agreed: Any, *sides: Any) -> FedlearnError:
    with pytest.raises(FedlearnError) as caught:
        meet(agreed, *sides)
    return caught.value


def test_columns_that_repeat_each_other_across_the_sides() -> None:
    x = TABLE.x.copy()
    x[4] = (x[0] + x[1]) / np.sqrt(2)
    error = failing(contract(3, 3), *data(x, TABLE.label["logistic"], 3))
    assert isinstance(error, Collinear)
    assert "x0" in str(error)
    assert "x1" in str(error)
    assert "passive#" in str(error)
    (active, _), _ = meet(contract(3, 3, l2=0.01), *data(x, TABLE.label["logistic"], 3))
    assert active.fit.converged


def test_columns_that_repeat_each_other_on_the_passive_side() -> None:
    x = TABLE.x.copy()
    x[4] = x[3]
    error = failing(contract(3, 3), *data(x, TABLE.label["logistic"], 3))
    assert isinstance(error, Collinear)
    assert "x3 and x4" in str(error)


@pytest.mark.parametrize(("left", "seed", "l2"), [(2, 0, 1e-4), (2, 1, 1e-4), (2, 1, 1e-3), (0, 0, 3e-4)])
@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_a_small_penalty_on_columns_that_repeat_each_other(left: int, seed: int, l2: float, limit: float) -> None:
    x, label = repeating(left, seed)
    agreed = contract(2, 2, l2=l2, select={"p_value": limit})
    (active, _), (passive, _) = meet(agreed, *data(x, label, 2))
    due = learner.fit(learner.Rows(x, label, np.ones(500), np.zeros(500)), agreed.glm)  # type: ignore[arg-type]
    coefficients, errors = in_order(active, passive, 2)
    np.testing.assert_allclose(errors, due.errors, rtol=0.02)
    assert np.abs((coefficients - due.coefficients) / errors).max() < 0.25
    assert active.fit.dropped == due.dropped == {}
    assert passive.converged


def repeating(left: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four columns, the last of which repeats another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 500))
    x[3] = x[left]
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    return x, (x.sum(axis=0) + 2 * rng.normal(size=500) > 0).astype(float)


@pytest.mark.parametrize(("seed", "l2"), [(0, 0.01), (3, 0.01), (1, 0.1), (3, 0.1)])
def test_elimination_under_a_penalty_is_stepwise_regression(seed: int, l2: float) -> None:
    """Also of columns that repeat each other, in hardly more steps than one fit takes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, 500))
    x[4] = x[3] + 0.5 * x[2]
    x[5] = x[3]
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    label = (x[:3].sum(axis=0) + 2 * rng.normal(size=500) > 0).astype(float)

    def fitted(kept: list[int], limit: float) -> learner.Fit:
        rows = learner.Rows(x[kept], label, np.ones(500), np.zeros(500))
        return learner.fit(rows, Glm(l2=l2, tolerance=1e-8, max_steps=30, select=Select(p_value=limit)))

    kept = list(range(6))
    while True:
        due = fitted(kept, 0)
        assert due.errors is not None
        ratio = np.abs(due.coefficients / due.errors)[1:]
        if ratio.min() > 1.96:
            break
        kept.pop(int(ratio.argmin()))
    found = fitted(list(range(6)), 0.05)
    assert kept == [j for j in range(6) if 1 + j not in found.dropped]
    assert len(kept) < 5
    np.testing.assert_allclose(found.coefficients[[0, *(1 + j for j in kept)]], due.coefficients, atol=1e-6)
    assert len(found.changes) <= 10


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_the_covariance_is_the_sandwich_where_columns_do_not_repeat_each_other(l2: float) -> None:
    rows = learner.Rows(TABLE.x, TABLE.label["linear"], TABLE.weight, TABLE.offset)
    newton = learner._Newton(rows, Glm(family="linear", l2=l2), None, ())
    part = newton._curvature(TABLE.weight, None)
    inverse = np.linalg.inv(part + np.diag([0, *[l2 * TABLE.weight.sum()] * 6]))
    np.testing.assert_allclose(newton._covariance(part, 1e-3, 2.0), 2 * inverse @ part @ inverse, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("where", [0, 4])
def test_perfect_separation_is_named(where: int) -> None:
    label = (TABLE.x[where] > 0.4).astype(float)
    error = failing(contract(3, 3, max_steps=40), *data(TABLE.x, label, 3))
    assert isinstance(error, Separation)
    (active, _), _ = meet(contract(3, 3, l2=0.01), *data(TABLE.x, label, 3))
    assert active.fit.converged


def test_a_group_without_events_is_separation() -> None:
    """Quasi-complete: the label varies where the indicator is 0 only."""
    rng = np.random.default_rng(1)
    group = (rng.random(2500) < 0.1).astype(float)
    x = np.vstack([TABLE.x[:3], (group - group.mean()) / group.std()])
    label = np.where(group == 1, 0.0, TABLE.label["logistic"])
    assert isinstance(failing(contract(3, 1, max_steps=40), *data(x, label, 3)), Separation)


def with_group(n: int, size: int) -> tuple[Any, Any]:
    """A column that matters, and an indicator of ``size`` rows that all have label 1; standardised."""
    rng = np.random.default_rng(size)
    x, group = rng.normal(size=n), np.zeros(n)
    label = (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)
    group[:size] = label[:size] = 1
    columns = np.stack([x, group])
    return (columns - columns.mean(axis=1, keepdims=True)) / columns.std(axis=1, keepdims=True), label


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("n", "size"), [(200, 1), (5000, 5), (200_000, 50)])
def test_few_rows_of_one_label_are_separation_too(n: int, size: int, weight: float) -> None:
    """Steps shrink in standard errors, which grow; that is no convergence, whatever the weights are measured in."""
    x, label = with_group(n, size)
    rows = learner.Rows(x, label, np.full(n, weight), np.zeros(n))
    with pytest.raises(Separation, match="group predicts"):
        learner.fit(rows, Glm(max_steps=40), None, ("x", "group"))


@pytest.mark.parametrize("own", [1, 2])
def test_few_rows_of_one_label_on_either_side(own: int) -> None:
    x, label = with_group(1500, 3)
    error = failing(contract(own, 3 - own, max_steps=40), *data(np.vstack([x, TABLE.x[:1, :1500]]), label, own))
    assert isinstance(error, Separation)


@pytest.mark.parametrize("weight", [1.0, 100.0])
@pytest.mark.parametrize(("n", "slope"), [(500, 20), (500, 40), (5000, 80)])
def test_strong_effects_are_no_separation(n: int, slope: float, weight: float) -> None:
    """A few rows in the overlap hold the maximum, which statsmodels finds."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=n)
    label = (rng.random(n) < 1 / (1 + np.exp(-slope * x))).astype(float)
    x = (x - x.mean()) / x.std()
    rows = learner.Rows(x[None], label, np.full(n, weight), np.zeros(n))
    due = sm.GLM(label, sm.add_constant(x), family=sm.families.Binomial()).fit()
    fit = learner.fit(rows, Glm(max_steps=40), None, ("x",))
    assert fit.converged
    np.testing.assert_allclose(fit.coefficients, due.params, rtol=1e-4)


def test_too_few_steps_end_without_convergence_but_with_a_result() -> None:
    (active, _), (passive, _) = meet(contract(3, 3, max_steps=1), *data(TABLE.x, TABLE.label["logistic"], 3))
    assert not active.fit.converged
    assert not passive.converged


def test_rows_and_labels_that_cannot_be_fitted() -> None:
    few = data(TABLE.x[:, :12], TABLE.label["logistic"][:12], 3)
    assert isinstance(failing(contract(3, 3), *few), NoOverlap)
    with pytest.raises(NoOverlap):
        regression.check_independent(np.zeros((1, 0)), ("a",))
    zero = data(TABLE.x, TABLE.label["tweedie"], 3)
    assert isinstance(failing(contract(3, 3, family="gamma"), *zero), BadLabel)


# --- the budget --------------------------------------------------------------------------------------


def test_the_planner_takes_smaller_digits_for_more_rows_and_refuses_what_does_not_fit() -> None:
    agreed = contract(25, 25, max_steps=10)
    few, _ = regression.layouts(agreed, 25, 25, 10_000)
    many, pairs = regression.layouts(agreed, 25, 25, 1_000_000)
    assert few.base > many.base
    assert pairs.columns == 325
    for layout in (few, many, pairs):
        plan = layout.shape.plan(layout.terms)
        assert plan.kl_total <= agreed.budget.kl_nats
    with pytest.raises(OverBudget, match="nats"):
        regression.layouts(contract(25, 25, budget={"kl_nats": 1e-20}), 25, 25, 1_000_000)
    with pytest.raises(OverBudget, match="vectors"):
        regression.layouts(contract(25, 25, budget={"vectors": 100}), 25, 25, 1_000)


# --- digits ------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=40), st.sampled_from([3, 5, 7, 9, 15]), st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_digits_write_the_rounded_value(values: list[float], base: int, count: int, seed: int) -> None:
    x = np.array(values)
    largest = (base**count - 1) // 2
    noise = np.random.default_rng(seed).integers(0, 256, len(x)).astype(np.uint8)
    out = np.empty((count, len(x)), np.int8)
    kernel.split(x, np.ones(len(x)), largest / 3, base, noise, out)
    assert np.abs(out).max() <= base // 2
    whole = float(base) ** np.arange(count) @ out
    assert np.abs(whole - x * (largest / 3)).max() <= 1 + 1e-9 * largest


def test_rounding_is_right_in_the_mean_and_two_integers_carry_twice_the_bits() -> None:
    rng = np.random.default_rng(0)
    x, place = rng.uniform(-1, 1, 200_000), np.arange(200_000)
    noise = rng.integers(0, 256, len(x)).astype(np.uint8)
    low, high = np.empty(len(x), np.int32), np.empty(len(x), np.int32)
    kernel.quantise(x, 7.0, 7, noise, place, low)
    assert abs((low / 7 - x).mean()) < 1e-3
    assert np.abs(low / 7 - x).max() < 1 / 7 + 1e-9
    kernel.nearest(x, 511.0, place, high)
    kernel.remainder(x, 511.0, 511, noise, place, low)
    assert np.abs(high).max() <= 511
    assert np.abs(low).max() <= 511
    assert np.abs((high + low / 1022) / 511 - x).max() < 1.01 / (1022 * 511)


def test_products_of_reals() -> None:
    from fedlearn.channel import simulate

    rng = np.random.default_rng(2)
    x, position = rng.normal(size=(3, 5000)), np.sort(rng.permutation(5000)[:4000])
    fine, rough = rng.normal(size=4000), rng.normal(size=(2, 4000))
    largest = np.abs(x).max(axis=1)
    terms = matvec.Terms("lwe", 2048, 1, 4, 2.0**-20)
    layout = products.Layout.choose(terms, 3, 5000, 15)

    def ask(channel: Any) -> np.ndarray:
        channel.session = bytes(16)
        querier = products.Querier.open(channel, layout, largest, position)
        return querier.ask([fine], lambda j: rough[j], 2)

    def answer(channel: Any) -> None:
        from fedlearn.v1 import matvec_pb2

        channel.session = bytes(16)
        holder = products.open_holder(channel, layout, lambda j: (x[j], np.ones(5000)), largest)
        while not holder.answer(channel.receive(matvec_pb2.MatvecQuery)):
            pass

    found, _ = simulate(ask, answer)
    due = np.vstack([fine, rough]) @ x[:, position].T
    assert np.abs(found - due)[0].max() < 0.02  # of sums of deviation 63
    assert np.abs(found - due)[1:].max() < 0.5


# --- peers out of line -------------------------------------------------------------------------------


def spoil(role: str, kind: Any, change: Any, **terms: Any) -> FedlearnError:
    """One side changes a message of a kind on its way out; what the other says."""
    agreed = contract(3, 3, **terms)
    sides = dict(zip(("active", "passive"), data(TABLE.x[:, :300], TABLE.label["logistic"][:300], 3), strict=True))
    fit: Any = {"active": regression.fit_active, "passive": regression.fit_passive}[role]
    mine = sides[role]

    def bad(channel: Any) -> Any:
        return fit(spoiling(channel, kind, change), agreed, mine)

    sides[role] = bad  # type: ignore[assignment]
    return failing(agreed, *sides.values())


def put(field: str, value: Any) -> Any:
    def change(message: Any) -> None:
        if hasattr(value, "__len__") and not isinstance(value, bytes):
            del getattr(message, field)[:]
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)

    return change


@pytest.mark.parametrize(
    ("role", "kind", "change", "error"),
    [
        ("passive", pb.GlmColumns, put("largest", [1.0, -1.0, 1.0]), Malformed),
        ("passive", pb.GlmColumns, put("largest", [1.0, float("nan"), 1.0]), Malformed),
        ("passive", pb.GlmColumns, put("largest", [1.0] * 99), BeyondContract),
        ("passive", pb.GlmColumns, put("names", ["a", "b", "c"]), Malformed),
        ("passive", pb.GlmScores, put("values", bytes(8)), WrongLength),
        ("passive", pb.GlmScores, put("first", 7), WrongLength),
        ("active", pb.GlmOpen, put("columns", 150), BeyondContract),  # each is a product more
        ("active", pb.GlmAsk, put("columns", 5), Malformed),
        ("active", pb.GlmAsk, put("pairs", 0), Malformed),
        ("active", pb.GlmCoefficients, put("values", [1.0]), WrongLength),
        ("active", pb.GlmCoefficients, put("values", [1.0, 2.0, float("inf")]), WrongLength),
        ("active", pb.GlmCoefficients, put("values", [1e9, 0.0, 0.0]), Malformed),
        ("active", pb.GlmResult, put("coefficients", [1.0]), WrongLength),
        ("active", pb.GlmResult, put("errors", [1.0, float("nan"), 1.0]), WrongLength),
        ("active", pb.GlmResult, put("errors", [1.0, -1.0, 1.0]), WrongLength),
        ("active", pb.GlmResult, lambda m: m.changes.__setitem__(0, float("nan")), WrongLength),
        ("active", pb.GlmResult, put("deviance", float("nan")), Malformed),
        ("active", pb.GlmResult, put("null_deviance", float("inf")), Malformed),
        ("active", pb.GlmResult, put("aic", float("-inf")), Malformed),
        ("active", pb.GlmResult, put("dispersion", float("nan")), Malformed),
        ("active", pb.GlmResult, put("model_id", bytes(16)), Malformed),
        ("active", pb.GlmResult, put("steps", 90), WrongLength),
    ],
)
def test_messages_out_of_line(role: str, kind: Any, change: Any, error: type[FedlearnError]) -> None:
    said = spoil(role, kind, change)
    assert isinstance(said, error)
    assert "the peer" in str(said)
    assert "at step glm." in str(said)


@pytest.mark.parametrize(
    "names", [["x3", "x4"], ["x3", "x4", "x4"], ["x3", "x4", "\x1b[2Jx"], ["x3", "x4", "x0"], ["x3", "x4", "x5=1"]]
)
def test_names_that_no_feature_gives(names: list[str]) -> None:
    said = spoil("passive", pb.GlmColumns, put("names", names), disclosure={"names": True})
    assert isinstance(said, Malformed)
    assert "\x1b" not in str(said)


def test_names_of_categories_are_told_so_that_they_can_be_shown() -> None:
    plain = contract(1, 1, disclosure={"names": True}).model_dump(mode="json")
    plain["passive"]["features"] = {"city": "category", "a=b": "category", "city=Rome": "number", "age": "number"}
    agreed = Contract.model_validate(plain)
    channel: Any = SimpleNamespace(misbehaved=lambda kind, what: kind(what))
    long = "y" * 500
    names = ("age", "city=Rome", "city=Rome", "city=Oslo", "city=\x1b[2J\n", f"city={long}", f"city={long}z", "a=b=c=d")
    told = regression.told_names(agreed, names)
    assert regression.check_names(channel, agreed, list(told), 8, woe=False) == told
    assert told[:5] == ("age", "city=Rome", "city=Rome~2", "city=Oslo", r"city=\x1b[2J\n")
    assert told[7] == names[7]
    assert max(map(len, told)) <= 105
    for bad in ("city", "city=\x1b", f"city={long}", "a=c", "age=1", ""):
        with pytest.raises(Malformed):
            regression.check_names(channel, agreed, [bad], 1, woe=False)
    assert regression.check_names(channel, agreed, ["city"], 1, woe=True) == ("city",)
    with pytest.raises(Malformed):
        regression.check_names(channel, agreed, ["city=Oslo"], 1, woe=True)
    assert regression.told_names(contract(1, 1), names) == ()


def test_more_steps_than_the_contract_has() -> None:
    agreed, more = contract(3, 3, max_steps=1), contract(3, 3, max_steps=3)
    active, passive = data(TABLE.x, TABLE.label["logistic"], 3)

    def greedy(channel: Any) -> Any:
        regression.layouts, kept = partial(lambda _, *rest: kept(agreed, *rest)), regression.layouts  # type: ignore[assignment]
        try:
            return regression.fit_active(channel, more, active)
        finally:
            regression.layouts = kept

    assert isinstance(failing(agreed, greedy, passive), BeyondContract)
