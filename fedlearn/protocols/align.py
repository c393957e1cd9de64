"""Alignment: which rows of the two tables belong to the same ID, by private set intersection.

Both sides exchange AlignOpen: the length of their list, and the alignment they have on file; equal ids: done, reuse it.
Otherwise one of two protocols runs, with the same outcome; by default (method ``auto``) ``ecdh`` for lists that have
fewer than :data:`FEW` IDs together, ``ot`` for longer ones.

============= =============================================== ================================================
mode          the active side learns                          the passive side learns
============= =============================================== ================================================
mutual        len(B), which of its IDs are shared             len(A), which of its IDs are shared
one-sided     len(B), which of its IDs are shared, and their  len(A)
              positions in the passive side's shuffled list
cardinality   len(B), how many are shared                     len(A), how many are shared
============= =============================================== ================================================

With ``pad_rows``, lists are filled up to that length with IDs of nobody, and the lengths above are that; but in
``one-sided`` len(B) is what the parties go on to train on, and is not padded.

**ecdh**: the intersection of Meadows (1986) and of Huberman, Franklin and Hogg (1999), commutative encryption of hashed
IDs, on ristretto255. H hashes an ID to the group under a tag that holds the contract's hash, so points of two contracts
cannot be linked. x and y are fresh scalars of this session. A = {H(a)^x} and B = {H(b)^y} are the blinded lists of the
active and the passive side, each in an order drawn by its owner; A^y, B^x are the same lists raised again::

    active  -> passive   AlignBlinded   A
    passive -> active    AlignBlinded   B
                                        mutual                one-sided          cardinality
    active  -> passive   AlignDoubled   B^x, in B's order     -                  -
    passive -> active    AlignDoubled   A^y, in A's order     A^y, in A's order  A^y, shuffled
    active  -> passive   AlignCount     -                     -                  how many matched

``mutual``: both know A^y and B^x; the common order is that of the doubled points, the same on both sides and
pseudorandom. ``one-sided`` and ``cardinality``: the active side takes x off again, (A^y)^(1/x) = {H(a)^y}, and looks
these up in B.

A blinded list tells nothing more under the decisional Diffie-Hellman assumption, H being a random oracle; in the
one-sided and cardinality modes the one-more variant bounds the active side to len(A) look-ups, hence the contract's
``budget.rows``.

What a deviating party could do: bring IDs that it does not have (up to ``budget.rows``); stop after it has learned the
result and before the other has (in ``mutual`` the passive side, in ``cardinality`` the active side); feign a result, by
a wrong count, or in ``mutual`` by doubled points that were just received as the answer; in ``cardinality``, send
related points so as to find its own again in the shuffled answer. If nothing is shared in ``one-sided``, the active
side ends the session and that, one bit, shows.

**ot**: see :mod:`fedlearn.protocols.align_ot`. In ``mutual`` the common order is the passive side's shuffled one.

The lists travel one after another, never both ways at once, so that two large lists cannot block each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract
from fedlearn.crypto import ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.errors import (
    BeyondContract,
    DuplicateIds,
    EmptyTable,
    InvalidPoint,
    Malformed,
    NoOverlap,
    NullIds,
    OverBudget,
    WrongLength,
)
from fedlearn.protocols import align_ot
from fedlearn.v1 import align_pb2 as pb

Rows = npt.NDArray[np.int64]
Ids: TypeAlias = "Sequence[bytes] | pa.StringArray"

#: IDs of both sides together below which ``auto`` takes ``ecdh``: where both take as long.
FEW = 5000

_ID_BYTES = 16
_BATCH = 8192  # points between two reports of progress
_DST = b"fedlearn-V01-align-ristretto255_XMD:SHA-512_R255MAP_RO_"


def _points(message: pb.AlignDoubled) -> int:
    return len(message.points) // ristretto.POINT_BYTES


def _rows(message: pb.AlignValues) -> int:
    return message.rows


def _table(learned: Reveals) -> Table:
    return Table(
        "align",
        ("active", "passive"),
        (
            Message(
                pb.AlignOpen,
                BOTH,
                (START, "AlignOpen"),
                Reveals("how many rows the sender has; which alignment is on file"),
            ),
            Message(
                pb.AlignBlinded,
                BOTH,
                ("AlignOpen", "AlignBlinded"),
                nothing("hashed IDs under a fresh key, in random order; decisional Diffie-Hellman"),
            ),
            Message(pb.AlignDoubled, BOTH, ("AlignBlinded", "AlignDoubled"), learned),
            Message(pb.AlignCount, "active", ("AlignDoubled",), Reveals("how many IDs both sides have")),
            Message(pb.AlignBases, "passive", ("AlignOpen",), nothing("uniform points, whatever they hide")),
            Message(
                pb.AlignRaised,
                "active",
                ("AlignBases",),
                nothing("Diffie-Hellman values that give one of two random seeds each"),
            ),
            Message(
                pb.AlignMasked,
                "active",
                ("AlignRaised", "AlignMasked"),
                nothing("code words under streams of which the receiver has one of each pair"),
            ),
            Message(
                pb.AlignValues,
                "passive",
                ("AlignMasked", "AlignValues"),
                Reveals("for each row of the sender's shuffled order, whether it is one of the receiver's IDs", _rows),
            ),
            Message(
                pb.AlignFound,
                "active",
                ("AlignValues",),
                Reveals("for each of the receiver's IDs, whether the sender has it", lambda m: 8 * len(m.bits)),
            ),
        ),
    )


#: The message table by mode: the same messages, of which the doubled points tell the receiver different things.
TABLES = {
    "mutual": _table(Reveals("for each of the receiver's IDs, whether the sender has it", _points)),
    "one-sided": _table(
        Reveals("for each of the receiver's IDs, whether the sender has it and where in its shuffled order", _points)
    ),
    "cardinality": _table(Reveals("how many IDs both sides have")),
}
TABLE = TABLES["mutual"]


@dataclass(frozen=True)
class Alignment:
    """One side's result. Both sides hold the same ``id`` and ``size``; ``rows`` is private to its side.

    Attributes:
        id: 16 bytes, the same on both sides, different for every run.
        mode: the contract's ``align.mode``.
        size: positions in the common order; in ``cardinality``, how many IDs are shared.
        shared: how many IDs are shared; None where this side may not know (the passive side in ``one-sided``).
        rows: int64 of shape (size,), this side's row at each position of the common order; -1 where it has none
            (the active side in ``one-sided``). Shape (0,) in ``cardinality``.
    """

    id: bytes
    mode: str
    size: int
    shared: int | None
    rows: Rows


def align_active(channel: Channel, ids: Ids, contract: Contract, on_file: Alignment | None = None) -> Alignment:
    """The side with the labels; see the top of this file.

    Args:
        channel: a channel that has been greeted over.
        ids: this side's IDs, normalised, without nulls or duplicates; row i has ``ids[i]``.
        contract: gives the mode and the number of rows allowed.
        on_file: an earlier result for these very rows, reused if the peer has its counterpart.

    Returns:
        The alignment.

    Raises:
        EmptyTable, NullIds, DuplicateIds, OverBudget: this side's IDs cannot be aligned.
        NoOverlap: nothing is shared (not in ``cardinality``, where that is an answer).
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    mode = contract.align.mode
    with channel.phase("align"):
        own = _own_ids(ids, contract)
        channel.open(TABLES[mode], "active")
        peer_rows, reused = _open(channel, len(own), contract, "active", on_file)
        if reused is not None:
            return reused
        lengths = _length(len(own), contract, "active"), peer_rows
        if _method(contract, lengths) == "ot":
            return _active_by_ot(channel, own, contract, lengths)
        return _active_by_ecdh(channel, own, contract, lengths)


