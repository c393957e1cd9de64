"""Alignment by oblivious transfer: against Python sets, against the other protocol, against rogues."""

import functools
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
from fedlearn.crypto import oprf, ot
from fedlearn.errors import (
    BeyondContract,
    CannotPlace,
    FedlearnError,
    InvalidPoint,
    Malformed,
    NoOverlap,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    WrongLength,
)
from fedlearn.protocols import align, align_ot
from fedlearn.protocols.align import Alignment, align_active, align_passive
from fedlearn.v1 import align_pb2 as pb
from tests.test_align import GENERATOR, KINDS, LAWLESS, SMALL_ORDER, contract, multiples, numbered, says

MODES = ("mutual", "one-sided")
LARGE = functools.partial(contract, method="ot", rows=200_000)


@pytest.fixture(autouse=True)
def _quick_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base transfers cost a third of a second; all these tests but one share a few."""
    monkeypatch.setattr(ot, "choose", functools.cache(ot.choose))
    monkeypatch.setattr(ot, "offer", functools.cache(ot.offer))
    monkeypatch.setattr(ot, "accept", _accept)


@functools.lru_cache
def _cached(session: bytes, blinded: bytes, raised: bytes, choice: Any) -> Any:
    return _ACCEPT(session, choice.value, blinded, raised)


class _ById:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.value is self.value


_ACCEPT = ot.accept


def _accept(session: bytes, choice: Any, blinded: bytes, raised: bytes) -> Any:
    return _cached(session, blinded, raised, _ById(choice))


def run(agreed: Contract, active: Any, passive: Any) -> tuple[Alignment, Alignment]:
    return simulate(lambda c: align_active(c, active, agreed), lambda c: align_passive(c, passive, agreed))


def check(agreed: Contract, active: list[bytes], passive: list[bytes]) -> None:
    """Run, and hold the outcome against Python's sets."""
    shared = set(active) & set(passive)
    if not shared:
        with pytest.raises(NoOverlap):
            run(agreed, active, passive)
        return
    a, p = run(agreed, active, passive)
    assert a.id == p.id
    assert a.shared == len(shared)
    assert a.rows.dtype == p.rows.dtype == np.int64
    if agreed.align.mode == "mutual":
        assert p.shared == a.size == p.size == len(a.rows) == len(shared)
        assert [active[i] for i in a.rows] == [passive[i] for i in p.rows]
        assert {active[i] for i in a.rows} == shared
        return
    assert p.shared is None
    assert a.size == p.size == len(passive)
    assert sorted(p.rows) == list(range(len(passive)))
    for mine, theirs in zip(a.rows, p.rows, strict=True):
        assert (mine >= 0) == (passive[theirs] in shared)
        assert mine < 0 or active[mine] == passive[theirs]


# --- honest parties ----------------------------------------------------------------------------------


LISTS = st.lists(st.binary(max_size=3), min_size=1, max_size=40, unique=True)


@settings(max_examples=15, deadline=None)
@given(active=LISTS, passive=LISTS, mode=st.sampled_from(MODES))
def test_short_lists(active: list[bytes], passive: list[bytes], mode: str) -> None:
    check(LARGE(mode), active, passive)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 17).map(lambda k: round(2 ** (k * 0.978)))] * 2),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_overlap_of_any_sizes(sizes: tuple[int, int], share: float, mode: str, seed: int) -> None:
    shared = round(share * min(sizes))
    draw = np.random.default_rng(seed)
    people = [b"%d" % i for i in draw.permutation(10**6)[: sum(sizes) - shared]]
    active, passive = people[: sizes[0]], people[sizes[0] - shared :]
    check(LARGE(mode), active, [passive[i] for i in draw.permutation(len(passive))])


@pytest.mark.parametrize("mode", MODES)
def test_several_pieces_and_long_ids(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align_ot, "_BINS", 1024)
    monkeypatch.setattr(align_ot, "_ROWS", 500)
    ids = [b"", b"\0", b"\0\0", *(b"x" * k for k in range(50, 130)), *numbered(*range(3000))]
    check(LARGE(mode), ids[:2500], ids[60:])


def test_both_methods_give_the_same_rows() -> None:
    active, passive = pa.array([f"{i}" for i in range(400)]), pa.chunked_array([[f"{i}" for i in range(600, 150, -1)]])
    pairs = []
    for method in ("ecdh", "ot"):
        a, p = run(contract("mutual", method=method), active, passive)
        pairs.append(sorted(zip(a.rows.tolist(), p.rows.tolist(), strict=True)))
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 249


@pytest.mark.parametrize(("count", "method"), [(20, "AlignBlinded"), (30, "AlignBases")])
def test_auto_takes_the_one_that_is_faster(count: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "FEW", 50)
    ids, agreed = numbered(*range(count)), contract("mutual", method="auto")

    def active(channel: Channel) -> set[str]:
        align_active(channel, ids, agreed)
        return {line["message"] for line in channel.ledger.lines()}

    assert method in simulate(active, lambda c: align_passive(c, ids, agreed))[0]
    counting = contract("cardinality", method="auto")
    assert align._method(counting, (10**6, 10**6)) == "ot"
    assert align._method(counting, (13 * 10**6, 10**6)) == align._method(counting, (20, 20)) == "ecdh"


