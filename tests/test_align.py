"""Alignment in all modes against Python sets, and against peers that do not keep to the protocol."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message as ProtobufMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.channel import BOTH, START, Channel, Message, Table, nothing, simulate
from fedlearn.contract import Contract
from fedlearn.crypto import ristretto
from fedlearn.errors import (
    AmbiguousIds,
    BeyondContract,
    DuplicateIds,
    EmptyTable,
    FedlearnError,
    InvalidPoint,
    Malformed,
    NoOverlap,
    NullIds,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    WrongLength,
)
from fedlearn.protocols import align_ecdh
from fedlearn.protocols.align import TABLES, Alignment, _tag, align_active, align_passive
from fedlearn.v1 import align_pb2 as pb

MODES = ("mutual", "one-sided", "cardinality")
KINDS = (
    pb.AlignOpen,
    pb.AlignBlinded,
    pb.AlignDoubled,
    pb.AlignCount,
    pb.AlignBases,
    pb.AlignRaised,
    pb.AlignMasked,
    pb.AlignValues,
    pb.AlignFound,
    pb.AlignHints,
    pb.AlignSums,
    pb.AlignTable,
    pb.AlignKept,
    pb.AlignUpdate,
)
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("align", ("active", "passive"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))
BUDGET = 1000


@functools.cache
def contract(mode: str, name: str = "test", method: str = "ecdh", pad_rows: int = 0, rows: int = BUDGET) -> Contract:
    return Contract.model_validate(
        {
            "name": name,
            "purpose": "tests of alignment",
            "expires": "2999-01-01",
            "active": {"name": "active", "features": {"x": "number"}},
            "passive": {"name": "passive", "features": {"y": "number"}},
            "label": {"column": "default"},
            "align": {"mode": mode, "method": method, "pad_rows": pad_rows, "key": {"column": "phone"}},
            "budget": {"rows": rows},
        }
    )


def run(
    mode: str,
    active: Sequence[bytes],
    passive: Sequence[bytes],
    on_file: tuple[Alignment | None, Alignment | None] = (None, None),
) -> tuple[Alignment, Alignment]:
    return simulate(
        lambda channel: align_active(channel, active, contract(mode), on_file[0]),
        lambda channel: align_passive(channel, passive, contract(mode), on_file[1]),
    )


def numbered(*numbers: int) -> list[bytes]:
    return [b"%d" % n for n in numbers]


LISTS = st.lists(st.binary(max_size=3), min_size=1, max_size=12, unique=True)


# --- honest parties, against Python sets ------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(active=LISTS, passive=LISTS)
def test_mutual(active: list[bytes], passive: list[bytes]) -> None:
    shared = set(active) & set(passive)
    if not shared:
        with pytest.raises(NoOverlap):
            run("mutual", active, passive)
        return
    a, p = run("mutual", active, passive)
    assert [active[i] for i in a.rows] == [passive[i] for i in p.rows]  # one common order
    assert {active[i] for i in a.rows} == shared
    assert a.size == p.size == a.shared == p.shared == len(a.rows) == len(shared)
    assert a.id == p.id
    assert a.rows.dtype == p.rows.dtype == np.int64


@settings(max_examples=25, deadline=None)
@given(active=LISTS, passive=LISTS)
def test_one_sided(active: list[bytes], passive: list[bytes]) -> None:
    shared = set(active) & set(passive)
    if not shared:
        with pytest.raises(NoOverlap):
            run("one-sided", active, passive)
        return
    a, p = run("one-sided", active, passive)
    assert sorted(p.rows) == list(range(len(passive)))
    assert p.shared is None
    for mine, theirs in zip(a.rows, p.rows, strict=True):
        assert (mine >= 0) == (passive[theirs] in shared)
        assert mine < 0 or active[mine] == passive[theirs]
    assert a.size == p.size == len(passive)
    assert a.shared == len(shared)
    assert a.id == p.id
    assert a.rows.dtype == p.rows.dtype == np.int64


@settings(max_examples=25, deadline=None)
@given(active=LISTS, passive=LISTS)
def test_cardinality(active: list[bytes], passive: list[bytes]) -> None:
    a, p = run("cardinality", active, passive)
    count = len(set(active) & set(passive))
    assert (a.size, a.shared, p.size, p.shared) == (count,) * 4
    assert a.rows.shape == p.rows.shape == (0,)
    assert a.id == p.id


@pytest.mark.parametrize("mode", MODES)
def test_several_threads_and_batches(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.protocols.align_ecdh._BATCH", 300)
    active, passive = numbered(*range(700)), numbered(*range(900, 400, -1))
    a, p = run(mode, active, passive)
    assert a.shared == 299
    if mode == "mutual":
        assert [active[i] for i in a.rows] == [passive[i] for i in p.rows]


def test_orders_are_fresh() -> None:
    ids = numbered(*range(40))
    one, other = run("one-sided", ids, ids), run("one-sided", ids, ids)
    assert list(one[1].rows) != list(other[1].rows)
    assert list(one[1].rows) != list(range(40))
    assert one[0].id != other[0].id


def test_arrow_arrays() -> None:
    a, _ = run("mutual", pa.array(["ä", "b"]), pa.chunked_array([["c"], ["ä"]]))
    assert list(a.rows) == [0]


def points_seen(mode: str, name: str = "test") -> list[tuple[str, bytes]]:
    """Every list of points that the passive side sends or receives, in order."""
    seen = []

    def passive(channel: Channel) -> None:
        send, receive = channel.send, channel.receive

        def tapped_send(message: Any) -> None:
            seen.append((type(message).__name__, getattr(message, "points", b"")))
            send(message)

        def tapped_receive(*kinds: Any) -> Any:
            message = receive(*kinds)
            seen.append((type(message).__name__, getattr(message, "points", b"")))
            return message

        channel.send, channel.receive = tapped_send, tapped_receive  # type: ignore[method-assign, assignment]
        align_passive(channel, numbered(*range(30)), contract(mode, name))

    simulate(lambda channel: align_active(channel, numbered(*range(20, 50)), contract(mode, name)), passive)
    return seen


@pytest.mark.parametrize(
    ("mode", "messages"),
    [
        ("mutual", ["AlignOpen"] * 2 + ["AlignBlinded"] * 2 + ["AlignDoubled", "AlignFound"]),
        ("one-sided", ["AlignOpen"] * 2 + ["AlignBlinded"] * 2 + ["AlignDoubled"]),
        ("cardinality", ["AlignOpen"] * 2 + ["AlignBlinded"] * 2 + ["AlignDoubled", "AlignCount"]),
    ],
)
def test_no_message_is_more_than_needed(mode: str, messages: list[str]) -> None:
    assert [name for name, _ in points_seen(mode)] == messages


def test_the_passive_side_shuffles_its_answer_in_cardinality_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the passive side's key known, its answer shows in which order it is."""
    for mode in ("one-sided", "cardinality"):
        keys: list[bytes] = []

        def scalar(draw: Callable[[], bytes] = ristretto.random_scalar, keys: list[bytes] = keys) -> bytes:
            keys.append(draw())
            return keys[-1]

        with monkeypatch.context() as patch:
            patch.setattr(ristretto, "random_scalar", scalar)
            seen = points_seen(mode)
        asked, answered = seen[2][1], seen[4][1]
        in_order = [ristretto.raise_points(asked, key) for key in keys]
        assert (answered in in_order) == (mode == "one-sided")
        if mode == "cardinality":
            assert split(answered) in [sorted_as(split(answered), split(points)) for points in in_order]


