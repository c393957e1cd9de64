"""Gradient-boosted trees over vertically divided features, with membership hidden from the passive side.

The *active* side has labels and features and drives; the *passive* side has features only. Both have aligned rows
(:mod:`fedlearn.protocols.align`); rows of the shared order that are not the active side's customers get weight zero.

    passive                                                 active
      0. only to go on from a checkpoint or an earlier
         model: BoostResume (:mod:`.resume`)          ◄─►
                or                                    ◄──   BoostEarlier   its rounds
      1. bins its features, shuffles them, flips or
         shuffles their bins at random
         BoostFeatures   bins of each opaque feature  ──►
      2. encrypted product over its indicator rows    ◄─►   (matvec: hint or key)
         only after BoostEarlier (:mod:`.replay`):    ◄──   BoostReplay    the earlier model's splits, level by level,
                                                            and rows routed as below
      for each round, for each level of its trees:
      3. answers                                      ◄─►   one encrypted vector of quantised gradients and one of
                                                            hessians (and one of ones, when there is a least child
                                                            size) for the smaller child of every split node, zero
                                                            outside the node; the other child by subtraction
      4.                                              ◄──   BoostSplits   the level's winning splits on passive bins
         keeps (number → feature, bins); then by the contract's `routing`
           oblivious:                                 ◄─►   (transfer) each row's side at the split of its own node
           bits:      BoostSides                      ──►   every row's side at every split
           shared:                                    ◄──   BoostNodes    the rows of the nodes
                      BoostSides                      ──►   their sides
      after each round:                               ◄──   BoostRoundDone   progress
      at the end:                                     ◄──   BoostFinish      which splits the model keeps
         (disclose) if the contract has it: ──►             these splits in plain terms
         both: BoostSaved once written                ◄─►

The active side learns the sums of quantised gradients over opaque bins for the nodes it asks about; and the sides of
rows: with `oblivious` and `shared` routing along each row's own path, with `bits` of every row at every chosen split.
The passive side learns which of its own splits were chosen and how many nodes each level had; which rows share a node
only with `shared`. Leaf weights are refitted by the active side from exact gradients.

The learner itself is in :mod:`fedlearn.learner`. Split gain as in Chen & Guestrin, "XGBoost" (KDD 2016); quantised
gradients with stochastic rounding as in Shi et al., "Quantized Training of GBDT" (NeurIPS 2022).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Boost, Contract
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.crypto.privacy import Change
from fedlearn.errors import BeyondContract, Malformed, NoOverlap, OverBudget, WrongLength
from fedlearn.kernels import trees as kernel
from fedlearn.kernels.threads import spread
from fedlearn.learner import booster
from fedlearn.learner.booster import Fit, Model, Rows, Split
from fedlearn.learner.grower import Features, Request, Routing
from fedlearn.learner.noisy import reconciled
from fedlearn.models.forest import Forest
from fedlearn.protocols import matvec, replay, resume, screen, transfer
from fedlearn.protocols.resume import Meter, Point, Spent, Start
from fedlearn.v1 import boost_pb2 as pb
from fedlearn.v1 import matvec_pb2

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


def _table(sides: Reveals) -> Table:
    asked = ("BoostFeatures", "BoostReplay", "BoostSplits", "BoostSides", "BoostRoundDone")
    return Table(
        "boost",
        ("active", "passive"),
        (
            Message(
                pb.BoostResume,
                BOTH,
                (START, "BoostResume"),
                Reveals(
                    "from which round an earlier session goes on, and what was spent so far; this ledger adds to that "
                    "session's",
                    _totals,
                ),
            ),
            Message(
                pb.BoostEarlier,
                "active",
                (START,),
                Reveals("how many rounds and passive splits the earlier model has", lambda _: 2),
            ),
            Message(
                pb.BoostFeatures,
                "passive",
                (START, "BoostResume", "BoostEarlier"),
                Reveals(
                    "number of bins of each opaque feature, whether they are ordered or monotone, and names if agreed",
                    lambda m: len(m.bins),
                ),
            ),
            Message(
                pb.BoostSplits,
                "active",
                asked,
                Reveals("which of its own features and bins were chosen as splits", lambda m: len(m.feature)),
            ),
            Message(
                pb.BoostNodes,
                "active",
                ("BoostSplits", "BoostReplay"),
                Reveals("which rows are in the nodes split on passive features", lambda m: _ones(m.rows)),
            ),
            Message(
                pb.BoostReplay,
                "active",
                ("BoostFeatures", "BoostReplay", "BoostSides"),
                Reveals("which of its splits share a level of a tree in the earlier model", lambda m: len(m.splits)),
            ),
            Message(pb.BoostSides, "passive", ("BoostSplits", "BoostReplay", "BoostNodes"), sides),
            Message(pb.BoostRoundDone, "active", asked, Reveals("that a round is finished")),
            Message(
                pb.BoostFinish,
                "active",
                asked,
                Reveals("which of the chosen splits the model keeps", lambda m: len(m.kept)),
            ),
            Message(pb.BoostSaved, BOTH, ("BoostFinish", "BoostSaved"), nothing("an acknowledgement")),
        ),
    )


def _totals(message: pb.BoostResume) -> int:
    """Only the passive side tells any."""
    told = (message.vectors_spent, message.splits_spent, message.transfers_spent, message.kl_spent)
    return sum(total > 0 for total in told)


def _ones(rows: list[bytes]) -> int:
    return sum(int.from_bytes(row, "little").bit_count() for row in rows)


#: The message table by routing: the same messages, of which the sides tell the active side more or less.
TABLES = {
    "bits": _table(
        Reveals("for each chosen split, the side of every row (one bit each)", lambda m: len(m.bits) * m.rows)
    ),
    "shared": _table(
        Reveals("for each chosen split, the side of the rows in its node (one bit each)", lambda m: m.rows)
    ),
    "oblivious": _table(nothing("not sent with oblivious routing; see transfer")),
}
TABLE = TABLES["oblivious"]


@dataclass(frozen=True)
class ActiveData:
    """What the active side trains on.

    Attributes:
        rows: its own rows, in its own order.
        position: int64 (m,), place of each row in the shared order.
        universe: n, length of the shared order (m in mutual alignment, more in one-sided).
        ordered: of the opaque columns that a screening left (:mod:`.screen`), in any order; None without.
    """

    rows: Rows
    position: I64
    universe: int
    ordered: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class PassiveData:
    """The passive side's features in the shared order: bins uint8 (F, n), and what it tells of them.

    ``names`` go to the active side when the contract discloses them.
    """

    bins: U8
    features: Features
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActiveResult:
    """What training gives the active side.

    Attributes:
        fit: the final model; its passive splits are numbered as in the passive side's share.
        fold: int64 (m,), cross-validation fold of each row; -1 without folds.
        held_out: float64 (K, m), margins of each row from the model that did not see it; NaN without folds.
        model_id: 16 bytes that both shares carry.
        names: of the opaque features, if the contract discloses them.
        features: the opaque features as they were announced.
        start: what training went on from.
    """

    fit: Fit
    fold: I64
    held_out: F64
    model_id: bytes
    names: tuple[str, ...]
    features: Features
    start: Start = field(default_factory=Start)


@dataclass(frozen=True)
class PassiveResult:
    """What training gives the passive side.

    Attributes:
        feature: int64 (S,), its own feature (natural order) of each split that the model keeps.
        masks: uint8 (S, 32), the bins (natural order) whose rows go left.
        model_id: 16 bytes that both shares carry.
        start: what training went on from.
    """

    feature: I64
    masks: U8
    model_id: bytes
    start: Start = field(default_factory=Start)


# --- active ------------------------------------------------------------------------------------------


def train_active(
    channel: Channel,
    contract: Contract,
    data: ActiveData,
    *,
    checkpoint: resume.ActiveCheckpoint | None = None,
    earlier: Forest | None = None,
) -> ActiveResult:
    """Train as the side that has the labels: all folds and the model in lock-step.

    Args:
        channel: after handshake and alignment.
        contract: as the passive side has it.
        data: own rows.
        checkpoint: where to keep each round; if it holds one, training goes on from there.
        earlier: trees of an earlier model to go on from, unless the checkpoint says better; ``data`` has its bins.

    Raises:
        OverBudget: before any row's value leaves either side.
        NoOverlap: too few aligned rows, or only one label value among them.
        WrongCheckpoint: the two checkpoints do not fit together.
        PeerMisbehaved: see the subclasses.
    """
    boost = contract.boost
    _check_labels(data.rows, contract)
    channel.open(TABLES[boost.routing], "active")
    start = Start()
    if checkpoint is not None and checkpoint.points:
        start = resume.agree(channel, checkpoint, None)
        _check_spent(contract, start, data.universe)
    elif earlier is not None:
        start = Start(earlier.trees // contract.outputs)
        channel.send(pb.BoostEarlier(rounds=start.round, splits=len(earlier.passive_splits)))
    before = len(earlier.passive_splits) if earlier is not None and start.point is None else 0
    with channel.phase("hint"):
        peer = _open_peer(channel, contract, data, start, before)
    peer.splits = start.point.splits if start.point is not None else before
    begin: Begin | None = None
    if start.point is not None and checkpoint is not None:
        begin = partial(checkpoint.restore_models, start.point)
    elif earlier is not None:
        margins = replay.replay_active(peer, earlier, data.rows.bins)
        begin = partial(booster.go_on, earlier, margins, data.rows, boost)
    with channel.phase("trees"):
        fold, held_out, fit = cross_validate(
            contract, data.rows, peer, _round_end(channel, peer, checkpoint), begin=begin, first_round=start.round
        )
    forest = fit.forest
    model_id = _model_id(channel, contract)
    channel.send(pb.BoostFinish(kept=forest.passive_splits.tolist(), model_id=model_id))
    final = Fit(forest.renumbered(), fit.margins, fit.history)
    return ActiveResult(final, fold, held_out, model_id, peer.names, peer.features, start)


def _round_end(
    channel: Channel, peer: Peer, checkpoint: resume.ActiveCheckpoint | None
) -> Callable[[int, list[Model]], None]:
    """What follows a round: progress on both sides, and a checkpoint if the peer answered anything since the last.

    Without that condition, rounds on own features alone could run ahead of the peer, out of reach of its checkpoint.
    """
    heard = channel.ledger.heard(channel.peer)

    def end(done: int, models: list[Model]) -> None:
        nonlocal heard
        peer.round_done(done, models)
        now = channel.ledger.heard(channel.peer)
        if checkpoint is not None and now > heard:
            checkpoint.save_models(Point(done, peer.splits, channel.ledger.copy()), models)
        heard = now

    return end


def train_passive(
    channel: Channel,
    contract: Contract,
    data: PassiveData,
    draws: Draws | None = None,
    *,
    checkpoint: resume.PassiveCheckpoint | None = None,
    earlier: tuple[I64, U8] | None = None,
) -> PassiveResult:
    """Serve training as the side that has features only.

    Args:
        channel: after handshake and alignment.
        contract: as the active side has it.
        data: own features in the shared order.
        draws: what shuffles features and bins; fresh by default. A stream that repeats makes even ties between
            splits fall alike from run to run; the active side must not know it. To resume it must repeat.
        checkpoint: where to keep each round; if it holds one, training goes on from there.
        earlier: splits of an earlier model to go on from, feature and masks as in :class:`PassiveResult`, unless the
            checkpoint says better; ``data`` has its bins.

    Raises:
        OverBudget: before any row's value leaves either side.
        WrongCheckpoint: the two checkpoints do not fit together.
        PeerMisbehaved: see the subclasses.
    """
    boost = contract.boost
    channel.open(TABLES[boost.routing], "passive")
    disguise = _Disguise.draw(data, draws or Draws())
    samples = disguise.bins.shape[1]
    start, asked, replayed = _start_passive(channel, contract, disguise, checkpoint, earlier)
    with channel.phase("hint"):
        matrix = Indicator(disguise.bins, disguise.features.sizes)
        channel.send(disguise.announce(contract))
        agreed = terms(contract, start)
        holder = matvec.open_holder(channel, matrix, agreed)
        own = _Allowance(channel, most_transfers(contract, samples, start.round))
        before = _Allowance(channel, most_replayed(contract, samples, start.round) if replayed.earlier else 0)
        sender = transfer.open_sender(channel, own.left + before.left) if boost.routing == "oblivious" else None
    kl_vector = matvec.Shape.of(matrix).plan(agreed).kl_vector if agreed.backend == "lwe" else 0.0
    left, last = (most_spent(contract, samples, done) for done in (start.round, boost.rounds - 1))
    meter = Meter(start.spent, left, last, kl_vector, checkpoint)
    done, answered = start.round, False
    try:
        with channel.phase("trees"):
            while True:
                message = channel.receive(
                    matvec_pb2.MatvecQuery, pb.BoostSplits, pb.BoostReplay, pb.BoostRoundDone, pb.BoostFinish
                )
                if isinstance(message, matvec_pb2.MatvecQuery):
                    meter.add(Spent(vectors=0 if message.first else message.count))  # its first piece
                    holder.answer(message)
                elif isinstance(message, pb.BoostSplits):
                    splits = disguise.check(channel, message, contract, left.splits - meter.used.splits)
                    asked.extend(splits)
                    meter.add(Spent(splits=len(splits), transfers=_transfers(message.trees, samples) if sender else 0))
                    disguise.serve(channel, splits, list(message.trees), sender, own)
                elif isinstance(message, pb.BoostReplay):
                    disguise.serve(channel, replayed.check(message), list(message.trees), sender, before)
                elif isinstance(message, pb.BoostRoundDone):
                    done = _round_done(channel, message, boost, done)
                    if answered:
                        meter.save(Point(done, len(asked), channel.ledger.copy()), asked)
                    answered = False
                elif isinstance(message, pb.BoostFinish):
                    break
                answered |= isinstance(message, matvec_pb2.MatvecQuery | pb.BoostSplits)
    finally:
        meter.settle()
    kept = _kept(channel, contract, message, [disguise.reveal(*split) for split in asked])
    return replace(kept, start=start)


def _start_passive(
    channel: Channel,
    contract: Contract,
    disguise: _Disguise,
    checkpoint: resume.PassiveCheckpoint | None,
    earlier: tuple[I64, U8] | None,
) -> tuple[Start, resume.Asked, replay.Served]:
    """Where to start, the splits asked so far, and those of an earlier model that may be replayed."""
    if checkpoint is not None and checkpoint.points:
        start = resume.agree(channel, checkpoint, checkpoint.spent)
        _check_spent(contract, start, disguise.bins.shape[1])
        if start.point is not None:
            return start, checkpoint.restore_splits(start.point), replay.Served(channel, [])
    if earlier is not None:
        splits = [disguise.conceal(int(f), mask) for f, mask in zip(*earlier, strict=True)]
        start = Start(replay.earlier_rounds(channel, contract.boost.rounds, len(splits)))
        return start, list(splits), replay.Served(channel, splits)
    return Start(), [], replay.Served(channel, [])


def _transfers(trees: Sequence[int], rows: int) -> int:
    """Rows that choose after a message with so many splits in each tree, each once for every call."""
    return rows * sum(map(_calls, trees))


def _calls(splits: int) -> int:
    """Oblivious transfers that so many splits of one tree and level take."""
    return -(-splits // _OPTIONS)


def exchange_saved(channel: Channel) -> None:
    """Both roles: say that this side's share is written, and wait for the other's word."""
    channel.send(pb.BoostSaved())
    channel.receive(pb.BoostSaved)


# --- what both sides compute from the contract -------------------------------------------------------


def least_size(contract: Contract) -> int:
    """Least number of training rows in a child: the model's own rule or the contract's floor for privacy."""
    return max(contract.boost.min_child_size, contract.budget.least_rows)


def most_trees(contract: Contract, done: int = 0) -> int:
    """Trees of all folds and the final model that are still to grow after so many rounds."""
    boost = contract.boost
    return (boost.folds + 1) * boost.trees * contract.outputs * (boost.rounds - done) // boost.rounds


def _trees_at_once(contract: Contract) -> int:
    """Trees that grow in lock-step at most."""
    return most_trees(contract) // contract.boost.rounds


def _nodes(boost: Boost) -> int:
    """Nodes of one tree that are asked about at most: the root, and the smaller child of all splits but the last."""
    by_depth = 1 << (boost.depth - 1)
    return min(by_depth, boost.max_leaves - 1) if boost.growth == "leaf" else by_depth


def most_vectors(contract: Contract, done: int = 0) -> int:
    """How many encrypted vectors a session may need that goes on after so many rounds."""
    return most_trees(contract, done) * _nodes(contract.boost) * _kinds(contract)


def _kinds(contract: Contract) -> int:
    """Vectors for each node: gradients, hessians and, for a least child size, ones.

    Noise for differential privacy would drown the ones; then sizes are checked when rows are routed.
    """
    return 3 if least_size(contract) > 1 and contract.privacy is None else 2


def _touches(contract: Contract) -> int:
    """In how many vectors of a session one row has an entry that is not zero, at most.

    The nodes asked about at one level of a tree share no row, so a row is in one node of each level at most; and with
    folds, each row is held out from one of the models.
    """
    boost = contract.boost
    trees = max(1, boost.folds) * boost.trees * contract.outputs
    return trees * min(boost.depth, _nodes(boost)) * _kinds(contract)


def most_splits(contract: Contract, done: int = 0) -> int:
    """How many splits a session may make that goes on after so many rounds."""
    boost = contract.boost
    by_depth = (1 << boost.depth) - 1
    return most_trees(contract, done) * (min(by_depth, boost.max_leaves - 1) if boost.growth == "leaf" else by_depth)


def most_transfers(contract: Contract, rows: int, done: int = 0) -> int:
    """How many rows may be routed, but by bits: every row once per level of every tree (or per split by leaf)."""
    boost = contract.boost
    steps = min((1 << boost.depth) - 1, boost.max_leaves - 1) if boost.growth == "leaf" else boost.depth
    calls = _calls(1 << (boost.depth - 1)) if boost.growth == "level" else 1
    return most_trees(contract, done) * steps * calls * rows


def most_replayed(contract: Contract, rows: int, done: int) -> int:
    """How many rows may be routed through an earlier model of so many rounds: once per level of every tree of it."""
    depth = contract.boost.depth
    return (most_trees(contract) - most_trees(contract, done)) * depth * _calls(1 << (depth - 1)) * rows


#: Splits of one tree and level that one oblivious transfer chooses from; with the blank one 256 options.
_OPTIONS = 255


def most_spent(contract: Contract, rows: int, done: int = 0) -> Spent:
    """What a session may use of the passive side that goes on after so many rounds; ``rows`` of the shared order."""
    transfers = most_transfers(contract, rows, done) if contract.boost.routing == "oblivious" else 0
    return Spent(most_vectors(contract, done), most_splits(contract, done), transfers)


def _check_spent(contract: Contract, start: Start, rows: int) -> None:
    """Whether the rounds that are left fit the budget on top of what earlier attempts have used.

    The contract bounds vectors. Splits and transfers have no bound of their own: for each the bound is what an unbroken
    run may use, times the share by which the budget's vectors exceed that run's.
    """
    whole, left, spent = most_spent(contract, rows), most_spent(contract, rows, start.round), start.spent
    for what in ("vectors", "splits", "transfers"):
        allowed = getattr(whole, what) * contract.budget.vectors // whole.vectors
        if getattr(spent, what) + getattr(left, what) > allowed:
            raise OverBudget(
                f"earlier attempts used up to {getattr(spent, what)} {what} and the rest of the run may need "
                f"{getattr(left, what)}, over the {allowed} that [budget] vectors allows for all attempts together"
            )


def terms(contract: Contract, start: Start | None = None) -> matvec.Terms:
    """What the encrypted product is used for. Raises OverBudget for more vectors than the contract's budget has."""
    start = start or Start()
    largest = booster.largest_value(contract.boost)
    change = Change.of_indicator(len(contract.passive.features), largest, _touches(contract))
    vectors = most_vectors(contract, start.round)
    agreed = matvec.Terms.of(contract, largest_value=largest, vectors=vectors, change=change)
    share = 1.0 if contract.screen is None else 1 - screen.SHARE
    return replace(agreed, kl_nats=agreed.kl_nats * share - start.spent.kl_nats)


