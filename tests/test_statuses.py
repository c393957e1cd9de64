"""Both services in this process, without a network: each refusal by its status, limits, challengers, drift."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.bench import serve as bench
from fedlearn.contract import Caller, Contract, Service, Serving, load_party
from fedlearn.learner.woe import Tenths
from fedlearn.models import reference
from fedlearn.models.calibration import Calibration
from fedlearn.models.reference import Reference
from fedlearn.service import audit as logs
from fedlearn.service.answering import Answering
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import MOST_BYTES, STATUSES, Drift, Metrics, Models, Refusal
from fedlearn.service.deciding import Deciding
from fedlearn.service.host import _SCORERS, _counted
from fedlearn.service.registry import open_registry
from fedlearn.service.scorer import Outcome
from fedlearn.service.sealed import SealedAnswering, SealedDeciding
from fedlearn.service.store import open_store
from fedlearn.v1 import serve_pb2 as pb
from fedlearn.v1 import serve_sealed_pb2 as sealed_pb


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bench._prepare(tmp_path_factory.mktemp("statuses"), bench.Setting(trees=3, depth=2))


@dataclass
class Here:
    """The passive side's service, called directly; a peer of the active side's."""

    answer: Callable[[str, bytes], bytes]
    models: Models
    store: Any

    def ask(self, raw: bytes, seconds: float) -> bytes:
        return self.answer("active", raw)


@dataclass
class Stage:
    prepared: dict[str, Path]
    folder: Path
    stack: ExitStack
    sealed: bool = False

    def side(self, party: str, peer: Any = None, contract: dict[str, Any] | None = None, **service: Any) -> Here:
        own = load_party(self.prepared[party])
        assert own.service is not None
        registry, agreed = open_registry(own)
        agreed = Contract.model_validate(agreed.model_dump() | (contract or {}))
        kept = Service.model_validate(own.service.model_dump() | service)
        features = dict(agreed.side(party).features)
        store = open_store(kept.store, agreed.align.key, features)
        scorer = _SCORERS[party, self.sealed]
        models = Models(registry, agreed, party, lambda share: scorer(share, list(features), agreed))
        models.refresh()
        audit = AuditLog(self.folder / f"{party}.jsonl", party, own.tls.key)
        self.stack.callback(audit.close)
        metrics = Metrics()
        if party == "active":
            deciding = SealedDeciding if self.sealed else Deciding
            made: Any = deciding(agreed, kept, models, store, audit, peer, metrics)
        else:
            made = (SealedAnswering if self.sealed else Answering)(agreed, party, kept, models, store, audit)
        return Here(_counted(made.answer, metrics), models, store)


@pytest.fixture
def stage(prepared: dict[str, Path], tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Stage(prepared, tmp_path, stack)


def asked(number: int = 1, **fields: Any) -> bytes:
    usual = {"protocol": 1, "request_id": f"request-{number}", "applicant": f"{number:09d}", "purpose": "bench",
             "consent": "C-1", "consent_expires": "2999-12-31"}  # fmt: skip
    return pb.ScoreRequest(**(usual | fields)).SerializeToString()


def status(answer: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        answer()
    sentence = str(refusal.value)
    assert sentence
    assert "\n" not in sentence
    return refusal.value.status


def test_statuses_are_distinct() -> None:
    assert len({meaning for _, _, meaning in STATUSES.values()}) == len(STATUSES)


def test_a_model_of_which_the_other_party_has_no_half(stage: Stage) -> None:
    passive = stage.side("passive")
    active = stage.side("active", passive)
    assert pb.ScoreReply.FromString(active.answer("active", asked(1))).model == "model-1"
    (theirs,) = passive.models.served
    passive.models.served = {}
    assert status(lambda: active.answer("active", asked(2))) == "wrong-pair"
    passive.models.retired = {theirs}
    assert status(lambda: active.answer("active", asked(3))) == "model-retired"


def test_contracts(stage: Stage) -> None:
    passive = stage.side("passive", contract={"serving": Serving(purposes=("bench",), per_second=3).model_dump()})
    active = stage.side("active", passive)
    assert status(lambda: active.answer("active", asked())) == "contract-differs"
    stage.folder = stage.folder / "expired"
    late = stage.side("active", passive, contract={"expires": date(2020, 1, 1)})
    assert status(lambda: late.answer("active", asked())) == "contract-expired"


class Odd:
    """A passive side that answers with what it should not."""

    def __init__(self, reply: pb.PartReply | bytes | Refusal) -> None:
        self.reply = reply

    def ask(self, raw: bytes, seconds: float) -> bytes:
        if isinstance(self.reply, Refusal):
            raise self.reply
        return self.reply if isinstance(self.reply, bytes) else self.reply.SerializeToString()


@pytest.mark.parametrize(
    "reply",
    [b"\xff\xff", b"", pb.PartReply(sides=b"x" * 99), Refusal("odd", "x"),
     pb.PartReply(sides=b"\0", reason=[1], lost=[1.0]), pb.PartReply(sides=b"\0", points=math.nan)],
    ids=["garbage", "nothing", "too-long", "unknown-status", "reasons", "not-a-number"],
)  # fmt: skip
def test_a_peer_that_misbehaves(stage: Stage, reply: Any) -> None:
    active = stage.side("active", Odd(reply))
    assert status(lambda: active.answer("active", asked())) == "peer-misbehaved"


def test_what_fails_unexpectedly_tells_nothing(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    active = stage.side("active", stage.side("passive"))

    def broken(applicant: str) -> None:
        raise RuntimeError(f"secret of {applicant}")

    active.store.get = broken
    assert status(lambda: active.answer("active", asked())) == "internal"
    said = capsys.readouterr().err
    assert "RuntimeError" in said
    assert "secret" not in said
    assert f"{1:09d}" not in said


def test_the_passive_side_refuses_by_itself(stage: Stage) -> None:
    passive = stage.side("passive")
    request = {"protocol": 1, "request_id": "request-1", "applicant": "1", "purpose": "bench", "consent": "C-1"}

    def part(caller: str = "active", **fields: Any) -> Callable[[], object]:
        return lambda: passive.answer(caller, pb.PartRequest(**(request | fields)).SerializeToString())

    assert status(part("somebody")) == "not-a-caller"
    assert status(part(protocol=9)) == "old-client"
    assert status(part()) == "contract-differs"
    assert status(part(applicant="1" * MOST_BYTES)) == "oversized"
    assert status(lambda: passive.answer("active", b"\xff\xff")) == "malformed"


def test_a_refusal_tells_the_other_party_no_more_than_its_name(stage: Stage) -> None:
    asks, passive = question(stage, 7), stage.side("passive", most_missing=0.1)
    width = len(passive.store.get(f"{7:09d}"))
    passive.store.get = lambda _: (math.nan,) * 3 + (0.0,) * (width - 3)
    with pytest.raises(Refusal) as refusal:
        passive.answer("active", asks)
    assert (refusal.value.status, str(refusal.value)) == ("features-missing", STATUSES["features-missing"][2])


def test_a_certificate_that_the_other_party_refuses_is_this_sides_matter(stage: Stage) -> None:
    active = stage.side("active", Odd(Refusal("not-a-caller", "connect anew")))
    assert status(lambda: active.answer("active", asked())) == "peer-unavailable"


def test_a_refused_second_step_leaves_none(tmp_path: Path) -> None:
    """It was let by the limits, since its first step was counted; so would be any number of them."""
    setting = bench.Setting(trees=3, depth=2, mode="sealed", tells="band")
    with ExitStack() as stack:
        stage = Stage(bench._prepare(tmp_path, setting), tmp_path, stack, sealed=True)
        passive, said = stage.side("passive", registry=tmp_path / "passive" / "registry"), list[str]()

        class Between:
            def ask(self, raw: bytes, seconds: float) -> bytes:
                message = sealed_pb.SealedAsk.FromString(raw)
                if message.table and message.asked.request_id == "request-2":
                    message.table = message.table[:-1]
                    said.append(status(lambda: passive.answer("active", message.SerializeToString())))
                return passive.answer("active", raw)

        active = stage.side("active", Between())
        assert pb.ScoreReply.FromString(active.answer("active", asked(1))).band
        assert status(lambda: active.answer("active", asked(2))) == "no-first-step"
        assert said == ["malformed"]


def test_limits_are_each_callers_own(stage: Stage) -> None:
    few = {"one": Caller(per_second=3), "other": Caller(per_second=1000, per_day=5)}
    active = stage.side("active", stage.side("passive"), callers={name: c.model_dump() for name, c in few.items()})
    found = [outcome(lambda n=n: active.answer("one", asked(n))) for n in range(100, 140)]  # type: ignore[misc]
    assert found[:3] == ["ok"] * 3
    assert set(found[3:]) == {"ok", "too-many"} or set(found[3:]) == {"too-many"}
    assert [outcome(lambda n=n: active.answer("other", asked(n))) for n in range(200, 208)] == [  # type: ignore[misc]
        *["ok"] * 5, *["too-many"] * 3,
    ]  # fmt: skip
    refused = [entry for entry in logs.entries(stage.folder / "active.jsonl") if entry["kind"] == "refuse"]
    assert {entry["caller"] for entry in refused} == {"one", "other"}


def outcome(answer: Callable[[], object]) -> str:
    try:
        answer()
    except Refusal as refusal:
        return refusal.status
    return "ok"


def test_a_challenger_has_its_share_of_applicants(stage: Stage) -> None:
    passive = stage.side("passive")
    active = stage.side("active", passive, challenger_share=0.3)
    champion = next(iter(active.models.served.values()))
    facts = champion.entry.facts | {"version": 2}
    challenger = dataclasses.replace(
        champion, entry=dataclasses.replace(champion.entry, facts=facts, state="challenger")
    )
    active.models.served = {"a": champion, "b": challenger}
    models = [pb.ScoreReply.FromString(active.answer("active", asked(n))).model for n in range(1000, 1600)]
    assert 0.24 < models.count("model-2") / 600 < 0.36
    again = [
        pb.ScoreReply.FromString(active.answer("active", asked(n, request_id=f"again-{n}"))).model
        for n in range(1000, 1100)
    ]
    assert again == models[:100]


def test_bands_by_the_calibrated_probability(stage: Stage) -> None:
    bands = [{"name": "A", "decision": "approve", "up_to": 0.2}, {"name": "B", "decision": "decline"}]
    active = stage.side("active", stage.side("passive"), measure="calibrated", bands=bands)
    scorer = next(iter(active.models.served.values())).scorer
    found = set()
    for chance in (0.1, 0.9):
        scorer._calibration = Calibration(np.array([0.0]), np.array([chance]))
        reply = pb.ScoreReply.FromString(active.answer("active", asked(7, request_id=f"banded-{chance}")))
        assert reply.calibrated == chance
        found.add((reply.band, reply.decision))
    assert found == {("A", "approve"), ("B", "decline")}


def test_a_fallback_does_without_the_passive_side(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """A joint model under that name would be answered for with nothing where the passive side's part is due."""
    active = stage.side("active", Odd(Refusal("peer-unavailable", "gone")), fallback="model")
    assert status(lambda: active.answer("active", asked(1))) == "peer-unavailable"
    assert "fallback-not-alone" in capsys.readouterr().err
    alone(active.models)
    scorer = next(iter(active.models.served.values())).scorer
    scorer.outcome = lambda row, part: Outcome(0.5, 0.0)
    reply = pb.ScoreReply.FromString(active.answer("active", asked(2)))
    assert (reply.probability, reply.fallback) == (0.5, False)  # the champion asks nobody, so nothing is amiss
    entries = [e for e in logs.entries(stage.folder / "active.jsonl") if e["kind"] == "score"]
    assert [entry["joint"] for entry in entries] == [False]