def split(points: bytes) -> list[bytes]:
    return [points[i : i + 32] for i in range(0, len(points), 32)]


def sorted_as(model: list[bytes], points: list[bytes]) -> list[bytes]:
    return [point for point in model if point in set(points)]


def test_points_are_fresh_in_every_run_and_unlinkable_across_contracts() -> None:
    assert not set(split(points_seen("mutual")[3][1])) & set(split(points_seen("mutual")[3][1]))
    key = ristretto.random_scalar()

    def blinded(name: str) -> bytes:
        tag = _tag(cast(Channel, Mock(session=b"")), contract("mutual", name), 0)
        return align_ecdh.blind(IDS, tag, key, lambda _: None)

    assert blinded("test") == blinded("test")
    assert not set(split(blinded("test"))) & set(split(blinded("another")))


@pytest.mark.parametrize("mode", MODES)
def test_ledgers_and_progress(mode: str) -> None:
    reports = []

    def watched(role: Callable[..., Alignment], ids: list[bytes]) -> Callable[[Channel], list[dict[str, Any]]]:
        def play(channel: Channel) -> list[dict[str, Any]]:
            channel.on_progress = reports.append
            role(channel, ids, contract(mode))
            return channel.ledger.lines()

        return play

    active, passive = simulate(watched(align_active, numbered(1, 2, 3)), watched(align_passive, numbered(3, 4)))
    assert active == passive
    learned = {(line["message"], line["receiver"]): line["values"] for line in active}
    assert learned.get(("AlignDoubled", "active")) == {"mutual": 3, "one-sided": 3, "cardinality": 1}[mode]
    assert ("AlignDoubled", "passive") not in learned
    assert learned.get(("AlignFound", "passive")) == {"mutual": 8}.get(mode)
    assert learned["AlignBlinded", "active"] == learned["AlignBlinded", "passive"] == 0
    assert {report.phase for report in reports} == {"align"}
    assert all(report.done <= report.total and report.unit == "ids" for report in reports)
    ends = sorted(report.done for report in reports if report.done == report.total)
    assert ends == [5, 6]


