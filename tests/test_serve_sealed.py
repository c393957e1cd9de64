"""Sealed online scoring: the inner product, trees as one, both roles in memory, and what each side refuses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedlearn.contract import Align, Band, Boost, Contract, Glm, Key, Label, Serving, Side
from fedlearn.crypto import inner, lwe
from fedlearn.errors import BadConfig, OverBudget
from fedlearn.kernels import nesting as kernel
from fedlearn.kernels.trees import MASK
from fedlearn.models.forest import Forest
from fedlearn.protocols import serve_sealed as protocol
from fedlearn.protocols.serve_sealed import STEPS, Unfit
from fedlearn.service.common import EachLimiter, Refusal
from fedlearn.service.sealed import Allowance, band_numbers
from fedlearn.service.sealed import _parsed as parsed
from fedlearn.v1 import serve_pb2
from fedlearn.v1 import serve_sealed_pb2 as pb

SEED = b"public elements of these tests.."
MODEL = bytes(range(16))
BUDGET = 2.0**-20
FEATURES, CODES = 3, 8
ASKED = serve_pb2.PartRequest(applicant="600123456")


def contract(**serving: Any) -> Contract:
    usual = {"mode": "sealed", "purposes": ("loan",)}
    return Contract(
        name="test", purpose="measure online scoring", expires=date(2999, 12, 31),
        active=Side(name="bank", features={"income": "number"}),
        passive=Side(name="platform", features={"spend": "number"}), label=Label(column="label"),
        align=Align(key=Key(column="id")), boost=Boost(), serving=Serving(**(usual | serving)),
    )  # fmt: skip


# --- the inner product -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 9000),
    bits=st.integers(1, 30),
    mask=st.integers(0, 2**40),
    ones=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@example(samples=4096, bits=22, mask=0, ones=1.0, seed=0)
@example(samples=4097, bits=1, mask=1, ones=1.0, seed=0)
def test_the_inner_product_is_exact(samples: int, bits: int, mask: int, ones: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    bound = max(2**bits, samples)
    at = inner.setup(SEED, samples, bound, samples, 1000, BUDGET)
    assert at.plan.largest_sum == bound
    assert at.modulus > 2 * bound
    largest = bound // samples
    values = draws.integers(-largest, largest + 1, samples)
    row = (draws.random(samples) < ones).astype(np.int8) * draws.choice([-1, 1], samples).astype(np.int8)
    question, secret = inner.ask(at, values)
    assert len(question) == at.plan.query_bytes
    hint, word = inner.answer(at, question, row, mask)
    assert (len(hint), len(word)) == (at.hint_bytes, 8)
    found, due = inner.opened(at, secret, hint, word), int(values @ row.astype(np.int64)) + mask
    assert (found - due) % at.modulus == 0
    assert -at.modulus // 2 <= found < at.modulus // 2


def test_the_noise_of_an_answer_is_the_flood_whatever_was_multiplied() -> None:
    """Its deviation is Δ/2^4.5 for small sums and large, beyond what double precision samples at once, too."""
    for bound in (16, 2**21):
        at = inner.setup(SEED, 40, bound, 40, 1000, BUDGET)
        for row in (np.zeros(40, np.int8), np.ones(40, np.int8)):
            noise = []
            for _ in range(600):
                question, secret = inner.ask(at, np.zeros(40, np.int64))
                hint, word = inner.answer(at, question, row)
                whole = np.zeros((lwe.N, 8), np.uint8)
                whole[:, 8 - at.kept :] = np.frombuffer(hint, np.uint8).reshape(lwe.N, at.kept)
                known = lwe.known_part(lwe.digits_of(whole.view("<u8").reshape(1, lwe.N).astype(np.uint64)), secret)[0]
                noise.append(float((np.frombuffer(word, "<u8") - known).view(np.int64)[0]))
            deviation = 2.0 ** (at.plan.shift - lwe.FLOOD_BITS_BELOW)
            assert np.std(noise) == pytest.approx(deviation, rel=0.2)
            assert abs(np.mean(noise)) < deviation / 4
            assert max(map(abs, noise)) < 2.0 ** (at.plan.shift - 1)
        assert inner.capacity(at) == pytest.approx(64 - math.log2(deviation * math.sqrt(2 * math.pi * math.e)))


def test_questions_and_answers_are_fresh() -> None:
    at = inner.setup(SEED, 10, 100, 10, 1000, BUDGET)
    values, row = np.arange(10), np.ones(10, np.int8)
    one, other = inner.ask(at, values), inner.ask(at, values)
    assert one[0] != other[0]
    assert not np.array_equal(one[1], other[1])
    answers = {inner.answer(at, one[0], row)[0] for _ in range(3)}
    assert len(answers) == 3


def test_the_budget_holds_for_all_answers_together() -> None:
    at = inner.setup(SEED, 3100, 2**21, 3100, 10**8, BUDGET)
    assert at.plan.kl_vector * 10**8 <= BUDGET
    with pytest.raises(OverBudget):
        inner.setup(SEED, 3100, 2**40, 3100, 10**8, BUDGET)


# --- trees as an inner product -----------------------------------------------------------------------


def forest_of(draws: np.random.Generator, trees: int, depth: int, passive: float, unit: int) -> tuple[Forest, int]:
    """Random trees that are not complete, leaf weights in whole units; and how many passive splits they have."""
    feature: list[int] = []
    left: list[int] = []
    value: list[float] = []
    roots, splits = [], 0
    for _ in range(trees):
        roots.append(len(left))
        level = [len(left)]
        feature.append(0)
        left.append(-1)
        value.append(float(draws.integers(-unit // 4, unit // 4)) / unit)
        for _ in range(depth):
            below = []
            for at in level:
                if draws.random() < 0.75:
                    if draws.random() < passive:
                        feature[at], splits = -1 - splits, splits + 1
                    else:
                        feature[at] = int(draws.integers(0, FEATURES))
                    left[at], value[at] = len(left), 0.0
                    for _ in range(2):
                        below.append(len(left))
                        feature.append(0)
                        left.append(-1)
                        value.append(float(draws.integers(-unit // 4, unit // 4)) / unit)
            level = below
    nodes = len(left)
    masks = draws.integers(0, 256, (nodes, MASK), np.uint8)
    zeros = np.zeros(nodes)
    opaque = np.where(np.array(feature) < 0, 0, -1).astype(np.int32)
    made = Forest(
        base=np.array([0.25]), roots=np.array(roots, np.int32), output=np.zeros(trees, np.int32),
        feature=np.array(feature, np.int32), opaque=opaque, masks=masks, left=np.array(left, np.int32),
        value=np.array(value), gain=zeros, cover=zeros, size=np.zeros(nodes, np.int64),
    )  # fmt: skip
    return made, splits


def laid_out(at: protocol.Agreed, forest: Forest) -> protocol.Trees:
    return protocol.Trees.of(at, forest.roots, forest.feature, forest.masks, forest.left, forest.value)


def margin_of(forest: Forest, codes: np.ndarray, sides: np.ndarray) -> float:
    """As plain mode has it."""
    packed = sides[:, None] if len(sides) else np.zeros((1, 1), np.uint8)
    return float(forest.margins(codes[:, None], packed, np.zeros(1, np.int64))[0, 0])


@settings(max_examples=60, deadline=None)
@given(
    trees=st.integers(1, 12), depth=st.integers(0, 6), passive=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_trees_are_one_inner_product(trees: int, depth: int, passive: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    at = agreed("score", 1)
    forest, splits = forest_of(draws, trees, depth, passive, at.unit)
    own = laid_out(replace(at, splits=splits), forest)
    for _ in range(4):
        codes = draws.integers(0, CODES, FEATURES, np.uint8)
        sides = draws.integers(0, 2, splits, np.uint8)
        constant, numbers = own.numbers(codes)
        bits = np.zeros(splits, np.int8)
        kernel.arrived(own.nesting, sides, bits)
        total = int(numbers @ bits.astype(np.int64))
        assert forest.base[0] + (constant + total) / at.unit == pytest.approx(margin_of(forest, codes, sides), abs=1e-9)
        assert abs(total) < at.reach * at.unit


# --- both roles in memory ----------------------------------------------------------------------------

AGREED: dict[tuple[str, int | None, int], protocol.Agreed] = {}


def agreed(tells: str, splits: int | None, digits: int = 16) -> protocol.Agreed:
    """Kept from test to test: making one takes a moment."""
    key = (tells, splits, digits)
    if key not in AGREED:
        made = contract(tells=tells, digits=digits)
        AGREED[key] = protocol.agree(made, MODEL, splits)
    return AGREED[key]


def passive_trees(at: protocol.Agreed, sides: np.ndarray) -> Callable[[bytes], bytes]:
    """The passive side of one request, both steps."""
    masks: list[int] = []

    def told(raw: bytes) -> bytes:
        message = pb.SealedAsk.FromString(raw)
        protocol.check(at, message)
        assert message.asked == ASKED
        if message.table:
            return protocol.answer_band(at, message, protocol.step_of_mask(at, masks.pop()))
        reply, mask = protocol.answer_sum(at, message, sides)
        masks.append(mask)
        return reply

    return told


@settings(max_examples=12, deadline=None)
@given(
    passive=st.sampled_from([0.0, 0.5, 1.0]), tells=st.sampled_from(["score", "band"]),
    digits=st.sampled_from([8, 16]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_both_roles_of_trees(passive: float, tells: str, digits: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    forest, splits = forest_of(draws, 8, 4, passive, 2**digits)
    at = protocol.agree(contract(tells=tells, digits=digits), MODEL, splits)
    own = laid_out(at, forest)
    codes, sides = draws.integers(0, CODES, FEATURES, np.uint8), draws.integers(0, 2, splits, np.uint8)
    constant, numbers = own.numbers(codes)
    told = passive_trees(at, sides)
    due = margin_of(forest, codes, sides)
    share = protocol.ask_sum(at, ASKED, own.nesting, numbers, told)
    if tells == "score":
        assert forest.base[0] + (constant + share) / at.unit == pytest.approx(due, abs=1e-9)
        return
    margins = forest.base[0] + (constant + protocol.totals(at, share)) / at.unit
    half = at.sums.modulus / STEPS / 2 / at.unit if at.sums else 0.0
    cuts = np.sort(draws.normal(due, 0.5, 5))
    bands = np.searchsorted(cuts, margins).astype(np.int64)
    found = protocol.ask_band(at, ASKED, bands, told)
    assert found in range(np.searchsorted(cuts, due - half), np.searchsorted(cuts, due + half, side="right") + 1)
    assert half <= at.reach / STEPS


def test_a_share_of_the_total_is_uniform() -> None:
    """The same question again and again: shares fall everywhere, whatever the total."""
    at = agreed("band", 3)
    assert at.sums is not None
    numbers, nesting = np.full(3, 5), np.full(3, -1, np.int32)
    told = passive_trees(at, np.ones(3, np.uint8))
    shares = [protocol.ask_sum(at, ASKED, nesting, numbers, told) % at.sums.modulus for _ in range(400)]
    counts = np.bincount(np.array(shares) * 4 // at.sums.modulus, minlength=4)
    assert counts.min() > 55  # of 100 each; 5 deviations


@settings(max_examples=15, deadline=None)
@given(part=st.floats(-31.9, 31.9), own=st.floats(-5, 5))
@example(part=-31.9999, own=0.0)
@example(part=31.9999, own=0.0)
@example(part=0.0, own=0.0)
def test_both_roles_of_regression(part: float, own: float) -> None:
    at = agreed("band", None)

    def told(raw: bytes) -> bytes:
        message = pb.SealedAsk.FromString(raw)
        protocol.check(at, message)
        step = protocol.step_of_part(at, part)
        assert step is not None
        return protocol.answer_band(at, message, step)

    cuts = [own - 3, own - 0.5, own, own + 0.25, own + 20]
    bands = np.searchsorted(cuts, own + protocol.parts(at)).astype(np.int64)
    half = at.reach / STEPS
    found = protocol.ask_band(at, ASKED, bands, told)
    assert found in range(np.searchsorted(cuts, own + part - half - 1e-9),
                          np.searchsorted(cuts, own + part + half + 1e-9, side="right") + 1)  # fmt: skip


def test_parts_beyond_reach_have_no_step() -> None:
    at = agreed("band", None)
    assert protocol.step_of_part(at, at.reach) is None
    assert protocol.step_of_part(at, -at.reach - 1e-9) is None
    assert protocol.step_of_part(at, math.nan) is None
    assert protocol.step_of_part(at, -at.reach) == 0


def test_bands_are_those_of_plain_mode() -> None:
    bands = [
        Band(name="a", decision="x", up_to=0.1),
        Band(name="b", decision="x", up_to=0.3),
        Band(name="c", decision="y"),
    ]
    assert band_numbers(bands, np.array([0.0, 0.1, 0.2, 0.3, 0.31])).tolist() == [0, 0, 1, 1, 2]


# --- what does not fit is refused --------------------------------------------------------------------


def test_the_passive_side_refuses_what_does_not_fit() -> None:
    at = agreed("band", 4)
    assert at.sums is not None
    assert at.table is not None
    nesting, encrypted = np.array([-1, 0, 1, 4], "<i4"), bytes(at.sums.plan.query_bytes)
    protocol.check(at, pb.SealedAsk(nesting=nesting.tobytes(), weights=encrypted))
    protocol.check(at, pb.SealedAsk(table=bytes(at.table.plan.query_bytes)))
    for wrong in (
        pb.SealedAsk(),
        pb.SealedAsk(nesting=nesting.tobytes()),
        pb.SealedAsk(nesting=nesting.tobytes(), weights=encrypted[:-1]),
        pb.SealedAsk(nesting=nesting.tobytes()[:-4], weights=encrypted),
        pb.SealedAsk(nesting=nesting.tobytes(), weights=encrypted, table=bytes(8)),
        pb.SealedAsk(table=bytes(at.table.plan.query_bytes - 1)),
    ):
        with pytest.raises(Unfit, match="do not fit the model"):
            protocol.check(at, wrong)
    for above in ([-1, 2, 0, 0], [0, -1, -1, -1], [-2, -1, -1, -1], [-1, -1, -1, 2**31 - 1]):
        with pytest.raises(Unfit, match="not below an earlier one"):
            protocol.check(at, pb.SealedAsk(nesting=np.array(above, "<i4").tobytes(), weights=encrypted))
    with pytest.raises(Unfit):  # the total is not told in the clear: no first step of regression, either
        protocol.check(agreed("band", None), pb.SealedAsk(nesting=nesting.tobytes(), weights=encrypted))


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=200), nesting=st.binary(max_size=40), short=st.integers(0, 3))
def test_any_bytes_are_a_question_or_refused(raw: bytes, nesting: bytes, short: int) -> None:
    at = agreed("band", 4)
    assert at.sums is not None
    try:
        assert parsed(raw).HasField("asked")
    except Refusal as refusal:
        assert refusal.status in ("malformed", "contract-differs")  # noqa: PT017  (either may come)
    message = pb.SealedAsk(nesting=nesting, weights=bytes(at.sums.plan.query_bytes - short), asked=ASKED)
    try:
        protocol.check(at, parsed(message.SerializeToString()))
    except Unfit:
        return
    reply, mask = protocol.answer_sum(at, message, np.ones(4, np.uint8))
    assert len(pb.SealedAnswer.FromString(reply).hint) == at.sums.hint_bytes
    assert 0 <= mask < at.sums.modulus


def test_the_active_side_refuses_what_does_not_fit() -> None:
    at = agreed("score", 3)
    assert at.sums is not None
    nesting, numbers = np.full(3, -1, np.int32), np.full(3, 7)
    due = at.sums.hint_bytes
    for raw in (
        b"\xff",
        b"",
        pb.SealedAnswer(hint=bytes(due)).SerializeToString(),
        pb.SealedAnswer(hint=bytes(due - 1), word=bytes(8)).SerializeToString(),
        pb.SealedAnswer(hint=bytes(due), word=bytes(9)).SerializeToString(),
    ):
        with pytest.raises(Unfit):
            protocol.ask_sum(at, ASKED, nesting, numbers, lambda _, raw=raw: raw)
    far = 1 << (at.sums.plan.shift + at.sums.plan.largest_sum.bit_length())  # half a modulus away
    sides = np.ones(3, np.uint8)

    def shifted(raw: bytes) -> bytes:
        reply = pb.SealedAnswer.FromString(protocol.answer_sum(at, pb.SealedAsk.FromString(raw), sides)[0])
        word = (int.from_bytes(reply.word, "little") + far) % 2**64
        return pb.SealedAnswer(hint=reply.hint, word=word.to_bytes(8, "little")).SerializeToString()

    with pytest.raises(Unfit, match="no trees of this model can have"):
        protocol.ask_sum(at, ASKED, nesting, np.zeros(3, np.int64), shifted)
    bands = agreed("band", None)
    with pytest.raises(Unfit, match="a band that there is not"):
        protocol.ask_band(bands, ASKED, np.full(STEPS, bands.bands), lambda raw: protocol.answer_band(
            bands, pb.SealedAsk.FromString(raw), 0))  # fmt: skip
    assert bands.table is not None
    up = 1 << bands.table.plan.shift

    def next_band(raw: bytes) -> bytes:
        reply = pb.SealedAnswer.FromString(protocol.answer_band(bands, pb.SealedAsk.FromString(raw), 0))
        word = (int.from_bytes(reply.word, "little") + up) % 2**64
        return pb.SealedAnswer(hint=reply.hint, word=word.to_bytes(8, "little")).SerializeToString()

    assert protocol.ask_band(bands, ASKED, np.array([0, *[1] * (STEPS - 1)]), next_band) == 1
    with pytest.raises(Unfit, match="a band that there is not"):
        protocol.ask_band(bands, ASKED, np.array([1, *[0] * (STEPS - 1)]), next_band)


def test_trees_that_cannot_be_served_sealed() -> None:
    forest, splits = forest_of(np.random.default_rng(1), 5, 3, 1.0, 2**16)
    at = replace(agreed("score", 1), splits=splits)
    laid_out(at, forest)
    with pytest.raises(BadConfig, match=r"beyond \[serving\] reach 0\.5"):
        laid_out(replace(at, reach=0.5), forest)
    with pytest.raises(BadConfig, match="each passive split once"):
        laid_out(replace(at, splits=splits + 1), forest)
    twice = replace(forest, feature=np.where(forest.feature == -splits, -1, forest.feature).astype(np.int32))
    with pytest.raises(BadConfig, match="each passive split once"):
        laid_out(at, twice)


def test_the_contract_allows_what_makes_sense() -> None:
    with pytest.raises(ValidationError, match="tells = band needs mode = sealed"):
        Serving(purposes=("loan",), tells="band")
    with pytest.raises(ValidationError, match="too few steps"):
        Serving(purposes=("loan",), mode="sealed", reach=1, digits=8)
    with pytest.raises(ValidationError, match="more than 2\\^30 steps"):
        Serving(purposes=("loan",), mode="sealed", reach=1e6, digits=24)
    sealed = contract()
    body = sealed.model_dump() | {"glm": Glm().model_dump(), "boost": Boost().model_dump()}
    with pytest.raises(ValidationError, match="tells = band"):
        Contract.model_validate(body)
    assert sealed.hash() == contract(mode="plain").hash()
    assert sealed.serving_hash() != contract(mode="plain").serving_hash()
    with pytest.raises(OverBudget, match="needs fewer answers"):
        protocol.agree(contract(reach=2**14, answers=2**40), MODEL, 1000)
    with pytest.raises(BadConfig, match="no sealed"):
        protocol.agree(contract(mode="plain"), MODEL, 1)


def test_one_applicant_so_often_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever, twice = EachLimiter(0), EachLimiter(2)
    for _ in range(3):
        for_ever.take("a")
    for applicant in ("a", "b", "a"):
        twice.take(applicant)
    with pytest.raises(Refusal) as refusal:
        twice.take("a")
    assert refusal.value.status == "too-many"
    twice.take("b")
    tomorrow = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    twice.take("a")


def test_answers_are_counted_for_as_long_as_the_file_lives(tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "model"
    first = Allowance(path, 1500)
    for _ in range(10):
        first.take()
    again = Allowance(path, 1500)  # the 990 that were set aside count as used
    for _ in range(500):
        again.take()
    for counting in (again, Allowance(path, 1500)):
        with pytest.raises(Refusal) as refusal:
            counting.take()
        assert refusal.value.status == "used-up"
    path.write_text("a few")
    with pytest.raises(ValueError, match="a few"):
        Allowance(path, 1500)