def alone(models: Models) -> None:
    """As if these models were of the active side's features only."""
    for key, model in models.served.items():
        entry = dataclasses.replace(model.entry, facts=model.entry.facts | {"alone": True})
        models.served[key] = dataclasses.replace(model, entry=entry)


def test_only_failures_in_a_row_count(stage: Stage) -> None:
    odd = Odd(Refusal("peer-unavailable", "gone"))
    active = stage.side("active", odd)
    for n in range(20):
        odd.reply = Refusal("unknown-applicant" if n % 4 == 3 else "peer-unavailable", "x")
        assert status(lambda n=n: active.answer("active", asked(n))) in ("peer-unavailable", "unknown-at-peer")  # type: ignore[misc]
    odd.reply = stage.side("passive").ask(question(stage, 50), 1.0)
    assert outcome(lambda: active.answer("active", asked(50))) == "ok"


def question(stage: Stage, number: int, **fields: Any) -> bytes:
    """What the active side asks about an applicant."""
    heard: list[bytes] = []

    class Listening:
        def ask(self, raw: bytes, seconds: float) -> bytes:
            heard.append(raw)
            raise Refusal("peer-unavailable", "only listening")

    stage.folder = stage.folder / "listening"
    assert outcome(lambda: stage.side("active", Listening()).answer("active", asked(number))) == "peer-unavailable"
    asked_for = pb.PartRequest.FromString(heard[0])
    asked_for.MergeFrom(pb.PartRequest(**fields))
    return asked_for.SerializeToString()


