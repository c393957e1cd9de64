"""Boosting cases that several test files share: one table, divided by columns between two sides that meet in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fedlearn.channel import Limits, simulate
from fedlearn.contract import Boost, Contract
from fedlearn.crypto.draws import Draws
from fedlearn.data import fit_binning, make_table
from fedlearn.jobs import features_of
from fedlearn.kernels import trees as kernel
from fedlearn.learner.booster import Fit, Rows
from fedlearn.learner.grower import Features, Request, Routing
from fedlearn.models.forest import Forest
from fedlearn.protocols import boost, handshake

#: Data with no two equal gains in larger nodes: deeper, smaller nodes may tie between features.
NO_TIES = {"depth": 3, "min_child_weight": 3.0, "gradient_bits": 12}


class Case:
    """One table, divided by columns between the two sides, with the bins that both fitted.

    Args:
        columns: name to values; floats are numbers, everything else is a category.
        label: 0 and 1, class numbers or values.
        passive: the last so many columns are the passive side's; or their names.
        weight: of the rows.
        monotone: constraints by column.
        budget, disclosure: of the contract.
        parameters: the contract's ``[boost]``.
    """

    def __init__(
        self,
        columns: dict[str, Any],
        label: Any,
        passive: int | list[str],
        *,
        weight: Any = None,
        monotone: dict[str, int] | None = None,
        budget: dict[str, Any] | None = None,
        disclosure: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        self.columns, self.label = columns, np.asarray(label, np.float64)
        kinds = {n: "number" if np.asarray(v).dtype.kind == "f" else "category" for n, v in columns.items()}
        names = list(kinds)
        theirs = names[-passive:] if isinstance(passive, int) else passive
        self.sides = [{n: kinds[n] for n in names if n not in theirs}, {n: kinds[n] for n in theirs}]
        self.table = make_table(np.arange(len(self.label)), columns, kinds)
        self.monotone = monotone or {}
        self.extra = {"budget": budget or {}, "disclosure": disclosure or {}}
        self.parameters = {"routing": "bits"} | parameters
        self.binning = [fit_binning(self.table, self.settings.bins, side) for side in self.sides]
        sides = [getattr(self.contract(), role) for role in ("active", "passive")]
        own, theirs = (features_of(b, side) for b, side in zip(self.binning, sides, strict=True))
        codes = [b.transform(self.table) for b in self.binning]
        weight = np.ones(len(self.label)) if weight is None else np.asarray(weight, np.float64)
        rows = Rows(codes[0], own, self.label, weight, self.contract().outputs)
        self.active = boost.ActiveData(rows, np.arange(len(self.label)), len(self.label))
        self.passive = boost.PassiveData(codes[1], theirs, tuple(self.sides[1]))

    def contract(self, backend: str = "lwe", **changes: Any) -> Contract:
        settings = self.parameters | changes
        softmax = settings.get("objective") == "softmax"
        classes = [str(k) for k in range(int(self.label.max()) + 1)] if softmax else []
        sides = [
            {"name": role, "features": side, "monotone": {n: m for n, m in self.monotone.items() if n in side}}
            for role, side in zip(("active", "passive"), self.sides, strict=True)
        ]
        return Contract.model_validate(
            {
                "name": "test",
                "purpose": "tests of boosted trees",
                "expires": "2999-01-01",
                "active": sides[0],
                "passive": sides[1],
                "label": {"column": "the label", "classes": classes},
                "align": {"key": {"column": "the key"}},
                "boost": settings,
                "encryption": {"backend": backend, "paillier_bits": 2048},
                **self.extra,
            }
        )

    @property
    def settings(self) -> Boost:
        return Boost(**self.parameters)

    def train(self, contract: Contract | None = None) -> tuple[boost.ActiveResult, boost.PassiveResult]:
        return meet(self.active, self.passive, contract or self.contract())

    def train_alike(self, contract: Contract | None = None) -> tuple[boost.ActiveResult, boost.PassiveResult]:
        """With the same opaque features every time."""
        agreed, draws = contract or self.contract(), Draws(bytes(32))
        return meet(self.active, lambda c: boost.train_passive(c, agreed, self.passive, draws), agreed)

    def pooled(self) -> Rows:
        """All columns in one place."""
        rows = self.active.rows
        bins = np.concatenate([rows.bins, self.passive.bins])
        return replace(rows, bins=bins, features=rows.features + self.passive.features)

    def fit_pooled(self, **changes: Any) -> Fit:
        """The same learner on all columns in one place, without a peer."""
        return boost.cross_validate(self.contract(**changes), self.pooled(), None)[2]

    def fit_plain(self, **changes: Any) -> Fit:
        """With a peer that sums in plain sight."""
        peer = Plain(self.passive.bins, self.passive.features)
        return boost.cross_validate(self.contract(**changes), self.active.rows, peer)[2]

    def fit_alone(self, **changes: Any) -> Fit:
        """The active side's columns alone."""
        return boost.cross_validate(self.contract(**changes), self.active.rows, None)[2]


