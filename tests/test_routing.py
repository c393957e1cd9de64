"""However rows find their side, whoever has a feature and in whatever order: one and the same model."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fedlearn.protocols import boost, matvec, transfer
from fedlearn.v1 import boost_pb2, matvec_pb2
from tests.boosting import NO_TIES, Case, leaves_of, meet, mixed, numbers, spoiling

ROUTINGS = ("oblivious", "bits", "shared")
FOREST = ("base", "roots", "output", "feature", "opaque", "masks", "left", "value", "gain", "cover", "size")


def classes(n: int, count: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    score = x[:, 0] + x[:, 3] + rng.normal(size=n) / 2
    label = np.searchsorted(np.quantile(score, np.arange(1, count) / count), score)
    return {f"x{i}": x[:, i] for i in range(4)}, label


@cache
def shapes() -> dict[str, Case]:
    return {
        "levels": Case(*mixed(400, seed=2), passive=4, trees=3, depth=4, min_child_size=5),
        "leaves": Case(*mixed(400, seed=2), passive=4, trees=3, depth=6, growth="leaf", max_leaves=9),
        "classes": Case(*classes(300, 3, 1), passive=2, trees=3, depth=3, objective="softmax"),
        "folds": Case(*numbers(300, 4, seed=1), passive=2, trees=3, folds=3, validation=0.2, **NO_TIES),
        "forest": Case(*numbers(300, 4, seed=1), passive=2, trees=4, depth=3, forest="random", subsample=0.6),
        "padded": Case(*numbers(300, 4, seed=1), passive=2, trees=3, depth=4, pad_vectors=True),
    }


def same_models(results: list[tuple[boost.ActiveResult, boost.PassiveResult]]) -> None:
    (first, served), *others = results
    for again, also in others:
        for name in FOREST:
            np.testing.assert_array_equal(getattr(again.fit.forest, name), getattr(first.fit.forest, name), name)
        np.testing.assert_array_equal(again.fit.margins, first.fit.margins)
        np.testing.assert_array_equal(again.held_out, first.held_out)
        np.testing.assert_array_equal(also.masks, served.masks)
        np.testing.assert_array_equal(also.feature, served.feature)


@pytest.mark.parametrize("shape", list(shapes.__wrapped__()))
def test_routing_changes_nothing(shape):
    case = shapes()[shape]
    results = [case.train_alike(case.contract(routing=routing)) for routing in ROUTINGS]
    assert len(results[0][1].feature)
    same_models(results)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_one_sided_universe(routing):
    """Rows that are not the active side's take part in the protocol and change nothing."""
    case = Case(*numbers(300, 4, seed=1), passive=2, trees=3, routing=routing, **NO_TIES)
    rng = np.random.default_rng(0)
    universe = 701
    position = rng.permutation(universe)[:300]
    bins = rng.integers(0, case.passive.features.sizes[:, None], (2, universe)).astype(np.uint8)
    bins[:, position] = case.passive.bins
    active, passive = replace(case.active, position=position, universe=universe), replace(case.passive, bins=bins)
    result, _ = meet(active, passive, case.contract())
    np.testing.assert_array_equal(result.fit.margins, case.fit_pooled().margins)


def test_more_splits_in_a_level_than_one_transfer_has_options():
    bit = np.arange(4096) % 1024 >> np.arange(10)[:, None] & 1  # so a full tree of depth 10 has 512 splits at the last
    columns = {"a": np.zeros(4096), **{f"x{k}": bit[k].astype(float) for k in range(10)}}
    fine = {"depth": 10, "bins": 2, "reg_lambda": 0.0, "gradient_bits": 16}
    case = Case(columns, bit.T @ 2.0 ** np.arange(10), passive=10, trees=1, objective="squared", **fine)
    widest: list[int] = []
    results = [case.train_alike(case.contract(routing=routing)) for routing in ROUTINGS]
    same_models(results)
    forest = results[0][0].fit.forest
    level = np.array([0])
    while len(level):
        level = level[forest.left[level] >= 0]
        widest.append(len(level))
        level = np.concatenate([forest.left[level], forest.left[level] + 1])
    assert max(widest) > 255


def test_both_back_ends_route_alike():
    case = Case(*mixed(40, seed=2), passive=3, trees=1, depth=2, bins=9, routing="oblivious")
    same_models([case.train_alike(case.contract(backend)) for backend in ("lwe", "paillier")])


def ledger_of(case: Case, routing: str) -> tuple[boost.ActiveResult, dict[str, int]]:
    contract = case.contract(routing=routing)

    def active(channel: Any) -> tuple[boost.ActiveResult, dict[str, int]]:
        result = boost.train_active(channel, contract, case.active)
        return result, {line["message"]: line["values"] for line in channel.ledger.lines()}

    (found, _) = meet(active, case.passive, contract)
    return found


