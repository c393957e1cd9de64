"""The encrypted product between two parties: both back ends against NumPy, and against peers that deviate."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message as ProtobufMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.channel import BOTH, START, Channel, Limits, Message, Table, nothing, simulate
from fedlearn.contract import Contract
from fedlearn.crypto import lwe, paillier
from fedlearn.crypto.matrix import Dense, Indicator, Matrix
from fedlearn.errors import BeyondContract, Malformed, OutOfOrder, OverBudget, PeerAborted, PeerMisbehaved, WrongLength
from fedlearn.kernels.negacyclic import N
from fedlearn.protocols import matvec
from fedlearn.protocols.matvec import Shape, Terms, open_holder, open_querier
from fedlearn.v1 import matvec_pb2 as pb

BITS = 2048
KINDS = (pb.MatvecShape, pb.MatvecHint, pb.MatvecKey, pb.MatvecQuery, pb.MatvecAnswer)
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("matvec", ("querier", "holder"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))
SESSION = bytes(range(16))


@functools.cache
def key() -> paillier.PrivateKey:
    return paillier.generate(BITS)


@pytest.fixture(scope="module", autouse=True)
def _one_key() -> Iterator[None]:
    """Making keys is the slow part, and tested elsewhere."""
    made = key()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paillier, "generate", lambda _bits: made)
        yield


def terms(backend: str, largest_value: int, vectors: int, kl_nats: float = 2.0**-20) -> Terms:
    return Terms(backend, BITS, largest_value, vectors, kl_nats)


def plain(matrix: Matrix, values: np.ndarray) -> np.ndarray:
    """M·v by NumPy."""
    if isinstance(matrix, Indicator):
        rows = [bins == v for bins, size in zip(matrix.bins, matrix.sizes, strict=True) for v in range(size)]
        return values.astype(np.int64) @ np.array(rows).T.astype(np.int64)
    return values.astype(np.int64) @ matrix.entries.T


def hold(channel: Channel, matrix: Matrix, agreed: Terms, vectors: int) -> None:
    """The holder, until so many vectors are answered."""
    channel.session = SESSION
    holder = open_holder(channel, matrix, agreed)
    while vectors:
        query = channel.receive(pb.MatvecQuery)
        vectors -= query.count if holder.answer(query) else 0


def ask(channel: Channel, shape: Shape, agreed: Terms, *queries: np.ndarray) -> list[np.ndarray]:
    channel.session = SESSION
    querier = open_querier(channel, shape, agreed)
    return [querier.ask(values)() for values in queries]


def run(
    matrix: Matrix, agreed: Terms, *queries: np.ndarray, limits: Limits | None = None, asks: Any = ask
) -> tuple[list[np.ndarray], Channel, Channel]:
    """Sums of each query, and both ends of the channel."""
    ends: dict[str, Channel] = {}

    def querier(channel: Channel) -> list[np.ndarray]:
        ends["querier"] = channel
        return asks(channel, Shape.of(matrix), agreed, *queries)

    def holder(channel: Channel) -> None:
        ends["holder"] = channel
        hold(channel, matrix, agreed, sum(map(len, queries)))

    sums, _ = simulate(querier, holder, limits=limits)
    return sums, ends["querier"], ends["holder"]


def example(rng: np.random.Generator, kind: str, samples: int) -> Matrix:
    if kind == "dense":
        return Dense(rng.integers(-255, 256, (int(rng.integers(1, 4)), samples)))
    sizes = rng.integers(1, 4, int(rng.integers(1, 4)))
    return Indicator(np.array([rng.integers(0, size, samples) for size in sizes], np.uint8), sizes)


# --- honest parties -----------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["indicator", "dense"]),
    samples=st.integers(1, 12),
    bits=st.integers(1, 16),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    seed=st.integers(0, 2**32),
)
def test_both_back_ends_give_the_sums(kind: str, samples: int, bits: int, counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = example(rng, kind, samples)
    largest = 2**bits - 1
    queries = [rng.integers(-largest, largest + 1, (count, samples)).astype(np.int32) for count in counts]
    queries[0][0] = largest
    due = [plain(matrix, values) for values in queries]
    for backend in ("lwe", "paillier"):
        sums, querier, holder = run(matrix, terms(backend, largest, sum(counts)), *queries)
        for got, expected in zip(sums, due, strict=True):
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, expected)
        assert querier.ledger.lines() == holder.ledger.lines()


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["indicator", "dense"]),
    samples=st.sampled_from([1, 1000, N - 1, N, N + 1, 3 * N]),
    counts=st.lists(st.integers(1, 18), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_lwe_over_several_blocks(kind: str, samples: int, counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = example(rng, kind, samples)
    queries = [rng.integers(-31, 32, (count, samples)).astype(np.int32) for count in counts]
    sums, _, _ = run(matrix, terms("lwe", 31, sum(counts)), *queries)
    for got, values in zip(sums, queries, strict=True):
        np.testing.assert_array_equal(got, plain(matrix, values))


@pytest.mark.parametrize("at_once", [1, 3, 8, 11])
@pytest.mark.parametrize("blocks", [1, 2])
def test_large_queries_and_hints_go_in_pieces(at_once: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    matrix = example(rng, "indicator", 2 * N + 500)
    agreed = terms("lwe", 9, 21)
    monkeypatch.setattr(matvec, "_HINT_BYTES", 8 * N)
    monkeypatch.setattr(matvec, "AT_ONCE", at_once)
    monkeypatch.setattr(lwe, "PIECE_BLOCKS", blocks)
    values = rng.integers(-9, 10, (21, 2 * N + 500)).astype(np.int32)
    (sums,), querier, holder = run(matrix, agreed, values)
    np.testing.assert_array_equal(sums, plain(matrix, values))
    said = {line["message"]: line["messages"] for line in querier.ledger.lines()}
    assert said["MatvecHint"] == matrix.rows
    assert said["MatvecAnswer"] == -(-21 // at_once)
    assert said["MatvecQuery"] == said["MatvecAnswer"] * -(-4 // blocks)  # the mask's block, and three of samples
    assert querier.ledger.digest() == holder.ledger.digest()


def test_a_block_is_made_when_it_is_due() -> None:
    """What makes its blocks itself gives the same as an array."""
    rng = np.random.default_rng(2)
    samples = (lwe.PIECE_BLOCKS + 1) * N
    matrix = example(rng, "indicator", samples)
    values = rng.integers(-9, 10, (5, samples)).astype(np.int32)
    asked = []

    class Lazy:
        def __len__(self) -> int:
            return len(values)

        def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
            asked.append(block)
            return values[block]

    (sums,), _, _ = run(matrix, terms("lwe", 9, 5), Lazy())  # type: ignore[arg-type]
    np.testing.assert_array_equal(sums, plain(matrix, values))
    assert sorted(range(samples)[places].start for _, places in asked) == [0, (lwe.PIECE_BLOCKS - 1) * N]


TIGHT = Limits(step=5, frame=1 << 15, message=1 << 18)  # a hint of 2 rows fits; 9 frames are taken in ahead


def ask_all_first(channel: Channel, shape: Shape, agreed: Terms, *queries: np.ndarray) -> list[np.ndarray]:
    """All queries before the first is decoded, the last one first."""
    channel.session = SESSION
    querier = open_querier(channel, shape, agreed)
    answers = [querier.ask(values) for values in queries]
    return [answer() for answer in reversed(answers)][::-1]


@pytest.mark.parametrize("queries", [1, 250])
def test_more_queries_than_the_channel_takes_in_ahead(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more than both channels hold with what is in the links, in one ``ask`` or in many."""
    monkeypatch.setattr(matvec, "AT_ONCE", 1)
    rng = np.random.default_rng(3)
    matrix = Indicator(rng.integers(0, 2, (1, 60)).astype(np.uint8), np.array([2]))
    values = [rng.integers(-9, 10, (250 // queries, 60)).astype(np.int32) for _ in range(queries)]
    agreed = terms("lwe", 9, 250)
    found, querier, holder = run(matrix, agreed, *values, limits=TIGHT, asks=ask_all_first)
    for got, asked in zip(found, values, strict=True):
        np.testing.assert_array_equal(got, plain(matrix, asked))
    assert querier.ledger.digest() == holder.ledger.digest()
    assert querier.ledger.kl_nats == holder.ledger.kl_nats


@pytest.mark.parametrize(
    ("limits", "out"),
    [
        (Limits(step=10), 12),
        (Limits(step=10, frame=1 << 14, message=1 << 17), 5),  # of 9 frames
        (Limits(step=10, frame=1 << 10, message=40_000), 9),  # answers of 2 KiB
    ],
    ids=["usual", "frames", "bytes"],
)
def test_answers_are_awaited_once_too_many_are_due(limits: Limits, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is sent before the first answer is taken where this side has room for the answers."""
    monkeypatch.setattr(matvec, "AT_ONCE", 1)
    monkeypatch.setattr(matvec, "_HINT_BYTES", 8 * N)
    rng = np.random.default_rng(4)
    matrix = Indicator(rng.integers(0, 256, (1, 60)).astype(np.uint8), np.array([256]))
    did: list[str] = []
    send, decode = matvec._LweQuerier._send, matvec._LweQuerier._decode
    monkeypatch.setattr(matvec._LweQuerier, "_send", lambda *given: did.append("send") or send(*given))
    monkeypatch.setattr(matvec._LweQuerier, "_decode", lambda *given: did.append("decode") or decode(*given))
    values = rng.integers(-9, 10, (12, 60)).astype(np.int32)
    (sums,), _, _ = run(matrix, terms("lwe", 9, 12), values, limits=limits)
    np.testing.assert_array_equal(sums, plain(matrix, values))
    assert did == ["send"] * out + ["decode", "send"] * (12 - out) + ["decode"] * out


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
def test_the_ledger(backend: str) -> None:
    """Both sides count the same sums and the same leakage, for what was asked and no more."""
    matrix = example(np.random.default_rng(2), "indicator", 7)
    agreed = terms(backend, 3, 10)
    _, querier, holder = run(matrix, agreed, np.ones((2, 7), np.int32), np.ones((3, 7), np.int32))
    assert querier.ledger.digest() == holder.ledger.digest()
    assert querier.ledger.kl_nats == holder.ledger.kl_nats
    leaked = 5 * Shape.of(matrix).plan(agreed).kl_vector if backend == "lwe" else 0.0
    assert querier.ledger.kl_nats == pytest.approx(leaked)
    values = {line["message"]: line["values"] for line in querier.ledger.lines()}
    assert values["MatvecAnswer"] == 5 * matrix.rows
    assert values["MatvecQuery"] == 2
    assert values["MatvecShape"] == 2
    assert values["MatvecHint" if backend == "lwe" else "MatvecKey"] == 0


# --- what does not fit is refused before anything is sent ----------------------------------------------

SMALL = Indicator(np.array([[0, 1, 1, 0]], np.uint8), np.array([2]))


@pytest.mark.parametrize(
    ("backend", "largest_value", "kl_nats"),
    [("lwe", 2**61, 2.0**-20), ("lwe", 1, 2.0**-80), ("paillier", 2**62, 2.0**-20)],
)
def test_over_budget(backend: str, largest_value: int, kl_nats: float) -> None:
    agreed = terms(backend, largest_value, 10, kl_nats)

    def holder(channel: Channel) -> None:
        with pytest.raises(OverBudget):
            open_holder(channel, SMALL, agreed)
        assert channel.bytes_sent == 0
        assert not channel.ledger.entries
        channel.open(LAWLESS, "holder")
        channel.send(shape_message())  # as if the holder had not noticed

    def querier(channel: Channel) -> None:
        with pytest.raises(OverBudget):
            open_querier(channel, Shape.of(SMALL), agreed)
        assert channel.bytes_sent == 0

    simulate(querier, holder)


def test_terms_of_a_contract() -> None:
    contract = Contract.model_validate(
        {
            "name": "tests",
            "purpose": "tests of the product",
            "expires": "2999-01-01",
            "active": {"name": "active", "features": {"x": "number"}},
            "passive": {"name": "passive", "features": {"y": "number"}},
            "label": {"column": "default"},
            "align": {"key": {"column": "phone"}},
            "encryption": {"backend": "paillier", "paillier_bits": 4096},
            "budget": {"vectors": 5, "kl_nats": 1e-9},
        }
    )
    assert Terms.of(contract, largest_value=7, vectors=5) == Terms("paillier", 4096, 7, 5, 1e-9)
    with pytest.raises(OverBudget, match=r"may need 6 .* over the 5 "):
        Terms.of(contract, largest_value=7, vectors=6)


# --- a holder that deviates ----------------------------------------------------------------------------

Rogue = Callable[[Channel], None]
NAMED = ("querying", "holding")
SOON = Limits(step=10)  # a deviation that is not noticed fails its test instead of hanging it
AGREED = {backend: terms(backend, 1, 4) for backend in ("lwe", "paillier")}
PLAN = Shape.of(SMALL).plan(AGREED["lwe"])
ROW = bytes(8 * N)


def shape_message(**changes: int) -> pb.MatvecShape:
    return pb.MatvecShape(**({"rows": 2, "samples": 4, "largest": 1, "squares": 4} | changes))


def hint_message(**changes: Any) -> pb.MatvecHint:
    return pb.MatvecHint(**({"first": 0, "count": 2, "words": 2 * ROW} | changes))


def answer_message(ciphertext: bytes, **changes: int) -> pb.MatvecAnswer:
    return pb.MatvecAnswer(**({"count": 1, "rows": 2} | changes), ciphertext=ciphertext)


def says(*messages: ProtobufMessage) -> Rogue:
    """Say these, whatever comes back, and wait for the end."""

    def rogue(channel: Channel) -> None:
        for message in messages:
            channel.send(message)
        while True:
            channel.receive(*KINDS)

    return rogue


def deviating(role: str, rogue: Rogue) -> Callable[[Channel], None]:
    """One side that plays a role without rules; it must be told that the session ended, and not hang."""

    def play(channel: Channel) -> None:
        channel.session = SESSION
        channel.open(LAWLESS, role)
        with pytest.raises(PeerAborted):
            rogue(channel)

    return play


def against_querier(backend: str, rogue: Rogue) -> None:
    query = np.ones((1, 4), np.int32)
    simulate(
        lambda channel: ask(channel, Shape.of(SMALL), AGREED[backend], query),
        deviating("holder", rogue),
        names=NAMED,
        limits=SOON,
    )


def against_holder(backend: str, rogue: Rogue, allowed: int = 4) -> None:
    agreed = replace(AGREED[backend], vectors=allowed)
    simulate(deviating("querier", rogue), lambda channel: hold(channel, SMALL, agreed, 100), names=NAMED, limits=SOON)


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
@pytest.mark.parametrize("field", ["rows", "samples", "largest", "squares"])
@pytest.mark.parametrize("value", [0, 3, 2**32 - 1])
def test_other_shapes(backend: str, field: str, value: int) -> None:
    with pytest.raises(WrongLength, match=r"'holding' announced a matrix of .* at step matvec\.MatvecShape"):
        against_querier(backend, says(shape_message(**{field: value})))


@pytest.mark.parametrize(
    ("hints", "sentence"),
    [
        ([hint_message(first=1, count=1, words=ROW)], "from 1 where 0 was due"),
        ([hint_message(count=0, words=b"")], "from 0 where 0"),
        ([hint_message(count=3, words=3 * ROW)], "from 0 where 0"),
        ([hint_message(count=2**32 - 1)], "from 0 where 0"),
        ([hint_message(words=ROW)], f"{8 * N} bytes for 2 hint rows"),
        ([hint_message(words=2 * ROW + b"\0")], "bytes for 2 hint rows"),
        ([hint_message(words=b"")], "sent 0 bytes for 2"),
        ([hint_message(count=1, words=ROW)] * 2, "from 0 where 1 was due"),
        ([hint_message(count=1, words=ROW), hint_message(first=1, count=2, words=2 * ROW)], "from 1 where 1"),
    ],
)
def test_bad_hints(hints: list[pb.MatvecHint], sentence: str) -> None:
    with pytest.raises(WrongLength, match=sentence):
        against_querier("lwe", says(shape_message(), *hints))


@pytest.mark.parametrize(
    ("backend", "messages"),
    [
        ("lwe", [hint_message()]),
        ("lwe", [shape_message(), shape_message()]),
        ("lwe", [shape_message(), answer_message(bytes(16))]),
        ("lwe", [shape_message(), pb.MatvecKey(modulus=b"1")]),
        ("lwe", [shape_message(), hint_message(), hint_message()]),
        ("paillier", [shape_message(), hint_message()]),
        ("paillier", [shape_message(), pb.MatvecQuery(count=1)]),
    ],
)
def test_holder_out_of_order(backend: str, messages: list[ProtobufMessage]) -> None:
    with pytest.raises(OutOfOrder, match="'holding'"):
        against_querier(backend, says(*messages))


def before_answers(backend: str) -> list[ProtobufMessage]:
    return [shape_message(), hint_message()] if backend == "lwe" else [shape_message()]


def answer_bytes(backend: str) -> int:
    return 16 if backend == "lwe" else 2 * key().public.width


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
@pytest.mark.parametrize("changes", [{"count": 0}, {"count": 2}, {"rows": 0}, {"rows": 3}, {"rows": 2**32 - 1}])
def test_other_numbers_of_answers(backend: str, changes: dict[str, int]) -> None:
    answer = answer_message(bytes(answer_bytes(backend)), **changes)
    with pytest.raises(WrongLength, match=r"answered .* sums where 1 × 2 were due"):
        against_querier(backend, says(*before_answers(backend), answer))


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
@pytest.mark.parametrize("change", [-1, 1, 8, None])
def test_wrong_answer_sizes(backend: str, change: int | None) -> None:
    size = 0 if change is None else answer_bytes(backend) + change
    # The back ends differ in which of the two says it; both end the session.
    with pytest.raises(WrongLength if backend == "lwe" else (WrongLength, Malformed), match="'holding' sent"):
        against_querier(backend, says(*before_answers(backend), answer_message(bytes(size))))


def rogue_answers(change: int) -> Rogue:
    """An honest holder but for its answers, to which it adds."""

    def rogue(channel: Channel) -> None:
        channel.send(shape_message())
        hint, mask = lwe.make_hint(SMALL, lwe.expand(matvec._seed(channel), 4))
        channel.send(hint_message(words=hint.tobytes()))
        query = channel.receive(pb.MatvecQuery)
        answer = np.frombuffer(lwe.respond(SMALL, mask, query.ciphertext, 1, PLAN), np.uint64)
        changed = answer + np.full(2, change % 2**64, np.uint64)
        channel.send(answer_message(changed.tobytes()))
        channel.receive(*KINDS)

    return rogue


@pytest.mark.parametrize("change", [1 << 63, 5 << PLAN.shift, -7 << PLAN.shift])
def test_lwe_answers_out_of_range(change: int) -> None:
    with pytest.raises(Malformed, match="'holding' sent an answer that does not decode"):
        against_querier("lwe", rogue_answers(change))


def test_lwe_answers_in_range_cannot_be_told_from_honest_ones() -> None:
    """A limit of the scheme, not a wish: nothing binds an answer to M, so only the range of sums can be checked.

    A holder that adds Δ to a word makes the querier see a sum that is larger by one. It may as well hold another M.
    """

    def querier(channel: Channel) -> list[np.ndarray]:
        try:
            return ask(channel, Shape.of(SMALL), AGREED["lwe"], np.array([[1, 0, -1, 1]], np.int32))
        finally:
            channel.abort(PeerMisbehaved("the test is over"))  # what the other end waits for

    (sums,), _ = simulate(querier, deviating("holder", rogue_answers(1 << PLAN.shift)))
    assert sums.tolist() == [[2 + 1, -1 + 1]]


@pytest.mark.parametrize("number", [0, 256 ** (BITS // 4) - 1], ids=["zero", "beyond n^2"])
def test_paillier_answers_that_are_no_ciphertexts(number: int) -> None:
    bad = number.to_bytes(key().public.width, "big")
    with pytest.raises(Malformed, match="'holding' sent an answer that does not decode"):
        against_querier("paillier", says(shape_message(), answer_message(2 * bad)))


def test_paillier_answers_out_of_range() -> None:
    huge = paillier.encrypt(np.array([[2**40, 2**40]]), 64, key())
    with pytest.raises(Malformed, match="does not decode"):
        against_querier("paillier", says(shape_message(), answer_message(huge)))


# --- a querier that deviates ---------------------------------------------------------------------------


def query_message(count: int, size: int | None = None) -> pb.MatvecQuery:
    """By default of the right length: every string of that length is a ciphertext."""
    return pb.MatvecQuery(count=count, ciphertext=bytes(PLAN.query_bytes * count if size is None else size))


def public_key() -> pb.MatvecKey:
    return pb.MatvecKey(modulus=key().public.to_bytes())


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
def test_queries_for_nothing(backend: str) -> None:
    opening = [] if backend == "lwe" else [public_key()]
    with pytest.raises(Malformed, match="'querying' sent a query for no vector"):
        against_holder(backend, says(*opening, query_message(0)))


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
@pytest.mark.parametrize("change", [-1, 1, None])
@pytest.mark.parametrize("count", [1, 3])
def test_wrong_query_lengths(backend: str, change: int | None, count: int) -> None:
    opening: list[ProtobufMessage] = [] if backend == "lwe" else [public_key()]
    due = PLAN.query_bytes * count if backend == "lwe" else 4 * key().public.width
    size = 0 if change is None else due + change
    with pytest.raises(
        WrongLength, match=f"sent {size} bytes for {count} vectors of {due // count if backend == 'lwe' else due}"
    ):
        against_holder(backend, says(*opening, query_message(count, size)))


@pytest.mark.parametrize("counts", [[5], [4, 1], [2, 2, 1], [1, 2**32 - 1]])
def test_more_vectors_than_agreed(counts: list[int]) -> None:
    """The holder answers what was agreed and ends the session at the first vector beyond, whatever its length."""
    answers = []

    def rogue(channel: Channel) -> None:
        for count in counts:
            channel.send(query_message(count, None if count < 9 else 0))
        while True:
            message = channel.receive(*KINDS)
            if isinstance(message, pb.MatvecAnswer):
                answers.append(message.count)

    with pytest.raises(BeyondContract, match=rf"for vector {sum(counts)} where the contract allows 4"):
        against_holder("lwe", rogue)
    assert answers == counts[:-1]


def test_more_paillier_vectors_than_agreed() -> None:
    query = paillier.encrypt(np.ones((2, 4), np.int64), 4, key())
    with pytest.raises(BeyondContract, match="for vector 4 where the contract allows 3"):
        against_holder("paillier", says(public_key(), *[pb.MatvecQuery(count=2, ciphertext=query)] * 2), allowed=3)


@pytest.mark.parametrize("modulus", [b"", b"\1", bytes(BITS // 8), b"\xff" * (BITS // 8), b"\xff" * (BITS // 4)])
def test_bad_keys(modulus: bytes) -> None:
    with pytest.raises(Malformed, match="'querying' sent a bad Paillier key"):
        against_holder("paillier", says(pb.MatvecKey(modulus=modulus)))


@pytest.mark.parametrize("number", [0, 256 ** (BITS // 4) - 1], ids=["zero", "beyond n^2"])
def test_paillier_queries_that_are_no_ciphertexts(number: int) -> None:
    bad = 4 * number.to_bytes(key().public.width, "big")
    with pytest.raises(Malformed, match="'querying' sent a bad ciphertext"):
        against_holder("paillier", says(public_key(), pb.MatvecQuery(count=1, ciphertext=bad)))


@pytest.mark.parametrize(
    ("backend", "messages"),
    [
        ("lwe", [pb.MatvecKey(modulus=b"1")]),
        ("lwe", [shape_message()]),
        ("lwe", [query_message(1), answer_message(b"")]),
        ("paillier", [query_message(1)]),
    ],
)
def test_querier_out_of_order(backend: str, messages: list[ProtobufMessage]) -> None:
    with pytest.raises(OutOfOrder, match="'querying'"):
        against_holder(backend, says(*messages))
