"""A slow, obvious verifier of the hint scheme, in Python integers. It shares no code with the package.

It follows the definition of the scheme line by line (see the docstring of the module that it checks): schoolbook
sums, one list of integers per row of a matrix, no transform. Everything secret comes from AES-256-CTR streams under
keys that the caller gives, in the order in which the package draws, so that both make the same bytes.

    ring       Z_q[X]/(X^N + 1), N = 4096, q = 2^64
    A          row i of block b is the linear form s -> coefficient i of a_b * s
    hint       C = [T | M] A + E               T ternary, E centred binomial
    query      b = A s + e + Delta (0, v)      s ternary, e centred binomial; then low bits are dropped
    answer     h = [T | M] b + flood           flood Gaussian
    decode     M v = round((h - C s) / Delta)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import compress

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

N = 4096
Q = 2**64

Vector = list[int]
Rows = list[Vector]


# --- randomness --------------------------------------------------------------------------------------


class Stream:
    """The key stream of AES-256-CTR from counter 0."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> bytes:
        return self._cipher.update(bytes(count))


def ternary(stream: Stream, rows: int) -> Rows:
    """Rows of N uniform values of {-1, 0, 1}: five base-3 digits from each byte below 3^5, other bytes rejected.

    A round asks for 6 percent more bytes than are missing, plus 64; what is left over is thrown away.
    """
    groups = -(-rows * N // 5)
    kept: Vector = []
    while len(kept) < groups:
        drawn = stream.bytes(int((groups - len(kept)) * 1.06) + 64)
        kept += [byte for byte in drawn if byte < 3**5]
    digits = [byte // 3**d % 3 - 1 for byte in kept[:groups] for d in range(5)]
    return [digits[r * N : (r + 1) * N] for r in range(rows)]


def binomial(stream: Stream, rows: int, columns: int) -> Rows:
    """Centred binomial values: ones among 40 bits, minus 20. 32 bits of every value come first, then 8 of every."""
    count = rows * columns
    low, high = stream.bytes(4 * count), stream.bytes(count)
    ones = [
        (int.from_bytes(low[4 * i : 4 * i + 4], "little")).bit_count() + high[i].bit_count() - 20 for i in range(count)
    ]
    return [ones[r * columns : (r + 1) * columns] for r in range(rows)]


def gaussian(stream: Stream, deviation: float, count: int) -> Vector:
    """Box-Muller on pairs of 64-bit uniforms: all the first ones, then all the second ones.

    The last bit of log and cos is the machine's, so two machines may differ by one unit.
    """
    uniforms = [int.from_bytes(stream.bytes(8), "little") for _ in range(2 * count)]
    return [
        round(
            deviation
            * math.sqrt(-2.0 * math.log((float(first) + 1.0) * 2.0**-64))
            * math.cos(float(second) * (2 * math.pi * 2.0**-64))
        )
        for first, second in zip(uniforms[:count], uniforms[count:], strict=True)
    ]


# --- ring --------------------------------------------------------------------------------------------


def public_elements(seed: bytes, samples: int) -> Rows:
    """a_0 (of the mask) and a_1 .. a_B, one for each N samples: SHAKE-128 of seed and number."""
    elements = []
    for number in range(1 + -(-samples // N)):
        raw = hashlib.shake_128(seed + number.to_bytes(4, "little")).digest(8 * N)
        elements.append([int.from_bytes(raw[8 * j : 8 * j + 8], "little") for j in range(N)])
    return elements


def row(a: Rows, i: int) -> Vector:
    """Row i of A: coefficient i mod N of X^j a_b for every j; rows 0 .. N-1 are the mask's, row N + i is sample i's."""
    element, at = a[i // N], i % N
    return element[at::-1] + [-x for x in element[:at:-1]]  # X^N = -1


def column(a: Rows, j: int) -> Vector:
    """Column j of A: the coefficients of X^j a_0, X^j a_1, ... one after the other."""
    return [x for element in a for x in [-x for x in element[N - j :]] + element[: N - j]]


class Weights:
    """The coefficients of a sum. Few distinct ones occur, mostly -1, 0 and 1, so the sum is taken by coefficient."""

    def __init__(self, coefficients: Vector) -> None:
        self._where = {c: [x == c for x in coefficients] for c in set(coefficients) - {0}}

    def __matmul__(self, words: Vector) -> int:
        return sum(c * sum(compress(words, where)) for c, where in self._where.items())


# --- plan --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """shift = log2 Delta; flood = its standard deviation; width = bytes of a word sent; kl_vector in nats."""

    shift: int
    flood: float
    width: int
    kl_vector: float


def plan(
    rows: int, samples: int, largest: int, squares: int, largest_value: int, vectors: int, kl_nats: float
) -> Plan | None:
    """The least width whose leakage is within the budget (at most 2^-6 nats); None where nothing fits."""
    plaintext_bits = (samples * largest * largest_value).bit_length() + 1
    shift = 64 - plaintext_bits
    if shift < 16:
        return None
    flood = min(2**shift / 2**4.5, 2**46)
    for width in (4, 5, 6, 7, 8):
        unit = 2 ** (64 - 8 * width)  # words are rounded to multiples of this
        word_variance = 10 + ((unit**2 + 2) / 12 if width < 8 else 0)
        ternary_norm = N * 2 / 3
        signal = word_variance * (squares + rows * ternary_norm) + 10 * rows * ternary_norm
        kl_vector = signal / (2 * flood**2)
        share = 1 if width == 8 else 1 / 16  # only so much of the budget to save bytes
        if kl_vector * vectors <= share * min(kl_nats, 2**-6):
            return Plan(shift, flood, width, kl_vector)
    return None


# --- scheme ------------------------------------------------------------------------------------------


def make_hint(matrix: Rows, a: Rows, stream: Stream) -> tuple[Rows, Rows]:
    """(C, T)."""
    mask = ternary(stream, len(matrix))
    errors = binomial(stream, len(matrix), N)
    weights = [Weights(secret + entries) for secret, entries in zip(mask, matrix, strict=True)]
    hint: Rows = [[] for _ in matrix]
    for j in range(N):
        column_j = column(a, j)
        for r in range(len(matrix)):
            hint[r].append((weights[r] @ column_j + errors[r][j]) % Q)
    return hint, mask


def encrypt(vectors: Rows, a: Rows, delta: int, stream: Stream) -> tuple[Rows, Rows]:
    """(b, s) of each vector, before low bits are dropped; zeros follow its values up to a multiple of 8.

    Errors are drawn up to the end of the last block.
    """
    secrets = ternary(stream, len(vectors))
    errors = binomial(stream, len(vectors), N * len(a))
    weights = [Weights(secret) for secret in secrets]
    words: Rows = [[] for _ in vectors]
    samples = len(vectors[0])
    for i in range(N + -(-samples // 8) * 8):
        row_i = row(a, i)
        for k, vector in enumerate(vectors):
            value = vector[i - N] if N <= i < N + samples else 0
            words[k].append((weights[k] @ row_i + errors[k][i] + delta * value) % Q)
    return words, secrets


def drop(word: int, width: int) -> int:
    """The nearest multiple of 2^(64 - 8 width), the even one of two; so the mean of what is dropped is zero."""
    unit = 2 ** (64 - 8 * width)
    below, rest = divmod(word, unit)
    up = 2 * rest > unit or (2 * rest == unit and below % 2 == 1)
    return (below + up) * unit % Q


def pack(words: Vector, width: int) -> bytes:
    """Words on the wire: their top 32 bits in one plane, then planes of the next 16 and 8 bits, as the width has."""
    if width == 8:
        return b"".join(word.to_bytes(8, "little") for word in words)
    planes = {4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}[width]
    out, kept = b"", [drop(word, width).to_bytes(8, "big") for word in words]
    start = 0
    for size in planes:
        out += b"".join(word[start : start + size][::-1] for word in kept)
        start += size
    return out


def answer(matrix: Rows, mask: Rows, words: Vector) -> Vector:
    """[T | M] b, one word per row, without the flood. Words beyond the samples meet no entry."""
    return [
        Weights(secret + entries + [0] * (len(words) - N - len(entries))) @ words % Q
        for secret, entries in zip(mask, matrix, strict=True)
    ]


def noisy(hint: Rows, secret: Vector, answers: Vector) -> Vector:
    """h - C s, centred: Delta M v with all the noise still on it."""
    differences = [(h - Weights(secret) @ c) % Q for h, c in zip(answers, hint, strict=True)]
    return [d - Q if d >= Q // 2 else d for d in differences]


def decode(hint: Rows, secret: Vector, answers: Vector, delta: int) -> Vector:
    """M v."""
    return [(d + delta // 2) // delta for d in noisy(hint, secret, answers)]
