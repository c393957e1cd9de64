"""``fedlearn bench serve``: latency of online scoring, both services as processes on loopback over mutual TLS.

Requests come at even intervals whether or not earlier ones were answered, and a request's time counts from the moment
it was due, so that a service that falls behind shows. The trees are complete, of random splits on random features of
both sides: what a request costs depends on their number and depth alone. The scorecard has weights of evidence of every
feature, and a reason code for each. The load comes from this process, on the same machine: ``cpu_ms_load`` is what a
request costs here. The yardstick, in the same run at the same rate: two processes that pass the request on and back
over the same connections, and do nothing (:mod:`fedlearn.bench.echo`).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tomli_w
from pyarrow import parquet

from fedlearn import keys
from fedlearn.bench.pair import PARTIES, free_port
from fedlearn.contract import (
    Align,
    Boost,
    Contract,
    Glm,
    Key,
    Label,
    PartyFile,
    Scorecard,
    Serving,
    Side,
    Tls,
    load_contract,
    load_party,
)
from fedlearn.data import Binning, FeatureBins
from fedlearn.data.design import Codes, Column, Design, Evidence
from fedlearn.errors import FedlearnError
from fedlearn.kernels.trees import MASK
from fedlearn.models import linear
from fedlearn.models import share as trees
from fedlearn.models.forest import Forest
from fedlearn.protocols.serve_sealed import agree
from fedlearn.service import audit
from fedlearn.service.common import Refusal
from fedlearn.service.registry import open_registry
from fedlearn.service.rpc import Client, Stream
from fedlearn.v1 import serve_pb2 as pb

_ROWS, _FEATURES, _BINS = 20_000, 15, 32
_WARM_UP = 300
_WORKERS = 4  # with the other party next door; more of them would queue for the interpreter
_YARDSTICK = 5.0  # seconds
_BANDS = [{"name": "low", "decision": "approve", "up_to": 0.5}, {"name": "high", "decision": "refer"}]


@dataclass(frozen=True)
class Setting:
    """What is measured: requests a second, for so many seconds, on a model of this size."""

    rate: float = 100.0
    seconds: float = 10.0
    trees: int = 100
    depth: int = 5
    mode: Literal["plain", "sealed"] = "plain"
    tells: Literal["score", "band"] = "score"
    model: str = "trees"
    calls: Literal["streams", "single"] = "streams"


def measure(setting: Setting) -> dict[str, Any]:
    """Start both services, send the load, and compare both audit logs.

    Raises:
        FedlearnError: a service did not start.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = _prepare(folder, setting)
        bare = _driven(files, setting, min(setting.seconds, _YARDSTICK), "fedlearn.bench.echo")
        found = _driven(files, setting, setting.seconds)
        if setting.mode == "sealed":
            found |= _traffic(folder, load_contract(load_party(files["active"]).contract))
        agreed = audit.agree(folder / "active" / "audit.jsonl", folder / "passive" / "audit.jsonl")
    spent = tuple(f"cpu_ms_{party}" for party in PARTIES)
    return {
        "mode": setting.mode, "calls": setting.calls, "tells": setting.tells, "model": setting.model,
        "trees": setting.trees, "depth": setting.depth, "rate": setting.rate, "seconds": setting.seconds, **found,
        **{f"yardstick_{name}": bare[name] for name in ("p50_ms", "p99_ms", "achieved_rate", *spent)},
        "in_both_logs": agreed["scored"],
    }  # fmt: skip


def _driven(files: dict[str, Path], setting: Setting, seconds: float, *module: str) -> dict[str, Any]:
    """Start both services, or the module in their place, and send the load: latency, and processor time a request."""
    with ExitStack() as stack:
        running = {party: stack.enter_context(_service(files[party], *module)) for party in PARTIES[::-1]}
        lender = stack.enter_context(_lender(load_party(files["active"]), setting))
        _load(lender, 200.0, _WARM_UP, "warm")
        before, mine = {party: _cpu_seconds(pid) for party, pid in running.items()}, time.process_time()
        found = _load(lender, setting.rate, round(setting.rate * seconds), "load")
        used = {party: _cpu_seconds(pid) - before[party] for party, pid in running.items()}
        used["load"] = time.process_time() - mine
    return found | {f"cpu_ms_{who}": round(1000 * used[who] / found["requests"], 3) for who in (*PARTIES, "load")}


def _traffic(folder: Path, contract: Contract) -> dict[str, Any]:
    """What sealed mode sends for one request, and what its answers leak in all."""
    share = trees.load(folder / "active" / "share", contract, "active")
    at = agree(contract, share.model_id, share.passive_splits if isinstance(share, trees.ActiveShare) else None)
    leaked = sum(setup.plan.kl_total for setup in (at.sums, at.table) if setup is not None)
    return dict(zip(("bytes_up", "bytes_down"), at.traffic, strict=True)) | {"log2_kl_nats_of_all": math.log2(leaked)}


