"""A party that is honest but for one thing: ``python -m tests.rogue MISDEED train --party party.toml ...``.

It is the real program, with its own valid certificate and an honest handshake; one frame that it sends is spoilt on its
way out. ``unchecked`` spoils nothing, but skips the party's check of its own certificate.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fedlearn import jobs
from fedlearn.channel import grpc_link
from fedlearn.channel.faulty import Fault, FaultyLink, editing
from fedlearn.cli.main import main
from fedlearn.crypto import ristretto
from fedlearn.v1 import align_pb2, boost_pb2, matvec_pb2, transfer_pb2
from fedlearn.v1 import session_pb2 as pb

POINT = ristretto.POINT_BYTES


def spoil(kind: Any, **fields: Any) -> Fault:
    """Other values in one message; a callable is given the old value."""

    def change(message: Any) -> None:
        for name, value in fields.items():
            new = value(getattr(message, name)) if callable(value) else value
            if isinstance(new, list):
                del getattr(message, name)[:]
                getattr(message, name).extend(new)
            else:
                setattr(message, name, new)

    return Fault(str(kind.DESCRIPTOR.name), "replace", edit=editing(kind, change))


def frame(**fields: Any) -> Any:
    """An ``edit`` of the frame itself; a callable is given the old chunk."""

    def edit(raw: bytes) -> bytes:
        whole = pb.Frame.FromString(raw)
        for name, value in fields.items():
            if callable(value):
                value(whole.chunk)
            else:
                setattr(whole, name, value)
        return whole.SerializeToString()

    return edit


def another_type(chunk: pb.Chunk) -> None:
    """The pieces of a well-formed message that is not due."""
    chunk.type, chunk.data = "AlignDoubled", align_pb2.AlignDoubled(points=bytes(POINT)).SerializeToString()
    chunk.total = len(chunk.data)


def garbage(chunk: pb.Chunk) -> None:
    chunk.data = os.urandom(len(chunk.data))


MISDEEDS = {
    "unchecked": [],
    "silent from the start": [Fault(0, "stall")],
    "silent in alignment": [Fault("AlignBlinded", "stall")],
    "waits for ever": [Fault("AlignDoubled", "drop")],
    "another name": [spoil(pb.Hello, party="somebody-else")],
    "random bytes": [Fault("AlignOpen", "replace", edit=lambda _: os.urandom(300))],
    "random message": [Fault("AlignBlinded", "replace", edit=frame(chunk=garbage))],
    "replayed frame": [Fault("AlignOpen", "duplicate")],
    "another session": [Fault("AlignOpen", "replace", edit=frame(session=bytes(16)))],
    "out of order": [Fault("AlignOpen", "replace", edit=frame(chunk=another_type))],
    "a point too few": [spoil(align_pb2.AlignBlinded, points=lambda old: old[POINT:])],
    "not a point": [spoil(align_pb2.AlignBlinded, points=lambda old: b"\xff" * POINT + old[POINT:])],
    "too many rows": [spoil(align_pb2.AlignOpen, rows=10**9)],
    "too many vectors": [spoil(matvec_pb2.MatvecQuery, count=10**6)],
    "short query": [spoil(matvec_pb2.MatvecQuery, ciphertext=lambda old: old[:-1])],
    "too many splits": [spoil(boost_pb2.BoostSplits, feature=[0] * 500, left=[b"\1"] * 500, trees=[500])],
    "short sides": [spoil(boost_pb2.BoostSides, bits=lambda old: [row[:-1] for row in old])],
    "short transfers": [spoil(transfer_pb2.TransferBits, bits=lambda old: old[:-1])],
    "another ledger": [spoil(pb.Farewell, ledger_hash=bytes(32))],
}


def misbehave(name: str) -> None:
    """Spoil whatever link this process opens; go ahead with whatever certificate it has."""

    def spoilt(connect: Any) -> Any:
        return lambda *arguments: FaultyLink(connect(*arguments), MISDEEDS[name])

    grpc_link.listen, grpc_link.dial = spoilt(grpc_link.listen), spoilt(grpc_link.dial)  # type: ignore[assignment]
    if name == "unchecked":
        jobs.check_own = grpc_link.check_own = lambda *_: None  # type: ignore[assignment, return-value]


if __name__ == "__main__":
    misbehave(sys.argv[1])
    main(sys.argv[2:])
