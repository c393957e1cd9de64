"""Going on from an earlier pair of shares: the margins of the active side's rows after the earlier trees.

    passive                                                 active
                                                      ◄──   BoostEarlier   rounds, passive splits of the shares
         ...set-up as for any training (:mod:`fedlearn.protocols.boost`)
      for each level of the earlier trees, several trees at once:
                                                      ◄──   BoostReplay    the level's passive splits, by number
         looks them up in its share; then by the contract's `routing` as for new splits: oblivious transfer,
         BoostSides, or BoostNodes and BoostSides

The active side learns the sides of its current rows at the earlier splits just as it would if these trees were grown
now: along each row's own path with `oblivious` and `shared` routing, at every split with `bits`. The passive side
learns which of its splits share a level of a tree, which it saw when they were chosen. All splits of a level are asked
about, whether or not a row is there. Each split is served once, so a replay bounds itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.errors import BeyondContract, Malformed
from fedlearn.kernels import trees as kernel
from fedlearn.learner.grower import Routing
from fedlearn.models.forest import Forest
from fedlearn.v1 import boost_pb2 as pb

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Nodes of rows held at once, which sets how many trees are replayed in lock-step: 64 MB.
_AT_ONCE = 16 << 20


class Router(Protocol):
    """What routes rows for the active side: :class:`fedlearn.protocols.boost.Peer`."""

    channel: Channel

    def sides(self, routings: list[Routing]) -> list[U8]:
        """1 for every row that goes left at its split, of splits that have just been named."""


# --- active ------------------------------------------------------------------------------------------


def replay_active(router: Router, forest: Forest, bins: U8) -> NDArray[np.float64]:
    """Margins of own rows after the trees of an earlier model, float64 (K, m).

    They are summed tree by tree as training does, so they are the margins that training would have come to.

    Args:
        router: the peer, set up.
        forest: the active share's trees.
        bins: uint8 (F, m), own bins of the rows.

    Raises:
        PeerMisbehaved: the peer's sides do not fit.
    """
    rows = bins.shape[1]
    margins = np.repeat(forest.base[:, None], rows, axis=1)
    depth = depths(forest)
    group = max(1, _AT_ONCE // max(1, rows))
    with router.channel.phase("replay"):
        for first in range(0, forest.trees, group):
            trees = range(first, min(first + group, forest.trees))
            nodes = _leaves(router, forest, trees, depth, bins)
            for tree, node in zip(trees, nodes, strict=True):
                margins[forest.output[tree]] += forest.value[node]
            router.channel.progress(trees.stop, forest.trees, "trees")
    return margins


def _leaves(router: Router, forest: Forest, trees: range, depth: I64, bins: U8) -> list[I32]:
    """The leaf that each row reaches in each of some trees, int32 (m,)."""
    nodes = [np.full(bins.shape[1], forest.roots[tree], np.int32) for tree in trees]
    ends = [*forest.roots[1:].tolist(), len(forest.left)]
    members = [np.arange(forest.roots[tree], ends[tree]) for tree in trees]
    for level in range(int(depth.max(initial=0))):
        splits = [own[(forest.left[own] >= 0) & (depth[own] == level)] for own in members]
        passive = [own[forest.feature[own] < 0] for own in splits]
        asking = [t for t, own in enumerate(passive) if len(own)]
        sides = dict(zip(asking, _ask(router, forest, [(passive[t], nodes[t]) for t in asking]), strict=True))
        for t, own in enumerate(splits):
            if len(own):
                kernel.partition(
                    nodes[t],
                    _numbered(own, len(forest.left)),
                    np.maximum(forest.feature[own], -1),
                    forest.masks[own],
                    sides.get(t, np.zeros(bins.shape[1], np.uint8)),
                    forest.left[own],
                    bins,
                )
    return nodes


def _ask(router: Router, forest: Forest, wanted: list[tuple[I64, I32]]) -> list[U8]:
    """Sides of the rows at one level's passive splits: (split nodes, node of each row) of each tree."""
    if not wanted:
        return []
    splits = [-1 - int(s) for at, _ in wanted for s in forest.feature[at]]
    router.channel.send(pb.BoostReplay(splits=splits, trees=[len(at) for at, _ in wanted]))
    routings: list[Routing] = []
    for at, node in wanted:
        named = [(int(forest.opaque[s]), forest.masks[s]) for s in at]  # how many counts; the peer knows which
        routings.append((named, _numbered(at, len(forest.left))[node]))
    return router.sides(routings)


def _numbered(at: I64, nodes: int) -> I32:
    """The place of each node in ``at``, -1 for others: int32 (nodes,)."""
    number = np.full(nodes, -1, np.int32)
    number[at] = np.arange(len(at))
    return number


def depths(forest: Forest) -> I64:
    """Depth of every node; children follow their parents."""
    depth = np.zeros(len(forest.left), np.int64)
    for at in np.flatnonzero(forest.left >= 0):
        depth[forest.left[at] : forest.left[at] + 2] = depth[at] + 1
    return depth


# --- passive -----------------------------------------------------------------------------------------


def earlier_rounds(channel: Channel, rounds: int, splits: int) -> int:
    """How many of the contract's rounds the earlier model has, of which this side holds ``splits`` splits."""
    message = channel.receive(pb.BoostEarlier)
    if message.splits != splits:
        raise channel.misbehaved(Malformed, f"counts {message.splits} splits in the shares where this one has {splits}")
    if not 1 <= message.rounds < rounds:
        raise channel.misbehaved(
            BeyondContract, f"goes on after {message.rounds} rounds where the contract has {rounds}"
        )
    return message.rounds


@dataclass
class Served:
    """The passive side's earlier splits in the active side's terms, each of which it serves once."""

    channel: Channel
    earlier: list[tuple[int, U8]]
    _served: set[int] = field(default_factory=set)

    def check(self, message: pb.BoostReplay) -> list[tuple[int, U8]]:
        """The splits that a message names."""
        named = list(message.splits)
        if not named or sum(message.trees) != len(named) or 0 in message.trees:
            raise self.channel.misbehaved(Malformed, "replays a level without naming splits and trees alike")
        if len(set(named)) != len(named) or max(named) >= len(self.earlier) or not self._served.isdisjoint(named):
            raise self.channel.misbehaved(Malformed, "replays splits that the shares do not have, or one of them twice")
        self._served.update(named)
        return [self.earlier[s] for s in named]
