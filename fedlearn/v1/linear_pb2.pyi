from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class LinearScores(_message.Message):
    __slots__ = ("first", "values", "reasons", "lost")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    first: int
    values: bytes
    reasons: bytes
    lost: bytes
    def __init__(self, first: _Optional[int] = ..., values: _Optional[bytes] = ..., reasons: _Optional[bytes] = ..., lost: _Optional[bytes] = ...) -> None: ...

class LinearDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
