"""Counting by oblivious transfer: against Python sets, its parts against their definitions, rogues; weak parameters."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message as ProtobufMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.channel import Channel, simulate
from fedlearn.contract import Contract
from fedlearn.crypto import okvs, oprf, tally
from fedlearn.crypto.draws import Draws
from fedlearn.errors import (
    CannotPlace,
    FedlearnError,
    InvalidPoint,
    Malformed,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    WrongLength,
)
from fedlearn.kernels import psi
from fedlearn.protocols import align_count, transfer
from fedlearn.protocols.align import Alignment, align_active, align_passive
from fedlearn.v1 import align_pb2 as pb
from fedlearn.v1 import transfer_pb2
from tests.test_align import LAWLESS, contract, numbered, says, several
from tests.test_align_ot import _quick_bases, points  # noqa: F401 (a fixture)

COUNTING = functools.partial(contract, "cardinality", method="ot", rows=200_000)


def run(agreed: Contract, active: Any, passive: Any) -> tuple[Alignment, Alignment]:
    return simulate(lambda c: align_active(c, active, agreed), lambda c: align_passive(c, passive, agreed))


def check(active: list[bytes], passive: list[bytes]) -> None:
    a, p = run(COUNTING(), active, passive)
    shared = len(set(active) & set(passive))
    assert (a.size, a.shared, a.by_key) == (p.size, p.shared, p.by_key) == (shared, shared, (shared,))
    assert a.id == p.id
    assert len(a.rows) == len(p.rows) == 0


# --- honest parties ----------------------------------------------------------------------------------

LISTS = st.lists(st.binary(max_size=3), min_size=1, max_size=40, unique=True)


@settings(max_examples=10, deadline=None)
@given(active=LISTS, passive=LISTS)
def test_short_lists(active: list[bytes], passive: list[bytes]) -> None:
    check(active, passive)


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 17).map(lambda k: round(2 ** (k * 0.978)))] * 2),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_overlap_of_any_sizes(sizes: tuple[int, int], share: float, seed: int) -> None:
    shared = round(share * min(sizes))
    draw = np.random.default_rng(seed)
    people = [b"%d" % i for i in draw.permutation(10**6)[: sum(sizes) - shared]]
    active, passive = people[: sizes[0]], people[sizes[0] - shared :]
    check(active, [passive[i] for i in draw.permutation(len(passive))])


def test_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align_count, "_SLOTS", 1000)
    monkeypatch.setattr(align_count, "_BINS", 514)
    monkeypatch.setattr(align_count, "_BITS", 700)
    monkeypatch.setattr(transfer, "_ROWS", 1 << 12)
    check(numbered(*range(900)), numbered(*range(400, 1500)))


def test_each_key_is_counted_alone() -> None:
    columns = ([["1", "2", None, "4"], ["a", None, "c", "d"]], [["7", "2", "1"], ["d", "z", None]])
    active, passive = ([pa.array(column, pa.string()) for column in side] for side in columns)
    for method in ("ot", "ecdh"):
        agreed = several("cardinality", method)
        a, p = run(agreed, active, passive)
        assert a.by_key == p.by_key == (2, 1)
        assert a.shared == p.shared == a.size == 2


def test_a_key_that_one_side_does_not_have() -> None:
    columns = ([[None, None], ["2", "3"]], [["a"], ["2"]])
    sides = [[pa.array(column, pa.string()) for column in side] for side in columns]
    for active, passive in (sides, sides[::-1]):
        a, p = run(several("cardinality", "ot"), active, passive)
        assert a.by_key == p.by_key == (0, 1)


def test_ledgers_and_progress() -> None:
    reports = []

    def watched(role: Callable[..., Alignment], ids: list[bytes]) -> Callable[[Channel], list[dict[str, Any]]]:
        def play(channel: Channel) -> list[dict[str, Any]]:
            channel.on_progress = reports.append
            role(channel, ids, COUNTING())
            return channel.ledger.lines()

        return play

    active, passive = simulate(watched(align_active, numbered(1, 2, 3)), watched(align_passive, numbered(3, 4)))
    assert active == passive
    learned = {(line["message"], line["receiver"]): line["values"] for line in active}
    assert learned["AlignSums", "active"] == learned["AlignCount", "passive"] == 1
    assert learned["AlignHints", "active"] == learned["AlignMasked", "passive"] == learned["AlignBases", "active"] == 0
    assert not {"AlignValues", "AlignFound", "AlignBlinded"} & {line["message"] for line in active}
    assert sorted(r.done for r in reports if r.done == r.total) == [5, 8]


def test_the_active_side_sees_the_same_sizes_and_even_bits_whatever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own share of each comparison, and its words, are as if drawn at random, for all shared as for none."""
    seen: list[Any] = []

    def tapped(end: Any, words: Any, honest: Any = align_count._choose) -> Any:
        bits = honest(end, words)
        seen.append((words.copy(), bits))
        return bits

    monkeypatch.setattr(align_count, "_choose", tapped)
    traffic = []
    ids = numbered(*range(6000))
    for passive in (ids, numbered(*range(6000, 12_000))):

        def play(role: Any, own: list[bytes]) -> Callable[[Channel], Any]:
            return lambda c: (role(c, own, COUNTING()), [(x["message"], x["bytes"]) for x in c.ledger.lines()])

        (a, lines), _ = simulate(play(align_active, ids), play(align_passive, passive))
        assert a.shared == len(set(ids) & set(passive))
        traffic.append([line for line in lines if line[0] != "AlignCount"])
    assert [name for name, _ in traffic[0]] == [name for name, _ in traffic[1]]
    assert all(abs(one - two) <= 5 for (_, one), (_, two) in zip(*traffic, strict=True))  # `total` may have its zeros
    for words, bits in seen:
        count = len(bits)
        assert abs(int(bits.sum()) - count / 2) < 6 * math.sqrt(count / 4)
        ones = int(np.unpackbits(words.view(np.uint8)).sum())
        assert abs(ones - 32 * count) < 6 * math.sqrt(16 * count)


