"""Tables for alignment by ``cached``, on disk: made ahead by the passive side, kept by the active side.

The passive side's folder::

    oprf.key      the key, hexadecimal, readable by its owner only; with it anybody can test IDs against the table
    table.bin     head (JSON), rows (12 bytes for each key, ascending), digests of their IDs, versions, rows gone, MAC
    pending.bin   evaluations of a preparation that has not ended, batch by batch, each with its MAC
    asked.json    how many questions were answered, in all and on the last day; in cardinality, of which key last

In cardinality a key serves one session: the next preparation makes a new one, and evaluates all.

A row's number is not kept: rows are found by digests of their IDs (salted with a hash of the key), so a table that only
changes its order or its features need not be prepared again, and an update evaluates new IDs alone. MACs are
under a key derived from the OPRF's: they find damage, and files of another key.

The active side keeps ``<fingerprint of the key>.bin``: the version, then the values.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
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
from fedlearn.crypto.draws import Draws
from fedlearn.errors import CannotWrite, NotPrepared, NullIds, OverBudget
from fedlearn.models.share import replace_file, sync_folder
from fedlearn.protocols.align_cached import HASH_BYTES, Kept, Prepared, Shelf, Values, version_of

Digests = NDArray[np.bytes_]  # dtype S16, or for K keys S(16·K)

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
    """table.bin: arrays in the order of the rows; see :class:`fedlearn.protocols.align_cached.Prepared`."""

    versions: tuple[bytes, ...]
    values: Values
    digests: Digests
    since: NDArray[np.uint32]
    removed: Values
    removed_in: NDArray[np.uint32]


def _nothing(keys: int) -> _Table:
    """No version."""
    rows, none = np.empty((0, keys), _VALUE), np.empty(0, np.uint32)
    return _Table((), _joined(rows), _joined(np.empty((0, keys), _DIGEST)), none, _joined(rows), none)


# --- the passive side --------------------------------------------------------------------------------


def prepare(folder: Path, ids: Any, contract: Contract, progress: Callable[[int, int], None]) -> Done:
    """Evaluate the table, or what is new in it; goes on where an earlier call was cut short.

    Args:
        folder: made if need be.
        ids: this side's normalised IDs, an Arrow array, distinct, without nulls; with several keys one for each, null
            where a row has not that key.
        contract: for whom, and how IDs are normalised.
        progress: told how many new IDs were evaluated, of how many.

    Raises:
        NotPrepared: what is in the folder is damaged, or is for another peer or other keys.
        NullIds: a row has no key at all.
        CannotWrite: another preparation is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sync_folder(folder.parent)
    with _locked(folder / "prepare.lock", wait=False):
        if _counts(contract):
            _renew(folder, contract)
        key = _own_key(folder)
        old = (
            _read_table(folder, key, contract)
            if (folder / "table.bin").exists()
            else _nothing(len(contract.align.keys))
        )
        columns = _columns(ids, contract)
        digests, keys = _digests(columns, key), len(columns)
        values, known = np.zeros(digests.shape, _VALUE), np.zeros(digests.shape, np.bool_)
        _fill(values, known, digests, _split(old.digests, keys), _split(old.values, keys))
        for batch_digests, batch_values in _pending(folder, key):
            _fill(values, known, digests, batch_digests[:, None], batch_values[:, None])
        missing = int(np.count_nonzero(~known & (digests != b"")))
        with (folder / "pending.bin").open("ab") as file:
            done = 0
            for k, column in enumerate(columns):
                rows = np.flatnonzero(~known[:, k] & (digests[:, k] != b""))
                for part in (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)):
                    items = dh_oprf.inputs(column.take(pa.array(part)).to_pylist())
                    values[part, k] = _evaluate(items, dh_oprf.derived(key, k), contract)
                    file.write(_sealed(digests[part, k], values[part, k], key))
                    file.flush()
                    os.fsync(file.fileno())
                    done += len(part)
                    progress(done, missing)
        new, gone = _next(old, values, digests)
        if new is not old:
            _write_table(folder, key, contract, new)
        (folder / "pending.bin").unlink()
        return Done(len(digests), missing, gone, new.versions[-1].hex(), dh_oprf.fingerprint(key).hex())