def test_every_message_is_in_every_table() -> None:
    for table in TABLES.values():
        assert {message.name for message in table.messages} == set(pb.DESCRIPTOR.message_types_by_name)


# --- the alignment on file ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_alignment_on_file_is_reused(mode: str) -> None:
    ids = numbered(1, 2, 3)
    first = run(mode, ids, ids)
    again = run(mode, ids, ids, first)
    assert again[0] is first[0]
    assert again[1] is first[1]


@pytest.mark.parametrize("mode", MODES)
def test_it_is_not_reused_when_the_sides_differ(mode: str) -> None:
    ids = numbered(1, 2, 3)
    first, second = run(mode, ids, ids), run(mode, ids, ids)
    for on_file in ((first[0], None), (None, first[1]), (first[0], second[1])):
        again = run(mode, ids, ids, on_file)
        assert again[0].id == again[1].id
        assert again[0].id not in (first[0].id, second[0].id)


def test_it_is_not_reused_for_another_mode_or_a_shorter_table() -> None:
    ids = numbered(1, 2, 3)
    on_file = run("mutual", ids, ids)
    assert run("one-sided", ids, ids, on_file)[0].mode == "one-sided"
    assert run("mutual", ids[:2], ids, on_file)[0].size == 2


# --- several keys ------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 11).map(lambda k: 2**k)] * 2),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_overlap_of_any_sizes(sizes: tuple[int, int], share: float, mode: str, seed: int) -> None:
    shared = round(share * min(sizes))
    draw = np.random.default_rng(seed)
    people = [b"%d" % i for i in draw.permutation(10**6)[: sum(sizes) - shared]]
    active = people[: sizes[0]]
    passive = [people[sizes[0] - shared + i] for i in draw.permutation(sizes[1])]
    agreed = contract(mode, rows=10**6)
    sides = (lambda c: align_active(c, active, agreed), lambda c: align_passive(c, passive, agreed))
    if not shared and mode != "cardinality":
        with pytest.raises(NoOverlap):
            simulate(*sides)
        return
    a, p = simulate(*sides)
    assert a.shared == shared
    if mode != "cardinality":
        found = {(active[i], passive[j]) for i, j in zip(a.rows, p.rows, strict=True) if i >= 0}
        assert found == {(one, one) for one in set(active) & set(passive)}


