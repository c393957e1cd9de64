"""Alignment: which rows of the two tables belong to the same ID, by private set intersection.

Both sides exchange AlignOpen: the length of their list, and the alignment they have on file; equal ids: done, reuse it.
Otherwise, for each key column of the contract in turn, one of two protocols finds which of the active side's IDs the
passive side has, and where in an order of its rows that it has drawn: :mod:`fedlearn.protocols.align_ecdh` or
:mod:`fedlearn.protocols.align_ot` (in ``cardinality`` :mod:`fedlearn.protocols.align_count`, which counts them unseen),
by default (method ``auto``) the first for lists that have fewer than :data:`FEW` IDs together. With method ``cached`` a
third, :mod:`fedlearn.protocols.align_cached`, asks a table prepared ahead. The passive side learns nothing from that::

    both                  AlignOpen     length of the list, id of the alignment on file
    for each key:         by ecdh, ot or cached, see there
    active  -> passive    AlignFound    mutual: which rows of the passive side's order are shared
    active  -> passive    AlignCount    cardinality: how many are, for each key

The common order is the passive side's drawn one: of the shared rows (``mutual``) or of all its rows (``one-sided``).

============= =============================================== ================================================
mode          the active side learns                          the passive side learns
============= =============================================== ================================================
mutual        len(B), which of its IDs are shared             len(A), which of its IDs are shared
one-sided     len(B), which of its IDs are shared, and their  len(A)
              positions in the passive side's shuffled list
cardinality   len(B), how many are shared                     len(A), how many are shared
============= =============================================== ================================================

With several keys the active side learns this of each key (in ``cardinality`` both do, and not how many rows match by
any): of a pair of rows, by which keys they match. All rows take
part for every key, also those matched before and those without that key (with an ID of nobody), so nothing else shows.
A row is matched by its first key that matches. Two keys that lead to different rows end the session.

With ``pad_rows``, lists are filled up to that length with IDs of nobody, and the lengths above are that; but in
``one-sided`` len(B) is what the parties go on to train on, and is not padded.

A deviating party can bring IDs that it does not have. A deviating active side can stop after it has learned the result
and before the other has, or feign a result. If nothing is shared in ``one-sided``, the active side ends the session and
that, one bit, shows. What else it could do depends on the protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract
from fedlearn.crypto import dh_oprf, oprf, ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.errors import (
    AmbiguousIds,
    BeyondContract,
    DuplicateIds,
    EmptyTable,
    Malformed,
    NoOverlap,
    NotPrepared,
    NullIds,
    OverBudget,
    WrongLength,
)
from fedlearn.protocols import align_cached, align_count, align_ecdh, align_ot
from fedlearn.v1 import align_pb2 as pb

Rows = npt.NDArray[np.int64]
Ids: TypeAlias = "Sequence[bytes] | pa.StringArray"

#: IDs of both sides together below which ``auto`` takes ``ecdh``: where both take as long.
FEW = 3000

_MOST_TO_COUNT = 12_000_000  # IDs of the active side for which oblivious transfer surely has bins enough

_ID_BYTES = 16


def _points(message: pb.AlignDoubled) -> int:
    return len(message.points) // ristretto.POINT_BYTES


def _values(message: pb.AlignUpdate) -> int:
    return (len(message.added) + len(message.removed)) // dh_oprf.VALUE_BYTES


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
                ("AlignOpen", "AlignBlinded", "AlignDoubled", "AlignUpdate"),
                nothing("hashed IDs under a fresh key, in random order; decisional Diffie-Hellman"),
            ),
            Message(pb.AlignDoubled, "passive", ("AlignBlinded",), learned),
            Message(
                pb.AlignCount,
                "active",
                ("AlignDoubled", "AlignSums", "AlignCount"),
                Reveals("how many IDs both sides have"),
            ),
            Message(
                pb.AlignBases,
                "passive",
                ("AlignOpen", "AlignValues", "AlignSums"),
                nothing("uniform points, whatever they hide"),
            ),
            Message(
                pb.AlignRaised,
                "active",
                ("AlignBases",),
                nothing("Diffie-Hellman values that give one of two random seeds each"),
            ),
            Message(
                pb.AlignMasked,
                "active",
                ("AlignRaised", "AlignMasked", "AlignHints", "AlignSums"),
                nothing("code words under streams of which the receiver has one of each pair"),
            ),
            Message(
                pb.AlignValues,
                "passive",
                ("AlignMasked", "AlignValues"),
                Reveals(
                    "for each row of the sender's shuffled order, whether it is one of the receiver's IDs",
                    lambda m: m.rows,
                ),
            ),
            Message(
                pb.AlignHints,
                "passive",
                ("AlignMasked", "AlignHints"),
                nothing("values that are uniform whatever IDs they are of; the length is that of the list"),
            ),
            Message(
                pb.AlignSums,
                "passive",
                ("AlignMasked",),
                Reveals("how many IDs both sides have, of which each piece is a random share"),
            ),
            Message(
                pb.AlignTable,
                "passive",
                ("AlignOpen",),
                Reveals("which key and version of its prepared table the sender has", lambda _: 2),
            ),
            Message(pb.AlignKept, "active", ("AlignTable",), Reveals("which version of that table the sender kept")),
            Message(
                pb.AlignUpdate,
                "passive",
                ("AlignKept",),
                Reveals(
                    "pseudorandom values, which tell of IDs that were answered before if they came or went", _values
                ),
            ),
            Message(
                pb.AlignFound,
                "active",
                ("AlignValues", "AlignDoubled"),
                Reveals("for each of the receiver's IDs, whether the sender has it", lambda m: 8 * len(m.bits)),
            ),
        ),
    )


_PLACES = Reveals("for each of the receiver's IDs, whether the sender has it and where in its shuffled order", _points)

#: The message table by mode: the same messages, of which the doubled points tell the receiver different things.
TABLES = {
    "mutual": _table(_PLACES),
    "one-sided": _table(_PLACES),
    "cardinality": _table(Reveals("how many IDs both sides have")),
}
TABLE = TABLES["mutual"]


@dataclass(frozen=True)
class Alignment:
    """One side's result. Both sides hold the same ``id`` and ``size``; ``rows`` is private to its side.

    Attributes:
        id: 16 bytes, the same on both sides, different for every run.
        mode: the contract's ``align.mode``.
        size: positions in the common order; in ``cardinality``, how many IDs are shared, of the key that has most.
        shared: how many IDs are shared; None where this side may not know (the passive side in ``one-sided``).
        by_key: how many rows each key of the contract matched that no key before it did, empty on the passive side;
            in ``cardinality`` how many it matches alone, on both sides.
        rows: int64 of shape (size,), this side's row at each position of the common order; -1 where it has none
            (the active side in ``one-sided``). Shape (0,) in ``cardinality``.
        table_key: with method ``cached``, fingerprint of the prepared table's key; else empty (keys live one session).
    """

    id: bytes
    mode: str
    size: int
    shared: int | None
    rows: Rows
    by_key: tuple[int, ...] = ()
    table_key: bytes = b""


@dataclass(frozen=True)
class _Key:
    """One key column: large_binary IDs (m,), distinct, and int64 (m,), the rows that have them."""

    ids: pa.Array
    rows: Rows


def align_active(
    channel: Channel,
    ids: Any,
    contract: Contract,
    on_file: Alignment | None = None,
    shelf: align_cached.Shelf = align_cached.NO_SHELF,
) -> Alignment:
    """The side with the labels; see the top of this file.

    Args:
        channel: a channel that has been greeted over.
        ids: this side's normalised IDs, without duplicates: row i has ``ids[i]``, of type Ids. If the contract has
            several keys, a sequence of Arrow arrays, one for each, null where a row has not that key.
        contract: gives the keys, the mode and the number of rows allowed.
        on_file: an earlier result for these very rows, reused if the peer has its counterpart.
        shelf: where the peer's prepared table is kept (method ``cached``).

    Returns:
        The alignment.

    Raises:
        EmptyTable, NullIds, DuplicateIds, OverBudget: this side's IDs cannot be aligned.
        AmbiguousIds: by two keys, a row of one side belongs to two of the other.
        NoOverlap: nothing is shared (not in ``cardinality``, where that is an answer).
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    mode = contract.align.mode
    with channel.phase("align"):
        keys, own_rows = _own_keys(ids, contract)
        channel.open(TABLES[mode], "active")
        peer_rows, reused = _open(channel, own_rows, contract, "active", on_file)
        if reused is not None:
            return reused
        lengths = length(own_rows, contract, "active"), peer_rows
        method = _method(contract, lengths)
        counting = mode == "cardinality"
        work = (2 if counting else 1) * lengths[0] + lengths[1] if method == "ot" else 2 * lengths[0]
        done = _Progress(channel, len(keys) * work).add

        tagged = [(key.ids, _tag(channel, contract, k)) for k, key in enumerate(keys)]
        if method == "ot" and counting:
            counted = [align_count.find(channel, ids, lengths, tag, done) for ids, tag in tagged]
            return _tell_counts(channel, contract, counted)
        table_key = b""
        if method == "cached":
            found, table_key = align_cached.find(channel, [key.ids for key in keys], lengths, contract, shelf, done)
        else:
            by = align_ot.find if method == "ot" else align_ecdh.find
            found = [by(channel, ids, lengths, tag, done) for ids, tag in tagged]
        if counting:
            counted = [(one.said, len(one.positions)) for one in found]
            return replace(_tell_counts(channel, contract, counted), table_key=table_key)
        run_id = _identify(channel, contract, [one.said for one in found])
        rows, by_key = _combine(channel, [(keys[k].rows[f.mine], f.positions) for k, f in enumerate(found)], peer_rows)
        positions = np.flatnonzero(rows >= 0)
        if mode == "mutual":
            channel.send(pb.AlignFound(bits=np.packbits(rows >= 0, bitorder="little").tobytes()))
        if not len(positions):
            raise _no_overlap(channel)
        if mode == "mutual":
            rows = rows[positions]
        return Alignment(run_id, mode, len(rows), len(positions), rows, by_key, table_key)