def test_ledgers_tell_what_was_told():
    case = shapes()["levels"]
    rows = case.table.rows
    told = {routing: ledger_of(case, routing)[1] for routing in ROUTINGS}
    splits = told["bits"]["BoostSplits"]
    assert all(ledger["BoostSplits"] == splits for ledger in told.values())
    assert told["bits"]["BoostSides"] == splits * rows
    assert "BoostNodes" not in told["bits"]
    assert told["shared"]["BoostSides"] == told["shared"]["BoostNodes"] < splits * rows
    assert "BoostSides" not in told["oblivious"]
    assert told["oblivious"]["TransferBits"] % rows == 0
    assert rows <= told["oblivious"]["TransferBits"] <= boost.most_transfers(case.contract(), rows)
    assert all("TransferBits" not in told[routing] for routing in ("bits", "shared"))


def test_shared_rows_are_those_of_the_nodes():
    case = shapes()["levels"]
    result, told = ledger_of(case, "shared")
    forest = result.fit.forest
    passive = (forest.left >= 0) & (forest.feature < 0)
    assert told["BoostNodes"] == forest.size[passive].sum()


# --- what the contract bounds ------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    seen: dict[str, list[int]] = {"vectors": [], "splits": [], "transfers": []}

    def count(module: Any, name: str, kind: str, number: Callable[..., int]) -> None:
        honest = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: seen[kind].append(number(*a)) or honest(*a, **k))

    count(matvec, "_count", "vectors", lambda channel, query, *rest: query.count)
    count(boost._Disguise, "check", "splits", lambda self, channel, message, *rest: len(message.feature))
    count(transfer.Sender, "serve", "transfers", lambda self, bits, rows: rows)
    return seen


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"min_child_size": 5},
        {"folds": 2},
        {"depth": 1},
        {"depth": 6, "growth": "leaf", "max_leaves": 7},
        {"depth": 2, "growth": "leaf", "max_leaves": 31},
        {"forest": "random", "subsample": 0.5},
        {"pad_vectors": True},
        {"pad_vectors": True, "folds": 2, "active_trees": 1},
        {"pad_vectors": True, "growth": "leaf", "max_leaves": 6},
        {"pad_vectors": True, "forest": "random"},
    ],
)
def test_never_more_than_planned(parameters, monkeypatch):
    seen = counted(monkeypatch)
    case = Case(*numbers(300, 4, seed=9), passive=2, trees=3, min_child_weight=0.0, routing="oblivious", **parameters)
    case.train()
    contract = case.contract()
    assert 0 < sum(seen["vectors"]) <= boost.most_vectors(contract)
    assert 0 < sum(seen["splits"]) <= boost.most_splits(contract)
    assert 0 < sum(seen["transfers"]) <= boost.most_transfers(contract, 300)


@pytest.mark.parametrize(
    ("parameters", "per_round"),
    [
        ({}, [1, 1, 2, 4]),  # nodes of one full tree: the root, then the smaller child of every split
        ({"growth": "leaf", "max_leaves": 6}, [1] * 5),
        ({"objective": "softmax"}, [3, 3, 6, 12]),
        ({"folds": 2}, [3, 3, 6, 12]),
    ],
)
@pytest.mark.parametrize("signal", [True, False])
def test_padding_hides_the_shape_of_trees(parameters, per_round, signal, monkeypatch):
    """As many vectors at every step of every round where trees are stumps as where they are full."""
    seen = counted(monkeypatch)
    columns, label = classes(200, 3, 1)
    label = label if "objective" in parameters else label > 0
    gamma = 0.0 if signal else 20.0
    case = Case(columns, label, passive=2, trees=3, depth=4, pad_vectors=True, gamma=gamma, **parameters)
    result, _ = case.train()
    assert seen["vectors"] == [2 * nodes for nodes in per_round] * 3
    assert sum(seen["vectors"]) == boost.most_vectors(case.contract())
    assert (len(result.fit.forest.left) > 8 * result.fit.forest.trees) == signal


