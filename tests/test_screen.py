"""Screening of many passive columns before trees: which are kept, what is refused, and a whole run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.channel import Channel, Limits, simulate
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Contract, Screen
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BeyondContract, ConstantColumns, Malformed, NotInContract, WrongLength
from fedlearn.jobs_glm import own_evidence
from fedlearn.learner.woe import evidence
from fedlearn.protocols import handshake, screen
from fedlearn.v1 import screen_pb2 as pb
from tests.boosting import Case, numbers
from tests.parties import Pair, make_keys, make_pair
from tests.test_glm_end_to_end import simulated


def agreed(columns: int, **settings: Any) -> Contract:
    body = json.loads(Case(*numbers(50, 1 + columns, seed=1), passive=columns).contract().model_dump_json())
    return Contract.model_validate(body | {"screen": {"keep": 3, "bins": 5} | settings})


def table(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins of which the first three carry the label, the others nothing; sizes; events."""
    rng = np.random.default_rng(3)
    bins = rng.integers(0, 5, (columns, rows)).astype(np.uint8)
    events = (bins[:3].sum(axis=0) + rng.normal(size=rows) * 2 > 7).astype(np.int32)
    return bins, np.full(columns, 6), events[None]


def meet(contract: Contract, rows: int = 800) -> Any:
    bins, sizes, events = table(rows, 12)
    position = np.random.default_rng(1).permutation(rows + 100)[:rows]
    theirs = np.zeros((12, rows + 100), np.uint8)
    theirs[:, position] = bins
    ordered = np.ones(12, np.bool_)

    def active(channel: Channel) -> Any:
        handshake.greet(channel, contract, role="active", job="train")
        return screen.screen_active(channel, contract, events, position, rows + 100), channel.ledger

    def passive(channel: Channel) -> Any:
        handshake.greet(channel, contract, role="passive", job="train")
        return screen.screen_passive(channel, contract, theirs, sizes, ordered, Draws(b"x" * 32)), channel.ledger

    return simulate(active, passive, limits=Limits(step=60))


def test_the_columns_that_carry_the_label_are_kept() -> None:
    (found, ledger), (kept, same) = meet(agreed(12))
    assert kept.tolist() == [0, 1, 2]
    assert len(found.iv) == len(found.ordered) == 3
    assert ledger.digest() == same.digest()


def test_values_are_those_of_a_table_that_has_the_label() -> None:
    columns, label = numbers(400, 4, seed=2)
    case = Case(columns, label, passive=3, trees=1, bins=6)
    body = json.loads(case.contract().model_dump_json())
    body |= {"boost": {}, "glm": {"woe": True, "bins": 6, "binning": "quantile", "least_share": 0}}
    with_label = replace(case.table, label=np.asarray(label, np.int8))
    contract = Contract.model_validate(body)
    assert contract.glm is not None
    expected = [e.iv for e in own_evidence(with_label, contract.passive, contract.glm)[0]]
    sizes = case.passive.features.sizes
    rows = [np.bincount(b, minlength=int(s)) for b, s in zip(case.passive.bins, sizes, strict=True)]
    hits = [np.bincount(b, label, int(s)).astype(int) for b, s in zip(case.passive.bins, sizes, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    found = screen.values_of(np.concatenate(hits)[None], np.concatenate(rows), offsets)
    unmerged = [evidence(h, r, np.arange(len(r))).iv for h, r in zip(hits, rows, strict=True)]
    assert found[0] == pytest.approx(unmerged)
    assert found[0] == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_labels_take_turns() -> None:
    value = np.array([[5.0, 4.0, 3.0, 0.0], [0.0, 1.0, 2.0, 0.5]])
    assert screen.choose(value, Screen(keep=2)).tolist() == [0, 2]
    assert screen.choose(value, Screen(keep=3)).tolist() == [0, 1, 2]
    assert screen.choose(value, Screen(keep=9, least_iv=1.5)).tolist() == [0, 1, 2]
    labels = np.array([[0.0, 1.0, 1.0], [3.0, 9.0, 4.0]])
    assert screen.events_of(labels, [True, False]).tolist() == [[0, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        (pb.ScreenBins, lambda m: m.bins.append(3), WrongLength),
        (pb.ScreenBins, lambda m: m.bins.__setitem__(0, 60), BeyondContract),
        (pb.ScreenKept, lambda m: m.kept.append(11), Malformed),
        (pb.ScreenKept, lambda m: m.kept.__setitem__(0, 50), Malformed),
        (pb.ScreenKept, lambda m: m.ClearField("kept"), Malformed),
    ],
)
def test_deviation_is_named(monkeypatch: pytest.MonkeyPatch, kind: Any, change: Any, error: Any) -> None:
    send = Channel.send

    def bad(self: Any, message: Any, *rest: Any) -> None:
        if isinstance(message, kind):
            change(message)
        send(self, message, *rest)

    monkeypatch.setattr(Channel, "send", bad)
    with pytest.raises(error, match="peer"):
        meet(agreed(12), 300)


def test_nothing_worth_keeping() -> None:
    with pytest.raises(ConstantColumns, match="least_iv"):
        meet(agreed(12, least_iv=50.0), 300)
    body = json.loads(agreed(12).model_dump_json()) | {"budget": {"least_rows": 300}}
    with pytest.raises(ConstantColumns, match="least_rows"):
        meet(Contract.model_validate(body), 300)


def test_what_does_not_go_together() -> None:
    body = json.loads(agreed(2).model_dump_json())
    body["boost"]["routing"] = "oblivious"
    for more in ({"privacy": {"epsilon": 1, "delta": 1e-6}}, {"boost": {}, "glm": {}}):
        with pytest.raises(ValueError, match="screen"):
            Contract.model_validate(body | more)


def wide(pair: Pair) -> None:
    """Twenty columns of noise beside the platform's own three."""
    rng = np.random.default_rng(5)
    for row in pair.rows["platform"]:
        row |= {f"noise{k}": f"{rng.normal():.4f}" for k in range(20)}
    pair.contract["passive"]["features"] |= {f"noise{k}": "number" for k in range(20)}
    pair.contract |= {"screen": {"keep": 2, "bins": 4}, "disclosure": {"model": True, "names": True}}


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = make_pair(tmp_path, make_keys(tmp_path / "keys"), folds=2, change=wide)
    said: dict[str, Any] = {}
    for job in ("check", "train", "predict"):
        said[job] = simulated(pair, capsys, job)
    kept = said["train"]["passive"]["screened"]["columns_kept"]
    assert len(kept) == said["train"]["active"]["screened"]["columns_kept"] == 2
    assert "spend" in kept
    assert set(said["train"]["passive"]["splits_by_feature"]) == set(kept)
    assert said["train"]["active"]["joint"]["auc"] > said["train"]["active"]["alone"]["auc"] + 0.03
    assert said["predict"]["active"]["rows_scored"] > 0
    assert said["train"]["active"]["kl_nats"] <= 1e-3
    for more in (["--resume"], ["--from", str(pair.output("bank") / "model")]):
        arguments = ["train", "--party", str(pair.party_file("bank")), "--json", "--progress", "none"]
        assert command_line([*arguments, "--out", str(tmp_path / "again"), *more]) == NotInContract.exit_code