def align_passive(
    channel: Channel,
    ids: Any,
    contract: Contract,
    on_file: Alignment | None = None,
    prepared: align_cached.Prepared | None = None,
) -> Alignment:
    """The side without labels; see the top of this file.

    Args:
        channel: a channel that has been greeted over.
        ids: as for :func:`align_active`.
        contract: gives the keys, the mode and the number of rows allowed.
        on_file: an earlier result for these very rows, reused if the peer has its counterpart.
        prepared: the table made ahead of these very rows (method ``cached``).

    Returns:
        The alignment.

    Raises:
        EmptyTable, NullIds, DuplicateIds, OverBudget: this side's IDs cannot be aligned, or questions are used up.
        NotPrepared: method ``cached``, and there is no table.
        NoOverlap: nothing is shared (``mutual`` only: otherwise this side does not know, or it is an answer).
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    mode = contract.align.mode
    with channel.phase("align"):
        keys, own_rows = _own_keys(ids, contract)
        if contract.align.method == "cached" and (prepared is None or len(prepared.order) != own_rows):
            raise NotPrepared("the contract aligns by cached, and there is no prepared table of these rows")
        channel.open(TABLES[mode], "passive")
        peer_rows, reused = _open(channel, own_rows, contract, "passive", on_file)
        if reused is not None:
            return reused
        lengths = peer_rows, length(own_rows, contract, "passive")
        method = _method(contract, lengths)
        done = _Progress(channel, len(keys) * (lengths[0] if method == "cached" else sum(lengths))).add
        order = prepared.order if method == "cached" and prepared else Draws().permutation(lengths[1])
        said = []
        if method == "cached" and prepared:
            said = align_cached.offer(channel, prepared, lengths, contract, done)
        for k, key in enumerate(keys if method != "cached" else []):
            tag = _tag(channel, contract, k)
            if method == "ot" and mode == "cardinality":
                said.append(align_count.offer(channel, key.ids, key.rows, lengths, tag, done))
            elif method == "ot":
                said.append(align_ot.offer(channel, key.ids, key.rows, lengths, order, tag, done))
            else:
                counting = mode == "cardinality"
                said.append(align_ecdh.offer(channel, key.ids, key.rows, lengths, order, counting, tag, done))
        run_id = _identify(channel, contract, said)
        table_key = prepared.fingerprint if method == "cached" and prepared else b""
        if mode == "one-sided":
            return Alignment(run_id, mode, lengths[1], None, order, table_key=table_key)
        if mode == "mutual":
            rows = order[_hear(channel, own_rows, lengths, order)]
            if not len(rows):
                raise _no_overlap(channel)
            return Alignment(run_id, mode, len(rows), len(rows), rows, table_key=table_key)
        counts = [_hear_count(channel, min(lengths)) for _ in keys]
        return replace(_counts(run_id, counts), table_key=table_key)


# --- several keys ------------------------------------------------------------------------------------

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


def _combine(channel: Channel, found: list[tuple[Rows, Rows]], places: int) -> tuple[Rows, tuple[int, ...]]:
    """This side's row at each of the passive side's places.

    Args:
        channel: for the peer's name.
        found: for each key int64 (m,), own rows, and int64 (m,), the places of the same IDs.
        places: how many there are.

    Returns:
        int64 (places,), -1 for none; how many each key added.

    Raises:
        AmbiguousIds: two keys lead from one place to two rows, or from one row to two places.
    """
    rows, counts = np.full(places, -1, np.int64), []
    for mine, positions in found:
        new = rows[positions] < 0
        clash = ~new & (rows[positions] != mine)
        rows[positions[new]] = mine[new]
        matched = rows[rows >= 0]
        twice = len(matched) - int(np.count_nonzero(np.bincount(matched, minlength=1)))
        if clash.any() or twice:
            raise AmbiguousIds(
                f"{int(clash.sum()) + twice} row(s) belong by one key to one row of {channel.peer!r} and by another to "
                f"another, for instance this side's row {_example(mine, clash, matched) + 1}"
            )
        counts.append(int(new.sum()))
    return rows, tuple(counts)


def _example(mine: Rows, clash: npt.NDArray[np.bool_], matched: Rows) -> int:
    if clash.any():
        return int(mine[np.argmax(clash)])
    return int(np.argmax(np.bincount(matched) > 1))


def _tell_counts(channel: Channel, contract: Contract, counted: list[tuple[bytes, int]]) -> Alignment:
    """The active side's result in ``cardinality``: for each key, what was said, and how many IDs are shared."""
    counts = [count for _, count in counted]
    for count in counts:
        channel.send(pb.AlignCount(shared=count))
    return _counts(_identify(channel, contract, [said for said, _ in counted]), counts)


