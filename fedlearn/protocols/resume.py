"""Going on with boosted trees that broke off: from which round, and what earlier attempts have used already.

    active                                                 passive
      1. BoostResume   run, rounds on file           ──►
                                                     ◄──   BoostResume   the same, and what all attempts have used
         both take the last round that both hold, if both held the same ledger then
      ...the rest of :mod:`fedlearn.protocols.boost`, from that round on

Each side keeps its own checkpoint and learns of the other's only what the message says. What earlier attempts have used
(encrypted vectors, splits, transfers, leakage of the noise) is the passive side's to count, as it is its data that the
budget protects. It writes down what it will have used *before* it answers, a round ahead, so that no crash loses count;
what was set aside and not used by a killed process counts as used. The session that goes on gets what it needs for the
rounds that are left and no more, and only if that fits the contract's budget on top of all that was used.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import Channel, Ledger
from fedlearn.errors import Malformed, WrongCheckpoint
from fedlearn.learner.booster import Model, Split
from fedlearn.v1 import boost_pb2 as pb

#: Splits on opaque features, in the order in which they were asked: (feature, bins that go left).
Asked = list[tuple[int, NDArray[np.uint8]]]

#: Rounds that a checkpoint keeps: a crash leaves the two sides one round apart at most.
KEPT = 2


@dataclass(frozen=True)
class Spent:
    """What the active side may have had from the passive one: counts, and a bound on the noise's leakage in nats."""

    vectors: int = 0
    splits: int = 0
    transfers: int = 0
    kl_nats: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.vectors + other.vectors,
            self.splits + other.splits,
            self.transfers + other.transfers,
            self.kl_nats + other.kl_nats,
        )


@dataclass(frozen=True)
class Point:
    """A round after which training can go on.

    Attributes:
        round: rounds done.
        splits: passive splits asked by then.
        ledger: of all attempts, as it stood; both sides have the same.
    """

    round: int
    splits: int
    ledger: Ledger


class ActiveCheckpoint(Protocol):
    """Where the active side keeps its own state; :class:`fedlearn.models.checkpoint.Checkpoint` writes files."""

    run: bytes

    @property
    def points(self) -> Sequence[Point]:
        """What there is to go on from, ascending; none in a new run."""

    def save_models(self, point: Point, models: list[Model]) -> None:
        """Keep all models as they are at ``point``, and the point before it."""

    def restore_models(self, point: Point, splits: list[Split]) -> list[Model]:
        """The models at a point, to train on ``splits``; what came later is forgotten."""


class PassiveCheckpoint(Protocol):
    """Where the passive side keeps its own state."""

    run: bytes
    spent: Spent

    @property
    def points(self) -> Sequence[Point]:
        """What there is to go on from, ascending; none in a new run."""

    def save_splits(self, point: Point, asked: Asked, spent: Spent) -> None:
        """Keep the splits asked up to ``point``, the point before it, and what counts as used from now on."""

    def restore_splits(self, point: Point) -> Asked:
        """The splits asked up to a point; what came later is forgotten."""

    def spend(self, spent: Spent) -> None:
        """Write down what counts as used from now on, if there is a point at all."""


@dataclass(frozen=True)
class Start:
    """Where a session begins: after a point on file, after an earlier model's rounds, or (by default) anew."""

    round: int = 0
    spent: Spent = field(default_factory=Spent)
    point: Point | None = None


