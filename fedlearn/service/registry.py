"""A party's models: a folder of shares with an SQLite index; every entry and every change of state is signed.

``models/<name>-<version>/`` holds a copy of the share. An entry says what the share is (pair, contract, files by hash,
figures, alignment, ledger) and is never changed. States are entered one after the other and numbered without gaps; the
last one counts:

    added → champion | challenger → superseded (by the next of its kind) → retired

The passive side answers for every model that is or was promoted and is not retired, so that the sides need not promote
at the same moment: the passive side first, then the active one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlearn.contract import NAME, Contract, PartyFile, load_contract
from fedlearn.errors import BadConfig, FileMissing, OutputExists, Refused, WrongModel
from fedlearn.keys import is_signed, sign
from fedlearn.models import linear
from fedlearn.models import share as trees

Share = trees.Share | linear.LinearShare

_SIGNED = b"fedlearn/1 registry\n"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (name TEXT, version INTEGER, model_id TEXT, body TEXT, signature BLOB,
                                    PRIMARY KEY (name, version));
CREATE TABLE IF NOT EXISTS states (seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, version INTEGER, state TEXT,
                                   body TEXT, signature BLOB);
"""
SERVED = ("champion", "challenger", "superseded")


@dataclass(frozen=True)
class Entry:
    """One model of a registry: what was signed when it was added (``facts``), and its state now."""

    facts: dict[str, Any]
    state: str

    @property
    def label(self) -> str:
        """Name and version, for people."""
        return f"{self.facts['name']}-{self.facts['version']}"


