"""An append-only log in which every entry names the hash of the one before it (JSON lines).

An entry is hashed as canonical JSON without its own ``hash``. Every so often a ``seal`` signs the hash reached with the
party's key, so that who can write the file but has not the key cannot make up a log. What was cut off the end since the
last copy of a hash elsewhere does not show in the file itself: keep the hashes that ``fedlearn audit verify`` prints.

Entries are with the operating system before the answer they are about is sent, and on disk within a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedlearn.errors import BadAudit, FileMissing, OutputExists
from fedlearn.keys import is_signed, sign

_SIGNED = b"fedlearn/1 audit\n"
_FIRST = "0" * 64
_TAIL = 1 << 16
SEAL_EVERY = 10_000
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class AuditLog:
    """The log of one service; one process at a time."""

    def __init__(self, path: Path, party: str, key: Path) -> None:
        """Open or begin the log at ``path``.

        Raises:
            OutputExists: another process has it open.
            BadAudit: its last entry is no entry of a log.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._party, self._key, self._lock = party, key, threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise OutputExists(f"the audit log {path} is in use by another process") from None
        self._synced, self._closed = threading.Event(), False
        self._seq, self._hash, torn = self._resume()
        self._size = os.fstat(self._file).st_size
        self.add("open", party=party, torn_bytes=torn)
        self._syncing = threading.Thread(target=self._sync, name="audit", daemon=True)
        self._syncing.start()

    def add(self, kind: str, **facts: Any) -> None:
        """Append one entry. Raises OSError when it cannot be written: what it is about must then not happen."""
        with self._lock:
            if self._closed:
                raise OSError(f"the audit log {self.path} is closed")
            self._append(kind, facts)
            if self._seq % SEAL_EVERY == 0:
                self._seal()

    def close(self) -> None:
        """Sign what was written, and close."""
        with self._lock:
            if self._closed:
                return
            self._append("close", {})
            self._seal()
            self._closed = True
            os.fsync(self._file)
        self._synced.set()
        self._syncing.join()
        os.close(self._file)

    def _append(self, kind: str, facts: dict[str, Any]) -> None:
        body = _canonical({"seq": self._seq + 1, "at": _now(), "kind": kind, "prev": self._hash, **facts})
        digest = hashlib.sha256(body).hexdigest()
        line = body[:-1] + f',"hash":"{digest}"}}\n'.encode()
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, self._size)  # so that the next entry does not follow half of this one
            raise OSError(f"the audit log {self.path} could not be written in full")
        self._seq, self._hash, self._size = self._seq + 1, digest, self._size + len(line)

    def _seal(self) -> None:
        self._append("seal", {"signature": sign(self._key, _SIGNED + self._hash.encode()).hex()})

    def _resume(self) -> tuple[int, str, int]:
        """Number and hash of the last entry, and how many bytes of one that was never finished were cut off."""
        size = os.fstat(self._file).st_size
        if not size:
            return 0, _FIRST, 0
        tail = os.pread(self._file, _TAIL, max(0, size - _TAIL))
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(self._file, size - torn)
        lines = tail[: len(tail) - torn].splitlines()
        if not lines:
            return 0, _FIRST, torn
        last = _checked(lines[-1], self.path, 0)
        return int(last["seq"]), str(last["hash"]), torn

    def _sync(self) -> None:
        while not self._synced.wait(1.0):
            os.fsync(self._file)


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """All entries in order, each checked against its hash and the one before it.

    Raises:
        FileMissing, BadAudit: with the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}") from None
    before, number = _FIRST, 0
    with file:
        for number, line in enumerate(file, 1):
            entry = _checked(line, path, number)
            if entry["prev"] != before or entry["seq"] != number:
                raise BadAudit(f"{path}, line {number}: it does not follow from the line before it")
            before = entry["hash"]
            yield entry


def verify(path: Path, key: Path | None = None) -> dict[str, Any]:
    """Check a whole log; with ``key``, also the signature of every seal.

    Returns:
        entries by kind, the number of seals, how many entries came after the last one, and the last hash.

    Raises:
        FileMissing, BadAudit: with the line.
    """
    kinds: dict[str, int] = {}
    count = sealed = 0
    head = _FIRST
    for count, entry in enumerate(entries(path), 1):
        kinds[entry["kind"]] = kinds.get(entry["kind"], 0) + 1
        if entry["kind"] == "seal":
            sealed = count
            said = str(entry.get("signature", ""))
            if key is not None and not is_signed(key, _SIGNED + entry["prev"].encode(), _bytes(said)):
                raise BadAudit(f"{path}, line {count}: the seal is not signed with this party's key")
        head = entry["hash"]
    return {"entries": count, "kinds": kinds, "after_last_seal": count - sealed, "head": head}


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
        elif entry["kind"] == "score" and not entry["fallback"]:
            scored.add((entry["request"], entry["consent"]))
    for entry in entries(passive):
        if entry["kind"] == "answer":
            answered.add((entry["request"], entry["consent"]))
    if answered - asked:
        raise BadAudit(f"{len(answered - asked)} request(s) in {passive} were never asked by {active}")
    if scored - answered:
        raise BadAudit(f"{len(scored - answered)} score(s) in {active} have no answer in {passive}")
    return {"asked": len(asked), "answered": len(answered), "scored": len(scored)}


def _checked(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number}" if number else f"{path}, the last line"
    try:
        entry = json.loads(line)
        body = {name: value for name, value in entry.items() if name != "hash"}
        right = entry["hash"] == _hash(body) and {"seq", "at", "kind", "prev"} <= set(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadAudit(f"{where}: it is no entry of an audit log") from None
    if not right:
        raise BadAudit(f"{where}: its hash is not that of its content")
    return dict(entry)


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _canonical(body: dict[str, Any]) -> bytes:
    return _ENCODER.encode(body).encode()


def _now() -> str:
    seconds, rest = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{rest:03d}+00:00"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
