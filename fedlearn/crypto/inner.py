r"""One inner product of two private vectors, for a question and an answer without a session.

The *asker* has integers w (n of them), the *answerer* small integers x, and the asker learns ⟨w, x⟩ plus a mask if the
answerer adds one; nothing else is learned. This is the hint scheme of :mod:`fedlearn.crypto.lwe` with a matrix of one
row that is used once: the question is an ordinary query, under a fresh secret; the answer carries the row's hint, under
a fresh mask, beside the one word that the hint opens. The argument is that of SECURITY.md, section 3, with R = 1:
to the answerer a question is ring-LWE samples; to the asker the hint is one, and the word is the inner product above
noise that the flood drowns, at :attr:`Setup.plan`'s ``kl_vector`` nats an answer.

The hint's low bits are dropped on the wire, which is a public function of it; they cost a little of the flood's room.
Where the plan's flood is far below Δ, noise is added up to Δ/2^4.5, so that an answer to whatever question tells at
most :func:`capacity` bits of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto import lwe
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Dense
from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import N

F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Setup:
    """What both sides derive alike; public.

    Attributes:
        plan: of one row and n samples.
        public: transforms of the public elements.
        kept: bytes of a hint's word on the wire.
    """

    plan: lwe.Plan
    public: F64
    kept: int

    @property
    def modulus(self) -> int:
        """Inner products and masks count modulo this power of two."""
        return 1 << (64 - self.plan.shift)

    @property
    def hint_bytes(self) -> int:
        """Bytes of a hint on the wire."""
        return self.kept * N


def setup(seed: bytes, samples: int, largest_sum: int, squares: int, answers: int, kl_nats: float) -> Setup:
    """Parameters for inner products of n values.

    Args:
        seed: at least 16 bytes that neither side controls alone.
        samples: n.
        largest_sum: bound on the absolute value of ⟨w, x⟩.
        squares: bound on ⟨x, x⟩.
        answers: how many there may be.
        kl_nats: budget for all of them.

    Raises:
        OverBudget: no parameters fit.
    """
    each, rest = divmod(largest_sum, samples)
    plan = lwe.make_plan(
        rows=1, samples=samples, largest=1, squares=squares, largest_value=each, room=rest, vectors=answers,
        kl_nats=kl_nats,
    )  # fmt: skip
    # Dropping t bits adds an error of deviation 2^t·sqrt(2N/36): held below Δ/2^10, a hundredth of what the flood adds.
    dropped = max(0, math.floor(plan.shift - 10 - math.log2(2 * N / 36) / 2)) // 8
    return Setup(plan, lwe.expand(seed, samples), 8 - dropped)


def capacity(at: Setup) -> float:
    """Bits that one answer's word carries at most: 64 less the entropy of its noise (flood of deviation Δ/2^4.5)."""
    return 64 - at.plan.shift + lwe.FLOOD_BITS_BELOW - math.log2(2 * math.pi * math.e) / 2


def ask(at: Setup, values: I64) -> tuple[bytes, I8]:
    """The asker: a question of ``at.plan.query_bytes`` bytes, and the secret that opens its one answer.

    Args:
        at: from :func:`setup`.
        values: int64 (n,), w; absolute values below 2^31.
    """
    return lwe.encrypt(values.astype(np.int32)[None, :], at.public, at.plan)


def answer(at: Setup, question: bytes, values: I8, mask: int = 0) -> tuple[bytes, bytes]:
    """The answerer: a hint of ``at.hint_bytes`` bytes, and one word of 8.

    Args:
        at: from :func:`setup`.
        question: ``at.plan.query_bytes`` bytes; every such string is valid.
        values: int8 (n,), x; of absolute value at most 1.
        mask: added to the inner product, modulo ``at.modulus``.
    """
    hint, own = lwe.make_hint(Dense(values[None, :], 1), at.public)
    words = np.empty(N + len(values), np.uint64)
    lattice.unpack(np.frombuffer(question, np.uint8), at.plan.words, at.plan.width, 0, words)
    row = np.concatenate([own[0], values]).astype(np.int64).view(np.uint64)
    total = np.array(
        [[words @ row]]
    )  # a sum of a few thousand products, not worth another thread: lwe.respond has them
    word = np.frombuffer(lwe.answer(total, at.plan), "<u8") + _more_flood(at.plan)
    word = word + (np.uint64(mask % at.modulus) << np.uint64(at.plan.shift))
    dropped = np.uint64(64 - 8 * at.kept)
    half = np.uint64(1 << int(dropped) >> 1)
    rounded = (hint[0] + half) >> dropped
    kept = np.ascontiguousarray(rounded.astype("<u8").view(np.uint8).reshape(N, 8)[:, : at.kept])
    return kept.tobytes(), word.astype("<u8").tobytes()


def opened(at: Setup, secret: I8, hint: bytes, word: bytes) -> int:
    """The asker: the inner product plus the mask, centred modulo ``at.modulus``.

    Args:
        at: from :func:`setup`.
        secret: from :func:`ask`.
        hint: ``at.hint_bytes`` bytes.
        word: 8 bytes.
    """
    wide = np.zeros((N, 8), np.uint8)
    wide[:, : at.kept] = np.frombuffer(hint, np.uint8).reshape(N, at.kept)
    whole = (wide.view("<u8").reshape(1, N) << np.uint64(64 - 8 * at.kept)).astype(np.uint64)
    noisy = np.frombuffer(word, "<u8") - lwe.known_part(lwe.digits_of(whole), secret)[0]
    return int((noisy + np.uint64(1 << (at.plan.shift - 1))).view(np.int64)[0] >> at.plan.shift)


def _more_flood(plan: lwe.Plan) -> np.uint64:
    """Noise on top of the flood, where that is held below Δ/2^4.5 by what double precision samples well."""
    missing = 2.0 ** (plan.shift - lwe.FLOOD_BITS_BELOW) / plan.flood
    if missing <= 1:
        return np.uint64(0)
    coarse = 1 << math.floor(math.log2(missing))
    drawn = int(Draws().gaussian(plan.flood * missing / coarse, (1,))[0])
    return np.uint64(drawn * coarse % 2**64)