def greeted(contract: Contract, role: str, play: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(channel: Any) -> Any:
        handshake.greet(channel, contract, role=role, job="train")
        return play(channel)

    return run


def meet(active: Any, passive: Any, contract: Contract) -> Any:
    """Both sides over a channel; each is its data, or a function of the channel."""
    roles = [
        side if callable(side) else partial(train, contract=contract, data=side)
        for side, train in ((active, boost.train_active), (passive, boost.train_passive))
    ]
    plays = (greeted(contract, r, play) for r, play in zip(("active", "passive"), roles, strict=True))
    return simulate(*plays, limits=Limits(step=60))  # so that two sides that wait for each other fail


def numbers(n: int, features: int, seed: int, missing: float = 0.0) -> tuple[dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    signal = x[:, 0] + x[:, -1] + x[:, 1] * x[:, -2] + rng.normal(size=n)
    x[rng.random(x.shape) < missing] = np.nan
    return {f"x{i}": x[:, i] for i in range(features)}, signal > np.quantile(signal, 0.6)


def mixed(n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Numbers with gaps, and a category of eight values in no order, on the passive side."""
    columns, _ = numbers(n, 6, seed, missing=0.15)
    rng = np.random.default_rng(seed)
    town = rng.integers(0, 8, n)
    signal = np.nan_to_num(columns["x0"]) + np.nan_to_num(columns["x5"]) + 2 * (town * 5 % 8 % 2) + rng.normal(size=n)
    return columns | {"town": np.array(list("abcdefgh"))[town]}, signal > 1


def sides_of(case: Case, result: boost.PassiveResult) -> np.ndarray:
    out = np.zeros((len(result.feature), -(-case.table.rows // 8)), np.uint8)
    for row, feature, mask in zip(out, result.feature, result.masks, strict=True):
        kernel.side_bits(case.passive.bins[feature], mask, row)
    return out


def leaves_of(forest: Forest, tree: int) -> np.ndarray:
    end = forest.roots[tree + 1] if tree + 1 < forest.trees else len(forest.left)
    nodes = np.arange(forest.roots[tree], end)
    return nodes[forest.left[nodes] < 0]


class spoiling:  # noqa: N801  (used like a function)
    """A channel of which one kind of message is changed on its way out."""

    def __init__(self, channel: Any, kind: Any, spoil: Callable[[Any], Any]) -> None:
        self._channel, self._kind, self._spoil = channel, kind, spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def send(self, message: Any, bulk: Any = b"") -> None:
        if isinstance(message, self._kind):
            if len(bulk):  # as if protobuf had written it
                name = self._channel._transcript(self._kind).table.entry(self._kind).bulk
                setattr(message, name, bytes(bulk))
                bulk = b""
            self._spoil(message)
        self._channel.send(message, bulk)


@dataclass(frozen=True)
class Plain:
    """A peer without secrets: the passive side's bins, summed and compared here and now."""

    bins: np.ndarray
    features: Features
    noise: float = 0.0

    def ask(self, requests: list[Request], trees: int, nodes: int) -> Callable[[], np.ndarray]:
        if not requests:
            return lambda: np.zeros((0, int(self.features.sizes.sum()), 2), np.int64)
        return lambda: kernel.histograms(self.bins, self.features.sizes, [(r.values, r.rows) for r in requests])

    def route(self, routings: list[Routing]) -> tuple[list[int], list[np.ndarray]]:
        sides = []
        for chosen, which in routings:
            left = [np.isin(self.bins[f], np.flatnonzero(np.unpackbits(mask, bitorder="little"))) for f, mask in chosen]
            sides.append(np.where(which < 0, 0, np.array(left)[which, np.arange(len(which))]).astype(np.uint8))
        return [0] * len(routings), sides
