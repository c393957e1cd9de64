from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class KmeansColumns(_message.Message):
    __slots__ = ("largest", "names")
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    largest: _containers.RepeatedScalarFieldContainer[float]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, largest: _Optional[_Iterable[float]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class KmeansCentres(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class KmeansReach(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class KmeansResult(_message.Message):
    __slots__ = ("model_id", "steps", "converged")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    model_id: bytes
    steps: int
    converged: bool
    def __init__(self, model_id: _Optional[bytes] = ..., steps: _Optional[int] = ..., converged: _Optional[bool] = ...) -> None: ...

class KmeansDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KmeansSaved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
