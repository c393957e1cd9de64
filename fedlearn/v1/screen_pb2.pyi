from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ScreenBins(_message.Message):
    __slots__ = ("bins", "ordered")
    BINS_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    bins: _containers.RepeatedScalarFieldContainer[int]
    ordered: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, bins: _Optional[_Iterable[int]] = ..., ordered: _Optional[_Iterable[bool]] = ...) -> None: ...

class ScreenKept(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kept: _Optional[_Iterable[int]] = ...) -> None: ...
