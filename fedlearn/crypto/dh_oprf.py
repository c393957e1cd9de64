"""An oblivious pseudorandom function by Diffie-Hellman: RFC 9497 with suite ristretto255-SHA512, mode OPRF.

F_k(x) = SHA-512(x, H(x)^k). Who holds k evaluates alone (:func:`evaluate`); anybody else sends H(x)^r, gets H(x)^(rk)
back, and takes r off (:func:`finalise`). One value is one exchange: under the one-more Diffie-Hellman assumption, H
and SHA-512 random oracles, whoever had n points raised knows F_k of at most n inputs (Jarecki, Kiayias and Krawczyk,
ASIACRYPT 2014). Mode OPRF has no proof that the same k was used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedlearn.crypto import ristretto

_CONTEXT = b"OPRFV1-\0-ristretto255-SHA512"
_GROUP_DST = b"HashToGroup-" + _CONTEXT

#: Bytes of an output that are kept: over n outputs and m inputs, two that differ coincide with probability n·m·2^-96.
VALUE_BYTES = 12


def inputs(ids: Sequence[bytes]) -> list[bytes]:
    """IDs as inputs of the function, which may have 65535 bytes; a longer one is replaced by its digest."""
    return [one if len(one) < 1 << 16 else b"long" + hashlib.sha512(one).digest() for one in ids]


def hashed(items: Sequence[bytes]) -> bytes:
    """H(x) of each input: n points, concatenated."""
    return ristretto.hash_to_group(items, _GROUP_DST)


def evaluate(items: Sequence[bytes], key: bytes) -> bytes:
    """F_k of each input, n · :data:`VALUE_BYTES` bytes, for the holder of the key (a scalar)."""
    return finalise(items, ristretto.raise_points(hashed(items), key))


def finalise(items: Sequence[bytes], points: bytes) -> bytes:
    """The outputs' first :data:`VALUE_BYTES` bytes.

    Args:
        items: n inputs.
        points: H(x)^k of each.

    Returns:
        n · :data:`VALUE_BYTES` bytes.
    """
    return b"".join(
        output(item, points[at : at + ristretto.POINT_BYTES])[:VALUE_BYTES]
        for item, at in zip(items, range(0, len(points), ristretto.POINT_BYTES), strict=True)
    )


def unnamed(points: bytes) -> bytes:
    """Hashes of H(x)^k that do not depend on x otherwise, :data:`VALUE_BYTES` bytes each.

    For answers in an order that hides whose they are: with the RFC's output, which hashes x as well, one could try
    which x makes an answer one of a known table.
    """
    step = ristretto.POINT_BYTES
    return b"".join(
        hashlib.sha512(b"fedlearn/1 oprf unnamed" + points[at : at + step]).digest()[:VALUE_BYTES]
        for at in range(0, len(points), step)
    )


def derived(key: bytes, number: int) -> bytes:
    """The key of table column ``number``: ``key`` itself for the first, an independent scalar for others."""
    if not number:
        return key
    wide = hashlib.sha512(b"fedlearn/1 oprf column" + bytes([number]) + key).digest()
    return ristretto.reduce(wide)


def output(item: bytes, point: bytes) -> bytes:
    """The whole output, 64 bytes (RFC 9497, section 3.3.1)."""
    return hashlib.sha512(
        len(item).to_bytes(2, "big") + item + len(point).to_bytes(2, "big") + point + b"Finalize"
    ).digest()


def fingerprint(key: bytes) -> bytes:
    """16 bytes that stand for a key and may be told: a hash of H("fingerprint")^k under a tag of its own."""
    point = ristretto.hash_to_group([b"fingerprint"], b"fedlearn-V01-oprf-fingerprint")
    return hashlib.sha256(b"fedlearn/1 oprf key" + ristretto.raise_points(point, key)).digest()[:16]
