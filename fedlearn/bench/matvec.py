"""``fedlearn bench matvec``: what the encrypted product costs, through the real protocol, against Paillier.

The functions of the back end are timed where the protocol calls them. Both processes make the same matrix from a seed,
so that the querier can hold every sum against NumPy's.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.bench.pair import Clock, party_channel, peak_mib, run_pair
from fedlearn.channel import Channel
from fedlearn.contract import Budget
from fedlearn.crypto import lwe, paillier
from fedlearn.crypto.matrix import Indicator
from fedlearn.protocols import matvec

_STAGES = ("encrypt", "respond", "decode")
#: Functions that are timed, and the stage that each belongs to.
_TIMED: list[tuple[Any, dict[str, str]]] = [
    (
        lwe,
        {
            "expand": "expand",
            "make_hint": "make_hint",
            "draw_secrets": "encrypt",
            "encrypt_piece": "encrypt",
            "accumulate": "respond",
            "answer": "respond",
            "known_part": "decode",
            "round_off": "decode",
        },
    ),
    (paillier, {"encrypt": "encrypt", "respond_indicator": "respond", "decode": "decode"}),
]


@dataclass(frozen=True)
class Size:
    """What is measured: samples, features, bins per feature, vectors per round, bits of a value, rounds.

    ``zeros`` is the share of samples put into bin 0 of a feature, over those that fall there by chance.
    """

    rows: int
    features: int
    bins: int
    vectors: int
    gradient_bits: int
    repeat: int
    zeros: float = 0.0

    @property
    def largest_value(self) -> int:
        """Largest absolute value in a vector."""
        return (1 << (self.gradient_bits - 1)) - 1


def measure(size: Size, paillier_rows: int) -> dict[str, Any]:
    """Run both parties; returns seconds (median over rounds), bytes, memory, exactness, the ratio.

    Stages overlap, between the parties and on a party's cores; the seconds of one are summed over threads.
    """
    querier, holder = run_pair("fedlearn.bench.matvec", {"size": asdict(size), "paillier_rows": paillier_rows})
    lattice = {**holder["lwe"], **querier["lwe"]}
    total = lattice["seconds_wall"]
    result = {
        **asdict(size),
        **lattice,
        "seconds_total": total,
        "exact": querier["exact"],
        "peak_mib_querier": querier["peak_mib"],
        "peak_mib_holder": holder["peak_mib"],
    }
    if paillier_rows:
        slow = {**holder["paillier"], **querier["paillier"]}
        seconds = sum(slow[f"seconds_{stage}"] for stage in _STAGES)
        scaled = seconds * size.rows / paillier_rows
        result |= {
            "paillier_rows": paillier_rows,
            "paillier_bits": querier["paillier_bits"],
            "paillier_seconds": seconds,
            "paillier_seconds_scaled_to_rows": scaled,
            "paillier_ratio": scaled / total,
        }
    return result


# --- one party's process -----------------------------------------------------------------------------


def _matrix(size: Size) -> Indicator:
    generator = np.random.default_rng(1)
    bins = generator.integers(0, size.bins, (size.features, size.rows)).astype(np.uint8)
    bins[generator.random(bins.shape) < size.zeros] = 0
    return Indicator(bins, np.full(size.features, size.bins, np.int64))


def _vectors(size: Size, round_number: int) -> NDArray[np.int32]:
    generator = np.random.default_rng(2 + round_number)
    top = size.largest_value
    return generator.integers(-top, top + 1, (size.vectors, size.rows)).astype(np.int32)


def _expected(matrix: Indicator, vectors: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.stack(
        [
            np.concatenate([np.bincount(b, v, int(s)) for b, s in zip(matrix.bins, matrix.sizes, strict=True)]).astype(
                np.int64
            )
            for v in vectors
        ]
    )


def _terms(size: Size, backend: str, rounds: int) -> matvec.Terms:
    return matvec.Terms(backend, 3072, size.largest_value, size.vectors * rounds, Budget().kl_nats)


def _medians(laps: list[dict[str, float]]) -> dict[str, float]:
    return {f"seconds_{name}": median(lap[name] for lap in laps) for name in laps[0]}


def _query(channel: Channel, size: Size, backend: str, rounds: int) -> dict[str, Any]:
    matrix = _matrix(size)
    shape = matvec.Shape.of(matrix)
    querier = matvec.open_querier(channel, shape, _terms(size, backend, rounds + 1))
    exact, laps, walls = True, [], []
    _CLOCK.lap()
    for k in range(rounds + 1):
        vectors = _vectors(size, k)
        started = time.perf_counter()
        sums = querier.ask(vectors)()
        walls.append(time.perf_counter() - started)
        laps.append(_CLOCK.lap())
        exact = exact and bool(np.array_equal(sums, _expected(matrix, vectors)))
    # The first round compiles or loads the kernels.
    return {"exact": exact, **_medians(laps[1:]), "seconds_wall": median(walls[1:])}


def _hold(channel: Channel, size: Size, backend: str, rounds: int) -> dict[str, Any]:
    matrix = _matrix(size)
    if backend == "lwe":  # compile or load the kernels before the hint is timed
        lwe.make_hint(matrix, lwe.expand(bytes(32), size.rows))
    _CLOCK.lap()
    holder = matvec.open_holder(channel, matrix, _terms(size, backend, rounds + 1))
    setup = _CLOCK.lap()
    laps = []
    for _ in range(rounds + 1):
        matvec.serve(channel, holder, size.vectors)
        laps.append(_CLOCK.lap())
    return {"seconds_hint": sum(setup.values()), **_medians(laps[1:])}


_CLOCK = Clock()


def _main(settings: dict[str, Any]) -> dict[str, Any]:
    size = Size(**settings["size"])
    for module, stages in _TIMED:
        for name, stage in stages.items():
            setattr(module, name, _CLOCK.timed(stage, getattr(module, name)))
    role = _query if settings["party"] == "active" else _hold
    with party_channel(settings) as channel:
        result: dict[str, Any] = {"lwe": role(channel, size, "lwe", size.repeat)}
        result["exact"] = result["lwe"].pop("exact", True)
        sent = {key: e.bytes // (size.repeat + 1) for key, e in channel.ledger.entries.items()}
        result["lwe"]["bytes_query"] = sent["matvec", "MatvecQuery", "active"]
        result["lwe"]["bytes_answer"] = sent["matvec", "MatvecAnswer", "passive"]
        result["lwe"]["bytes_hint"] = channel.ledger.entries["matvec", "MatvecHint", "passive"].bytes
        result["lwe"]["kl_nats_per_round"] = channel.ledger.kl_nats / (size.repeat + 1)
        result["peak_mib"] = peak_mib()
        if settings["paillier_rows"]:
            result["paillier_bits"] = 3072
            small = replace(size, rows=settings["paillier_rows"])
            result["paillier"] = role(channel, small, "paillier", 1)
            result["exact"] = result["paillier"].pop("exact", True) and result["exact"]
    return result


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
