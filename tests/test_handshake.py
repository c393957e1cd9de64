"""Greeting and parting over a real channel, with honest and rogue peers."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from google.protobuf.message import Message as ProtobufMessage

from fedlearn import PROTOCOL_VERSION
from fedlearn.channel import BOTH, START, Channel, Message, Table, nothing, simulate
from fedlearn.contract import Contract
from fedlearn.errors import (
    ContractMismatch,
    FedlearnError,
    JobMismatch,
    LedgerMismatch,
    Malformed,
    OutOfOrder,
    PeerUntrusted,
    Replayed,
    VersionMismatch,
)
from fedlearn.protocols import handshake
from fedlearn.v1 import session_pb2 as pb

KINDS = (pb.Hello, pb.Confirm, pb.Readiness, pb.Farewell)
NAMES = (START, *(kind.DESCRIPTOR.name for kind in KINDS))
LAWLESS = Table("session", ("active", "passive"), tuple(Message(k, BOTH, NAMES, nothing("rogue")) for k in KINDS))


def contract(**changes: object) -> Contract:
    fields: dict[str, object] = {
        "name": "test",
        "purpose": "tests of the handshake",
        "expires": "2999-01-01",
        "active": {"name": "active", "features": {"x": "number"}},
        "passive": {"name": "passive", "features": {"y": "number"}},
        "label": {"column": "default"},
        "align": {"key": {"column": "phone"}},
    }
    return Contract.model_validate(fields | changes)


@dataclass
class Side:
    """An honest side: what it greets with, and what it saw."""

    role: str
    contract: Contract
    job: str = "train"
    model_id: bytes = b""

    def __call__(self, channel: Channel) -> bytes:
        handshake.greet(channel, self.contract, role=self.role, job=self.job, model_id=self.model_id)
        handshake.part(channel)
        return channel.session


def against(rogue: Callable[[Channel], None], **settings: object) -> None:
    """An honest active side against a rogue."""
    simulate(Side("active", contract(), **settings), rogue)  # type: ignore[arg-type]


def hello(**changes: object) -> pb.Hello:
    fields = {
        "protocol": PROTOCOL_VERSION,
        "release": "0",
        "party": "passive",
        "role": "passive",
        "job": "train",
        "contract_hash": contract().hash(),
        "nonce": bytes(32),
    }
    return pb.Hello(**(fields | changes))


def says(*messages: ProtobufMessage) -> Callable[[Channel], None]:
    def rogue(channel: Channel) -> None:
        channel.open(LAWLESS, "passive")
        for message in messages:
            channel.send(message)
        channel.receive(pb.Hello)
        channel.receive(pb.Farewell)

    return rogue


def test_both_sides_derive_one_fresh_session() -> None:
    sides = Side("active", contract(), "predict", b"m" * 16), Side("passive", contract(), "predict", b"m" * 16)
    first, second = simulate(*sides), simulate(*sides)
    assert first[0] == first[1]
    assert len(first[0]) == 16
    assert first[0] != second[0]


def test_the_ledgers_agree() -> None:
    def run(role: str) -> Callable[[Channel], list[dict[str, object]]]:
        def play(channel: Channel) -> list[dict[str, object]]:
            Side(role, contract())(channel)
            return channel.ledger.lines()

        return play

    active, passive = simulate(run("active"), run("passive"))
    assert active == passive
    assert {line["message"] for line in active} == {"Hello", "Confirm", "Farewell"}


def test_readiness_is_exchanged() -> None:
    def run(role: str, rows: int, features: int) -> Callable[[Channel], tuple[int, int]]:
        def play(channel: Channel) -> tuple[int, int]:
            handshake.greet(channel, contract(), role=role, job="check")
            answer = handshake.exchange_readiness(channel, rows, features)
            handshake.part(channel)
            return answer

        return play

    assert simulate(run("active", 5, 2), run("passive", 70, 3)) == ((70, 3), (5, 2))


@pytest.mark.parametrize(
    ("other", "error", "sentence"),
    [
        (Side("passive", contract(purpose="something else")), ContractMismatch, contract().hash().hex()[:8]),
        (Side("active", contract()), JobMismatch, "the active role"),
        (Side("passive", contract(), "predict"), JobMismatch, "'predict'"),
        (Side("passive", contract(), model_id=b"\xab" * 16), JobMismatch, "model abababab"),
    ],
)
def test_sides_set_up_differently(other: Side, error: type[FedlearnError], sentence: str) -> None:
    with pytest.raises(error, match=r"the peer '(active|passive)'") as caught:
        simulate(Side("active", contract()), other)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"protocol": PROTOCOL_VERSION + 1, "contract_hash": b"", "role": "active"}, VersionMismatch),
        ({"contract_hash": b"\1" * 32, "job": "predict", "nonce": b""}, ContractMismatch),
        ({"contract_hash": b"short"}, Malformed),
        ({"party": "mallory\n"}, PeerUntrusted),
        ({"role": "bystander"}, Malformed),
        ({"job": "x" * 10_000}, JobMismatch),
        ({"nonce": bytes(31)}, Malformed),
    ],
)
def test_bad_greetings(changes: dict[str, object], error: type[FedlearnError]) -> None:
    with pytest.raises(error, match="the peer 'passive'") as caught:
        against(says(hello(**changes)))
    assert type(caught.value) is error
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_reflected_nonce() -> None:
    def rogue(channel: Channel) -> None:
        channel.open(LAWLESS, "passive")
        channel.send(hello(nonce=channel.receive(pb.Hello).nonce))
        channel.receive(pb.Confirm)

    with pytest.raises(Replayed, match="nonce"):
        against(rogue)


def test_a_greeting_of_an_earlier_session_is_of_no_use() -> None:
    """Replaying a peer's old Hello and Confirm fails: our fresh nonce gives another session id."""
    with pytest.raises(Replayed, match="another session"):
        against(says(hello(), pb.Confirm(transcript_hash=bytes(32))))


