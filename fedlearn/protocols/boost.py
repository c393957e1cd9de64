"""Gradient-boosted trees over vertically divided features, with membership hidden from the passive side.

The *active* side has labels and features and drives; the *passive* side has features only. Both have aligned rows
(:mod:`fedlearn.protocols.align`); rows of the shared order that are not the active side's customers get weight zero.

    passive                                                 active
      1. bins its features, shuffles them, flips or
         shuffles their bins at random
         BoostFeatures   bins of each opaque feature  ──►
      2. encrypted product over its indicator rows    ◄─►   (matvec: hint or key)
      for each tree, for each level:
      3. answers                                      ◄─►   one encrypted vector of quantised gradients and one of
                                                            hessians (and one of ones, when the contract sets a least
                                                            child size) for the smaller child of every split node,
                                                            zero outside the node; the other child by subtraction
      4.                                              ◄──   BoostSplits   the level's winning splits on passive bins
         keeps (number → feature, bins)
         BoostSides      one bit per row and split    ──►   routes its rows (`bits` routing)
      after each tree:                                ◄──   BoostTreeDone   progress
      at the end:                                     ◄──   BoostFinish     which splits the model keeps
         both: BoostSaved once written                ◄─►

The active side learns the sums of quantised gradients over opaque bins for the nodes it asks about, and with `bits`
routing the side of every row at every chosen split. The passive side learns which of its own splits were chosen
and how many nodes each level had; it never learns which rows share a node. Leaf weights are refitted by the active
side from exact gradients. Split gain as in Chen & Guestrin, "XGBoost" (KDD 2016); quantised gradients with stochastic
rounding as in Shi et al., "Quantized Training of GBDT" (NeurIPS 2022).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Boost, Contract
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.errors import BeyondContract, Malformed, NoOverlap, WrongLength
from fedlearn.kernels import trees as kernel
from fedlearn.kernels.threads import spread
from fedlearn.models.forest import Forest, Growth
from fedlearn.protocols import matvec
from fedlearn.v1 import boost_pb2 as pb
from fedlearn.v1 import matvec_pb2

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

TABLE = Table(
    "boost",
    ("active", "passive"),
    (
        Message(
            pb.BoostFeatures,
            "passive",
            (START,),
            Reveals("number of bins of each opaque feature, and whether they are ordered", lambda m: len(m.bins)),
        ),
        Message(
            pb.BoostSplits,
            "active",
            ("BoostFeatures", "BoostSides", "BoostTreeDone"),
            Reveals("which of its own features and bins were chosen as splits", lambda m: len(m.feature)),
        ),
        Message(
            pb.BoostSides,
            "passive",
            ("BoostSplits",),
            Reveals("for each chosen split, the side of every row (one bit each)", lambda m: len(m.bits) * m.rows),
        ),
        Message(
            pb.BoostTreeDone,
            "active",
            ("BoostFeatures", "BoostSides", "BoostTreeDone"),
            Reveals("that a tree is finished, and how many there are to be"),
        ),
        Message(
            pb.BoostFinish,
            "active",
            ("BoostFeatures", "BoostSides", "BoostTreeDone"),
            Reveals("which of the chosen splits the model keeps", lambda m: len(m.kept)),
        ),
        Message(pb.BoostSaved, BOTH, ("BoostFinish", "BoostSaved"), nothing("an acknowledgement")),
    ),
)


@dataclass(frozen=True)
class ActiveData:
    """What the active side trains on, in its own order of rows.

    Attributes:
        bins: uint8 (F, m), own features; the last bin of each is for missing values.
        sizes: int64 (F,), bins of each feature.
        ordered: bool (F,), number or category.
        label: int8 (m,), 0 or 1.
        position: int64 (m,), place of each row in the shared order.
        universe: n, length of the shared order (m in mutual alignment, more in one-sided).
    """

    bins: U8
    sizes: I64
    ordered: NDArray[np.bool_]
    label: NDArray[np.int8]
    position: I64
    universe: int


@dataclass(frozen=True)
class PassiveData:
    """The passive side's features in the shared order: bins uint8 (F, n), sizes int64 (F,), ordered bool (F,)."""

    bins: U8
    sizes: I64
    ordered: NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """One fitted model on the active side.

    Attributes:
        forest: the trees up to the best iteration.
        margins: float64 (m,), log-odds of every own row after those trees, training rows and others alike.
        history: validation log-loss after each tree; empty without validation rows.
    """

    forest: Forest
    margins: F64
    history: list[float]


