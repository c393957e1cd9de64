"""Oblivious transfer: its parts against NumPy, hashlib and libsodium, the whole against plain indexing, and rogues."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import blake3
import numpy as np
import pytest
import rbcl
from google.protobuf.message import Message as ProtobufMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from fedlearn.channel import BOTH, START, Channel, Limits, Message, Table, nothing, simulate
from fedlearn.crypto import ot, ristretto
from fedlearn.errors import (
    BeyondContract,
    InvalidPoint,
    Malformed,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    PeerMisbehaved,
    WrongLength,
)
from fedlearn.kernels import ot as kernel
from fedlearn.protocols import transfer
from fedlearn.protocols.transfer import open_receiver, open_sender
from fedlearn.v1 import transfer_pb2 as pb

KINDS = (pb.TransferBlinded, pb.TransferRaised, pb.TransferColumns, pb.TransferBits)
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("transfer", ("receiver", "sender"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))
SESSION = bytes(range(16))
POINT = ristretto.POINT_BYTES


@functools.cache
def base() -> tuple[bytes, list[tuple[bytes, bytes]], np.ndarray, list[bytes]]:
    """One set-up: tag, pairs of seeds, Δ, chosen seeds."""
    choice, blinded = ot.choose(SESSION)
    raised, tag, pairs = ot.offer(SESSION, blinded)
    other_tag, seeds = ot.accept(SESSION, choice, blinded, raised)
    assert other_tag == tag
    return tag, pairs, choice.bits, seeds


def ends() -> tuple[ot.Receiver, ot.Sender]:
    """Fresh ends of an extension. Only tests may start from the same seeds twice."""
    tag, pairs, delta, seeds = base()
    return ot.Receiver(tag, pairs), ot.Sender(tag, delta, seeds)


def packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(np.ascontiguousarray(bits), axis=-1, bitorder="little")


def bits_of(data: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(data, axis=-1, count=count, bitorder="little")


def balanced(bits: np.ndarray) -> bool:
    """Within six deviations of half ones."""
    return abs(2.0 * bits.sum() - bits.size) < 6 * bits.size**0.5


# --- kernels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 6, 8])
@pytest.mark.parametrize("at", [0, kernel.LANES])
def test_transposition(words: int, at: int) -> None:
    rng = np.random.default_rng(words)
    count = 2 * kernel.BLOCK_BYTES * 8
    bits = rng.integers(0, 2, (32 * words, count), np.uint8)
    rows = np.zeros((kernel.WORDS, 32, kernel.LANES), np.uint32)
    kernel.transpose_block(packed(bits).view(np.uint32), at, rows)
    due = packed(bits.T).view(np.uint32).reshape(-1, 32, words)[at : at + kernel.LANES]  # word, row in it, 32 bits
    np.testing.assert_array_equal(rows[:words], due.transpose(2, 1, 0))
    assert not rows[words:].any()


@njit
def _digests(messages: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        m = messages[i]
        out[i, 0] = kernel.blake3((m[0], m[1], m[2]))
        out[i, 1] = kernel.blake3(
            (m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15])
        )


def test_blake3_is_that_of_its_authors() -> None:
    messages = np.random.default_rng(3).integers(0, 2**32, (100, 16), np.uint32)
    messages[0], messages[1] = 0, 2**32 - 1
    out = np.empty((100, 2), np.uint32)
    _digests(messages, out)
    for message, found in zip(messages, out, strict=True):
        due = [blake3.blake3(message[:size].tobytes()).digest()[:4] for size in (3, 16)]
        assert [word.tobytes() for word in found] == due


@settings(max_examples=10, deadline=None)
@given(
    words=st.integers(1, 8),
    blocks=st.integers(1, 3),
    options=st.integers(1, 3),
    batch=st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    seed=st.integers(0, 2**32),
)
def test_pads_are_bits_of_hashes_of_rows(words: int, blocks: int, options: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = blocks * kernel.BLOCK_BYTES * 8
    bits = rng.integers(0, 2, (32 * words, count), np.uint8)
    offsets = rng.integers(0, 2**32, (options, kernel.WORDS), np.uint32)
    tag = rng.integers(0, 2**32, 4, np.uint32)
    before = rng.integers(0, 256, (options, count // 8), np.uint8)
    out = before.copy()
    kernel.add_pads(packed(bits), offsets, tag, batch, out)
    rows = np.zeros((count, 4 * kernel.WORDS), np.uint8)
    rows[:, : 4 * words] = packed(bits.T)
    found = bits_of(out ^ before, count)
    for w, offset in enumerate(offsets.view(np.uint8).reshape(options, -1)):
        for j in range(0, count, 7):
            head = tag.tobytes() + batch.to_bytes(4, "little") + j.to_bytes(4, "little")
            assert found[w, j] == blake3.blake3(head + (rows[j] ^ offset).tobytes()).digest()[0] & 1


# --- codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [2, 3, 4, 5, 8, 9, 16, 32, 64, 128, 200, 256])
def test_distances_of_codes(options: int) -> None:
    code = ot.Code.of(options)
    words = code.words(options)
    assert words.shape == (options, code.length)
    distances = (words[:, None, :] ^ words[None, :, :]).sum(axis=2, dtype=np.int64)
    assert np.all(distances[~np.eye(options, dtype=bool)] == ot.SECURITY)
    size = 2**code.dimension
    assert code.length == -(-2 * ot.SECURITY * (size - 1) // size)  # Plotkin's bound, met


@pytest.mark.parametrize("options", [-1, 0, 1, 257])
def test_no_code_for_so_many(options: int) -> None:
    with pytest.raises(ValueError, match=f"not {options}"):
        ot.Code.of(options)


def test_columns_of_codes_are_those_of_the_words() -> None:
    rng = np.random.default_rng(5)
    for options in (2, 3, 7, 16, 256):
        code = ot.Code.of(options)
        choices = rng.integers(0, options, 1001, np.uint8)
        found = np.tile(bits_of(code.columns(choices), 1001), (code.repeats, 1))
        np.testing.assert_array_equal(found, code.words(options)[choices].T)


# --- base transfers ----------------------------------------------------------------------------------


def test_base_transfers_against_a_direct_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chooser's points, the answers and every seed, from the scalars alone, by libsodium and hashlib."""
    scalars: list[bytes] = []
    draw = ristretto.random_scalar

    def recorded() -> bytes:
        scalars.append(draw())
        return scalars[-1]

    monkeypatch.setattr(ristretto, "random_scalar", recorded)
    count = 20
    choice, blinded = ot.choose(b"a session", count)
    raised, tag, pairs = ot.offer(b"a session", blinded)
    found_tag, seeds = ot.accept(b"a session", choice, blinded, raised)
    blinds, keys = scalars[:count], scalars[count:]
    said = hashlib.sha256(
        b"fedlearn/1 transfer said" + hashlib.sha256(b"a session").digest() + blinded + raised
    ).digest()
    assert found_tag == tag == hashlib.sha256(b"fedlearn/1 transfer hash" + said).digest()[:16]
    assert len(blinds) == len(keys) == count
    for i, (bit, r, k) in enumerate(zip(choice.bits, blinds, keys, strict=True)):
        names = [b"a session" + bytes([i, 0, b]) for b in range(2)]
        points = [ristretto.hash_to_group([name], ot._DST) for name in names]
        at = slice(POINT * i, POINT * (i + 1))
        assert blinded[at] == rbcl.crypto_scalarmult_ristretto255(r, points[int(bit)])
        assert raised[at] == rbcl.crypto_scalarmult_ristretto255(k, blinded[at])
        for b in range(2):
            power = rbcl.crypto_scalarmult_ristretto255(k, points[b])
            due = hashlib.sha256(b"fedlearn/1 transfer seed" + said + bytes([i, 0, b]) + power).digest()
            assert pairs[i][b] == due
            assert (seeds[i] == due) == (b == bit)


