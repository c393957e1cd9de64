"""Online scoring in sealed mode: like :mod:`.serve` a question and an answer, but neither side learns the other's part.

    active                                                       passive
      trees, the active side learns the total:
      1. SealedAsk   the applicant; nesting; Enc(c)        ──►   x from its sides of its own splits
      2.                                                   ◄──   SealedAnswer   Enc(⟨c, x⟩)

      trees, the active side learns the band alone:
      1. SealedAsk   the applicant; nesting; Enc(c)        ──►   draws a mask r, uniform modulo the plaintexts' M
      2.                                                   ◄──   SealedAnswer   Enc(⟨c, x⟩ + r)
         has y = ⟨c, x⟩ + r mod M, uniform: the two sides hold shares of the total
      3. SealedAsk   Enc(the band, for each step of r)     ──►   takes the entry of its r, and forgets r
      4.                                                   ◄──   SealedAnswer   Enc(the band)

      regression and scorecards, which tell the band alone:
      1. SealedAsk   the applicant; Enc(the band, for      ──►   takes the entry of its partial score
                     each step of the partial score)
      2.                                                   ◄──   SealedAnswer   Enc(the band)

Trees as an inner product of the active side's numbers c with the passive side's bits x:
:mod:`fedlearn.kernels.nesting`. The encryption: :mod:`fedlearn.crypto.inner`. A table's entry is an inner product with
a unit vector.

The passive side learns who applies, when, for what purpose and under which consent, as in plain mode; and of each model
the nesting: which of its splits is next above which and on which side. (It comes with each question and must stay the
same, so that neither side keeps a state that the other must know of.) It learns no weight, no split of the active side,
no path, no score and no band. The active side learns whether the passive side knows the applicant; and the total of the
trees, or one of at most ``[serving] bands`` bands.

Steps are of reach/4096 in units of the margin, so a band may be that of a margin half a step away: reach/8192.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedlearn.channel import START, Message, Reveals, Table
from fedlearn.contract import Contract
from fedlearn.crypto import inner
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BadConfig, OverBudget
from fedlearn.kernels import nesting as kernel
from fedlearn.v1 import serve_pb2
from fedlearn.v1 import serve_sealed_pb2 as pb

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

#: Entries of a table of bands.
STEPS = 8192
#: Sends a question and gives the answer's bytes, not yet trusted.
Told = Callable[[bytes], bytes]

TABLE = Table(
    "serve_sealed",
    ("active", "passive"),
    (
        Message(
            pb.SealedAsk,
            "active",
            (START, "SealedAnswer"),
            Reveals(
                "the identifier of an applicant, the purpose and the consent reference; how the passive splits of the "
                "model are nested, which is the same in every question",
                lambda m: 1 + len(m.nesting) // 4,
            ),
        ),
        Message(
            pb.SealedAnswer,
            "passive",
            ("SealedAsk",),
            Reveals("what the contract tells: the trees' total, a masked total that is uniform, or a band"),
        ),
    ),
)


class Unfit(ValueError):
    """A message that is not what is due; says what the peer did."""


@dataclass(frozen=True)
class Agreed:
    """What both sides derive alike from the contract and the model. Public.

    Attributes:
        splits: passive splits of the trees; None for regression.
        sums: for inner products with as many numbers as there are splits (one at least), or None.
        table: for bands, or None.
        unit: 2^digits, one in the fixed point of weights.
        reach: bound on the passive part, in units of the margin.
        bands: most bands.
    """

    splits: int | None
    sums: inner.Setup | None
    table: inner.Setup | None
    unit: int
    reach: float
    bands: int

    @property
    def largest(self) -> int:
        """The largest question, in bytes of ciphertext and nesting."""
        sums = self.sums.plan.query_bytes + 4 * (self.splits or 0) if self.sums else 0
        return max(sums, self.table.plan.query_bytes if self.table else 0)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of ciphertexts and nesting to the passive side and from it, for one applicant."""
        setups = [setup for setup in (self.sums, self.table) if setup is not None]
        up = sum(setup.plan.query_bytes for setup in setups) + 4 * (self.splits or 0)
        return up, sum(setup.hint_bytes + 8 for setup in setups)


