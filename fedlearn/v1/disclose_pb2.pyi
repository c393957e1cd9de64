from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DisclosedSplits(_message.Message):
    __slots__ = ("features", "splits")
    class Feature(_message.Message):
        __slots__ = ("name", "edges", "categories")
        NAME_FIELD_NUMBER: _ClassVar[int]
        EDGES_FIELD_NUMBER: _ClassVar[int]
        CATEGORIES_FIELD_NUMBER: _ClassVar[int]
        name: str
        edges: _containers.RepeatedScalarFieldContainer[float]
        categories: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, name: _Optional[str] = ..., edges: _Optional[_Iterable[float]] = ..., categories: _Optional[_Iterable[str]] = ...) -> None: ...
    class Split(_message.Message):
        __slots__ = ("feature", "left")
        FEATURE_FIELD_NUMBER: _ClassVar[int]
        LEFT_FIELD_NUMBER: _ClassVar[int]
        feature: int
        left: bytes
        def __init__(self, feature: _Optional[int] = ..., left: _Optional[bytes] = ...) -> None: ...
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[DisclosedSplits.Feature]
    splits: _containers.RepeatedCompositeFieldContainer[DisclosedSplits.Split]
    def __init__(self, features: _Optional[_Iterable[_Union[DisclosedSplits.Feature, _Mapping]]] = ..., splits: _Optional[_Iterable[_Union[DisclosedSplits.Split, _Mapping]]] = ...) -> None: ...
