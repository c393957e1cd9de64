"""Batch scoring with a pair of model shares: aligned rows in, scores on the active side out.

    passive                                             active
      0.                                          ◄──   ScoreFrom   which pieces of the batch it has already
      1. ScoreSides   for each split of its share,
         one bit per aligned row                  ──►   walks its trees: own splits by own bins, passive splits by bits
      2.                                          ◄──   ScoreDone

A large batch is many pieces, one after the other, each with steps 1 and 2.

The active side learns the side of every aligned row at every passive split of the model; the passive side learns
nothing beyond what the alignment told it, and how many pieces the active side has from an attempt before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table, nothing
from fedlearn.errors import Malformed, WrongLength
from fedlearn.kernels import trees as kernel
from fedlearn.kernels.threads import spread
from fedlearn.models.forest import Forest
from fedlearn.v1 import score_pb2 as pb

TABLE = Table(
    "score",
    ("active", "passive"),
    (
        Message(pb.ScoreFrom, "active", (START,), Reveals("how many pieces it has from before", lambda _: 1)),
        Message(
            pb.ScoreSides,
            "passive",
            (START, "ScoreSides"),
            Reveals(
                "for each passive split of the model, the side of every row (one bit each)",
                lambda m: len(m.bits) * m.rows,
            ),
        ),
        Message(pb.ScoreDone, "active", ("ScoreSides",), nothing("an acknowledgement")),
    ),
)

_PIECE_BYTES = 16 << 20


def begin_active(channel: Channel, done: int) -> None:
    """Tell from which piece of a batch to go on."""
    channel.open(TABLE, "active")
    channel.send(pb.ScoreFrom(pieces=done))


def begin_passive(channel: Channel, pieces: int) -> int:
    """From which of ``pieces`` pieces to go on. Raises Malformed when there are not so many."""
    channel.open(TABLE, "passive")
    done: int = channel.receive(pb.ScoreFrom).pieces
    if done > pieces:
        raise channel.misbehaved(Malformed, f"claims scores of {done} pieces of the batch, which has {pieces}")
    return done


def score_active(
    channel: Channel,
    forest: Forest,
    splits: int,
    bins: NDArray[np.uint8],
    position: NDArray[np.int64],
    universe: int,
) -> NDArray[np.float64]:
    """Margins of own rows.

    Args:
        channel: after handshake and alignment.
        forest: the active share's trees.
        splits: number of passive splits of the pair.
        bins: uint8 (F, m), own features of the rows to score.
        position: int64 (m,), their places in the shared order.
        universe: length n of the shared order.

    Returns:
        float64 (K, m).

    Raises:
        WrongLength, Malformed: the peer's sides do not fit the model or the alignment.
    """
    channel.open(TABLE, "active")
    width = -(-universe // 8)
    sides = np.zeros((splits, width), np.uint8)
    filled, begun = 0, False
    while filled < splits or not begun:
        message = channel.receive(pb.ScoreSides)
        begun = True
        if message.rows != universe or message.first != filled:
            raise channel.misbehaved(
                WrongLength,
                f"sent sides of {message.rows} rows from split {message.first}, "
                f"where {universe} rows from split {filled} were due",
            )
        if filled + len(message.bits) > splits or (splits and not message.bits):
            raise channel.misbehaved(Malformed, f"sent sides of {len(message.bits)} splits, {splits - filled} were due")
        for row in message.bits:
            if len(row) != width:
                raise channel.misbehaved(WrongLength, f"sent {len(row)} bytes of sides where {width} were due")
            sides[filled] = np.frombuffer(row, np.uint8)
            filled += 1
        channel.progress(filled, splits, "splits")
    margins = forest.margins(bins, sides, position)
    channel.send(pb.ScoreDone())
    return margins


def score_passive(
    channel: Channel, feature: NDArray[np.int64], masks: NDArray[np.uint8], bins: NDArray[np.uint8]
) -> None:
    """Serve one batch.

    Args:
        channel: after handshake and alignment.
        feature, masks: the passive share's splits, int64 (S,) and uint8 (S, 32).
        bins: uint8 (F, n), own features of the aligned rows, in the shared order.
    """
    channel.open(TABLE, "passive")
    samples = bins.shape[1]
    width = -(-samples // 8)
    step = max(1, _PIECE_BYTES // max(1, width))
    for first in range(0, max(1, len(feature)), step):
        part = range(first, min(first + step, len(feature)))
        sides = np.empty((len(part), width), np.uint8)

        def fill(s: int, first: int = first, sides: NDArray[np.uint8] = sides) -> None:
            kernel.side_bits(bins[feature[s]], masks[s], sides[s - first])

        spread(fill, part)
        channel.send(pb.ScoreSides(first=first, rows=samples, bits=[row.tobytes() for row in sides]))
        channel.progress(part.stop, len(feature), "splits")
    channel.receive(pb.ScoreDone)