def agree(contract: Contract, model_id: bytes, splits: int | None) -> Agreed:
    """The parameters for one model. The leakage budget is shared by its two kinds of answer, where there are two.

    Raises:
        BadConfig: the contract does not allow this model to be served sealed.
        OverBudget: no parameters fit the contract's budget.
    """
    terms = contract.serving
    if terms is None or terms.mode != "sealed":
        raise BadConfig(f"contract {contract.name!r} has no sealed [serving]")
    band = terms.tells == "band"
    kinds = [splits is not None, band]
    budget = contract.budget.kl_nats / sum(kinds)
    seeds = [hashlib.sha256(_SEED + what + contract.serving_hash() + model_id).digest() for what in (b"sums", b"table")]
    unit = 2**terms.digits
    sums = table = None
    try:
        if splits is not None:
            count = max(1, splits)
            sums = inner.setup(seeds[0], count, int(terms.reach * unit) - 1, count, terms.answers, budget)
        if band:
            table = inner.setup(seeds[1], STEPS, terms.bands, 1, terms.answers, budget)
    except OverBudget as error:
        raise OverBudget(f"{error}: [serving] needs fewer answers, a smaller reach or fewer digits") from None
    return Agreed(splits, sums, table, unit, terms.reach, terms.bands)


_SEED = b"fedlearn/1 serve sealed "


def rehearse(at: Agreed) -> None:
    """Go through all steps once by oneself, so that no request waits for a compiler."""
    asked = serve_pb2.PartRequest()
    if at.sums is not None:
        nesting, numbers = np.full(at.splits or 0, -1, np.int32), np.zeros(at.splits or 0, np.int64)
        sides = np.zeros(at.splits or 0, np.uint8)
        ask_sum(at, asked, nesting, numbers, lambda raw: answer_sum(at, pb.SealedAsk.FromString(raw), sides)[0])
    if at.table is not None:
        bands = np.zeros(STEPS, np.int64)
        ask_band(at, asked, bands, lambda raw: answer_band(at, pb.SealedAsk.FromString(raw), 0))


# --- active ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trees:
    """The active side's trees, laid out for questions.

    Attributes:
        roots, feature, masks, left: as in :class:`fedlearn.models.forest.Forest`.
        value: int64 (nodes,), leaf weights in units of 2^-digits.
        nesting: int32 (S,), see :func:`fedlearn.kernels.nesting.arrived`.
    """

    roots: I32
    feature: I32
    masks: U8
    left: I32
    value: I64
    nesting: I32

    @classmethod
    def of(cls, at: Agreed, roots: I32, feature: I32, masks: U8, left: I32, value: F64) -> Trees:
        """Lay out.

        Raises:
            BadConfig: the trees' part that depends on the passive side can exceed ``reach``, or they use a passive
                split twice or not at all.
        """
        fixed = np.rint(value * at.unit).astype(np.int64)
        above = np.full(at.splits or 0, -2, np.int32)
        spread, count = kernel.shape(roots, feature, left, fixed, above)
        if spread >= int(at.reach * at.unit):
            raise BadConfig(
                f"the passive side's part of this model can be {spread / at.unit:.3g} large, beyond [serving] reach "
                f"{at.reach:g}: agree on a larger one"
            )
        if count != len(above) or np.any(above == -2):
            raise BadConfig("the trees do not use each passive split once: the model cannot be served sealed")
        return cls(roots, feature, masks, left, fixed, above)

    def numbers(self, bins: U8) -> tuple[int, I64]:
        """The constant and c of one row with own bins uint8 (F,), in units of 2^-digits."""
        numbers = np.zeros(len(self.nesting), np.int64)
        return kernel.weights(self.roots, self.feature, self.masks, self.left, self.value, bins, numbers), numbers


def ask_sum(at: Agreed, asked: serve_pb2.PartRequest, nesting: I32, numbers: I64, told: Told) -> int:
    """Steps 1 and 2 as the active side of trees.

    Args:
        at: from :func:`agree`.
        asked: the applicant and the terms.
        nesting: of :class:`Trees`.
        numbers: int64 (S,), c.
        told: sends and receives.

    Returns:
        ⟨c, x⟩ in units of 2^-digits; or, where the contract tells the band alone, its share of it: modulo
        ``at.sums.modulus`` it is ⟨c, x⟩ + r.

    Raises:
        Unfit: the answer is not what is due.
    """
    setup = _due(at.sums)
    encrypted, secret = inner.ask(setup, numbers if len(numbers) else np.zeros(1, np.int64))
    question = pb.SealedAsk(asked=asked, nesting=nesting.astype("<i4").tobytes(), weights=encrypted)
    found = _opened(setup, secret, told(question.SerializeToString()))
    if at.table is None and abs(found) > setup.plan.largest_sum:
        raise Unfit("sent a total that no trees of this model can have")
    return found


