"""Batch scoring in pieces: the same scores however it is cut, going on after a crash, and written as Parquet."""

from __future__ import annotations

import json
import shutil
from itertools import count
from typing import Any

import pytest
from pyarrow import parquet

from fedlearn import jobs, jobs_score
from fedlearn.channel import Channel, simulate
from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_party
from fedlearn.errors import Malformed, OutputExists, PeerAborted, WrongCheckpoint
from fedlearn.protocols import linear, score
from tests.parties import MODULES, Pair, make_keys, make_pair, read_csv, write_csv
from tests.test_glm_end_to_end import CARD, glm_pair, with_offset
from tests.test_kmeans import kmeans_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    made = make_pair(tmp_path_factory.mktemp("batch"), make_keys(tmp_path_factory.mktemp("keys")), folds=2)
    files = [str(made.party_file(party)) for party in MODULES]
    for job in ("train", "predict"):
        assert command_line(["simulate", *files, "--job", job, "--progress", "none", "--json"]) == 0
    return made


def predict(pair: Pair, out: str, *, resume: bool = False, form: str = "csv") -> dict[str, Any]:
    prepared = {
        party: jobs.prepare(
            load_party(pair.party_file(party)), "predict", out=pair.output(party) / out, resume=resume, form=form
        )
        for party in MODULES
    }
    return jobs.simulate_both("predict", prepared["bank"], prepared["platform"])[0]


def scores(pair: Pair, out: str) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_csv(pair.output("bank") / out / "scores.csv")}


def test_pieces_give_the_same_scores(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_score, "PIECE_ROWS", 37)
    found = predict(pair, "cut")
    assert found["pieces"] > 3
    assert scores(pair, "cut") == scores(pair, "predictions")
    assert "calibrated" in next(iter(scores(pair, "cut").values()))
    assert not list(pair.output("bank").glob("*.checkpoint"))
    assert not list(pair.output("platform").glob("*.checkpoint"))


def test_parquet_says_the_same(pair: Pair) -> None:
    predict(pair, "as-parquet", form="parquet")
    rows = parquet.read_table(pair.output("bank") / "as-parquet" / "scores.parquet").to_pylist()
    known = scores(pair, "predictions")
    assert {row["id"]: row["log_odds"] for row in rows} == {i: float(row["log_odds"]) for i, row in known.items()}


def broken_off(pair: Pair, out: str, monkeypatch: pytest.MonkeyPatch, after: int, passive: bool = False) -> None:
    """A batch of which ``after`` pieces were done when the active side went down; or the passive one (regressions)."""
    monkeypatch.setattr(jobs_score, "PIECE_ROWS", 37)
    keep, serve = jobs_score.Pieces.keep, linear.score_passive
    served = count()

    def dies(self: jobs_score.Pieces, number: int, found: Any) -> None:
        if number == after:
            raise KeyboardInterrupt
        keep(self, number, found)

    def fails(*given: Any) -> None:
        if next(served) == after:
            raise KeyboardInterrupt
        serve(*given)

    with monkeypatch.context() as patched:
        if passive:
            patched.setattr(linear, "score_passive", fails)
        else:
            patched.setattr(jobs_score.Pieces, "keep", dies)
        with pytest.raises((KeyboardInterrupt, PeerAborted)):
            predict(pair, out)


