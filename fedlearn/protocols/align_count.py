"""How many IDs two lists share, by oblivious transfer, and not which (:mod:`fedlearn.protocols.align`).

As in :mod:`fedlearn.protocols.align_ot`, the active side puts each of its IDs in one of three bins and has an OPRF F_b
of it. But the passive side does not send its own values, which would tell which IDs match. It draws a random target for
each bin and sends a table (:mod:`fedlearn.crypto.okvs`) in which ID y has F_b(y) ⊕ target_b, for its three bins. So the
active side's F_b(x) ⊕ table(x) is the bin's target if x is shared, else random: each side has 64 bits for each bin, and
they are to count the bins in which these are equal, without a look at any one::

    active, word a of each bin                             passive, target t of each bin
      AlignRaised, AlignMasked as in align_ot    ◄──►      AlignBases
      a = F_b(x) ⊕ table(x)                      ◄──       AlignHints
      three times, 1 of 16 transfers:
        chooses by each 4 bits of a              ──►       offers [w ≠ those of t] ⊕ s for each w, s fresh and random
        a := the bits obtained                   ◄──       t := the bits s
      now a, t are bits, equal where x is shared
      AlignMasked       n bits, masked           ──►
      Σ of the bits that differ                  ◄──       AlignSums (:mod:`fedlearn.crypto.tally`)
      AlignCount                                 ──►

Each of the three steps makes two strings a quarter as long (64, 16, 4, 1 bits) that are equal if and only if those
before were: a bit obtained is s exactly where four bits agreed. The active side sees bits under fresh s, the passive
side masked choices, so nobody learns anything before the sum (Goldreich, Micali and Wigderson; the tree of comparisons
is that of Rathee et al., CCS 2020, the whole that of Pinkas, Schneider, Tkachenko and Yanai, EUROCRYPT 2019).

============  ==================================  ==================================
side          learns                              by
============  ==================================  ==================================
active        len(B), how many IDs are shared     AlignOpen; AlignSums
passive       len(A), how many IDs are shared     AlignOpen; AlignCount
============  ==================================  ==================================

A bin without an ID of the active side takes part with a random word. Padding is as in ``align_ot``.

Failure, each with probability below 2^-40: no placement of the active side's IDs, no table for the passive side's
(:class:`CannotPlace` on that side, and the other sees that it happened), two words of the code too close (a weaker
mask), or two words of some bin equal though the ID is not shared: 2^-64 for each of at most :data:`MOST_BINS` bins.

Semi-honest. A deviating active side can learn Δ as in ``align_ot``, and then which IDs are shared, also of those it did
not bring. A deviating passive side can make the count wrong, or bring IDs of its choice and be told how many of them
the active side has; with a single ID, whether it has that. The contract's ``budget.rows`` does not bound the former.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.crypto import okvs, oprf, tally
from fedlearn.crypto.cuckoo import STATISTICAL
from fedlearn.crypto.draws import Draws
from fedlearn.errors import CannotPlace, Malformed, OverBudget, WrongLength
from fedlearn.kernels import psi
from fedlearn.protocols import align_ot, transfer
from fedlearn.v1 import align_pb2 as pb

Rows = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Done = Callable[[int], None]

_WORD = 8  # bytes of a word, and of a slot
_OPTIONS = 16  # four bits choose
_STEPS = (16, 4, 1)  # choices for each bin

#: Bins of which none has two words that are equal by chance, but for 2^-STATISTICAL.
MOST_BINS = 1 << (8 * _WORD - STATISTICAL)

_SLOTS = 1 << 19  # of one AlignHints
_BINS = 1 << 18  # compared at once; even
_BITS = 1 << 18  # counted at once


def plan_of(lengths: tuple[int, int]) -> oprf.Plan:
    """Sizes for lists of these lengths.

    Raises:
        OverBudget: the active side's list is too long to be counted.
    """
    plan = dataclasses.replace(oprf.Plan.of(*lengths), value_bytes=_WORD)
    if plan.bins > MOST_BINS:
        raise OverBudget(
            f"{lengths[0]} IDs are too many to be counted by oblivious transfer, which takes {MOST_BINS} bins at most"
        )
    return plan


def find(channel: Channel, ids: pa.Array, lengths: tuple[int, int], tag: bytes, done: Done) -> tuple[bytes, int]:
    """The active side, up to the sum; arguments as for :func:`fedlearn.protocols.align_ot.find`.

    Returns:
        A hash of the base transfers, the same on both sides; how many IDs are shared.

    Raises:
        OverBudget: the list is too long.
        CannotPlace: no placement; another session will do.
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    plan = plan_of(lengths)
    asked = align_ot.ask(channel, ids, plan, tag, done)
    words = _words(asked, _hints(channel, plan, done))
    bits = np.empty(plan.bins, np.uint8)
    end = transfer.open_receiver(channel, sum(_STEPS) * plan.bins)
    for part in _pieces(plan.bins, _BINS):
        bits[part] = _choose(end, words[part])
        done((part.stop * lengths[0] // plan.bins) - (part.start * lengths[0] // plan.bins))
    shared = plan.bins - _sum_differing(channel, tally.Receiver(asked.base_tag, asked.seeds), bits)
    if not 0 <= shared <= min(lengths):
        raise channel.misbehaved(Malformed, f"sent sums that make {shared} IDs shared of {min(lengths)} at most")
    return asked.said, shared


def offer(channel: Channel, ids: pa.Array, rows: Rows, lengths: tuple[int, int], tag: bytes, done: Done) -> bytes:
    """The passive side, up to the sum; arguments as for :func:`fedlearn.protocols.align_ot.offer`.

    Returns:
        A hash of the base transfers.

    Raises:
        OverBudget: the active side's list is too long.
        CannotPlace: the table cannot be made; another session will do.
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    plan = plan_of(lengths)
    told = align_ot.answer(channel, ids, rows, plan, tag, done)
    targets = Draws().words(plan.bins)
    _send_hints(channel, told, targets, done)
    bits = np.empty(plan.bins, np.uint8)
    end = transfer.open_sender(channel, sum(_STEPS) * plan.bins)
    for part in _pieces(plan.bins, _BINS):
        bits[part] = _serve(end, targets[part])
    _send_sums(channel, tally.Sender(told.end.tag, told.choices, told.seeds), bits)
    return told.said


# --- words of bins -----------------------------------------------------------------------------------


def _hints(channel: Channel, plan: oprf.Plan, done: Done) -> U64:
    """The passive side's table."""
    table = np.empty(psi.SPREAD * okvs.segment_for(3 * plan.sender), np.uint64)
    for part in _pieces(len(table), _SLOTS):
        slots, due = channel.receive(pb.AlignHints).slots, _WORD * (part.stop - part.start)
        if len(slots) != due:
            raise channel.misbehaved(WrongLength, f"sent {len(slots)} bytes where slots of {due} were due")
        table[part] = np.frombuffer(slots, "<u8")
        done(part.stop * plan.sender // len(table) - part.start * plan.sender // len(table))
    return table


def _words(asked: align_ot.Asked, table: U64) -> U64:
    """a of each bin; random where there is no ID."""
    plan, placed = asked.plan, asked.placed
    words, segment = Draws().words(plan.bins), len(table) // psi.SPREAD
    for part in _pieces(plan.bins, _BINS):
        full = part.start + np.flatnonzero(placed.table[part] >= 0)
        codes = oprf.codes(placed.items[placed.table[full], :4], _table_tag(asked.base_tag))
        own = np.ascontiguousarray(asked.values[full, :2]).view(np.uint64).ravel()
        words[full] = own ^ okvs.decode(codes, (full // plan.segment).astype(np.uint8), segment, table)
    return words


def _send_hints(channel: Channel, told: align_ot.Told, targets: U64, done: Done) -> None:
    plan, items = told.end.plan, told.items
    values = np.frombuffer(told.end.values(items), "<u8").reshape(-1, 3) ^ targets[psi.places(items, plan.segment)]
    codes, segment = oprf.codes(items[:, :4], _table_tag(told.end.tag)), okvs.segment_for(values.size)
    table = okvs.encode(codes, values, segment)
    if table is None:
        raise CannotPlace(f"no table has a slot for each of the values of {len(items)} IDs")
    for part in _pieces(len(table), _SLOTS):
        channel.send(pb.AlignHints(slots=table[part].astype("<u8").tobytes()))
        done(part.stop * plan.sender // len(table) - part.start * plan.sender // len(table))


def _table_tag(base_tag: bytes) -> bytes:
    """Apart from the tag of the code words that are masked."""
    return b"fedlearn/1 table" + base_tag


# --- comparing ---------------------------------------------------------------------------------------


def _choose(end: transfer.Receiver, words: U64) -> U8:
    """The receiver's share, uint8 (n,) of single bits, of whether its words and the sender's differ."""
    content = words.astype("<u8").view(np.uint8)
    for choices in _STEPS:
        content = end.choose(_nibbles(content, choices * len(words)), _OPTIONS)
    return np.unpackbits(content, count=len(words), bitorder="little")


def _serve(end: transfer.Sender, words: U64) -> U8:
    """The sender's share."""
    content = words.astype("<u8").view(np.uint8)
    for choices in _STEPS:
        own, count = _nibbles(content, choices * len(words)), choices * len(words)
        content = Draws().bytes(-(-count // 8))
        end.serve(np.stack([np.packbits(own != w, bitorder="little") ^ content for w in range(_OPTIONS)]), count)
    return np.unpackbits(content, count=len(words), bitorder="little")


def _nibbles(content: U8, count: int) -> U8:
    """The first ``count`` groups of four bits of packed bits, each as a number: uint8 (count,)."""
    return np.stack([content & 15, content >> 4], axis=1).ravel()[:count]


# --- counting ----------------------------------------------------------------------------------------


def _sum_differing(channel: Channel, end: tally.Receiver, bits: U8) -> int:
    """How many bits differ from the sender's."""
    total = 0
    for part in _pieces(len(bits), _BITS):
        masked, kept = end.ask(bits[part])
        channel.send(pb.AlignMasked(rows=masked))
        answer, due = channel.receive(pb.AlignSums), tally.SUM_BYTES * len(kept)
        if len(answer.corrections) != due:
            raise channel.misbehaved(
                WrongLength, f"sent {len(answer.corrections)} bytes where corrections of {due} were due"
            )
        end.take(bits[part], kept, answer.corrections)
        total = answer.total
    return end.result(total)


def _send_sums(channel: Channel, end: tally.Sender, bits: U8) -> None:
    for part in _pieces(len(bits), _BITS):
        masked, due = channel.receive(pb.AlignMasked).rows, tally.ROW_BYTES * (part.stop - part.start)
        if len(masked) != due:
            raise channel.misbehaved(WrongLength, f"sent {len(masked)} bytes where rows of {due} were due")
        corrections = end.answer(masked, bits[part])
        channel.send(pb.AlignSums(corrections=corrections, total=end.total if part.stop == len(bits) else 0))


def _pieces(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
