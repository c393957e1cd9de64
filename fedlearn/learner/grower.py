"""One layer of trees, grown in lock-step: classes, folds or a forest's trees share every round trip to the peer.

A tree is a list of nodes and a histogram for each leaf that may still split. One turn of the loop is: histograms of the
new leaves (the smaller child of each pair is summed, its sibling is the difference), the best split of each, the choice
of which to make (all of them by level, the best one by leaf), routing of rows, new leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Boost
from fedlearn.kernels import trees as kernel
from fedlearn.kernels.threads import spread
from fedlearn.models.forest import Growth

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

#: Splits on passive features, (opaque feature, bins that go left) each, and the split of each row, int32 (m,) or -1.
Routing = tuple[list[tuple[int, U8]], I32]


@dataclass(frozen=True)
class Request:
    """One leaf whose values are to be summed over bins.

    Attributes:
        values: int32 (V, m), of its tree; zero outside the training rows.
        node: int32 (m,), the leaf of every own row in this tree.
        leaf: this one.
        rows: int64, its training rows.
    """

    values: I32
    node: I32
    leaf: int
    rows: I64


@dataclass(frozen=True)
class Features:
    """What a side tells of its features: bins int64 (F,), ordered bool (F,), monotone int8 (F,) in -1, 0, 1."""

    sizes: I64
    ordered: NDArray[np.bool_]
    monotone: NDArray[np.int8]

    def __add__(self, other: Features) -> Features:
        return Features(
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.ordered, other.ordered]),
            np.concatenate([self.monotone, other.monotone]),
        )


class Passive(Protocol):
    """The peer's features, as the learner needs them.

    ``noise`` is the deviation of the noise in its sums, in quantised units; 0 when they are exact. Noisy sums of a
    feature add up to the exact total, and their third column, the row counts, is empty.
    """

    features: Features
    noise: float

    def ask(self, requests: list[Request], trees: int, nodes: int) -> Callable[[], I64]:
        """Ask for sums over the peer's bins; what is returned waits for them, int64 (requests, R, V).

        ``nodes`` is how many nodes each of so many ``trees`` would ask about here if it were full, for a peer that is
        not to see fewer.
        """

    def route(self, routings: list[Routing]) -> tuple[list[int], list[U8]]:
        """For each tree: the number of its first split in the session, and 1 for every row that goes left."""


@dataclass
class Tree:
    """A tree while it grows.

    Attributes:
        values: int32 (V, m), quantised gradient, hessian and perhaps ones; zero outside the training rows.
        units: float64 (2,), value of one unit of gradient and hessian.
        allowed: bool (F,), features it may use, own ones first; shorter than both sides' features together when the
            tree is to do without the peer.
        growth: its nodes.
        node: int32 (m,), the leaf of every own row, training row or not.
        rows: training rows of each leaf that is new or may split.
        totals: int64 (V,), sum of the values of such a leaf.
        known: histogram (R, V) of each leaf that may split.
        best: the best split of such a leaf.
        draws: how many times the peer's noise is in that histogram.
        depth, bounds: of each node.
    """

    values: I32
    units: F64
    allowed: NDArray[np.bool_]
    growth: Growth
    node: I32
    rows: dict[int, I64]
    totals: dict[int, I64]
    known: dict[int, I64] = field(default_factory=dict)
    best: dict[int, Candidate] = field(default_factory=dict)
    draws: dict[int, int] = field(default_factory=dict)
    depth: dict[int, int] = field(default_factory=lambda: {0: 0})
    bounds: dict[int, tuple[float, float]] = field(default_factory=lambda: {0: (-np.inf, np.inf)})

    @classmethod
    def plant(cls, values: I32, units: F64, allowed: NDArray[np.bool_], train: I64) -> Tree:
        """A tree of one leaf."""
        growth = Growth()
        growth.roots.append(growth.add())
        totals = values.sum(axis=1, dtype=np.int64)
        return cls(values, units, allowed, growth, np.zeros(values.shape[1], np.int32), {0: train}, {0: totals})


@dataclass(frozen=True)
class Candidate:
    """The best split of a leaf.

    Attributes:
        gain, feature, mask: its gain, its feature (own ones first), the bins that go left.
        direction: 1 or -1 where the feature is monotone: weights on the right must not be lower, or not higher.
        middle: then, the bound between the children's weights.
    """

    gain: float
    feature: int
    mask: U8
    direction: int = 0
    middle: float = 0.0


Family = tuple[int, tuple[int, ...]]  # (parent, its children)


def rules_of(boost: Boost, least_size: int) -> F64:
    """The contract's rules for a split, as :func:`fedlearn.kernels.trees.best_split` takes them."""
    return np.array([boost.reg_alpha, boost.reg_lambda, boost.step_bound, boost.min_child_weight, float(least_size)])


