"""The benchmark commands run and say what they promise; their figures are not judged here."""

import json
import subprocess
import sys
from typing import Any

import pytest


def bench(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(  # noqa: PLW1510  (judged below, with what it said)
        [sys.executable, "-m", "fedlearn", "bench", *arguments, "--json"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.processes
@pytest.mark.parametrize("routing", ["bits", "oblivious"])
def test_boost(routing: str) -> None:
    size = ("--rows", "3000", "--active-features", "3", "--passive-features", "4", "--trees", "3", "--depth", "3")
    said = bench("boost", *size, "--routing", routing, "--link", "lan")
    assert set(said) >= {
        "seconds_setup", "seconds_per_tree", "xgboost_seconds_per_tree", "ratio_to_xgboost", "bytes_per_tree_active",
        "bytes_per_tree_passive", "peak_mib_active", "peak_mib_passive", "auc", "auc_xgboost", "kl_nats",
    }  # fmt: skip
    assert said["rows"] == 3000
    assert said["auc"] == pytest.approx(said["auc_xgboost"], abs=0.05)
    # One vector of gradients and one of hessians for the root and every smaller child: 2·(1 + 1 + 2), of 7 bytes a row.
    assert said["bytes_per_tree_active"] < 8 * 7 * (3000 + 4096) + 200_000
    assert 0 < said["kl_nats"] < 2.0**-20


@pytest.mark.processes
def test_matvec() -> None:
    said = bench(
        "matvec", "--rows", "5000", "--features", "3", "--vectors", "9", "--repeat", "1", "--paillier-rows", "20"
    )
    assert said["exact"]
    assert said["paillier_ratio"] > 1
    assert said["seconds_wall"] > 0


@pytest.mark.processes
def test_serve() -> None:
    said = bench("serve", "--rate", "50", "--seconds", "1", "--trees", "20", "--depth", "3")
    assert said["requests"] == 50
    assert said["failed"] == 0
    assert 0 < said["p50_ms"] <= said["p99_ms"]
    assert said["in_both_logs"] == 350  # the warm-up's, too
    assert 0 < said["yardstick_p50_ms"] <= said["yardstick_p99_ms"]


@pytest.mark.processes
def test_serve_sealed() -> None:
    said = bench("serve", "--mode", "sealed", "--tells", "band", "--rate", "20", "--seconds", "1", "--trees", "20")
    assert (said["mode"], said["tells"], said["requests"], said["failed"]) == ("sealed", "band", 20, 0)
    assert 0 < said["p50_ms"] <= said["p99_ms"]
    assert said["in_both_logs"] >= 20
    assert said["log2_kl_nats_of_all"] < -20
    assert 20_000 < said["bytes_down"] < said["bytes_up"] < 200_000


@pytest.mark.processes
def test_serve_a_scorecard_in_single_calls() -> None:
    said = bench("serve", "--model", "scorecard", "--rate", "50", "--seconds", "1", "--calls", "single")
    assert said["failed"] == 0
    assert said["cpu_ms_load"] > 0


@pytest.mark.processes
@pytest.mark.parametrize("more", [(), ("--model", "scorecard", "--aligned")])
def test_predict(more: tuple[str, ...]) -> None:
    said = bench("predict", "--rows", "3000", "--trees", "5", "--depth", "3", *more)
    assert said["rows_written"] == 3000
    assert set(said["phase_seconds"]) == {"align", "score"}
    assert 0 < said["peak_mib_read"] <= said["peak_mib"]


@pytest.mark.processes
def test_woe() -> None:
    said = bench("woe", "--rows", "3000", "--passive-features", "9", "--bins", "5")
    assert said["largest_difference_of_iv"] < 1e-4
    assert 0 < said["kl_nats"] < 2.0**-20
    assert said["seconds"] > 0