def totals(at: Agreed, share: int) -> I64:
    """What the trees' part is for each step of the passive side's mask, int64 (STEPS,), in units of 2^-digits.

    Args:
        at: from :func:`agree`.
        share: from :func:`ask_sum`.
    """
    modulus = _due(at.sums).modulus
    width = modulus // STEPS
    found = (share - (np.arange(STEPS) * width + width // 2)) % modulus
    return np.where(found >= modulus // 2, found - modulus, found)


def parts(at: Agreed) -> F64:
    """The partial score in the middle of each step, float64 (STEPS,)."""
    return np.asarray((np.arange(STEPS) + 0.5) * (2 * at.reach / STEPS) - at.reach, np.float64)


def ask_band(at: Agreed, asked: serve_pb2.PartRequest, bands: I64, told: Told) -> int:
    """Steps 3 and 4, or 1 and 2 of regression, as the active side.

    Args:
        at: from :func:`agree`.
        asked: the applicant and the terms.
        bands: int64 (STEPS,), the band for each step of what the passive side holds.
        told: sends and receives.

    Returns:
        The band.

    Raises:
        Unfit: the answer is not what is due, or no band.
    """
    setup = _due(at.table)
    encrypted, secret = inner.ask(setup, bands)
    found = _opened(setup, secret, told(pb.SealedAsk(asked=asked, table=encrypted).SerializeToString()))
    if not 0 <= found <= min(at.bands - 1, int(bands.max())):
        raise Unfit("sent a band that there is not")
    return found


def _opened(setup: inner.Setup, secret: inner.I8, raw: bytes) -> int:
    try:
        answer = pb.SealedAnswer.FromString(raw)
    except DecodeError:
        raise Unfit("sent what is no SealedAnswer") from None
    if len(answer.hint) != setup.hint_bytes or len(answer.word) != 8:
        due = f"where {setup.hint_bytes} and 8 were due"
        raise Unfit(f"sent a hint of {len(answer.hint)} and a word of {len(answer.word)} bytes {due}")
    return inner.opened(setup, secret, answer.hint, answer.word)


# --- passive -----------------------------------------------------------------------------------------


def check(at: Agreed, message: pb.SealedAsk) -> None:
    """Whether a question has the parts and lengths that are due.

    Raises:
        Unfit: with what is wrong.
    """
    found = (len(message.nesting), len(message.weights), len(message.table))
    sums = (4 * (at.splits or 0), at.sums.plan.query_bytes, 0) if at.sums is not None else None
    table = (0, 0, at.table.plan.query_bytes) if at.table is not None else None
    if found not in (sums, table):
        said = f"{found[0]} bytes of nesting, {found[1]} of numbers and {found[2]} of bands"
        raise Unfit(f"sent {said}, which do not fit the model")
    above = np.frombuffer(message.nesting, "<i4")
    if np.any((above < -1) | (above >> 1 >= np.arange(len(above)))):
        raise Unfit("sent a nesting in which a split is not below an earlier one")


def answer_sum(at: Agreed, message: pb.SealedAsk, sides: U8) -> tuple[bytes, int]:
    """Step 2 as the passive side of trees.

    Args:
        at: from :func:`agree`.
        message: checked.
        sides: uint8 (S,), 1 where the applicant goes left.

    Returns:
        The SealedAnswer's bytes, and the mask r in it: 0 where the contract tells the total.
    """
    setup = _due(at.sums)
    bits = np.zeros(max(1, len(sides)), np.int8)
    kernel.arrived(np.frombuffer(message.nesting, "<i4").astype(np.int32), sides, bits)
    mask = int(Draws().words(1)[0]) % setup.modulus if at.table is not None else 0
    hint, word = inner.answer(setup, message.weights, bits, mask)
    return pb.SealedAnswer(hint=hint, word=word).SerializeToString(), mask


def step_of_mask(at: Agreed, mask: int) -> int:
    """The entry for a mask r."""
    return mask * STEPS // _due(at.sums).modulus


def step_of_part(at: Agreed, part: float) -> int | None:
    """The entry for a partial score; None beyond ``reach``."""
    if not -at.reach <= part < at.reach:
        return None
    return min(STEPS - 1, int((part + at.reach) / (2 * at.reach) * STEPS))


def answer_band(at: Agreed, message: pb.SealedAsk, step: int) -> bytes:
    """Step 4, or 2 of regression, as the passive side.

    Args:
        at: from :func:`agree`.
        message: checked.
        step: which entry.

    Returns:
        The SealedAnswer's bytes.
    """
    unit = np.zeros(STEPS, np.int8)
    unit[step] = 1
    hint, word = inner.answer(_due(at.table), message.table, unit)
    return pb.SealedAnswer(hint=hint, word=word).SerializeToString()


def _due(setup: inner.Setup | None) -> inner.Setup:
    if setup is None:
        raise BadConfig("this contract has no such step")
    return setup
