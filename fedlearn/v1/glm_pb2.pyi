from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GlmOpen(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: int
    def __init__(self, columns: _Optional[int] = ...) -> None: ...

class GlmColumns(_message.Message):
    __slots__ = ("largest", "names")
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    largest: _containers.RepeatedScalarFieldContainer[float]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, largest: _Optional[_Iterable[float]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class GlmAsk(_message.Message):
    __slots__ = ("columns", "pairs")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    columns: int
    pairs: int
    def __init__(self, columns: _Optional[int] = ..., pairs: _Optional[int] = ...) -> None: ...

class GlmCoefficients(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class GlmScores(_message.Message):
    __slots__ = ("first", "values")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    first: int
    values: bytes
    def __init__(self, first: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class GlmResult(_message.Message):
    __slots__ = ("coefficients", "errors", "converged", "steps", "changes", "deviance", "null_deviance", "aic", "dispersion", "model_id", "inflation")
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    DEVIANCE_FIELD_NUMBER: _ClassVar[int]
    NULL_DEVIANCE_FIELD_NUMBER: _ClassVar[int]
    AIC_FIELD_NUMBER: _ClassVar[int]
    DISPERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    INFLATION_FIELD_NUMBER: _ClassVar[int]
    coefficients: _containers.RepeatedScalarFieldContainer[float]
    errors: _containers.RepeatedScalarFieldContainer[float]
    converged: bool
    steps: int
    changes: _containers.RepeatedScalarFieldContainer[float]
    deviance: float
    null_deviance: float
    aic: float
    dispersion: float
    model_id: bytes
    inflation: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, coefficients: _Optional[_Iterable[float]] = ..., errors: _Optional[_Iterable[float]] = ..., converged: _Optional[bool] = ..., steps: _Optional[int] = ..., changes: _Optional[_Iterable[float]] = ..., deviance: _Optional[float] = ..., null_deviance: _Optional[float] = ..., aic: _Optional[float] = ..., dispersion: _Optional[float] = ..., model_id: _Optional[bytes] = ..., inflation: _Optional[_Iterable[float]] = ...) -> None: ...

class GlmSaved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
