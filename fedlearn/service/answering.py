"""The passive side's service: its part of one applicant's score, to the contract's other party and nobody else."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from fedlearn.contract import Contract, Service
from fedlearn.protocols.serve import PROTOCOL
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import (
    MOST_BYTES,
    EachLimiter,
    Limiter,
    Memo,
    Model,
    Models,
    Refusal,
    check_terms,
    features_of,
    plain,
)
from fedlearn.service.store import Features, normaliser
from fedlearn.v1 import serve_pb2 as pb


class Answering:
    """Answers one request at a time, from several threads."""

    def __init__(
        self, contract: Contract, me: str, service: Service, models: Models, store: Features, audit: AuditLog
    ) -> None:
        """``contract`` has a ``[serving]``."""
        self._contract, self._service, self._models = contract, service, models
        self._store, self._audit, self._peer = store, audit, contract.peer_of(me)
        self._hash, self._memo, self._normal = contract.serving_hash(), Memo(), normaliser(contract.align.key)
        if contract.serving is not None:
            self._limit = Limiter(contract.serving.per_second, contract.serving.per_day)
            self._each = EachLimiter(contract.serving.per_applicant)

    def answer(self, caller: str, raw: bytes) -> bytes:
        """A :class:`PartRequest` answered with a :class:`PartReply`, both serialised.

        Args:
            caller: the name in the caller's certificate.
            raw: not yet trusted.

        Raises:
            Refusal: with the status. It is in the audit log if a request could be read.
        """
        if caller != self._peer:
            raise Refusal("not-a-caller", "only the other party of the contract may ask")
        request = _parsed(raw)
        try:
            self._check(request)
            model = self._model(request.model_id.hex())  # before the memory of answers: it may be retired by now
            return self._memo.once(named(request), raw, lambda: self._part(request, model))
        except Refusal as refusal:
            self._audit.add("refuse", request=request.request_id[:64], status=refusal.status)
            raise plain(refusal) from None

    def _check(self, request: pb.PartRequest, *, counted: bool = True) -> None:
        if request.protocol != PROTOCOL:
            raise Refusal("old-client", f"the request is of protocol {request.protocol}, this side's is {PROTOCOL}")
        if request.serving_hash != self._hash:
            raise Refusal("contract-differs", "the two sides hold different contracts, or another [serving]")
        check_terms(self._contract, request)
        if self._normal(request.applicant) != request.applicant:  # or each spelling would have limits of its own
            raise Refusal("malformed", "applicant is not an identifier in the contract's form")
        if counted:
            self._limit.take()
            self._each.take(request.applicant)

    def _part(self, request: pb.PartRequest, model: Model) -> bytes:
        row = features_of(self._store, request.applicant, self._service.most_missing)
        part = model.scorer.part(row)
        model.drift.count(model.scorer.codes(row))
        self._audit.add(
            "answer", request=request.request_id, consent=request.consent, purpose=request.purpose,
            model=request.model_id.hex(), mode="plain",
        )  # fmt: skip
        codes, lost = zip(*part.reasons, strict=True) if part.reasons else ((), ())
        return pb.PartReply(sides=part.sides, points=part.points, reason=codes, lost=lost).SerializeToString()

    def _model(self, model_id: str) -> Model:
        model = self._models.served.get(model_id)
        if model is None and model_id in self._models.retired:
            raise Refusal("model-retired", "the model is retired")
        if model is None:
            raise Refusal("wrong-pair", "this side serves no half of that model")
        return model


def named(request: pb.PartRequest) -> str:
    """What its answer is kept under: after a promotion the same request may come again for the new model."""
    return f"{request.request_id} {request.model_id.hex()}"


def _parsed(raw: bytes) -> pb.PartRequest:
    if len(raw) > MOST_BYTES:
        raise Refusal("oversized", f"the request has {len(raw)} bytes, more than {MOST_BYTES}")
    try:
        return pb.PartRequest.FromString(raw)
    except DecodeError:
        raise Refusal("malformed", "the request is no PartRequest") from None
