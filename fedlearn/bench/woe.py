"""``fedlearn bench woe``: seconds to screen the passive side's features by information value, between two processes.

Rows are taken as aligned and features as binned. Each information value that the passive side is told is compared with
that of the pooled rows, counted in the open.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.bench.pair import party_channel, peak_mib, run_pair
from fedlearn.channel import Channel
from fedlearn.contract import Align, Budget, Contract, Glm, Key, Label, Side
from fedlearn.learner.woe import merge
from fedlearn.protocols import woe


def measure(rows: int, features: int, bins: int) -> dict[str, Any]:
    """Run both parties as processes. Raises FedlearnError when a party failed, with what it said."""
    size = {"rows": rows, "features": features, "bins": bins}
    active, passive = run_pair("fedlearn.bench.woe", size)
    agreed, (codes, label) = _contract(features, bins), _drawn(rows, features, bins)
    due = np.empty(features)
    for f, code in enumerate(codes):
        counts = np.bincount(code, minlength=bins + 1)
        events = np.bincount(code, label, bins + 1).astype(np.int64)
        due[f] = merge(events, counts, bins, True, _glm(agreed)).iv
    return {
        **size,
        "seconds": max(active["seconds"], passive["seconds"]),
        "bytes_active": active["bytes"],
        "bytes_passive": passive["bytes"],
        "kl_nats": active["kl_nats"],
        "largest_difference_of_iv": float(np.abs(np.array(passive["iv"]) - due).max()),
        "peak_mib_active": active["peak_mib"],
        "peak_mib_passive": passive["peak_mib"],
    }


def _contract(features: int, bins: int) -> Contract:
    return Contract(
        name="bench",
        purpose="measuring the speed of screening",
        expires=date.max,
        active=Side(name="active", features={"own": "number"}),
        passive=Side(name="passive", features={f"x{f}": "number" for f in range(features)}),
        label=Label(column="label"),
        align=Align(key=Key(column="id")),
        glm=Glm(woe=True, bins=bins),
        budget=Budget(rows=100_000_000),
    )


def _glm(contract: Contract) -> Glm:
    if contract.glm is None:
        raise ValueError("the contract has no [glm]")
    return contract.glm


def _drawn(rows: int, features: int, bins: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Bins and labels, of which some features know more than others; both sides draw the same."""
    draws = np.random.default_rng(3)
    label = (draws.random(rows) < 0.1).astype(np.int8)
    codes = draws.integers(0, bins, (features, rows), dtype=np.uint8)
    for f in range(0, features, 3):
        moved = (label == 1) & (draws.random(rows) < 0.2 + 0.6 * f / features)
        codes[f][moved] //= 2
    return codes, label


def _screen(channel: Channel, rows: int, features: int, bins: int, role: str) -> dict[str, Any]:
    agreed, (codes, label) = _contract(features, bins), _drawn(rows, features, bins)
    started = time.perf_counter()
    found: list[float]
    if role == "active":
        groups, _ = woe.evidence_active(channel, agreed, woe.Counted.of(label, np.arange(rows), rows))
        found = [group.iv for group in groups]
    else:
        own = woe.Bins(codes, np.full(features, bins + 1), np.full(features, bins), np.ones(features, np.bool_))
        found = [iv for ((_, _, iv),) in woe.evidence_passive(channel, agreed, own)]
    return {
        "seconds": time.perf_counter() - started,
        "iv": found,
        "bytes": channel.bytes_sent,
        "kl_nats": channel.ledger.kl_nats,
        "peak_mib": peak_mib(),
    }


def _main(settings: dict[str, Any]) -> dict[str, Any]:
    with party_channel(settings) as channel:
        _screen(channel, 500, 2, 3, settings["party"])  # kernels are compiled or loaded before time is taken
        channel.bytes_sent = channel.bytes_received = 0
        channel.ledger = type(channel.ledger)()
        return _screen(channel, settings["rows"], settings["features"], settings["bins"], settings["party"])


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