def several(mode: str, method: str) -> Contract:
    """Two keys."""
    one = contract(mode, method=method)
    also = [{"column": "nif"}]
    return Contract.model_validate(one.model_dump() | {"align": one.align.model_dump() | {"also": also}})


def by_two(mode: str, method: str, active: Any, passive: Any) -> tuple[Alignment, Alignment]:
    agreed = several(mode, method)
    columns = [[pa.array(column, pa.string()) for column in zip(*rows, strict=True)] for rows in (active, passive)]
    return simulate(lambda c: align_active(c, columns[0], agreed), lambda c: align_passive(c, columns[1], agreed))


ACTIVE = [("1", "a"), ("2", None), (None, "c"), ("4", "d"), ("5", "e")]
PASSIVE = [("7", "d"), ("2", "z"), ("1", "a"), (None, None), ("8", "c"), ("c", "5")]
PAIRS = {(0, 2), (1, 1), (2, 4), (3, 0)}


@pytest.mark.parametrize("method", ["ecdh", "ot"])
@pytest.mark.parametrize("mode", ["mutual", "one-sided"])
def test_the_first_key_that_matches(mode: str, method: str) -> None:
    a, p = by_two(mode, method, ACTIVE, PASSIVE)
    assert {(i, j) for i, j in zip(a.rows.tolist(), p.rows.tolist(), strict=True) if i >= 0} == PAIRS
    assert a.by_key == (2, 2)
    assert p.by_key == ()
    assert a.shared == 4
    assert a.id == p.id
    assert (p.size, p.shared) == ((4, 4) if mode == "mutual" else (6, None))


@pytest.mark.parametrize("method", ["ecdh", "ot"])
@pytest.mark.parametrize(
    ("active", "passive", "row"),
    [
        ([("9", "x"), ("1", "a")], [("1", "b"), ("2", "a")], 2),  # one of ours, two of theirs
        ([("9", "x"), ("1", None), (None, "b")], [("1", "b")], 3),  # two of ours, one of theirs
    ],
)
def test_a_person_matched_to_two_rows_is_an_error(method: str, active: Any, passive: Any, row: int) -> None:
    with pytest.raises(AmbiguousIds, match=f"for instance this side's row {row}$"):
        by_two("mutual", method, active, passive)


KEYED = st.lists(
    st.tuples(st.none() | st.integers(0, 9).map(str), st.none() | st.integers(0, 9).map(str)), min_size=1, max_size=8
).filter(lambda rows: all(len([x for x in c if x]) == len({x for x in c if x}) for c in zip(*rows, strict=True)))


@settings(max_examples=40, deadline=None)
@given(active=KEYED, passive=KEYED)
def test_two_keys_against_a_loop(active: Any, passive: Any) -> None:
    pairs = {
        (i, j) for k in (0, 1) for i, x in enumerate(active) for j, y in enumerate(passive) if x[k] and x[k] == y[k]
    }
    if len(pairs) > min(len({i for i, _ in pairs}), len({j for _, j in pairs})):
        with pytest.raises(AmbiguousIds):
            by_two("mutual", "ecdh", active, passive)
    elif not pairs:
        with pytest.raises(NoOverlap):
            by_two("mutual", "ecdh", active, passive)
    else:
        a, p = by_two("mutual", "ecdh", active, passive)
        assert set(zip(a.rows.tolist(), p.rows.tolist(), strict=True)) == pairs


