"""Every recipe of examples/ on a few of its customers: it runs, and encryption costs it nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedlearn import recipes
from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract
from fedlearn.errors import OutputExists, OwnMistake

FEW = 300


@pytest.mark.parametrize("name", sorted(recipes.names()))
def test_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer and smaller trees than its contract has, for time."""
    smaller = tmp_path / "examples" / name
    smaller.mkdir(parents=True)
    for path in (recipes.home() / name).iterdir():
        if path.is_file():
            smaller.joinpath(path.name).write_bytes(path.read_bytes())
    contract = smaller / "contract.toml"
    text = contract.read_text(encoding="utf-8")
    contract.write_text(
        "\n".join("trees = 2" if line.startswith("trees") else line for line in text.splitlines()), encoding="utf-8"
    )
    monkeypatch.setattr(recipes, "home", lambda: smaller.parent)
    summary = recipes.play(name, tmp_path / "run", FEW)
    assert summary["rows_shared"] == FEW - 2 * int(0.05 * FEW)
    assert summary["ledgers_identical"]
    assert len(summary["figures"]) == 4
    pooled, joint = summary["figures"]["pooled"], summary["figures"]["joint"]
    assert set(pooled) == set(joint)
    loss = "log_loss" if "log_loss" in pooled else "rmse"
    assert joint[loss] == pytest.approx(pooled[loss], rel=0.03)
    for path in summary["reports"].values():
        assert Path(path).is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8")) == summary


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
