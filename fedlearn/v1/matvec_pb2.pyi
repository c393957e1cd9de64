from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class MatvecShape(_message.Message):
    __slots__ = ("rows", "samples", "largest", "squares")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    SQUARES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    samples: int
    largest: int
    squares: int
    def __init__(self, rows: _Optional[int] = ..., samples: _Optional[int] = ..., largest: _Optional[int] = ..., squares: _Optional[int] = ...) -> None: ...

class MatvecKey(_message.Message):
    __slots__ = ("modulus",)
    MODULUS_FIELD_NUMBER: _ClassVar[int]
    modulus: bytes
    def __init__(self, modulus: _Optional[bytes] = ...) -> None: ...

class MatvecHint(_message.Message):
    __slots__ = ("first", "count", "words")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    words: bytes
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., words: _Optional[bytes] = ...) -> None: ...

class MatvecQuery(_message.Message):
    __slots__ = ("count", "first", "ciphertext")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    count: int
    first: int
    ciphertext: bytes
    def __init__(self, count: _Optional[int] = ..., first: _Optional[int] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class MatvecAnswer(_message.Message):
    __slots__ = ("count", "rows", "ciphertext")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    count: int
    rows: int
    ciphertext: bytes
    def __init__(self, count: _Optional[int] = ..., rows: _Optional[int] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...
