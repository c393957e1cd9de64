"""The active side's service: a score and a decision for one applicant, with the passive side's part or without it."""

from __future__ import annotations

import hashlib
import time
from typing import Protocol

from google.protobuf.message import DecodeError

from fedlearn.contract import Contract, Service
from fedlearn.models.scorecard import codes_of
from fedlearn.protocols import serve as protocol
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import (
    MOST_BYTES,
    STATUSES,
    Limiter,
    Memo,
    Metrics,
    Model,
    Models,
    Refusal,
    check_terms,
    features_of,
    log,
)
from fedlearn.service.scorer import Outcome, Part
from fedlearn.service.store import Features, Row, normaliser
from fedlearn.v1 import serve_pb2 as pb

#: What the fallback answers for: the passive side is away, overloaded, or does not know the applicant well enough.
_COVERED = {
    "peer-unavailable", "store-unavailable", "too-many", "used-up", "no-first-step", "unknown-at-peer",
    "features-missing", "feature-out-of-range", "internal",
}  # fmt: skip
_PATIENCE = 5  #: failures in a row after which the passive side is left alone
_PAUSE = 0.5  #: for so many seconds


class Peer(Protocol):
    """The kept connection to the passive side's service."""

    def ask(self, raw: bytes, seconds: float) -> bytes:
        """Its answer. Raises Refusal: with its status, or ``peer-unavailable`` when there is none in time."""


