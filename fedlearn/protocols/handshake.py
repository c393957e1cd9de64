"""Handshake: how a session begins and ends.

Both roles do the same, so each step is one function for both::

    both   Hello      protocol version, release, party, role, job, contract hash, 32 random bytes, model
    both   Confirm    SHA-256 over both greetings, the active side's first
    both   Readiness  rows and features that the sender would bring; in a ``check`` only
    ...               the protocols of the job
    both   Farewell   SHA-256 over the ledger

The channel below is already encrypted and both ends hold a certificate of the name that the contract gives them. The
handshake settles what TLS cannot: that both sides hold the same contract, speak the same protocol and run the same job
with opposite roles. The first 16 bytes of the hash over both greetings become the session id that every later frame
carries; as each side put fresh random bytes into it, no frame of another session fits.

Neither side learns more of the other than what the greetings say; the contract itself is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from fedlearn import PROTOCOL_VERSION, __version__
from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract
from fedlearn.errors import (
    ContractMismatch,
    JobMismatch,
    LedgerMismatch,
    Malformed,
    PeerUntrusted,
    Replayed,
    VersionMismatch,
)
from fedlearn.v1 import session_pb2 as pb

_DOMAIN = b"fedlearn/v1/session"
_NONCE_BYTES = 32
_HASH_BYTES = 32
_SESSION_BYTES = 16

TABLE = Table(
    "session",
    ("active", "passive"),
    (
        Message(pb.Hello, BOTH, (START, "Hello"), Reveals("the sender's release, job and model id")),
        Message(pb.Confirm, BOTH, ("Hello", "Confirm"), nothing("a hash of what both have seen")),
        Message(
            pb.Readiness,
            BOTH,
            ("Confirm", "Readiness"),
            Reveals("how many rows and features the sender would bring", lambda _: 2),
        ),
        Message(pb.Farewell, BOTH, ("Confirm", "Readiness", "Farewell"), nothing("a hash of the ledger both hold")),
    ),
)


def greet(channel: Channel, contract: Contract, *, role: str, job: str, model_id: bytes = b"") -> None:
    """Begin a session: settle that both sides mean the same, and derive the session id.

    Args:
        channel: a new channel; its ``session`` is set.
        contract: this side's copy; only its hash is sent.
        role: ``active`` or ``passive``.
        job: the command that runs, for instance ``train`` or ``train --resume``.
        model_id: the saved model whose share this side holds; empty unless the job scores or goes on from one.

    Raises:
        VersionMismatch, ContractMismatch, JobMismatch: the two sides were set up differently.
        PeerUntrusted: the peer goes by another name than the contract gives it.
        Malformed, Replayed: the greeting is not one that an honest peer sends.
    """
    channel.open(TABLE, role)
    ours = pb.Hello(
        protocol=PROTOCOL_VERSION,
        release=__version__,
        party=channel.me,
        role=role,
        job=job,
        contract_hash=contract.hash(),
        nonce=os.urandom(_NONCE_BYTES),
        model_id=model_id,
    )
    channel.send(ours)
    theirs = channel.receive(pb.Hello)
    _check(channel, ours, theirs)

    transcript = _transcript_hash(*((ours, theirs) if role == "active" else (theirs, ours)))
    channel.session = transcript[:_SESSION_BYTES]
    channel.send(pb.Confirm(transcript_hash=transcript))
    if not hmac.compare_digest(channel.receive(pb.Confirm).transcript_hash, transcript):
        raise channel.misbehaved(Malformed, "confirmed other greetings than the two that were exchanged")


def exchange_readiness(channel: Channel, rows: int, features: int) -> tuple[int, int]:
    """Tell each other what a run would bring (job ``check``).

    Args:
        channel: a channel that has been greeted over.
        rows: rows that this side would bring to alignment.
        features: columns that this side would bring to training.

    Returns:
        The peer's rows and features.
    """
    channel.send(pb.Readiness(rows=rows, features=features))
    theirs = channel.receive(pb.Readiness)
    return theirs.rows, theirs.features


def part(channel: Channel) -> None:
    """End a session: compare the ledgers, as they were before this.

    Raises:
        LedgerMismatch: the peer recorded something else.
    """
    digest = channel.ledger.digest()
    channel.send(pb.Farewell(ledger_hash=digest))
    if not hmac.compare_digest(channel.receive(pb.Farewell).ledger_hash, digest):
        raise channel.misbehaved(LedgerMismatch, "recorded another ledger for this session")


def _check(channel: Channel, ours: pb.Hello, theirs: pb.Hello) -> None:
    """Hold the peer's greeting against ours, the most telling difference first."""
    peer = f"the peer {channel.peer!r}"
    if theirs.protocol != ours.protocol:
        raise VersionMismatch(f"{peer} speaks protocol version {theirs.protocol}, this side version {ours.protocol}")
    if len(theirs.contract_hash) != _HASH_BYTES:
        raise channel.misbehaved(Malformed, f"sent a contract hash of {len(theirs.contract_hash)} bytes")
    if theirs.contract_hash != ours.contract_hash:
        raise ContractMismatch(
            f"{peer} holds contract {theirs.contract_hash.hex()[:8]}, this side {ours.contract_hash.hex()[:8]}"
        )
    if theirs.party != channel.peer:
        raise PeerUntrusted(f"{peer} introduces itself as {_quoted(theirs.party)}")
    if theirs.role == ours.role:
        raise JobMismatch(f"{peer} plays the {ours.role} role, as this side does")
    if theirs.role not in TABLE.roles:
        raise channel.misbehaved(Malformed, f"plays the unknown role {_quoted(theirs.role)}")
    if theirs.job != ours.job:
        raise JobMismatch(f"{peer} runs {_quoted(theirs.job)}, this side {ours.job!r}")
    if theirs.model_id != ours.model_id:
        raise JobMismatch(
            f"{peer} holds a share of {_model(theirs.model_id)}, this side holds one of {_model(ours.model_id)}"
        )
    if len(theirs.nonce) != _NONCE_BYTES:
        raise channel.misbehaved(Malformed, f"sent a nonce of {len(theirs.nonce)} bytes where {_NONCE_BYTES} were due")
    if theirs.nonce == ours.nonce:
        raise channel.misbehaved(Replayed, "sent back the nonce of this side")


def _transcript_hash(active: pb.Hello, passive: pb.Hello) -> bytes:
    whole = hashlib.sha256(_DOMAIN)
    for hello in (active, passive):
        body = hello.SerializeToString(deterministic=True)
        whole.update(len(body).to_bytes(8, "big") + body)
    return whole.digest()


def _model(model_id: bytes) -> str:
    return f"model {model_id.hex()[:8]}" if model_id else "no model"


def _quoted(text: str) -> str:
    """Text from the peer, fit for one line of an error message."""
    return ascii(text[:40])
