"""The channel over links in memory: what an honest peer gets through, and how each dishonest one is caught."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.channel import BOTH, START, Channel, Limits, LinkClosed, Message, Reveals, Table, nothing, simulate, wire
from fedlearn.channel.channel import _has_unknown_fields_within, encode_chunk
from fedlearn.channel.faulty import Fault, FaultyLink, SlowLink, editing
from fedlearn.channel.link import Pipe
from fedlearn.channel.memory import MemoryLink, memory_links
from fedlearn.errors import (
    BadLabel,
    BeyondContract,
    Malformed,
    NoOverlap,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    PeerLost,
    PeerMisbehaved,
    PeerSilent,
    PeerTrouble,
    Replayed,
)
from fedlearn.v1 import session_pb2 as pb
from fedlearn.v1.align_pb2 import AlignBlinded, AlignCount, AlignDoubled
from fedlearn.v1.disclose_pb2 import DisclosedSplits
from fedlearn.v1.matvec_pb2 import MatvecQuery

TOY = Table(
    "toy",
    ("left", "right"),
    (
        Message(
            AlignBlinded,
            "left",
            (START, "AlignBlinded", "AlignCount"),
            Reveals("points", lambda message: len(message.points)),
        ),
        Message(AlignCount, "right", ("AlignBlinded",), Reveals("a count")),
        Message(AlignDoubled, BOTH, (START, "AlignDoubled"), nothing("encrypted")),
    ),
)
FRAME = 64
QUICK = Limits(silence=5.0, step=5.0, heartbeat=0.5, frame=FRAME, message=100_000)
HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()

Pair = Callable[..., tuple[Channel, Channel]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Makes two connected channels, ``left`` with faults on its way out; closes them in the end."""
    made: list[Channel] = []

    def make(faults: tuple[Fault, ...] = (), limits: Limits = QUICK, depth: int = 64) -> tuple[Channel, Channel]:
        here, there = memory_links(depth)
        for link, me, peer in ((FaultyLink(here, faults), "left", "right"), (there, "right", "left")):
            channel = Channel(link, me=me, peer=peer, limits=limits)
            channel.open(TOY, me)
            made.append(channel)
        return made[-2], made[-1]

    yield make
    for channel in made:
        channel.close()


@pytest.fixture
def raw() -> Iterator[Callable[..., tuple[MemoryLink, Channel]]]:
    """Makes a bare link and the channel ``right`` at its other end, which takes the link for ``left``."""
    made: list[Channel | MemoryLink] = []

    def make(limits: Limits = QUICK, depth: int = 64) -> tuple[MemoryLink, Channel]:
        here, there = memory_links(depth)
        right = Channel(there, me="right", peer="left", limits=limits)
        right.open(TOY, "right")
        made.extend((here, right))
        return here, right

    yield make
    for end in made:
        end.close()


