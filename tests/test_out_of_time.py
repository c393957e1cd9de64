"""Rows of a later period: they change nothing in the model, and it is judged on them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv
from sklearn.metrics import roc_auc_score

from fedlearn import jobs
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Kind, load_contract, load_party
from fedlearn.data import make_table, periods
from fedlearn.errors import BadConfig, ColumnMissing, WrongModel
from fedlearn.models import share as shares
from fedlearn.report import page
from tests.parties import Pair, make_keys, make_pair, write_csv
from tests.test_resume import assert_same_forest

FIRST = "2024-07"
AS_TEXT = csv.ConvertOptions(column_types={"id": pa.string()})


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def dated(pair: Pair) -> None:
    """A month of application for every customer of the bank; a few have none."""
    for i, row in enumerate(pair.rows["bank"]):
        row["applied"] = "" if i % 40 == 7 else f"2024-{i % 12 + 1:02d}"
    pair.contract["out_of_time"] = {"column": "applied", "first": FIRST}


def trained(pair: Pair, name: str = "results") -> tuple[dict[str, Any], dict[str, Any]]:
    sides = [
        jobs.prepare(load_party(pair.party_file(party)), "train", out=pair.folder / party / name)
        for party in ("bank", "platform")
    ]
    return jobs.simulate_both("train", *sides)


def forest(facts: dict[str, Any], pair: Pair) -> Any:
    found = shares.load(Path(facts["folder"]), load_contract(pair.folder / "bank" / "contract.toml"), "bank")
    assert isinstance(found, shares.ActiveShare)
    return found.forest


def column(facts: dict[str, Any], sample: str, name: str) -> np.ndarray:
    return csv.read_csv(Path(facts["folder"]) / f"{sample}.csv")[name].to_numpy()


def test_the_model_does_not_depend_on_later_outcomes_and_is_judged_on_them(tmp_path: Path, keyring: Path) -> None:
    pair = make_pair(tmp_path, keyring, change=dated, folds=3, validation=0.2)
    bank, platform = trained(pair)
    later = {row["phone"] for row in pair.rows["bank"] if row["applied"] >= FIRST}
    unknown = sum(row["applied"] == "" for row in pair.rows["bank"])
    told = {name: sample["rows"] for name, sample in bank["samples"].items()}
    assert set(told) == {"held_out", "out_of_time", "validation", "fitted"}
    assert told["held_out"] == told["validation"] + told["fitted"]
    assert 0 < told["out_of_time"] < len(later)  # the bank has customers whom the platform lacks
    assert told["out_of_time"] + told["held_out"] < bank["rows_shared"]  # and some are of no period
    assert bank["warnings"] == [f"{unknown} rows have no applied: they neither train nor are judged"]
    for suffix in ("joint", "alone"):
        area = roc_auc_score(column(bank, "out_of_time", "label"), column(bank, "out_of_time", f"log_odds_{suffix}"))
        assert bank["samples"]["out_of_time"][suffix]["auc"] == pytest.approx(area)
    assert bank["joint"] == bank["samples"]["held_out"]["joint"]
    assert "samples" not in platform

    text = page.page(page.load(Path(bank["folder"]), load_contract(tmp_path / "bank/contract.toml"), "bank"))
    for words in ("Samples", "out-of-time rows, applied from 2024-07 on", "validation rows", "(score, out of time)"):
        assert words in text

    for row in pair.rows["bank"]:
        if row["applied"] >= FIRST:
            row["outcome"] = {"good": "bad", "bad": "good"}[row["outcome"]]
    write_csv(tmp_path / "bank" / "table.csv", pair.rows["bank"])
    other, _ = trained(pair, "again")
    assert_same_forest(forest(bank, pair), forest(other, pair))
    assert bank["samples"]["held_out"] == other["samples"]["held_out"]
    assert bank["samples"]["out_of_time"] != other["samples"]["out_of_time"]


def regress(pair: Pair, **glm: Any) -> None:
    dated(pair)
    del pair.contract["boost"]
    pair.contract["glm"] = {"l2": 0.01, **glm}
    for row in pair.rows["platform"]:
        row["city"] = row["city"] or "city-0"


@pytest.mark.parametrize("woe", [False, True])
def test_a_regression_does_not_depend_on_them_either(tmp_path: Path, keyring: Path, woe: bool) -> None:
    pair = make_pair(tmp_path, keyring, change=lambda p: regress(p, woe=woe, bins=4))
    bank, platform = trained(pair)
    told = bank["samples"]
    assert set(told) == {"out_of_time", "fitted"}
    label, score = (column(bank, "out_of_time", name) for name in ("label", "log_odds_joint"))
    assert told["out_of_time"]["joint"]["auc"] == pytest.approx(roc_auc_score(label, score))
    assert bank["joint"] == told["out_of_time"]["joint"]
    assert platform["steps"] < 12

    # The same rows, scored afterwards with the two shares.
    sides = [
        jobs.prepare(load_party(pair.party_file(party)), "predict", model=pair.folder / party / "results",
                     out=pair.folder / party / "scored")
        for party in ("bank", "platform")
    ]  # fmt: skip
    scored, _ = jobs.simulate_both("predict", *sides)
    found = csv.read_csv(Path(scored["folder"]) / "scores.csv", convert_options=AS_TEXT).to_pandas().set_index("id")
    later = csv.read_csv(Path(bank["folder"]) / "out_of_time.csv", convert_options=AS_TEXT).to_pandas().set_index("id")
    np.testing.assert_allclose(found.loc[later.index, "log_odds"], later["log_odds_joint"], atol=1e-4)

    for row in pair.rows["bank"]:
        if row["applied"] >= FIRST:
            row["outcome"] = {"good": "bad", "bad": "good"}[row["outcome"]]
    write_csv(tmp_path / "bank" / "table.csv", pair.rows["bank"])
    other, _ = trained(pair, "again")
    # Fixed-point shares and their random rounding move the fit by some 1e-6; turned outcomes would by far more.
    assert other["deviance"] == pytest.approx(bank["deviance"], rel=1e-4)
    assert other["samples"]["out_of_time"] != told["out_of_time"]


@pytest.mark.parametrize("kind", ["trees", "regression"])
def test_nor_does_the_model_of_own_features_alone(
    tmp_path: Path, keyring: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fallback of online scoring; what it is held against is held out from it, too."""
    pair = make_pair(tmp_path, keyring, change=dated if kind == "trees" else regress)
    shares = []
    for out in (tmp_path / "one", tmp_path / "other"):
        file = str(pair.party_file("bank"))
        assert command_line(["train-alone", "--party", file, "--out", str(out), "--json"]) == 0
        facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
        assert facts["rows"] == sum("" < row["applied"] < FIRST for row in pair.rows["bank"])
        share = json.loads((out / "share.json").read_text(encoding="utf-8"))
        shares.append((out / "share.arrow").read_bytes() if kind == "trees" else share["coefficients"])
        for row in pair.rows["bank"]:
            if row["applied"] >= FIRST:
                row["outcome"] = {"good": "bad", "bad": "good"}[row["outcome"]]
        write_csv(tmp_path / "bank" / "table.csv", pair.rows["bank"])
    assert shares[0] == shares[1]
    assert command_line(["explain", str(out), "--party", file]) == WrongModel.exit_code
    assert "is not one of both parties" in capsys.readouterr().err