# --- this side's own mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([], EmptyTable),
        (pa.array([], pa.string()), EmptyTable),
        ([b"1", b"2", b"1"], DuplicateIds),
        (pa.array(["1", None]), NullIds),
        (numbered(*range(BUDGET + 1)), OverBudget),
    ],
)
def test_bad_ids_are_found_before_anything_is_sent(ids: Any, error: type[FedlearnError]) -> None:
    def active(channel: Channel) -> None:
        with pytest.raises(error):
            align_active(channel, ids, contract("mutual"))
        assert channel.bytes_sent == 0
        raise KeyError("done")

    with pytest.raises(KeyError):
        simulate(active, lambda channel: align_passive(channel, numbered(1), contract("mutual")))


# --- rogue peers -------------------------------------------------------------------------------------

GENERATOR = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")
IDENTITY = bytes(32)
NOT_CANONICAL = bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")
NEGATIVE = bytes.fromhex("0100000000000000000000000000000000000000000000000000000000000000")
NOT_SQUARE = bytes.fromhex("26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371")

#: Encodings of points of order 1, 2, 4 and 8 on edwards25519; none is one of ristretto255, but the identity's.
SMALL_ORDER = [
    NEGATIVE,
    bytes.fromhex("ec" + 30 * "ff" + "7f"),
    IDENTITY,
    bytes(31) + b"\x80",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]


def multiples(*factors: int) -> bytes:
    return b"".join(ristretto.raise_points(GENERATOR, n.to_bytes(32, "little")) for n in factors)


#: Three points were due.
BAD_LISTS = [
    (multiples(1, 2) + IDENTITY, InvalidPoint),
    (multiples(1) + NOT_CANONICAL + multiples(2), InvalidPoint),
    (NEGATIVE + multiples(1, 2), InvalidPoint),
    (multiples(1, 2) + NOT_SQUARE, InvalidPoint),
    *((multiples(1, 2) + point, InvalidPoint) for point in SMALL_ORDER),
    (multiples(1, 2) + multiples(1)[:31] + bytes([multiples(1)[31] | 0x80]), InvalidPoint),  # one of them, in disguise
    (multiples(1, 2, 1), Malformed),
    (multiples(1, 2), WrongLength),
    (multiples(1, 2, 3, 4), WrongLength),
    (multiples(1, 2, 3)[:-1], WrongLength),
    (b"", WrongLength),
]
IDS = numbered(1, 2, 3)

Rogue = Callable[[Channel], None]


def against_active(mode: str, rogue: Rogue) -> None:
    def passive(channel: Channel) -> None:
        channel.open(LAWLESS, "passive")
        with pytest.raises(PeerAborted):  # it is told, and does not hang
            rogue(channel)
        raise PeerAborted("done")

    simulate(lambda channel: align_active(channel, IDS, contract(mode)), passive)


def against_passive(mode: str, rogue: Rogue) -> None:
    def active(channel: Channel) -> None:
        channel.open(LAWLESS, "active")
        with pytest.raises(PeerAborted):
            rogue(channel)
        raise PeerAborted("done")

    simulate(active, lambda channel: align_passive(channel, IDS, contract(mode)))


def says(*messages: ProtobufMessage) -> Rogue:
    """Say these, whatever comes back, and wait for the end."""

    def rogue(channel: Channel) -> None:
        for message in messages:
            channel.send(message)
        while True:
            channel.receive(*KINDS)

    return rogue


def opening(**changes: Any) -> pb.AlignOpen:
    return pb.AlignOpen(**({"rows": 3, "alignment_id": b""} | changes))


@pytest.mark.parametrize("against", [against_active, against_passive])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rows": BUDGET + 1}, BeyondContract),
        ({"rows": 2**64 - 1}, BeyondContract),
        ({"rows": 0}, Malformed),
        ({"alignment_id": b"short"}, Malformed),
    ],
)
def test_bad_openings(against: Callable[..., None], changes: dict[str, Any], error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"the peer '(active|passive)' .*, at step align\.AlignOpen"):
        against("mutual", says(opening(**changes)))


