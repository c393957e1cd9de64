"""Private set intersection with a table prepared ahead, for one large and one small side.

One of the ways of :mod:`fedlearn.protocols.align`.

The passive side holds a key k of long life and the table T of F_k(y), one row for each of its rows, evaluated before
anybody connects (:mod:`fedlearn.crypto.dh_oprf`). The active side keeps T, downloaded once and later brought up to
date, and has its own few IDs evaluated online, x a fresh scalar::

    passive -> active    AlignTable     fingerprint of k, version of T (a hash of it)
    active  -> passive   AlignKept      the version that it kept under this key, if any
    passive              counts the questions against the contract's limits
    passive -> active    AlignUpdate    rows that came and went since; all of T where it kept none
    for each key column:
    active  -> passive   AlignBlinded   H(a)^x, in an order drawn by the active side
    passive -> active    AlignDoubled   H(a)^(xk), in the same order

The active side takes x off, has F_k(a), and looks it up. T is sorted: the place of a row in it is pseudorandom, and
serves as the passive side's shuffled order. So the active side learns what ``mutual`` and ``one-sided`` say, for the
IDs it asked about. The passive side learns how many were asked, and how old the table is that the active side kept.

What the kept table enables: without answers, nothing, since T is pseudorandom without k; one-more Diffie-Hellman bounds
even a deviating active side to one look-up an answer, and answers are counted, in all sessions together. With an answer
had, the ID can be looked up in every later version of T under the same key. T's order does not change from session to
session, so the active side can tell which row of one session is which of another, also for rows it cannot name.

**Several keys.** Each column has a scalar of its own, derived from k, and a row of T has one value for each column; a
random one where it has not that ID. Each row of the active side's list asks for every key (for an ID of nobody where it
has none), so all that shows is their product, which is what the limits count. Of a row found by one key the active side
sees where its other values stand, which are random to it; of a row whose value changed in one column only, between two
versions, it sees that.

**Counting** (``cardinality``). Here a key serves one session. The passive side answers in an order of its own, and T
has hashes of H(y)^k alone, each column sorted for itself, so the active side finds how many of the answers are in T and
cannot tell whose they are: it is the protocol of :mod:`fedlearn.protocols.align_ecdh` with the passive side's list
raised ahead. A second session under the same key would show which answers recur, and lists that differ in one ID would
name it; so T is spent before it is sent, whatever becomes of the session, and ``prepare`` makes the next from a new
key. T may be padded with random values.

A deviating passive side can answer with another key than T's (there is no proof of the key), or put IDs into T that it
does not have: the result is wrong, or in ``mutual`` and ``cardinality`` tells it of those IDs. From the questions it
learns nothing, decisional Diffie-Hellman given. In ``cardinality`` a deviating active side can send related points so
as to find its own again, as in ``align_ecdh``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.contract import Contract
from fedlearn.crypto import dh_oprf, ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BeyondContract, Malformed, OverBudget, WrongLength
from fedlearn.protocols import align_ecdh
from fedlearn.protocols.align_ot import Found
from fedlearn.v1 import align_pb2 as pb

Rows = NDArray[np.int64]
Values = NDArray[np.bytes_]  # dtype S12, or for K keys S(12·K): rows of a table, ascending
Done = Callable[[int], None]

HASH_BYTES = 16
_KIND = f"S{dh_oprf.VALUE_BYTES}"


@dataclass(frozen=True)
class Prepared:
    """What the passive side prepared.

    Attributes:
        keys: for each key column its scalar; secret.
        fingerprint: 16 bytes that stand for the key they are derived from.
        versions: hashes of all versions of the table, the last is the current one.
        values: S(12·K) (n,), ascending and distinct: the table.
        since: uint32 (n,), the first version that has the value for good, counted from 0.
        removed: S(12·K) (m,), rows that some version had and a later one has not.
        removed_in: uint32 (m,), the last version that lost it.
        order: int64 (n,), this side's row for each of the table; in ``cardinality``, of its length only.
        spend: counts questions before they are answered; raises OverBudget, and in ``cardinality`` NotPrepared.
    """

    keys: tuple[bytes, ...]
    fingerprint: bytes
    versions: tuple[bytes, ...]
    values: Values
    since: NDArray[np.uint32]
    removed: Values
    removed_in: NDArray[np.uint32]
    order: Rows
    spend: Callable[[int], None]


@dataclass(frozen=True)
class Kept:
    """A version of the passive side's table, as the active side keeps it: values of 12 bytes, row by row."""

    version: bytes
    values: Values


