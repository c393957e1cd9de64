"""Two parties in a folder, and real processes of them: what the tests of whole runs share.

The tables are made up: 240 shared customers, 40 more on either side, IDs written differently, a few missing cells. The
label depends on features of both sides.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn import keys
from fedlearn.bench.pair import free_port

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"platform": "party_a", "bank": "party_b"}
FEATURES = {
    "platform": {"spend": "number", "visits": "number", "city": "category"},
    "bank": {"income": "number", "debt": "number", "work": "category"},
}
SHARED, ONLY, NEW = 240, 40, 60
PATIENCE = 180.0  # seconds that nothing here takes, unless it hangs

Rows = list[dict[str, str]]


# --- tables ------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Look again and again, for so long at most."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tables(seed: int = 7, shared: int = SHARED, only: int = ONLY) -> dict[str, Rows]:
    """Rows of both parties, in different orders; the label stands in both, and each contract names whose counts."""
    draw = np.random.default_rng(seed)
    count = shared + 2 * only
    ids = draw.choice(10**9, count, replace=False) + 10**9
    spend, visits = draw.lognormal(6, 1, count).round(2), draw.poisson(9, count) + 10_000
    income, debt = draw.lognormal(7, 1, count).round(2), draw.lognormal(5, 1, count).round(2)
    city, work = draw.integers(0, 4, count), draw.integers(0, 3, count)
    odds = np.log(spend) - 6 - (np.log(income) - 7) + (city == 2) - (work == 1) + 0.3 * (visits - 10_009)
    bad = draw.random(count) < 1 / (1 + np.exp(-odds))
    rows: dict[str, Rows] = {"platform": [], "bank": []}
    for i in range(count):
        label = {"outcome": "bad" if bad[i] else "good"}
        hole = "" if i % 23 == 5 else None
        if i < shared + only:
            own = {"spend": hole or f"{spend[i]}", "visits": f"{visits[i]}", "city": f"city-{city[i]}"}
            rows["platform"].append({"phone": f"{ids[i]}"[:4] + " " + f"{ids[i]}"[4:], **own, **label})
        if i < shared or i >= shared + only:
            own = {"income": f"{income[i]}", "debt": f"{debt[i]}", "work": "" if hole == "" else f"work-{work[i]}"}
            rows["bank"].append({"phone": f"{ids[i]}"[:3] + "-" + f"{ids[i]}"[3:], **own, **label})
    return {party: [rows[party][i] for i in draw.permutation(len(rows[party]))] for party in rows}


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


# --- certificates ------------------------------------------------------------------------------------


def make_keys(base: Path) -> Path:
    """``ca/``, a folder for each party, and ``<party>-expired``, ``-self`` (signed), ``-other`` (authority)."""
    keys.create_authority(base / "ca", "Test Authority")
    keys.create_authority(base / "foreign", "Foreign Authority")
    for party in MODULES:
        keys.issue(base / "ca", base / party, party)
        for kind in ("expired", "self", "other"):
            _odd_certificate(base, party, kind)
    return base


def _odd_certificate(base: Path, party: str, kind: str) -> None:
    folder = base / f"{party}-{kind}"
    now, day = datetime.now(UTC), timedelta(days=1)
    validity = (now - 3 * day, now - day) if kind == "expired" else (now - day, now + day)
    keys.create_request(folder, party)
    _, public = keys._check_request(folder / f"{party}.csr")
    issuer, issuer_key = keys._load_authority(base / ("foreign" if kind == "other" else "ca"))
    if kind == "self":
        issuer_key = keys._load_key(folder / f"{party}.key")
        assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        issuer = keys._sign_authority(party, issuer_key, validity)
    certificate = keys._sign_party(party, public, issuer, issuer_key, validity)
    (folder / f"{party}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    shutil.copy(base / "ca" / "authority.pem", folder)


# --- processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    party: str
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What it printed, if all went well."""
        assert self.code == 0, self.err
        return dict(json.loads(self.out))


