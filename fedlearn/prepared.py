"""Tables for alignment by ``cached``, on disk: made ahead by the passive side, kept by the active side.

The passive side's folder::

    oprf.key      the key, hexadecimal, readable by its owner only; with it anybody can test IDs against the table
    table.bin     head (JSON), values (12 bytes each, ascending), digests of their IDs, versions, values removed, MAC
    pending.bin   evaluations of a preparation that has not ended, batch by batch, each with its MAC
    asked.json    how many questions were answered, in all and on the last day

A row's number is not kept: rows are found by digests of their IDs (salted with a hash of the key), so a table that only
changes its order or its features need not be prepared again, and an update evaluates new IDs alone. MACs are
under a key derived from the OPRF's: they find damage, and files of another key.

The active side keeps ``<fingerprint of the key>.bin``: the version, then the values.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedlearn.contract import Contract, Queries
from fedlearn.crypto import dh_oprf, oprf, ristretto
from fedlearn.errors import CannotWrite, NotPrepared, OverBudget
from fedlearn.protocols.align_cached import HASH_BYTES, Kept, Prepared, Shelf, Values, version_of

Digests = NDArray[np.bytes_]  # dtype S16

_BATCH = 8192  # IDs between two writes
_MAC = 32
_VALUE, _DIGEST = f"S{dh_oprf.VALUE_BYTES}", "S16"
_RECORD = dh_oprf.VALUE_BYTES + 16


@dataclass(frozen=True)
class Done:
    """What a preparation did.

    Attributes:
        rows: IDs in the table.
        evaluated: of these, how many were evaluated now; the others were there.
        removed: IDs that left the table.
        version: hash of the table, hexadecimal.
        key: fingerprint of the key, hexadecimal.
    """

    rows: int
    evaluated: int
    removed: int
    version: str
    key: str


@dataclass(frozen=True)
class _Table:
    """table.bin: arrays in the order of the values; see :class:`fedlearn.protocols.align_cached.Prepared`."""

    versions: tuple[bytes, ...]
    values: Values
    digests: Digests
    since: NDArray[np.uint32]
    removed: Values
    removed_in: NDArray[np.uint32]


_NOTHING = _Table(
    (),
    np.empty(0, _VALUE),
    np.empty(0, _DIGEST),
    np.empty(0, np.uint32),
    np.empty(0, _VALUE),
    np.empty(0, np.uint32),
)


# --- the passive side --------------------------------------------------------------------------------


def prepare(folder: Path, ids: pa.Array, contract: Contract, progress: Callable[[int, int], None]) -> Done:
    """Evaluate the table, or what is new in it; goes on where an earlier call was cut short.

    Args:
        folder: made if need be.
        ids: this side's normalised IDs, distinct, without nulls.
        contract: for whom, and how IDs are normalised.
        progress: told how many new IDs were evaluated, of how many.

    Raises:
        NotPrepared: what is in the folder is damaged, or is for another peer or normalisation.
        CannotWrite: another preparation is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder / "prepare.lock", wait=False):
        key = _own_key(folder)
        old = _read_table(folder, key, contract) if (folder / "table.bin").exists() else _NOTHING
        ids = _binary(ids)
        digests = _digests(ids, key)
        values = np.zeros(len(ids), _VALUE)
        known = _fill(values, digests, np.zeros(len(ids), np.bool_), old.digests, old.values)
        before = int(known.sum())
        for batch_digests, batch_values in _pending(folder, key):
            known = _fill(values, digests, known, batch_digests, batch_values)
        missing = np.flatnonzero(~known)
        with (folder / "pending.bin").open("ab") as file:
            for start in range(0, len(missing), _BATCH):
                rows = missing[start : start + _BATCH]
                items = dh_oprf.inputs(ids.take(pa.array(rows)).to_pylist())
                values[rows] = np.frombuffer(dh_oprf.evaluate(items, key), _VALUE)
                file.write(_sealed(digests[rows], values[rows], key))
                file.flush()
                os.fsync(file.fileno())
                progress(start + len(rows), len(missing))
        new = _next(old, values, digests)
        if new is not old:
            _write_table(folder, key, contract, new)
        (folder / "pending.bin").unlink()
        gone = len(old.values) - before
        return Done(len(ids), len(missing), gone, new.versions[-1].hex(), dh_oprf.fingerprint(key).hex())


