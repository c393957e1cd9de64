"""``fedlearn new``: a draft from two tables' headers trains as it is; what cannot be drafted is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from fedlearn import keys
from fedlearn.bench.pair import free_port
from fedlearn.cli.main import app
from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract, load_party
from fedlearn.data.outline import outline
from fedlearn.errors import BadConfig, BadLabel, ColumnMissing, FileMissing, OutputExists, OwnMistake
from tests.parties import FEATURES, MODULES, Process, tables, write_csv


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = tables()
    for row in rows["platform"]:
        del row["outcome"]
    for party in MODULES:
        write_csv(tmp_path / f"{party}.csv", rows[party])
    return {party: tmp_path / f"{party}.csv" for party in MODULES}


def arguments(folder: Path, files: dict[str, Path], *more: str) -> list[str]:
    known = ["new", str(folder), "--active-table", str(files["bank"]), "--passive-table", str(files["platform"])]
    return [*known, "--label", "outcome", "--json", *more]


@pytest.mark.processes
def test_a_draft_trains_as_it_is(tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "joint"
    assert command_line(arguments(folder, files, "--address", f"127.0.0.1:{free_port()}")) == 0
    told = json.loads(capsys.readouterr().out)
    contract = load_contract(Path(told["contract"]))
    assert contract.active.features == FEATURES["bank"]
    assert contract.passive.features == FEATURES["platform"]
    assert contract.align.key.normalise == "digits"  # by the column's name, phone
    values = [row["outcome"] for row in tables()["bank"]]
    assert contract.label.positive == min(set(values), key=values.count)
    keys.create_authority(tmp_path / "ca", "Test Authority")
    for party in MODULES:
        keys.issue(tmp_path / "ca", folder / "keys" / party, party)
        for file in (folder / "keys" / party).iterdir():
            file.rename(folder / "keys" / file.name)
    started = [
        Process(
            party, ["-m", MODULES[party], "train", "--party", told[party], "--json", "--progress", "none"], tmp_path
        )
        for party in MODULES
    ]
    try:
        ended = [process.wait() for process in started]
    finally:
        for process in started:
            process.process.kill()
    assert all(side.result["rows_shared"] == 240 for side in ended)
    assert (folder / "results-bank" / "model" / "report.html").exists()


def test_the_peers_columns_are_told_where_its_table_is_not(tmp_path: Path, files: dict[str, Path]) -> None:
    folder = tmp_path / "joint"
    told = ["--passive-feature", "spend=number", "--passive-feature", "home town=category", "--model", "scorecard"]
    alone = ["new", str(folder), "--active-table", str(files["bank"]), "--label", "outcome", "--key", "phone", "--yes"]
    assert command_line([*alone, *told, "--mode", "one-sided", "--active", "lender"]) == 0
    contract = load_contract(folder / "contract.toml")
    assert contract.passive.features == {"spend": "number", "home town": "category"}
    assert contract.scorecard is not None
    assert contract.align.mode == "one-sided"
    assert load_party(folder / "lender.toml").data.path == files["bank"]


def test_questions_at_a_terminal(tmp_path: Path, files: dict[str, Path]) -> None:
    answers = ["", "", str(files["bank"]), str(files["platform"]), "", "outcome", "regression", "one-sided",
               "Find out who repays a loan", "shop.example:7000"]  # fmt: skip
    ended = CliRunner().invoke(app, ["new", str(tmp_path / "joint")], input="\n".join(answers) + "\n")
    assert ended.exit_code == 0, ended.output
    contract = load_contract(tmp_path / "joint/contract.toml")
    assert contract.glm is not None
    assert contract.purpose == "Find out who repays a loan"
    assert load_party(tmp_path / "joint/bank.toml").network.connect == "shop.example:7000"
    assert load_party(tmp_path / "joint/platform.toml").network.listen == "0.0.0.0:7000"


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        (["--label", "nothing"], ColumnMissing, "nothing"),
        (["--key", "nothing"], ColumnMissing, "nothing"),
        (["--positive", "ugly"], BadLabel, "none is 'ugly'"),
        (["--label", "income", "--positive", "1"], BadLabel, "more than two values"),
        (["--label", "income", "--model", "scorecard"], OwnMistake, "choose trees"),
        (["--model", "oracle"], OwnMistake, "oracle"),
        (["--passive-feature", "spend"], BadConfig, "name=number"),
        (["--purpose", "short"], BadConfig, "purpose"),
        (["--passive", "bank"], BadConfig, "two different parties"),
        (["--passive-table", "nowhere.csv"], FileMissing, "nowhere.csv"),
    ],
)
def test_what_cannot_be_drafted(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], error: Any, words: str
) -> None:
    assert command_line(arguments(tmp_path / "joint", files, *more)) == error.exit_code
    assert words in json.loads(capsys.readouterr().err)["message"]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".csv"]


def test_nothing_is_overwritten(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "joint").mkdir()
    assert command_line(arguments(tmp_path / "joint", files)) == OutputExists.exit_code


def test_an_outline_of_parquet(tmp_path: Path) -> None:
    many = [f"name {i}" for i in range(300)]
    columns = {
        "n": range(300),
        "t": ["a", None, " b"] * 100,
        "x": ["1", "2.5", ""] * 100,
        "name": many,
        "d": [[1]] * 300,
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = outline(tmp_path / "t.parquet")
    assert found.kinds == {"n": "number", "t": "category", "x": "number", "name": None, "d": None}
    assert found.values("t") == {"a": 100, "b": 100}
