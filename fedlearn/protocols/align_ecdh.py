"""Private set intersection by Diffie-Hellman: the small, classical way (:mod:`fedlearn.protocols.align`).

Meadows (1986) and Huberman, Franklin and Hogg (1999): commutative encryption of hashed IDs, on ristretto255. H hashes
an ID to the group under a tag that holds the session and the contract's hash, so points of two sessions or contracts
cannot be linked. x and y are fresh scalars, A = {H(a)^x} and B = {H(b)^y} the blinded lists of the active and the
passive side, each in an order drawn by its owner; A^y is the first list raised again::

    active  -> passive   AlignBlinded   A
    passive -> active    AlignBlinded   B
    passive -> active    AlignDoubled   A^y, in A's order; shuffled in ``cardinality``

The active side takes x off again, (A^y)^(1/x) = {H(a)^y}, and looks these up in B. So it learns which of its IDs are
shared, and their places in the passive side's order; where A^y was shuffled, only how many.

A blinded list tells nothing more under the decisional Diffie-Hellman assumption, H being a random oracle; the one-more
variant bounds the active side, even a deviating one, to len(A) look-ups, hence the contract's ``budget.rows``.

What a deviating party could do: bring IDs that it does not have (up to ``budget.rows``); in ``cardinality``, send
related points so as to find its own again in the shuffled answer.

The lists travel one after another, never both ways at once, so that two large lists cannot block each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.channel import Channel
from fedlearn.crypto import ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.errors import InvalidPoint, Malformed, WrongLength
from fedlearn.protocols.align_ot import Found
from fedlearn.v1 import align_pb2 as pb

Rows = npt.NDArray[np.int64]
Done = Callable[[int], None]

_BATCH = 8192  # points between two reports of progress
_DST = b"fedlearn-V01-align-ristretto255_XMD:SHA-512_R255MAP_RO_"


def find(channel: Channel, ids: pa.Array, lengths: tuple[int, int], tag: bytes, done: Done) -> Found:
    """The active side.

    Args:
        channel: where AlignOpen was exchanged.
        ids: binary (n,), without nulls or duplicates.
        lengths: of the active and the passive side's list, padding included.
        tag: bytes that both sides have, for the hashing of IDs.
        done: told how many IDs were worked on since the last call.

    Raises:
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    key, order = ristretto.random_scalar(), Draws().permutation(lengths[0])
    padded = [*ids.to_pylist(), *nobody(lengths[0] - len(ids))]
    blinded = blind([padded[i] for i in order], tag, key, done)
    channel.send(pb.AlignBlinded(points=blinded))
    theirs = receive(channel, pb.AlignBlinded, lengths[1], known=blinded)
    _check_valid(channel, theirs)
    doubled = receive(channel, pb.AlignDoubled, lengths[0], known=blinded)
    mine, positions = _matches(raise_theirs(channel, doubled, ristretto.invert(key), done), theirs)
    return Found(_said(blinded, theirs, doubled), order[mine], positions)


def offer(
    channel: Channel, ids: pa.Array, rows: Rows, lengths: tuple[int, int], order: Rows, counting: bool, tag: bytes,
    done: Done,
) -> bytes:  # fmt: skip
    """The passive side; arguments as for :func:`find`, and these.

    Args:
        rows: int64 (n,), the rows that have these IDs; all others of the list take part with an ID of nobody.
        order: a permutation of range(``lengths[1]``): which row stands in each place of the list sent.
        counting: whether the active side is to learn only how many are shared.

    Returns:
        A hash of all lists, the same on both sides.

    Raises:
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    key = ristretto.random_scalar()
    padded = nobody(lengths[1])
    for row, one in zip(rows.tolist(), ids.to_pylist(), strict=True):
        padded[row] = one
    blinded = blind([padded[i] for i in order], tag, key, done)
    theirs = receive(channel, pb.AlignBlinded, lengths[0], known=blinded)
    channel.send(pb.AlignBlinded(points=blinded))
    doubled = raise_theirs(channel, theirs, key, done)
    if counting:  # its own order, or the active side would know which ones matched
        doubled = shuffled(doubled)
    channel.send(pb.AlignDoubled(points=doubled))
    return _said(theirs, blinded, doubled)


def blind(ids: Sequence[bytes], tag: bytes, key: bytes, done: Done) -> bytes:
    """H(id)^key of each ID, in order."""
    pieces = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        pieces.append(ristretto.raise_points(ristretto.hash_to_group(batch, _DST + tag), key))
        done(len(batch))
    return b"".join(pieces)


def shuffled(points: bytes) -> bytes:
    """The same points in a random order."""
    each = np.frombuffer(points, f"V{ristretto.POINT_BYTES}")
    return each[Draws().permutation(len(each))].tobytes()


def nobody(count: int) -> list[bytes]:
    """IDs that nobody has."""
    drawn = Draws().bytes(32 * count).tobytes()
    return [drawn[i : i + 32] for i in range(0, len(drawn), 32)]


def raise_theirs(channel: Channel, points: bytes, key: bytes, done: Done) -> bytes:
    """Each of the peer's points to the power ``key``, in order, which also finds those that are invalid."""
    step = _BATCH * ristretto.POINT_BYTES
    pieces = []
    for start in range(0, len(points), step):
        try:
            pieces.append(ristretto.raise_points(points[start : start + step], key))
        except ValueError:
            _check_valid(channel, points)
            raise
        done(len(pieces[-1]) // ristretto.POINT_BYTES)
    return b"".join(pieces)


def _check_valid(channel: Channel, points: bytes) -> None:
    invalid = ristretto.check_points(points)
    if invalid is not None:
        due = len(points) // ristretto.POINT_BYTES
        raise channel.misbehaved(InvalidPoint, f"sent point {invalid} of {due}, which is invalid or the identity")


def receive(channel: Channel, kind: type[pb.AlignBlinded] | type[pb.AlignDoubled], due: int, *, known: bytes) -> bytes:
    """Receive a list of points and check all but their validity, which raising them does.

    Args:
        channel: where from.
        kind: the message due.
        due: how many points must be in it.
        known: points that this side sent; an honest peer's fresh key never leads back to one of them.
    """
    points = channel.receive(kind).points
    if len(points) != due * ristretto.POINT_BYTES:
        raise channel.misbehaved(
            WrongLength, f"sent {len(points)} bytes where {due} points of {ristretto.POINT_BYTES} were due"
        )
    listed = _listed(points)
    distinct = pc.count_distinct(listed).as_py()
    if distinct < due:
        raise channel.misbehaved(Malformed, f"sent {due - distinct} points more than once")
    if pc.any(pc.is_in(listed, value_set=_listed(known))).as_py():
        raise channel.misbehaved(Malformed, "sent back points that it had received")
    return points


def _matches(own: bytes, theirs: bytes) -> tuple[Rows, Rows]:
    """Indices into both lists of the points that are in both; ascending in the second."""
    found = pc.index_in(_listed(own), value_set=_listed(theirs))
    mine = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    positions = found.take(pa.array(mine)).to_numpy().astype(np.int64)
    order = np.argsort(positions)
    return mine[order], positions[order]


def _listed(points: bytes) -> pa.FixedSizeBinaryArray:
    count = len(points) // ristretto.POINT_BYTES
    return pa.Array.from_buffers(pa.binary(ristretto.POINT_BYTES), count, [None, pa.py_buffer(points)])


def _said(*lists: bytes) -> bytes:
    whole = hashlib.sha256(b"fedlearn/1 align lists")
    for part in lists:
        whole.update(hashlib.sha256(part).digest())
    return whole.digest()