def test_base_transfers_are_fresh_and_bound() -> None:
    _, pairs, delta, seeds = base()
    assert len({seed for pair in pairs for seed in pair}) == 2 * ot.BASES == 510
    assert [pair[int(bit)] for pair, bit in zip(pairs, delta, strict=True)] == seeds
    assert balanced(delta)
    choice, blinded = ot.choose(SESSION, 8)
    raised, _, _ = ot.offer(SESSION, blinded)
    again, _, _ = ot.offer(SESSION, blinded)
    assert raised != again
    _, honest = ot.accept(SESSION, choice, blinded, raised)
    swapped = raised[:-POINT] + again[-POINT:]  # one point of another run changes every seed
    _, spoilt = ot.accept(SESSION, choice, blinded, swapped)
    _, elsewhere = ot.accept(b"another", choice, blinded, raised)
    assert not set(honest) & (set(spoilt) | set(elsewhere))


@pytest.mark.parametrize("point", [bytes(32), b"\xff" * 32], ids=["identity", "no encoding"])
def test_base_transfers_refuse_what_is_no_point(point: bytes) -> None:
    choice, blinded = ot.choose(SESSION, 2)
    with pytest.raises(ValueError, match="point"):
        ot.offer(SESSION, blinded[:POINT] + point)
    with pytest.raises(ValueError, match="point"):
        ot.accept(SESSION, choice, blinded, blinded[:POINT] + point)