@pytest.mark.parametrize("mode", MODES)
def test_ledgers_and_progress(mode: str) -> None:
    reports = []

    def watched(role: Callable[..., Alignment], ids: list[bytes]) -> Callable[[Channel], list[dict[str, Any]]]:
        def play(channel: Channel) -> list[dict[str, Any]]:
            channel.on_progress = reports.append
            role(channel, ids, LARGE(mode))
            return channel.ledger.lines()

        return play

    active, passive = simulate(watched(align_active, numbered(1, 2, 3)), watched(align_passive, numbered(3, 4)))
    assert active == passive
    learned = {(line["message"], line["receiver"]): line["values"] for line in active}
    assert learned["AlignValues", "active"] == 2
    assert learned["AlignMasked", "passive"] == learned["AlignBases", "active"] == 0
    assert (("AlignFound", "passive") in learned) == (mode == "mutual")
    assert [r.done for r in reports if r.done == r.total] == [5, 5]


def test_nothing_repeats_from_run_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ids, seen = numbered(*range(200)), []

    def passive(channel: Channel) -> Alignment:
        receive = channel.receive

        def tapped(*kinds: Any) -> Any:
            message = receive(*kinds)
            seen.append(message.SerializeToString())
            return message

        channel.receive = tapped  # type: ignore[method-assign]
        return align_passive(channel, ids, LARGE("one-sided"))

    one, two = (simulate(lambda c: align_active(c, ids, LARGE("one-sided")), passive) for _ in range(2))
    assert list(one[1].rows) != list(two[1].rows)
    assert one[0].id != two[0].id
    assert seen[0] == seen[3]  # AlignOpen
    assert not {m[8:16] for m in seen[1:3]} & {m[8:16] for m in seen[4:]}


# --- padding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ecdh", "ot"])
@pytest.mark.parametrize("mode", ["mutual", "one-sided", "cardinality"])
def test_padded_lists_show_only_the_bound(mode: str, method: str) -> None:
    agreed = contract(mode, method=method, pad_rows=60)
    traffic = []
    for active, passive in ((numbered(*range(9)), numbered(*range(4, 24))), (numbered(4), numbered(*range(20)))):

        def play(role: Any, ids: list[bytes]) -> Callable[[Channel], Any]:
            return lambda c: (role(c, ids, agreed), [(x["message"], x["bytes"], x["sender"]) for x in c.ledger.lines()])

        (a, lines), (p, _) = simulate(play(align_active, active), play(align_passive, passive))
        assert a.shared == len(set(active) & set(passive))
        if mode == "mutual":
            assert [active[i] for i in a.rows] == [passive[i] for i in p.rows]
        if mode == "one-sided":
            assert a.size == len(passive)
        traffic.append(lines)
    told = [[line for line in lines if line[0] not in ("AlignCount", "AlignSums")] for lines in traffic]
    assert told[0] == told[1]


def test_padding_bounds_lists() -> None:
    with pytest.raises(OverBudget, match=r"the contract's align\.pad_rows is 2"):
        run(contract("mutual", pad_rows=2), numbered(1, 2, 3), numbered(1))
    with pytest.raises(BeyondContract, match=r"pads lists to 5, at step align\.AlignOpen"):
        against_active("mutual", says(pb.AlignOpen(rows=4)), contract("mutual", method="ot", pad_rows=5))


# --- failure and rogues ------------------------------------------------------------------------------

IDS = numbered(1, 2, 3)
PLAN = oprf.Plan.of(3, 3)
Rogue = Callable[[Channel], None]


def test_no_placement_ends_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oprf, "place", lambda *_: None)
    with pytest.raises(CannotPlace):
        run(LARGE("mutual"), IDS, IDS)


def against_active(mode: str, rogue: Rogue, agreed: Contract | None = None) -> None:
    def passive(channel: Channel) -> None:
        channel.open(LAWLESS, "passive")
        with pytest.raises(PeerAborted):
            rogue(channel)
        raise PeerAborted("done")

    simulate(lambda channel: align_active(channel, IDS, agreed or LARGE(mode)), passive)


def against_passive(mode: str, rogue: Rogue) -> None:
    def active(channel: Channel) -> None:
        channel.open(LAWLESS, "active")
        with pytest.raises(PeerAborted):
            rogue(channel)
        raise PeerAborted("done")

    simulate(active, lambda channel: align_passive(channel, IDS, LARGE(mode)))


@functools.cache
def points(first: int) -> bytes:
    return multiples(*range(first, first + PLAN.bits))