def test_another_hash_in_confirm() -> None:
    def rogue(channel: Channel) -> None:
        handshake_hash = []

        def send(message: ProtobufMessage, honest: Callable[[ProtobufMessage], None] = channel.send) -> None:
            if isinstance(message, pb.Confirm):
                handshake_hash.append(message.transcript_hash)
                message = pb.Confirm(transcript_hash=message.transcript_hash[:31] + b"\0\0")
            honest(message)

        channel.send = send  # type: ignore[method-assign]
        handshake.greet(channel, contract(), role="passive", job="train")
        handshake.part(channel)

    with pytest.raises(Malformed, match=r"session\.Confirm"):
        against(rogue)


@pytest.mark.parametrize("first", [pb.Confirm(), pb.Readiness(), pb.Farewell()])
def test_messages_before_the_greeting(first: ProtobufMessage) -> None:
    with pytest.raises(OutOfOrder, match=r"session\.Hello"):
        against(says(first))


def test_two_greetings() -> None:
    def rogue(channel: Channel) -> None:
        channel.open(LAWLESS, "passive")
        ours = hello()
        channel.send(ours)
        theirs = channel.receive(pb.Hello)
        channel.session = handshake._transcript_hash(theirs, ours)[:16]
        channel.send(ours)
        channel.receive(pb.Confirm)

    with pytest.raises(OutOfOrder, match="Hello out of order"):
        against(rogue)


def test_ledgers_that_differ() -> None:
    def rogue(channel: Channel) -> None:
        handshake.greet(channel, contract(), role="passive", job="train")
        channel.ledger.add_kl(1e-9)
        channel.send(pb.Farewell(ledger_hash=channel.ledger.digest()))
        channel.receive(pb.Farewell)

    with pytest.raises(LedgerMismatch, match="'passive'"):
        against(rogue)