def _counts(run_id: bytes, counts: list[int]) -> Alignment:
    """The result in ``cardinality``: of so many IDs of each key."""
    return Alignment(run_id, "cardinality", max(counts), max(counts), _NO_ROWS, tuple(counts))


# --- steps that both roles share -------------------------------------------------------------------


def _own_keys(ids: Any, contract: Contract) -> tuple[list[_Key], int]:
    """This side's keys and number of rows, checked before anything is sent."""
    columns = list(ids) if contract.align.also else [ids]
    if len(columns) != len(contract.align.keys) or len({len(column) for column in columns}) > 1:
        raise ValueError("the contract's keys need a column each, all of the same length")
    rows, align = len(columns[0]), contract.align
    if not rows:
        raise EmptyTable("there are no rows to align")
    most, setting = (align.pad_rows, "align.pad_rows") if align.pad_rows else (contract.budget.rows, "budget.rows")
    if rows > most:
        raise OverBudget(f"there are {rows} rows to align; the contract's {setting} is {most}")
    return [_own_key(column, several=bool(align.also)) for column in columns], rows


def _own_key(ids: Ids, several: bool) -> _Key:
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        ids = pa.array(ids, pa.large_binary())
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    ids = ids.cast(pa.large_string() if pa.types.is_string(ids.type) else ids.type).cast(pa.large_binary())
    count, rows = len(ids), np.arange(len(ids))
    if ids.null_count and not several:
        raise NullIds(f"{ids.null_count} of the {count} rows to be aligned have no ID")
    if ids.null_count:
        rows = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        ids = ids.drop_null()
    repeats = _repeats(ids)
    if repeats:
        raise DuplicateIds(f"{repeats} of the {count} rows to be aligned repeat the ID of another row")
    return _Key(ids, rows)