@pytest.mark.parametrize("gamma", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("pad", [False, True])
def test_the_codes_of_transfers_tell_the_level_alone(gamma, pad, monkeypatch):
    """How many words a code has follows from the level and the splits named, so that it tells the peer nothing new."""
    said: list[tuple[str, int]] = []
    count, receive = matvec._count, transfer.Sender._receive

    def counts(channel, query, *rest):
        said.append(("level", 0))
        return count(channel, query, *rest)

    def receives(self, rows, options, blank):
        words, columns = receive(self, rows, options, blank)
        said.append(("words", words))
        said.append(("options", options))
        return words, columns

    monkeypatch.setattr(matvec, "_count", counts)
    monkeypatch.setattr(transfer.Sender, "_receive", receives)
    case = Case(*mixed(400, seed=2), passive=4, trees=4, depth=4, gamma=gamma, pad_vectors=pad, routing="oblivious")
    monkeypatch.setattr(boost.Peer, "round_done", tells(said, boost.Peer.round_done))
    case.train()
    level, ready = 0, 0
    for k, (what, number) in enumerate(said):
        if what == "round":
            level = 0
        elif what == "level":
            ready, level = ready or 2 ** (1 + level), level + 1  # 1, 2, 4 and 8 splits and the blank option
        elif what == "words":
            due = 2 ** said[k + 1][1].bit_length()  # the options and the blank one
            assert number == max(ready, due)
            ready = 0
    assert any(what == "words" for what, _ in said) or gamma == 20.0


def tells(said: list[tuple[str, int]], honest: Callable[..., None]) -> Callable[..., None]:
    def told(*given: Any) -> None:
        said.append(("round", 0))
        honest(*given)

    return told


@pytest.mark.parametrize("pad", [False, True])
def test_rounds_without_the_peer_ask_it_nothing(pad):
    """Neither a query nor a split before the first round that uses it, padded or not."""
    case = Case(*numbers(300, 4, seed=1), passive=2, trees=4, depth=3, active_trees=2, folds=2, pad_vectors=pad)
    sent: list[str] = []

    def active(channel: Any) -> Any:
        for kind in (matvec_pb2.MatvecQuery, boost_pb2.BoostSplits, boost_pb2.BoostRoundDone):
            channel = spoiling(channel, kind, lambda m: sent.append(type(m).__name__))
        return boost.train_active(channel, case.contract(), case.active)

    meet(active, case.passive, case.contract())
    assert sent[:2] == ["BoostRoundDone"] * 2
    assert sent.count("BoostRoundDone") == 4
    first, second = (part.split() for part in " ".join(sent[2:]).split("BoostRoundDone")[:2])
    for asked in (first, second):
        assert asked.count("MatvecQuery") == 3 if pad else 0 < asked.count("MatvecQuery") <= 3
        assert 0 < asked.count("BoostSplits") <= 3


# --- who has what ------------------------------------------------------------------------------------


def test_sides_may_swap_their_features():
    columns, label = numbers(500, 6, seed=3, missing=0.1)
    first = Case(columns, label, passive=["x3", "x4", "x5"], trees=4, **NO_TIES).train()[0]
    again = Case(columns, label, passive=["x0", "x1", "x2"], trees=4, **NO_TIES).train()[0]
    np.testing.assert_array_equal(first.fit.margins, again.fit.margins)


@pytest.mark.parametrize("seed", range(4))
def test_who_owns_a_feature_changes_nothing_but_the_owner(seed):
    columns, label = numbers(500, 6, seed=3, missing=0.1)
    theirs = sorted(np.random.default_rng(seed).choice(list(columns), 1 + seed, replace=False))
    case = Case(columns, label, passive=list(map(str, theirs)), trees=3, **NO_TIES)
    result, served = case.train()
    forest = result.fit.forest
    np.testing.assert_array_equal(result.fit.margins, case.fit_pooled().margins)
    reference = Case(columns, label, passive=["x5"], trees=3, **NO_TIES)
    whole, of_x5 = reference.train()
    assert gains(case, forest, served) == pytest.approx(gains(reference, whole.fit.forest, of_x5))


def gains(case: Case, forest: Any, served: boost.PassiveResult) -> dict[str, float]:
    own, other = (list(side) for side in case.sides)
    found: dict[str, float] = {}
    for at in np.flatnonzero(forest.left >= 0):
        f = forest.feature[at]
        name = own[f] if f >= 0 else other[served.feature[-1 - f]]
        found[name] = found.get(name, 0.0) + float(forest.gain[at])
    return found


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_order_of_the_passive_rows_changes_nothing(routing):
    case = Case(*mixed(300, seed=5), passive=3, trees=3, routing=routing, **NO_TIES)
    order = np.random.default_rng(1).permutation(300)
    position = np.argsort(order)
    moved = replace(case.passive, bins=np.ascontiguousarray(case.passive.bins[:, order]))
    result, _ = meet(replace(case.active, position=position), moved, case.contract())
    np.testing.assert_array_equal(result.fit.margins, case.train()[0].fit.margins)


def test_goss_shows_in_no_message_but_counts():
    """Both runs send the same kinds of messages; a query says how many vectors, and all vectors have all rows."""
    case = Case(*numbers(300, 4, seed=1), passive=2, trees=3, depth=2, pad_vectors=True)
    seen: list[list[tuple[int, int]]] = []
    for more in ({}, {"goss_top": 0.2, "goss_rest": 0.2}):
        contract, queries = case.contract(**more), []

        def active(channel: Any, contract: Any = contract, queries: Any = queries) -> Any:
            note = lambda m: queries.append((m.count, m.first))  # noqa: E731
            return boost.train_active(spoiling(channel, matvec_pb2.MatvecQuery, note), contract, case.active)

        meet(active, case.passive, contract)
        seen.append(queries)
    assert seen[0] == seen[1]


def test_names_only_if_disclosed():
    columns, label = numbers(300, 5, seed=1)
    for names in (False, True):
        case = Case(columns, label, passive=3, trees=3, disclosure={"names": names})
        result, served = case.train()
        assert sorted(result.names) == (["x2", "x3", "x4"] if names else [])
        if names:
            found = result.fit.forest.importance(("x0", "x1"), result.names)
            told = {name: entry["gain"] for name, entry in found.items()}
            assert told == pytest.approx(gains(case, result.fit.forest, served))
            assert leaves_of(result.fit.forest, 0).size