@pytest.mark.parametrize("against", [against_active, against_passive])
@pytest.mark.parametrize(("points", "error"), BAD_LISTS)
def test_bad_blinded_lists(against: Callable[..., None], points: bytes, error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"at step align\.AlignBlinded"):
        against("mutual", says(opening(), pb.AlignBlinded(points=points)))


@pytest.mark.parametrize(
    ("against", "mode"),
    [
        (against_active, "mutual"),
        (against_active, "one-sided"),
        (against_active, "cardinality"),
    ],
)
@pytest.mark.parametrize(("points", "error"), BAD_LISTS)
def test_bad_doubled_lists(against: Callable[..., None], mode: str, points: bytes, error: type[FedlearnError]) -> None:
    rogue = says(opening(), pb.AlignBlinded(points=multiples(5, 6, 7)), pb.AlignDoubled(points=points))
    with pytest.raises(error, match=r"at step align\.AlignDoubled"):
        against(mode, rogue)


@pytest.mark.parametrize("whole", [True, False])
def test_our_own_points_come_back(whole: bool) -> None:
    def blinded(channel: Channel) -> None:
        channel.send(opening())
        channel.receive(pb.AlignOpen)
        points = channel.receive(pb.AlignBlinded).points
        channel.send(pb.AlignBlinded(points=points if whole else multiples(1, 2) + points[:32]))
        channel.receive(*KINDS)

    def doubled(channel: Channel) -> None:
        channel.send(opening())
        channel.send(pb.AlignBlinded(points=multiples(1, 2, 3)))
        channel.receive(pb.AlignOpen)
        points = channel.receive(pb.AlignBlinded).points
        channel.send(pb.AlignDoubled(points=points if whole else multiples(4, 5) + points[:32]))
        while True:
            channel.receive(*KINDS)

    for rogue in (blinded, doubled):
        with pytest.raises(Malformed, match="sent back points"):
            against_active("mutual", rogue)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("against", [against_active, against_passive])
@pytest.mark.parametrize(
    "messages",
    [
        [pb.AlignBlinded()],
        [opening(), opening()],
        [opening(), pb.AlignDoubled(points=multiples(1, 2, 3))],
        [opening(), pb.AlignCount(shared=1)],
    ],
)
def test_messages_out_of_order(mode: str, against: Callable[..., None], messages: list[ProtobufMessage]) -> None:
    with pytest.raises(OutOfOrder, match="out of order"):
        against(mode, says(*messages))


@pytest.mark.parametrize(("against", "mode"), [*((against_active, mode) for mode in MODES)])
def test_two_blinded_lists(against: Callable[..., None], mode: str) -> None:
    lists = [pb.AlignBlinded(points=multiples(*factors)) for factors in ((1, 2, 3), (4, 5, 6))]
    with pytest.raises(OutOfOrder, match="AlignBlinded out of order"):
        against(mode, says(opening(), *lists))


def test_a_count_beyond_the_lists() -> None:
    rogue = says(opening(rows=2), pb.AlignBlinded(points=multiples(1, 2)), pb.AlignCount(shared=3))
    with pytest.raises(Malformed, match="counted 3 shared IDs of 2 at most"):
        against_passive("cardinality", rogue)


def test_disjoint_lists_in_one_sided_end_on_both_sides_without_naming_an_id() -> None:
    def passive(channel: Channel) -> str:
        align_passive(channel, numbered(7, 8), contract("one-sided"))
        with pytest.raises(PeerAborted) as caught:
            channel.receive(pb.AlignOpen)
        raise caught.value

    with pytest.raises(NoOverlap) as caught:
        simulate(lambda channel: align_active(channel, IDS, contract("one-sided")), passive)
    assert not any(one.decode() in str(caught.value) for one in (*IDS, b"7", b"8"))