@dataclass(frozen=True)
class ActiveResult:
    """What training gives the active side.

    Attributes:
        fit: the final model; its passive splits are numbered as in the passive side's share.
        fold: int64 (m,), cross-validation fold of each row; -1 without folds.
        held_out: float64 (m,), log-odds of each row from the model that did not see it; NaN without folds.
        model_id: 16 bytes that both shares carry.
    """

    fit: Fit
    fold: I64
    held_out: F64
    model_id: bytes


@dataclass(frozen=True)
class PassiveResult:
    """What training gives the passive side.

    Attributes:
        feature: int64 (S,), its own feature (natural order) of each split that the model keeps.
        masks: uint8 (S, 32), the bins (natural order) whose rows go left.
        model_id: 16 bytes that both shares carry.
    """

    feature: I64
    masks: U8
    model_id: bytes


# --- active ------------------------------------------------------------------------------------------


def train_active(channel: Channel, contract: Contract, data: ActiveData) -> ActiveResult:
    """Train as the side that has the labels: folds first when the contract has them, then the model.

    Raises:
        OverBudget: before any row's value leaves either side.
        NoOverlap: too few aligned rows, or only one label value among them.
        PeerMisbehaved: see the subclasses.
    """
    boost = contract.boost
    _check_labels(data, boost)
    channel.open(TABLE, "active")
    with channel.phase("hint"):
        peer = _open_peer(channel, contract, data)
    with channel.phase("trees"):
        fold, held_out = cross_validate(data, boost, peer)
        fit = _fit(data, boost, fold_split(data, boost, None), peer, run=boost.folds)
    kept = fit.forest.passive_splits
    model_id = _model_id(channel, contract)
    channel.send(pb.BoostFinish(kept=kept.tolist(), model_id=model_id))
    return ActiveResult(Fit(fit.forest.renumbered(), fit.margins, fit.history), fold, held_out, model_id)


def train_passive(channel: Channel, contract: Contract, data: PassiveData, draws: Draws | None = None) -> PassiveResult:
    """Serve training as the side that has features only.

    Args:
        channel: after handshake and alignment.
        contract: as the active side has it.
        data: own features in the shared order.
        draws: what shuffles features and bins; fresh by default. A repeatable stream is for simulations: it makes
            even ties between splits fall alike from run to run.

    Raises:
        OverBudget: before any row's value leaves either side.
        PeerMisbehaved: see the subclasses.
    """
    channel.open(TABLE, "passive")
    boost = contract.boost
    disguise = _Disguise.draw(data, draws or Draws())
    asked: list[tuple[int, U8]] = []
    done = 0
    with channel.phase("hint"):
        matrix = Indicator(disguise.bins, disguise.sizes)
        terms = matvec.Terms.of(contract, largest_value=largest_value(boost), vectors=most_vectors(boost))
        channel.send(pb.BoostFeatures(bins=disguise.sizes.tolist(), ordered=disguise.ordered.tolist()))
        holder = matvec.open_holder(channel, matrix, terms)
    with channel.phase("trees"):
        while True:
            message = channel.receive(matvec_pb2.MatvecQuery, pb.BoostSplits, pb.BoostTreeDone, pb.BoostFinish)
            if isinstance(message, matvec_pb2.MatvecQuery):
                holder.answer(message)
            elif isinstance(message, pb.BoostSplits):
                splits = disguise.check(channel, message, boost, len(asked))
                asked.extend(splits)
                channel.send(disguise.sides(splits))
            elif isinstance(message, pb.BoostTreeDone):
                done = _trees_done(channel, message, boost, done)
                channel.progress(done, (boost.folds + 1) * boost.trees, "trees")
            elif isinstance(message, pb.BoostFinish):
                break
    return _kept(channel, contract, message, [disguise.reveal(*split) for split in asked])


