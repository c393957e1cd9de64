"""``fedlearn bench predict``: batch scoring, both parties as processes over mutual TLS that do as ``fedlearn predict``.

The model is that of ``bench serve``. Times are the whole command's, from reading Parquet to written Parquet, and those
of its phases. ``peak_mib`` is the larger side's resident memory at most, ``peak_mib_read`` that until the table is read
and checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tomli_w
from pyarrow import parquet

from fedlearn import jobs, keys
from fedlearn.bench import serve
from fedlearn.bench.pair import PARTIES, free_port, peak_mib
from fedlearn.contract import Align, Budget, Contract, Key, Label, Side, load_party
from fedlearn.data import make_table
from fedlearn.errors import FedlearnError
from fedlearn.protocols.align import Alignment


@dataclass(frozen=True)
class Setting:
    """What is measured: so many rows on either side, all shared (known before if ``aligned``), and a model."""

    rows: int = 1_000_000
    trees: int = 100
    depth: int = 5
    model: str = "trees"
    aligned: bool = False


def measure(setting: Setting) -> dict[str, Any]:
    """Score one batch.

    Raises:
        FedlearnError: a party failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = _prepare(folder, setting)
        begun = time.perf_counter()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "fedlearn.bench.predict", str(files[party])],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for party in PARTIES
        ]  # fmt: skip
        said = [process.communicate() for process in processes]
        seconds = time.perf_counter() - begun
        for party, process, (_, complaint) in zip(PARTIES, processes, said, strict=True):
            if process.returncode:
                raise FedlearnError(f"the {party} side of the benchmark failed: {complaint.strip()[-2000:]}")
        used = os.times()
        active, passive = (json.loads(printed) for printed, _ in said)
        written = parquet.read_metadata(folder / "active" / "results" / "predictions" / "scores.parquet")
        return {
            "rows": setting.rows, "model": setting.model, "trees": setting.trees, "depth": setting.depth,
            "seconds": round(seconds, 2),
            "cpu_seconds_both": round(used.children_user + used.children_system, 2),
            "phase_seconds": {name: round(phase["seconds"], 2) for name, phase in active["phases"].items()},
            "megabytes": round((active["bytes_sent"] + active["bytes_received"]) / 1e6, 1),
            "pieces": active.get("pieces"), "rows_written": written.num_rows,
            **{name: round(max(active[name], passive[name])) for name in ("peak_mib_read", "peak_mib")},
        }  # fmt: skip


def _prepare(folder: Path, setting: Setting) -> dict[str, Path]:
    model = serve.Setting(trees=setting.trees, depth=setting.depth, model=setting.model)
    keys.create_authority(folder / "authority", "bench authority")
    sides = {party: Side(name=party, features=dict.fromkeys(serve.names(party), "number")) for party in PARTIES}
    contract = Contract(
        name="bench", purpose="measure batch scoring", expires=date(2999, 12, 31), active=sides["active"],
        passive=sides["passive"], label=Label(column="label"), align=Align(key=Key(column="id", normalise="digits")),
        budget=Budget(rows=max(1000, setting.rows)), **serve.algorithm(model),
    )  # fmt: skip
    draws = np.random.default_rng(1)
    shares = serve.shares(model, draws)
    address, files = f"127.0.0.1:{free_port()}", {}
    for party, way in zip(PARTIES, ("connect", "listen"), strict=True):
        tls = keys.issue(folder / "authority", folder / party, party)
        ids = [f"{n:09d}" for n in draws.permutation(setting.rows)]
        columns: dict[str, Any] = {name: draws.random(setting.rows) for name in serve.names(party)}
        parquet.write_table(pa.table({"id": ids, **columns}), folder / party / "table.parquet")
        terms = contract.model_dump(mode="json", exclude_none=True)
        (folder / party / "contract.toml").write_text(tomli_w.dumps(terms), encoding="utf-8")
        own = {
            "party": party, "contract": "contract.toml", "data": {"path": "table.parquet"}, "network": {way: address},
            "tls": {name: str(path) for name, path in tls}, "output": {"folder": "results"},
        }  # fmt: skip
        files[party] = folder / party / "party.toml"
        files[party].write_text(tomli_w.dumps(own), encoding="utf-8")
        if setting.aligned:
            _align(files[party], contract, ids)
        (folder / party / "results" / "model").mkdir(parents=True)
        serve.save(shares[party], folder / party / "results" / "model", contract, party)
    return files


def _align(file: Path, contract: Contract, ids: list[str]) -> None:
    """Keep the alignment that the parties would find, in the order of the IDs."""
    party = load_party(file)
    folder = party.output.folder / "alignment"
    folder.mkdir(parents=True)
    own = jobs.Own(party.party, party.party, contract, make_table(ids, {}, {}), folder, key=party.tls.key)
    rows = np.argsort(np.array(ids))
    jobs.save_alignment(folder, Alignment(bytes(16), "mutual", len(ids), len(ids), rows, (len(ids),)), own)


def _predict(path: Path) -> dict[str, Any]:
    """One party, as ``fedlearn predict --format parquet`` runs it."""
    party = load_party(path)
    own = jobs.prepare(party, "predict", form="parquet")
    read = peak_mib()
    with jobs.connect(party, own.contract) as channel:
        result = jobs.run("predict", channel, own)
    return result | {"peak_mib_read": read, "peak_mib": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(_predict(Path(sys.argv[1]))))