def test_a_batch_goes_on_after_a_crash(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(pair, "broken", monkeypatch, 2)
    assert not (pair.output("bank") / "broken").exists()
    with pytest.raises(OutputExists, match="--resume"):
        predict(pair, "broken")
    found = predict(pair, "broken", resume=True)
    passive = json.loads((pair.output("platform") / "broken" / "run.json").read_text())
    assert found["pieces_from_before"] == passive["pieces_from_before"] == 2
    assert scores(pair, "broken") == scores(pair, "predictions")
    assert not (pair.output("bank") / "broken.checkpoint").exists()
    assert not (pair.output("platform") / "broken.checkpoint").exists()


def test_a_side_that_lost_its_checkpoint_begins_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(pair, "lost", monkeypatch, 2)
    shutil.rmtree(pair.output("platform") / "lost.checkpoint")
    found = predict(pair, "lost", resume=True)
    assert found["pieces_from_before"] == 0
    assert scores(pair, "lost") == scores(pair, "predictions")


def test_a_checkpoint_of_something_else_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(pair, "other", monkeypatch, 2)
    folder = pair.output("bank") / "other.checkpoint"
    said = json.loads((folder / "pieces.json").read_text())
    (folder / "pieces.json").write_text(json.dumps(said | {"table": "00"}))
    with pytest.raises((WrongCheckpoint, PeerAborted)):
        predict(pair, "other", resume=True)
    (folder / "pieces.json").write_text(json.dumps(said))
    piece = folder / "000001.arrow"
    piece.write_bytes(piece.read_bytes()[:100])
    with pytest.raises((WrongCheckpoint, PeerAborted)):
        predict(pair, "other", resume=True)


# --- regressions ------------------------------------------------------------------------------------


REGRESSIONS: dict[str, dict[str, Any]] = {
    "card": {"glm": {"woe": True, "bins": 8, "l2": 0.001}, "scorecard": CARD},
    "one-sided": {
        "glm": {"l2": 0.01, "errors": False},
        "mode": "one-sided",
        "change": with_offset(lambda i: f"{i / 99}"),
    },
}


@pytest.fixture(scope="module", params=REGRESSIONS)
def regression(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    keyring = make_keys(tmp_path_factory.mktemp("keys"))
    made = glm_pair(tmp_path_factory.mktemp("regression"), keyring, **REGRESSIONS[request.param])
    files = [str(made.party_file(party)) for party in MODULES]
    for job in ("train", "predict"):
        assert command_line(["simulate", *files, "--job", job, "--progress", "none", "--json"]) == 0
    return made


@pytest.mark.parametrize("dies", MODULES)
def test_a_regression_goes_on_whoever_crashed(regression: Pair, dies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"after-{dies}"
    broken_off(regression, out, monkeypatch, 2, passive=dies == "platform")
    with pytest.raises(OutputExists, match="--resume"):
        predict(regression, out)
    found = predict(regression, out, resume=True)
    passive = json.loads((regression.output("platform") / out / "run.json").read_text())
    assert found["pieces"] == passive["pieces"] > 3
    assert found["pieces_from_before"] == passive["pieces_from_before"] == 2
    before = json.loads((regression.output("bank") / "predictions" / "run.json").read_text())
    (told,) = [line["values"] for line in passive["ledger"] if line["message"] == "LinearScores"]
    (whole,) = [line["values"] for line in before["ledger"] if line["message"] == "LinearScores"]
    assert told == whole - 2 * 37 * (whole // passive["rows_common_order"])
    assert scores(regression, out) == scores(regression, "predictions")
    for name in ("score_stability_index", "warnings"):
        assert found.get(name) == before.get(name)
    assert not list(regression.output("bank").glob("*.checkpoint"))
    assert not list(regression.output("platform").glob("*.checkpoint"))


def test_a_regression_with_other_values_is_refused(regression: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(regression, "moved", monkeypatch, 2)
    rows = regression.rows["bank"]
    moved = [row | {"income": row["income"] and f"{float(row['income']) + 1e-9}"} for row in rows]  # in the same bin
    try:
        write_csv(regression.folder / "bank" / "table.csv", moved)
        with pytest.raises((WrongCheckpoint, PeerAborted)):
            predict(regression, "moved", resume=True)
    finally:
        write_csv(regression.folder / "bank" / "table.csv", rows)
    assert predict(regression, "moved", resume=True)["pieces_from_before"] == 2


def test_more_pieces_than_there_are() -> None:
    def active(channel: Channel) -> None:
        score.begin_active(channel, 5)
        channel.receive(score.pb.ScoreSides)

    def passive(channel: Channel) -> int:
        return score.begin_passive(channel, 4)

    with pytest.raises((Malformed, PeerAborted), match="5 pieces"):
        simulate(active, passive)


def test_a_form_that_there_is_not(pair: Pair) -> None:
    assert command_line(["predict", "--party", str(pair.party_file("bank")), "--format", "xlsx"]) != 0


# --- clusters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mutual", "one-sided"])
def test_clusters_go_on_after_a_crash(
    mode: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One piece or several, broken off or not: the ranges are of the whole batch, so the clusters are the same."""
    pair = kmeans_pair(tmp_path_factory.mktemp("clusters"), make_keys(tmp_path_factory.mktemp("keys")), mode=mode)
    files = [str(pair.party_file(party)) for party in MODULES]
    for job in ("train", "predict"):
        assert command_line(["simulate", *files, "--job", job, "--progress", "none", "--json"]) == 0
    broken_off(pair, "broken", monkeypatch, 2)
    with pytest.raises(OutputExists, match="--resume"):
        predict(pair, "broken")
    found = predict(pair, "broken", resume=True)
    passive = json.loads((pair.output("platform") / "broken" / "run.json").read_text())
    assert found["pieces"] == passive["pieces"] > 3
    assert found["pieces_from_before"] == passive["pieces_from_before"] == 2
    assert scores(pair, "broken") == scores(pair, "predictions")
    told = {line["message"]: line["messages"] for line in passive["ledger"]}
    assert told["KmeansReach"] == told["KmeansDone"] == 1
