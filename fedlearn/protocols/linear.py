"""Batch scoring with a pair of linear shares: aligned rows in, scores on the active side out.

    passive                                                active
      0.                                             ◄──   ScoreFrom   which pieces of the batch it has already
      1. LinearScores   its partial score of every row,
         and its reasons where the contract has any  ──►   adds its own part and the offset
      2.                                             ◄──   LinearDone

Step 0 is that of :mod:`fedlearn.protocols.score`: a large batch is many pieces, each with steps 1 and 2.

The active side learns the passive side's partial score of every aligned row and, with a scorecard, the contract's codes
of the passive columns that cost the row most, with the points. The passive side learns nothing beyond the alignment,
and how many pieces the active side has from an attempt before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table, nothing
from fedlearn.errors import Malformed, WrongLength
from fedlearn.v1 import linear_pb2 as pb

F64 = NDArray[np.float64]

TABLE = Table(
    "linear",
    ("active", "passive"),
    (
        Message(
            pb.LinearScores,
            "passive",
            (START, "LinearScores"),
            Reveals(
                "the partial score of every row; and the reason codes that cost it most, with points, if agreed",
                lambda m: len(m.values) // 8 + len(m.reasons),
            ),
        ),
        Message(pb.LinearDone, "active", ("LinearScores",), nothing("an acknowledgement")),
    ),
)

_PIECE_ROWS = 1 << 20


@dataclass(frozen=True)
class Reasons:
    """The codes that cost each row most, the dearest first: uint8 (n, k), 255 for none; and points float32 (n, k)."""

    code: NDArray[np.uint8]
    lost: NDArray[np.float32]


def score_active(channel: Channel, universe: int, reasons: int, codes: int) -> tuple[F64, Reasons]:
    """Receive the partial scores.

    Args:
        channel: after handshake and alignment.
        universe: rows n of the piece, or of the whole shared order.
        reasons: reason codes due for each row.
        codes: how many codes there are.

    Returns:
        float64 (n,) in that order, and the reasons.

    Raises:
        WrongLength, Malformed: the peer's scores do not fit the alignment or the contract.
    """
    channel.open(TABLE, "active")
    scores = np.empty(universe)
    found = Reasons(np.empty((universe, reasons), np.uint8), np.empty((universe, reasons), np.float32))
    filled = 0
    while filled < universe:
        piece = channel.receive(pb.LinearScores)
        due = min(_PIECE_ROWS, universe - filled)
        lengths = (len(piece.values), len(piece.reasons), len(piece.lost))
        if piece.first != filled or lengths != (8 * due, reasons * due, 4 * reasons * due):
            raise channel.misbehaved(
                WrongLength, f"sent {lengths[0]} bytes of scores from row {piece.first} where {due} rows were due"
            )
        part = slice(filled, filled + due)
        scores[part] = np.frombuffer(piece.values, "<f8")
        found.code[part] = np.frombuffer(piece.reasons, np.uint8).reshape(due, reasons)
        found.lost[part] = np.frombuffer(piece.lost, "<f4").reshape(due, reasons)
        filled += due
        channel.progress(filled, universe, "rows")
    strange = (found.code >= codes) & (found.code != 255)
    if not np.isfinite(scores).all() or not np.isfinite(found.lost).all() or strange.any():
        raise channel.misbehaved(Malformed, "sent scores that are not numbers, or reasons that the contract has not")
    channel.send(pb.LinearDone())
    return scores, found


def score_passive(channel: Channel, scores: F64, reasons: Reasons) -> None:
    """Serve one piece: scores float64 (n,) and reasons of its aligned rows, in the shared order."""
    channel.open(TABLE, "passive")
    for first in range(0, len(scores), _PIECE_ROWS):
        part = slice(first, first + _PIECE_ROWS)
        channel.send(
            pb.LinearScores(
                first=first,
                values=scores[part].astype("<f8").tobytes(),
                reasons=reasons.code[part].tobytes(),
                lost=reasons.lost[part].astype("<f4").tobytes(),
            )
        )
        channel.progress(min(first + _PIECE_ROWS, len(scores)), len(scores), "rows")
    channel.receive(pb.LinearDone)