OPEN = pb.AlignOpen(rows=3)
POINTS = [
    (GENERATOR, WrongLength),
    (b"", WrongLength),
    (bytes(32) * PLAN.bits, InvalidPoint),
    (b"\xff" * 32 * PLAN.bits, InvalidPoint),
    (GENERATOR * PLAN.bits, Malformed),
    *((GENERATOR * (PLAN.bits - 1) + point, InvalidPoint) for point in SMALL_ORDER),
]


@pytest.mark.parametrize(("bad", "error"), POINTS)
def test_bad_base_points(bad: bytes, error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"the peer 'passive' sent .*, at step align\.AlignBases"):
        against_active("mutual", says(OPEN, pb.AlignBases(points=bad)))
    with pytest.raises(error, match=r"the peer 'active' sent .*, at step align\.AlignRaised"):
        against_passive("mutual", says(OPEN, pb.AlignRaised(points=bad)))


@pytest.mark.parametrize("size", [0, PLAN.row_bytes, PLAN.bins * PLAN.row_bytes - 1, PLAN.bins * PLAN.row_bytes + 1])
def test_masked_rows_of_the_wrong_size(size: int) -> None:
    with pytest.raises(WrongLength, match=r"the peer 'active' sent .*, at step align\.AlignMasked"):
        against_passive("mutual", says(OPEN, pb.AlignRaised(points=points(1)), pb.AlignMasked(rows=bytes(size))))


WIDTH = 3 * PLAN.value_bytes


@pytest.mark.parametrize(("rows", "size"), [(2, 2 * WIDTH), (4, 4 * WIDTH), (3, 3 * WIDTH - 1), (3, 0), (2**32 - 1, 0)])
def test_values_of_the_wrong_size(rows: int, size: int) -> None:
    messages = OPEN, pb.AlignBases(points=points(1)), pb.AlignValues(rows=rows, values=bytes(size))
    with pytest.raises(WrongLength, match=r"the peer 'passive' sent .*, at step align\.AlignValues"):
        against_active("one-sided", says(*messages))


@pytest.mark.parametrize("mode", MODES)
def test_repeated_values(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passive side sends what is right, but one ID's values twice."""

    def spoilt(self: oprf.Sender, items: Any, honest: Any = oprf.Sender.values) -> bytes:
        values = honest(self, items)
        return bytes(values[:WIDTH] + values[:WIDTH] + values[2 * WIDTH :])

    monkeypatch.setattr(oprf.Sender, "values", spoilt)
    with pytest.raises(Malformed, match=r"sent values that make two IDs one, at step align\.AlignValues"):
        run(LARGE(mode), IDS, IDS)


def test_values_of_two_ids_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oprf.Index, "match", lambda self, received: np.full(len(received), -2, np.int32))
    with pytest.raises(Malformed, match="sent values that make two IDs one"):
        run(LARGE("mutual"), IDS, IDS)


@pytest.mark.parametrize(
    ("bits", "error"),
    [(b"", WrongLength), (b"\0\0", WrongLength), (b"\x08", Malformed), (b"\xff", Malformed)],
)
def test_bad_found_bits(bits: bytes, error: type[FedlearnError]) -> None:
    rogue = says(
        OPEN,
        pb.AlignRaised(points=points(1)),
        pb.AlignMasked(rows=bytes(PLAN.bins * PLAN.row_bytes)),
        pb.AlignFound(bits=bits),
    )
    with pytest.raises(error, match=r"the peer 'active' .*, at step align\.AlignFound"):
        against_passive("mutual", rogue)


def test_padding_cannot_be_shared() -> None:
    agreed = contract("mutual", method="ot", pad_rows=64)

    def rogue(channel: Channel) -> None:
        channel.open(LAWLESS, "active")
        plan = oprf.Plan.of(64, 64)
        channel.send(pb.AlignOpen(rows=64))
        channel.send(pb.AlignRaised(points=multiples(*range(1, plan.bits + 1))))
        channel.send(pb.AlignMasked(rows=bytes(plan.bins * plan.row_bytes)))
        channel.send(pb.AlignFound(bits=b"\xff" * 8))
        while True:
            channel.receive(*KINDS)

    with pytest.raises(Malformed, match="named rows as shared that cannot be"):
        simulate(rogue, lambda channel: align_passive(channel, IDS, agreed))


@pytest.mark.parametrize("against", [against_active, against_passive])
@pytest.mark.parametrize(
    "message", [pb.AlignFound(bits=b"\1"), pb.AlignBlinded(points=multiples(1, 2, 3)), pb.AlignCount(shared=1)]
)
def test_messages_out_of_order(against: Callable[..., None], message: ProtobufMessage) -> None:
    with pytest.raises(OutOfOrder, match="out of order"):
        against("mutual", says(OPEN, message))


def test_a_replayed_piece() -> None:
    piece = pb.AlignMasked(rows=bytes(PLAN.bins * PLAN.row_bytes))
    with pytest.raises(OutOfOrder, match="AlignMasked out of order"):
        against_passive("mutual", says(OPEN, pb.AlignRaised(points=points(1)), piece, piece))
