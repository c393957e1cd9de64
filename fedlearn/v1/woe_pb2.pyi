from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class WoeBins(_message.Message):
    __slots__ = ("bins", "regular", "ordered", "names")
    BINS_FIELD_NUMBER: _ClassVar[int]
    REGULAR_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    bins: _containers.RepeatedScalarFieldContainer[int]
    regular: _containers.RepeatedScalarFieldContainer[int]
    ordered: _containers.RepeatedScalarFieldContainer[bool]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bins: _Optional[_Iterable[int]] = ..., regular: _Optional[_Iterable[int]] = ..., ordered: _Optional[_Iterable[bool]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class WoePlan(_message.Message):
    __slots__ = ("groups", "group", "woe", "iv")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WOE_FIELD_NUMBER: _ClassVar[int]
    IV_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedScalarFieldContainer[int]
    group: _containers.RepeatedScalarFieldContainer[int]
    woe: _containers.RepeatedScalarFieldContainer[float]
    iv: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, groups: _Optional[_Iterable[int]] = ..., group: _Optional[_Iterable[int]] = ..., woe: _Optional[_Iterable[float]] = ..., iv: _Optional[_Iterable[float]] = ...) -> None: ...
