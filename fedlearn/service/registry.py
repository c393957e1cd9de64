"""A party's models: a folder of shares with an SQLite index; every entry and every change of state is signed.

``models/<name>-<version>/`` holds a copy of the share. An entry says what the share is (pair, contract, files by hash,
figures, alignment, ledger) and is never changed. States are entered one after the other; the last one counts:

    added → champion | challenger → superseded (by the next of its kind) → retired

The passive side answers for every model that is or was promoted and is not retired, so that the sides need not promote
at the same moment: the passive side first, then the active one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlearn.contract import Contract, PartyFile, load_contract
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
            FileMissing, WrongModel: there is no share of this party under this contract in ``folder``.
            OutputExists: this very model is there already.
        """
        share, run = load_share(folder, contract, party), _run_of(folder)
        with self._open() as base:
            known = base.execute("SELECT name FROM entries WHERE model_id = ?", (share.model_id.hex(),)).fetchone()
            if known:
                raise OutputExists(f"model {share.model_id.hex()} is in the registry already, under {known[0]!r}")
            found = base.execute("SELECT COALESCE(MAX(version), 0) FROM entries WHERE name = ?", (name,)).fetchone()
            version = int(found[0]) + 1
            place = self.folder / "models" / f"{name}-{version}"
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
        """All models, by name and version. Raises WrongModel for an entry that this party did not sign."""
        with self._open() as base:
            states = self._states(base)
            rows = base.execute("SELECT name, version, body, signature FROM entries ORDER BY name, version").fetchall()
        return [self._entry(row, states) for row in rows]

    def show(self, name: str, version: int | None = None) -> Entry:
        """One model; the latest version by default. Raises FileMissing when there is none."""
        found = [e for e in self.list() if e.facts["name"] == name and version in (None, e.facts["version"])]
        if not found:
            raise FileMissing(f"there is no model {name!r}{f' version {version}' if version else ''} in {self.folder}")
        return found[-1]

    def promote(self, name: str, version: int, state: str = "champion") -> Entry:
        """Serve a model as ``champion`` or ``challenger``; the one before it is superseded.

        Raises:
            FileMissing, WrongModel: there is no such model, or its files were changed.
            Refused: it is retired.
            BadConfig: neither champion nor challenger.
        """
        if state not in ("champion", "challenger"):
            raise BadConfig(f"a model is promoted to champion or challenger, not to {state!r}")
        entry = self.show(name, version)
        if entry.state == "retired":
            raise Refused(f"model {entry.label} is retired and cannot be promoted")
        self.check_files(entry)
        before = [e for e in self.list() if e.facts["name"] == name and e.state == state]
        with self._open() as base:
            for other in before:
                if other.facts["version"] != version:
                    self._enter(base, name, other.facts["version"], "superseded")
            self._enter(base, name, version, state)
        return Entry(entry.facts, state)

    def retire(self, name: str, version: int) -> Entry:
        """Never serve a model again. Raises FileMissing when there is none."""
        entry = self.show(name, version)
        with self._open() as base:
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
                    if not is_signed(former, _SIGNED + body.encode(), signature):
                        raise WrongModel(f"row {row} of {table} in {self.folder} is not signed with {former}")
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

    def _states(self, base: sqlite3.Connection) -> dict[tuple[str, int], str]:
        found = {}
        for seq, body, signature in base.execute("SELECT seq, body, signature FROM states ORDER BY seq"):
            said = json.loads(body)
            if said["seq"] != seq or not is_signed(self._key, _SIGNED + body.encode(), signature):
                raise WrongModel(f"state {seq} in the registry {self.folder} is not signed with this party's key")
            found[said["name"], said["version"]] = str(said["state"])
        return found

    def _entry(self, row: tuple[str, int, str, bytes], states: dict[tuple[str, int], str]) -> Entry:
        name, version, body, signature = row
        facts = json.loads(body)
        signed = is_signed(self._key, _SIGNED + body.encode(), signature)
        if not signed or (facts["name"], facts["version"]) != (name, version):
            raise WrongModel(
                f"model {name}-{version} in the registry {self.folder} is not signed with this party's key"
            )
        return Entry(facts, states.get((name, version), "added"))

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
