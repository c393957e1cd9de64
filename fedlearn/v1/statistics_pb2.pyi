from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatisticsFeatures(_message.Message):
    __slots__ = ("ordered", "monotone", "names")
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    MONOTONE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ordered: _containers.RepeatedScalarFieldContainer[bool]
    monotone: _containers.RepeatedScalarFieldContainer[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ordered: _Optional[_Iterable[bool]] = ..., monotone: _Optional[_Iterable[int]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class StatisticsOpen(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: int
    def __init__(self, columns: _Optional[int] = ...) -> None: ...

class StatisticsColumns(_message.Message):
    __slots__ = ("feature", "largest")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    feature: _containers.RepeatedScalarFieldContainer[int]
    largest: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, feature: _Optional[_Iterable[int]] = ..., largest: _Optional[_Iterable[float]] = ...) -> None: ...

class StatisticsResult(_message.Message):
    __slots__ = ("missing", "stability", "inflation")
    MISSING_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    INFLATION_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedScalarFieldContainer[float]
    stability: _containers.RepeatedScalarFieldContainer[float]
    inflation: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, missing: _Optional[_Iterable[float]] = ..., stability: _Optional[_Iterable[float]] = ..., inflation: _Optional[_Iterable[float]] = ...) -> None: ...

class StatisticsPlan(_message.Message):
    __slots__ = ("kept", "reasons", "important")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    IMPORTANT_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[bool]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    important: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, kept: _Optional[_Iterable[bool]] = ..., reasons: _Optional[_Iterable[str]] = ..., important: _Optional[_Iterable[bool]] = ...) -> None: ...

class StatisticsKept(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, kept: _Optional[_Iterable[bool]] = ...) -> None: ...

class StatisticsSaved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