def align_passive(channel: Channel, ids: Ids, contract: Contract, on_file: Alignment | None = None) -> Alignment:
    """The side without labels; see the top of this file.

    Args:
        channel: a channel that has been greeted over.
        ids: this side's IDs, normalised, without nulls or duplicates; row i has ``ids[i]``.
        contract: gives the mode and the number of rows allowed.
        on_file: an earlier result for these very rows, reused if the peer has its counterpart.

    Returns:
        The alignment.

    Raises:
        EmptyTable, NullIds, DuplicateIds, OverBudget: this side's IDs cannot be aligned.
        NoOverlap: nothing is shared (``mutual`` only: otherwise this side does not know, or it is an answer).
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    mode = contract.align.mode
    with channel.phase("align"):
        own = _own_ids(ids, contract)
        channel.open(TABLES[mode], "passive")
        peer_rows, reused = _open(channel, len(own), contract, "passive", on_file)
        if reused is not None:
            return reused
        lengths = peer_rows, _length(len(own), contract, "passive")
        if _method(contract, lengths) == "ot":
            return _passive_by_ot(channel, own, contract, lengths)
        return _passive_by_ecdh(channel, own, contract, lengths)


# --- by Diffie-Hellman -------------------------------------------------------------------------------


def _active_by_ecdh(channel: Channel, ids: pa.Array, contract: Contract, lengths: tuple[int, int]) -> Alignment:
    mode, (length, peer_rows) = contract.align.mode, lengths
    report = _Progress(channel, length + (peer_rows if mode == "mutual" else length))
    key, order, blinded = _blind_list(ids, length, contract, report)
    channel.send(pb.AlignBlinded(points=blinded))
    theirs = _receive(channel, pb.AlignBlinded, peer_rows, known=blinded)

    if mode == "mutual":
        theirs_doubled = _raise(channel, theirs, key, report)
        channel.send(pb.AlignDoubled(points=theirs_doubled))
        own_doubled = _receive(channel, pb.AlignDoubled, length, known=blinded)
        _check_valid(channel, own_doubled)
        run_id = _identify(channel, contract, blinded, theirs, theirs_doubled, own_doubled)
        return _mutual(channel, run_id, order, own_doubled, theirs_doubled)

    doubled = _receive(channel, pb.AlignDoubled, length, known=blinded)
    unblinded = _raise(channel, doubled, ristretto.invert(key), report)
    run_id = _identify(channel, contract, blinded, theirs, doubled)
    mine, positions = _matches(unblinded, theirs)
    if mode == "one-sided":
        return _one_sided(channel, run_id, order[mine], positions, peer_rows)
    channel.send(pb.AlignCount(shared=len(mine)))
    return Alignment(run_id, mode, len(mine), len(mine), _NO_ROWS)


def _passive_by_ecdh(channel: Channel, ids: pa.Array, contract: Contract, lengths: tuple[int, int]) -> Alignment:
    mode, (peer_rows, length) = contract.align.mode, lengths
    report = _Progress(channel, length + peer_rows)
    key, order, blinded = _blind_list(ids, length, contract, report)
    theirs = _receive(channel, pb.AlignBlinded, peer_rows, known=blinded)
    channel.send(pb.AlignBlinded(points=blinded))
    theirs_doubled = _raise(channel, theirs, key, report)

    if mode == "mutual":
        own_doubled = _receive(channel, pb.AlignDoubled, length, known=blinded)
        _check_valid(channel, own_doubled)
        channel.send(pb.AlignDoubled(points=theirs_doubled))
        run_id = _identify(channel, contract, theirs, blinded, own_doubled, theirs_doubled)
        return _mutual(channel, run_id, order, own_doubled, theirs_doubled)

    if mode == "cardinality":  # its own order, or the active side would know which ones matched
        theirs_doubled = np.frombuffer(theirs_doubled, f"V{ristretto.POINT_BYTES}")[_shuffled(peer_rows)].tobytes()
    channel.send(pb.AlignDoubled(points=theirs_doubled))
    run_id = _identify(channel, contract, theirs, blinded, theirs_doubled)
    if mode == "one-sided":
        return Alignment(run_id, mode, length, None, order)
    shared = channel.receive(pb.AlignCount).shared
    if shared > min(lengths):
        raise channel.misbehaved(Malformed, f"counted {shared} shared IDs of {min(lengths)} at most")
    return Alignment(run_id, mode, shared, shared, _NO_ROWS)


# --- by oblivious transfer ---------------------------------------------------------------------------


def _active_by_ot(channel: Channel, ids: pa.Array, contract: Contract, lengths: tuple[int, int]) -> Alignment:
    mode = contract.align.mode
    report = _Progress(channel, sum(lengths))
    found = align_ot.find(channel, ids, lengths, _tag(channel, contract), report.add)
    run_id = _identify(channel, contract, found.said)
    if mode == "one-sided":
        return _one_sided(channel, run_id, found.mine, found.positions, lengths[1])
    align_ot.tell(channel, found.positions, lengths[1])
    if not len(found.mine):
        raise _no_overlap(channel)
    return Alignment(run_id, mode, len(found.mine), len(found.mine), found.mine)


def _passive_by_ot(channel: Channel, ids: pa.Array, contract: Contract, lengths: tuple[int, int]) -> Alignment:
    mode = contract.align.mode
    report = _Progress(channel, sum(lengths))
    said, order = align_ot.offer(channel, ids, lengths, _tag(channel, contract), report.add)
    run_id = _identify(channel, contract, said)
    if mode == "one-sided":
        return Alignment(run_id, mode, lengths[1], None, order)
    rows = order[align_ot.hear(channel, len(ids), lengths, order)]
    if not len(rows):
        raise _no_overlap(channel)
    return Alignment(run_id, mode, len(rows), len(rows), rows)


# --- steps that both roles share -------------------------------------------------------------------

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


def _own_ids(ids: Ids, contract: Contract) -> pa.Array:
    """This side's IDs as large_binary, checked before anything is sent."""
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        ids = pa.array(ids, pa.large_binary())
    if ids.null_count:
        raise NullIds(f"{ids.null_count} of the {len(ids)} rows to be aligned have no ID")
    most, setting = contract.budget.rows, "budget.rows"
    if contract.align.pad_rows:
        most, setting = contract.align.pad_rows, "align.pad_rows"
    if not len(ids):
        raise EmptyTable("there are no rows to align")
    if len(ids) > most:
        raise OverBudget(f"there are {len(ids)} rows to align; the contract's {setting} is {most}")
    repeats = len(ids) - int(pc.count_distinct(ids).as_py())
    if repeats:
        raise DuplicateIds(f"{repeats} of the {len(ids)} rows to be aligned repeat the ID of another row")
    ids = ids.cast(pa.large_string() if pa.types.is_string(ids.type) else ids.type).cast(pa.large_binary())
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _length(own_rows: int, contract: Contract, role: str) -> int:
    """Length of the list that this side brings, padding included."""
    padded = contract.align.pad_rows and not (role == "passive" and contract.align.mode == "one-sided")
    return contract.align.pad_rows if padded else own_rows