def load(folder: Path, ids: Any, contract: Contract) -> Prepared:
    """The table, prepared for exactly these rows.

    Args:
        folder: what :func:`prepare` was given.
        ids: normalised IDs of this side's rows, as there.
        contract: as above; its limits bound the questions that are answered.

    Raises:
        NotPrepared: there is none, it is damaged, rows came or went since, or (cardinality) it has served its session.
    """
    if not (folder / "table.bin").exists():
        raise NotPrepared(f"there is no prepared table in {folder}")
    key = _own_key(folder, make=False)
    table, columns = _read_table(folder, key, contract), _columns(ids, contract)
    place = _index(_joined(_digests(columns, key)), table.digests)
    found = place >= 0
    if not found.all() or len(place) != len(table.values):
        raise NotPrepared(
            f"{int((~found).sum())} of the {len(place)} rows are not in the table prepared in {folder}, "
            f"and {len(table.values) - int(found.sum())} of that table are not among the rows"
        )
    order = np.empty(len(place), np.int64)
    order[place] = np.arange(len(place))
    fingerprint, counts = dh_oprf.fingerprint(key), _counts(contract)

    def spend(count: int) -> None:
        _spend(folder, count, contract.align.queries, fingerprint.hex() if counts else "")

    keys, rest = tuple(dh_oprf.derived(key, k) for k in range(len(columns))), (table.removed, table.removed_in, order)
    if counts:
        _check_unspent(_asked(folder), fingerprint.hex(), folder)
        listed = _unlinked(_split(table.values, len(columns)), contract.align.pad_rows)
        return Prepared(keys, fingerprint, (version_of(listed),), listed, table.since, *rest, spend)
    return Prepared(keys, fingerprint, table.versions, table.values, table.since, *rest, spend)


def _counts(contract: Contract) -> bool:
    return contract.align.mode == "cardinality"


def _evaluate(items: list[bytes], key: bytes, contract: Contract) -> Values:
    """The values of some inputs: the RFC's, or in cardinality those by which answers can be looked up unnamed."""
    if _counts(contract):
        return np.frombuffer(dh_oprf.unnamed(ristretto.raise_points(dh_oprf.hashed(items), key)), _VALUE)
    return np.frombuffer(dh_oprf.evaluate(items, key), _VALUE)


def _unlinked(values: Values, length: int) -> Values:
    """Each column (n, K) filled up to ``length`` with random values and sorted for itself: S(12·K)."""
    rows, keys = values.shape
    filled = np.empty((max(length, rows), keys), _VALUE)
    filled[:rows], filled[rows:] = values, _random_values((len(filled) - rows, keys))
    filled.sort(axis=0)
    return _joined(filled)


def _random_values(shape: tuple[int, ...]) -> Values:
    return Draws().bytes(math.prod(shape) * dh_oprf.VALUE_BYTES).view(_VALUE).reshape(shape)


def _next(old: _Table, values: Values, digests: Digests) -> tuple[_Table, int]:
    """The table of these values and digests (n, K): a new version, or ``old`` where nothing changed; how many left."""
    names = _joined(digests)
    place = _index(names, old.digests)
    there = place >= 0
    values[digests == b""] = _random_values((int(np.count_nonzero(digests == b"")),))
    rows = _joined(values)
    rows[there] = old.values[place[there]]  # with their random values of before
    for column in np.sort(_split(rows, digests.shape[1]), axis=0).T:
        if (column[1:] == column[:-1]).any():
            raise NotPrepared("two IDs have the same value, which is next to impossible: prepare with a new key")
    order = np.argsort(rows)
    rows, names, place, there = rows[order], names[order], place[order], there[order]
    since = np.full(len(rows), len(old.versions), np.uint32)
    since[there] = old.since[place[there]]
    stays = np.zeros(len(old.values), np.bool_)
    stays[place[there]] = True
    gone = int(np.count_nonzero(~stays))
    if not gone and there.all() and old.versions:
        return old, 0
    removed = np.concatenate([old.removed, old.values[~stays]])
    removed_in = np.concatenate([old.removed_in, np.full(gone, len(old.versions), np.uint32)])
    return _Table((*old.versions, version_of(rows)), rows, names, since, removed, removed_in), gone


