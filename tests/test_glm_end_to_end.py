"""Whole runs of regression contracts: two real processes over mutual TLS; simulate for the odd cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.cli.main import run as command_line
from fedlearn.errors import BadLabel, NoOverlap, NotInContract, OverBudget
from tests.parties import MODULES, SHARED, Pair, digits, make_keys, make_pair, read_csv, write_csv

CARD = {
    "base_score": 600, "base_odds": 20, "pdo": 30, "reasons": 3,
    "codes": {"spend": "P-SPEND", "visits": "P-VISITS", "income": "B-INCOME", "debt": "B-DEBT"},
}  # fmt: skip


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def glm_pair(
    folder: Path,
    keyring: Path,
    glm: dict[str, Any],
    mode: str = "mutual",
    change: Callable[[Pair], None] | None = None,
    **more: Any,
) -> Pair:
    def turn(pair: Pair) -> None:
        del pair.contract["boost"]
        pair.contract |= {"glm": glm, **more}
        if change is not None:
            change(pair)

    return make_pair(folder, keyring, mode=mode, change=turn)


def simulated(pair: Pair, capsys: pytest.CaptureFixture[str], job: str) -> dict[str, Any]:
    files = [str(pair.party_file(party)) for party in MODULES]
    assert command_line(["simulate", *files, "--job", job, "--json", "--progress", "none"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.processes
def test_a_scorecard_from_two_processes(tmp_path: Path, keyring: Path) -> None:
    glm = {"woe": True, "bins": 8, "l2": 0.001, "statistics": True}
    pair = glm_pair(tmp_path, keyring, glm, scorecard=CARD)
    said = {job: {p: e.result for p, e in pair.run(job).items()} for job in ("check", "train", "predict")}
    bank, platform = said["train"]["bank"], said["train"]["platform"]
    assert said["check"]["bank"]["most_vectors"] == 14 * (3 + 4)
    assert bank["ledger"] == platform["ledger"]
    assert bank["model_id"] == platform["model_id"]
    assert bank["converged"]
    assert bank["step_sizes_in_standard_errors"] == platform["step_sizes_in_standard_errors"]
    assert bank["joint"]["auc"] > bank["alone"]["auc"] + 0.03
    assert [line["column"] for line in bank["coefficients"]] == ["(intercept)", "income", "debt", "work"]
    assert [line["column"] for line in platform["coefficients"]] == ["spend", "visits", "city"]
    assert all(0 <= line["p"] <= 1 for line in platform["coefficients"])
    assert set(platform["iv"]) == {"spend", "visits", "city"}
    assert bank["aic"] == pytest.approx(platform["aic"])
    opaque = {f"platform#{j}" for j in range(3)}
    assert set(bank["variance_inflation"]) == {"income", "debt", "work"} | opaque
    theirs = sorted(bank["variance_inflation"][name] for name in opaque)
    assert sorted(platform["variance_inflation"].values()) == pytest.approx(theirs)
    assert said["predict"]["bank"]["score_stability_index"] == pytest.approx(0, abs=0.01)
    assert said["predict"]["platform"]["stability_index"] == pytest.approx({"spend": 0, "visits": 0, "city": 0})
    for party in MODULES:
        assert {path.name for path in (pair.output(party) / "model").iterdir()} == {
            "share.json", "scorecard.json", "scorecard.pmml", "plan.json", "run.json", "report.html",
            *(["fitted.csv"] if party == "bank" else []),
        }  # fmt: skip
    written = (pair.output("platform") / "model" / "scorecard.json").read_text(encoding="utf-8")
    assert "income" not in written
    report = (pair.output("platform") / "model" / "report.html").read_text(encoding="utf-8")
    assert "600 points at odds of 20 to 1; 30 points double the odds" in report
    assert '"spend"' in written

    rows = read_csv(pair.output("bank") / "predictions" / "scores.csv")
    assert len(rows) == SHARED == said["predict"]["bank"]["rows_scored"]
    for row in rows:
        score = 600 - 30 * np.log2(20) - 30 / np.log(2) * float(row["log_odds"])
        assert float(row["score"]) == pytest.approx(score)
        reasons = [row[f"reason_{k}"] for k in (1, 2, 3)]
        assert set(reasons) <= {*CARD["codes"].values(), ""}  # type: ignore[attr-defined]
    assert not (pair.output("platform") / "predictions" / "scores.csv").exists()


def test_one_sided_the_passive_side_does_not_learn_the_count(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = glm_pair(tmp_path, keyring, {"l2": 0.01, "errors": False}, mode="one-sided")
    said = simulated(pair, capsys, "train")
    assert said["active"]["rows_shared"] == SHARED
    assert "deviance" not in said["passive"]
    assert all("error" not in line for line in said["passive"]["coefficients"])
    assert said["active"]["ledger"] == said["passive"]["ledger"]
    scored = simulated(pair, capsys, "predict")
    assert scored["active"]["rows_scored"] == SHARED


def with_offset(values: Callable[[int], str]) -> Callable[[Pair], None]:
    """An offset column at the bank."""

    def change(pair: Pair) -> None:
        pair.contract["label"]["offset"] = "before"
        pair.rows["bank"] = [row | {"before": values(i)} for i, row in enumerate(pair.rows["bank"])]

    return change


def test_an_offset_may_be_missing_when_scoring_but_not_when_training(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = glm_pair(tmp_path / "a", keyring, {"l2": 0.01}, change=with_offset(lambda i: f"{i % 3 / 10}"))
    simulated(pair, capsys, "train")
    whole = simulated(pair, capsys, "predict")
    assert whole["active"]["warnings"] == []
    scores = {r["id"]: float(r["log_odds"]) for r in read_csv(pair.output("bank") / "predictions" / "scores.csv")}
    (pair.output("bank") / "predictions").rename(tmp_path / "kept")
    (pair.output("platform") / "predictions").rename(tmp_path / "kept too")
    write_csv(
        pair.folder / "bank" / "table.csv",
        [{name: cell for name, cell in row.items() if name != "before"} for row in pair.rows["bank"]],
    )
    (warning,) = simulated(pair, capsys, "predict")["active"]["warnings"]
    assert "'before'" in warning
    less = {r["id"]: float(r["log_odds"]) for r in read_csv(pair.output("bank") / "predictions" / "scores.csv")}
    for row in pair.rows["bank"]:
        if digits(row["phone"]) in scores:
            one = digits(row["phone"])
            assert scores[one] - less[one] == pytest.approx(float(row["before"]))

    holed = glm_pair(tmp_path / "b", keyring, {}, change=with_offset(lambda i: "" if i == 4 else "0.1"))
    assert command_line(holed.arguments("bank", "train")) == BadLabel.exit_code
    assert "row 5" in capsys.readouterr().err


@pytest.mark.parametrize("glm", [{}, {"woe": True, "bins": 8}])
def test_no_row_to_train_on_is_told_before_anything_is_sent(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, glm: Any
) -> None:
    def change(pair: Pair) -> None:
        pair.rows["bank"] = [row | {"applied": "2025-01"} for row in pair.rows["bank"]]

    for sends in ("woe.evidence_active", "regression.fit_active"):
        monkeypatch.setattr(f"fedlearn.jobs_glm.{sends}", None)
    later = {"column": "applied", "first": "2024-07"}
    pair = glm_pair(tmp_path, keyring, glm, change=change, out_of_time=later)
    files = [str(pair.party_file(party)) for party in MODULES]
    assert command_line(["simulate", *files, "--job", "train", "--progress", "none"]) == NoOverlap.exit_code
    assert "before 2024-07 by 'applied'" in capsys.readouterr().err


def test_texts_that_training_never_saw_are_a_warning_on_the_side_that_has_them(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = glm_pair(tmp_path, keyring, {"woe": True, "bins": 8, "l2": 0.001})
    simulated(pair, capsys, "train")
    write_csv(pair.folder / "platform" / "table.csv", [row | {"city": "Atlantis"} for row in pair.rows["platform"]])
    said = simulated(pair, capsys, "predict")
    (warning,) = said["passive"]["warnings"]
    assert "'city'" in warning
    assert said["active"]["warnings"] == []


def test_a_budget_too_small_is_refused_before_anybody_connects(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(pair: Pair) -> None:
        pair.contract["budget"]["vectors"] = 10

    pair = glm_pair(tmp_path, keyring, {}, change=change)
    assert command_line(pair.arguments("platform", "check")) == OverBudget.exit_code
    assert "encrypted vectors" in capsys.readouterr().err


@pytest.mark.processes
def test_the_benchmark_compares_with_statsmodels(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "2000", "--active-features", "2", "--passive-features", "2", "--json"]
    assert command_line(["bench", "glm", *size]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["max_coefficient_error_in_standard_errors"] < 0.1
    assert said["auc"] == pytest.approx(said["auc_pooled"], abs=1e-3)
    names = {"seconds_fit", "statsmodels_seconds", "rounds", "bytes_active", "bytes_passive", "kl_nats"}
    assert names <= set(said)
    assert command_line(["bench", "glm", *size, "--disclosure", "all"]) == NotInContract.exit_code
