from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Asked(_message.Message):
    __slots__ = ("request", "number", "traceparent")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    number: int
    traceparent: str
    def __init__(self, request: _Optional[bytes] = ..., number: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Answered(_message.Message):
    __slots__ = ("reply", "number", "status", "sentence")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    number: int
    status: str
    sentence: str
    def __init__(self, reply: _Optional[bytes] = ..., number: _Optional[int] = ..., status: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class PartRequest(_message.Message):
    __slots__ = ("protocol", "request_id", "serving_hash", "model_id", "applicant", "purpose", "consent", "consent_expires")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SERVING_HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    APPLICANT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    CONSENT_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    request_id: str
    serving_hash: bytes
    model_id: bytes
    applicant: str
    purpose: str
    consent: str
    consent_expires: str
    def __init__(self, protocol: _Optional[int] = ..., request_id: _Optional[str] = ..., serving_hash: _Optional[bytes] = ..., model_id: _Optional[bytes] = ..., applicant: _Optional[str] = ..., purpose: _Optional[str] = ..., consent: _Optional[str] = ..., consent_expires: _Optional[str] = ...) -> None: ...

class PartReply(_message.Message):
    __slots__ = ("sides", "points", "reason", "lost")
    SIDES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    sides: bytes
    points: float
    reason: _containers.RepeatedScalarFieldContainer[int]
    lost: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sides: _Optional[bytes] = ..., points: _Optional[float] = ..., reason: _Optional[_Iterable[int]] = ..., lost: _Optional[_Iterable[float]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "applicant", "purpose", "consent", "consent_expires", "protocol")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    APPLICANT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    CONSENT_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    applicant: str
    purpose: str
    consent: str
    consent_expires: str
    protocol: int
    def __init__(self, request_id: _Optional[str] = ..., applicant: _Optional[str] = ..., purpose: _Optional[str] = ..., consent: _Optional[str] = ..., consent_expires: _Optional[str] = ..., protocol: _Optional[int] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("request_id", "model", "probability", "margin", "score", "reasons", "band", "decision", "fallback", "fallback_reason", "calibrated")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    probability: float
    margin: float
    score: float
    reasons: _containers.RepeatedScalarFieldContainer[str]
    band: str
    decision: str
    fallback: bool
    fallback_reason: str
    calibrated: float
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., probability: _Optional[float] = ..., margin: _Optional[float] = ..., score: _Optional[float] = ..., reasons: _Optional[_Iterable[str]] = ..., band: _Optional[str] = ..., decision: _Optional[str] = ..., fallback: _Optional[bool] = ..., fallback_reason: _Optional[str] = ..., calibrated: _Optional[float] = ...) -> None: ...