def _columns(ids: Any, contract: Contract) -> list[pa.LargeBinaryArray]:
    """Each key's column. Raises NullIds where a row has no key."""
    columns = [_binary(column) for column in (ids if contract.align.also else [ids])]
    if len(columns) != len(contract.align.keys) or len({len(column) for column in columns}) > 1:
        raise ValueError("the contract's keys need a column each, all of the same length")
    without = np.logical_and.reduce([column.is_null().to_numpy(zero_copy_only=False) for column in columns])
    if without.any():
        raise NullIds(f"{int(without.sum())} of the {len(without)} rows to be prepared have no ID")
    return columns


def _binary(ids: pa.Array) -> pa.LargeBinaryArray:
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return ids.cast(pa.large_string() if pa.types.is_string(ids.type) else ids.type).cast(pa.large_binary())


def _digests(columns: list[pa.LargeBinaryArray], key: bytes) -> Digests:
    """128 bits that stand for an ID of a column in this folder: S16 (n, K), zeros where there is none."""
    out = np.empty((len(columns[0]), len(columns)), _DIGEST)
    for k, column in enumerate(columns):
        words = oprf.digests(column.fill_null(b""), _derived(key, b"ids" + bytes([k] if k else []))[:16])
        out[:, k] = np.ascontiguousarray(words[:, :4]).view(_DIGEST).ravel()
        out[column.is_null().to_numpy(zero_copy_only=False), k] = b""
    return out


def _fill(
    values: Values, known: NDArray[np.bool_], digests: Digests, with_digests: Digests, with_values: Values
) -> None:
    """Fill in values (n, K) that are there already, from tables (m, K), or (m, 1) of any column."""
    for k in range(digests.shape[1]):
        other = min(k, with_digests.shape[1] - 1)
        place = _index(digests[:, k], with_digests[:, other])
        found = (place >= 0) & (digests[:, k] != b"")
        values[found, k] = with_values[place[found], other]
        known[found, k] = True


