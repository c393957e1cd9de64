"""Calibrated probabilities against scikit-learn's isotonic regression and Platt scaling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from fedlearn.models.calibration import Calibration, fit

F64 = NDArray[np.float64]


def drawn(rows: int, digits: int = 12) -> tuple[F64, F64, F64]:
    """Margins twice as sure as they should be, so that there is something to put right."""
    draws = np.random.default_rng(rows)
    eta = draws.normal(-1.5, 1, rows)
    label = (draws.random(rows) < 1 / (1 + np.exp(-eta))).astype(float)
    return np.round(2 * eta, digits), label, draws.integers(0, 3, rows).astype(float)


@pytest.mark.parametrize("digits", [12, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps(digits: int, weighted: bool) -> None:
    margins, label, weight = drawn(3000, digits)
    weight = weight if weighted else np.ones(3000)
    found = fit(margins, label, weight)
    assert found.method == "isotonic"
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(margins, label, weight)
    at = np.linspace(-12, 12, 2001)
    np.testing.assert_allclose(found.of(at), theirs.predict(at), atol=1e-9)
    assert len(found.margins) < 600


def test_logistic() -> None:
    margins, label, _ = drawn(400)
    found = fit(margins, label, np.ones(400))
    assert found.method == "logistic"
    theirs = _SigmoidCalibration().fit(margins, label)
    at = np.linspace(-12, 12, 101)
    np.testing.assert_allclose(found.of(at), theirs.predict(at), atol=1e-5)  # theirs stops early


def test_it_helps_on_other_rows() -> None:
    for rows in (400, 5000):
        curve = fit(*drawn(rows)[:2], np.ones(rows))
        margins, label, _ = drawn(20_000)
        before = brier_score_loss(label, 1 / (1 + np.exp(-margins)))
        assert brier_score_loss(label, curve.of(margins)) < before - 0.005


def test_saved_and_restored() -> None:
    margins, label, _ = drawn(3000)
    for rows in (300, 3000):
        curve = fit(margins[:rows], label[:rows], np.ones(rows))
        again = Calibration.from_json(json.loads(json.dumps(curve.to_json())))
        np.testing.assert_array_equal(curve.of(margins), again.of(margins))


@pytest.mark.parametrize(
    "change",
    [{"margins": [0.0, 0.0]}, {"margins": [1.0]}, {"chances": [0.5, 0.1]}, {"chances": [0.5, 1.5]}, {"margins": None},
     {"slope": float("nan")}, {"margins": [0.0, float("inf")]}, {"chances": [float("nan")] * 2}],
)  # fmt: skip
def test_a_damaged_curve_is_refused(change: dict[str, Any]) -> None:
    saved = {"margins": [0.0, 1.0], "chances": [0.1, 0.5], "slope": 1.0, "intercept": 0.0}
    Calibration.from_json(saved)
    with pytest.raises((ValueError, TypeError)):
        Calibration.from_json(saved | change)
