"""Messages between the two parties: one :class:`Channel` over interchangeable links.

``link`` is what carries frames (in memory, gRPC, faulty); ``channel`` is what makes messages of them and checks
them; ``transcript`` holds the message tables that say who may send what when, and what it reveals.
"""

from fedlearn.channel.channel import Channel, Limits
from fedlearn.channel.link import Link, LinkClosed
from fedlearn.channel.memory import simulate
from fedlearn.channel.transcript import BOTH, START, Ledger, Message, Reveals, Table, nothing

__all__ = [
    "BOTH",
    "START",
    "Channel",
    "Ledger",
    "Limits",
    "Link",
    "LinkClosed",
    "Message",
    "Reveals",
    "Table",
    "nothing",
    "simulate",
]