def _request(name: str, n: int) -> bytes:
    return pb.ScoreRequest(
        protocol=1, request_id=f"{name}-{n:09d}", applicant=f"{(n * 7919) % _ROWS:09d}", purpose="bench",
        consent=f"consent-{n}", consent_expires="2999-12-31",
    ).SerializeToString()  # fmt: skip


#: Sends a request and goes on; what it is given is told, in another thread, whether the request was answered.
Lender = Callable[[bytes, Callable[[bool], None]], None]


@contextmanager
def _lender(own: PartyFile, setting: Setting) -> Iterator[Lender]:
    """The lender's own system: it asks over a few streams, or makes a call for each request."""
    client = Client(str(own.service and own.service.listen), own.tls, "active", "active", "Scores")
    streams = [_Pipeline(client.stream()) for _ in range(_WORKERS if setting.calls == "streams" else 0)]

    def over_streams(raw: bytes, done: Callable[[bool], None]) -> None:
        min(streams, key=lambda pipeline: len(pipeline.due)).send(raw, done)

    def single(raw: bytes, done: Callable[[bool], None]) -> None:
        client.call("Score", raw, 10.0, done)

    try:
        yield over_streams if streams else single
    finally:
        for pipeline in streams:
            pipeline.stream.end()
        client.close()


