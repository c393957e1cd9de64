from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreSides(_message.Message):
    __slots__ = ("bits", "rows")
    BITS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    bits: _containers.RepeatedScalarFieldContainer[bytes]
    rows: int
    def __init__(self, bits: _Optional[_Iterable[bytes]] = ..., rows: _Optional[int] = ...) -> None: ...

class ScoreDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