@dataclass(frozen=True)
class Shelf:
    """Where the active side keeps tables, by fingerprint of the key."""

    load: Callable[[bytes], Kept | None]
    save: Callable[[bytes, Kept], None]


#: Keeps nothing: the table is sent in every session.
NO_SHELF = Shelf(lambda _: None, lambda *_: None)


def as_values(content: bytes, keys: int = 1) -> Values:
    """Rows of a table, S(12·keys) (n,), of as many bytes."""
    return np.frombuffer(content, f"S{keys * dh_oprf.VALUE_BYTES}")


def version_of(values: Values) -> bytes:
    """The hash of a table."""
    content = np.ascontiguousarray(values).view(np.uint8)
    return hashlib.blake2b(content.data, digest_size=HASH_BYTES).digest()


def find(
    channel: Channel, keys: Sequence[pa.Array], lengths: tuple[int, int], contract: Contract, shelf: Shelf, done: Done
) -> tuple[list[Found], bytes]:
    """The active side.

    Args:
        channel: where AlignOpen was exchanged.
        keys: for each key column binary (n,), without nulls or duplicates.
        lengths: of the active side's list, padding included, and of the table.
        contract: its limits, and whether to count only.
        shelf: where tables are kept.
        done: told how many IDs were worked on since the last call.

    Returns:
        For each key what was found, of which in ``cardinality`` only the number means something; the fingerprint of
        the table's key.

    Raises:
        OverBudget: more questions than the contract allows in a session.
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    asked, most = len(keys) * lengths[0], contract.align.queries.session
    if asked > most:
        raise OverBudget(f"there are {asked} IDs to ask for; the contract's align.queries.session is {most}")
    counting = contract.align.mode == "cardinality"
    table = channel.receive(pb.AlignTable)
    if len(table.key) != HASH_BYTES or len(table.version) != HASH_BYTES:
        raise channel.misbehaved(WrongLength, f"sent a key or version that has not {HASH_BYTES} bytes")
    values = _up_to_date(channel, table, lengths[1], len(keys), NO_SHELF if counting else shelf).values
    columns, found = values.view(_KIND).reshape(len(values), len(keys)), []
    for k, ids in enumerate(keys):
        own, order, said = _ask(channel, ids, lengths[0], table.version, counting, done)
        mine, positions = _look_up(own, columns[:, k], ascending=counting or k == 0)
        if len(np.unique(positions)) < len(mine) or len(np.unique(own)) < len(own):
            raise channel.misbehaved(Malformed, "sent answers that make two IDs one")
        found.append(Found(said, order[mine], positions))
    return found, table.key


def _ask(
    channel: Channel, ids: pa.Array, length: int, version: bytes, counting: bool, done: Done
) -> tuple[Values, Rows, bytes]:
    """Have one key's IDs evaluated, filled up to ``length``: values, of which IDs (int64), and what was said."""
    secret, order = ristretto.random_scalar(), Draws().permutation(length)
    listed = dh_oprf.inputs([*ids.to_pylist(), *align_ecdh.nobody(length - len(ids))])
    items = [listed[i] for i in order]
    blinded = ristretto.raise_points(dh_oprf.hashed(items), secret)
    channel.send(pb.AlignBlinded(points=blinded))
    done(length)
    doubled = align_ecdh.receive(channel, pb.AlignDoubled, length, known=blinded)
    points = align_ecdh.raise_theirs(channel, doubled, ristretto.invert(secret), done)
    own = as_values(dh_oprf.unnamed(points) if counting else dh_oprf.finalise(items, points))
    return own, order, _said(version, blinded, doubled)


