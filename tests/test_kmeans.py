"""Joint k-means against scikit-learn's on the pooled columns; its floors; peers that deviate; whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fedlearn import jobs
from fedlearn.channel import Channel
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Contract, load_party
from fedlearn.errors import BeyondContract, Malformed, NoOverlap, NotInContract, OverBudget, PeerAborted, WrongLength
from fedlearn.protocols import kmeans
from fedlearn.v1 import kmeans_pb2 as pb
from tests import regression
from tests.parties import MODULES, Pair, make_keys, make_pair, read_csv

OWN, THEIRS = 3, 4


def contract(clusters: int = 4, mode: str = "mutual", **changes: Any) -> Contract:
    settings = {"clusters": clusters, "least_rows": 1} | changes.pop("kmeans", {})
    return Contract.model_validate(
        {
            "name": "test",
            "purpose": "tests of clusters",
            "expires": "2999-01-01",
            "active": {"name": "active", "features": dict.fromkeys([f"a{j}" for j in range(OWN)], "number")},
            "passive": {"name": "passive", "features": dict.fromkeys([f"p{j}" for j in range(THEIRS)], "number")},
            "align": {"mode": mode, "key": {"column": "the key"}},
            "kmeans": settings,
        }
        | changes
    )


def rows(count: int, clusters: int, seed: int = 0, apart: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns (p, m) around so many centres, and clusters to start from, by the own columns alone."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, OWN + THEIRS)) * apart
    x = centres[rng.integers(0, clusters, count)].T + rng.normal(size=(OWN + THEIRS, count))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    return x, KMeans(clusters, n_init=3, random_state=seed).fit(x[:OWN].T).labels_.astype(np.int64)


meet = partial(regression.meet, protocol=kmeans)


def sides(x: np.ndarray, start: np.ndarray, extra: int = 0) -> tuple[kmeans.ActiveData, kmeans.PassiveData]:
    rng = np.random.default_rng(9)
    position = rng.permutation(len(start) + extra)[: len(start)]
    theirs = rng.normal(size=(THEIRS, len(start) + extra))
    theirs[:, position] = x[OWN:]
    return kmeans.ActiveData(x[:OWN], start, position, len(start) + extra), kmeans.PassiveData(theirs)


def pooled(x: np.ndarray, start: np.ndarray) -> KMeans:
    """scikit-learn's Lloyd from the same start."""
    centres = np.stack([x[:, start == c].mean(axis=1) for c in range(start.max() + 1)])
    return KMeans(len(centres), init=centres, n_init=1, algorithm="lloyd", max_iter=300, tol=0).fit(x.T)


@pytest.mark.parametrize(("clusters", "extra"), [(2, 0), (5, 0), (5, 300)])
def test_same_clusters_as_scikit_learn(clusters: int, extra: int) -> None:
    """From the same start: but for rows half-way between two centres, within one level of 255."""
    x, start = rows(1500, clusters, seed=clusters)
    data = sides(x, start, extra)
    mode = "one-sided" if extra else "mutual"
    (found, ledger), (theirs, same) = meet(contract(clusters, mode), *data)
    expected = pooled(x, start)
    assert adjusted_rand_score(expected.labels_, found.cluster) > 0.99
    assert adjusted_rand_score(expected.labels_, start) < 0.95
    centres = np.hstack([found.own, theirs.centres * kmeans.UNIT])
    inertia = ((x - centres[found.cluster].T) ** 2).sum()
    assert inertia == pytest.approx(expected.inertia_, rel=2e-3)
    # The passive side has the same centres, in its own order; the active side's order is a shuffle of it.
    assert sorted(theirs.centres[0].tolist()) == sorted(found.theirs[0].tolist())
    exact = np.stack([x[OWN:, found.cluster == c].mean(axis=1) for c in range(clusters)])
    assert np.abs(theirs.centres * kmeans.UNIT - exact).max() < 0.02
    assert ledger.digest() == same.digest()
    assert theirs.steps == len(found.moved)
    assert found.converged


def test_paillier_finds_the_same() -> None:
    x, start = rows(150, 3, seed=8)
    small = {"kmeans": {"max_steps": 2}}
    by_paillier = contract(3, encryption={"backend": "paillier", "paillier_bits": 2048}, **small)
    (found, _), _ = meet(by_paillier, *sides(x, start))
    (other, _), _ = meet(contract(3, **small), *sides(x, start))
    assert adjusted_rand_score(found.cluster, other.cluster) > 0.95