class Registry:
    """The models of one party, in one folder."""

    def __init__(self, folder: Path, key: Path) -> None:
        """Open or make the registry in ``folder``; ``key`` is the PEM file that signs and checks entries."""
        self.folder = folder
        self._key = key
        folder.mkdir(parents=True, exist_ok=True)
        with self._open() as base:
            base.executescript(_SCHEMA)

    def add(self, folder: Path, name: str, contract: Contract, party: str) -> Entry:
        """Copy a share into the registry as the next version of ``name``.

        Raises:
            BadConfig: the name is none.
            FileMissing, WrongModel: there is no share of this party under this contract in ``folder``, or the registry
                is damaged.
            OutputExists: this very model is there already.
        """
        if not re.fullmatch(NAME, name):
            raise BadConfig(
                f"a model's name has 1 to 63 letters, digits, '_', '-' or '.' and begins with a letter or digit: not"
                f" {name[:80]!r}"
            )
        share, run = load_share(folder, contract, party), _run_of(folder)
        with self._open() as base:
            known = self._all(base)
            same = [e.facts["name"] for e in known if e.facts["model_id"] == share.model_id.hex()]
            if same:
                raise OutputExists(f"model {share.model_id.hex()} is in the registry already, under {same[0]!r}")
            version = 1 + max((e.facts["version"] for e in known if e.facts["name"] == name), default=0)
            place = self.folder / "models" / f"{name}-{version}"
            if place.name.casefold() not in {e.label.casefold() for e in known}:  # some disks ignore case
                _clear(place, folder)
            with trees.staged(place) as partial:
                shutil.copytree(folder, partial, dirs_exist_ok=True)
            facts = _facts(share, run, contract, party) | {
                "name": name,
                "version": version,
                "added": _now(),
                "files": {path.name: _digest(path) for path in sorted(place.iterdir()) if path.is_file()},
            }
            body = _canonical(facts)
            row = (name, version, facts["model_id"], body, sign(self._key, _SIGNED + body.encode()))
            base.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
            self._enter(base, name, version, "added")
        return Entry(facts, "added")

    def list(self) -> list[Entry]:
        """All models, by name and version.

        Raises:
            WrongModel: the registry is damaged, holds what this party did not sign, or lacks a state.
        """
        with self._open() as base:
            return list(self._all(base))

    def show(self, name: str, version: int | None = None) -> Entry:
        """One model; the latest version by default. Raises FileMissing when there is none; or as :meth:`list`."""
        return self._one(self.list(), name, version)

    def promote(self, name: str, version: int, state: str = "champion") -> Entry:
        """Serve a model as ``champion`` or ``challenger``; the one before it is superseded.

        Raises:
            FileMissing, WrongModel: there is no such model, its files were changed, or as :meth:`list`.
            Refused: it is retired.
            BadConfig: neither champion nor challenger.
        """
        if state not in ("champion", "challenger"):
            raise BadConfig(f"a model is promoted to champion or challenger, not to {state!r}")
        with self._open() as base:  # what it was decided on must not change before it is entered
            known = self._all(base)
            entry = self._one(known, name, version)
            if entry.state == "retired":
                raise Refused(f"model {entry.label} is retired and cannot be promoted")
            self.check_files(entry)
            for other in known:
                if (other.facts["name"], other.state) == (name, state) and other.facts["version"] != version:
                    self._enter(base, name, other.facts["version"], "superseded")
            self._enter(base, name, version, state)
        return Entry(entry.facts, state)

    def retire(self, name: str, version: int) -> Entry:
        """Never serve a model again. Raises FileMissing when there is none; or as :meth:`list`."""
        with self._open() as base:
            entry = self._one(self._all(base), name, version)
            self._enter(base, name, version, "retired")
        return Entry(entry.facts, "retired")

    def load(self, entry: Entry, contract: Contract, party: str) -> Share:
        """The share of a model. Raises WrongModel when its files are not those that were signed."""
        self.check_files(entry)
        return load_share(self.place(entry), contract, party)

    def place(self, entry: Entry) -> Path:
        """Where a model's files are."""
        return self.folder / "models" / entry.label

    def check_files(self, entry: Entry) -> None:
        """Raises WrongModel when a file is missing or differs from what was signed."""
        for name, digest in entry.facts["files"].items():
            path = self.place(entry) / name
            if not path.is_file() or _digest(path) != digest:
                raise WrongModel(f"{path} is not the file that was entered into the registry")

    def resign(self, former: Path) -> int:
        """Sign everything anew that the key ``former`` signed, after this party has changed its key.

        Returns:
            how many entries and states were signed.

        Raises:
            WrongModel: something was not signed with ``former``; nothing is changed then.
        """
        count = 0
        with self._open() as base:
            for table in ("entries", "states"):
                rows = base.execute(f"SELECT rowid, body, signature FROM {table}").fetchall()  # noqa: S608  (ours)
                for row, body, signature in rows:
                    wrong = f"row {row} of {table} in {self.folder} is not signed with {former}"
                    _signed(body, signature, former, wrong)
                    fresh = sign(self._key, _SIGNED + body.encode())
                    base.execute(f"UPDATE {table} SET signature = ? WHERE rowid = ?", (fresh, row))  # noqa: S608
                    count += 1
        return count

    def last_change(self) -> int:
        """A number that grows with every change."""
        with self._open() as base:
            return int(base.execute("SELECT COALESCE(MAX(seq), 0) FROM states").fetchone()[0])

    def _enter(self, base: sqlite3.Connection, name: str, version: int, state: str) -> None:
        last = base.execute("SELECT COALESCE(MAX(seq), 0) FROM states").fetchone()[0]
        body = _canonical({"seq": last + 1, "name": name, "version": version, "state": state, "at": _now()})
        row = (last + 1, name, version, state, body, sign(self._key, _SIGNED + body.encode()))
        base.execute("INSERT INTO states VALUES (?, ?, ?, ?, ?, ?)", row)

    def _all(self, base: sqlite3.Connection) -> Sequence[Entry]:
        states = self._states(base)
        rows = base.execute("SELECT name, version, body, signature FROM entries ORDER BY name, version").fetchall()
        found = [self._entry(row, states) for row in rows]
        if len(found) != len(states):
            raise WrongModel(f"the registry {self.folder} lacks a model that was entered")
        return found

    def _states(self, base: sqlite3.Connection) -> dict[tuple[str, int], str]:
        """The last state of each model: all were entered by this party, and none was taken out."""
        found = {}
        rows = base.execute("SELECT seq, body, signature FROM states ORDER BY seq")
        for due, (seq, body, signature) in enumerate(rows, 1):
            wrong = f"state {seq} in the registry {self.folder} is not signed with this party's key"
            said = _signed(body, signature, self._key, wrong)
            if said.get("seq") != seq:  # the row of another one, or of a model
                raise WrongModel(wrong)
            if seq != due:
                raise WrongModel(f"state {due} in the registry {self.folder} is missing")
            found[said["name"], said["version"]] = str(said["state"])
        return found

    def _entry(self, row: tuple[str, int, str, bytes], states: dict[tuple[str, int], str]) -> Entry:
        name, version, body, signature = row
        wrong = f"model {name}-{version} in the registry {self.folder} is not signed with this party's key"
        facts = _signed(body, signature, self._key, wrong)
        if "files" not in facts or (facts["name"], facts["version"]) != (name, version):
            raise WrongModel(wrong)
        if (name, version) not in states:  # the first was entered together with the model
            raise WrongModel(f"the states of model {name}-{version} in the registry {self.folder} are missing")
        return Entry(facts, states[name, version])

    def _one(self, known: Sequence[Entry], name: str, version: int | None) -> Entry:
        found = [e for e in known if e.facts["name"] == name and version in (None, e.facts["version"])]
        if not found:
            raise FileMissing(f"there is no model {name!r}{f' version {version}' if version else ''} in {self.folder}")
        return found[-1]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.folder / "index.sqlite", timeout=10)) as base, base:
                base.execute("BEGIN IMMEDIATE")
                yield base
        except sqlite3.DatabaseError as error:
            raise WrongModel(f"the index of the registry {self.folder} cannot be read: {error}") from None