class Process:
    """A party's process. Its output goes to files, so that nobody has to read along."""

    def __init__(self, party: str, command: list[str], folder: Path) -> None:
        self.party = party
        name = f"{party}-{secrets.token_hex(4)}"
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        command = [sys.executable, *command]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self._err.read_text(encoding="utf-8")

    def wait_until_said(self, words: str) -> None:
        """Wait for ``words`` on its standard error; fails if it ends before."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.said():
            assert self.process.poll() is None, f"{self.party} ended early: {self.said()}"
            assert time.monotonic() < deadline, f"{self.party} never said {words!r}: {self.said()}"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> Ended:
        """Wait until it ends; a hang is a failure."""
        code = self.process.wait(PATIENCE)
        return Ended(self.party, code, self._out.read_text(encoding="utf-8"), self.said())


# --- the pair ----------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Both parties' folders, settings and tables, ready to run; change what a test is about before ``write``."""

    folder: Path
    keyring: Path
    contract: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    rows: dict[str, Rows]
    contracts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> Pair:
        """Write every file: tables, contract, party files."""
        for party, settings in self.settings.items():
            (self.folder / party).mkdir(parents=True, exist_ok=True)
            if self.rows[party]:
                write_csv(self.folder / party / "table.csv", self.rows[party])
            self._toml(self.folder / party / "contract.toml", self.contracts.get(party, self.contract))
            self._toml(self.party_file(party), settings)
        return self

    @staticmethod
    def _toml(path: Path, content: dict[str, Any]) -> None:
        path.write_text(tomli_w.dumps(content), encoding="utf-8")

    def party_file(self, party: str) -> Path:
        return self.folder / party / "party.toml"

    def output(self, party: str) -> Path:
        return self.folder / party / "results"

    def use_certificate(self, party: str, kind: str) -> None:
        """``expired``, ``self``, ``other``; or another party's name, to swap."""
        folder, name = (self.keyring / kind, kind) if kind in MODULES else (self.keyring / f"{party}-{kind}", party)
        self.settings[party]["tls"] |= {"certificate": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}

    def written(self, *parties: str) -> set[str]:
        """Everything in the parties' (both parties') output folders, hidden or not, but checkpoints to resume from."""
        found = {
            path.relative_to(self.folder) for party in parties or MODULES for path in self.output(party).rglob("*")
        }
        return {str(path) for path in found if not any(part.endswith(".checkpoint") for part in path.parts)}

    def arguments(self, party: str, job: str, *more: str) -> list[str]:
        return [job, "--party", str(self.party_file(party)), "--json", "--progress", "none", *more]

    @contextmanager
    def one(self, party: str, *arguments: str, command: list[str] | None = None) -> Iterator[Process]:
        """One party's process, with arguments; ``command`` stands for ``-m party_a`` or ``-m party_b``."""
        process = Process(party, [*(command or ["-m", MODULES[party]]), *arguments], self.folder / party)
        try:
            yield process
        finally:
            process.process.kill()
            process.process.wait()

    @contextmanager
    def started(
        self, job: str, *more: str, commands: dict[str, list[str]] | None = None
    ) -> Iterator[dict[str, Process]]:
        """Both parties' processes; ``more`` arguments for both, ``commands`` as in :meth:`one`."""
        with ExitStack() as stack:
            yield {
                party: stack.enter_context(
                    self.one(party, *self.arguments(party, job, *more), command=(commands or {}).get(party))
                )
                for party in MODULES
            }

    def run(self, job: str, *more: str, commands: dict[str, list[str]] | None = None) -> dict[str, Ended]:
        """Run both parties to their end; arguments as for :meth:`started`."""
        with self.started(job, *more, commands=commands) as processes:
            return {party: process.wait() for party, process in processes.items()}


def make_pair(
    folder: Path,
    keyring: Path,
    *,
    active: str = "bank",
    listener: str = "platform",
    mode: str = "mutual",
    change: Callable[[Pair], object] | None = None,
    **boost: Any,
) -> Pair:
    """A pair that works: a few hundred rows, a few small trees.

    Args:
        folder: where everything is written.
        keyring: what :func:`make_keys` made.
        active: who has the labels.
        listener: who listens; the other connects.
        mode: of the alignment.
        change: what is different, applied before anything is written.
        boost: fields of the contract's ``[boost]``.
    """
    passive = next(party for party in MODULES if party != active)
    address = f"127.0.0.1:{free_port()}"
    contract = {
        "name": "test",
        "purpose": "tests of whole runs with made-up customers",
        "expires": "2999-12-31",
        "active": {"name": active, "features": dict(FEATURES[active])},
        "passive": {"name": passive, "features": dict(FEATURES[passive])},
        "label": {"column": "outcome", "positive": "bad"},
        "align": {"mode": mode, "key": {"column": "phone", "normalise": "digits"}},
        "boost": {"trees": 4, "depth": 2, "learning_rate": 0.3, "bins": 8, "min_child_size": 10, **boost},
        "budget": {"rows": 1000, "vectors": 100_000, "kl_nats": 1e-3},
    }
    settings = {
        party: {
            "party": party,
            "contract": "contract.toml",
            "data": {"path": "table.csv"},
            "network": {"listen" if party == listener else "connect": address, "connect_seconds": 30},
            "tls": {
                "certificate": str(keyring / party / f"{party}.pem"),
                "key": str(keyring / party / f"{party}.key"),
                "authority": str(keyring / "ca" / "authority.pem"),
            },
            "output": {"folder": "results"},
        }
        for party in MODULES
    }
    pair = Pair(folder, keyring, contract, settings, tables())
    if change is not None:
        change(pair)
    return pair.write()