def exchange_saved(channel: Channel) -> None:
    """Both roles: say that this side's share is written, and wait for the other's word."""
    channel.send(pb.BoostSaved())
    channel.receive(pb.BoostSaved)


def largest_value(boost: Boost) -> int:
    """Largest absolute quantised gradient."""
    return (1 << (boost.gradient_bits - 1)) - 1


def most_vectors(boost: Boost) -> int:
    """How many encrypted vectors a session may need: every level's smaller children, all runs and trees."""
    nodes = 1 << (boost.depth - 1)
    return (boost.folds + 1) * boost.trees * nodes * _vectors_per_node(boost)


def _vectors_per_node(boost: Boost) -> int:
    return 3 if boost.min_child_size > 1 else 2


def _model_id(channel: Channel, contract: Contract) -> bytes:
    return hashlib.sha256(b"fedlearn/1 boost model" + channel.session + contract.hash()).digest()[:16]


def _check_labels(data: ActiveData, boost: Boost) -> None:
    least = max(10, 2 * boost.min_child_size)
    if len(data.label) < least:
        raise NoOverlap(f"only {len(data.label)} aligned rows have a label; training needs at least {least}")
    if data.label.min() == data.label.max():
        raise NoOverlap(f"all {len(data.label)} aligned rows have the same label, so there is nothing to learn")


# --- active: what the peer does for it ---------------------------------------------------------------


