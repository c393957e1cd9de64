"""The prime-order group ristretto255 (RFC 9496) over whole lists of points, by libsodium through ``rbcl``.

A list of n points is one ``bytes`` value of n * 32 bytes: canonical encodings, concatenated. No curve arithmetic is
written here. libsodium multiplies in constant time; ``ctypes`` lets go of the interpreter lock during each call, so
a few threads share the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import rbcl

from fedlearn.kernels.threads import CORES, ranges, spread

#: Bytes of one encoded point, and of one scalar.
POINT_BYTES = 32

T = TypeVar("T")

_IDENTITY = bytes(POINT_BYTES)
_TOP = 0x7F  # of the last byte: a field element has 255 bits
_MANY = 256  # below this many points, threads cost more than they save

# rbcl unpacks libsodium into a new temporary file at each import and leaves it there. Once loaded, the file is not
# needed any more (where the system cannot delete a loaded library, it stays).
with suppress(OSError, KeyError, AttributeError):
    os.unlink(sys.modules["rbcl._sodium"].lib_path)


# libsodium's own functions, by address: rbcl's wrappers copy every point three times.
_multiply = rbcl._sodium["crypto_scalarmult_ristretto255"]
_multiply.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid = rbcl._sodium["crypto_core_ristretto255_is_valid_point"]
_is_valid.argtypes = (ctypes.c_void_p,)


def hash_to_group(messages: Sequence[bytes], dst: bytes) -> bytes:
    """Hash each message to a point whose discrete logarithm nobody knows.

    hash_to_ristretto255 of RFC 9380 appendix B, with expand_message_xmd and SHA-512, as in RFC 9497 section 4.1.

    Args:
        messages: n byte strings of any length.
        dst: domain separation tag, 1 to 255 bytes.

    Returns:
        n points.

    Raises:
        ValueError: the tag is empty or too long.
    """
    if not 1 <= len(dst) <= 255:
        raise ValueError(f"a domain separation tag has 1 to 255 bytes, not {len(dst)}")
    tag = dst + bytes([len(dst)])
    padded = hashlib.sha512(bytes(128))  # Z_pad: one block of zeros, hashed once for all messages
    length = (64).to_bytes(2, "big")

    def point(message: bytes) -> bytes:
        outer = padded.copy()
        outer.update(message + length + b"\0" + tag)
        uniform = hashlib.sha512(outer.digest() + b"\1" + tag).digest()
        return bytes(rbcl.crypto_core_ristretto255_from_hash(uniform))

    return b"".join(_shared(lambda part: [point(m) for m in messages[part]], len(messages)))


def random_scalar() -> bytes:
    """A uniform non-zero scalar below the group order, from the operating system's generator.

    libsodium draws it with ``randombytes`` (``getrandom`` on Linux) and draws again while it is zero or too large.

    Returns:
        32 bytes, little-endian. Secret: the caller keeps it for one session and never sends it.
    """
    return bytes(rbcl.crypto_core_ristretto255_scalar_random())


def invert(scalar: bytes) -> bytes:
    """The scalar whose product with ``scalar`` is one. Raises ValueError for zero."""
    return bytes(rbcl.crypto_core_ristretto255_scalar_invert(scalar))


def reduce(wide: bytes) -> bytes:
    """64 uniform bytes as a scalar: modulo the group order, 32 bytes, little-endian."""
    return bytes(rbcl.crypto_core_ristretto255_scalar_reduce(wide))


def raise_points(points: bytes, scalar: bytes) -> bytes:
    """Each point to the power ``scalar`` (in additive notation, times ``scalar``), in order.

    Args:
        points: n points.
        scalar: 32 bytes, little-endian.

    Returns:
        n points.

    Raises:
        ValueError: the length is wrong, a point is invalid, or a result is the identity.
    """
    count = _count(points)
    out = ctypes.create_string_buffer(len(points))
    source, target = _address(points), ctypes.addressof(out)

    def power(part: slice) -> list[int]:
        span = range(part.start * POINT_BYTES, part.stop * POINT_BYTES, POINT_BYTES)
        return [at // POINT_BYTES for at in span if _multiply(target + at, scalar, source + at)][:1]

    if max(points[POINT_BYTES - 1 :: POINT_BYTES], default=0) > _TOP:
        raise ValueError("a point that is not in its canonical encoding")
    if len(scalar) != POINT_BYTES:
        raise ValueError(f"a scalar has {POINT_BYTES} bytes, not {len(scalar)}")
    if _shared(power, count):
        raise ValueError("an invalid point, or one that this scalar takes to the identity")
    return out.raw


def check_points(points: bytes) -> int | None:
    """Find what is not a point that an honest party sends.

    Args:
        points: n times 32 bytes, from anywhere.

    Returns:
        The index of the first encoding that is not canonical, not on the group, or the identity; None if there is
        none.

    Raises:
        ValueError: the length is not a multiple of 32.
    """
    count = _count(points)
    source = _address(points)

    def bad(part: slice) -> list[int]:
        # libsodium takes the identity (all zeros) for valid, and some releases of it do not look at the highest bit
        return [
            i
            for i in range(part.start, part.stop)
            if not _is_valid(source + i * POINT_BYTES)
            or points.startswith(_IDENTITY, i * POINT_BYTES)
            or points[(i + 1) * POINT_BYTES - 1] > _TOP
        ][:1]

    return min(_shared(bad, count), default=None)


def _address(points: bytes) -> int:
    """Where the bytes lie; they must outlive its use."""
    return ctypes.cast(ctypes.c_char_p(points), ctypes.c_void_p).value or 0


def _count(points: bytes) -> int:
    if len(points) % POINT_BYTES:
        raise ValueError(f"{len(points)} bytes are not a whole number of points")
    return len(points) // POINT_BYTES


def _shared(work: Callable[[slice], list[T]], count: int) -> list[T]:
    """Apply ``work`` to slices that cover range(count), on all cores where that pays, and chain the results."""
    parts = ranges(count, CORES if count >= _MANY else 1)
    return [item for part in spread(lambda r: work(slice(r.start, r.stop)), parts) for item in part]
