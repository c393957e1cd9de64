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
from dataclasses import dataclass

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
        """Words of one ciphertext."""
        return N + self.samples

    @property
    def query_bytes(self) -> int:
        """Bytes of one ciphertext on the wire."""
        return self.width * self.words

    @property
    def hint_bytes(self) -> int:
        """Bytes of the whole hint."""
        return 8 * N * self.rows


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

    def rows(part: range) -> None:
        """Errors and masks of some rows, then their sums."""
        for r in part:
            lattice.noise(low[r], high[r], hint[r])
        transforms = np.empty((len(part), 2, H))
        lattice.transform_small(mask[part.start : part.stop], transforms)
        out = hint[part.start : part.stop]
        if isinstance(matrix, Indicator):
            feature = int(np.searchsorted(matrix.offsets, part.start, "right")) - 1
            order, starts = lattice.sort_blocks(matrix.bins[feature], int(matrix.sizes[feature]))
            lattice.hint_indicator(public, order, starts, transforms, out)
        else:
            lattice.hint_dense(public, matrix.entries[part.start : part.stop], transforms, out)

    if isinstance(matrix, Indicator):
        parts = [range(int(a), int(b)) for a, b in zip(matrix.offsets[:-1], matrix.offsets[1:], strict=True)]
    else:
        parts = ranges(matrix.rows, 4 * CORES)
    spread(rows, parts)
    return hint, mask


def encrypt(values: NDArray[np.int32], public: F64, plan: Plan, draws: Draws | None = None) -> tuple[bytes, I8]:
    """The querier's side of a query.

    Args:
        values: int32 (K, n), the vectors; absolute values within the plan's bound.
        public: from :func:`expand`.
        plan: the run's plan.
        draws: secret randomness (given only to make test vectors; then used on one thread).

    Returns:
        ciphertext: K·plan.query_bytes bytes, and secrets: int8 (K, N). A secret serves one query, ever.
    """
    count = len(values)
    secrets = (draws or Draws()).ternary(count, N)
    transforms = np.empty((count, 2, H))
    lattice.transform_small(secrets, transforms)
    words = np.empty((count, public.shape[0] * N), np.uint64)

    def blocks(part: range) -> None:
        stream = draws or Draws()
        out = words[:, part.start * N : part.stop * N]
        low, high = stream.noise_bits(count, out.shape[1])
        piece = public[part.start : part.stop]
        lattice.encrypt(piece, transforms, low, high, values, plan.shift, (part.start - 1) * N, out)

    parts = ranges(public.shape[0], max(1, public.shape[0] * count // 64))
    if draws is None:
        spread(blocks, parts)
    else:
        for part in parts:
            blocks(part)
    ciphertext = np.empty(count * plan.query_bytes, np.uint8)
    spread(lambda k: _pack(words[k, : plan.words], plan, ciphertext, k), range(count))
    return ciphertext.tobytes(), secrets


def _pack(words: U64, plan: Plan, ciphertext: NDArray[np.uint8], k: int) -> None:
    size = plan.query_bytes
    out = ciphertext[k * size : (k + 1) * size]
    if plan.width == 8:
        out[:] = words.view(np.uint8)
    else:
        lattice.pack(words, plan.width, *_planes(out, plan))


def _planes(raw: NDArray[np.uint8], plan: Plan) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.uint8]]:
    """The planes of 32, 16 and 8 bits of one packed ciphertext (views; empty where the width has none)."""
    words = plan.words
    middle = words if plan.width in (6, 7) else 0
    low = words if plan.width in (5, 7) else 0
    first, second = 4 * words, 4 * words + 2 * middle
    return raw[:first].view(np.uint32), raw[first:second].view(np.uint16), raw[second : second + low]