def _model_id(channel: Channel, contract: Contract) -> bytes:
    return hashlib.sha256(b"fedlearn/1 boost model" + channel.session + contract.hash()).digest()[:16]


# --- active: what the peer does for it ---------------------------------------------------------------


@dataclass
class Peer:
    """The passive side as the active side's learner sees it; see :class:`fedlearn.learner.grower.Passive`."""

    channel: Channel
    contract: Contract
    querier: matvec.Querier
    receiver: transfer.Receiver | None
    features: Features
    names: tuple[str, ...]
    position: I64
    universe: int
    noise: float = 0.0
    splits: int = 0
    placed: list[tuple[I32, I32]] = field(default_factory=list)

    @cached_property
    def in_order(self) -> bool:
        """Whether the own rows are those of the shared order, in its order."""
        return np.array_equal(self.position, np.arange(self.universe))

    def ask(self, requests: list[Request], trees: int, nodes: int) -> Callable[[], I64]:
        """Ask for sums over the passive bins; empty nodes make up ``nodes`` a tree if their shapes are to be hidden."""
        kinds = _kinds(self.contract)
        asked = trees * nodes if self.contract.boost.pad_vectors else len(requests)
        if not asked:
            return lambda: np.zeros((0, int(self.features.sizes.sum()), kinds), np.int64)
        answer = self.querier.ask(self._vectors(requests, asked, kinds))

        def wait() -> I64:
            self._prepare(requests, nodes)
            found = np.ascontiguousarray(answer().reshape(asked, kinds, -1).transpose(0, 2, 1))[: len(requests)]
            return self._mended(found, requests) if self.noise and requests else found

        return wait

    def _prepare(self, requests: list[Request], nodes: int) -> None:
        """While the peer sums: what the first tree's rows will need to learn their sides at the splits to come.

        The peer sees for how many splits it was made: as many as a full tree has here, so that it learns nothing of
        this one's shape.
        """
        if self.receiver is not None and requests:
            single = requests[0].leaf == 0 or self.contract.boost.growth == "leaf"
            self.receiver.prepare(self.universe, 1 if single else min(2 * nodes, _OPTIONS), blank=True)

    def _mended(self, sums: I64, requests: list[Request]) -> I64:
        """Noisy sums made consistent with what this side knows, with empty counts where the learner keeps counts."""
        totals = np.array([r.values[:2, r.rows].sum(axis=1) for r in requests], np.int64)
        counts = np.zeros((*sums.shape[:2], len(requests[0].values) - 2), np.int64)
        return np.concatenate([reconciled(sums, self.features.sizes, totals), counts], axis=2)

    def _vectors(self, requests: list[Request], nodes: int, kinds: int) -> _NodeVectors:
        trees = list({id(r.values): r for r in requests}.values())
        if len(self.placed) != len(trees) or any(
            a is not r.values for (a, _), r in zip(self.placed, trees, strict=True)
        ):
            self.placed = [(r.values, self._place(r.values[:kinds], 0)) for r in trees]
        number = {id(r.values): t for t, r in enumerate(trees)}
        return _NodeVectors(
            nodes,
            kinds,
            _stacked([placed for _, placed in self.placed], (0, kinds, self.universe)),
            _stacked([self._place(r.node[None], -1)[0] for r in trees], (0, self.universe)),
            np.array([number[id(r.values)] for r in requests], np.int32),
            np.array([r.leaf for r in requests], np.int32),
        )

    def _place(self, values: I32, elsewhere: int) -> I32:
        """Values of own rows, int32 (V, m), in the shared order, (V, n)."""
        if self.in_order:
            return values
        out = np.full((len(values), self.universe), elsewhere, np.int32)
        kernel.place(values, self.position, out)
        return out

    def route(self, routings: list[Routing]) -> tuple[list[int], list[U8]]:
        """Name the chosen splits and learn the rows' sides."""
        splits = [split for chosen, _ in routings for split in chosen]
        left = [mask[: -(-int(self.features.sizes[f]) // 8)].tobytes() for f, mask in splits]
        self.channel.send(
            pb.BoostSplits(feature=[f for f, _ in splits], left=left, trees=[len(chosen) for chosen, _ in routings])
        )
        first = (self.splits + np.cumsum([0] + [len(chosen) for chosen, _ in routings])[:-1]).tolist()
        self.splits += len(splits)
        return first, self.sides(routings)

    def sides(self, routings: list[Routing]) -> list[U8]:
        """The rows' sides at splits that have just been named, in the contract's way."""
        way = {"oblivious": self._oblivious, "bits": self._bits, "shared": self._shared}[self.contract.boost.routing]
        return way(routings)

    def round_done(self, done: int, models: list[Model]) -> None:
        """Let both sides show progress."""
        self.channel.send(pb.BoostRoundDone(round=done))
        self.channel.progress(done, self.contract.boost.rounds, "rounds")

    def _oblivious(self, routings: list[Routing]) -> list[U8]:
        """Each row chooses the split of its own node, or the blank option; customers or not, all rows take part."""
        if self.receiver is None:
            raise ValueError("oblivious routing without a transfer")
        parts = [
            (which, first, min(_OPTIONS, len(chosen) - first), goes_left)
            for chosen, which in routings
            for goes_left in [np.zeros(len(which), np.uint8)]
            for first in range(0, len(chosen), _OPTIONS)
        ]
        calls = []
        for which, first, options, _ in parts:
            choices = np.full(self.universe, options, np.uint8)
            kernel.choose_sides(which, self.position, first, options, choices)
            calls.append((choices, options))
        for (_, _, _, goes_left), bits in zip(parts, self.receiver.choose_all(calls, blank=True), strict=True):
            kernel.take_sides(bits, self.position, goes_left)
        return [goes_left for _, first, _, goes_left in parts if first == 0]

    def _bits(self, routings: list[Routing]) -> list[U8]:
        """The passive side answers every split for every row."""
        total = sum(len(chosen) for chosen, _ in routings)
        sides = self._sides(total, self.universe, [-(-self.universe // 8)] * total)
        found, first = [], 0
        for chosen, which in routings:
            out = np.zeros(len(which), np.uint8)
            part = np.frombuffer(b"".join(sides[first : first + len(chosen)]), np.uint8).reshape(len(chosen), -1)
            kernel.pick_sides(part, which, self.position, out)
            found.append(out)
            first += len(chosen)
        return found

    def _shared(self, routings: list[Routing]) -> list[U8]:
        """The active side names the rows of each split node, as SecureBoost does."""
        members = [np.flatnonzero(which == s) for chosen, which in routings for s in range(len(chosen))]
        places = [np.sort(self.position[rows]) for rows in members]
        self.channel.send(pb.BoostNodes(rows=[_bitmap(place, self.universe) for place in places]))
        counts = [len(place) for place in places]
        sides = self._sides(len(members), sum(counts), [-(-count // 8) for count in counts])
        found, s = [], 0
        for chosen, which in routings:
            out = np.zeros(len(which), np.uint8)
            for _ in chosen:
                order = np.argsort(self.position[members[s]], kind="stable")
                out[members[s][order]] = np.unpackbits(np.frombuffer(sides[s], np.uint8), bitorder="little")[
                    : counts[s]
                ]
                s += 1
            found.append(out)
        return found

    def _sides(self, splits: int, rows: int, widths: list[int]) -> list[bytes]:
        answer = self.channel.receive(pb.BoostSides)
        if answer.rows != rows or [len(bits) for bits in answer.bits] != widths:
            raise self.channel.misbehaved(
                WrongLength,
                f"sent sides of {len(answer.bits)} splits over {answer.rows} rows where {splits} over {rows} were due",
            )
        return list(answer.bits)


@dataclass(frozen=True)
class _NodeVectors:
    """The vectors of some nodes, made block by block: see :func:`fedlearn.kernels.trees.node_vectors`."""

    nodes: int
    kinds: int
    values: I32
    node: I32
    tree: I32
    leaf: I32

    def __len__(self) -> int:
        return self.nodes * self.kinds

    def __getitem__(self, block: tuple[slice, slice]) -> I32:
        vectors, places = range(len(self))[block[0]], range(self.node.shape[1])[block[1]]
        out = np.empty((len(vectors), len(places)), np.int32)
        kernel.node_vectors(self.values, self.node, self.tree, self.leaf, vectors.start, places.start, out)
        return out


def _stacked(arrays: list[I32], empty: tuple[int, ...]) -> I32:
    """Arrays of one shape as one array, without a copy where there is but one."""
    if not arrays:
        return np.zeros(empty, np.int32)
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _bitmap(places: I64, universe: int) -> bytes:
    flags = np.zeros(universe, np.uint8)
    flags[places] = 1
    return np.packbits(flags, bitorder="little").tobytes()


def _open_peer(
    channel: Channel, contract: Contract, data: ActiveData, start: Start | None = None, earlier: int = 0
) -> Peer:
    """The peer, set up to go on from ``start``, with ``earlier`` splits of an earlier model to replay."""
    start = start or Start()
    boost, agreed = contract.boost, terms(contract, start)
    told = channel.receive(pb.BoostFeatures)
    sizes = np.array(told.bins, np.int64)
    expected = [kind == "number" for kind in contract.passive.features.values()]
    expected = expected if data.ordered is None else list(data.ordered)
    due = len(expected)
    if any(len(part) != due for part in (sizes, told.ordered, told.monotone)):
        raise channel.misbehaved(WrongLength, f"announced {len(sizes)} features where {due} were due")
    if sizes.min() < 2 or sizes.max() > boost.bins + 1:
        raise channel.misbehaved(BeyondContract, f"announced {sizes.max()} bins, the contract allows {boost.bins + 1}")
    numbers = sum(expected)
    if sum(told.ordered) != numbers or any(m and not o for m, o in zip(told.monotone, told.ordered, strict=True)):
        raise channel.misbehaved(Malformed, f"announced other than {numbers} ordered features, or a monotone category")
    constrained = sum(name in contract.passive.monotone for name in contract.passive.features)
    if any(abs(m) > 1 for m in told.monotone) or sum(map(abs, told.monotone)) != constrained:
        raise channel.misbehaved(Malformed, "announced other monotone features than the contract has")
    names = tuple(told.names)
    named = set(names) <= set(contract.passive.features) and len(set(names)) == due
    if not (named if contract.disclosure.names else not names):
        raise channel.misbehaved(Malformed, "announced other feature names than the contract discloses")
    features = Features(sizes, np.array(told.ordered, np.bool_), np.array(told.monotone, np.int8))
    querier = matvec.open_querier(channel, matvec.Shape.indicator(sizes, data.universe), agreed)
    receiver = None
    if boost.routing == "oblivious":
        most = most_transfers(contract, data.universe, start.round)
        most += most_replayed(contract, data.universe, start.round) if earlier else 0
        receiver = transfer.open_receiver(channel, most)
    noise = agreed.noise.deviation if agreed.noise else 0.0
    return Peer(channel, contract, querier, receiver, features, names, data.position, data.universe, noise)


# --- active: folds -----------------------------------------------------------------------------------


#: Models to go on with, to be trained on the given rows.
Begin = Callable[[list[Split]], list[Model]]


def cross_validate(
    contract: Contract,
    rows: Rows,
    peer: Peer | None,
    round_done: Callable[[int, list[Model]], None] | None = None,
    *,
    begin: Begin | None = None,
    first_round: int = 0,
) -> tuple[I64, F64, Fit]:
    """Boost one model for each fold and one on all rows. With ``peer`` None: the active side's features alone.

    ``begin`` makes the models to go on with from ``first_round``; by default they begin anew.

    Returns:
        fold: int64 (m,), -1 without folds; held_out: float64 (K, m), margins from the model that did not see the row,
        NaN without folds and for rows that do not train; and the final fit.
    """
    boost = contract.boost
    fold, splits = _splits(rows, boost)
    models = None if begin is None else begin(splits)
    fits = booster.fit(
        rows,
        boost,
        splits,
        peer,
        least_size=least_size(contract),
        round_done=round_done,
        models=models,
        first_round=first_round,
    )
    held_out = np.full(fits[-1].margins.shape, np.nan)
    for k, fit in enumerate(fits[:-1]):
        held_out[:, fold == k] = fit.margins[:, fold == k]
    return fold, held_out, fits[-1]


def _splits(rows: Rows, boost: Boost) -> tuple[I64, list[booster.Split]]:
    """Fold of each row, int64 (m,), -1 without one; and the rows of each fold's model, then those of the final one."""
    fold, training = np.full(len(rows.label), -1, np.int64), rows.training
    fold[training] = booster.folds_of(rows.label[training], boost)
    rest = np.ones(len(fold), np.bool_)
    rest[training] = False
    splits = [booster.split_of(len(fold), boost, rest | (fold == k)) for k in range(boost.folds)]
    return fold, [*splits, booster.split_of(len(fold), boost, rest)]


def _check_labels(rows: Rows, contract: Contract) -> None:
    least, training = max(10, 2 * least_size(contract)), rows.training
    if len(training) < least:
        raise NoOverlap(f"only {len(training)} aligned rows have a label to train on; training needs at least {least}")
    for column, values in zip(contract.label.columns, np.atleast_2d(rows.targets)[:, training], strict=True):
        if values.min() == values.max():
            which = f" {column!r}" if contract.label.also else ""
            raise NoOverlap(f"all {len(values)} aligned rows have the same label{which}, so there is nothing to learn")
    if contract.boost.metric == "auc" and contract.boost.validation:
        for split in _splits(rows, contract.boost)[1]:
            values = np.atleast_2d(rows.targets)[:, split.valid]
            if len(split.valid) and (values.min(axis=1) == values.max(axis=1)).any():
                raise NoOverlap(
                    f"metric auc needs both label values among the {values.shape[1]} rows that validate: "
                    "agree a larger [boost] validation, or metric loss"
                )


# --- passive -----------------------------------------------------------------------------------------


@dataclass
class _Allowance:
    """How many rows' sides the active side may still take, but by ``bits``: that tells every row's anyway."""

    channel: Channel
    left: int

    def take(self, rows: int) -> None:
        """Count them. Raises BeyondContract when they are too many: a row is on one path in each tree."""
        if rows > self.left:
            raise self.channel.misbehaved(
                BeyondContract, f"asked for {rows} sides of rows where paths through the trees leave {self.left}"
            )
        self.left -= rows


@dataclass(frozen=True)
class _Disguise:
    """The passive side's features as the active side sees them: shuffled, bins flipped or shuffled.

    This hides names and orders from a casual look; it is no protection against a peer who knows the marginals.

    Attributes:
        bins: uint8 (F, n), in opaque order.
        features: what is announced of them.
        feature: int64 (F,), natural number of each opaque feature.
        natural: for each opaque feature, int64 (bins,), the natural bin of each opaque bin.
        names: in opaque order.
    """

    bins: U8
    features: Features
    feature: I64
    natural: list[I64]
    names: tuple[str, ...]

    @classmethod
    def draw(cls, data: PassiveData, draws: Draws) -> _Disguise:
        told = data.features
        feature = draws.permutation(len(told.sizes))
        monotone = told.monotone[feature].copy()
        natural, bins = [], np.empty_like(data.bins)
        for opaque, f in enumerate(feature):
            regular = int(told.sizes[f]) - 1
            order = np.arange(regular) if told.ordered[f] else draws.permutation(regular)
            if told.ordered[f] and draws.bytes(1)[0] & 1:
                order, monotone[opaque] = order[::-1], -monotone[opaque]
            order = np.append(order, regular)
            opaque_of = np.empty(256, np.uint8)
            opaque_of[order] = np.arange(regular + 1)
            bins[opaque] = opaque_of[data.bins[f]]
            natural.append(order.astype(np.int64))
        names = tuple(data.names[f] for f in feature) if data.names else ()
        return cls(bins, Features(told.sizes[feature], told.ordered[feature], monotone), feature, natural, names)

    def announce(self, contract: Contract) -> pb.BoostFeatures:
        """What the active side is told."""
        told = self.features
        return pb.BoostFeatures(
            bins=told.sizes.tolist(),
            ordered=told.ordered.tolist(),
            monotone=told.monotone.tolist(),
            names=self.names if contract.disclosure.names else (),
        )

    def check(self, channel: Channel, message: pb.BoostSplits, contract: Contract, left: int) -> list[tuple[int, U8]]:
        """Validate the active side's choice of splits: (opaque feature, bin mask) each; at most ``left`` of them."""
        count = len(message.feature)
        if not count or count != len(message.left) or sum(message.trees) != count or 0 in message.trees:
            raise channel.misbehaved(Malformed, "asked for sides without naming splits, bins and trees alike")
        at_once = 1 if contract.boost.growth == "leaf" else 1 << (contract.boost.depth - 1)
        if len(message.trees) > _trees_at_once(contract) or max(message.trees) > at_once:
            raise channel.misbehaved(
                BeyondContract,
                f"asked for {count} splits in one level of {len(message.trees)} trees, "
                f"the contract allows {at_once} in each of {_trees_at_once(contract)}",
            )
        if count > left:
            raise channel.misbehaved(
                BeyondContract, f"asked for more than the {most_splits(contract)} splits of the contract"
            )
        splits = []
        for feature, goes_left in zip(message.feature, message.left, strict=True):
            if feature >= len(self.features.sizes):
                raise channel.misbehaved(
                    Malformed, f"asked for a split on feature {feature} of {len(self.features.sizes)}"
                )
            bins = int(self.features.sizes[feature])
            if len(goes_left) != -(-bins // 8) or int.from_bytes(goes_left, "little") >> bins:
                raise channel.misbehaved(WrongLength, f"sent a bin mask that does not fit the {bins} bins of a feature")
            mask = np.zeros(kernel.MASK, np.uint8)
            mask[: len(goes_left)] = np.frombuffer(goes_left, np.uint8)
            splits.append((int(feature), mask))
        return splits

    def serve(
        self,
        channel: Channel,
        splits: list[tuple[int, U8]],
        trees: list[int],
        sender: transfer.Sender | None,
        allowance: _Allowance,
    ) -> None:
        """Step 4: let the active side have the sides, in the contract's way. ``trees``: how many splits of each."""
        sides = self._sides(splits)
        samples = self.bins.shape[1]
        if sender is not None:
            allowance.take(_transfers(trees, samples))
            first = 0
            for count in trees:
                for batch in range(first, first + count, _OPTIONS):
                    sender.serve(sides[batch : min(batch + _OPTIONS, first + count)], samples, blank=True)
                first += count
        elif channel.table("boost") is TABLES["shared"]:
            members = self._members(channel, trees)
            allowance.take(sum(map(len, members)))
            bits = [
                np.packbits(_unpacked(row, samples)[rows], bitorder="little")
                for row, rows in zip(sides, members, strict=True)
            ]
            channel.send(pb.BoostSides(bits=[b.tobytes() for b in bits], rows=sum(map(len, members))))
        else:
            channel.send(pb.BoostSides(bits=[row.tobytes() for row in sides], rows=samples))

    def _sides(self, splits: list[tuple[int, U8]]) -> U8:
        """One bit per row, set means left: uint8 (splits, ⌈n/8⌉)."""
        out = np.empty((len(splits), -(-self.bins.shape[1] // 8)), np.uint8)

        def one(s: int) -> None:
            feature, mask = splits[s]
            kernel.side_bits(self.bins[feature], mask, out[s])

        spread(one, range(len(splits)))
        return out

    def _members(self, channel: Channel, trees: list[int]) -> list[I64]:
        nodes = channel.receive(pb.BoostNodes)
        samples, splits = self.bins.shape[1], sum(trees)
        width = -(-samples // 8)
        if len(nodes.rows) != splits or any(len(row) != width for row in nodes.rows):
            raise channel.misbehaved(WrongLength, f"named the rows of {len(nodes.rows)} nodes where {splits} were due")
        if samples % 8 and any(row[-1] >> samples % 8 for row in nodes.rows):
            raise channel.misbehaved(WrongLength, f"named rows beyond the {samples} of the shared order")
        packed = [np.frombuffer(row, np.uint8) for row in nodes.rows]
        each = iter(packed)
        for count in trees:
            seen = np.zeros(width, np.uint8)
            for row in islice(each, count):
                if (seen & row).any():
                    raise channel.misbehaved(Malformed, "named a row in two nodes of one level of a tree")
                seen |= row
        return [np.flatnonzero(_unpacked(row, samples)) for row in packed]

    def conceal(self, feature: int, mask: U8) -> tuple[int, U8]:
        """A split in the active side's terms, the inverse of :meth:`reveal`."""
        opaque = int(np.flatnonzero(self.feature == feature)[0])
        bits = np.unpackbits(mask, bitorder="little")[self.natural[opaque]]
        hidden = np.zeros(kernel.MASK, np.uint8)
        packed = np.packbits(bits, bitorder="little")
        hidden[: len(packed)] = packed
        return opaque, hidden

    def reveal(self, opaque: int, mask: U8) -> tuple[int, U8]:
        """A split in the passive side's own terms: natural feature and bins."""
        chosen = np.unpackbits(mask, bitorder="little")[: int(self.features.sizes[opaque])].astype(bool)
        bits = np.zeros(8 * kernel.MASK, np.uint8)
        bits[self.natural[opaque][chosen]] = 1
        return int(self.feature[opaque]), np.packbits(bits, bitorder="little")


def _unpacked(row: U8, samples: int) -> NDArray[np.uint8]:
    return np.unpackbits(row, bitorder="little")[:samples]


def _round_done(channel: Channel, message: pb.BoostRoundDone, boost: Boost, before: int) -> int:
    """Rounds done by the peer's word; it counts up to the contract's number, so that training ends."""
    if message.round != before + 1 or message.round > boost.rounds:
        raise channel.misbehaved(Malformed, f"reported round {message.round} where round {before + 1} was due")
    channel.progress(message.round, boost.rounds, "rounds")
    return before + 1


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