def test_sealed_regression_has_no_rows_out_of_time(tmp_path: Path, keyring: Path) -> None:
    pair = make_pair(tmp_path, keyring, change=lambda p: regress(p, disclosure="none"))
    with pytest.raises(BadConfig, match="score the later rows with predict"):
        load_contract(pair.folder / "bank" / "contract.toml")


def test_without_later_rows_a_warning(tmp_path: Path, keyring: Path) -> None:
    def change(pair: Pair) -> None:
        dated(pair)
        pair.contract["out_of_time"]["first"] = "2031-01"

    bank, _ = trained(make_pair(tmp_path, keyring, change=change))
    assert bank["warnings"][0] == "no row is from 2031-01 on by applied: nothing is judged out of time"
    assert set(bank["samples"]) == {"fitted"}


def test_a_column_that_is_not_there(tmp_path: Path, keyring: Path) -> None:
    def change(pair: Pair) -> None:
        pair.contract["out_of_time"] = {"column": "applied", "first": FIRST}

    pair = make_pair(tmp_path, keyring, change=change)
    with pytest.raises(ColumnMissing, match="applied"):
        jobs.prepare(load_party(pair.party_file("bank")), "check")
    jobs.prepare(load_party(pair.party_file("platform")), "check")  # it has no such column, and needs none


@pytest.mark.parametrize("column", ["income", "outcome"])
def test_the_column_is_no_feature_and_not_the_label(tmp_path: Path, keyring: Path, column: str) -> None:
    def change(pair: Pair) -> None:
        pair.contract["out_of_time"] = {"column": column, "first": "1"}

    with pytest.raises(BadConfig, match="out_of_time"):
        load_contract(make_pair(tmp_path, keyring, change=change).folder / "bank" / "contract.toml")


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=1, max_size=30), st.integers(0, 20))
def test_periods_of_numbers_and_of_texts(values: list[int | None], first: int) -> None:
    due = [periods.NEITHER if v is None else periods.LATER if v >= first else periods.EARLIER for v in values]
    ids = [str(i) for i in range(len(values))]
    texts = [None if v is None else f"2024-{v:02d}" for v in values]
    numbers = [np.nan if v is None else float(v) for v in values]
    for given_, start in ((numbers, str(first)), (texts, f"2024-{first:02d}")):
        kinds: dict[str, Kind] = periods.with_period({}, "when", start)
        table = make_table(ids, {"when": given_}, kinds)
        rest, period = periods.split_off(table, "when", start)
        assert period.tolist() == due
        assert not rest.columns
        assert replace(table, columns={}).fingerprint() == rest.fingerprint()
