"""``fedlearn bench align``: private set intersection in two processes over mutual TLS, openmined-psi in the same run.

IDs are decimal numbers, half of the shorter list in common; both sides hold the result against what it must be. The
clock starts when both have their IDs in memory, have met, and have aligned a short list, which loads the kernels.

With method ``cached`` the passive side's table is prepared before (``prepare_seconds``), and two alignments are timed:
the first, in which the active side is sent the table (``seconds_with_table``), and one that follows (``seconds``). In
mode ``cardinality`` a table serves once, so there is one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fedlearn import prepared as tables
from fedlearn.bench.pair import party_channel, peak_mib, run_pair
from fedlearn.contract import Contract
from fedlearn.protocols import align
from fedlearn.protocols.align import Alignment

_WARM = 256


def measure(method: str, mode: str, rows: int, rows_b: int, sample: int) -> dict[str, Any]:
    """Run both parties; ``rows`` of the active and ``rows_b`` of the passive side."""
    settings = {"method": method, "mode": mode, "rows": rows, "rows_b": rows_b}
    with tempfile.TemporaryDirectory() as place:
        prepared = _prepare(settings, Path(place)) if method == "cached" else {}
        active, passive = run_pair("fedlearn.bench.align", settings | {"tables": place})
    result: dict[str, Any] = (
        settings
        | prepared
        | {
            "seconds": max(active["seconds"], passive["seconds"]),
            "bytes_per_id": (active["bytes"] + passive["bytes"]) / max(rows, rows_b),
            "cpu_seconds_a": active["cpu_seconds"],
            "cpu_seconds_b": passive["cpu_seconds"],
            "peak_mib_a": active["peak_mib"],
            "peak_mib_b": passive["peak_mib"],
            "exact": active["exact"] and passive["exact"],
        }
    )
    if prepared and mode != "cardinality":
        result["seconds_with_table"] = max(active["seconds_with_table"], passive["seconds_with_table"])
    result["seconds_per_id"] = result["seconds"] / max(rows, rows_b)
    if sample:
        result |= {"openmined_rows": sample, "openmined_seconds_per_id": _openmined(sample)}
    return result


def _openmined(sample: int) -> float:
    """Seconds per ID of openmined-psi, both parties in turn, without a network (one thread is all it uses)."""
    import private_set_intersection.python as psi

    own, theirs = ([str(i) for i in range(k, k + sample)] for k in (0, sample // 2))
    started = time.perf_counter()
    client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
    setup = server.CreateSetupMessage(1e-9, sample, theirs, psi.DataStructure.RAW)
    found = client.GetIntersection(setup, server.ProcessRequest(client.CreateRequest(own)))
    if len(found) != sample - sample // 2:
        raise ValueError("openmined-psi found another intersection")
    return (time.perf_counter() - started) / sample


def _prepare(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The passive side's table, and what it cost."""
    ids, started, cpu = _ids(settings, "passive"), time.perf_counter(), time.process_time()
    tables.prepare(folder, ids, _contract(settings), lambda done, total: None)
    return {"prepare_seconds": time.perf_counter() - started, "prepare_cpu_seconds": time.process_time() - cpu}


# --- one party's process -----------------------------------------------------------------------------


def _contract(settings: dict[str, Any]) -> Contract:
    return Contract.model_validate(
        {
            "name": "bench",
            "purpose": "measuring alignment",
            "expires": "9999-12-31",
            "active": {"name": "active", "features": {"x": "number"}},
            "passive": {"name": "passive", "features": {"y": "number"}},
            "label": {"column": "label"},
            "align": {
                "mode": settings["mode"],
                "method": settings["method"],
                "queries": {"session": 10**9, "day": 10**9, "total": 10**9},
                "key": {"column": "id"},
            },
            "budget": {"rows": 10**9},
        }
    )


def _ids(settings: dict[str, Any], party: str) -> pa.StringArray:
    """The active side's numbers begin at zero, the passive side's so that half of the shorter list is shared."""
    shared = min(settings["rows"], settings["rows_b"]) // 2
    first, count = (0, settings["rows"]) if party == "active" else (settings["rows"] - shared, settings["rows_b"])
    return pa.array(np.arange(first, first + count) + 10**9).cast(pa.string())


def _main(settings: dict[str, Any]) -> dict[str, Any]:
    party, contract = settings["party"], _contract(settings)
    ids, short = _ids(settings, party), _ids({"rows": _WARM, "rows_b": _WARM}, party)
    place, cached = Path(settings["tables"]), settings["method"] == "cached"
    role: Callable[..., Alignment] = align.align_active if party == "active" else align.align_passive
    more: dict[str, Any] = {}
    if cached and party == "active":
        more = {"shelf": tables.shelf(place)}
    elif cached:
        more = {"prepared": tables.load(place, ids, contract)}
    with party_channel(settings) as channel:
        first = time.perf_counter()
        if not (cached and settings["mode"] == "cardinality"):
            role(channel, ids if cached else short, contract, **more)
        before = channel.bytes_sent
        started, cpu = time.perf_counter(), time.process_time()
        result = role(channel, ids, contract, **more)
        return {
            "seconds": time.perf_counter() - started,
            "seconds_with_table": started - first,
            "cpu_seconds": time.process_time() - cpu,
            "bytes": channel.bytes_sent - before,
            "peak_mib": peak_mib(),
            "exact": _exact(settings, party, result),
        }


def _exact(settings: dict[str, Any], party: str, result: align.Alignment) -> bool:
    """Whether the rows found are those that the numbers have in common."""
    shared = min(settings["rows"], settings["rows_b"]) // 2
    if settings["mode"] == "cardinality":
        return bool(result.shared == shared)
    if party == "passive" and settings["mode"] == "one-sided":
        return bool(np.array_equal(np.sort(result.rows), np.arange(settings["rows_b"])))
    first = settings["rows"] - shared if party == "active" else 0
    return bool(np.array_equal(np.sort(result.rows[result.rows >= 0]), np.arange(first, first + shared)))


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