class _Pipeline:
    """A stream on which requests follow each other without waiting for answers."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.due = stream, deque[Callable[[bool], None]]()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, raw: bytes, done: Callable[[bool], None]) -> None:
        self.due.append(done)
        self.stream.put(raw)

    def _read(self) -> None:
        while True:
            try:
                self.stream.take()
                answered = True
            except Refusal:
                answered = False
            if not answered and not self.stream.open:
                break
            self.due.popleft()(answered)
        while self.due:
            self.due.popleft()(False)


def _load(lender: Lender, rate: float, count: int, name: str) -> dict[str, Any]:
    times, failed = np.full(count, np.nan), [0]
    ended = threading.Semaphore(0)
    requests = [_request(name, n) for n in range(count)]  # what making them takes is not the services' doing
    start = time.perf_counter() + 0.05

    def done(n: int, due: float, answered: bool) -> None:
        if answered:
            times[n] = time.perf_counter() - due
        else:
            failed[0] += 1
        ended.release()

    for n, raw in enumerate(requests):
        due = start + n / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        lender(raw, partial(done, n, due))
    for _ in range(count):
        ended.acquire()
    seconds = time.perf_counter() - start
    answered = times[~np.isnan(times)]
    p50, p99 = np.percentile(answered, [50, 99]) * 1000 if len(answered) else (np.nan, np.nan)
    return {
        "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "requests": count, "failed": failed[0],
        "achieved_rate": round(len(answered) / seconds, 1),
    }  # fmt: skip


@contextmanager
def _service(file: Path, *module: str) -> Iterator[int]:
    """A running service's process ID."""
    words = module or ("fedlearn", "serve")
    process = subprocess.Popen([sys.executable, "-m", *words, "--party", str(file)], stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if '"ready"' in line:
                break
        else:
            raise FedlearnError(f"the service of {file} did not start: {''.join(lines).strip()[-2000:]}")
        threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()  # nobody waits for a full pipe
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- what is served ----------------------------------------------------------------------------------


def _prepare(folder: Path, setting: Setting) -> dict[str, Path]:
    """Keys, tables, contract, party files, shares and registries of both parties; returns the party files."""
    keys.create_authority(folder / "authority", "bench authority")
    sides = {party: Side(name=party, features=dict.fromkeys(names(party), "number")) for party in PARTIES}
    contract = Contract(
        name="bench", purpose="measure online scoring", expires=date(2999, 12, 31), active=sides["active"],
        passive=sides["passive"], label=Label(column="label"), align=Align(key=Key(column="id", normalise="digits")),
        serving=Serving(mode=setting.mode, tells=setting.tells, purposes=("bench",)), **algorithm(setting),
    )  # fmt: skip
    draws = np.random.default_rng(1)
    halves = shares(setting, draws)
    listen = {party: f"127.0.0.1:{free_port()}" for party in PARTIES}
    files = {}
    for party in PARTIES:
        tls = keys.issue(folder / "authority", folder / party, party)
        columns: dict[str, Any] = {name: draws.random(_ROWS) for name in names(party)}
        table = pa.table({"id": [f"{n:09d}" for n in range(_ROWS)], **columns})
        parquet.write_table(table, folder / party / "table.parquet")
        files[party] = _write_party(folder / party, party, contract, tls, listen)
        (folder / party / "share").mkdir()
        save(halves[party], folder / party / "share", contract, party)
        registry, _ = open_registry(load_party(files[party]))
        entry = registry.add(folder / party / "share", "model", contract, party)
        registry.promote("model", entry.facts["version"])
    return files


def algorithm(setting: Setting) -> dict[str, Any]:
    """The contract's tables of the setting's model."""
    if setting.model == "trees":
        return {"boost": Boost(trees=setting.trees, depth=setting.depth, bins=_BINS)}
    codes = {name: f"R-{name}" for party in PARTIES for name in names(party)}
    return {"glm": Glm(woe=True, bins=_BINS), "scorecard": Scorecard(codes=codes)}


def _card(party: str, draws: np.random.Generator) -> linear.LinearShare:
    """Weights of evidence of every feature of a side, with a group for each bin."""
    columns = []
    for feature in _binning(party).features:
        count = np.arange(feature.bins)
        evidence = Evidence(Codes(feature), count, draws.normal(0, 0.5, feature.bins), np.full(feature.bins, 600), 0.1)
        columns.append(Column(feature.name, feature.name, "number", evidence=evidence))
    return linear.LinearShare(party, bytes(16), Design(tuple(columns)), draws.uniform(0.1, 1, _FEATURES))


def _write_party(folder: Path, party: str, contract: Contract, tls: Tls, listen: dict[str, str]) -> Path:
    terms = contract.model_dump(mode="json", exclude_none=True)
    (folder / "contract.toml").write_text(tomli_w.dumps(terms), encoding="utf-8")
    service: dict[str, Any] = {
        "listen": listen[party], "store": {"path": "table.parquet"}, "deadline_ms": 5000, "workers": _WORKERS,
    }  # fmt: skip
    if party == "active":
        service |= {"peer": listen["passive"], "callers": {"active": {"per_second": 1_000_000}}, "bands": _BANDS}
    own = {
        "party": party, "contract": "contract.toml", "data": {"path": "table.parquet"},
        "network": {"listen": "127.0.0.1:1"}, "tls": {name: str(path) for name, path in tls},
        "output": {"folder": "results"}, "service": service,
    }  # fmt: skip
    (folder / "party.toml").write_text(tomli_w.dumps(own), encoding="utf-8")
    return folder / "party.toml"


def names(party: str) -> list[str]:
    """A side's features."""
    return [f"{party}{k}" for k in range(_FEATURES)]


def shares(setting: Setting, draws: np.random.Generator) -> dict[str, Any]:
    """Both halves of the setting's model."""
    if setting.model == "trees":
        return _trees(setting, draws)
    return {party: _card(party, draws) for party in PARTIES}


def save(half: Any, folder: Path, contract: Contract, party: str) -> None:
    """Write one of :func:`shares` into ``folder``, which exists."""
    (linear.save if isinstance(half, linear.LinearShare) else trees.save)(half, folder, contract, party)


def _trees(setting: Setting, draws: np.random.Generator) -> dict[str, trees.Share]:
    """Complete trees; a split goes left below a random bin of a random feature of either side."""
    inner, nodes = 2**setting.depth - 1, 2 ** (setting.depth + 1) - 1
    at = np.arange(nodes)
    left = np.where(at < inner, 2 * at + 1, -1)
    first = nodes * np.arange(setting.trees)[:, None]
    left = np.where(left >= 0, left + first, -1).ravel().astype(np.int32)
    split = left >= 0
    masks = np.packbits(np.arange(8 * MASK) < draws.integers(1, _BINS, len(left))[:, None], axis=1, bitorder="little")
    feature = np.where(split, draws.integers(0, _FEATURES, len(left)), 0)
    passive = np.flatnonzero(split & (draws.random(len(left)) < 0.5))
    theirs = trees.PassiveShare(bytes(16), _binning("passive"), feature[passive], masks[passive])
    feature[passive] = -1 - np.arange(len(passive))
    opaque = np.where(feature < 0, 0, -1).astype(np.int32)
    zeros = np.zeros(len(left))
    forest = Forest(
        base=np.zeros(1), roots=first.ravel().astype(np.int32), output=np.zeros(setting.trees, np.int32),
        feature=feature.astype(np.int32), opaque=opaque, masks=masks, left=left,
        value=np.where(split, 0.0, draws.normal(0, 0.05, len(left))), gain=zeros, cover=zeros,
        size=np.zeros(len(left), np.int64),
    )  # fmt: skip
    ours = trees.ActiveShare(bytes(16), _binning("active"), forest, len(passive))
    return {"active": ours, "passive": theirs}


def _binning(party: str) -> Binning:
    edges = np.arange(1, _BINS) / _BINS
    return Binning(tuple(FeatureBins(name, "number", edges) for name in names(party)))
