"""Exported models against XGBoost, which we did not write; what a passive side may disclose, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract
from fedlearn.crypto.draws import Draws
from fedlearn.data import FeatureBins, fit_binning, make_table
from fedlearn.errors import (
    Malformed,
    NotDisclosed,
    NotInContract,
    OutputExists,
    PeerMisbehaved,
    WrongLength,
    WrongModel,
)
from fedlearn.jobs import share_of, splits_of
from fedlearn.kernels import trees as kernel
from fedlearn.models import export
from fedlearn.models import share as shares
from fedlearn.models.forest import Forest, Growth
from fedlearn.protocols import boost, disclose
from fedlearn.v1 import disclose_pb2 as pb
from tests.boosting import Case, meet, mixed, numbers, spoiling
from tests.parties import Pair, make_pair, read_csv

#: Leaves are rounded to float32 and summed in it: for margins of a few units and some hundred trees.
TOLERANCE = 1e-5

CONSENT = {"disclosure": {"model": True}}


def booster_of(model: dict[str, Any], tmp: Path) -> xgboost.Booster:
    (tmp / "model.json").write_text(json.dumps(model), encoding="utf-8")
    booster = xgboost.Booster()
    booster.load_model(tmp / "model.json")
    return booster


def margins_of(booster: xgboost.Booster, columns: Any) -> np.ndarray:
    """Margins (K, m) of a data frame or Arrow table."""
    found = booster.predict(xgboost.DMatrix(columns, enable_categorical=True), output_margin=True)
    return np.atleast_2d(found.T)


def raw(columns: dict[str, Any]) -> pd.DataFrame:
    """A data frame that has its category texts in their own order, which is not that of the bins."""
    return pd.DataFrame({n: v if np.asarray(v).dtype.kind == "f" else pd.Categorical(v) for n, v in columns.items()})


# --- forests that nobody trained ---------------------------------------------------------------------


def random_forest(rng: np.random.Generator, features: tuple[FeatureBins, ...], outputs: int, trees: int) -> Forest:
    """Trees with all kinds of splits, also such as no learner makes: empty sides, flipped orders."""
    growth = Growth()
    for _ in range(trees * outputs):
        leaves = [growth.add()]
        growth.roots.append(leaves[0])
        for _ in range(rng.integers(0, 12)):
            at = leaves.pop(rng.integers(len(leaves)))
            f = int(rng.integers(len(features)))
            bits = np.zeros(8 * kernel.MASK, np.uint8)
            regular = features[f].regular
            if features[f].kind == "number":
                bits[:regular] = np.arange(regular) < rng.integers(0, regular + 1)
                bits[:regular] ^= rng.integers(2, dtype=np.uint8)
            else:
                bits[:regular] = rng.integers(0, 2, regular)
                if rng.random() < 0.2:
                    bits[:regular] = bits[0]
            bits[regular] = rng.integers(2)
            left = growth.add()
            growth.add()
            growth.feature[at], growth.left[at] = f, left
            growth.masks[at] = np.packbits(bits, bitorder="little")
            leaves += [left, left + 1]
        for leaf in leaves:
            growth.value[leaf] = rng.normal()
    base = rng.normal(size=outputs) * rng.integers(2)
    return growth.freeze(base, trees * outputs, list(range(outputs)) * trees)


def contract_of(objective: str, outputs: int) -> Any:
    label = np.arange(20) % max(2, outputs)
    case = Case({"x": np.arange(20.0), "y": np.arange(20.0)}, label, passive=1, objective=objective)
    return case.contract()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_forest_predicts_alike(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    objective = str(rng.choice(["logistic", "softmax", "squared", "poisson", "tweedie"]))
    outputs = 3 if objective == "softmax" else 1
    m = 300
    texts = np.array(["b", "a", "", "ab", "c c", "A"], object)
    columns = {
        "x": np.where(rng.random(m) < 0.1, np.nan, rng.normal(size=m) * 10.0 ** rng.integers(-30, 30)),
        "few": rng.integers(-2, 3, m) / 3,
        "constant": np.full(m, 0.1),
        "text": np.where(rng.random(m) < 0.1, None, texts[rng.integers(0, 6, m)]),
        "one": np.full(m, "a", object),
    }
    kinds = {n: "number" if v.dtype.kind == "f" else "category" for n, v in columns.items()}
    table = make_table(np.arange(m), columns, kinds)
    binning = fit_binning(table, int(rng.integers(6, 40)), kinds)
    forest = random_forest(rng, binning.features, outputs, trees=4)
    model = export.xgboost_model(forest, binning.features, contract_of(objective, outputs))
    ours = forest.margins(binning.transform(table), np.zeros((0, 0), np.uint8), np.arange(m))
    theirs = margins_of(booster_of(model, tmp_path_factory.mktemp("m")), raw(columns))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)


near_powers = st.builds(
    lambda power, steps: float(np.ldexp(1.0, power) * (1 + steps * 2.0**-27)), st.integers(-3, 3), st.integers(-60, 60)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(near_powers | near_powers.map(lambda x: -x) | st.floats(-1e300, 1e300), min_size=2, unique=True))
def test_thresholds_part_what_float32_keeps_apart(values: list[float]) -> None:
    """Values that lie a few units of float32 from each other, also about powers of two, where the unit changes."""
    x = np.array(values)
    edges = fit_binning(make_table(np.arange(len(x)), {"x": x}, {"x": "number"}), 255, {"x": "number"})
    (feature,) = edges.features
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    for edge, cut in zip(feature.edges, export.float32_cut(feature.edges), strict=True):
        low, high = single[x <= edge].max(), single[x > edge].min()
        if low < high and np.isfinite([low, high]).all():
            assert low < cut <= high


def test_texts_beyond_ascii_and_new_texts(tmp_path: Path) -> None:
    """By Arrow: XGBoost 3.2 measures the texts of a data frame in characters where their bytes count."""
    rng = np.random.default_rng(0)
    texts = np.array(["é", "日本", "a", "ä", "zz", "z"], object)[rng.integers(0, 6, 200)]
    table = make_table(np.arange(200), {"t": texts}, {"t": "category"})
    binning = fit_binning(table, 6, {"t": "category"})
    forest = random_forest(rng, binning.features, 1, trees=20)
    booster = booster_of(export.xgboost_model(forest, binning.features, contract_of("squared", 1)), tmp_path)
    ours = forest.margins(binning.transform(table), np.zeros((0, 0), np.uint8), np.arange(200))
    theirs = margins_of(booster, pa.table({"t": pa.array(texts, pa.string()).dictionary_encode()}))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
    fewer = pa.table({"t": pa.array(["zz", None]).dictionary_encode()})
    new = make_table(np.arange(2), {"t": np.array(["zz", "never seen"], object)}, {"t": "category"})
    ours = forest.margins(binning.transform(new), np.zeros((0, 0), np.uint8), np.arange(2))
    np.testing.assert_allclose(margins_of(booster, fewer), ours, rtol=0, atol=TOLERANCE)
    codes = np.array([[binning.features[0].categories.index("zz")], [17]])  # by number, a new one goes where ours goes
    by_code = xgboost.DMatrix(codes, feature_names=["t"], feature_types=["c"])
    np.testing.assert_allclose(booster.predict(by_code, output_margin=True), ours[0], rtol=0, atol=TOLERANCE)


# --- models trained by two sides ---------------------------------------------------------------------


def labels(objective: str, signal: np.ndarray) -> np.ndarray:
    signal = (signal - signal.mean()) / signal.std()
    return {
        "logistic": signal > 0.3,
        "softmax": np.digitize(signal, [-0.5, 0.5]),
        "squared": 1000 + 30 * signal,
        "poisson": np.floor(np.exp(signal)),
        "tweedie": np.maximum(0, np.exp(signal) - 1),
    }[objective]


def table_of(n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Numbers with gaps and a category on each side, and a signal that needs all of them."""
    columns, _ = mixed(n, seed)
    rng = np.random.default_rng(seed + 1)
    shop = rng.integers(0, 5, n)
    signal = np.nan_to_num(columns["x0"]) + np.nan_to_num(columns["x5"]) - 2 * np.isnan(columns["x4"])
    signal = signal + (columns["town"] > "d") + 2 * (shop == 2) + (shop == 4) + rng.normal(size=n) / 2
    own = {"shop": np.where(rng.random(n) < 0.1, None, np.array(list("vwxyz"), object)[shop])}
    town = {"town": np.where(rng.random(n) < 0.1, None, columns.pop("town").astype(object))}
    return own | columns | town, signal


