"""Private set intersection by oblivious transfer: the fast way for large lists (:mod:`fedlearn.protocols.align`).

Kolesnikov, Kumaresan, Rosulek and Trieu (CCS 2016), without a stash. The active side places each of its IDs in one of
three bins of a table (:mod:`fedlearn.crypto.cuckoo`); for every bin b it learns F_b of its ID there, and of no other;
the passive side learns nothing of what was placed, and can compute every F_b (:mod:`fedlearn.crypto.oprf`). It sends
F_b(y) for the three bins of each of its IDs y, in an order it has drawn, and the active side looks its own values up::

    active                                                passive
                                                   ◄──    AlignBases    points that hide the passive side's Δ
      AlignRaised   each to its own key            ──►    both derive seeds: the active pairs, the passive one of each
      AlignMasked   code words, bin by bin         ──►    F_b for every bin b
      looks its own values up                      ◄──    AlignValues   three values for each ID, in shuffled order

Both sides number the rows in the passive side's shuffled order. All three values of an ID stand in one row. That tells
the active side nothing: of an ID that it has, it knows which one it is; of an ID that it has not, all three are random
to it. So it learns what ``mutual`` and ``one-sided`` say: which of its IDs are shared, and their places in a random
order. The passive side learns nothing. (In ``mutual`` it is then told the shared rows as rows, not the bins in which
they were found: a bin would tell of the active side's other IDs.)

A list may be padded: the active side's table has as many bins as the longer list would need, and the passive side adds
rows of random digests. For a bin that no ID fell in, the active side asks for a random digest.

Failure: no placement, two words of the code too close, or two different values that coincide, each with probability
below 2^-40 (computed for the lengths at hand). The first ends the session with :class:`CannotPlace`; the second would
weaken the masking of one row; the third would report one row too many.

Semi-honest. A deviating active side can learn Δ and then test any number of IDs alone: here the contract's
``budget.rows`` bounds an honest peer only, whereas by Diffie-Hellman it bounds any. A deviating passive side can repeat
or invent values; that is found if it makes two rows the same ID of the active side, or one row two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.crypto import oprf, ot, ristretto
from fedlearn.errors import CannotPlace, InvalidPoint, Malformed, WrongLength
from fedlearn.kernels import psi
from fedlearn.v1 import align_pb2 as pb

Rows = NDArray[np.int64]
Done = Callable[[int], None]

#: Bins of one AlignMasked, and rows of one AlignValues: one side computes the next while the other works on the last.
_BINS = 1 << 17
_ROWS = 1 << 17


@dataclass(frozen=True)
class Found:
    """What the active side found.

    Attributes:
        said: hash of the base transfers, fresh in every run and the same on both sides.
        mine: int64 (m,), which of its IDs are shared.
        positions: int64 (m,), ascending: their rows in the passive side's shuffled order.
    """

    said: bytes
    mine: Rows
    positions: Rows


def find(channel: Channel, ids: pa.Array, lengths: tuple[int, int], tag: bytes, done: Done) -> Found:
    """The active side, up to AlignValues.

    Args:
        channel: where AlignOpen was exchanged.
        ids: binary (n,), without nulls or duplicates.
        lengths: of the active and the passive side's list, padding included.
        tag: 16 bytes that both sides have, for the digests of IDs.
        done: told how many IDs were worked on since the last call.

    Raises:
        CannotPlace: no placement; another session will do.
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    plan = oprf.Plan.of(*lengths)
    asked = ask(channel, ids, plan, tag, done)
    table = asked.placed.table
    index = oprf.Index(asked.values, table, plan.segment)
    bins = np.empty(lengths[1], np.int32)
    for first, received in _values(channel, plan):
        bins[first : first + len(received)] = index.match(received)
        done(len(received))
    positions = np.flatnonzero(bins != -1)
    hit = bins[positions]
    if (hit < 0).any() or (np.bincount(hit, minlength=1) > 1).any():
        raise channel.misbehaved(Malformed, "sent values that make two IDs one")
    return Found(asked.said, table[hit].astype(np.int64), positions)


def offer(
    channel: Channel, ids: pa.Array, rows: Rows, lengths: tuple[int, int], order: Rows, tag: bytes, done: Done
) -> bytes:
    """The passive side, up to AlignValues; arguments as for :func:`find`, and these.

    Args:
        rows: int64 (n,), the rows that have these IDs; all others of the list take part with a digest of nobody.
        order: a permutation of range(``lengths[1]``): which row stands in each place of the list sent.

    Returns:
        The hash of the base transfers.

    Raises:
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    told = answer(channel, ids, rows, oprf.Plan.of(*lengths), tag, done)
    for first in range(0, len(order), _ROWS):
        part = order[first : first + _ROWS]
        channel.send(pb.AlignValues(rows=len(part), values=told.end.values(told.items[part])))
        done(len(part))
    return told.said


# --- the OPRF, which align_count evaluates too -------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the active side has after AlignMasked; ``base_tag`` and ``seeds`` are of the base transfers."""

    plan: oprf.Plan
    placed: oprf.Placed
    values: NDArray[np.uint32]
    base_tag: bytes
    seeds: list[tuple[bytes, bytes]]
    said: bytes