def test_sums_are_over_enough_rows_and_differ_in_enough() -> None:
    """The active side's own rule, on all it asked for; and the passive side serves no more steps than agreed."""
    x, start = rows(1200, 4, seed=3, apart=0.8)
    asked: list[np.ndarray] = []
    move = kmeans._Centres.move

    def seen(self: Any, due: list[int], cluster: np.ndarray, *rest: Any) -> None:
        asked.extend(cluster == c for c in due)
        by_cluster.extend(due)
        move(self, due, cluster, *rest)

    by_cluster: list[int] = []
    patch = pytest.MonkeyPatch()
    with patch.context() as replaced:
        replaced.setattr(kmeans._Centres, "move", seen)
        (found, _), _ = meet(contract(kmeans={"least_rows": 12}), *sides(x, start))
    assert found.converged
    assert len(asked) > 4
    for k, one in enumerate(asked):
        assert one.sum() >= 12
        for j in range(k):
            if by_cluster[j] == by_cluster[k]:
                assert (asked[j] ^ one).sum() >= 12
    assert adjusted_rand_score(pooled(x, start).labels_, found.cluster) > 0.8


def test_new_rows_get_the_nearest_centre() -> None:
    x, start = rows(900, 4, seed=5)
    agreed = contract()
    (found, _), (theirs, _) = meet(agreed, *sides(x, start))
    order = [int(np.flatnonzero((column == theirs.centres.T).all(axis=1))[0]) for column in found.theirs.T]
    new, _ = rows(400, 4, seed=5)
    natural = theirs.centres[:, order]
    pieces = [np.arange(150), np.arange(150, 400)]
    parts = ((new[:OWN] - found.own[:, :, None]) ** 2).sum(axis=1)
    scores = natural * kmeans.UNIT @ new[OWN:][order]

    def active(channel: Channel) -> np.ndarray:
        nearest = kmeans.assign_active(channel, agreed, found.theirs, 400)
        got = [nearest(parts[:, piece], np.arange(len(piece)), len(piece)) for piece in pieces]
        kmeans.assigned(channel)
        return np.concatenate(got)

    def passive(channel: Channel) -> None:
        serve = kmeans.assign_passive(channel, agreed, scores)
        for piece in pieces:
            serve(scores[:, piece])
        kmeans.end_assigning(channel)

    cluster, _ = meet(agreed, active, passive)
    centres = np.hstack([found.own, theirs.centres * kmeans.UNIT])
    nearest = ((new[:, None, :] - centres.T[:, :, None]) ** 2).sum(axis=0).argmin(axis=0)
    assert np.mean(cluster == nearest) > 0.98


def test_a_start_or_a_budget_that_will_not_do() -> None:
    x, start = rows(200, 4)
    with pytest.raises(NoOverlap, match="least_rows"):
        meet(contract(kmeans={"least_rows": 100}), *sides(x, start))
    with pytest.raises(OverBudget, match="80 encrypted vectors"):
        meet(contract(budget={"vectors": 79}), *sides(x, start))


def test_contracts_that_do_not_go_together() -> None:
    for wrong in ({"boost": {"trees": 3}}, {"label": {"column": "y"}}, {"privacy": {"epsilon": 1, "delta": 1e-6}}):
        with pytest.raises(ValueError, match="kmeans"):
            contract(**wrong)
    with pytest.raises(ValueError, match="label"):
        contract(kmeans={}, **{"glm": {}})
    with pytest.raises(ValueError, match="only \\[kmeans\\] goes without"):
        Contract.model_validate(json.loads(contract().model_dump_json()) | {"kmeans": None})


# --- peers that deviate ------------------------------------------------------------------------------


def rogue(monkeypatch: pytest.MonkeyPatch, kind: Any, change: Any) -> None:
    """Let the sender of a message of ``kind`` change it."""
    from fedlearn.channel import Channel

    send = Channel.send

    def bad(self: Any, message: Any, *rest: Any) -> None:
        if isinstance(message, kind):
            change(message)
        send(self, message, *rest)

    monkeypatch.setattr(Channel, "send", bad)


@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        (pb.KmeansColumns, lambda m: m.largest.extend([1.0] * 9), BeyondContract),
        (pb.KmeansColumns, lambda m: m.largest.__setitem__(0, -1.0), Malformed),
        (pb.KmeansColumns, lambda m: m.names.append("x"), Malformed),
        (pb.KmeansCentres, lambda m: m.values.pop(), WrongLength),
        (pb.KmeansCentres, lambda m: m.values.__setitem__(0, 1 << 20), Malformed),
        (pb.KmeansReach, lambda m: m.values.pop(), WrongLength),
        (pb.KmeansReach, lambda m: m.values.__setitem__(0, float("nan")), WrongLength),
        (pb.KmeansResult, lambda m: setattr(m, "steps", 99), Malformed),
        (pb.KmeansResult, lambda m: setattr(m, "model_id", b"x" * 16), Malformed),
    ],
)
def test_deviation_is_named(monkeypatch: pytest.MonkeyPatch, kind: Any, change: Any, error: Any) -> None:
    x, start = rows(200, 4)
    rogue(monkeypatch, kind, change)
    with pytest.raises(error, match="peer"):
        meet(contract(kmeans={"max_steps": 2}), *sides(x, start))