def _method(contract: Contract, lengths: tuple[int, int]) -> str:
    """The protocol to run, which both sides conclude from the contract and the lengths."""
    if contract.align.method != "auto":
        return contract.align.method
    return "ecdh" if contract.align.mode == "cardinality" or sum(lengths) < FEW else "ot"


def _tag(channel: Channel, contract: Contract) -> bytes:
    """Salt for digests of IDs: those of two sessions or contracts have nothing in common."""
    return hashlib.sha256(b"fedlearn/1 align ids" + channel.session + contract.hash()).digest()[:16]


def _open(
    channel: Channel, own_rows: int, contract: Contract, role: str, on_file: Alignment | None
) -> tuple[int, Alignment | None]:
    """Exchange AlignOpen. Returns the length of the peer's list, and the alignment on file if both have it."""
    if on_file is not None and not _fits(on_file, own_rows, contract):
        on_file = None
    own_id = on_file.id if on_file is not None else b""
    channel.send(pb.AlignOpen(alignment_id=own_id, rows=_length(own_rows, contract, role)))
    theirs = channel.receive(pb.AlignOpen)
    if theirs.rows > contract.budget.rows:
        raise channel.misbehaved(
            BeyondContract, f"brings {theirs.rows} rows where the contract allows {contract.budget.rows}"
        )
    if theirs.rows < 1:
        raise channel.misbehaved(Malformed, "brings no rows")
    if contract.align.pad_rows and _length(theirs.rows, contract, _other(role)) != theirs.rows:
        raise channel.misbehaved(
            BeyondContract, f"brings {theirs.rows} rows where the contract pads lists to {contract.align.pad_rows}"
        )
    if len(theirs.alignment_id) not in (0, _ID_BYTES):
        raise channel.misbehaved(Malformed, f"sent an alignment id of {len(theirs.alignment_id)} bytes")
    return theirs.rows, on_file if own_id and own_id == theirs.alignment_id else None


