"""One large field of a protobuf message, written and read without copying it.

Protobuf's own code copies a ``bytes`` field several times on each side, and every byte of an encrypted vector passes
here. The encoding is protobuf's (https://protobuf.dev/programming-guides/encoding): any implementation reads the same.
"""

from __future__ import annotations

_MOST_FIELDS = 64  # no message with a large field has more; a peer is not to keep this loop busy
_MOST_VARINT = 10  # bytes of a 64-bit number


def prefix(field: int, size: int) -> bytes:
    """What stands before ``size`` bytes of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(size)


def split(raw: memoryview, field: int) -> tuple[bytes, memoryview]:
    """A serialised message without one of its length-delimited fields, and that field (empty if it is not there).

    Raises:
        ValueError: this is no message, has too many fields, or has this one twice.
    """
    rest: list[memoryview] = []
    part: memoryview | None = None
    at = 0
    for _ in range(_MOST_FIELDS):
        if at == len(raw):
            return b"".join(rest), raw[:0] if part is None else part
        start = at
        key, at = _read_varint(raw, at)
        value = at
        if key & 7 == 2:
            size, value = _read_varint(raw, at)
            at = value + size
        elif key & 7 == 0:
            _, at = _read_varint(raw, at)
        else:
            at += {1: 8, 5: 4}.get(key & 7, len(raw) + 1)  # other kinds are not in use any more
        if at > len(raw):
            raise ValueError("a field ends beyond its message")
        if key != field << 3 | 2:
            rest.append(raw[start:at])
        elif part is None:
            part = raw[value:at]
        else:
            raise ValueError("a field that occurs twice")
    raise ValueError("too many fields")


def _varint(number: int) -> bytes:
    """Protobuf's base-128 encoding of a non-negative integer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(raw: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for i, byte in enumerate(raw[at : at + _MOST_VARINT]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError("a number without an end")