def test_the_passive_side_forgets_no_limit_for_another_spelling(stage: Stage) -> None:
    serving = Serving(purposes=("bench",), per_applicant=1).model_dump()
    listened = question(stage, 7)
    passive = stage.side("passive", contract={"serving": serving})

    def spelt(applicant: str, request_id: str) -> bytes:
        request = pb.PartRequest.FromString(listened)
        request.applicant, request.request_id = applicant, request_id
        request.serving_hash = passive_hash(stage, serving)
        return request.SerializeToString()

    first = f"{7:09d}"
    assert outcome(lambda: passive.answer("active", spelt(first, "request-a"))) == "ok"
    assert outcome(lambda: passive.answer("active", spelt(first, "request-b"))) == "too-many"
    for other in (f" {first}", f"{first[:3]}-{first[3:]}", f"{first}.0", "x", "\0"):
        assert outcome(lambda other=other: passive.answer("active", spelt(other, "request-c"))) == "malformed"  # type: ignore[misc]


def passive_hash(stage: Stage, serving: dict[str, Any]) -> bytes:
    agreed = open_registry(load_party(stage.prepared["passive"]))[1]
    return Contract.model_validate(agreed.model_dump() | {"serving": serving}).serving_hash()


def test_a_promotion_or_retirement_between_two_tries(stage: Stage) -> None:
    """The same request may come for the new model; and for a retired one there is no answer, not even a kept one."""
    raw = question(stage, 8)
    passive = stage.side("passive")
    kept = passive.answer("active", raw)
    assert passive.answer("active", raw) == kept
    ((old, model),) = passive.models.served.items()
    new = bytes(range(16))
    passive.models.served = {new.hex(): model}
    passive.models.retired = {old}
    request = pb.PartRequest.FromString(raw)
    request.model_id = new
    assert passive.answer("active", request.SerializeToString()) == kept
    assert status(lambda: passive.answer("active", raw)) == "model-retired"