def grow(trees: list[Tree], bins: U8, own: Features, boost: Boost, least_size: int, passive: Passive | None) -> None:
    """Grow all trees to their end.

    Args:
        trees: freshly planted.
        bins: uint8 (F, m), own bins.
        own: the own features.
        boost: the contract's settings.
        least_size: least number of training rows in a child.
        passive: the peer, or None to do without.
    """
    rules = rules_of(boost, least_size)
    families: list[list[Family]] = [[(-1, (0,))] for _ in trees]
    for nodes in full_steps(boost):
        if not any(families) and not any(tree.best for tree in trees) and not boost.pad_vectors:
            break
        _learn(trees, families, nodes, bins, own, boost, rules, passive)
        chosen = [_choose(tree, boost) for tree in trees]
        families = _split(trees, chosen, bins, len(own.sizes), boost.depth, rules, passive)


def full_steps(boost: Boost) -> list[int]:
    """Nodes that one full tree asks about at each step: the root, then the smaller child of every split."""
    if boost.growth == "leaf":
        return [1] * (min(boost.max_leaves, 1 << boost.depth) - 1)
    return [1] + [1 << level for level in range(boost.depth - 1)]


def _learn(
    trees: list[Tree],
    families: list[list[Family]],
    nodes: int,
    bins: U8,
    own: Features,
    boost: Boost,
    rules: F64,
    passive: Passive | None,
) -> None:
    """Histogram and best split of every new leaf that may split."""
    wanted = [
        (tree, parent, sorted(children, key=lambda c: (len(tree.rows[c]), c)))
        for tree, born in zip(trees, families, strict=True)
        for parent, children in born
        if any(_may_split(tree, c, boost, rules) for c in children)
    ]
    asking = [tree for tree in trees if len(tree.allowed) > len(own.sizes)]
    for tree, parent, children, small in _sums(wanted, len(asking), nodes, bins, own, passive):
        tree.known[children[0]], tree.draws[children[0]] = small, 1
        if len(children) == 2:
            tree.known[children[1]], tree.draws[children[1]] = tree.known[parent] - small, tree.draws[parent] + 1
            del tree.known[parent]
    both = own if passive is None else own + passive.features
    variance = np.zeros(len(both.sizes))
    if passive is not None:
        variance[len(own.sizes) :] = passive.noise**2
    offsets = np.concatenate([[0], np.cumsum(both.sizes)])
    leaves = [(tree, c) for tree, _, children in wanted for c in children if _may_split(tree, c, boost, rules)]

    def search(item: tuple[Tree, int]) -> Candidate:
        return _search(*item, both, offsets, rules, variance)

    for (tree, leaf), found in zip(leaves, spread(search, leaves), strict=True):
        if found.feature >= 0 and found.gain > max(boost.gamma, 1e-6):
            tree.best[leaf] = found
        else:
            del tree.known[leaf]


