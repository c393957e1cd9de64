from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class TransferBlinded(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: bytes
    def __init__(self, points: _Optional[bytes] = ...) -> None: ...

class TransferRaised(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: bytes
    def __init__(self, points: _Optional[bytes] = ...) -> None: ...

class TransferColumns(_message.Message):
    __slots__ = ("rows", "options", "blank", "columns", "words")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    BLANK_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    options: int
    blank: bool
    columns: bytes
    words: int
    def __init__(self, rows: _Optional[int] = ..., options: _Optional[int] = ..., blank: _Optional[bool] = ..., columns: _Optional[bytes] = ..., words: _Optional[int] = ...) -> None: ...

class TransferBits(_message.Message):
    __slots__ = ("rows", "bits")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    bits: bytes
    def __init__(self, rows: _Optional[int] = ..., bits: _Optional[bytes] = ...) -> None: ...