@dataclass
class Peer:
    """The passive side as the active side sees it: opaque features, sums and sides on request."""

    channel: Channel
    querier: matvec.Querier
    sizes: I64
    ordered: NDArray[np.bool_]
    data: ActiveData
    runs: int
    splits: int = 0

    def histograms(self, values: NDArray[np.int32], slots: NDArray[np.int32], rows: I64, nodes: int) -> I64:
        """As :func:`fedlearn.kernels.trees.histograms`, over the passive features."""
        vectors = np.zeros((nodes * len(values), self.data.universe), np.int32)
        kernel.scatter(values, slots, rows, self.data.position, vectors)
        sums = self.querier.ask(vectors)
        return np.ascontiguousarray(sums.reshape(nodes, len(values), -1).transpose(0, 2, 1))

    def sides(self, features: list[int], masks: list[U8]) -> U8:
        """Ask for splits; uint8 (splits, ⌈n/8⌉), a bit set for every row that goes left."""
        left = [mask[: -(-int(self.sizes[f]) // 8)].tobytes() for f, mask in zip(features, masks, strict=True)]
        self.channel.send(pb.BoostSplits(feature=features, left=left))
        answer = self.channel.receive(pb.BoostSides)
        width = -(-self.data.universe // 8)
        if (
            answer.rows != self.data.universe
            or len(answer.bits) != len(features)
            or any(len(b) != width for b in answer.bits)
        ):
            raise self.channel.misbehaved(
                WrongLength,
                f"sent sides of {len(answer.bits)} splits × {answer.rows} rows where "
                f"{len(features)} × {self.data.universe} were due",
            )
        self.splits += len(features)
        return np.frombuffer(b"".join(answer.bits), np.uint8).reshape(len(features), width)

    def tree_done(self, run: int, tree: int, trees: int) -> None:
        """Let the passive side show progress."""
        self.channel.send(pb.BoostTreeDone(run=run, runs=self.runs, tree=tree, trees=trees))
        self.channel.progress(run * trees + tree, self.runs * trees, "trees")


def _open_peer(channel: Channel, contract: Contract, data: ActiveData) -> Peer:
    boost = contract.boost
    terms = matvec.Terms.of(contract, largest_value=largest_value(boost), vectors=most_vectors(boost))
    features = channel.receive(pb.BoostFeatures)
    sizes = np.array(features.bins, np.int64)
    due = len(contract.passive.features)
    if len(sizes) != due or len(features.ordered) != due:
        raise channel.misbehaved(WrongLength, f"announced {len(sizes)} features where the contract names {due}")
    if sizes.min() < 2 or sizes.max() > boost.bins + 1:
        raise channel.misbehaved(BeyondContract, f"announced {sizes.max()} bins, the contract allows {boost.bins + 1}")
    querier = matvec.open_querier(channel, matvec.Shape.indicator(sizes, data.universe), terms)
    return Peer(channel, querier, sizes, np.array(features.ordered, np.bool_), data, boost.folds + 1)


# --- active: folds and boosting ----------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which own rows train and which validate (int64 indices, ascending); the rest only ride along."""

    train: I64
    valid: I64


def folds_of(data: ActiveData, boost: Boost) -> I64:
    """Cross-validation fold of each own row, int64 (m,): stratified by label, from the contract's seed; or -1."""
    fold = np.full(len(data.label), -1, np.int64)
    if boost.folds:
        for value in (0, 1):
            rows = np.flatnonzero(data.label == value)
            order = _stream(boost, f"folds {value}").permutation(len(rows))
            fold[rows[order]] = np.arange(len(rows)) % boost.folds
    return fold


def fold_split(data: ActiveData, boost: Boost, held_out: NDArray[np.bool_] | None) -> Split:
    """Rows to train and to validate on, given the rows held out from both."""
    rows = np.arange(len(data.label)) if held_out is None else np.flatnonzero(~held_out)
    count = round(boost.validation * len(rows))
    order = _stream(boost, "validation").permutation(len(rows))
    return Split(np.sort(rows[order[count:]]), np.sort(rows[order[:count]]))


def cross_validate(data: ActiveData, boost: Boost, peer: Peer | None) -> tuple[I64, F64]:
    """Out-of-fold log-odds of every own row. With ``peer`` None: the active side's own features alone.

    Folds are weights within one session, so one hint serves them all.

    Returns:
        fold: int64 (m,), and held_out: float64 (m,); -1 and NaN without folds.
    """
    fold = folds_of(data, boost)
    held_out = np.full(len(fold), np.nan)
    for k in range(boost.folds):
        out = fold == k
        held_out[out] = _fit(data, boost, fold_split(data, boost, out), peer, run=k).margins[out]
    return fold, held_out


def fit_alone(data: ActiveData, boost: Boost) -> Fit:
    """The same learner on the active side's own features: what it could do without the peer."""
    return _fit(data, boost, fold_split(data, boost, None), None, run=boost.folds)


def _stream(boost: Boost, purpose: str) -> Draws:
    """Repeatable choices of the active side that are no secret from itself: folds, validation rows, rounding."""
    return Draws(hashlib.sha256(f"fedlearn/1 boost {boost.seed} {purpose}".encode()).digest())


def _fit(data: ActiveData, boost: Boost, split: Split, peer: Peer | None, run: int) -> Fit:
    """Boost trees on the training rows; stop early on the validation rows; keep the best iteration."""
    label = data.label.astype(np.float64)
    rate = float(np.clip(label[split.train].mean(), 1e-6, 1 - 1e-6))
    base = float(np.log(rate / (1 - rate)))
    margins = np.full(len(label), base)
    growth = Growth()
    history: list[float] = []
    best, best_trees, best_margins = np.inf, boost.trees, margins
    rounding = _stream(boost, f"rounding {run}")
    for tree in range(boost.trees):
        chance = 1 / (1 + np.exp(-margins))
        gradient, hessian = chance - label, chance * (1 - chance)
        node = _grow(growth, data, boost, split.train, gradient, hessian, rounding, peer)
        _refit(growth, boost, node, split.train, gradient, hessian)
        margins = margins + np.array(growth.value)[node]
        if peer is not None:
            peer.tree_done(run, tree + 1, boost.trees)
        if len(split.valid):
            history.append(log_loss(label[split.valid], margins[split.valid]))
            if history[-1] < best - 1e-7:
                best, best_trees, best_margins = history[-1], tree + 1, margins
            elif boost.early_stopping and tree + 1 - best_trees >= boost.early_stopping:
                break
    if not boost.early_stopping or not history:  # too few rows may leave none to validate on
        best_trees, best_margins = boost.trees, margins
    return Fit(growth.freeze(base, best_trees), best_margins, history)


def log_loss(label: F64, margins: F64) -> float:
    """Mean negative log-likelihood of labels given log-odds."""
    return float(np.mean(np.logaddexp(0, margins) - label * margins))


def _refit(growth: Growth, boost: Boost, node: NDArray[np.int32], train: I64, gradient: F64, hessian: F64) -> None:
    """Leaf weights −η·G/(H + λ) of the newest tree from exact gradients; cover and size of every node in it."""
    count = len(growth.left)
    g = np.bincount(node[train], gradient[train], count)
    h = np.bincount(node[train], hessian[train], count)
    n = np.bincount(node[train], minlength=count)
    for at in range(count - 1, growth.roots[-1] - 1, -1):
        left = growth.left[at]
        if left >= 0:
            h[at], n[at] = h[left] + h[left + 1], n[left] + n[left + 1]
        else:
            divisor = h[at] + boost.reg_lambda
            growth.value[at] = float(-boost.learning_rate * g[at] / divisor) if divisor > 0 else 0.0
        growth.cover[at], growth.size[at] = float(h[at]), int(n[at])


# --- active: one tree --------------------------------------------------------------------------------


Families = list[tuple[int, tuple[int, ...]]]  # (parent, its children), nodes by number


def _grow(
    growth: Growth,
    data: ActiveData,
    boost: Boost,
    train: I64,
    gradient: F64,
    hessian: F64,
    rounding: Draws,
    peer: Peer | None,
) -> NDArray[np.int32]:
    """Grow one tree level by level; returns the leaf of every own row, int32 (m,)."""
    values, units = _quantised(boost, train, gradient, hessian, rounding)
    root = growth.add()
    growth.roots.append(root)
    node = np.full(len(gradient), root, np.int32)
    sizes = data.sizes if peer is None else np.concatenate([data.sizes, peer.sizes])
    ordered = data.ordered if peer is None else np.concatenate([data.ordered, peer.ordered])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    known: dict[int, I64] = {}
    families: Families = [(-1, (root,))]
    for _ in range(boost.depth):
        known = _histograms(known, families, data, boost, train, node, values, units, peer)
        chosen = _choose(known, offsets, ordered, boost, units)
        if not chosen:
            break
        families = _split(growth, chosen, data, node, peer)
    return node


def _quantised(boost: Boost, train: I64, gradient: F64, hessian: F64, rounding: Draws) -> tuple[NDArray[np.int32], F64]:
    """Quantised gradients and hessians (and ones, to count rows): int32 (V, m), zero outside the training rows."""
    values = np.zeros((_vectors_per_node(boost), len(gradient)), np.int32)
    top = largest_value(boost)
    units = np.ones(2)
    for k, exact in enumerate((gradient, hessian)):
        units[k] = max(float(np.abs(exact[train]).max()), 1e-12) / top
        kernel.quantise(exact, train, units[k], rounding.words(len(exact)), values[k])
    if len(values) == 3:
        values[2, train] = 1
    return values, units


def _histograms(
    known: dict[int, I64],
    families: Families,
    data: ActiveData,
    boost: Boost,
    train: I64,
    node: NDArray[np.int32],
    values: NDArray[np.int32],
    units: F64,
    peer: Peer | None,
) -> dict[int, I64]:
    """Histograms of the children that may split: the smaller child is summed, its sibling is the difference."""
    last = max(child for _, children in families for child in children) + 1
    counts = np.bincount(node[train], minlength=last)
    weights = np.bincount(node[train], values[1, train], minlength=last) * units[1]
    wanted = [
        (parent, tuple(sorted(children, key=lambda c: (counts[c], c))))
        for parent, children in families
        if any(_may_split(boost, counts[c], weights[c]) for c in children)
    ]
    if not wanted:
        return {}
    slot_of = np.full(last, -1, np.int32)
    slot_of[[children[0] for _, children in wanted]] = np.arange(len(wanted))
    slots = slot_of[node]
    rows = train[slots[train] >= 0]
    sums = kernel.histograms(data.bins, data.sizes, values, slots, rows, len(wanted))
    if peer is not None:
        sums = np.concatenate([sums, peer.histograms(values, slots, rows, len(wanted))], axis=1)
    found: dict[int, I64] = {}
    for (parent, children), small in zip(wanted, sums, strict=True):
        found[children[0]] = small
        if len(children) == 2:
            found[children[1]] = known[parent] - small
    return {c: h for c, h in found.items() if _may_split(boost, counts[c], weights[c])}


def _may_split(boost: Boost, count: int, weight: float) -> bool:
    return count >= max(2, 2 * boost.min_child_size) and weight >= 2 * boost.min_child_weight


@dataclass(frozen=True)
class _Chosen:
    node: int
    gain: float
    feature: int
    mask: U8


def _choose(known: dict[int, I64], offsets: I64, ordered: NDArray[np.bool_], boost: Boost, units: F64) -> list[_Chosen]:
    """The best split of each node, where one gains more than γ."""

    def search(item: tuple[int, I64]) -> _Chosen:
        mask = np.zeros(kernel.MASK, np.uint8)
        gain, feature = kernel.best_split(
            item[1], offsets, ordered, units, boost.reg_lambda, boost.min_child_weight, boost.min_child_size, mask
        )
        return _Chosen(item[0], gain, feature, mask)

    found = spread(search, sorted(known.items()))
    return [c for c in found if c.feature >= 0 and c.gain > max(boost.gamma, 1e-6)]


def _split(
    growth: Growth, chosen: list[_Chosen], data: ActiveData, node: NDArray[np.int32], peer: Peer | None
) -> Families:
    """Enter the chosen splits, ask the peer for the sides of its own, move the rows; returns the new families."""
    own = len(data.sizes)
    passive = [c for c in chosen if c.feature >= own]
    sides = np.zeros((0, 1), np.uint8)
    first = 0
    if peer is not None and passive:
        first = peer.splits
        sides = peer.sides([c.feature - own for c in passive], [c.mask for c in passive])
    number = {c.node: k for k, c in enumerate(passive)}
    split = np.full(len(growth.left), -1, np.int32)
    families: Families = []
    features, lefts = [], []
    for s, c in enumerate(chosen):
        split[c.node] = s
        left, right = growth.add(), growth.add()
        growth.left[c.node], growth.gain[c.node] = left, c.gain
        if c.feature < own:
            growth.feature[c.node], growth.masks[c.node] = c.feature, c.mask
            features.append(c.feature)
        else:
            growth.feature[c.node], growth.opaque[c.node] = -1 - (first + number[c.node]), c.feature - own
            features.append(-1 - number[c.node])
        lefts.append(left)
        families.append((c.node, (left, right)))
    kernel.partition(
        node,
        split,
        np.array(features, np.int32),
        np.array([c.mask for c in chosen]),
        sides,
        np.array(lefts, np.int32),
        data.bins,
        data.position,
    )
    return families


# --- passive -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Disguise:
    """The passive side's features as the active side sees them: shuffled, bins flipped or shuffled.

    This hides names and orders from a casual look; it is no protection against a peer who knows the marginals.

    Attributes:
        bins, sizes, ordered: in opaque order.
        feature: int64 (F,), natural number of each opaque feature.
        natural: for each opaque feature, int64 (bins,), the natural bin of each opaque bin.
    """

    bins: U8
    sizes: I64
    ordered: NDArray[np.bool_]
    feature: I64
    natural: list[I64]

    @classmethod
    def draw(cls, data: PassiveData, draws: Draws) -> _Disguise:
        feature = draws.permutation(len(data.sizes))
        natural, bins = [], np.empty_like(data.bins)
        for opaque, f in enumerate(feature):
            regular = int(data.sizes[f]) - 1
            order = np.arange(regular) if data.ordered[f] else draws.permutation(regular)
            if data.ordered[f] and draws.bytes(1)[0] & 1:
                order = order[::-1]
            order = np.append(order, regular)
            opaque_of = np.empty(256, np.uint8)
            opaque_of[order] = np.arange(regular + 1)
            bins[opaque] = opaque_of[data.bins[f]]
            natural.append(order.astype(np.int64))
        return cls(bins, data.sizes[feature], data.ordered[feature], feature, natural)

    def check(self, channel: Channel, message: pb.BoostSplits, boost: Boost, asked: int) -> list[tuple[int, U8]]:
        """Validate the active side's choice of splits: (opaque feature, bin mask) each."""
        if not message.feature or len(message.feature) != len(message.left):
            raise channel.misbehaved(Malformed, "asked for sides without naming splits and bins alike")
        most = 2 ** (boost.depth - 1)
        if len(message.feature) > most:
            raise channel.misbehaved(
                BeyondContract, f"asked for {len(message.feature)} splits in one level, the contract allows {most}"
            )
        allowed = (boost.folds + 1) * boost.trees * (2**boost.depth - 1)
        if asked + len(message.feature) > allowed:
            raise channel.misbehaved(BeyondContract, f"asked for more than the {allowed} splits of the contract")
        splits = []
        for feature, left in zip(message.feature, message.left, strict=True):
            if feature >= len(self.sizes):
                raise channel.misbehaved(Malformed, f"asked for a split on feature {feature} of {len(self.sizes)}")
            bins = int(self.sizes[feature])
            if len(left) != -(-bins // 8) or int.from_bytes(left, "little") >> bins:
                raise channel.misbehaved(WrongLength, f"sent a bin mask that does not fit the {bins} bins of a feature")
            mask = np.zeros(kernel.MASK, np.uint8)
            mask[: len(left)] = np.frombuffer(left, np.uint8)
            splits.append((int(feature), mask))
        return splits

    def sides(self, splits: list[tuple[int, U8]]) -> pb.BoostSides:
        """The side of every row at each split."""
        samples = self.bins.shape[1]
        out = np.empty((len(splits), -(-samples // 8)), np.uint8)
        for row, (feature, mask) in zip(out, splits, strict=True):
            kernel.side_bits(self.bins[feature], mask, row)
        return pb.BoostSides(bits=[row.tobytes() for row in out], rows=samples)

    def reveal(self, opaque: int, mask: U8) -> tuple[int, U8]:
        """A split in the passive side's own terms: natural feature and bins."""
        chosen = np.unpackbits(mask, bitorder="little")[: int(self.sizes[opaque])].astype(bool)
        bits = np.zeros(8 * kernel.MASK, np.uint8)
        bits[self.natural[opaque][chosen]] = 1
        return int(self.feature[opaque]), np.packbits(bits, bitorder="little")


def _trees_done(channel: Channel, message: pb.BoostTreeDone, boost: Boost, before: int) -> int:
    """How many of all runs' trees are done by the peer's word; it always goes up, so that training ends."""
    done = message.run * boost.trees + message.tree
    agreed = (message.runs, message.trees) == (boost.folds + 1, boost.trees)
    if not agreed or message.run >= message.runs or not 0 < message.tree <= message.trees or done <= before:
        raise channel.misbehaved(Malformed, "reported a tree that is not due under the contract")
    return done


def _kept(channel: Channel, contract: Contract, message: pb.BoostFinish, asked: list[tuple[int, U8]]) -> PassiveResult:
    kept = list(message.kept)
    if any(a >= b for a, b in pairwise(kept)) or (kept and kept[-1] >= len(asked)):
        raise channel.misbehaved(Malformed, "kept splits that were never asked for, or out of order")
    if not hmac.compare_digest(message.model_id, _model_id(channel, contract)):
        raise channel.misbehaved(Malformed, "named another model than this session's")
    return PassiveResult(
        feature=np.array([asked[s][0] for s in kept], np.int64),
        masks=np.array([asked[s][1] for s in kept], np.uint8).reshape(len(kept), kernel.MASK),
        model_id=bytes(message.model_id),
    )