# --- extension ---------------------------------------------------------------------------------------


def carried(receiver: ot.Receiver, sender: ot.Sender, choices: np.ndarray, bits: np.ndarray, options: int) -> Any:
    """One batch; bits (m, n) unpacked."""
    _, masked, pads = receiver.extend(choices, options)
    answer = sender.answer(masked, packed(bits), len(choices), options)
    return bits_of(ot.open_bits(answer, pads, choices, len(bits)), len(choices))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_chosen_bits(data: st.DataObject) -> None:
    receiver, sender = ends()
    for _ in range(data.draw(st.integers(1, 3))):
        options = data.draw(st.integers(2, 256))
        offered = data.draw(st.integers(1, options))
        count = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([511, 512, 513, 4096, 5000])))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        choices = rng.integers(0, options, count, np.uint8)
        bits = rng.integers(0, 2, (offered, count), np.uint8)
        found = carried(receiver, sender, choices, bits, options)
        due = np.where(choices < offered, bits[np.minimum(choices, offered - 1), np.arange(count)], 0)
        np.testing.assert_array_equal(found, due)


def test_what_was_prepared_for_fewer_options_is_widened() -> None:
    """The columns that are there keep their streams; the sender, which knows only the whole, agrees."""
    receiver, sender = ends()
    rng = np.random.default_rng(12)
    for options in (200, 2, 60):  # the last one for 2 as well
        receiver.prepare(1000, options)
    for options, words in ((9, 256), (9, 16), (2, 2), (3, 4)):
        choices, bits = rng.integers(0, options, 1000, np.uint8), rng.integers(0, 2, (options, 1000), np.uint8)
        found, masked, pads = receiver.extend(choices, options)
        assert found == words
        answer = sender.answer(masked, packed(bits), 1000, words)
        opened = bits_of(ot.open_bits(answer, pads, choices, options), 1000)
        np.testing.assert_array_equal(opened, bits[choices, np.arange(1000)])
    receiver.prepare(1000, 2)
    with pytest.raises(ValueError, match="10 rows choose where 1000 were prepared for"):
        receiver.extend(np.zeros(10, np.uint8), 2)


