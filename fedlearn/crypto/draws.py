"""Secret randomness: AES-256-CTR keyed by the operating system's generator.

A cipher keyed by ``os.urandom`` gives gigabytes a second where the operating system's generator gives a tenth of
that; NumPy's generators are not for secrets and are not used here. (SP 800-90A builds its CTR_DRBG on the same
construction; one key here makes far less than 2^48 blocks and is never stored.)
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_ZEROS = bytes(1 << 20)


class Draws:
    """A stream of secret random values. Not shared between threads; make one for each.

    Args:
        key: 32 bytes; by default fresh from the operating system. A fixed key is for values that must repeat
            and are no secret from the party that holds the key (stochastic rounding, test vectors).
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(32) if key is None else key
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` uniform bytes, uint8 (count,)."""
        out = np.empty(count, np.uint8)
        self.fill(out)
        return out

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Uniform bytes into ``out``, uint8 (n,), contiguous."""
        view = memoryview(out)  # type: ignore[arg-type]
        for start in range(0, len(out), len(_ZEROS)):
            piece = view[start : start + len(_ZEROS)]
            self._stream.update_into(memoryview(_ZEROS)[: len(piece)], piece)

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit words."""
        return self.bytes(8 * count).view(np.uint64)

    def noise_bits(self, vectors: int, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """40 random bits for each of (vectors, count) centred binomial values, as planes of 32 and 8 bits."""
        size = vectors * count
        low = self.bytes(4 * size).view(np.uint32).reshape(vectors, count)
        return low, self.bytes(size).reshape(vectors, count)

    def ternary(self, rows: int, count: int) -> NDArray[np.int8]:
        """Uniform values of {-1, 0, 1}, int8 (rows, count).

        Bytes below 243 = 3^5 hold five uniform ternary digits; others are drawn again.
        """
        size = rows * count
        groups = -(-size // 5)
        kept = np.empty(0, np.uint8)
        while kept.size < groups:
            drawn = self.bytes(int((groups - kept.size) * 1.06) + 64)
            kept = np.concatenate([kept, drawn[drawn < 243]])
        return _TERNARY[kept[:groups]].reshape(-1)[:size].reshape(rows, count)

    def gaussian(self, deviation: float, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Gaussian values rounded to integers, int64, for 2^10 ≤ ``deviation`` ≤ 2^47.

        Box-Muller on 64-bit uniforms. In this range the rounding unit is far below the deviation and far above
        double precision's, so the distance from the discrete Gaussian is set by the tail cut at 9.4 deviations,
        below 2^-63 a value.
        """
        count = int(np.prod(shape))
        first, second = (self.words(count).astype(np.float64) for _ in range(2))
        radius = np.sqrt(-2.0 * np.log((first + 1.0) * 2.0**-64))
        return np.rint(deviation * radius * np.cos(second * (2 * np.pi * 2.0**-64))).astype(np.int64).reshape(shape)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniform permutation of range(count): order of random words (ties, one in 2^64 pairs, ignored)."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)


def _ternary_digits() -> NDArray[np.int8]:
    value = np.arange(243)
    return np.stack([value // 3**d % 3 - 1 for d in range(5)], axis=1).astype(np.int8)


_TERNARY = _ternary_digits()
