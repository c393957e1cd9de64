from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class BoostFeatures(_message.Message):
    __slots__ = ("bins", "ordered", "monotone", "names")
    BINS_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    MONOTONE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    bins: _containers.RepeatedScalarFieldContainer[int]
    ordered: _containers.RepeatedScalarFieldContainer[bool]
    monotone: _containers.RepeatedScalarFieldContainer[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bins: _Optional[_Iterable[int]] = ..., ordered: _Optional[_Iterable[bool]] = ..., monotone: _Optional[_Iterable[int]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class BoostSplits(_message.Message):
    __slots__ = ("feature", "left", "trees")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    feature: _containers.RepeatedScalarFieldContainer[int]
    left: _containers.RepeatedScalarFieldContainer[bytes]
    trees: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, feature: _Optional[_Iterable[int]] = ..., left: _Optional[_Iterable[bytes]] = ..., trees: _Optional[_Iterable[int]] = ...) -> None: ...

class BoostNodes(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, rows: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BoostSides(_message.Message):
    __slots__ = ("bits", "rows")
    BITS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    bits: _containers.RepeatedScalarFieldContainer[bytes]
    rows: int
    def __init__(self, bits: _Optional[_Iterable[bytes]] = ..., rows: _Optional[int] = ...) -> None: ...

class BoostRoundDone(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

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

class BoostResume(_message.Message):
    __slots__ = ("run", "rounds", "splits", "ledgers", "vectors_spent", "splits_spent", "transfers_spent", "kl_spent")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    LEDGERS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_SPENT_FIELD_NUMBER: _ClassVar[int]
    SPLITS_SPENT_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_SPENT_FIELD_NUMBER: _ClassVar[int]
    KL_SPENT_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    rounds: _containers.RepeatedScalarFieldContainer[int]
    splits: _containers.RepeatedScalarFieldContainer[int]
    ledgers: _containers.RepeatedScalarFieldContainer[bytes]
    vectors_spent: int
    splits_spent: int
    transfers_spent: int
    kl_spent: float
    def __init__(self, run: _Optional[bytes] = ..., rounds: _Optional[_Iterable[int]] = ..., splits: _Optional[_Iterable[int]] = ..., ledgers: _Optional[_Iterable[bytes]] = ..., vectors_spent: _Optional[int] = ..., splits_spent: _Optional[int] = ..., transfers_spent: _Optional[int] = ..., kl_spent: _Optional[float] = ...) -> None: ...

class BoostEarlier(_message.Message):
    __slots__ = ("rounds", "splits")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    splits: int
    def __init__(self, rounds: _Optional[int] = ..., splits: _Optional[int] = ...) -> None: ...

class BoostReplay(_message.Message):
    __slots__ = ("splits", "trees")
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    splits: _containers.RepeatedScalarFieldContainer[int]
    trees: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, splits: _Optional[_Iterable[int]] = ..., trees: _Optional[_Iterable[int]] = ...) -> None: ...