@dataclass(frozen=True)
class Told:
    """What the passive side has: its end, its digests uint32 (n, 8) by row, and the secrets of the base transfers."""

    end: oprf.Sender
    items: NDArray[np.uint32]
    choices: NDArray[np.bool_]
    seeds: list[bytes]
    said: bytes


def ask(channel: Channel, ids: pa.Array, plan: oprf.Plan, tag: bytes, done: Done) -> Asked:
    """The active side, from AlignBases to AlignMasked; see :func:`find`."""
    placed = oprf.place(oprf.digests(ids, tag), plan)
    if placed is None:
        raise CannotPlace(f"cuckoo hashing found no place for one of {len(ids)} IDs")
    blinded = channel.receive(pb.AlignBases).points
    _check_points(channel, blinded, plan)
    raised, base_tag, seeds = ot.offer(channel.session, blinded)
    channel.send(pb.AlignRaised(points=raised))

    end = oprf.Receiver(base_tag, seeds, plan)
    values = np.empty((plan.bins, psi.VALUE_WORDS), np.uint32)
    for first in range(0, plan.bins, _BINS):
        last = min(first + _BINS, plan.bins)
        masked, values[first:last] = end.ask(placed.piece(first, last))
        channel.send(pb.AlignMasked(rows=masked))
        done(last * plan.receiver // plan.bins - first * plan.receiver // plan.bins)
    return Asked(plan, placed, values, base_tag, seeds, _said(blinded, raised))


def answer(channel: Channel, ids: pa.Array, rows: Rows, plan: oprf.Plan, tag: bytes, done: Done) -> Told:
    """The passive side, from AlignBases to AlignMasked; see :func:`offer`."""
    choice, blinded = ot.choose(channel.session, plan.bits)
    channel.send(pb.AlignBases(points=blinded))
    items = oprf.digests(ids, tag)
    if plan.sender > len(ids):
        present, items = items, oprf.draw_items(plan.sender)
        items[rows] = present
    raised = channel.receive(pb.AlignRaised).points
    _check_points(channel, raised, plan)
    base_tag, seeds = ot.accept(channel.session, choice, blinded, raised)

    end = oprf.Sender(base_tag, choice.bits, seeds, plan)
    for first in range(0, plan.bins, _BINS):
        count = min(_BINS, plan.bins - first)
        masked = channel.receive(pb.AlignMasked).rows
        if len(masked) != count * plan.row_bytes:
            raise channel.misbehaved(
                WrongLength, f"sent {len(masked)} bytes where {count} rows of {plan.row_bytes} were due"
            )
        end.take(masked)
        done(min(first + count, plan.bins) * plan.receiver // plan.bins - first * plan.receiver // plan.bins)
    return Told(end, items, choice.bits, seeds, _said(blinded, raised))


def _values(channel: Channel, plan: oprf.Plan) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The passive side's values: number of the first row, and uint8 (n, 3 · value_bytes)."""
    width = 3 * plan.value_bytes
    for first in range(0, plan.sender, _ROWS):
        due = min(_ROWS, plan.sender - first)
        message = channel.receive(pb.AlignValues)
        if message.rows != due or len(message.values) != due * width:
            raise channel.misbehaved(
                WrongLength,
                f"sent {message.rows} rows in {len(message.values)} bytes where {due} of {width} bytes were due",
            )
        yield first, np.frombuffer(message.values, np.uint8).reshape(due, width)


def _check_points(channel: Channel, points: bytes, plan: oprf.Plan) -> None:
    if len(points) != plan.bits * ristretto.POINT_BYTES:
        raise channel.misbehaved(
            WrongLength, f"sent {len(points)} bytes where {plan.bits} points of {ristretto.POINT_BYTES} were due"
        )
    invalid = ristretto.check_points(points)
    if invalid is not None:
        raise channel.misbehaved(InvalidPoint, f"sent point {invalid}, which is invalid or the identity")
    if len(np.unique(np.frombuffer(points, f"V{ristretto.POINT_BYTES}"))) < plan.bits:
        raise channel.misbehaved(Malformed, "sent a point more than once")


def _said(blinded: bytes, raised: bytes) -> bytes:
    return hashlib.sha256(b"fedlearn/1 align bases" + blinded + raised).digest()
