from fedlearn.v1 import serve_pb2 as _serve_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SealedAsk(_message.Message):
    __slots__ = ("asked", "nesting", "weights", "table")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    NESTING_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    asked: _serve_pb2.PartRequest
    nesting: bytes
    weights: bytes
    table: bytes
    def __init__(self, asked: _Optional[_Union[_serve_pb2.PartRequest, _Mapping]] = ..., nesting: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., table: _Optional[bytes] = ...) -> None: ...

class SealedAnswer(_message.Message):
    __slots__ = ("hint", "word")
    HINT_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    hint: bytes
    word: bytes
    def __init__(self, hint: _Optional[bytes] = ..., word: _Optional[bytes] = ...) -> None: ...
