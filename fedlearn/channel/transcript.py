"""Message tables: who may send what, when, and what it reveals. They drive the order check and the ledger.

Every protocol file declares one :class:`Table`. The channel holds each message it sends or receives against
the table (so both roles are checked by the same data), and enters it into the :class:`Ledger`. Both sides see the
same messages, so both sides end with the same ledger; they compare its hash when they part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message as ProtobufMessage

#: What ``Message.follows`` names for "nothing was said in this protocol yet".
START = "start"

#: ``Message.sender`` when either role may send.
BOTH = "both"


def _one(_: Any) -> int:
    return 1


@dataclass(frozen=True)
class Reveals:
    """What the receiver learns from a message beyond its existence.

    ``what`` is a phrase for the ledger; ``values`` counts how many such values one message holds.
    """

    what: str
    values: Callable[[Any], int] = _one


def nothing(why: str) -> Reveals:
    """The receiver learns nothing, for the reason given."""
    return Reveals(f"nothing ({why})", lambda _: 0)


@dataclass(frozen=True)
class Message:
    """One row of a table: a message type, the role that sends it, what it may follow, what it reveals.

    ``bulk`` names a ``bytes`` field that is too large to be copied: it is sent from a buffer and received as a view.
    """

    type: type[ProtobufMessage]
    sender: str
    follows: tuple[str, ...]
    reveals: Reveals
    bulk: str = ""

    @property
    def name(self) -> str:
        """The message's name, for instance ``MatvecQuery``."""
        return str(self.type.DESCRIPTOR.name)

    @property
    def bulk_field(self) -> int:
        """Number of the large field; 0 without one."""
        return int(self.type.DESCRIPTOR.fields_by_name[self.bulk].number) if self.bulk else 0


@dataclass(frozen=True)
class Table:
    """The messages of one protocol between two roles, in order."""

    protocol: str
    roles: tuple[str, str]
    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        names = {m.name for m in self.messages} | {START}
        for message in self.messages:
            if message.sender not in (*self.roles, BOTH) or not names.issuperset(message.follows):
                raise ValueError(f"table {self.protocol}: entry {message.name} names an unknown role or message")

    def entry(self, kind: type[ProtobufMessage]) -> Message:
        """The row of a message type. Raises KeyError where it has none."""
        return {message.type: message for message in self.messages}[kind]


@dataclass
class Transcript:
    """Where one protocol of a session stands. Both sides walk the same table.

    Attributes:
        table: the protocol's messages.
        role: the role that this side plays in it.
        last: name of the last message sent or received.
    """

    table: Table
    role: str
    last: str = START

    @property
    def peer_role(self) -> str:
        """The other role."""
        return self.table.roles[1] if self.role == self.table.roles[0] else self.table.roles[0]

    def advance(self, kind: type[ProtobufMessage], sent: bool) -> Message:
        """Hold a message against the table and take the step.

        Args:
            kind: the message's type.
            sent: whether this side sends it.

        Raises:
            OutOfTurn: the table does not allow this message here.
        """
        sender = self.role if sent else self.peer_role
        for message in self.table.messages:
            if message.type is kind:
                if message.sender not in (sender, BOTH):
                    raise OutOfTurn(f"{message.name} is sent by the {message.sender}, not by the {sender}")
                if self.last not in message.follows:
                    raise OutOfTurn(f"{message.name} may follow {' or '.join(message.follows)}, not {self.last}")
                self.last = message.name
                return message
        raise OutOfTurn(f"{kind.DESCRIPTOR.name} is not a message of {self.table.protocol}")


class OutOfTurn(Exception):
    """A message that its table does not allow at this step; the channel says whose fault that is."""


@dataclass
class Entry:
    """One line of the ledger: all messages of one type from one party in a session."""

    protocol: str
    message: str
    sender: str
    receiver: str
    reveals: str
    messages: int = 0
    bytes: int = 0
    values: int = 0


@dataclass
class Ledger:
    """Who learned what in a session: identical on both sides.

    Attributes:
        entries: one per (protocol, message, sender), in order of first occurrence.
        kl_nats: bound on what all noisy responses together leak, Kullback-Leibler, in nats.
        rho: zCDP cost of all sums that were given with noise for differential privacy; 0 without such noise.
    """

    entries: dict[tuple[str, str, str], Entry] = field(default_factory=dict)
    kl_nats: float = 0.0
    rho: float = 0.0

    def record(self, protocol: str, message: Message, body: Any, size: int, sender: str, receiver: str) -> None:
        """Enter one message of ``size`` bytes."""
        key = (protocol, message.name, sender)
        entry = self.entries.get(key)
        if entry is None:
            entry = Entry(protocol, message.name, sender, receiver, message.reveals.what)
            self.entries[key] = entry
        entry.messages += 1
        entry.bytes += size
        entry.values += message.reveals.values(body)

    def add_kl(self, nats: float) -> None:
        """Add the leakage bound of further noisy responses; it adds up however adaptively they were chosen."""
        self.kl_nats += nats

    def add_rho(self, rho: float) -> None:
        """Add the privacy cost of further sums; zero-concentrated differential privacy adds up."""
        self.rho += rho

    def heard(self, sender: str) -> int:
        """How many messages a party has sent."""
        return sum(entry.messages for entry in self.entries.values() if entry.sender == sender)

    def copy(self) -> Ledger:
        """The ledger as it stands."""
        return Ledger({key: replace(entry) for key, entry in self.entries.items()}, self.kl_nats, self.rho)

    def take_over(self, earlier: Ledger) -> None:
        """Go on from an earlier session's ledger: add its entries and its leakage to this one's."""
        for key, entry in earlier.entries.items():
            own = self.entries.setdefault(key, replace(entry, messages=0, bytes=0, values=0))
            own.messages += entry.messages
            own.bytes += entry.bytes
            own.values += entry.values
        self.kl_nats += earlier.kl_nats
        self.rho += earlier.rho

    def lines(self) -> list[dict[str, Any]]:
        """The entries as plain dictionaries, sorted so that both sides list them alike."""
        return [vars(self.entries[key]).copy() for key in sorted(self.entries)]

    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON of the ledger, for the comparison when parting."""
        content = [self.lines(), f"{self.kl_nats:.6e}", f"{self.rho:.6e}"]
        body = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).digest()
