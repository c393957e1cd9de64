"""Several labels in one run: each model is what it would be by itself, on one alignment and one hint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.cli.main import run as command_line
from fedlearn.contract import Boost, Contract, Label, Target
from fedlearn.errors import BadLabel, NoOverlap, NotInContract
from fedlearn.learner import booster
from fedlearn.protocols import boost
from fedlearn.samples import judged
from tests.boosting import NO_TIES, Case, meet, numbers
from tests.parties import MODULES, Pair, make_keys, make_pair, read_csv
from tests.test_glm_end_to_end import simulated


def several(case: Case, more: np.ndarray, also: tuple[str, ...]) -> tuple[Contract, boost.ActiveData]:
    targets = tuple(Target(column=f"y{k + 1}", objective=name) for k, name in enumerate(also))
    plain = case.contract()
    label = plain.label.model_copy(update={"also": targets})
    rows = replace(case.active.rows, more=more, also=also)
    return plain.model_copy(update={"label": label}), replace(case.active, rows=rows)


def test_models_are_those_of_single_runs() -> None:
    """The first to the bit; the others too where rounding draws nothing, as with one tree's worth of exact values."""
    columns, label = numbers(600, 6, seed=4)
    amount = np.nan_to_num(columns["x1"]) * 2 + columns["x4"]
    case = Case(columns, label, passive=3, trees=5, folds=2, **NO_TIES | {"gradient_bits": 16})
    agreed, active = several(case, np.stack([amount, 1.0 - np.asarray(label)]), ("squared", "logistic"))
    result, passive = meet(active, case.passive, agreed)
    assert agreed.outputs == 3
    assert result.fit.forest.trees == 15
    assert len(passive.feature) == len(result.fit.forest.passive_splits)
    single, _ = meet(case.active, case.passive, case.contract())
    assert np.array_equal(result.fit.margins[0], single.fit.margins[0])
    assert np.array_equal(result.held_out[0], single.held_out[0])
    by_amount = replace(case.active.rows, label=amount)
    folds = [booster.split_of(600, case.settings, result.fold == k) for k in range(2)]
    squared = case.settings.model_copy(update={"objective": "squared"})
    pooled = pooled_rows(case, by_amount)
    alone = booster.fit(pooled, squared, [booster.split_of(600, squared)], None)[0]
    assert np.corrcoef(result.fit.margins[1], alone.margins[0])[0, 1] > 0.999
    assert len(folds) == 2
    # The opposite of a label has the opposite model, but for stochastic rounding.
    assert np.corrcoef(result.fit.margins[0], -result.fit.margins[2])[0, 1] > 0.99
    found = judged(agreed, np.atleast_2d(active.rows.targets), result.held_out)
    assert set(found[0]) == set(found[2]) == {"auc", "ks", "log_loss"}
    assert set(found[1]) == {"rmse", "mae", "r2"}


def pooled_rows(case: Case, rows: booster.Rows) -> booster.Rows:
    both = rows.features + case.passive.features
    return replace(rows, bins=np.concatenate([rows.bins, case.passive.bins]), features=both)


def test_a_label_without_variety_is_named() -> None:
    columns, label = numbers(200, 4, seed=2)
    case = Case(columns, label, passive=2, trees=2, **NO_TIES)
    agreed, active = several(case, np.ones((1, 200)), ("logistic",))
    with pytest.raises(NoOverlap, match="'y1'"):
        meet(active, case.passive, agreed)


def test_what_does_not_go_together() -> None:
    plain = Case(*numbers(50, 4, seed=2), passive=2).contract()
    also = [{"column": "y1"}]
    body = json.loads(plain.model_dump_json())
    for label, settings in (
        ({"also": also}, {"objective": "poisson"}),
        ({"also": also}, {"validation": 0.2, "early_stopping": 2}),
        ({"also": also}, {"scale_pos_weight": 2.0}),
        ({"also": also}, {"goss_top": 0.2}),
        ({"also": also}, {"metric": "auc", "validation": 0.2}),
        ({"also": also * 2}, {}),
        ({"also": [{"column": "x0"}]}, {}),
        ({"also": [{"column": plain.label.column}]}, {}),
    ):
        wrong = body | {"label": body["label"] | label, "boost": json.loads(Boost(**settings).model_dump_json())}
        with pytest.raises(ValueError, match=r"\[label\] also"):
            Contract.model_validate(wrong)
    assert Label(column="y", also=(Target(column="z"),)).columns == ("y", "z")


# --- whole runs --------------------------------------------------------------------------------------


def with_amount(pair: Pair) -> None:
    """A second label, an amount, and a third, its size as text; beside the bank's first."""
    for row in pair.rows["bank"]:
        amount = float(row["income"] or 900) / 7
        row |= {"amount": f"{amount:.3f}", "size": "big" if amount > 150 else "small"}
    pair.contract["label"]["also"] = [
        {"column": "amount", "objective": "squared"}, {"column": "size", "positive": "big"},
    ]  # fmt: skip


def test_train_predict_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = make_pair(tmp_path, make_keys(tmp_path / "keys"), folds=2, change=with_amount)
    said: dict[str, Any] = {}
    for job in ("check", "train", "predict"):
        said[job] = simulated(pair, capsys, job)["active"]
    targets = said["train"]["targets"]
    assert list(targets) == ["outcome", "amount", "size"]
    assert targets["outcome"]["joint"] == said["train"]["joint"]
    assert targets["amount"]["joint"]["r2"] > 0.3
    held_out = read_csv(pair.output("bank") / "model" / "held_out.csv")
    for name in ("label", "label_amount", "prediction_amount_joint", "probability_size_alone"):
        assert name in held_out[0]
    scores = read_csv(pair.output("bank") / "predictions" / "scores.csv")
    expected = ["id", "probability", "log_odds", "prediction_amount", "probability_size", "log_odds_size", "calibrated"]
    assert list(scores[0]) == expected
    assert "All labels" in (pair.output("bank") / "model" / "report.html").read_text(encoding="utf-8")
    bank = ["--party", str(pair.party_file("bank"))]
    assert command_line(["export", *bank, "--format", "xgboost"]) == NotInContract.exit_code


def test_a_further_label_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = make_pair(tmp_path, make_keys(tmp_path / "keys"))
    pair.contract["label"]["also"] = [{"column": "debt", "objective": "squared"}]
    del pair.contract["active"]["features"]["debt"]
    pair.rows["bank"][0]["debt"] = ""
    pair.write()
    files = [str(pair.party_file(party)) for party in MODULES]
    assert command_line(["simulate", *files, "--json", "--progress", "none"]) == BadLabel.exit_code
    assert "debt" in capsys.readouterr().err