@pytest.mark.parametrize("distinct", [1, 3, 8, 500])
def test_drift_is_none_where_nothing_has_changed(distinct: int) -> None:
    """Shallow trees and short cards give few distinct scores, and deciles that coincide."""
    margins = np.random.default_rng(distinct).integers(0, distinct, 500) ** 2 / 7
    drift = Drift(Reference({}, Tenths.from_json(Tenths.of(margins).to_json())))
    for margin in margins.tolist():
        drift.count([], margin)
    assert drift.indices() == {"score": 0.0}


def test_a_reference_without_scores_by_decile(tmp_path: Path) -> None:
    """As earlier releases wrote them: features are still compared."""
    old = {"features": {"spend": [50, 30, 20]}, "deciles": [0.1] * 9}
    (tmp_path / reference.FILE).write_text(json.dumps(old), encoding="utf-8")
    drift = Drift(reference.load(tmp_path))
    drift.count([0], 0.5)
    assert set(drift.indices()) == {"feature:spend"}


def test_drift_of_features_and_scores() -> None:
    """Against the index by its own definition: Σ (q - p) ln(q / p)."""
    tenths = Tenths(np.arange(1, 10) / 10, np.full(10, 7))
    drift = Drift(Reference({"spend": np.array([50, 30, 20]), "city": np.array([10, 10, 10])}, tenths))
    assert drift.indices() == {}
    draws = np.random.default_rng(3)
    codes, margins = draws.choice(3, 3000, p=[0.2, 0.3, 0.5]), draws.random(3000) ** 2
    for code, margin in zip(codes.tolist(), margins.tolist(), strict=True):
        drift.count([code, code], margin)

    def index(before: Any, now: Any) -> float:
        p, q = (np.asarray(counts) / np.sum(counts) for counts in (before, now))
        return float(np.sum((q - p) * np.log(q / p)))

    live = np.bincount(codes)
    found = drift.indices()
    assert found["feature:spend"] == pytest.approx(index([50, 30, 20], live), rel=1e-2)
    assert found["feature:city"] == pytest.approx(index([1, 1, 1], live), rel=1e-2)
    assert found["score"] == pytest.approx(index(np.ones(10), np.histogram(margins, np.arange(11) / 10)[0]), rel=1e-2)
