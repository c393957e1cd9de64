"""Every recipe of examples/ on a few of its customers: it runs, and encryption costs it nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedlearn import recipes
from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract
from fedlearn.errors import OutputExists, OwnMistake

FEW = 300
#: Where an outcome is too rare among so few.
MORE = {"risk-based-pricing": 900}


@pytest.mark.parametrize("name", sorted(recipes.names()))
def test_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer trees, labels, columns and clusters than its contract has, for time and for so few rows."""
    smaller = tmp_path / "examples" / name
    smaller.mkdir(parents=True)
    for path in (recipes.home() / name).iterdir():
        if path.is_file():
            smaller.joinpath(path.name).write_bytes(path.read_bytes())
    contract = smaller / "contract.toml"
    contract.write_text(tomli_w.dumps(fewer(tomllib.loads(contract.read_text(encoding="utf-8")))), encoding="utf-8")
    monkeypatch.setattr(recipes, "home", lambda: smaller.parent)
    few = MORE.get(name, FEW)
    summary = recipes.play(name, tmp_path / "run", few)
    assert summary["rows_shared"] == few - 2 * int(0.05 * few)
    assert summary["ledgers_identical"]
    assert len(summary["figures"]) == 4
    pooled, joint = summary["figures"]["pooled"], summary["figures"]["joint"]
    assert set(pooled) == set(joint)
    compared = {"log_loss", "rmse", "explained"} & set(pooled)
    assert compared
    for figure in compared:
        assert joint[figure] == pytest.approx(pooled[figure], rel=0.03), figure
    for path in summary["reports"].values():
        assert Path(path).is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8")) == summary


def fewer(contract: dict[str, Any]) -> dict[str, Any]:
    """A smaller contract of the same kind."""
    if "boost" in contract:
        contract["boost"]["trees"] = 2
    if "also" in contract.get("label", {}):
        contract["label"]["also"] = contract["label"]["also"][-2:]
    if "screen" in contract:
        contract["screen"]["keep"] = 10
        contract["passive"]["features"] = dict(list(contract["passive"]["features"].items())[:60])
    if "kmeans" in contract:
        contract["kmeans"] |= {"clusters": 3, "least_rows": 5}
    return contract


@pytest.mark.parametrize("name", sorted(recipes.names()))
def test_pages_and_contracts(name: str) -> None:
    contract = load_contract(recipes.home() / name / "contract.toml")
    assert contract.name == name
    page = (recipes.home() / name / "README.md").read_text(encoding="utf-8")
    assert f"fedlearn recipe {name}" in page
    for section in ("What to look at", "Numbers reached"):
        assert f"## {section}" in page


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command_line(["recipe", "--list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(recipes.names())
    assert command_line(["recipe", "nothing"]) == OwnMistake.exit_code
    assert command_line(["recipe"]) == OwnMistake.exit_code
    (tmp_path / "mine.txt").touch()
    assert command_line(["recipe", next(iter(recipes.names())), "--out", str(tmp_path)]) == OutputExists.exit_code
    assert (tmp_path / "mine.txt").exists()