def play(case: Case, spoil: Callable[[Any], Any] | None = None) -> tuple[shares.ActiveShare, shares.PassiveShare, Any]:
    """Train and disclose; the two shares and the active side's margins."""
    contract = case.contract()

    def active(channel: Any) -> tuple[Any, Any]:
        result = boost.train_active(channel, contract, case.active)
        told = disclose.receive(channel, contract, result.fit.forest, result.features, result.names)
        return result, told

    def passive(channel: Any) -> shares.PassiveShare:
        result = boost.train_passive(channel, contract, case.passive, Draws(bytes(32)))
        share = shares.PassiveShare(result.model_id, case.binning[1], result.feature, result.masks)
        via = channel if spoil is None else spoiling(channel, pb.DisclosedSplits, spoil)
        disclose.send(via, contract, splits_of(share))
        return share

    (result, told), served = meet(active, passive, contract)
    half, forest = share_of(told, contract, result.model_id), result.fit.forest
    share = shares.ActiveShare(result.model_id, case.binning[0], forest, len(told.feature), result.names, half)
    return share, served, result.fit.margins


SHAPES: dict[str, dict[str, Any]] = {
    **{
        f"{objective} {depth}": {"objective": objective, "depth": depth, "trees": trees}
        for objective in ("logistic", "softmax", "squared", "poisson", "tweedie")
        for depth, trees in ((1, 6), (6, 3))
    },
    "random forest": {"forest": "random", "trees": 5, "depth": 4, "subsample": 0.6},
    "early stopping": {"trees": 40, "learning_rate": 1.0, "depth": 4, "validation": 0.3, "early_stopping": 2},
    "by leaf, monotone": {"trees": 5, "growth": "leaf", "max_leaves": 9, "monotone": {"x0": 1, "x5": 1, "x4": -1}},
    "a start": {"trees": 2, "start": 2.5, "scale_pos_weight": 2.0},
    "shared": {"trees": 3, "routing": "shared"},
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_xgboost_gives_the_same_margins(shape: str, tmp_path: Path) -> None:
    parameters = {"bins": 12} | SHAPES[shape]
    columns, signal = table_of(500, seed=4)
    case = Case(columns, labels(parameters.get("objective", "logistic"), signal), passive=4, **CONSENT, **parameters)
    share, served, ours = play(case)
    assert len(served.feature)
    model = export.xgboost(share, case.contract())
    booster = booster_of(model, tmp_path)
    frame = raw(columns)[booster.feature_names]
    theirs = margins_of(booster, frame)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=TOLERANCE)
    if shape == "early stopping":
        assert share.forest.trees < 40
    mean = booster.predict(xgboost.DMatrix(frame, enable_categorical=True))
    from fedlearn.learner.objective import objective_of

    ours = objective_of(case.settings, case.contract().outputs).mean(ours)
    np.testing.assert_allclose(np.atleast_2d(mean.T), ours, rtol=2e-5, atol=TOLERANCE)


