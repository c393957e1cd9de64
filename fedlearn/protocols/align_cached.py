"""Private set intersection with a table prepared ahead, for one large and one small side.

One of the ways of :mod:`fedlearn.protocols.align`.

The passive side holds a key k of long life and the table T = {F_k(y)} of its IDs, evaluated before anybody connects
(:mod:`fedlearn.crypto.dh_oprf`). The active side keeps T, downloaded once and brought up to date later, and has its own
few IDs evaluated online, x a fresh scalar::

    passive -> active    AlignTable     fingerprint of k, version of T (a hash of it)
    active  -> passive   AlignKept      the version that it kept under this key, if any
    passive -> active    AlignUpdate    values that came and went since; all of T where it kept none
    active  -> passive   AlignBlinded   H(a)^x, in an order drawn by the active side
    passive              counts the questions against the contract's limits, before it answers
    passive -> active    AlignDoubled   H(a)^(xk), in the same order

The active side takes x off, has F_k(a), and looks it up. T is sorted: the place of a value in it is pseudorandom, and
serves as the passive side's shuffled order. So the active side learns what ``mutual`` and ``one-sided`` say, for the
IDs it asked about. The passive side learns how many were asked, and how old the table is that the active side kept.
``cardinality`` is refused: the active side sees which of its IDs match.

What the kept table enables: without answers, nothing, since T is pseudorandom without k; one-more Diffie-Hellman bounds
even a deviating active side to one look-up an answer, and answers are counted, in all sessions together. With an answer
had, the ID can be looked up in every later version of T under the same key. T's order does not change from session to
session, so the active side can tell which row of one session is which of another, also for rows it cannot name.

A deviating passive side can answer with another key than T's (there is no proof of the key), or put IDs into T that it
does not have: the result is wrong, or in ``mutual`` tells it of those IDs. From the questions it learns nothing,
decisional Diffie-Hellman given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.crypto import dh_oprf, ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BeyondContract, Malformed, OverBudget, WrongLength
from fedlearn.protocols import align_ecdh
from fedlearn.protocols.align_ot import Found
from fedlearn.v1 import align_pb2 as pb

Rows = NDArray[np.int64]
Values = NDArray[np.bytes_]  # dtype S12, ascending
Done = Callable[[int], None]

HASH_BYTES = 16
_KIND = f"S{dh_oprf.VALUE_BYTES}"
NO_VALUES: Values = np.empty(0, _KIND)


@dataclass(frozen=True)
class Prepared:
    """What the passive side prepared.

    Attributes:
        key: the scalar k; secret.
        versions: hashes of all versions of the table, the last is the current one.
        values: S12 (n,), ascending and distinct: the table.
        since: uint32 (n,), the first version that has the value for good, counted from 0.
        removed: S12 (m,), values that some version had and a later one has not.
        removed_in: uint32 (m,), the last version that lost it.
        order: int64 (n,), this side's row for each value.
        spend: counts questions before they are answered; raises OverBudget.
    """

    key: bytes
    versions: tuple[bytes, ...]
    values: Values
    since: NDArray[np.uint32]
    removed: Values
    removed_in: NDArray[np.uint32]
    order: Rows
    spend: Callable[[int], None]


@dataclass(frozen=True)
class Kept:
    """A version of the passive side's table, as the active side keeps it: S12 (n,), ascending."""

    version: bytes
    values: Values


@dataclass(frozen=True)
class Shelf:
    """Where the active side keeps tables, by fingerprint of the key."""

    load: Callable[[bytes], Kept | None]
    save: Callable[[bytes, Kept], None]


#: Keeps nothing: the table is sent in every session.
NO_SHELF = Shelf(lambda _: None, lambda *_: None)


def as_values(content: bytes) -> Values:
    """S12 (n,) of as many times 12 bytes."""
    return np.frombuffer(content, _KIND)


def version_of(values: Values) -> bytes:
    """The hash of a table."""
    content = np.ascontiguousarray(values).view(np.uint8)
    return hashlib.blake2b(content.data, digest_size=HASH_BYTES).digest()