class Deciding:
    """Answers one request at a time, from several threads."""

    def __init__(
        self, contract: Contract, service: Service, models: Models, store: Features, audit: AuditLog, peer: Peer,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        """``contract`` has a ``[serving]``."""
        self._contract, self._service, self._models = contract, service, models
        self._store, self._audit, self._peer, self._metrics = store, audit, peer, metrics
        self._normal, self._memo = normaliser(contract.align.key), Memo()
        self._limits = {name: Limiter(c.per_second, c.per_day) for name, c in service.callers.items()}
        self._hash, self._mode = contract.serving_hash(), contract.serving.mode if contract.serving else ""
        self._codes = len(codes_of(contract.scorecard, contract.passive)) if contract.scorecard else 0
        self._failures, self._again = 0, 0.0

    def answer(self, caller: str, raw: bytes) -> bytes:
        """A :class:`ScoreRequest` answered with a :class:`ScoreReply`, both serialised.

        Args:
            caller: the name in the caller's certificate.
            raw: not yet trusted.

        Raises:
            Refusal: with the status. It is in the audit log if a request could be read.
        """
        if caller not in self._limits:
            raise Refusal("not-a-caller", "the party file does not list this caller under [service.callers]")
        if len(raw) > MOST_BYTES:
            raise Refusal("oversized", f"the request has {len(raw)} bytes, more than {MOST_BYTES}")
        try:
            request = pb.ScoreRequest.FromString(raw)
        except DecodeError:
            raise Refusal("malformed", "the request is no ScoreRequest") from None
        try:
            if request.protocol != protocol.PROTOCOL:
                said = f"the request is of protocol {request.protocol}, the service's is {protocol.PROTOCOL}"
                raise Refusal("old-client", said)
            check_terms(self._contract, request)
            self._limits[caller].take()
            return self._memo.once(request.request_id, raw, lambda: self._score(request, caller))
        except Refusal as refusal:
            self._audit.add("refuse", request=request.request_id[:64], caller=caller, status=refusal.status)
            raise

    def _score(self, request: pb.ScoreRequest, caller: str) -> bytes:
        applicant = self._normal(request.applicant)
        if applicant is None:
            raise Refusal("malformed", "applicant is no identifier of the kind that the contract names")
        row = features_of(self._store, applicant, self._service.most_missing)
        model, reason = self._chosen(applicant), ""
        try:
            part = self._part(request, applicant, row, model)
        except Refusal as refusal:
            fallback = self._fallback()
            if fallback is None or refusal.status not in _COVERED:
                raise
            model, part, reason = fallback, Part(), refusal.status
            self._metrics.count(f'fallbacks_total{{reason="{reason}"}}')
        outcome = part.sealed or model.scorer.outcome(row, part)
        model.drift.count(model.scorer.codes(row), outcome.margin)
        reply = self._reply(request, model, outcome, reason)
        self._audit.add(
            "score", request=request.request_id, consent=request.consent, purpose=request.purpose, caller=caller,
            model=model.entry.facts["model_id"], mode=self._mode, fallback=bool(reason), decision=reply.decision,
            joint=not model.entry.facts["alone"],
        )  # fmt: skip
        return reply.SerializeToString()

    def _chosen(self, applicant: str) -> Model:
        """The challenger for its share of applicants, always the same ones; the champion for the others."""
        name = self._service.model
        champion, challenger = (self._models.in_state(name, state) for state in ("champion", "challenger"))
        if challenger is not None and self._service.challenger_share:
            draw = hashlib.sha256(f"{name}\n{applicant}".encode()).digest()[:8]
            if int.from_bytes(draw) < self._service.challenger_share * 2**64:
                return challenger
        if champion is None:
            raise Refusal("no-model", f"no version of model {name!r} is promoted to champion")
        return champion

    def _fallback(self) -> Model | None:
        """The model that does without the passive side, where one is named: no joint model, even if it has the name."""
        name = self._service.fallback
        found = None if name is None else self._models.in_state(name, "champion")
        if found is not None and not found.entry.facts["alone"]:
            log("fallback-not-alone", model=found.entry.label)
            return None
        return found

    def _part(self, request: pb.ScoreRequest, applicant: str, row: Row, model: Model) -> Part:
        if model.entry.facts["alone"]:
            return Part()
        asked = self._asked(request, applicant, model)
        return self._parsed(self._told(asked.SerializeToString(), self._service.deadline_ms / 1000), model)

    def _asked(self, request: pb.ScoreRequest, applicant: str, model: Model) -> pb.PartRequest:
        """The question, entered into the audit log."""
        if time.monotonic() < self._again:
            raise Refusal("peer-unavailable", "the other party has not answered for a while, and there is no fallback")
        asked = pb.PartRequest(
            protocol=protocol.PROTOCOL, request_id=request.request_id, serving_hash=self._hash,
            model_id=bytes.fromhex(model.entry.facts["model_id"]), applicant=applicant, purpose=request.purpose,
            consent=request.consent, consent_expires=request.consent_expires,
        )  # fmt: skip
        self._audit.add("ask", request=request.request_id, consent=request.consent, purpose=request.purpose)
        return asked

    def _told(self, question: bytes, seconds: float) -> bytes:
        """What the passive side answers, not yet trusted."""
        try:
            raw = self._peer.ask(question, seconds)
        except Refusal as refusal:
            raise self._failed(refusal) from None
        self._failures = 0
        return raw

    def _failed(self, refusal: Refusal) -> Refusal:
        """Leave a peer that fails alone for a moment; and say whose fault it was."""
        if refusal.status == "not-a-caller":  # this side, not whoever asks it
            refusal = Refusal("peer-unavailable", "the other party does not accept this side's certificate")
        if refusal.status == "peer-unavailable":
            self._failures += 1
            if self._failures >= _PATIENCE:
                self._again = time.monotonic() + _PAUSE
            return refusal
        self._failures = 0  # it has answered
        status = "unknown-at-peer" if refusal.status == "unknown-applicant" else refusal.status
        if status not in STATUSES:
            status = "peer-misbehaved"
        return Refusal(status, f"the other party refused: {STATUSES[status][2]}")

    def _parsed(self, raw: bytes, model: Model) -> Part:
        try:
            reply = pb.PartReply.FromString(raw)
        except DecodeError:
            raise Refusal("peer-misbehaved", "the other party sent what is no PartReply") from None
        fault = protocol.fault(reply, model.scorer.due, self._codes)
        if fault:
            raise Refusal("peer-misbehaved", f"the other party {fault}")
        return Part(reply.sides, reply.points, tuple(zip(reply.reason, reply.lost, strict=True)))

    def _reply(self, request: pb.ScoreRequest, model: Model, outcome: Outcome, reason: str) -> pb.ScoreReply:
        reply = pb.ScoreReply(
            request_id=request.request_id, model=model.entry.label, probability=outcome.mean, margin=outcome.margin,
            score=outcome.score, reasons=outcome.reasons, fallback=bool(reason), fallback_reason=reason,
            calibrated=outcome.calibrated,
        )  # fmt: skip
        chosen = {"score": outcome.score, "calibrated": outcome.calibrated}.get(self._service.measure)
        value = outcome.mean if chosen is None else chosen
        for number, band in enumerate(self._service.bands):
            if number == outcome.band or (value is not None and (band.up_to is None or value <= band.up_to)):
                reply.band, reply.decision = band.name, band.decision
                break
        return reply