def _other(role: str) -> str:
    return "passive" if role == "active" else "active"


def _fits(on_file: Alignment, own_rows: int, contract: Contract) -> bool:
    """Whether an alignment on file can be one of a table with this many rows under this contract."""
    return (
        on_file.mode == contract.align.mode
        and len(on_file.id) == _ID_BYTES
        and int(on_file.rows.max(initial=-1)) < own_rows
    )


def _blind_list(ids: pa.Array, length: int, contract: Contract, report: _Progress) -> tuple[bytes, Rows, bytes]:
    """A fresh key, a fresh order of range(length), and the blinded list in it; what is beyond ``ids`` is random."""
    key, order = ristretto.random_scalar(), _shuffled(length)
    padding = Draws().bytes(32 * (length - len(ids))).tobytes()
    own = [*ids.to_pylist(), *(padding[i : i + 32] for i in range(0, len(padding), 32))]
    return key, order, _blind([own[i] for i in order], contract, key, report)


def _blind(ids: Sequence[bytes], contract: Contract, key: bytes, report: _Progress) -> bytes:
    """H(id)^key of each ID, in order."""
    dst = _DST + contract.hash()
    pieces = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        pieces.append(ristretto.raise_points(ristretto.hash_to_group(batch, dst), key))
        report.add(len(batch))
    return b"".join(pieces)