def respond(matrix: Matrix, mask: I8, ciphertext: bytes, count: int, plan: Plan, draws: Draws | None = None) -> bytes:
    """The holder's answer.

    Args:
        matrix, mask: M and the secret T.
        ciphertext: count·plan.query_bytes bytes; every byte string of that length is a valid ciphertext.
        count: number of vectors K.
        plan: the run's plan.
        draws: secret randomness for the flood.

    Returns:
        count·R little-endian words.
    """
    raw = np.frombuffer(ciphertext, np.uint8).reshape(count, plan.query_bytes)
    answer = np.empty((count, matrix.rows), np.uint64)
    for start in range(0, count, lattice.LANES):
        group = raw[start : start + lattice.LANES]
        answer[start : start + lattice.LANES] = _respond_group(matrix, mask, group, plan)
    flood = (draws or Draws()).gaussian(plan.flood, answer.shape)
    return (answer + flood.view(np.uint64)).astype("<u8").tobytes()


def shifted(answer: bytes, offsets: NDArray[np.int64], plan: Plan) -> bytes:
    """An answer to which integers are added, above Δ: it decodes to M·v + offsets.

    Args:
        answer: of :func:`respond`.
        offsets: int64 (K, R), absolute values within the plan's ``room``.
        plan: the run's plan.
    """
    above: U64 = offsets.view(np.uint64) << np.uint64(plan.shift)
    return (np.frombuffer(answer, "<u8").reshape(offsets.shape) + above).astype("<u8").tobytes()


def _respond_group(matrix: Matrix, mask: I8, group: NDArray[np.uint8], plan: Plan) -> U64:
    """[T | M]·b for up to LANES vectors; uint64 (K, R)."""
    count = len(group)
    width = min(size for size in lattice.HISTOGRAMS if size >= count)
    lanes = np.zeros((plan.words, width), np.uint64)
    for lane in range(count):
        if plan.width == 8:
            lanes[:, lane] = group[lane].view(np.uint64)
        else:
            lattice.unpack(plan.width, *_planes(group[lane], plan), lane, lanes)
    answer = np.zeros((count, matrix.rows), np.uint64)
    head = np.ascontiguousarray(lanes[:N, :count].T)
    body = lanes[N:]

    def masked(part: range) -> None:
        lattice.dots(mask[part.start : part.stop], head, answer[:, part.start : part.stop])

    spread(masked, ranges(matrix.rows, 2 * CORES))
    if isinstance(matrix, Indicator):
        offsets = matrix.offsets

        def feature(f: int) -> None:
            sums = np.zeros((int(matrix.sizes[f]), width), np.uint64)
            lattice.HISTOGRAMS[width](matrix.bins[f], body, sums)
            answer[:, offsets[f] : offsets[f + 1]] += sums[:, :count].T

        spread(feature, range(len(matrix.sizes)))
    else:
        columns = np.ascontiguousarray(body[:, :count].T)
        entries = matrix.entries

        def dense(part: range) -> None:
            lattice.dots(entries[part.start : part.stop], columns, answer[:, part.start : part.stop])

        spread(dense, ranges(matrix.rows, 2 * CORES))
    return answer


def decode(hint: U64, secrets: I8, answer: bytes, plan: Plan) -> NDArray[np.int64]:
    """M·v for the vectors of one query.

    Args:
        hint: uint64 (R, N).
        secrets: int8 (K, N), of this query.
        answer: K·R little-endian words.
        plan: the run's plan.

    Returns:
        int64 (K, R), exact.

    Raises:
        ValueError: a sum is larger than the plan allows: the answer is not of this query.
    """
    count = len(secrets)
    known = np.zeros((count, plan.rows), np.uint64)

    def rows(part: range) -> None:
        lattice.dots(hint[part.start : part.stop], secrets, known[:, part.start : part.stop])

    spread(rows, ranges(plan.rows, 2 * CORES))
    noisy = np.frombuffer(answer, "<u8").reshape(count, plan.rows) - known
    half = np.uint64(1 << (plan.shift - 1))
    sums = (noisy + half).view(np.int64) >> plan.shift
    if int(np.abs(sums).max(initial=0)) > plan.largest_sum:
        raise ValueError("an answer decodes to a sum that no honest answer can reach")
    return sums