def _joined(fields: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Rows (n,) of the fields (n, K), in memory of their own."""
    return fields.copy(order="C").view(f"S{fields.itemsize * fields.shape[1]}").ravel()


def _split(rows: NDArray[np.bytes_], keys: int) -> NDArray[np.bytes_]:
    """Fields (n, K) of rows (n,)."""
    return rows.view(f"S{rows.itemsize // keys}").reshape(len(rows), keys)


def _index(digests: Digests, among: Digests) -> NDArray[np.int64]:
    """Where each digest stands among others, or -1."""
    found = pc.index_in(_arrow(digests), value_set=_arrow(among))
    return np.asarray(found.fill_null(-1).to_numpy(), np.int64)


def _arrow(digests: Digests) -> pa.FixedSizeBinaryArray:
    content = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.Array.from_buffers(pa.binary(digests.itemsize), len(digests), [None, content])


# --- the passive side's files ------------------------------------------------------------------------


def _own_key(folder: Path, make: bool = True) -> bytes:
    """The key in the folder; made, with a count of questions that begins at zero, where there is nothing yet."""
    path = folder / "oprf.key"
    if make and not path.exists() and not (folder / "table.bin").exists():
        replace_file(folder / "asked.json", json.dumps({"total": 0, "day": "", "that_day": 0, "served": ""}).encode())
        replace_file(path, ristretto.random_scalar().hex().encode())
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
    kinds = [[key.normalise, key.country, key.scheme] for key in contract.align.keys]
    return {"peer": contract.active.name, "keys": kinds, "counts": _counts(contract)}


def _renew(folder: Path, contract: Contract) -> None:
    """Begin anew where the key has served its session; the count of questions goes on."""
    if not (folder / "oprf.key").exists():
        return
    key = _own_key(folder, make=False)
    if (folder / "table.bin").exists():
        _read_table(folder, key, contract)  # which raises where it is not of this contract
    if _asked(folder)["served"] != dh_oprf.fingerprint(key).hex():
        return
    for name in ("table.bin", "pending.bin"):
        (folder / name).unlink(missing_ok=True)
    replace_file(folder / "oprf.key", ristretto.random_scalar().hex().encode())


def _check_unspent(asked: dict[str, Any], key: str, folder: Path) -> None:
    if asked["served"] == key:
        raise NotPrepared(f"the table prepared in {folder} has served the one session that cardinality allows it")


def _write_table(folder: Path, key: bytes, contract: Contract, table: _Table) -> None:
    head = {
        "format": 2,
        "for": _made_for(contract),
        "versions": [version.hex() for version in table.versions],
        "rows": len(table.values),
        "removed": len(table.removed),
    }
    body = json.dumps(head).encode()
    arrays = (table.values, table.digests, table.since, table.removed, table.removed_in)
    whole = b"".join([len(body).to_bytes(8, "little"), body, *(array.tobytes() for array in arrays)])
    replace_file(folder / "table.bin", whole, _mac(key, whole))


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
    if head["format"] != 2 or head["for"] != _made_for(contract):
        raise NotPrepared(
            f"the table {path} was prepared for {head['for']}, the contract is with {_made_for(contract)}: "
            f"give each its own [output] folder"
        )
    arrays, keys = [], len(contract.align.keys)
    value, digest = f"S{keys * dh_oprf.VALUE_BYTES}", f"S{keys * 16}"
    for kind, count in zip((value, digest, "u4", value, "u4"), 3 * [head["rows"]] + 2 * [head["removed"]], strict=True):
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


def _asked(folder: Path) -> dict[str, Any]:
    """The count of questions. Raises NotPrepared where it is damaged."""
    try:
        asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
        return {
            "total": int(asked["total"]),
            "day": str(asked["day"]),
            "that_day": int(asked["that_day"]),
            "served": str(asked["served"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotPrepared(f"the count of questions {folder / 'asked.json'} is damaged: {error!r}") from None


def _spend(folder: Path, count: int, limits: Queries, serves: str) -> None:
    """Count questions; what was counted stays counted, answered or not.

    Args:
        folder: of the count.
        count: how many are about to be answered.
        limits: of the contract.
        serves: fingerprint of a key that serves one session only, else empty.

    Raises:
        OverBudget: more than the contract allows on a day or in all.
        NotPrepared: the count is damaged, or the key has served.
    """
    with _locked(folder / "asked.lock", wait=True):
        asked, today = _asked(folder), datetime.now(UTC).date().isoformat()
        if serves:
            _check_unspent(asked, serves, folder)
        that_day = count + (asked["that_day"] if asked["day"] == today else 0)
        total = count + asked["total"]
        for sum_of, most, name in ((that_day, limits.day, "day"), (total, limits.total, "total")):
            if sum_of > most:
                raise OverBudget(
                    f"{count} more questions of the prepared table make {sum_of}; the contract's align.queries.{name} "
                    f"is {most}"
                )
        now = {"total": total, "day": today, "that_day": that_day, "served": serves or asked["served"]}
        replace_file(folder / "asked.json", json.dumps(now).encode())


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    import fcntl  # not on Windows, where only this method is missing then

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CannotWrite(f"another preparation is at work in {path.parent}") from None
        yield


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
        replace_file(folder / f"{key.hex()}.bin", kept.version, kept.values.tobytes())

    return Shelf(load, save)
