r"""The hint scheme: an encrypted matrix-vector product that costs the holder plain 64-bit additions.

The holder has M (R rows, n columns of small integers), the querier a stream of vectors v. After Henzinger et al.,
"One Server for the Price of Two" (USENIX Security 2023) and Davidson et al., "FrodoPIR" (PoPETs 2023), a
ciphertext b = A·s + e + Δ·v is multiplied by M as plain words, and the part that depends only on A, the hint M·A,
is computed once. There M is public; here it is secret, so the hint is masked.

Notation: ring R_q = Z_q[X]/(X^N + 1), N = 4096, q = 2^64. Public elements a_0 (the mask's) and a_1 … a_B, one per N
samples; column i of [T | M] belongs to coefficient i mod N of a_{i div N}·s. T is the **mask block**: a secret
ternary R × N matrix that the holder puts before M.

Setup   hint C = [T | M]·A + E, one row of N words per row of M; E centred binomial.
Query   s ternary, fresh; b = A·s + e + Δ·(0, v): N + n words, of which the low bits are dropped.
Answer  h = [T | M]·b + flood; one word per row of M.
Decode  M·v = round((h − C·s)/Δ).

Why it is safe (SECURITY.md has the argument in full): the holder sees RLWE samples (a_i, b) under a fresh secret.
A row of T makes its hint row an RLWE sample a_0·t + e under the secret t, which hides M; t appears in answers only
inside a sum that the flood drowns: h − C·s = Δ·M·v + (noise of deviation signal) + flood, and the plan bounds
the Kullback-Leibler divergence signal²/(2·flood²) over all answers of a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator, Matrix
from fedlearn.errors import OverBudget
from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import H, N
from fedlearn.kernels.threads import CORES, ranges, spread

U64 = NDArray[np.uint64]
I8 = NDArray[np.int8]
F64 = NDArray[np.float64]

#: Variance of the centred binomial errors.
ERROR_VARIANCE = 10.0
#: Flood deviation is Δ/2^4.5: a decoding error is an 11.3 sigma event.
FLOOD_BITS_BELOW = 4.5
#: Beyond 2^46 more flood would gain nothing and leave the range in which double precision samples it well.
LARGEST_FLOOD = 2.0**46
#: A run may use the whole leakage budget, but only this share of it to save bytes on the wire.
DROPPING_SHARE = 2.0**-4
#: Ciphertexts travel in pieces of about so many bytes (a message that fits one frame is not copied) and at most so many
#: blocks, so that both sides work at once.
PIECE_BYTES = (2 << 20) - (1 << 12)
PIECE_BLOCKS = 16
#: Leakage is held below this, in nats, whatever a contract allows: every signal is then below a fifth of the flood,
#: so that the flood alone decides how rare a decoding error is.
LARGEST_KL = 2.0**-6


@dataclass(frozen=True)
class Plan:
    """Parameters of one matrix for one run, computed alike by both sides from what both know.

    Attributes:
        rows, samples: the shape of M.
        largest_sum: bound on the absolute value of any entry of M·v.
        shift: log2 Δ.
        flood: standard deviation of the flood.
        width: bytes of a ciphertext word on the wire (4 to 8).
        vectors: how many vectors may be asked for.
        kl_vector: leakage bound of the answers to one vector, in nats.
    """

    rows: int
    samples: int
    largest_sum: int
    shift: int
    flood: float
    width: int
    vectors: int
    kl_vector: float

    @property
    def kl_total(self) -> float:
        """Leakage bound of all answers that the plan allows, in nats."""
        return self.kl_vector * self.vectors

    @property
    def words(self) -> int:
        """Words of one ciphertext: the mask's block, one for each sample, and zeros up to a multiple of 8."""
        return N + -(-self.samples // 8) * 8

    @property
    def query_bytes(self) -> int:
        """Bytes of one ciphertext on the wire."""
        return self.width * self.words

    @property
    def hint_bytes(self) -> int:
        """Bytes of the whole hint."""
        return 8 * N * self.rows

    def pieces(self, count: int) -> list[range]:
        """The words of the pieces in which ``count`` encrypted vectors travel: whole blocks, about PIECE_BYTES each."""
        step = N * max(1, min(PIECE_BLOCKS, PIECE_BYTES // (count * N * self.width)))
        return [range(first, min(first + step, self.words)) for first in range(0, self.words, step)]


def make_plan(
    *,
    rows: int,
    samples: int,
    largest: int,
    squares: int,
    largest_value: int,
    vectors: int,
    kl_nats: float,
    room: int = 0,
) -> Plan:
    """Choose Δ, the flood and the ciphertext width so that every sum is exact and the leakage stays in budget.

    Args:
        rows, samples: the shape of M.
        largest: largest absolute entry of M.
        squares: bound on the sum of the squares of all entries of M.
        largest_value: largest absolute entry of any v.
        vectors: how many vectors will be asked for at most.
        kl_nats: leakage budget of the run; more than :data:`LARGEST_KL` is not used.
        room: bound on the absolute value of what is added to a sum (:func:`shifted`).

    Raises:
        OverBudget: no parameters fit, with the figure that does not.
    """
    largest_sum = samples * largest * largest_value + room
    bits = largest_sum.bit_length() + 1
    shift = 64 - bits
    if shift < 16:
        raise OverBudget(
            f"sums of up to {largest_sum} need {bits} of the 64 bits, which leaves no room for noise: "
            f"{samples} rows with values up to {largest_value} do not fit one encrypted product"
        )
    flood = min(2.0 ** (shift - FLOOD_BITS_BELOW), LARGEST_FLOOD)
    kl_vector = math.inf
    budget = min(kl_nats, LARGEST_KL)
    for width in (4, 5, 6, 7, 8):
        kl_vector = _kl_of_vector(rows, squares, flood, width)
        if kl_vector * vectors <= (budget if width == 8 else budget * DROPPING_SHARE):
            return Plan(rows, samples, largest_sum, shift, flood, width, vectors, kl_vector)
    raise OverBudget(
        f"{vectors} encrypted vectors over {samples} rows would leak up to {kl_vector * vectors:.2g} nats, "
        f"over the budget of {budget:.2g}"
    )


def _kl_of_vector(rows: int, squares: int, flood: float, width: int) -> float:
    """Sum over rows of signal²/(2·flood²): what one vector's answers leak at most, in nats.

    signal² of a row: errors and dropped bits of b through the row of [T | M], and the hint's error through s.
    """
    dropped = 64 - 8 * width
    word = ERROR_VARIANCE + ((4.0**dropped + 2) / 12 if dropped else 0.0)  # uniform on -2^(d-1) … 2^(d-1), ends halved
    ternary = 2 * N / 3  # squared norm of a ternary secret
    signal = word * (squares + rows * ternary) + ERROR_VARIANCE * rows * ternary
    return signal / (2 * flood**2)


def expand(seed: bytes, samples: int) -> F64:
    """Transforms of the public elements a_0 … a_B: SHAKE-128 of seed and index, as FrodoKEM makes its matrix.

    Args:
        seed: at least 16 bytes that neither side controls alone.
        samples: n.

    Returns:
        float64 (1 + B, 2, 2, H) with B = ⌈n/N⌉; the mask's element first.
    """
    count = 1 + -(-samples // N)
    out = np.empty((count, 2, 2, H))

    def piece(part: range) -> None:
        raw = b"".join(hashlib.shake_128(seed + i.to_bytes(4, "little")).digest(8 * N) for i in part)
        lattice.transform_public(np.frombuffer(raw, "<u8").reshape(len(part), N), out[part.start : part.stop])

    spread(piece, ranges(count, 2 * CORES))
    return out


def make_hint(matrix: Matrix, public: F64, draws: Draws | None = None) -> tuple[U64, I8]:
    """The holder's setup.

    Args:
        matrix: M.
        public: from :func:`expand`.
        draws: secret randomness (given only to make test vectors).

    Returns:
        hint: uint64 (R, N), for the querier; and mask T: int8 (R, N), which the holder keeps secret.
    """
    draws = draws or Draws()
    mask = draws.ternary(matrix.rows, N)
    hint = np.empty((matrix.rows, N), np.uint64)
    low, high = draws.noise_bits(matrix.rows, N)

    def rows(part: range) -> tuple[F64, U64]:
        """Errors and transformed masks of some rows."""
        for r in part:
            lattice.noise(low[r], high[r], hint[r])
        transforms = np.empty((len(part), 2, H))
        lattice.transform_small(mask[part.start : part.stop], transforms)
        return transforms, hint[part.start : part.stop]

    def dense(part: range) -> None:
        lattice.hint_dense(public, entries[part.start : part.stop], *rows(part))

    def feature(f: int) -> None:
        first, fullest = int(offsets[f]), int(lists.fullest[f])
        part = range(first, int(offsets[f + 1]))
        lattice.hint_indicator(
            public, words, ones, lists.order, lists.starts, first, matrix.rows, fullest - first, *rows(part)
        )

    if isinstance(matrix, Indicator):
        offsets, lists = matrix.offsets, matrix.sorted
        words, ones = np.empty((len(public) - 1, N), np.uint64), np.zeros(N, np.uint64)
        lattice.reversed_words(public[1:], words)
        lattice.ones_row(public[1:], matrix.samples, ones)
        spread(feature, range(len(matrix.sizes)))
    else:
        entries = matrix.entries
        spread(dense, ranges(matrix.rows, 4 * CORES))
    return hint, mask


def draw_secrets(count: int, draws: Draws | None = None) -> tuple[I8, F64]:
    """Fresh secrets for a query of ``count`` vectors. A secret serves one query, ever.

    Returns:
        secrets: int8 (K, N), and their transforms: float64 (K, 2, H). The querier's.
    """
    secrets = (draws or Draws()).ternary(count, N)
    transforms = np.empty((count, 2, H))
    lattice.transform_small(secrets, transforms)
    return secrets, transforms


def encrypt_piece(
    values: NDArray[np.int32], transforms: F64, public: F64, plan: Plan, part: range, draws: Draws | None = None
) -> NDArray[np.uint8]:
    """Some words of a query's ciphertexts.

    Args:
        values: int32 (K, c), the vectors at the samples that ``part`` covers (:func:`samples_of`); absolute values
            within the plan's bound.
        transforms: of this query's secrets.
        public: from :func:`expand`.
        plan: the run's plan.
        part: which words; it starts at a multiple of N.
        draws: what errors are made of (given only to make test vectors).

    Returns:
        uint8 (K, plan.width·len(part)).
    """
    blocks = public[part.start // N : -(-part.stop // N)]
    low, high = (draws or Draws()).noise_bits(len(values), N * len(blocks))
    out = np.empty((len(values), plan.width * len(part)), np.uint8)
    first = 0 if part.start else -N
    lattice.encrypt(blocks, transforms, low, high, values, plan.shift, first, plan.width, out)
    return out


def samples_of(part: range, plan: Plan) -> slice:
    """The samples whose words are in ``part``."""
    return slice(max(0, part.start - N), max(0, min(part.stop - N, plan.samples)))


def encrypt(values: NDArray[np.int32], public: F64, plan: Plan, draws: Draws | None = None) -> tuple[bytes, I8]:
    """A query in one piece: ciphertexts of K·plan.query_bytes bytes, and the secrets."""
    secrets, transforms = draw_secrets(len(values), draws)
    return encrypt_piece(values, transforms, public, plan, range(plan.words), draws).tobytes(), secrets


def respond(
    matrix: Matrix, mask: I8, ciphertext: bytes | memoryview, count: int, plan: Plan, draws: Draws | None = None
) -> bytes:
    """The holder's answer to a query in one piece; see :func:`accumulate` and :func:`answer`."""
    sums = np.zeros((count, matrix.rows), np.uint64)
    accumulate(matrix, mask, ciphertext, range(plan.words), plan, sums)
    return answer(sums, plan, draws)


def accumulate(matrix: Matrix, mask: I8, ciphertext: bytes | memoryview, part: range, plan: Plan, sums: U64) -> None:
    """Add one piece's share of [T | M]·b.

    Args:
        matrix, mask: M and the secret T.
        ciphertext: plan.width·len(part) bytes for each vector; every byte string of that length is valid.
        part: which words.
        plan: the run's plan.
        sums: uint64 (K, R), added to. The holder's, and a secret until it is flooded.
    """
    raw = np.frombuffer(ciphertext, np.uint8).reshape(len(sums), plan.width * len(part))
    groups = [slice(start, start + lattice.LANES) for start in range(0, len(sums), lattice.LANES)]
    tasks = -(-CORES // len(groups))
    work = [(group, piece) for group in groups for piece in _group_work(matrix, mask, raw[group], part, plan, tasks)]
    for (group, _), found in zip(work, spread(lambda item: item[1](), work), strict=True):
        sums[group] += found[:, : len(sums[group])].T


def _group_work(
    matrix: Matrix, mask: I8, group: NDArray[np.uint8], part: range, plan: Plan, tasks: int
) -> list[Callable[[], U64]]:
    """What is to be added up for up to LANES vectors, each kind in so many tasks: each gives uint64 (R, lanes)."""
    lanes = min(size for size in lattice.SUMS_BY_BIN if size >= len(group))
    samples, begin = samples_of(part, plan), 0 if part.start else N

    def masked(strips: range) -> U64:
        sums = np.zeros((matrix.rows, lanes), np.uint64)
        lattice.SUMS_BY_MASK[lanes](group, len(part), plan.width, mask, strips.start, strips.stop, sums)
        return sums

    def binned(blocks: range) -> U64:
        sums = np.zeros((matrix.rows, lanes), np.uint64)
        at = begin + blocks.start * N - samples.start
        lattice.SUMS_BY_BIN[lanes](
            group, len(part), plan.width, lists.order, lists.starts, offsets, lists.fullest,
            blocks.start, blocks.stop, at, plan.samples, sums,
        )  # fmt: skip
        return sums

    def dense(rows: range) -> U64:
        sums = np.zeros((matrix.rows, lanes), np.uint64)
        lattice.dots(np.ascontiguousarray(entries[rows.start : rows.stop]), columns, sums[rows.start : rows.stop].T)
        return sums

    work: list[Callable[[], U64]] = []
    if part.start == 0:
        work += [partial(masked, strips) for strips in ranges(lattice.STRIPS, tasks)]
    if isinstance(matrix, Indicator):
        lists, offsets = matrix.sorted, matrix.offsets
        first, last = samples.start // N, -(-samples.stop // N)
        pieces = ranges(last - first, tasks) if last > first else []
        work += [partial(binned, range(first + piece.start, first + piece.stop)) for piece in pieces]
    elif samples.stop > samples.start:
        entries = matrix.entries[:, samples]
        columns = np.empty((len(group), samples.stop - samples.start), np.uint64)
        for packed, column in zip(group, columns, strict=True):
            lattice.unpack(packed, len(part), plan.width, begin, column)
        work += [partial(dense, rows) for rows in ranges(matrix.rows, 2 * tasks)]
    return work


def answer(sums: U64, plan: Plan, draws: Draws | None = None) -> bytes:
    """Flood the sums.

    Args:
        sums: uint64 (K, R), of all pieces.
        plan: the run's plan.
        draws: secret randomness for the flood.

    Returns:
        K·R little-endian words.
    """
    flood = (draws or Draws()).gaussian(plan.flood, sums.shape)
    return (sums + flood.view(np.uint64)).astype("<u8").tobytes()


def shifted(answer: bytes, offsets: NDArray[np.int64], plan: Plan) -> bytes:
    """An answer to which integers are added, above Δ: it decodes to M·v + offsets.

    Args:
        answer: of :func:`respond`.
        offsets: int64 (K, R), absolute values within the plan's ``room``.
        plan: the run's plan.
    """
    above: U64 = offsets.view(np.uint64) << np.uint64(plan.shift)
    return (np.frombuffer(answer, "<u8").reshape(offsets.shape) + above).astype("<u8").tobytes()


def decode(hint: U64, secrets: I8, answer: bytes, plan: Plan) -> NDArray[np.int64]:
    """M·v for the vectors of one query; see :func:`known_part` and :func:`round_off`."""
    return round_off(known_part(digits_of(hint), secrets), answer, plan)


def digits_of(hint: U64) -> NDArray[np.int16]:
    """A hint uint64 (R, N) as balanced digits int16 (R, 4, N), for :func:`known_part`."""
    digits = np.empty((len(hint), lattice.DIGITS, N), np.int16)
    lattice.split_words(hint, digits)
    return digits


def known_part(digits: NDArray[np.int16], secrets: I8) -> U64:
    """C·s, what the querier takes off an answer; it does not depend on the answer.

    Args:
        digits: int16 (R, 4, N), of the hint (:func:`fedlearn.kernels.lattice.split_words`).
        secrets: int8 (K, N), of one query.

    Returns:
        uint64 (K, R).
    """
    wide, known = secrets.astype(np.int16), np.empty((len(secrets), len(digits)), np.uint64)

    def rows(part: range) -> None:
        lattice.known_sums(digits[part.start : part.stop], wide, known[:, part.start : part.stop])

    spread(rows, ranges(len(digits), 2 * CORES))
    return known


def round_off(known: U64, answer: bytes, plan: Plan) -> NDArray[np.int64]:
    """The sums in an answer.

    Args:
        known: uint64 (K, R), from :func:`known_part`.
        answer: K·R little-endian words.
        plan: the run's plan.

    Returns:
        int64 (K, R), exact.

    Raises:
        ValueError: a sum is larger than the plan allows: the answer is not of this query.
    """
    noisy = np.frombuffer(answer, "<u8").reshape(known.shape) - known
    half = np.uint64(1 << (plan.shift - 1))
    sums = (noisy + half).view(np.int64) >> plan.shift
    if int(np.abs(sums).max(initial=0)) > plan.largest_sum:
        raise ValueError("an answer decodes to a sum that no honest answer can reach")
    return sums