def _sums(
    wanted: list[tuple[Tree, int, list[int]]],
    trees: int,
    nodes: int,
    bins: U8,
    own: Features,
    passive: Passive | None,
) -> list[tuple[Tree, int, list[int], I64]]:
    """The smaller child's histogram of each family: own bins, then the peer's unless the tree does without."""
    requests = [Request(tree.values, tree.node, at[0], tree.rows[at[0]]) for tree, _, at in wanted]
    asking = [k for k, (tree, _, _) in enumerate(wanted) if len(tree.allowed) > len(own.sizes)]
    answer = None if passive is None or not trees else passive.ask([requests[k] for k in asking], trees, nodes)
    # The own bins are summed while the peer is at work.
    sums = list(kernel.histograms(bins, own.sizes, [(r.values, r.rows) for r in requests])) if requests else []
    if answer is not None:
        for k, found in zip(asking, answer(), strict=True):
            sums[k] = np.concatenate([sums[k], found])
    return [(*family, small) for family, small in zip(wanted, sums, strict=True)]


def _may_split(tree: Tree, leaf: int, boost: Boost, rules: F64) -> bool:
    if tree.depth[leaf] >= boost.depth or len(tree.rows[leaf]) < max(2, 2 * rules[4]):
        return False
    return bool(tree.totals[leaf][1] * tree.units[1] >= 2 * boost.min_child_weight)


def _search(tree: Tree, leaf: int, both: Features, offsets: I64, rules: F64, variance: F64) -> Candidate:
    """The best split of a leaf; ``offsets`` int64 (F + 1,), where each feature's bins start in its histogram."""
    count = len(tree.allowed)  # own features come first, and a tree may do without the peer's
    mask = np.zeros(kernel.MASK, np.uint8)
    low, high = tree.bounds[leaf]
    sums = tree.known[leaf]
    noise = variance * tree.draws[leaf]
    gain, feature, g, h = kernel.best_split(
        sums,
        offsets[: count + 1],
        both.ordered[:count],
        both.monotone[:count],
        tree.allowed,
        tree.units,
        rules,
        noise,
        low,
        high,
        mask,
    )
    if feature < 0:
        return Candidate(0.0, -1, mask)
    whole = sums[: offsets[1], :2].sum(axis=0) * tree.units
    left = kernel.leaf_weight(g, h, *rules[:3], low, high)
    right = kernel.leaf_weight(whole[0] - g, whole[1] - h, *rules[:3], low, high)
    return Candidate(gain, feature, mask, int(both.monotone[feature]), (left + right) / 2)


def _choose(tree: Tree, boost: Boost) -> list[int]:
    """The leaves to split now: all that may by level; the one that gains most by leaf."""
    if boost.growth == "level":
        return sorted(tree.best)
    leaves = (len(tree.growth.left) + 1) // 2
    if not tree.best or leaves >= boost.max_leaves:
        return []
    return [max(tree.best, key=lambda leaf: (tree.best[leaf].gain, -leaf))]


def _split(
    trees: list[Tree], chosen: list[list[int]], bins: U8, own: int, depth: int, rules: F64, passive: Passive | None
) -> list[list[Family]]:
    """Make the chosen splits in all trees; returns the new families. Leaves at ``depth`` are not split again."""
    numbers: dict[int, dict[int, int]] = {}
    sides: dict[int, U8] = {}
    if passive is not None:
        asking = {t: [leaf for leaf in leaves if trees[t].best[leaf].feature >= own] for t, leaves in enumerate(chosen)}
        asking = {t: leaves for t, leaves in asking.items() if leaves}
        if asking:
            routings = [_routing(trees[t], leaves, own) for t, leaves in asking.items()]
            first, found = passive.route(routings)
            sides = dict(zip(asking, found, strict=True))
            for (t, leaves), number in zip(asking.items(), first, strict=True):
                numbers[t] = {leaf: number + k for k, leaf in enumerate(leaves)}
                if passive.noise:
                    dropped = {leaf for leaf in leaves if not _stands(trees[t], leaf, sides[t], rules)}
                    for leaf in dropped:
                        del trees[t].best[leaf], trees[t].known[leaf]
                    chosen[t] = [leaf for leaf in chosen[t] if leaf not in dropped]
    return [
        _make(tree, leaves, bins, own, depth, numbers.get(t, {}), sides.get(t)) if leaves else []
        for t, (tree, leaves) in enumerate(zip(trees, chosen, strict=True))
    ]