# --- the table ---------------------------------------------------------------------------------------


def items(count: int) -> Any:
    return Draws().bytes(16 * count).view(np.uint32).reshape(count, 4)


@pytest.mark.parametrize("count", [1, 2, 50, 3000])
def test_the_table_gives_each_key_its_value_and_shows_none(count: int) -> None:
    present, absent = oprf.codes(items(count), b"tag"), oprf.codes(items(count), b"tag")
    values, segment = Draws().words(3 * count).reshape(count, 3), okvs.segment_for(3 * count)
    table = okvs.encode(present, values, segment)
    assert table is not None
    assert len(table) == 5 * segment
    for k in range(3):
        thirds = np.full(count, k, np.uint8)
        assert np.array_equal(okvs.decode(present, thirds, segment, table), values[:, k])
        assert not np.isin(okvs.decode(absent, thirds, segment, table), values).any()
    ones = int(np.unpackbits(table.view(np.uint8)).sum())
    assert abs(ones - 32 * len(table)) < 6 * math.sqrt(16 * len(table))


@pytest.mark.parametrize(("keys", "segment"), [(6, 5), (9, 8), (30, 13), (30, 22)])
def test_failures_to_encode_are_no_more_than_the_bound(keys: int, segment: int) -> None:
    """Tables far too small, so that failures are frequent: no more than the bound, no fewer than pairs of keys make."""
    trials = 20_000
    codes = Draws().bytes(trials * keys // 3 * 64).view(np.uint32).reshape(trials, 4, keys // 3, 4)
    order, owner = np.empty(keys, np.int32), np.empty(keys, np.int32)
    failed = sum(psi.peel(one, segment, order, owner) < keys for one in codes)
    assert failed <= min(1, 2 ** okvs.failure_log2(keys, segment)) * trials
    pairs = trials * math.comb(keys, 2) / segment**5
    assert failed >= pairs - 5 * math.sqrt(pairs)


def test_two_keys_in_the_same_slots_cannot_be_encoded() -> None:
    twice = np.repeat(oprf.codes(items(1), b"tag"), 2, axis=1)
    assert okvs.encode(twice, Draws().words(6).reshape(2, 3), 1000) is None


@pytest.mark.parametrize("keys", [2, 3, 30, 3000, 300_000])
def test_slots_are_enough_and_not_many(keys: int) -> None:
    segment = okvs.segment_for(keys)
    assert okvs.failure_log2(keys, segment) <= -40
    assert okvs.failure_log2(keys, segment * 4 // 5 - 1) > -40
    assert keys < 300_000 or 5 * segment < 1.81 * keys


def test_a_lone_key_cannot_fail() -> None:
    assert okvs.failure_log2(1, 1) == -math.inf


# --- comparing and counting --------------------------------------------------------------------------


def compare(own: Any, theirs: Any) -> tuple[Any, Any]:
    rows = sum(align_count._STEPS) * len(own)
    return simulate(
        lambda c: align_count._choose(transfer.open_receiver(c, rows), own),
        lambda c: align_count._serve(transfer.open_sender(c, rows), theirs),
    )


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_shares_differ_where_words_do(data: st.DataObject) -> None:
    words = st.integers(0, 2**64 - 1)
    pairs = data.draw(st.lists(words.flatmap(lambda w: st.tuples(st.just(w), st.just(w) | words)), min_size=1))
    flips = data.draw(st.lists(st.integers(0, 63), min_size=len(pairs), max_size=len(pairs)))
    own = np.array([a for a, _ in pairs], np.uint64)
    theirs = np.array([b if b != a or f % 3 else b ^ 1 << f for (a, b), f in zip(pairs, flips, strict=True)], np.uint64)
    one, other = compare(own, theirs)
    assert np.array_equal(one ^ other, own != theirs)


def test_words_that_are_too_short_coincide_as_often_as_they_must() -> None:
    """Of 8 bits in place of 64: one pair in 256."""
    count = 60_000
    own, theirs = (Draws().words(count) & np.uint64(255) for _ in range(2))
    one, other = compare(own, theirs)
    equal = count - int(np.count_nonzero(one ^ other))
    assert abs(equal - count / 256) < 6 * math.sqrt(count / 256)


def test_the_bound_on_words_holds_for_all_lists_that_are_taken() -> None:
    assert align_count.MOST_BINS * 2**-64 <= 2**-40
    assert align_count.plan_of((10**7, 10**7)).bins <= align_count.MOST_BINS
    with pytest.raises(OverBudget, match="13000000 IDs are too many to be counted by oblivious transfer"):
        align_count.plan_of((13_000_000, 5))


@pytest.mark.parametrize("sizes", [[1], [8, 3000, 17]])
def test_sums_of_differing_bits(sizes: list[int]) -> None:
    seeds = [(bytes([i, 0]) * 16, bytes([i, 1]) * 16) for i in range(200)]
    choices = np.unpackbits(Draws().bytes(25)).astype(np.bool_)
    chosen = [pair[int(bit)] for pair, bit in zip(seeds, choices, strict=True)]
    receiver, sender = tally.Receiver(b"t" * 16, seeds), tally.Sender(b"t" * 16, choices, chosen)
    due, corrections = 0, b""
    for size in sizes:
        x, y = (np.unpackbits(Draws().bytes(size))[:size] for _ in range(2))
        masked, kept = receiver.ask(x)
        answer = sender.answer(masked, y)
        receiver.take(x, kept, answer)
        due += int((x ^ y).sum())
        corrections += answer
    assert receiver.result(sender.total) == due
    ones = int(np.unpackbits(np.frombuffer(corrections, np.uint8)).sum())
    assert abs(ones - 4 * len(corrections)) <= 6 * math.sqrt(2 * len(corrections))
    with pytest.raises(ValueError, match="17 bytes are not 1 rows"):
        sender.answer(bytes(17), np.zeros(1, np.uint8))


# --- failure and rogues ------------------------------------------------------------------------------

IDS = numbered(1, 2, 3)
PLAN = align_count.plan_of((3, 3))
SLOTS = 8 * 5 * okvs.segment_for(9)
OPEN = pb.AlignOpen(rows=3)
Rogue = Callable[[Channel], None]


def test_no_table_ends_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(okvs, "encode", lambda *_: None)
    with pytest.raises(CannotPlace, match="no table has a slot"):
        run(COUNTING(), IDS, IDS)


def against(rogue_role: str, rogue: Rogue) -> None:
    def side(channel: Channel) -> None:
        channel.open(LAWLESS, rogue_role)
        with pytest.raises(PeerAborted):
            rogue(channel)
        raise PeerAborted("done")

    if rogue_role == "passive":
        simulate(lambda channel: align_active(channel, IDS, COUNTING()), side)
    else:
        simulate(side, lambda channel: align_passive(channel, IDS, COUNTING()))


@pytest.mark.parametrize("size", [0, 8, SLOTS - 8, SLOTS + 8])
def test_tables_of_the_wrong_size(size: int) -> None:
    with pytest.raises(WrongLength, match=r"the peer 'passive' sent .*, at step align\.AlignHints"):
        against("passive", says(OPEN, pb.AlignBases(points=points(1)), pb.AlignHints(slots=bytes(size))))


@pytest.mark.parametrize(("bad", "error"), [(b"", WrongLength), (bytes(32) * PLAN.bits, InvalidPoint)])
def test_bad_base_points(bad: bytes, error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"the peer 'passive' sent .*, at step align\.AlignBases"):
        against("passive", says(OPEN, pb.AlignBases(points=bad)))
    with pytest.raises(error, match=r"the peer 'active' sent .*, at step align\.AlignRaised"):
        against("active", says(OPEN, pb.AlignRaised(points=bad)))


def spoilt(monkeypatch: pytest.MonkeyPatch, kind: type[ProtobufMessage], change: Callable[[Any], None]) -> None:
    """An honest pair, of which one side's messages of a kind are changed as they leave."""

    def send(self: Channel, message: Any, *rest: Any, honest: Any = Channel.send) -> None:
        if isinstance(message, kind):
            change(message)
        honest(self, message, *rest)

    monkeypatch.setattr(Channel, "send", send)


@pytest.mark.parametrize(
    "change", [lambda m: setattr(m, "corrections", b"1234"), lambda m: m.ClearField("corrections")]
)
def test_corrections_of_the_wrong_size(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    spoilt(monkeypatch, pb.AlignSums, change)
    with pytest.raises(WrongLength, match=r"the peer 'passive' sent .*, at step align\.AlignSums"):
        run(COUNTING(), IDS, IDS)


def test_sums_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, pb.AlignSums, lambda m: setattr(m, "total", (m.total - 1) % 2**32))
    with pytest.raises(Malformed, match=r"sums that make 4 IDs shared of 3 at most, at step align\.AlignSums"):
        run(COUNTING(), IDS, IDS)


def test_counted_rows_of_the_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally.Receiver, "ask", lambda self, bits: (b"short", np.zeros(len(bits), np.uint32)))
    with pytest.raises(WrongLength, match=r"the peer 'active' sent 5 bytes .*, at step align\.AlignMasked"):
        run(COUNTING(), IDS, IDS)


def test_choices_of_the_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, transfer_pb2.TransferColumns, lambda m: setattr(m, "rows", m.rows - 1))
    with pytest.raises(WrongLength, match=r"the peer 'active' .*, at step transfer\.TransferColumns"):
        run(COUNTING(), IDS, IDS)


@pytest.mark.parametrize("rogue", ["active", "passive"])
@pytest.mark.parametrize("message", [pb.AlignCount(shared=1), pb.AlignSums(), pb.AlignFound(bits=b"\1"), OPEN])
def test_messages_out_of_order(rogue: str, message: ProtobufMessage) -> None:
    with pytest.raises(OutOfOrder, match="out of order"):
        against(rogue, says(OPEN, message))


def test_a_replayed_table() -> None:
    piece = pb.AlignHints(slots=bytes(SLOTS))
    with pytest.raises(OutOfOrder, match="AlignHints out of order"):
        against("passive", says(OPEN, pb.AlignBases(points=points(1)), piece, piece))


def test_a_replayed_piece_of_rows() -> None:
    piece = pb.AlignMasked(rows=bytes(PLAN.bins * PLAN.row_bytes))
    with pytest.raises(OutOfOrder, match="AlignMasked out of order"):
        against("active", says(OPEN, pb.AlignRaised(points=points(1)), piece, piece))