def open_registry(party: PartyFile) -> tuple[Registry, Contract]:
    """The registry that a party file names, and the contract. Raises BadConfig without ``[service]``."""
    if party.service is None:
        raise BadConfig(f"the party file of {party.party!r} has no [service]")
    return Registry(party.service.registry, party.tls.key), load_contract(party.contract)


def load_share(folder: Path, contract: Contract, party: str) -> Share:
    """A share of either kind, by the contract. Raises FileMissing, WrongModel."""
    if contract.kmeans is not None:
        raise WrongModel(f"contract {contract.name!r} finds clusters, which are not served: use predict")
    load: Any = trees.load if contract.glm is None else linear.load
    share: Share = load(folder, contract, party)
    return share


def _signed(body: Any, signature: Any, key: Path, wrong: str) -> dict[str, Any]:
    """What a row of the index says. Raises WrongModel with ``wrong``, before anything is read, if it is not signed."""
    usual = isinstance(body, str) and isinstance(signature, bytes)
    if not usual or not is_signed(key, _SIGNED + body.encode(), signature):
        raise WrongModel(wrong)
    return dict(json.loads(body))


def _clear(place: Path, source: Path) -> None:
    """Move away what an addition left that was interrupted before its entry was made; half a copy is removed.

    It is kept under another name: should the index have been lost, these are the files of a model that was served.
    """
    for left in place.parent.glob(f".{place.name}.partial-*"):
        shutil.rmtree(left)
    if place.exists() and source.resolve() != place.resolve():
        place.rename(place.with_name(f".{place.name}.left-{time.time_ns()}"))


def compare(one: Entry, other: Entry) -> dict[str, tuple[Any, Any]]:
    """The facts in which two models differ."""
    flat = [_flat({**e.facts, "state": e.state}) for e in (one, other)]
    names = [name for name in {**flat[0], **flat[1]} if not name.startswith(("files.", "ledger."))]
    return {name: (flat[0].get(name), flat[1].get(name)) for name in names if flat[0].get(name) != flat[1].get(name)}


def _flat(facts: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _facts(share: Share, run: dict[str, Any], contract: Contract, party: str) -> dict[str, Any]:
    ledger = run.get("ledger", [])
    figures = ("joint", "alone", "trees", "aic", "deviance")
    alignment = ("mode", "rows_shared", "rows_common_order", "rows_by_key")
    return {
        "model_id": share.model_id.hex(),
        "kind": "linear" if isinstance(share, linear.LinearShare) else "trees",
        "alone": run.get("job") == "train-alone",
        "role": contract.role_of(party),
        "party": party,
        "peer": contract.peer_of(party),
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "session": run.get("session"),
        "metrics": {name: run[name] for name in figures if name in run},
        "alignment": {name: run[name] for name in alignment if name in run},
        "ledger": ledger,
        "ledger_hash": hashlib.sha256(_canonical({"ledger": ledger}).encode()).hexdigest(),
    }


def _run_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    except OSError:
        return {}
    except ValueError:
        raise WrongModel(f"{folder / 'run.json'} is damaged: not JSON") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