def _repeats(ids: pa.Array) -> int:
    """How many IDs occurred before; exact, but decided by 64-bit digests where nothing repeats, which is faster."""
    words = np.sort(np.ascontiguousarray(oprf.digests(ids, bytes(16))[:, :2]).view(np.uint64).ravel())
    if not (words[1:] == words[:-1]).any():
        return 0
    return len(ids) - int(pc.count_distinct(ids).as_py())


def length(own_rows: int, contract: Contract, role: str) -> int:
    """Length of the list that a side of so many rows brings, padding included."""
    padded = contract.align.pad_rows and not (role == "passive" and contract.align.mode == "one-sided")
    return contract.align.pad_rows if padded else own_rows


def _method(contract: Contract, lengths: tuple[int, int]) -> str:
    """The protocol to run, which both sides conclude from the contract and the lengths."""
    if contract.align.method != "auto":
        return contract.align.method
    many = contract.align.mode == "cardinality" and lengths[0] > _MOST_TO_COUNT
    return "ecdh" if sum(lengths) < FEW or many else "ot"


def _tag(channel: Channel, contract: Contract, key: int) -> bytes:
    """Salt for digests of IDs: those of two sessions, contracts or keys have nothing in common."""
    return hashlib.sha256(b"fedlearn/1 align ids" + bytes([key]) + contract.hash() + channel.session).digest()[:16]


