"""Feature selection: against stepwise fits by statsmodels on pooled rows, and variance inflation by statsmodels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from pydantic import ValidationError
from statsmodels.stats.outliers_influence import variance_inflation_factor

from fedlearn.contract import Glm, Select
from fedlearn.learner import glm as learner
from fedlearn.learner.select import redundant
from tests.regression import contract, data, meet
from tests.test_glm_end_to_end import glm_pair, keyring, simulated

__all__ = ["keyring"]


def columns() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3000))
    x[5] += x[0]
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)


X = columns()
LABEL = (
    np.random.default_rng(9).random(3000) < 1 / (1 + np.exp(-(np.array([0.5, 0, 0, 0.3, 0.4, 0, 0, 0.02]) @ X - 1)))
).astype(float)


def stepwise(limit: float) -> tuple[list[int], sm.GLM]:
    """Backward elimination with a whole fit for every column that goes."""
    kept = list(range(len(X)))
    while True:
        fit = sm.GLM(LABEL, sm.add_constant(X[kept].T), family=sm.families.Binomial()).fit(tol=1e-12)
        if fit.pvalues[1:].max() <= limit:
            return kept, fit
        kept.pop(int(fit.pvalues[1:].argmax()))


@pytest.mark.parametrize("limit", [0.05, 0.4])
def test_elimination_is_stepwise_regression(limit: float) -> None:
    kept, due = stepwise(limit)
    (active, ledger), (passive, same) = meet(
        contract(4, 4, select={"p_value": limit}, max_steps=20), *data(X, LABEL, 4)
    )
    found = np.concatenate([active.fit.coefficients[:5], passive.coefficients])
    assert [0, *(1 + j for j in kept)] == np.flatnonzero(found).tolist()
    assert np.abs((found[found != 0] - due.params) / due.bse).max() < 0.03
    assert active.fit.aic == pytest.approx(due.aic, rel=1e-5)
    errors = np.concatenate([active.fit.errors[:5], passive.errors])
    np.testing.assert_allclose(errors[found != 0], due.bse, rtol=1e-2)
    assert np.all(errors[found == 0] == 0)
    assert len(active.fit.dropped) == (found == 0).sum()
    assert passive.converged
    assert ledger.digest() == same.digest()


def test_a_side_keeps_one_column_and_the_intercept() -> None:
    noise = (np.random.default_rng(1).random(3000) < 0.5).astype(float)
    (active, _), (passive, _) = meet(contract(4, 4, select={"p_value": 1e-6}, max_steps=20), *data(X, noise, 4))
    assert (active.fit.coefficients[1:5] != 0).sum() == 1
    assert (passive.coefficients != 0).sum() == 1
    assert active.fit.coefficients[0] != 0


def test_alone_it_is_the_same() -> None:
    kept, due = stepwise(0.05)
    rows = learner.Rows(X, LABEL, np.ones(3000), np.zeros(3000))
    fit = learner.fit(rows, Glm(select=Select(p_value=0.05), max_steps=20, tolerance=1e-6))
    assert sorted(fit.dropped) == [1 + j for j in range(8) if j not in kept]
    np.testing.assert_allclose(fit.coefficients[fit.coefficients != 0], due.params, atol=1e-6)


def test_redundant_columns_go_by_correlation_then_inflation() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(6, 2000))
    x[1] = x[0] + 0.1 * x[1]
    x[4] = x[2] + x[3] + 0.2 * x[4]
    worth, names = np.array([0.1, 0.3, 0.2, 0.2, 0.5, 0.1]), tuple("abcdef")
    out = redundant(x, worth, Select(correlation=0.9, vif=5.0), names)
    assert "with b" in out.pop(0)
    ((gone, reason),) = out.items()
    kept = [1, 2, 3, 4, 5]
    design = sm.add_constant(x[kept].T)
    inflation = [variance_inflation_factor(design, 1 + k) for k in range(5)]
    assert gone == kept[int(np.argmax(inflation))]
    assert reason == f"variance inflation {max(inflation):.3g}"
    assert redundant(x[:1], worth[:1], Select(correlation=0.5, vif=1.5), names) == {}


def test_columns_that_repeat_each_other_exactly() -> None:
    x = np.random.default_rng(4).normal(size=(3, 500))
    x = np.vstack([x, x[0] + x[1]])
    assert list(redundant(x, np.array([4.0, 3.0, 2.0, 1.0]), Select(vif=10.0), tuple("abcd"))) == [3]


def test_p_values_need_standard_errors() -> None:
    for changes in ({"l1": 0.1}, {"disclosure_none": True}):
        with pytest.raises(ValidationError, match="p_value"):
            contract(1, 1, select={"p_value": 0.1}, **changes)


def test_both_sides_keep_a_plan(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = glm_pair(tmp_path, keyring, {"woe": True, "bins": 8, "l2": 0.001, "select": {"p_value": 1e-12, "vif": 50}})
    said = simulated(pair, capsys, "train")
    for party, role, columns in (("bank", "active", 3), ("platform", "passive", 3)):
        plan = json.loads((pair.output(party) / "model" / "plan.json").read_text(encoding="utf-8"))
        assert plan == said[role]["selection"]
        own = [line for line in plan if "#" not in line["column"]]
        assert len(own) == columns
        assert any(not line["kept"] and "p-value" in line["reason"] for line in plan)
        kept = [line["column"] for line in own if line["kept"]]
        assert [line["column"] for line in said[role]["coefficients"] if line["column"] != "(intercept)"] == kept
    assert simulated(pair, capsys, "predict")["active"]["rows_scored"] > 0