@pytest.mark.parametrize("options", [2, 5, 256])
def test_the_masked_choices_look_uniform(options: int) -> None:
    """Whatever the choices: nothing that the sender sees tells all-first from all-last from random ones."""
    rng = np.random.default_rng(7)
    count = 4096
    receiver, _ = ends()
    for choices in (np.zeros(count), np.full(count, options - 1), rng.integers(0, options, count)):
        _, masked, _ = receiver.extend(choices.astype(np.uint8), options)
        length = ot.Code.of(options).length
        bits = bits_of(np.frombuffer(masked, np.uint8).reshape(length, -1), count)
        assert bits.shape == (length, count)
        assert balanced(bits)
        assert all(balanced(column) for column in bits)
        assert all(balanced(bits[0] ^ column) for column in bits[1:])


@pytest.mark.parametrize("options", [2, 4, 16])
def test_every_other_bit_has_another_pad(options: int) -> None:
    """With zeros for bits the answer is the pads: the receiver's is the chosen one, the others agree by chance only."""
    rng = np.random.default_rng(8)
    count = 20_000
    receiver, sender = ends()
    choices = rng.integers(0, options, count, np.uint8)
    _, masked, own = receiver.extend(choices, options)
    answer = sender.answer(masked, np.zeros((options, count // 8), np.uint8), count, options)
    pads = bits_of(np.frombuffer(answer, np.uint8).reshape(options, -1), count)
    mine = bits_of(own, count)
    for w in range(options):
        chosen = choices == w
        np.testing.assert_array_equal(pads[w, chosen], mine[chosen])
        assert balanced(pads[w, ~chosen] ^ mine[~chosen])
        assert balanced(pads[w])
        assert all(balanced(pads[w] ^ pads[v]) for v in range(w))


def test_the_keys_of_other_options_differ_in_many_bits_of_delta() -> None:
    """What separates the pad of one option from another's: at least a quarter, half of 128 on average, of Δ's bits."""
    _, sender = ends()
    for options in (2, 16, 256):
        offsets = sender._offsets(ot.Code.of(options), options).view(np.uint8)
        distances = np.unpackbits(offsets[:, None] ^ offsets[None], axis=2).sum(axis=2, dtype=np.int64)
        assert distances[~np.eye(options, dtype=bool)].min() > 24  # a binomial of 128 coins, seven deviations down


def test_two_calls_share_nothing() -> None:
    receiver, sender = ends()
    choices, nothing_ = np.ones(4096, np.uint8), np.zeros((3, 512), np.uint8)
    seen = []
    for _ in range(2):
        _, masked, pads = receiver.extend(choices, 3)
        seen.append((np.frombuffer(masked, np.uint8), pads, sender.answer(masked, nothing_, 4096, 3)))
    (masked, pads, answer), (other_masked, other_pads, other_answer) = seen
    assert balanced(np.unpackbits(masked ^ other_masked))
    assert balanced(np.unpackbits(pads ^ other_pads))
    assert balanced(np.unpackbits(np.frombuffer(answer, np.uint8) ^ np.frombuffer(other_answer, np.uint8)))


def test_padding_bits_are_not_sent() -> None:
    receiver, sender = ends()
    _, masked, pads = receiver.extend(np.zeros(11, np.uint8), 2)
    answer = sender.answer(masked, np.full((2, 2), 255, np.uint8), 11, 2)
    assert answer[1] < 8
    assert answer[3] < 8
    assert ot.open_bits(answer, pads, np.zeros(11, np.uint8), 2).tolist() == [255, 7]


def test_what_the_ends_refuse() -> None:
    receiver, sender = ends()
    choices = np.array([0, 2], np.uint8)
    for bad, options in (
        (choices, 2),
        (choices.astype(np.int64) - 1, 4),
        (choices, 1),
        (choices, 257),
        (choices[:0], 2),
    ):
        with pytest.raises(ValueError, match=r"options|rows"):
            receiver.extend(bad, options)
    _, masked, pads = receiver.extend(choices, 3)
    bits = np.zeros((3, 1), np.uint8)
    for other in (masked[:-1], bytes(masked) + b"\0", b""):
        with pytest.raises(ValueError, match="do not fit 2 rows of 3 options"):
            sender.answer(other, bits, 2, 3)
    for other_bits in (np.zeros((5, 1), np.uint8), np.zeros((3, 2), np.uint8)):
        with pytest.raises(ValueError, match="do not fit"):
            sender.answer(masked, other_bits, 2, 3)
    with pytest.raises(ValueError, match="2 bytes are not the bits of 2 rows"):
        ot.open_bits(b"ab", pads, choices, 3)
    receiver._batches = 2**32
    with pytest.raises(ValueError, match="batch 4294967296"):
        receiver.extend(choices, 3)


# --- between two parties -----------------------------------------------------------------------------

Call = tuple[np.ndarray, np.ndarray, bool]  # choices, bits unpacked, blank
NAMED = ("choosing", "serving")
SOON = Limits(step=10)


def run(
    calls: list[Call], allowed: int = 10**6, expected: list[int] | None = None
) -> tuple[list[np.ndarray], Channel, Channel]:
    """``expected``: for how many options each call is prepared for; 0: it is not."""
    kept: dict[str, Channel] = {}

    def receive(channel: Channel) -> list[np.ndarray]:
        kept["receiver"], channel.session = channel, SESSION
        receiver = open_receiver(channel, allowed)
        found = []
        for (choices, bits, blank), options in zip(calls, expected or [0] * len(calls), strict=True):
            if options:
                receiver.prepare(len(choices), options, blank=blank)
                receiver.prepare(len(choices), 256 - blank, blank=blank)  # nothing: the call is prepared for
            found.append(receiver.choose(choices, len(bits), blank=blank))
        return found

    def send(channel: Channel) -> None:
        kept["sender"], channel.session = channel, SESSION
        sender = open_sender(channel, allowed)
        for choices, bits, blank in calls:
            sender.serve(packed(bits), len(choices), blank=blank)

    found, _ = simulate(receive, send, names=NAMED, limits=SOON)
    return found, kept["receiver"], kept["sender"]


def call(rng: np.random.Generator, count: int, options: int, blank: bool) -> Call:
    return rng.integers(0, options + blank, count, np.uint8), rng.integers(0, 2, (options, count), np.uint8), blank


@settings(max_examples=8, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 700), st.integers(2, 255), st.booleans()) | st.just((9, 1, True)),
        min_size=1,
        max_size=3,
    ),
    batch=st.sampled_from([8, 64, 1 << 17]),
    most=st.sampled_from([128, 1 << 20]),
    seed=st.integers(0, 2**32),
)
def test_calls_between_two_parties(shapes: list[tuple[int, int, bool]], batch: int, most: int, seed: int) -> None:
    """Whether or not a call was prepared for, for as many options as it has, for fewer or for more."""
    rng = np.random.default_rng(seed)
    calls = [call(rng, *shape) for shape in shapes]
    expected = [int(rng.choice([0, 2, len(bits), 255])) for _, bits, _ in calls]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_ROWS", batch)
        patch.setattr(transfer, "_PREPARED", most)
        found, receiver, sender = run(calls, expected=expected)
    for (choices, bits, _), got in zip(calls, found, strict=True):
        count = len(choices)
        padded = np.vstack([bits, np.zeros((1, count), np.uint8)])
        np.testing.assert_array_equal(got, packed(padded[choices, np.arange(count)]))
    assert receiver.ledger.digest() == sender.ledger.digest()
    said = {line["message"]: line for line in receiver.ledger.lines()}
    if "TransferBits" in said:
        assert said["TransferBits"]["values"] == sum(len(choices) for choices, _, _ in calls)
        assert said["TransferBits"]["messages"] == sum(-(-len(choices) // batch) for choices, _, _ in calls)
    assert said["TransferBlinded"]["values"] == said["TransferRaised"]["values"] == 0


def test_bytes_per_row() -> None:
    rng = np.random.default_rng(9)
    count = 200_000
    for options, up in ((2, 16), (4, 24), (16, 30), (256, 32)):
        _, receiver, sender = run([call(rng, count, options, False)])
        extra = 2 * POINT * ot.BASES
        assert receiver.bytes_sent < up * count + extra
        assert sender.bytes_sent < options * count / 8 + extra


def choose_all(
    calls: list[Call], limits: Limits = SOON, prepared: int = 0
) -> tuple[list[np.ndarray], list[str], list[Channel]]:
    """Calls with a blank option, all at once: the bits, what the receiver did in what order, and both ends.

    ``prepared``: for how many options the first call is prepared for.
    """
    did: list[str] = []
    kept: list[Channel] = []

    def receive(channel: Channel) -> list[np.ndarray]:
        kept.append(channel)
        channel.session = SESSION
        receiver = open_receiver(channel, 10**6)
        if prepared:
            receiver.prepare(len(calls[0][0]), prepared, blank=True)
        ask, open_ = receiver._ask, receiver._open
        receiver._ask = lambda *given: did.append("ask") or ask(*given)  # type: ignore
        receiver._open = lambda *given: did.append("open") or open_(*given)  # type: ignore
        return receiver.choose_all([(choices, len(bits)) for choices, bits, _ in calls], blank=True)

    def send(channel: Channel) -> None:
        kept.append(channel)
        channel.session = SESSION
        sender = open_sender(channel, 10**6)
        for choices, bits, blank in calls:
            sender.serve(packed(bits), len(choices), blank=blank)

    found, _ = simulate(receive, send, names=NAMED, limits=limits)
    return found, did, kept


def most_out(did: list[str]) -> int:
    return int(np.cumsum([1 if what == "ask" else -1 for what in did]).max())


def check_bits(calls: list[Call], found: list[np.ndarray]) -> None:
    for (choices, bits, _), got in zip(calls, found, strict=True):
        padded = np.vstack([bits, np.zeros((1, len(choices)), np.uint8)])
        np.testing.assert_array_equal(got, packed(padded[choices, np.arange(len(choices))]))


@pytest.mark.parametrize("prepared", [0, 2, 20])
def test_more_batches_than_the_channel_takes_in_ahead(prepared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more than both channels hold with what is in the links: neither side waits for the other for ever."""
    monkeypatch.setattr(transfer, "_ROWS", 64)
    limits = Limits(step=5, frame=1 << 12, message=1 << 16)
    rng = np.random.default_rng(10)
    calls = [
        call(rng, count, options, True) for count, options in ((64 * 150, 8), (64 * 250 + 7, 3), (0, 9), (64, 200))
    ]
    found, did, (receiver, sender) = choose_all(calls, limits, prepared)
    check_bits(calls, found)
    assert did.count("ask") == did.count("open") == 402
    assert most_out(did) <= limits.ahead == 17
    assert {end.ledger.digest() for end in (receiver, sender)} == {receiver.ledger.digest()}


@pytest.mark.parametrize(
    ("rows", "out"), [(transfer._AWAITED, 10), (64 * 10, 10), (64 * 4, 4), (64 * 4 - 1, 3), (1, 1)]
)
def test_answers_are_awaited_once_so_many_rows_are_out(rows: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is sent before the first answer is taken where it is no more than that."""
    monkeypatch.setattr(transfer, "_ROWS", 64)
    monkeypatch.setattr(transfer, "_AWAITED", rows)
    rng = np.random.default_rng(11)
    calls = [call(rng, 64 * 5, 4, True) for _ in range(2)]
    found, did, _ = choose_all(calls)
    check_bits(calls, found)
    assert did == ["ask"] * out + ["open", "ask"] * (10 - out) + ["open"] * out


def test_own_mistakes_leave_nothing_sent() -> None:
    ones = np.ones(10, np.uint8)

    def receive(channel: Channel) -> None:
        channel.session = SESSION
        receiver = open_receiver(channel, 25)
        before = channel.bytes_sent
        for choices, options, blank in (
            (2 * ones, 2, False),
            (3 * ones, 2, True),
            (ones.astype(np.int64), 2, False),
            (0 * ones, 1, False),
            (ones, 256, True),
        ):
            with pytest.raises(ValueError, match="options"):
                receiver.choose(choices, options, blank=blank)
        assert channel.bytes_sent == before
        assert receiver.asked == 0
        receiver.choose(ones, 2)
        before = channel.bytes_sent
        with pytest.raises(OverBudget, match="for 26 rows are over the 25 of the session"):
            receiver.choose(np.ones(16, np.uint8), 2)
        assert channel.bytes_sent == before

    def send(channel: Channel) -> None:
        channel.session = SESSION
        sender = open_sender(channel, 25)
        with pytest.raises(ValueError, match="3 bytes are not the bits of 10 rows"):
            sender.serve(np.zeros((2, 3), np.uint8), 10)
        with pytest.raises(ValueError, match="options, not 1"):
            sender.serve(np.zeros((1, 2), np.uint8), 10)
        sender.serve(np.zeros((2, 2), np.uint8), 10)

    simulate(receive, send, names=NAMED, limits=SOON)


# --- peers that deviate ------------------------------------------------------------------------------

Rogue = Callable[[Channel], None]


def deviating(role: str, rogue: Rogue) -> Callable[[Channel], None]:
    """One side that plays a role without rules; it must be told that the session ended, and not hang."""

    def play(channel: Channel) -> None:
        channel.session = SESSION
        channel.open(LAWLESS, role)
        with pytest.raises(PeerAborted):
            rogue(channel)

    return play


def says(*messages: ProtobufMessage) -> Rogue:
    def rogue(channel: Channel) -> None:
        for message in messages:
            channel.send(message)
        while True:
            channel.receive(*KINDS)

    return rogue


def against_receiver(rogue: Rogue) -> None:
    def receive(channel: Channel) -> None:
        channel.session = SESSION
        open_receiver(channel, 100).choose(np.ones(10, np.uint8), 3)

    simulate(receive, deviating("sender", rogue), names=NAMED, limits=SOON)


def against_sender(rogue: Rogue, calls: int = 1) -> None:
    def send(channel: Channel) -> None:
        channel.session = SESSION
        sender = open_sender(channel, 15)
        for _ in range(calls):
            sender.serve(np.zeros((3, 2), np.uint8), 10)

    simulate(deviating("receiver", rogue), send, names=NAMED, limits=SOON)


@functools.cache
def points() -> bytes:
    return ot.choose(SESSION)[1]


BAD_POINTS = [
    (InvalidPoint, lambda p: p[:-POINT] + bytes(POINT), f"an invalid point, number {ot.BASES - 1}"),
    (InvalidPoint, lambda p: b"\xff" * POINT + p[POINT:], "an invalid point, number 0"),
    (Malformed, lambda p: p[:-POINT] + p[:POINT], "a point more than once"),
    (WrongLength, lambda p: p[:-1], "sent 8159 bytes where 255 points of 32 bytes were due"),
    (WrongLength, lambda p: p[:-POINT], "sent 8128 bytes"),
    (WrongLength, lambda p: p + p[:POINT], "sent 8192 bytes"),
    (WrongLength, lambda _: b"", "sent 0 bytes"),
]


@pytest.mark.parametrize(("error", "change", "sentence"), BAD_POINTS)
def test_bad_points(error: type[PeerMisbehaved], change: Callable[[bytes], bytes], sentence: str) -> None:
    bad = change(points())
    with pytest.raises(error, match=r"'serving' sent .* at step transfer\.TransferBlinded") as caught:
        against_receiver(says(pb.TransferBlinded(points=bad)))
    assert sentence in str(caught.value)
    with pytest.raises(error, match=r"'choosing' sent .* at step transfer\.TransferRaised") as caught:
        against_sender(says_after_points(pb.TransferRaised(points=bad)))
    assert sentence in str(caught.value)


def says_after_points(*messages: ProtobufMessage) -> Rogue:
    def rogue(channel: Channel) -> None:
        channel.receive(pb.TransferBlinded)
        says(*messages)(channel)

    return rogue


@pytest.mark.parametrize(
    ("rows", "size"), [(0, 6), (9, 6), (11, 6), (2**32 - 1, 6), (10, 0), (10, 5), (10, 7), (10, 4)]
)
def test_bad_answers(rows: int, size: int) -> None:
    with pytest.raises(WrongLength, match=rf"'serving' answered {rows} rows in {size} bytes where 10 in 6 were due"):
        against_receiver(says(pb.TransferBlinded(points=points()), pb.TransferBits(rows=rows, bits=bytes(size))))


LENGTH = 2 * ot.Code.of(3).length
GOOD = {"rows": 10, "options": 3, "words": 4, "columns": bytes(LENGTH)}


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"options": 2}, Malformed, "chose among 2 options without a blank one where 3 without were due"),
        ({"options": 0}, Malformed, "among 0 options"),
        ({"options": 2**32 - 1}, Malformed, "among 4294967295 options"),
        ({"options": 2, "blank": True}, Malformed, "2 options with a blank one"),
        ({"blank": True}, Malformed, "3 options with a blank one"),
        ({"rows": 9}, WrongLength, f"chose for 9 rows in {LENGTH} bytes where 10 in {LENGTH} were due"),
        ({"rows": 0}, WrongLength, "for 0 rows"),
        ({"rows": 15}, WrongLength, "for 15 rows"),
        ({"rows": 16}, BeyondContract, "for row 16 where 15 are allowed"),
        ({"rows": 2**32 - 1}, BeyondContract, "for row 4294967295 where 15"),
        ({"columns": bytes(LENGTH - 1)}, WrongLength, f"in {LENGTH - 1} bytes"),
        ({"columns": bytes(LENGTH + 1)}, WrongLength, f"in {LENGTH + 1} bytes"),
        ({"columns": b""}, WrongLength, "in 0 bytes"),
        *(({"words": n}, Malformed, f"3 options by a code of {n} words") for n in (0, 2, 3, 5, 512, 2**32 - 1)),
        ({"words": 8}, WrongLength, f"in {LENGTH} bytes where 10 in {2 * ot.Code.of(8).length} were due"),
    ],
)
def test_bad_columns(changes: dict[str, Any], error: type[PeerMisbehaved], sentence: str) -> None:
    with pytest.raises(error, match=r"'choosing' .* at step transfer\.TransferColumns") as caught:
        against_sender(says_after_points(pb.TransferRaised(points=points()), pb.TransferColumns(**(GOOD | changes))))
    assert sentence in str(caught.value)


def test_more_rows_than_allowed() -> None:
    """The sender answers the first call and stops at the second."""
    good = pb.TransferColumns(**GOOD)
    with pytest.raises(BeyondContract, match="for row 20 where 15 are allowed"):
        against_sender(says_after_points(pb.TransferRaised(points=points()), good, good), calls=2)


@pytest.mark.parametrize(
    "messages",
    [
        [pb.TransferColumns(**GOOD)],
        [pb.TransferBits(rows=10)],
        [pb.TransferRaised(points=points()), pb.TransferRaised(points=points())],
    ],
)
def test_receiver_out_of_order(messages: list[ProtobufMessage]) -> None:
    with pytest.raises(OutOfOrder, match="'choosing'"):
        against_sender(says_after_points(*messages))


@pytest.mark.parametrize(
    "messages",
    [
        [pb.TransferBits(rows=10)],
        [pb.TransferBlinded(points=points()), pb.TransferBlinded(points=points())],
        [pb.TransferBlinded(points=points()), pb.TransferColumns(**GOOD)],
    ],
)
def test_sender_out_of_order(messages: list[ProtobufMessage]) -> None:
    with pytest.raises(OutOfOrder, match="'serving'"):
        against_receiver(says(*messages))