def test_no_more_is_told_than_the_model_uses() -> None:
    columns, signal = table_of(400, seed=1)
    case = Case(columns, labels("logistic", signal), passive=4, trees=2, depth=2, bins=32, **CONSENT)
    share, served, _ = play(case)
    half = share.disclosed
    assert half is not None
    assert {f.name for f in half.binning.features} == {case.binning[1].features[f].name for f in served.feature}
    assert sum(len(f.edges) for f in half.binning.features) <= len(served.feature)
    for f in half.binning.features:
        assert list(f.categories) == sorted(f.categories)  # not by frequency
    # and it is the truth: the plain half puts every row where the passive side's own does
    for s, (f, mask) in enumerate(zip(half.feature, half.masks, strict=True)):
        one = np.zeros((2, -(-case.table.rows // 8)), np.uint8)
        kernel.side_bits(half.binning.transform(case.table)[f], mask, one[0])
        kernel.side_bits(case.passive.bins[served.feature[s]], served.masks[s], one[1])
        np.testing.assert_array_equal(*one)


def test_a_feature_of_the_same_name_on_both_sides() -> None:
    columns, signal = table_of(300, seed=1)
    case = Case(columns, labels("logistic", signal), passive=4, trees=2, **CONSENT)
    share, *_ = play(case)
    assert share.disclosed is not None
    own = case.binning[0].features
    clash = share.disclosed.binning.features[0].name
    renamed = shares.Binning((*own[:-1], FeatureBins(clash, own[-1].kind, own[-1].edges, own[-1].categories)))
    share = shares.ActiveShare(share.model_id, renamed, share.forest, share.passive_splits, (), share.disclosed)
    names = export.xgboost(share, case.contract())["learner"]["feature_names"]
    assert f"passive.{clash}" in names
    assert len(set(names)) == len(names)


# --- the view ----------------------------------------------------------------------------------------


def walked(view: dict[str, Any], peer: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """Margins of one raw row by the two views alone."""
    margins = list(view["base"])
    for tree in view["trees"]:
        node = tree["nodes"][0]
        while "leaf" not in node:
            split = node["split"]
            plain = split if "left" in split else peer["splits"][split["split"]]
            rule, value = plain["left"], row[plain["feature"]]
            if value is None or value != value:
                side = rule["missing"] == "left"
            elif "in" in rule:
                side = value in rule["in"]
            elif "present" in rule:
                side = rule["present"] == "left"
            else:
                side = value <= rule["up_to"] if "up_to" in rule else value > rule["above"]
            node = tree["nodes"][node["left"] if side else node["right"]]
        margins[tree["output"]] += node["leaf"]
    return margins


@pytest.mark.parametrize("disclosure", [{}, {"names": True}, {"names": True, "model": True}])
def test_views_say_the_model(disclosure: dict[str, bool], tmp_path: Path) -> None:
    columns, signal = table_of(300, seed=2)
    case = Case(columns, labels("logistic", signal), passive=4, trees=3, bins=12, disclosure=disclosure)
    contract = case.contract()
    if "model" in disclosure:
        share, served, ours = play(case)
    else:
        result, kept = case.train()
        served = shares.PassiveShare(kept.model_id, case.binning[1], kept.feature, kept.masks)
        share = shares.ActiveShare(result.model_id, case.binning[0], result.fit.forest, len(kept.feature), result.names)
        ours = result.fit.margins
    for party, half in (("active", share), ("passive", served)):
        (tmp_path / party).mkdir()
        shares.save(half, tmp_path / party, contract, party)
    mine, theirs = (shares.load(tmp_path / party, contract, party) for party in ("active", "passive"))
    view, peer = export.view(mine, contract, "active"), export.view(theirs, contract, "passive")
    view, peer = json.loads(json.dumps(view)), json.loads(json.dumps(peer))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    np.testing.assert_allclose([walked(view, peer, row)[0] for row in rows], ours[0], rtol=0, atol=1e-12)
    text = export.text(mine, contract, "active")
    said = {node["split"]["feature"] for tree in view["trees"] for node in tree["nodes"] if "split" in node}
    hidden = {f for f in said if f.startswith("passive feature #")}
    assert bool(hidden) == (not disclosure)
    assert all(name in text for name in said)
    assert ("town in {" in text) == ("model" in disclosure)
    if "model" not in disclosure:
        with pytest.raises(NotDisclosed, match="did not disclose"):
            export.xgboost(mine, contract)
    else:
        assert export.xgboost(mine, contract) == export.xgboost(share, contract)
        blob = tmp_path / "active" / "disclosed.arrow"
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        with pytest.raises(WrongModel, match="damaged"):
            shares.load(tmp_path / "active", contract, "active")


def test_a_model_without_passive_splits_needs_no_consent(tmp_path: Path) -> None:
    columns, signal = table_of(300, seed=2)
    case = Case(columns, labels("logistic", signal), passive=4, trees=3)
    fit = case.fit_alone()
    share = shares.ActiveShare(bytes(16), case.binning[0], fit.forest, 0)
    booster = booster_of(export.xgboost(share, case.contract()), tmp_path)
    theirs = margins_of(booster, raw(columns)[booster.feature_names])
    np.testing.assert_allclose(theirs, fit.margins, rtol=0, atol=TOLERANCE)


# --- a peer out of line ------------------------------------------------------------------------------


def number_of(m: Any) -> Any:
    return next(f for f in m.features if len(f.edges) > 1)


def split_on(m: Any, kind: str) -> Any:
    return next(s for s in m.splits if bool(m.features[s.feature].edges) == (kind == "number"))


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


def set_left(split: Any, left: bytes) -> None:
    split.left = left


def bins_of(m: Any, split: Any) -> int:
    f = m.features[split.feature]
    return 2 + len(f.edges) if f.edges else 1 + len(f.categories)


def swap_numbers(m: Any) -> None:
    a, b = [f for f in m.features if f.edges][:2]
    a.name, b.name = b.name, a.name


def reverse(m: Any) -> None:
    """Low thresholds told as high ones."""
    f = number_of(m)
    for s in m.splits:
        if m.features[s.feature] is f or m.features[s.feature].name == f.name:
            bits = np.unpackbits(np.frombuffer(s.left, np.uint8), bitorder="little")
            kept = len(f.edges) + 1
            bits[:kept] = bits[:kept][::-1] ^ 1
            s.left = np.packbits(bits, bitorder="little").tobytes()


def flip_one(m: Any, kind: str, which: int) -> None:
    split = split_on(m, kind)
    split.left = flip(split.left, which % bins_of(m, split))


def beyond(m: Any) -> None:
    split = next(s for s in m.splits if bins_of(m, s) % 8)
    split.left = b"\xff" * len(split.left)


def extra_edge(m: Any) -> None:
    f = number_of(m)
    f.edges.append(f.edges[-1] + 1)


def other_kind(m: Any) -> None:
    number_of(m).name = "town"


SPOILS: dict[str, tuple[Callable[[Any], Any], type[PeerMisbehaved]]] = {
    "a split too few": (lambda m: m.splits.pop(), WrongLength),
    "a split too many": (lambda m: m.splits.append(m.splits[0]), WrongLength),
    "unknown name": (lambda m: setattr(number_of(m), "name", "x9"), Malformed),
    "the active side's name": (lambda m: setattr(number_of(m), "name", "x0"), Malformed),
    "twice": (lambda m: setattr(m.features[0], "name", m.features[1].name), Malformed),
    "another kind": (lambda m: number_of(m).categories.append("a"), Malformed),
    "no number": (lambda m: number_of(m).edges.__setitem__(0, float("nan")), Malformed),
    "infinite": (lambda m: number_of(m).edges.__setitem__(-1, float("inf")), Malformed),
    "descending": (lambda m: number_of(m).edges.__setitem__(0, 1e9), Malformed),
    "too many bins": (lambda m: number_of(m).edges.extend(np.arange(1e6, 1e6 + 300).tolist()), Malformed),
    "an unlisted feature": (lambda m: setattr(m.splits[0], "feature", 77), Malformed),
    "an unused feature": (lambda m: m.features.add(name="spare"), Malformed),
    "mask too long": (lambda m: set_left(m.splits[0], m.splits[0].left + b"\0"), WrongLength),
    "bits beyond": (beyond, WrongLength),
    "unordered texts": (lambda m: next(f for f in m.features if f.categories).categories.reverse(), Malformed),
    "a long text": (
        lambda m: next(f for f in m.features if f.categories).categories.__setitem__(-1, "z" * 5000),
        WrongLength,
    ),
    "no threshold": (lambda m: flip_one(m, "number", 0), Malformed),
    "missing values elsewhere": (lambda m: flip_one(m, "number", -1), Malformed),
    "missing texts elsewhere": (lambda m: flip_one(m, "category", -1), Malformed),
    "a category more": (lambda m: flip_one(m, "category", 0), Malformed),
    "one feature for another": (swap_numbers, Malformed),
    "reversed": (reverse, Malformed),
    "an edge that no split uses": (extra_edge, PeerMisbehaved),
    "a number as a category": (other_kind, Malformed),
}


@pytest.fixture(scope="module")
def disclosing() -> Case:
    """Columns x3 and x5 are monotone in opposite ways, so that one cannot stand for the other."""
    columns, signal = table_of(300, seed=3)
    columns["spare"] = np.zeros(300)
    monotone = {"x3": -1, "x5": 1}
    names = ["x3", "x4", "x5", "town", "spare"]
    return Case(columns, labels("logistic", signal), names, trees=4, depth=4, bins=12, monotone=monotone, **CONSENT)


@pytest.mark.parametrize("what", list(SPOILS))
def test_a_disclosure_that_cannot_be_true(what: str, disclosing: Case) -> None:
    spoil, error = SPOILS[what]
    with pytest.raises(error, match=r"'passive' .*disclose"):
        play(disclosing, spoil)


def test_names_that_differ_from_those_announced() -> None:
    columns, signal = table_of(300, seed=3)
    both = {"names": True, "model": True}
    case = Case(columns, labels("logistic", signal), 4, trees=6, depth=4, disclosure=both)
    play(case)
    with pytest.raises(Malformed, match=r"of other features|cannot be"):
        play(case, swap_numbers)


def test_without_consent_nothing_can_be_told() -> None:
    case = Case(*numbers(100, 4, seed=0), passive=2, trees=1)
    nothing = disclose.Splits(("x2", "x3"), (), (), np.zeros(0, np.int64), np.zeros((0, 32), np.uint8))

    def play(role: Callable[[Any], Any]) -> Callable[[Any], None]:
        def refuse(channel: Any) -> None:
            with pytest.raises(ValueError, match="does not disclose"):
                role(channel)

        return refuse

    forest = case.fit_alone().forest
    meet(
        play(lambda c: disclose.receive(c, case.contract(), forest, case.passive.features)),
        play(lambda c: disclose.send(c, case.contract(), nothing)),
        case.contract(),
    )


def test_an_active_side_that_asks_for_more_than_one_threshold_in_a_split() -> None:
    case = Case(*numbers(100, 4, seed=0), passive=2, trees=1, **CONSENT)
    contract = case.contract()
    greedy = shares.PassiveShare(bytes(16), case.binning[1], np.zeros(1, np.int64), np.full((1, 32), 0b0101, np.uint8))

    def passive(channel: Any) -> None:
        disclose.send(channel, contract, splits_of(greedy))

    def active(channel: Any) -> None:
        channel.open(disclose.TABLE, "active")
        channel.receive(pb.DisclosedSplits)

    with pytest.raises(Malformed, match="no threshold"):
        meet(active, passive, contract)


# --- the command -------------------------------------------------------------------------------------


def pair_of(folder: Path, consent: bool) -> Pair:
    def change(pair: Pair) -> None:
        pair.contract["disclosure"] = {"model": consent}

    folder.mkdir()
    return make_pair(folder, folder, change=change)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = pair_of(tmp_path / "pair", consent=True)
    files = [str(pair.party_file(party)) for party in ("bank", "platform")]
    for job in ("train", "predict"):
        assert command_line(["simulate", *files, "--job", job, "--json", "--progress", "none"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[0])
    (line,) = [line for line in said["active"]["ledger"] if line["message"] == "DisclosedSplits"]
    assert line["sender"] == "platform"
    assert line["values"] > 0
    out = tmp_path / "model.json"
    command = ["export", "--party", files[0], "--format"]
    assert command_line([*command, "xgboost", "--out", str(out)]) == 0
    assert command_line([*command, "xgboost", "--out", str(out)]) == OutputExists.exit_code
    booster = xgboost.Booster(model_file=out)
    pooled = pooled_table(pair)
    frame = raw({n: v for n, v in pooled.items() if n in booster.feature_names})[booster.feature_names]
    theirs = dict(zip(pooled["id"], margins_of(booster, frame)[0], strict=True))
    scored = {r["id"]: float(r["log_odds"]) for r in read_csv(pair.output("bank") / "predictions" / "scores.csv")}
    assert set(scored) == set(theirs)
    np.testing.assert_allclose([theirs[i] for i in scored], list(scored.values()), rtol=0, atol=TOLERANCE)
    capsys.readouterr()
    assert command_line([*command, "text", str(pair.output("bank") / "model")]) == 0
    assert "tree 0" in capsys.readouterr().out
    assert command_line(["export", "--party", files[1]]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "passive"
    assert command_line(["export", "--party", files[1], "--format", "xgboost"]) == NotDisclosed.exit_code


def pooled_table(pair: Pair) -> dict[str, Any]:
    """The shared customers' columns of both parties side by side, as one person would have them."""
    rows = {p: {"".join(filter(str.isdigit, r["phone"])): r for r in pair.rows[p]} for p in ("bank", "platform")}
    ids = sorted(set(rows["bank"]) & set(rows["platform"]))
    pooled: dict[str, Any] = {"id": ids}
    for party in rows:
        for name, kind in (
            load_contract(pair.folder / party / "contract.toml")
            .side("active" if party == "bank" else "passive")
            .features.items()
        ):
            cells = [rows[party][i][name] for i in ids]
            if kind == "number":
                pooled[name] = np.array([float(c) if c else np.nan for c in cells])
            else:
                pooled[name] = np.array([c or None for c in cells], object)
    return pooled


def test_the_command_without_consent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = pair_of(tmp_path / "pair", consent=False)
    files = [str(pair.party_file(party)) for party in ("bank", "platform")]
    assert command_line(["simulate", *files, "--json", "--progress", "none"]) == 0
    assert "DisclosedSplits" not in capsys.readouterr().out
    assert not (pair.output("bank") / "model" / "disclosed.arrow").exists()
    assert command_line(["export", "--party", files[0], "--format", "xgboost"]) == NotDisclosed.exit_code
    assert "[disclosure] model = true" in capsys.readouterr().err
    assert command_line(["export", "--party", files[0], "--format", "text"]) == 0
    assert "passive feature #" in capsys.readouterr().out


def test_a_regression_has_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(pair: Pair) -> None:
        del pair.contract["boost"]
        pair.contract["glm"] = {}

    pair = make_pair(tmp_path, tmp_path, change=change)
    assert command_line(["export", "--party", str(pair.party_file("bank"))]) == NotInContract.exit_code
    assert "scorecard.json" in capsys.readouterr().err
