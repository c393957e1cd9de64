from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SealedOpen(_message.Message):
    __slots__ = ("columns", "information", "key")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    INFORMATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    columns: int
    information: float
    key: bytes
    def __init__(self, columns: _Optional[int] = ..., information: _Optional[float] = ..., key: _Optional[bytes] = ...) -> None: ...

class SealedColumns(_message.Message):
    __slots__ = ("columns", "key")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    columns: int
    key: bytes
    def __init__(self, columns: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class SealedMatrix(_message.Message):
    __slots__ = ("column", "first", "blocks")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    column: int
    first: int
    blocks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, column: _Optional[int] = ..., first: _Optional[int] = ..., blocks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedTerms(_message.Message):
    __slots__ = ("block", "terms")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    block: int
    terms: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, block: _Optional[int] = ..., terms: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedResidual(_message.Message):
    __slots__ = ("block", "words")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    block: int
    words: bytes
    def __init__(self, block: _Optional[int] = ..., words: _Optional[bytes] = ...) -> None: ...

class SealedProduct(_message.Message):
    __slots__ = ("column", "words")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    column: int
    words: bytes
    def __init__(self, column: _Optional[int] = ..., words: _Optional[bytes] = ...) -> None: ...

class SealedPart(_message.Message):
    __slots__ = ("sum", "products")
    SUM_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    sum: int
    products: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sum: _Optional[int] = ..., products: _Optional[_Iterable[float]] = ...) -> None: ...

class SealedStep(_message.Message):
    __slots__ = ("products", "more")
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    products: _containers.RepeatedScalarFieldContainer[float]
    more: bool
    def __init__(self, products: _Optional[_Iterable[float]] = ..., more: _Optional[bool] = ...) -> None: ...

class SealedResult(_message.Message):
    __slots__ = ("converged", "changes", "model_id")
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    converged: bool
    changes: _containers.RepeatedScalarFieldContainer[float]
    model_id: bytes
    def __init__(self, converged: _Optional[bool] = ..., changes: _Optional[_Iterable[float]] = ..., model_id: _Optional[bytes] = ...) -> None: ...