@pytest.mark.parametrize("wrong", ["\x1b[2Jx", "a0", "p1"])
def test_names_that_no_feature_gives(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    x, start = rows(200, 4)
    active, passive = sides(x, start)
    named = replace(passive, names=("p0", "p1", "p2", "p3"))
    agreed = contract(kmeans={"max_steps": 2}, disclosure={"names": True})
    (found, _), _ = meet(agreed, active, named)
    assert sorted(found.names) == sorted(named.names)
    rogue(monkeypatch, pb.KmeansColumns, lambda m: m.names.__setitem__(list(m.names).index("p0"), wrong))
    with pytest.raises(Malformed, match="peer"):
        meet(agreed, active, named)


def test_no_more_steps_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An active side whose contract allows more steps than the passive side's."""
    x, start = rows(300, 4, seed=2)
    active, passive = sides(x, start)
    agreed = contract(kmeans={"max_steps": 1})
    monkeypatch.setattr(kmeans, "layout", lambda c, *rest: LAYOUT(contract(kmeans={"max_steps": 9}), *rest))
    greedy = contract(kmeans={"max_steps": 9})
    with pytest.raises((BeyondContract, PeerAborted)) as caught:
        meet(agreed, lambda channel: kmeans.fit_active(channel, greedy, active), passive)
    assert isinstance(caught.value, BeyondContract)


LAYOUT = kmeans.layout


# --- whole runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def kmeans_pair(folder: Path, keyring: Path, mode: str = "mutual", **settings: Any) -> Pair:
    def turn(pair: Pair) -> None:
        del pair.contract["boost"], pair.contract["label"]
        pair.contract["kmeans"] = {"clusters": 3, "least_rows": 5, "max_steps": 8} | settings

    return make_pair(folder, keyring, mode=mode, change=turn)


@pytest.mark.processes
def test_clusters_from_two_processes(tmp_path: Path, keyring: Path) -> None:
    pair = kmeans_pair(tmp_path, keyring)
    said = {job: {p: e.result for p, e in pair.run(job).items()} for job in ("train", "predict")}
    bank, platform = said["train"]["bank"], said["train"]["platform"]
    assert bank["ledger"] == platform["ledger"]
    assert bank["model_id"] == platform["model_id"]
    assert bank["joint"]["explained"] >= bank["alone"]["explained"]
    assert len(bank["clusters"]) == len(platform["clusters"]) == 3
    assert "rows" not in platform["clusters"][0]
    assert said["predict"]["bank"]["rows_scored"] == sum(said["predict"]["bank"]["rows_by_cluster"])
    for party in MODULES:
        kept = {path.name for path in (pair.output(party) / "model").iterdir()}
        assert kept == {"share.json", "run.json", "report.html", *(["clusters.csv"] if party == "bank" else [])}
        assert "cluster 3" in (pair.output(party) / "model" / "report.html").read_text(encoding="utf-8")
    trained = read_csv(pair.output("bank") / "model" / "clusters.csv")
    assert len(trained) == bank["rows_shared"]
    sides = [
        jobs.prepare(load_party(pair.party_file(party)), "predict", out=tmp_path / f"again-{party}", form="parquet")
        for party in ("bank", "platform")
    ]
    jobs.simulate_both("predict", *sides)
    as_parquet = parquet.read_table(tmp_path / "again-bank" / "scores.parquet").to_pylist()
    as_csv = read_csv(pair.output("bank") / "predictions" / "scores.csv")
    assert [{name: str(value) for name, value in row.items()} for row in as_parquet] == as_csv
    assert command_line(["explain", "--party", str(pair.party_file("bank"))]) == 0


def test_check_and_one_sided(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = kmeans_pair(tmp_path, keyring, mode="one-sided")
    files = [str(pair.party_file(party)) for party in MODULES]
    said = {}
    for job in ("check", "train"):
        assert command_line(["simulate", *files, "--job", job, "--json", "--progress", "none"]) == 0
        said[job] = json.loads(capsys.readouterr().out)["active"]
    assert said["check"]["most_vectors"] == 24
    assert "joint" not in said["train"]
    bank = ["--party", str(pair.party_file("bank"))]
    for command in (["export"], ["train-alone", "--out", str(tmp_path / "alone")], ["train", "--resume", "--out", "x"]):
        assert command_line([*command, *bank]) == NotInContract.exit_code
    assert sum(line["rows"] for line in said["train"]["clusters"]) == said["train"]["rows_shared"]


def test_too_few_distinct_rows(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = kmeans_pair(tmp_path, keyring, clusters=32)
    files = [str(pair.party_file(party)) for party in MODULES]
    assert command_line(["simulate", *files, "--json", "--progress", "none"]) == NoOverlap.exit_code
    assert "agree fewer" in capsys.readouterr().err