def load(folder: Path, ids: pa.Array, contract: Contract) -> Prepared:
    """The table, prepared for exactly these rows.

    Args:
        folder: what :func:`prepare` was given.
        ids: normalised IDs of this side's rows.
        contract: as above; its limits bound the questions that are answered.

    Raises:
        NotPrepared: there is none, it is damaged, or rows came or went since.
    """
    if not (folder / "table.bin").exists():
        raise NotPrepared(f"there is no prepared table in {folder}")
    key = _own_key(folder, make=False)
    table = _read_table(folder, key, contract)
    place = _index(_digests(_binary(ids), key), table.digests)
    found = place >= 0
    if not found.all() or len(place) != len(table.values):
        raise NotPrepared(
            f"{int((~found).sum())} of the {len(place)} rows are not in the table prepared in {folder}, "
            f"and {len(table.values) - int(found.sum())} of that table are not among the rows"
        )
    order = np.empty(len(place), np.int64)
    order[place] = np.arange(len(place))

    def spend(count: int) -> None:
        _spend(folder, count, contract.align.queries)

    return Prepared(key, table.versions, table.values, table.since, table.removed, table.removed_in, order, spend)


def _next(old: _Table, values: Values, digests: Digests) -> _Table:
    """The table of these values: a new version, or ``old`` where nothing changed."""
    order = np.argsort(values)
    values, digests = values[order], digests[order]
    if (values[1:] == values[:-1]).any():
        raise NotPrepared("two IDs have the same value, which is next to impossible: prepare with a new key")
    place = _index(digests, old.digests)
    since = np.full(len(values), len(old.versions), np.uint32)
    since[place >= 0] = old.since[place[place >= 0]]
    stays = np.zeros(len(old.values), np.bool_)
    stays[place[place >= 0]] = True
    if stays.all() and (place >= 0).all() and old.versions:
        return old
    removed = np.concatenate([old.removed, old.values[~stays]])
    lost = np.full(int((~stays).sum()), len(old.versions), np.uint32)
    removed_in = np.concatenate([old.removed_in, lost])
    return _Table((*old.versions, version_of(values)), values, digests, since, removed, removed_in)


def _binary(ids: pa.Array) -> pa.LargeBinaryArray:
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return ids.cast(pa.large_string() if pa.types.is_string(ids.type) else ids.type).cast(pa.large_binary())


def _digests(ids: pa.LargeBinaryArray, key: bytes) -> Digests:
    """128 bits that stand for an ID in this folder."""
    words = oprf.digests(ids, _derived(key, b"ids")[:16])
    return np.ascontiguousarray(words[:, :4]).view(_DIGEST).ravel()


def _fill(
    values: Values, digests: Digests, known: NDArray[np.bool_], with_digests: Digests, with_values: Values
) -> NDArray[np.bool_]:
    """Fill in values that are there already; returns which are known by now."""
    place = _index(digests, with_digests)
    found = place >= 0
    values[found] = with_values[place[found]]
    return known | found


def _index(digests: Digests, among: Digests) -> NDArray[np.int64]:
    """Where each digest stands among others, or -1."""
    found = pc.index_in(_arrow(digests), value_set=_arrow(among))
    return np.asarray(found.fill_null(-1).to_numpy(), np.int64)


def _arrow(digests: Digests) -> pa.FixedSizeBinaryArray:
    return pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(np.ascontiguousarray(digests))])


# --- the passive side's files ------------------------------------------------------------------------


