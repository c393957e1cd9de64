from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("session", "sequence", "chunk", "heartbeat", "abort")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sequence: int
    chunk: Chunk
    heartbeat: Heartbeat
    abort: Abort
    def __init__(self, session: _Optional[bytes] = ..., sequence: _Optional[int] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("type", "total", "data", "last")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    type: str
    total: int
    data: bytes
    last: bool
    def __init__(self, type: _Optional[str] = ..., total: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Abort(_message.Message):
    __slots__ = ("exit_code", "step")
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    step: str
    def __init__(self, exit_code: _Optional[int] = ..., step: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "release", "party", "role", "job", "contract_hash", "nonce", "model_id")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PARTY_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_HASH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    release: str
    party: str
    role: str
    job: str
    contract_hash: bytes
    nonce: bytes
    model_id: bytes
    def __init__(self, protocol: _Optional[int] = ..., release: _Optional[str] = ..., party: _Optional[str] = ..., role: _Optional[str] = ..., job: _Optional[str] = ..., contract_hash: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., model_id: _Optional[bytes] = ...) -> None: ...

class Confirm(_message.Message):
    __slots__ = ("transcript_hash",)
    TRANSCRIPT_HASH_FIELD_NUMBER: _ClassVar[int]
    transcript_hash: bytes
    def __init__(self, transcript_hash: _Optional[bytes] = ...) -> None: ...

class Readiness(_message.Message):
    __slots__ = ("rows", "features")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    features: int
    def __init__(self, rows: _Optional[int] = ..., features: _Optional[int] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("ledger_hash",)
    LEDGER_HASH_FIELD_NUMBER: _ClassVar[int]
    ledger_hash: bytes
    def __init__(self, ledger_hash: _Optional[bytes] = ...) -> None: ...