def _raise(channel: Channel, points: bytes, key: bytes, report: _Progress) -> bytes:
    """Each of the peer's points to the power ``key``, in order, which also finds those that are invalid."""
    step = _BATCH * ristretto.POINT_BYTES
    pieces = []
    for start in range(0, len(points), step):
        try:
            pieces.append(ristretto.raise_points(points[start : start + step], key))
        except ValueError:
            _check_valid(channel, points)
            raise
        report.add(len(pieces[-1]) // ristretto.POINT_BYTES)
    return b"".join(pieces)


def _check_valid(channel: Channel, points: bytes) -> None:
    invalid = ristretto.check_points(points)
    if invalid is not None:
        due = len(points) // ristretto.POINT_BYTES
        raise channel.misbehaved(InvalidPoint, f"sent point {invalid} of {due}, which is invalid or the identity")


def _receive(channel: Channel, kind: type[pb.AlignBlinded] | type[pb.AlignDoubled], due: int, *, known: bytes) -> bytes:
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


def _mutual(channel: Channel, run_id: bytes, order: Rows, own_doubled: bytes, theirs_doubled: bytes) -> Alignment:
    """The common order is that of the doubled points, which both sides have and neither can foresee."""
    mine, _ = _matches(own_doubled, theirs_doubled)
    if not len(mine):
        raise _no_overlap(channel)
    return Alignment(run_id, "mutual", len(mine), len(mine), order[mine])


def _one_sided(channel: Channel, run_id: bytes, mine: Rows, positions: Rows, length: int) -> Alignment:
    """The common order is the passive side's shuffled one; ``mine`` are the active side's rows at ``positions``."""
    if not len(mine):
        raise _no_overlap(channel)
    rows = np.full(length, -1, dtype=np.int64)
    rows[positions] = mine
    return Alignment(run_id, "one-sided", length, len(mine), rows)


def _matches(own: bytes, theirs: bytes) -> tuple[Rows, Rows]:
    """Indices into both lists of the points that are in both, in the order of the points' first 16 bytes."""
    found = pc.index_in(_listed(own), value_set=_listed(theirs))
    mine = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    words = np.frombuffer(own, np.uint64).reshape(-1, 4)[mine]
    mine = mine[np.lexsort((words[:, 1], words[:, 0]))]
    return mine, found.take(pa.array(mine)).to_numpy().astype(np.int64)


def _listed(points: bytes) -> pa.FixedSizeBinaryArray:
    count = len(points) // ristretto.POINT_BYTES
    return pa.Array.from_buffers(pa.binary(ristretto.POINT_BYTES), count, [None, pa.py_buffer(points)])


def _shuffled(count: int) -> Rows:
    """A secret random permutation of range(count)."""
    return Draws().permutation(count)


def _identify(channel: Channel, contract: Contract, *lists: bytes) -> bytes:
    """The alignment's id: both sides saw the same lists, in the order of the table, and so derive the same."""
    whole = hashlib.sha256(b"fedlearn/v1/align")
    for part in (channel.session, contract.hash(), *lists):
        whole.update(hashlib.sha256(part).digest())
    return whole.digest()[:_ID_BYTES]


def _no_overlap(channel: Channel) -> NoOverlap:
    return NoOverlap(f"not one ID is shared with {channel.peer!r}")


class _Progress:
    """Counts points worked on, and reports them."""

    def __init__(self, channel: Channel, total: int) -> None:
        self._channel = channel
        self._total = total
        self._done = 0

    def add(self, points: int) -> None:
        self._done += points
        self._channel.progress(self._done, self._total, "ids")