def agree(channel: Channel, checkpoint: ActiveCheckpoint | PassiveCheckpoint, spent: Spent | None) -> Start:
    """Both roles: settle the round to go on from. The ledger goes on from there as well.

    Args:
        channel: with boost's message table open.
        checkpoint: this side's, with at least one point.
        spent: what all attempts have used, from the passive side; None on the active side, which is told.

    Returns:
        Where to start.

    Raises:
        WrongCheckpoint: the two checkpoints do not fit together.
        Malformed: the peer's message is none that an honest peer sends.
    """
    said = spent or Spent()
    points = {point.round: point for point in checkpoint.points}
    ours = pb.BoostResume(
        run=checkpoint.run,
        rounds=list(points),
        splits=[point.splits for point in points.values()],
        ledgers=[point.ledger.digest() for point in points.values()],
        vectors_spent=said.vectors,
        splits_spent=said.splits,
        transfers_spent=said.transfers,
        kl_spent=said.kl_nats,
    )
    channel.send(ours)
    theirs = channel.receive(pb.BoostResume)
    told = _checked(channel, theirs, from_passive=spent is None)
    if not hmac.compare_digest(theirs.run, checkpoint.run):
        raise WrongCheckpoint(f"the checkpoint of the peer {channel.peer!r} is of another run than this side's")
    common = [k for k, number in enumerate(theirs.rounds) if number in points]
    if not common:
        raise WrongCheckpoint(
            f"this side's checkpoint holds rounds {_listed(points)}, that of the peer {channel.peer!r} holds "
            f"{_listed(theirs.rounds)}: there is none in common"
        )
    point = points[theirs.rounds[common[-1]]]
    same = hmac.compare_digest(theirs.ledgers[common[-1]], point.ledger.digest())
    if theirs.splits[common[-1]] != point.splits or not same:
        raise WrongCheckpoint(
            f"the two checkpoints disagree about what was exchanged up to round {point.round}, "
            f"with the peer {channel.peer!r}"
        )
    used = told if spent is None else spent
    channel.ledger.take_over(point.ledger)
    channel.ledger.kl_nats = used.kl_nats
    return Start(point.round, used, point)


def _checked(channel: Channel, theirs: pb.BoostResume, from_passive: bool) -> Spent:
    """What the peer says it has; its counts are for the budget check that follows."""
    told = Spent(theirs.vectors_spent, theirs.splits_spent, theirs.transfers_spent, theirs.kl_spent)
    rounds = list(theirs.rounds)
    alike = len(rounds) == len(theirs.splits) == len(theirs.ledgers)
    if not alike or not 1 <= len(rounds) <= KEPT or any(a >= b for a, b in pairwise(rounds)):
        raise channel.misbehaved(Malformed, "told the rounds of its checkpoint out of order or not alike")
    if any(len(digest) != 32 for digest in theirs.ledgers) or len(theirs.run) != 16:
        raise channel.misbehaved(Malformed, "sent a run or a ledger's hash of the wrong length")
    if not (math.isfinite(told.kl_nats) and told.kl_nats >= 0) or (told != Spent() and not from_passive):
        raise channel.misbehaved(Malformed, "told of use that it cannot have counted")
    return told


def _listed(rounds: Sequence[int] | dict[int, Point]) -> str:
    return " and ".join(map(str, rounds))


@dataclass
class Meter:
    """The passive side's count of what it gives away, always written down before it is given.

    Attributes:
        before: what earlier attempts have used.
        most: what this session may use at most.
        ahead: what to set aside at a time: a round's worth.
        kl_vector: leakage of the answers to one vector, in nats.
        checkpoint: where it is written down; None for nowhere.
    """

    before: Spent
    most: Spent
    ahead: Spent
    kl_vector: float
    checkpoint: PassiveCheckpoint | None
    used: Spent = field(default_factory=Spent)
    _aside: Spent = field(default_factory=Spent)

    def add(self, more: Spent) -> None:
        """Count ``more``, and write it down together with a round's worth unless that much is set aside already."""
        self.used = self._within(self.used + more)
        if self._aside != self._most_of(self._aside, self.used):
            self._aside = self.next_round()
            self._write(self._aside)

    def next_round(self) -> Spent:
        """What will have been used when one more round is done."""
        return self._within(self.used + self.ahead)

    def save(self, point: Point, asked: Asked) -> None:
        """Keep a checkpoint, with the next round set aside."""
        if self.checkpoint is not None:
            self._aside = self.next_round()
            self.checkpoint.save_splits(point, asked, self._total(self._aside))

    def settle(self) -> None:
        """The session ends in order: write down what was used, not what was set aside."""
        self._write(self.used)

    def _write(self, count: Spent) -> None:
        if self.checkpoint is not None:
            self.checkpoint.spend(self._total(count))

    def _total(self, count: Spent) -> Spent:
        return self.before + Spent(count.vectors, count.splits, count.transfers, self.kl_vector * count.vectors)

    def _within(self, count: Spent) -> Spent:
        """No more than the session allows: whoever asks beyond is refused elsewhere."""
        most = self.most
        return Spent(
            min(count.vectors, most.vectors), min(count.splits, most.splits), min(count.transfers, most.transfers)
        )

    @staticmethod
    def _most_of(one: Spent, other: Spent) -> Spent:
        return Spent(
            max(one.vectors, other.vectors), max(one.splits, other.splits), max(one.transfers, other.transfers)
        )