def _own_key(folder: Path, make: bool = True) -> bytes:
    """The key in the folder; made, with a count of questions that begins at zero, where there is nothing yet."""
    path = folder / "oprf.key"
    if make and not path.exists() and not (folder / "table.bin").exists():
        _replace(folder / "asked.json", json.dumps({"total": 0, "day": "", "that_day": 0}).encode())
        _replace(path, ristretto.random_scalar().hex().encode())
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
        ristretto.invert(key)
    except OSError as error:
        raise NotPrepared(f"the key of the prepared table cannot be read: {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise NotPrepared(f"the key of the prepared table is damaged: {path}") from None
    return key


def _derived(key: bytes, use: bytes) -> bytes:
    return hashlib.sha256(b"fedlearn/1 prepared " + use + b"\0" + key).digest()


def _mac(key: bytes, content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=_MAC, key=_derived(key, b"mac")).digest()


def _made_for(contract: Contract) -> dict[str, Any]:
    key = contract.align.key
    return {"peer": contract.active.name, "normalise": key.normalise, "country": key.country, "scheme": key.scheme}


def _write_table(folder: Path, key: bytes, contract: Contract, table: _Table) -> None:
    head = {
        "format": 1,
        "for": _made_for(contract),
        "versions": [version.hex() for version in table.versions],
        "rows": len(table.values),
        "removed": len(table.removed),
    }
    body = json.dumps(head).encode()
    arrays = (table.values, table.digests, table.since, table.removed, table.removed_in)
    whole = b"".join([len(body).to_bytes(8, "little"), body, *(array.tobytes() for array in arrays)])
    _replace(folder / "table.bin", whole, _mac(key, whole))


def _read_table(folder: Path, key: bytes, contract: Contract) -> _Table:
    """The table, mapped into memory."""
    path = folder / "table.bin"
    try:
        whole = np.memmap(path, np.uint8, "r")
        if not hmac.compare_digest(_mac(key, whole[:-_MAC].data), whole[-_MAC:].tobytes()):
            raise NotPrepared(f"the prepared table {path} is damaged, or of another key than the one beside it")
        start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        head = json.loads(whole[8:start].tobytes())
    except (OSError, ValueError) as error:
        raise NotPrepared(f"the prepared table {path} cannot be read: {error}") from None
    if head["for"] != _made_for(contract):
        raise NotPrepared(
            f"the table {path} was prepared for {head['for']}, the contract is with {_made_for(contract)}: "
            f"give each its own [output] folder"
        )
    arrays = []
    for kind, count in zip(
        (_VALUE, _DIGEST, "u4", _VALUE, "u4"), 3 * [head["rows"]] + 2 * [head["removed"]], strict=True
    ):
        size = np.dtype(kind).itemsize * count
        arrays.append(whole[start : start + size].view(kind))
        start += size
    return _Table(tuple(bytes.fromhex(version) for version in head["versions"]), *arrays)


def _sealed(digests: Digests, values: Values, key: bytes) -> bytes:
    """One batch of pending.bin."""
    body = len(digests).to_bytes(8, "little") + digests.tobytes() + values.tobytes()
    return body + _mac(key, body)


def _pending(folder: Path, key: bytes) -> Iterator[tuple[Digests, Values]]:
    """The batches of a preparation that did not end; what follows the last whole one is cut off."""
    path = folder / "pending.bin"
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        end = 0
        while len(head := file.read(8)) == 8:
            count = int.from_bytes(head, "little")
            body = head + file.read(min(count, _BATCH) * _RECORD)
            if count > _BATCH or not hmac.compare_digest(_mac(key, body), file.read(_MAC)):
                break
            end = file.tell()
            split = 8 + 16 * count
            yield np.frombuffer(body[8:split], _DIGEST), np.frombuffer(body[split:], _VALUE)
        file.truncate(end)


def _spend(folder: Path, count: int, limits: Queries) -> None:
    """Count questions; what was counted stays counted, answered or not.

    Raises:
        OverBudget: more than the contract allows on a day or in all.
        NotPrepared: the count is damaged.
    """
    with _locked(folder / "asked.lock", wait=True):
        try:
            asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
            today = datetime.now(UTC).date().isoformat()
            that_day = count + (int(asked["that_day"]) if asked["day"] == today else 0)
            total = count + int(asked["total"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotPrepared(f"the count of questions {folder / 'asked.json'} is damaged: {error!r}") from None
        for sum_of, most, name in ((that_day, limits.day, "day"), (total, limits.total, "total")):
            if sum_of > most:
                raise OverBudget(
                    f"{count} more questions of the prepared table make {sum_of}; the contract's align.queries.{name} "
                    f"is {most}"
                )
        content = json.dumps({"total": total, "day": today, "that_day": that_day}).encode()
        _replace(folder / "asked.json", content)


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    import fcntl  # not on Windows, where only this method is missing then

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CannotWrite(f"another preparation is at work in {path.parent}") from None
        yield


def _replace(path: Path, *parts: bytes) -> None:
    """Write a file, readable by its owner only, so that it is there whole or not at all, even after a power failure."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# --- the active side ---------------------------------------------------------------------------------


def shelf(folder: Path) -> Shelf:
    """Keeps tables as files in ``folder``; a file that is damaged is as good as none."""

    def load(key: bytes) -> Kept | None:
        try:
            whole = np.memmap(folder / f"{key.hex()}.bin", np.uint8, "r")
            kept = Kept(whole[:HASH_BYTES].tobytes(), whole[HASH_BYTES:].view(_VALUE))
        except (OSError, ValueError):
            return None
        return kept if version_of(kept.values) == kept.version else None

    def save(key: bytes, kept: Kept) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / f"{key.hex()}.bin", kept.version, kept.values.tobytes())

    return Shelf(load, save)
