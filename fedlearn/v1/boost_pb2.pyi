from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class BoostFeatures(_message.Message):
    __slots__ = ("bins", "ordered")
    BINS_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    bins: _containers.RepeatedScalarFieldContainer[int]
    ordered: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, bins: _Optional[_Iterable[int]] = ..., ordered: _Optional[_Iterable[bool]] = ...) -> None: ...

class BoostSplits(_message.Message):
    __slots__ = ("feature", "left")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    feature: _containers.RepeatedScalarFieldContainer[int]
    left: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, feature: _Optional[_Iterable[int]] = ..., left: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BoostSides(_message.Message):
    __slots__ = ("bits", "rows")
    BITS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    bits: _containers.RepeatedScalarFieldContainer[bytes]
    rows: int
    def __init__(self, bits: _Optional[_Iterable[bytes]] = ..., rows: _Optional[int] = ...) -> None: ...

class BoostTreeDone(_message.Message):
    __slots__ = ("run", "runs", "tree", "trees")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    run: int
    runs: int
    tree: int
    trees: int
    def __init__(self, run: _Optional[int] = ..., runs: _Optional[int] = ..., tree: _Optional[int] = ..., trees: _Optional[int] = ...) -> None: ...

class BoostFinish(_message.Message):
    __slots__ = ("kept", "model_id")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[int]
    model_id: bytes
    def __init__(self, kept: _Optional[_Iterable[int]] = ..., model_id: _Optional[bytes] = ...) -> None: ...

class BoostSaved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