def offer(
    channel: Channel, prepared: Prepared, lengths: tuple[int, int], contract: Contract, done: Done
) -> list[bytes]:
    """The passive side.

    Args:
        channel: where AlignOpen was exchanged.
        prepared: the table and its keys.
        lengths: as announced by the active side, and of the table.
        contract: its limits, and whether to count only.
        done: as for :func:`find`.

    Returns:
        For each key a hash of the session's lists, the same on both sides.

    Raises:
        OverBudget: the limits over several sessions are exhausted.
        NotPrepared: ``cardinality``, and the table is spent.
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    asked, most = len(prepared.keys) * lengths[0], contract.align.queries.session
    if asked > most:
        raise channel.misbehaved(BeyondContract, f"asks for {asked} IDs where the contract allows {most} in a session")
    counting = contract.align.mode == "cardinality"
    version = prepared.versions[-1]
    channel.send(pb.AlignTable(key=prepared.fingerprint, version=version))
    kept = channel.receive(pb.AlignKept).version
    if len(kept) not in (0, HASH_BYTES):
        raise channel.misbehaved(WrongLength, f"sent a version of {len(kept)} bytes")
    prepared.spend(asked)
    channel.send(_update(prepared, b"" if counting else kept))
    return [_answer(channel, key, lengths[0], version, counting, done) for key in prepared.keys]


def _answer(channel: Channel, key: bytes, length: int, version: bytes, counting: bool, done: Done) -> bytes:
    """Answer for one key; if counting, in an order that the active side does not know."""
    blinded = align_ecdh.receive(channel, pb.AlignBlinded, length, known=b"")
    doubled = align_ecdh.raise_theirs(channel, blinded, key, done)
    if counting:
        doubled = align_ecdh.shuffled(doubled)
    channel.send(pb.AlignDoubled(points=doubled))
    return _said(version, blinded, doubled)


def _update(prepared: Prepared, kept: bytes) -> pb.AlignUpdate:
    """What to send to a side that kept this version."""
    if kept not in prepared.versions:
        return pb.AlignUpdate(whole=True, added=prepared.values.tobytes())
    known = prepared.versions.index(kept)
    added = prepared.values[prepared.since > known]
    removed = prepared.removed[prepared.removed_in > known]
    return pb.AlignUpdate(added=added.tobytes(), removed=removed.tobytes())


def _up_to_date(channel: Channel, table: pb.AlignTable, length: int, keys: int, shelf: Shelf) -> Kept:
    """The table as it is now, of what was kept and what changed; kept in its turn."""
    width = keys * dh_oprf.VALUE_BYTES
    kept = shelf.load(table.key)
    kept = Kept(kept.version, kept.values.view(f"S{width}")) if kept and not kept.values.nbytes % width else None
    channel.send(pb.AlignKept(version=kept.version if kept else b""))
    update = channel.receive(pb.AlignUpdate)
    if len(update.added) % width or len(update.removed) % width:
        raise channel.misbehaved(WrongLength, "sent a piece of a row")
    if kept and kept.version == table.version and not (update.added or update.removed or update.whole):
        if len(kept.values) != length:
            raise channel.misbehaved(WrongLength, f"has a table of {len(kept.values)} rows where it said {length}")
        return kept
    before = kept.values if kept and not update.whole else np.empty(0, f"S{width}")
    added, removed = as_values(update.added, keys), as_values(update.removed, keys)
    values = np.concatenate([before[~np.isin(before, removed)] if len(removed) else before, added])
    if len(before):
        values.sort()
    if len(values) != length:
        raise channel.misbehaved(WrongLength, f"sent a table of {len(values)} rows where it said {length}")
    if (values[1:] <= values[:-1]).any() or version_of(values) != table.version:
        raise channel.misbehaved(Malformed, "sent a table that is not sorted, or not the version it announced")
    now = Kept(table.version, values)
    shelf.save(table.key, now)
    return now


def _look_up(own: Values, column: Values, ascending: bool = True) -> tuple[Rows, Rows]:
    """Indices of own values that are in a column of the table, and their places in it, ascending."""
    if ascending:
        places = np.minimum(np.searchsorted(column, own), len(column) - 1)
        mine = np.flatnonzero(column[places] == own)
        mine = mine[np.argsort(places[mine], kind="stable")]
        return mine, places[mine].astype(np.int64)
    found = pc.index_in(_arrow(column), value_set=_arrow(own)).fill_null(-1).to_numpy()
    positions = np.flatnonzero(found >= 0)
    return found[positions].astype(np.int64), positions


def _arrow(values: Values) -> pa.FixedSizeBinaryArray:
    content = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.binary(dh_oprf.VALUE_BYTES), len(values), [None, content])


def _said(version: bytes, blinded: bytes, doubled: bytes) -> bytes:
    parts = (hashlib.sha256(part).digest() for part in (version, blinded, doubled))
    return hashlib.sha256(b"fedlearn/1 align prepared" + b"".join(parts)).digest()