def find(channel: Channel, ids: pa.Array, lengths: tuple[int, int], most: int, shelf: Shelf, done: Done) -> Found:
    """The active side.

    Args:
        channel: where AlignOpen was exchanged.
        ids: binary (n,), without nulls or duplicates.
        lengths: of the active side's list and of the table.
        most: questions that the contract allows in a session.
        shelf: where tables are kept.
        done: told how many IDs were worked on since the last call.

    Raises:
        OverBudget: more IDs than ``most``.
        PeerMisbehaved: WrongLength, InvalidPoint or Malformed.
    """
    if len(ids) > most:
        raise OverBudget(f"there are {len(ids)} IDs to ask for; the contract's align.queries.session is {most}")
    table = channel.receive(pb.AlignTable)
    if len(table.key) != HASH_BYTES or len(table.version) != HASH_BYTES:
        raise channel.misbehaved(WrongLength, f"sent a key or version that has not {HASH_BYTES} bytes")
    kept = _up_to_date(channel, table, lengths[1], shelf)

    secret, order = ristretto.random_scalar(), Draws().permutation(len(ids))
    listed = dh_oprf.inputs(ids.to_pylist())
    items = [listed[i] for i in order]
    blinded = ristretto.raise_points(dh_oprf.hashed(items), secret)
    channel.send(pb.AlignBlinded(points=blinded))
    done(len(ids))
    doubled = align_ecdh.receive(channel, pb.AlignDoubled, len(ids), known=blinded)
    points = align_ecdh.raise_theirs(channel, doubled, ristretto.invert(secret), done)
    mine, positions = _look_up(as_values(dh_oprf.finalise(items, points)), kept.values)
    if len(positions) > 1 and (positions[1:] == positions[:-1]).any():
        raise channel.misbehaved(Malformed, "sent answers that make two IDs one")
    return Found(_said(table.version, blinded, doubled), order[mine], positions)


def offer(channel: Channel, prepared: Prepared, asked: int, most: int, done: Done) -> bytes:
    """The passive side.

    Args:
        channel: where AlignOpen was exchanged.
        prepared: the table and its key.
        asked: how many questions the active side announced.
        most: questions that the contract allows in a session.
        done: as for :func:`find`.

    Returns:
        A hash of the session's lists, the same on both sides.

    Raises:
        OverBudget: the limits over several sessions are exhausted.
        PeerMisbehaved: BeyondContract, WrongLength, InvalidPoint or Malformed.
    """
    if asked > most:
        raise channel.misbehaved(BeyondContract, f"asks for {asked} IDs where the contract allows {most} in a session")
    version = prepared.versions[-1]
    channel.send(pb.AlignTable(key=dh_oprf.fingerprint(prepared.key), version=version))
    kept = channel.receive(pb.AlignKept).version
    if len(kept) not in (0, HASH_BYTES):
        raise channel.misbehaved(WrongLength, f"sent a version of {len(kept)} bytes")
    channel.send(_update(prepared, kept))
    blinded = align_ecdh.receive(channel, pb.AlignBlinded, asked, known=b"")
    prepared.spend(asked)
    doubled = align_ecdh.raise_theirs(channel, blinded, prepared.key, done)
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


def _up_to_date(channel: Channel, table: pb.AlignTable, length: int, shelf: Shelf) -> Kept:
    """The table as it is now, of what was kept and what changed; kept in its turn."""
    kept = shelf.load(table.key)
    channel.send(pb.AlignKept(version=kept.version if kept else b""))
    update = channel.receive(pb.AlignUpdate)
    if len(update.added) % dh_oprf.VALUE_BYTES or len(update.removed) % dh_oprf.VALUE_BYTES:
        raise channel.misbehaved(WrongLength, "sent a piece of a value")
    if kept and kept.version == table.version and not (update.added or update.removed or update.whole):
        if len(kept.values) != length:
            raise channel.misbehaved(WrongLength, f"has a table of {len(kept.values)} values where it said {length}")
        return kept
    before = kept.values if kept and not update.whole else NO_VALUES
    added, removed = as_values(update.added), as_values(update.removed)
    values = np.concatenate([before[~np.isin(before, removed)] if len(removed) else before, added])
    if len(before):
        values.sort()
    if len(values) != length:
        raise channel.misbehaved(WrongLength, f"sent a table of {len(values)} values where it said {length}")
    if (values[1:] <= values[:-1]).any() or version_of(values) != table.version:
        raise channel.misbehaved(Malformed, "sent a table that is not sorted, or not the version it announced")
    now = Kept(table.version, values)
    shelf.save(table.key, now)
    return now


def _look_up(own: Values, table: Values) -> tuple[Rows, Rows]:
    """Indices of own values that are in the table, and their places in it, ascending."""
    places = np.minimum(np.searchsorted(table, own), len(table) - 1)
    mine = np.flatnonzero(table[places] == own)
    mine = mine[np.argsort(places[mine], kind="stable")]
    return mine, places[mine].astype(np.int64)


def _said(version: bytes, blinded: bytes, doubled: bytes) -> bytes:
    parts = (hashlib.sha256(part).digest() for part in (version, blinded, doubled))
    return hashlib.sha256(b"fedlearn/1 align prepared" + b"".join(parts)).digest()