def _open(
    channel: Channel, own_rows: int, contract: Contract, role: str, on_file: Alignment | None
) -> tuple[int, Alignment | None]:
    """Exchange AlignOpen. Returns the length of the peer's list, and the alignment on file if both have it."""
    if on_file is not None and not _fits(on_file, own_rows, contract):
        on_file = None
    own_id = on_file.id if on_file is not None else b""
    channel.send(pb.AlignOpen(alignment_id=own_id, rows=length(own_rows, contract, role)))
    theirs = channel.receive(pb.AlignOpen)
    if theirs.rows > contract.budget.rows:
        raise channel.misbehaved(
            BeyondContract, f"brings {theirs.rows} rows where the contract allows {contract.budget.rows}"
        )
    if theirs.rows < 1:
        raise channel.misbehaved(Malformed, "brings no rows")
    if contract.align.pad_rows and length(theirs.rows, contract, _other(role)) != theirs.rows:
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


def _hear(channel: Channel, own: int, lengths: tuple[int, int], order: Rows) -> Rows:
    """AlignFound, at the passive side.

    Args:
        channel: where from.
        own: how many rows it has; from there on ``order`` holds padding.
        lengths: of both lists.
        order: int64, which row stands in each place.

    Returns:
        int64 (m,), ascending: the places of shared rows.
    """
    bits = channel.receive(pb.AlignFound).bits
    if len(bits) != -(-len(order) // 8):
        raise channel.misbehaved(WrongLength, f"sent {len(bits)} bytes where bits of {len(order)} rows were due")
    found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    places = np.flatnonzero(found)
    if found[len(order) :].any() or len(places) > lengths[0] or (order[places] >= own).any():
        raise channel.misbehaved(Malformed, "named rows as shared that cannot be")
    return places


def _hear_count(channel: Channel, most: int) -> int:
    """AlignCount, at the passive side."""
    shared = channel.receive(pb.AlignCount).shared
    if shared > most:
        raise channel.misbehaved(Malformed, f"counted {shared} shared IDs of {most} at most")
    return int(shared)


def _identify(channel: Channel, contract: Contract, said: list[bytes]) -> bytes:
    """The alignment's id: both sides saw the same messages and so derive the same."""
    return hashlib.sha256(b"".join([b"fedlearn/v1/align", contract.hash(), *said, channel.session])).digest()[
        :_ID_BYTES
    ]


def _no_overlap(channel: Channel) -> NoOverlap:
    return NoOverlap(f"not one ID is shared with {channel.peer!r}")


class _Progress:
    """Counts IDs worked on, and reports them."""

    def __init__(self, channel: Channel, total: int) -> None:
        self._channel = channel
        self._total = total
        self._done = 0

    def add(self, ids: int) -> None:
        self._done += ids
        self._channel.progress(self._done, self._total, "ids")