def in_background(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def collect(what: Callable[[], object]) -> None:
    """Do it until it raises."""
    while True:
        what()


def frame(
    data: bytes, kind: str = "AlignBlinded", total: int | None = None, last: bool = True, **more: object
) -> bytes:
    total = len(data) if total is None else total
    return pb.Frame(chunk=pb.Chunk(type=kind, total=total, data=data, last=last), **more).SerializeToString()


BODY = AlignBlinded(points=b"p" * 20).SerializeToString()

# --- what honest peers do --------------------------------------------------------------------------


def test_messages_of_every_size_around_the_frame_limit_arrive_whole(pair: Pair) -> None:
    left, right = pair()
    for size in range(3 * FRAME + 10):
        sent = AlignBlinded(points=bytes(i % 251 for i in range(size)))
        left.send(sent)
        assert right.receive(AlignBlinded) == sent
    assert left.bytes_sent == right.bytes_received > 0


@given(st.binary(max_size=16), st.integers(0, 2**64 - 1), st.text(max_size=9), st.integers(0, 2**40), st.binary())
def test_frames_written_by_hand_are_protobuf(session: bytes, number: int, kind: str, total: int, data: bytes) -> None:
    header = pb.Chunk(type=kind, total=total, last=not data)
    written = pb.Frame.FromString(encode_chunk(session, number, header, memoryview(data)))
    header.data = data
    assert written == pb.Frame(session=session, sequence=number, chunk=header)


def test_frames_of_more_than_one_length_byte_are_protobuf() -> None:
    for size in (127, 128, 16_383, 16_384, 1 << 21):
        assert pb.Frame.FromString(encode_chunk(b"s", 1, pb.Chunk(), bytes(size))).chunk.data == bytes(size)


def test_both_sides_end_with_the_same_ledger_and_counters(pair: Pair) -> None:
    left, right = pair()
    for size in (0, 10, 300):
        left.send(AlignBlinded(points=bytes(size)))
        right.receive(AlignBlinded)
        right.send(AlignCount(shared=size))
        left.receive(AlignCount)
    assert left.ledger.lines() == right.ledger.lines()
    assert left.ledger.digest() == right.ledger.digest()
    points, count = left.ledger.lines()
    assert (points["sender"], points["receiver"], points["messages"], points["values"]) == ("left", "right", 3, 310)
    assert (count["sender"], count["reveals"], count["values"]) == ("right", "a count", 3)
    assert left.bytes_sent == right.bytes_received
    assert right.bytes_sent == left.bytes_received


def test_bytes_and_progress_belong_to_the_phase(pair: Pair) -> None:
    left, right = pair()
    reports = []
    right.on_progress = reports.append
    left.send(AlignBlinded(points=b"x"))
    left.send(AlignBlinded(points=b"y" * 500))
    right.receive(AlignBlinded)
    before = right.bytes_received
    with right.phase("second") as phase:
        right.receive(AlignBlinded)
        right.progress(1, 2, "messages")
    assert phase.bytes_received == right.bytes_received - before > 500
    assert (reports[0].phase, reports[0].done, reports[0].total, reports[0].unit) == ("second", 1, 2, "messages")


def test_two_large_messages_may_cross(pair: Pair) -> None:
    left, right = pair(limits=Limits(step=5.0, frame=1000, message=400_000), depth=2)
    big = AlignDoubled(points=bytes(300_000))  # far more than links and inboxes hold
    theirs: list[AlignDoubled] = []

    def other() -> None:
        right.send(big)
        theirs.append(right.receive(AlignDoubled))

    thread = in_background(other)
    left.send(big)
    assert left.receive(AlignDoubled) == big
    thread.join()
    assert theirs == [big]


def test_a_slow_network_keeps_order_and_takes_its_time() -> None:
    here, there = memory_links()
    slow = SlowLink(here, delay_seconds=0.05, bytes_per_second=20_000)
    started = time.monotonic()
    for number in range(20):
        assert slow.put(bytes([number]) * 50, timeout=1.0)
    assert [there.get()[0] for _ in range(20)] == list(range(20))
    assert time.monotonic() - started >= 0.05 + 20 * 50 / 20_000
    slow.put(b"the last", timeout=1.0)
    slow.close()
    assert there.get() == b"the last"
    with pytest.raises(LinkClosed):
        slow.put(b"too late", timeout=1.0)


# --- back-pressure ---------------------------------------------------------------------------------


def test_a_peer_that_does_not_receive_stops_the_sender(pair: Pair) -> None:
    left, _ = pair(limits=Limits(step=0.4, heartbeat=0.05, frame=FRAME), depth=4)
    sent = 0

    def send_on() -> None:
        nonlocal sent
        while sent < 1000:
            left.send(AlignBlinded(points=b"x"))
            sent += 1

    with pytest.raises(PeerSilent, match=r"'right' did not finish step toy\.AlignBlinded"):
        send_on()
    assert sent < 40


def test_what_is_read_ahead_while_sending_is_bounded(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw(Limits(silence=0.5, step=1.0, frame=FRAME, message=10_000), depth=4)

    def flood_back() -> None:
        with pytest.raises(PeerSilent):
            right.send(AlignDoubled(points=bytes(9_000)))

    thread = in_background(flood_back)
    taken = 0
    while link.put(frame(bytes(FRAME)), timeout=0.3):
        taken += 1
        assert taken < 500
    thread.join()


def test_pieces_of_a_byte_take_no_more_memory_than_their_bytes(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw(Limits(step=60.0, frame=FRAME, message=100_000))
    sent = AlignBlinded(points=bytes(i % 251 for i in range(10_000)))
    body = sent.SerializeToString()

    def dribble() -> None:
        for number in range(len(body)):
            header = pb.Chunk(last=number == len(body) - 1)
            if number == 0:
                header.type, header.total = "AlignBlinded", len(body)
            link.put(encode_chunk(b"", number, header, body[number : number + 1]), timeout=60)

    tracemalloc.start()
    try:
        thread = in_background(dribble)
        assert right.receive(AlignBlinded) == sent
        thread.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(body)  # what the link holds, mostly; kept apart, pieces would take 378 bytes for each


def test_an_own_message_over_the_limit_is_not_sent(pair: Pair) -> None:
    left, _ = pair()
    with pytest.raises(OverBudget, match="AlignBlinded of 100004 bytes"):
        left.send(AlignBlinded(points=bytes(100_000)))
    assert left.bytes_sent == 0


def test_pipe_closed_by_either_end() -> None:
    pipe = Pipe(1)
    assert pipe.put(b"1", timeout=0)
    assert not pipe.put(b"2", timeout=0.01)
    pipe.close("first reason")
    pipe.close("second reason")
    with pytest.raises(LinkClosed, match="first reason"):
        pipe.put(b"3", timeout=0)
    assert pipe.get() == b"1"
    with pytest.raises(LinkClosed, match="first reason"):
        pipe.get()


# --- order -----------------------------------------------------------------------------------------


def test_own_message_out_of_turn_never_leaves(pair: Pair) -> None:
    left, right = pair()
    with pytest.raises(ValueError, match="sent by the right"):
        left.send(AlignCount())
    with pytest.raises(ValueError, match="may follow"):
        right.send(AlignCount())
    with pytest.raises(ValueError, match="no open protocol"):
        left.send(pb.Farewell())
    assert left.bytes_sent == right.bytes_sent == 0


@pytest.mark.parametrize(("first", "second"), [("AlignCount", None), ("AlignBlinded", "AlignDoubled")])
def test_messages_out_of_order_are_refused(
    raw: Callable[..., tuple[MemoryLink, Channel]], first: str, second: str | None
) -> None:
    link, right = raw()
    link.put(frame(b"", first), timeout=1)
    if second:
        right.receive(AlignBlinded)
        link.put(frame(b"", second, sequence=1), timeout=1)
    with pytest.raises(OutOfOrder, match=r"the peer 'left' sent .* out of order.* at step toy\.") as caught:
        right.receive(AlignBlinded, AlignDoubled)
    assert caught.value.exit_code == OutOfOrder.exit_code


# --- faults ----------------------------------------------------------------------------------------


def with_unknown_field(kind: type[pb.Frame] | type[AlignBlinded]) -> Callable[[bytes], bytes]:
    """Appends field 15 with value 1 to the frame, or to the message in it."""
    if kind is pb.Frame:
        return lambda raw: raw + b"\x78\x01"
    return editing(AlignBlinded, lambda message: message.MergeFromString(b"\x78\x01"))


def changed(change: Callable[[pb.Frame], object]) -> Callable[[bytes], bytes]:
    def edit(raw: bytes) -> bytes:
        parsed = pb.Frame.FromString(raw)
        change(parsed)
        return parsed.SerializeToString()

    return edit


FAULTS = {
    "drop": (Fault(1, "drop"), Replayed, "frame 2 where frame 1 was due"),
    "duplicate": (Fault(1, "duplicate"), Replayed, "frame 1 where frame 2 was due"),
    "reorder": (Fault(1, "reorder"), Replayed, "frame 2 where frame 1 was due"),
    "skipped numbers": (Fault(1, "replace", edit=changed(lambda f: setattr(f, "sequence", 9))), Replayed, "frame 9"),
    "another session": (Fault(1, "replace", edit=changed(lambda f: setattr(f, "session", b"x"))), Replayed, "session"),
    "corrupt": (Fault(1, "corrupt", where=0), Malformed, "not a frame|unknown"),
    "truncate": (Fault(1, "truncate", where=-1), Malformed, "not a frame"),
    "nothing": (Fault(1, "truncate", where=0), Malformed, "content"),
    "oversized": (
        Fault("AlignBlinded", "replace", edit=changed(lambda f: setattr(f.chunk, "total", 1 << 40))),
        BeyondContract,
        "1099511627776 bytes, over the 100000",
    ),
    "longer than announced": (
        Fault(0, "replace", edit=changed(lambda f: setattr(f.chunk, "total", 5))),
        Malformed,
        "pieces",
    ),
    "ends early": (Fault(0, "replace", edit=changed(lambda f: setattr(f.chunk, "last", True))), Malformed, "pieces"),
    "empty piece": (
        Fault(1, "replace", edit=changed(lambda f: setattr(f.chunk, "data", b""))),
        Malformed,
        "no content",
    ),
    "begins again": (Fault(1, "replace", edit=changed(lambda f: setattr(f.chunk, "type", "A"))), Malformed, "began"),
    "unknown type": (
        Fault(0, "replace", edit=changed(lambda f: setattr(f.chunk, "type", "Evil"))),
        Malformed,
        "unknown type",
    ),
    "not the message": (
        Fault(0, "replace", edit=changed(lambda f: setattr(f.chunk, "data", b"\xff" * FRAME))),
        Malformed,
        "not a AlignBlinded",
    ),
    "unknown field in frame": (Fault(0, "replace", edit=with_unknown_field(pb.Frame)), Malformed, "fields"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_caught_and_the_error_names_peer_and_step(pair: Pair, name: str) -> None:
    fault, kind, words = FAULTS[name]
    left, right = pair((fault,))
    left.send(AlignBlinded(points=bytes(3 * FRAME)))
    with pytest.raises(kind, match=words) as caught:
        right.receive(AlignBlinded)
    assert type(caught.value) is kind
    assert "the peer 'left'" in str(caught.value)
    assert "step" in str(caught.value)


def test_unknown_fields_of_a_message_are_refused(pair: Pair) -> None:
    left, right = pair((Fault("AlignBlinded", "replace", edit=with_unknown_field(AlignBlinded)),))
    left.send(AlignBlinded(points=b"x"))
    with pytest.raises(Malformed, match=r"sent a AlignBlinded with fields .* at step toy\.AlignBlinded"):
        right.receive(AlignBlinded)


def test_unknown_fields_are_found_in_parts_of_a_message() -> None:
    message = DisclosedSplits()
    message.features.add(name="x", edges=[1.0])
    message.splits.add(feature=0, left=b"\x01")
    assert not _has_unknown_fields_within(message)
    for part in (message.features[0], message.splits[0]):
        spoilt = DisclosedSplits.FromString(message.SerializeToString())
        place = spoilt.features if part is message.features[0] else spoilt.splits
        place[0].MergeFromString(b"\x78\x01")
        assert _has_unknown_fields_within(DisclosedSplits.FromString(spoilt.SerializeToString()))


def test_a_replayed_message_is_refused(pair: Pair) -> None:
    left, right = pair((Fault(0, "duplicate"),))
    left.send(AlignBlinded(points=b"x"))
    right.receive(AlignBlinded)
    with pytest.raises(Replayed):
        right.receive(AlignBlinded)


def test_a_killed_peer_is_lost_on_both_paths(pair: Pair) -> None:
    left, right = pair((Fault(1, "close"),))
    with pytest.raises(PeerLost):
        left.send(AlignBlinded(points=bytes(3 * FRAME)))
    with pytest.raises(PeerLost, match=r"'left' broke at step toy\.AlignBlinded"):
        right.receive(AlignBlinded)
    with pytest.raises(PeerLost):
        right.send(AlignDoubled())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arbitrary_frames_raise_peer_errors_and_nothing_else(data: st.DataObject) -> None:
    chunk = st.builds(
        pb.Chunk,
        type=st.sampled_from(["", "AlignBlinded", "AlignCount", "Nonsense"]),
        total=st.integers(0, 2**64 - 1) | st.integers(0, 8),
        data=st.binary(max_size=8) | st.just(BODY),
        last=st.booleans(),
    )
    built = st.builds(pb.Frame, session=st.sampled_from([b"", b"s"]), sequence=st.integers(0, 3), chunk=chunk)
    abort = st.builds(pb.Abort, exit_code=st.integers(0, 2**32 - 1), step=st.text(max_size=200))
    other = st.builds(pb.Frame, abort=abort) | st.builds(pb.Frame, heartbeat=st.builds(pb.Heartbeat))
    valid = st.integers(0, 2).map(lambda n: frame(BODY, sequence=n))
    frames = data.draw(
        st.lists(st.binary(max_size=60) | valid | (built | other).map(lambda f: f.SerializeToString()), max_size=6)
    )
    here, there = memory_links()
    right = Channel(there, me="right", peer="left", limits=QUICK)
    right.open(TOY, "right")
    for raw_frame in frames:
        here.put(raw_frame, timeout=0)
    here.close()
    with pytest.raises((PeerMisbehaved, PeerTrouble)) as caught:
        collect(lambda: right.receive(AlignBlinded))
    right.close()
    assert "'left'" in str(caught.value)
    assert str(caught.value).isprintable()


# --- ending ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"), [(NoOverlap("row 17 is private"), 28), (KeyError("x"), 1), (KeyboardInterrupt(), 130)]
)
def test_abort_tells_exit_code_and_step_but_not_the_text(pair: Pair, error: BaseException, code: int) -> None:
    left, right = pair()
    left.send(AlignBlinded(points=b"x"))
    left.abort(error)
    right.receive(AlignBlinded)  # what was sent before still arrives
    for _ in range(2):  # and who asks again hears the same
        with pytest.raises(PeerAborted, match=rf"'left' .* step toy\.AlignBlinded with exit code {code} ") as caught:
            right.receive(AlignBlinded)
    assert "private" not in str(caught.value)


def test_a_sender_hears_of_the_abort_too(pair: Pair) -> None:
    left, right = pair()
    right.abort(BadLabel("x"))
    with pytest.raises(PeerAborted, match="exit code 24"):
        collect(lambda: left.send(AlignBlinded(points=b"x")))


def test_the_step_in_an_abort_is_cleaned(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw()
    link.put(pb.Frame(abort=pb.Abort(exit_code=7, step="a\n\x1b[31mb" + "c" * 500)).SerializeToString(), timeout=1)
    with pytest.raises(PeerAborted, match=r"at its step a31mbc{90,95} with exit code 7 \(Unknown reason\)$"):
        right.receive(AlignBlinded)


def test_simulate_raises_what_went_wrong_first() -> None:
    def left(channel: Channel) -> None:
        channel.open(TOY, "left")
        channel.send(AlignBlinded())
        channel.receive(AlignCount)

    def right(channel: Channel) -> None:
        channel.open(TOY, "right")
        channel.receive(AlignBlinded)
        raise BadLabel("the label is constant")

    with pytest.raises(BadLabel, match="constant"):
        simulate(left, right, limits=QUICK)


def test_close_leaves_no_thread(pair: Pair) -> None:
    left, right = pair()
    left.send(AlignBlinded())
    right.receive(AlignBlinded)
    for channel in (left, right):
        channel.close()
        channel.close()
    names = {thread.name for thread in threading.enumerate()}
    assert names.isdisjoint({"left-reader", "left-heartbeat", "right-reader", "right-heartbeat"})


def test_close_ends_a_reader_whose_messages_nobody_wants(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw()
    while link.put(frame(b""), timeout=0.2):
        pass
    right.close()
    assert "right-reader" not in {thread.name for thread in threading.enumerate()}


# --- liveness --------------------------------------------------------------------------------------

SHORT = Limits(silence=0.4, step=60.0, heartbeat=0.05, frame=FRAME, message=100_000)


@pytest.mark.parametrize("fault", ["stall", "drop"])
def test_a_silent_peer_is_noticed(pair: Pair, fault: str) -> None:
    limits = SHORT if fault == "stall" else Limits(silence=60, step=0.4, heartbeat=0.05, frame=FRAME)
    left, right = pair((Fault(0, fault),), limits)  # type: ignore[arg-type]
    left.send(AlignBlinded())
    words = "has sent nothing for" if fault == "stall" else "did not finish step"
    with pytest.raises(PeerSilent, match=rf"'left' {words} .*toy\.AlignBlinded|did not finish step toy"):
        right.receive(AlignBlinded)


def test_heartbeats_keep_a_slow_step_alive(pair: Pair) -> None:
    left, right = pair(limits=SHORT)

    def slowly() -> None:
        time.sleep(3 * SHORT.silence)
        left.send(AlignBlinded(points=b"done"))

    in_background(slowly)
    assert right.receive(AlignBlinded).points == b"done"


def test_own_slowness_is_not_the_peers_silence(pair: Pair) -> None:
    left, right = pair(limits=SHORT, depth=2)
    sender = in_background(lambda: [left.send(AlignBlinded(points=bytes(FRAME * 40))) for _ in range(2)])
    time.sleep(3 * SHORT.silence)  # the right side computes; its inbox is full, so it hears no heartbeat
    for _ in range(2):
        assert len(right.receive(AlignBlinded).points) == FRAME * 40
    sender.join()


def test_a_peer_that_dribbles_has_a_deadline(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw(Limits(step=0.4, frame=FRAME))
    stop = threading.Event()

    def dribble() -> None:
        link.put(frame(b"x", total=1000, last=False), timeout=1)
        for number in range(1, 900):
            if stop.wait(0.005):
                return
            link.put(pb.Frame(sequence=number, chunk=pb.Chunk(data=b"x")).SerializeToString(), timeout=1)

    thread = in_background(dribble)
    with pytest.raises(PeerSilent, match="did not finish"):
        right.receive(AlignBlinded)
    stop.set()
    thread.join()


def test_heartbeats_alone_are_not_an_answer(raw: Callable[..., tuple[MemoryLink, Channel]]) -> None:
    link, right = raw(Limits(silence=60, step=0.3, frame=FRAME))
    link.put(HEARTBEAT, timeout=1)
    with pytest.raises(PeerSilent, match="did not finish"):
        right.receive(AlignBlinded)


# --- large fields, written and read without a copy ------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_a_large_field_is_protobuf(count: int, first: int, words: bytes) -> None:
    """Written by hand it reads as protobuf, written by protobuf it reads by hand; other fields stay."""
    head = MatvecQuery(count=count, first=first)
    whole = MatvecQuery(count=count, first=first, ciphertext=words)
    field = MatvecQuery.CIPHERTEXT_FIELD_NUMBER
    assert MatvecQuery.FromString(head.SerializeToString() + wire.prefix(field, len(words)) + words) == whole
    for raw in (whole.SerializeToString(), wire.prefix(field, len(words)) + words + head.SerializeToString()):
        rest, part = wire.split(memoryview(raw), field)
        assert MatvecQuery.FromString(rest) == head
        assert bytes(part) == words


@given(st.binary(max_size=40))
def test_any_bytes_split_or_are_refused(raw: bytes) -> None:
    """What splits has lost nothing: protobuf reads the same, if it reads it at all."""
    try:
        rest, part = wire.split(memoryview(raw), 3)
    except ValueError:
        return
    try:
        whole = MatvecQuery.FromString(raw)
    except DecodeError:
        return
    again = MatvecQuery.FromString(rest)
    again.ciphertext = bytes(part)
    assert (again.count, again.first, again.ciphertext) == (whole.count, whole.first, whole.ciphertext)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x1a\x05abcd",
        b"\x1a\x01a\x1a\x01b",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x1b",
        b"\x08\1" * 65,
    ],
    ids=["too short", "twice", "endless number", "a group", "too many fields"],
)
def test_a_message_that_does_not_split(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        wire.split(memoryview(raw), 3)


def test_a_large_field_arrives_whole_and_alone(pair: Pair) -> None:
    """In one frame or in several, from any buffer; the next message has none."""
    table = Table(
        "matvec", ("a", "b"), (Message(MatvecQuery, BOTH, (START, "MatvecQuery"), nothing(""), "ciphertext"),)
    )
    left, right = pair()
    left.open(table, "a")
    right.open(table, "b")
    for size in (0, 1, 127, 128, FRAME - 30, FRAME, 3 * FRAME + 1):
        words = bytes(i % 251 for i in range(size))
        left.send(MatvecQuery(count=7, first=size), memoryview(words))
        assert right.receive(MatvecQuery) == MatvecQuery(count=7, first=size)
        assert bytes(right.bulk) == words
        assert right.bulk.readonly
    left.send(MatvecQuery(count=1))
    right.receive(MatvecQuery)
    assert not len(right.bulk)
    assert left.ledger.digest() == right.ledger.digest()
