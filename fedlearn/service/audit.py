"""An append-only log in which every entry names the hash of the one before it (JSON lines).

An entry is hashed as canonical JSON without its own ``hash``. Once a second, if there is anything new, a ``seal`` signs
the hash reached with the party's key, so that who can write the file but has not the key cannot make up a log. What was
cut off the end since the last copy of a hash elsewhere does not show in the file itself: keep the hashes that
``fedlearn audit verify`` prints.

What remains: entries after the last seal, of about the last second before a service was killed, are taken over when it
starts again, and true ones cannot be told from made-up ones. They are counted, though: the ``open`` entry says how many
there were (``unsealed``), and :func:`verify` shows where. After an orderly end there are none, and after a kill about a
second's worth; more than that was made up.

Entries are with the operating system before the answer they are about is sent, and on disk within a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedlearn.errors import BadAudit, FedlearnError, FileMissing, OutputExists
from fedlearn.keys import is_signed, sign

_SIGNED = b"fedlearn/1 audit\n"
_FIRST = "0" * 64
_TAIL = 1 << 16  # bytes that are read from the end at first
_FARTHEST = 1 << 25  # bytes at most, in search of the last seal: many more than SEAL_EVERY entries take
_SYNC_EVERY = 1.0  # seconds
_SEAL = b'"kind":"seal"'
SEAL_EVERY = 10_000  # entries at most between two seals, however many a second there are
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class AuditLog:
    """The log of one service; one process at a time."""

    def __init__(self, path: Path, party: str, key: Path) -> None:
        """Open or begin the log at ``path``.

        Raises:
            OutputExists: another process has it open.
            BadAudit: it is no log, or the end of it was not written by the holder of ``key``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._party, self._key, self._lock = party, key, threading.Lock()
        self._synced, self._closed, self._trouble = threading.Event(), False, ""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._begin()
        except BaseException:
            os.close(self._file)
            raise
        self._syncing = threading.Thread(target=self._sync, name="audit", daemon=True)
        self._syncing.start()

    def add(self, kind: str, **facts: Any) -> None:
        """Append one entry.

        Raises:
            OSError: it cannot be written or sealed, or what was written before could not be brought to the disk and
                cannot yet: what the entry is about must then not happen.
        """
        with self._lock:
            if self._closed:
                raise OSError(f"the audit log {self.path} is closed")
            if self._trouble:
                raise OSError(f"the audit log {self.path} cannot be kept: {self._trouble}")
            if self._seq - self._sealed >= SEAL_EVERY:
                self._seal()
            self._append(kind, facts)

    def close(self) -> None:
        """Sign what was written, and close."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._synced.set()
        self._syncing.join()
        try:
            self._append("close", {})
            self._seal()
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def _begin(self) -> None:
        """Take the file over from whoever had it before."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputExists(f"the audit log {self.path} is in use by another process") from None
        size = os.fstat(self._file).st_size
        self._seq, self._hash, unsealed, torn = self._resume(size) if size else (0, _FIRST, 0, 0)
        if torn:
            os.ftruncate(self._file, size - torn)
        self._size, self._sealed = size - torn, self._seq - unsealed
        self._append("open", {"party": self._party, "torn_bytes": torn, "unsealed": unsealed})  # before any seal

    def _append(self, kind: str, facts: dict[str, Any]) -> None:
        body = _canonical({"seq": self._seq + 1, "at": _now(), "kind": kind, "prev": self._hash, **facts})
        line, digest = _line(body)
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, self._size)  # so that the next entry does not follow half of this one
            raise OSError(f"the audit log {self.path} could not be written in full")
        self._seq, self._hash, self._size = self._seq + 1, digest, self._size + len(line)

    def _seal(self) -> None:
        try:
            signature = sign(self._key, _SIGNED + self._hash.encode())
        except FedlearnError as error:
            raise OSError(f"the audit log {self.path} cannot be sealed: {error}") from error
        self._append("seal", {"signature": signature.hex()})
        self._sealed = self._seq

    def _resume(self, size: int) -> tuple[int, str, int, int]:
        """Number and hash of the last entry, how many follow the last seal, and the bytes of one never finished."""
        lines, torn, sealed = self._tail(size)
        found = list(_chained(lines, self.path, None if sealed else (0, _FIRST)))
        if sealed and not _is_signed(found[1], self._key):
            raise BadAudit(
                f"{self.path}, line {found[1]['seq']}: the last seal is not signed with {self._key}; if this party has"
                " changed its key, move the log away to begin a new one"
            )
        return found[-1]["seq"], found[-1]["hash"], len(found) - (2 if sealed else 0), torn

    def _tail(self, size: int) -> tuple[list[bytes], int, bool]:
        """The last seal with the line before it and all after it, or all lines of a short log that has no seal.

        Returns:
            the lines, the bytes of one that was never finished, and whether there is a seal.
        """
        length, most = 0, min(size, _FARTHEST)
        while length < most:
            length = min(most, max(_TAIL, 2 * length))
            raw = os.pread(self._file, length, size - length)
            end = raw.rfind(b"\n") + 1
            lines = raw[:end].splitlines(keepends=True)[length < size :]  # the first may have begun before
            first = max((n for n, line in enumerate(lines) if _SEAL in line), default=0) - 1
            if first >= 0:  # the line before says what number the seal has, and is signed
                return lines[first:], length - end, True
            if lines and length == size:
                return lines, length - end, False
        raise BadAudit(
            f"{self.path}: its last {length:,} bytes are not the end of a log that a service of this party kept; move"
            " it away to begin a new one"
        )

    def _sync(self) -> None:
        """Seal what is new and bring it to the disk; while that fails, nothing can be added."""
        while not self._synced.wait(_SYNC_EVERY):
            try:
                with self._lock:
                    if self._seq != self._sealed:
                        self._seal()
                os.fsync(self._file)
            except Exception as error:  # whatever it is: this thread must go on, and who adds an entry hear of it
                if not self._trouble:
                    _log("audit-not-kept", message=str(error))
                self._trouble = str(error) or type(error).__name__
            else:
                if self._trouble:
                    _log("audit-kept-again")
                self._trouble = ""


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """All entries in order, each checked against its hash and the one before it.

    Raises:
        FileMissing, BadAudit: with the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield from _chained(file, path, (0, _FIRST))


def verify(path: Path, key: Path | None = None) -> dict[str, Any]:
    """Check a whole log; with ``key``, also the signature of every seal.

    Returns:
        entries by kind, how many came after the last seal, the last hash; and ``unsealed``: how many entries had no
        seal when a service opened the log again, by the line of that opening. Each of these may have been made up by
        whoever could write the file at the time.

    Raises:
        FileMissing, BadAudit: with the line.
    """
    kinds: dict[str, int] = {}
    unsealed: dict[str, int] = {}
    count = sealed = 0
    head = _FIRST
    for count, entry in enumerate(entries(path), 1):
        kinds[entry["kind"]] = kinds.get(entry["kind"], 0) + 1
        head, loose = entry["hash"], count - 1 - sealed
        if entry["kind"] == "seal":
            sealed = count
            if key is not None and not _is_signed(entry, key):
                raise BadAudit(f"{path}, line {count}: the seal is not signed with this party's key")
        elif entry["kind"] == "open" and loose:
            unsealed[f"line {count}"] = loose
        if entry["kind"] == "open" and entry.get("unsealed", loose) != loose:  # older logs do not say
            raise BadAudit(f"{path}, line {count}: {loose} entries before it have no seal, and it says otherwise")
    return {"entries": count, "kinds": kinds, "unsealed": unsealed, "after_last_seal": count - sealed, "head": head}


def agree(active: Path, passive: Path) -> dict[str, int]:
    """Compare the request IDs of both sides' logs.

    What the passive side answered, the active side must have asked; what the active side scored with the passive side's
    part, the passive side must have answered.

    Raises:
        FileMissing, BadAudit: a log is damaged, or they do not agree.
    """
    asked, scored, answered = set(), set(), set()
    for entry in entries(active):
        if entry["kind"] == "ask":
            asked.add((entry["request"], entry["consent"]))
        elif entry["kind"] == "score" and entry.get("joint", not entry["fallback"]):  # older logs have no joint
            scored.add((entry["request"], entry["consent"]))
    for entry in entries(passive):
        if entry["kind"] == "answer":
            answered.add((entry["request"], entry["consent"]))
    if answered - asked:
        raise BadAudit(f"{len(answered - asked)} request(s) in {passive} were never asked by {active}")
    if scored - answered:
        raise BadAudit(f"{len(scored - answered)} score(s) in {active} have no answer in {passive}")
    return {"asked": len(asked), "answered": len(answered), "scored": len(scored)}


def _chained(lines: Iterable[bytes], path: Path, before: tuple[int, str] | None) -> Iterator[dict[str, Any]]:
    """The entries, each checked by itself and against the one before it: ``before`` has the number and hash of that.

    None for ``before``: the first entry is taken as it is.
    """
    for line in lines:
        where = f"{path}, line {before[0] + 1}" if before else f"{path}, near its end"
        entry = _checked(line, where)
        if before is not None and (entry["seq"], entry["prev"]) != (before[0] + 1, before[1]):
            raise BadAudit(f"{where}: it does not follow from the line before it")
        before = entry["seq"], entry["hash"]
        yield entry


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = dict(json.loads(line))
        body = {name: value for name, value in entry.items() if name != "hash"}
        usual = type(entry["seq"]) is int and isinstance(entry["kind"], str) and {"at", "prev", "hash"} <= set(entry)
        due, _ = _line(_canonical(body))
    except (ValueError, KeyError, TypeError, RecursionError):
        usual, due = False, b""
    if not usual:
        raise BadAudit(f"{where}: it is no entry of an audit log")
    if line != due:  # the text, not what it means: white space or a repeated key may not be slipped in either
        raise BadAudit(f"{where}: its hash is not that of its text")
    return entry


def _line(body: bytes) -> tuple[bytes, str]:
    """An entry as it stands in the file, and its hash."""
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


def _is_signed(seal: dict[str, Any], key: Path) -> bool:
    said = _bytes(str(seal.get("signature", "")))
    return seal["kind"] == "seal" and is_signed(key, _SIGNED + seal["prev"].encode(), said)


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _canonical(body: dict[str, Any]) -> bytes:
    return _ENCODER.encode(body).encode()


def _now() -> str:
    seconds, rest = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{rest:03d}+00:00"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _log(event: str, **facts: Any) -> None:
    """One line on standard error, as the services write theirs; they import this module, not the other way round."""
    sys.stderr.write(json.dumps({"at": _now(), "event": event, **facts}) + "\n")
    sys.stderr.flush()