def _stands(tree: Tree, leaf: int, sides: U8, rules: F64) -> bool:
    """Whether both children of a split chosen from noisy sums are in truth as large and as heavy as they must be."""
    rows = tree.rows[leaf]
    goes_left = sides[rows] == 1
    return all(
        len(child) >= max(1, rules[4]) and tree.values[1, child].sum() * tree.units[1] >= rules[3]
        for child in (rows[goes_left], rows[~goes_left])
    )


def _routing(tree: Tree, leaves: list[int], own: int) -> Routing:
    split_of = np.full(len(tree.growth.left), -1, np.int32)
    split_of[leaves] = np.arange(len(leaves))
    return [(tree.best[leaf].feature - own, tree.best[leaf].mask) for leaf in leaves], split_of[tree.node]


def _make(
    tree: Tree, leaves: list[int], bins: U8, own: int, depth: int, number: dict[int, int], sides: U8 | None
) -> list[Family]:
    """Enter splits into one tree and move its rows.

    Args:
        tree: the tree.
        leaves: what is split.
        bins: uint8 (F, m), own bins.
        own: number of own features.
        depth: of leaves that are not split again, so that their rows need not be known.
        number: of each passive split among them, by leaf.
        sides: uint8 (m,), 1 for rows at passive splits that go left.
    """
    growth = tree.growth
    split = np.full(len(growth.left), -1, np.int32)
    features, masks, lefts = [], [], []
    families: list[Family] = []
    for s, leaf in enumerate(leaves):
        found = tree.best.pop(leaf)
        split[leaf] = s
        left, right = growth.add(), growth.add()
        growth.left[leaf], growth.gain[leaf], growth.masks[leaf] = left, found.gain, found.mask
        if found.feature < own:
            growth.feature[leaf] = found.feature
        else:
            growth.feature[leaf], growth.opaque[leaf] = -1 - number[leaf], found.feature - own
        features.append(found.feature if found.feature < own else -1)
        masks.append(found.mask)
        lefts.append(left)
        families.append((leaf, (left, right)))
        tree.depth[left] = tree.depth[right] = tree.depth[leaf] + 1
        tree.bounds[left], tree.bounds[right] = _child_bounds(tree.bounds[leaf], found)
    kernel.partition(
        tree.node,
        split,
        np.array(features, np.int32),
        np.array(masks),
        np.zeros(len(tree.node), np.uint8) if sides is None else sides,
        np.array(lefts, np.int32),
        bins,
    )
    spread(lambda family: _divide(tree, *family, depth), families)
    return families


def _divide(tree: Tree, leaf: int, children: tuple[int, ...], depth: int) -> None:
    """Training rows and totals of both children."""
    rows, totals = tree.rows.pop(leaf), tree.totals.pop(leaf)
    if tree.depth[children[0]] < depth:
        lefts, rights, left_totals = np.empty_like(rows), np.empty_like(rows), np.zeros_like(totals)
        count = kernel.divide(rows, tree.node, children[0], tree.values, lefts, rights, left_totals)
        parts = lefts[:count].copy(), rights[: len(rows) - count].copy()
        for child, part, total in zip(children, parts, (left_totals, totals - left_totals), strict=True):
            tree.rows[child], tree.totals[child] = part, total


def _child_bounds(bounds: tuple[float, float], split: Candidate) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bounds of both children: a monotone split keeps each side's weights on its side of their middle."""
    low, high = bounds
    if split.direction > 0:
        return (low, split.middle), (split.middle, high)
    if split.direction < 0:
        return (split.middle, high), (low, split.middle)
    return bounds, bounds
