"""Oblivious transfer: for every row the receiver obtains one of s bits of the sender, and the sender cannot tell which.

One set-up serves all the calls of a session; s may differ from call to call.

    receiver                                              sender
      1.                                         ◄──      TransferBlinded   255 points that hide the sender's Δ
         TransferRaised    each to its own key   ──►      both derive seeds: the receiver pairs, the sender one of each
      for each call, in batches of rows:
      2. TransferColumns   masked code words     ──►
      3. takes its bits                          ◄──      TransferBits      s bits for every row, each under its own pad

All of 2 but the code words can be made before the choices are known, while the receiver waits for something else.

The receiver learns the chosen bits and no others; where a call has a *blank* option, a row that chooses it gets no bit
at all. The sender learns the number of rows and options, which both knew before, and how many options were prepared
for. A row costs 16 bytes up for 2 options, 24 for up to 4, then 28, 30, 31 and at most 32, and s/8 bytes down.

Both sides must be semi-honest: a receiver that sends rows which are not code words could find Δ, and with it every bit
of every row (see :mod:`fedlearn.crypto.ot`). The number of rows is bounded by the caller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table, nothing
from fedlearn.crypto import ot, ristretto
from fedlearn.errors import BeyondContract, InvalidPoint, Malformed, OverBudget, WrongLength
from fedlearn.v1 import transfer_pb2 as pb

U8 = NDArray[np.uint8]

TABLE = Table(
    "transfer",
    ("receiver", "sender"),
    (
        Message(
            pb.TransferBlinded,
            "sender",
            (START,),
            nothing("uniform points, whatever they hide"),
        ),
        Message(
            pb.TransferRaised,
            "receiver",
            ("TransferBlinded",),
            nothing("Diffie-Hellman values that give one of two random seeds each"),
        ),
        Message(
            pb.TransferColumns,
            "receiver",
            ("TransferRaised", "TransferColumns", "TransferBits"),
            Reveals(
                "how many rows choose, among how many options at most, and among how many now; the choices are masked",
                lambda _: 3,
            ),
            bulk="columns",
        ),
        Message(
            pb.TransferBits,
            "sender",
            ("TransferColumns", "TransferBits"),
            Reveals("for each row, at most the one bit that it chose", lambda m: m.rows),
            bulk="bits",
        ),
    ),
)

#: Rows of one batch, a multiple of 8: one side masks the next while the other answers the last.
_ROWS = 1 << 16

# Rows that are prepared for at most: some 100 bytes of memory each.
_PREPARED = 1 << 20

# Rows on their way at most, before their bits are taken: up to 32 bytes each way.
_AWAITED = 1 << 20


# --- receiver ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """A batch on its way: what opens the answer, and the call's bits so far, which it will join."""

    choices: U8
    options: int
    pads: U8
    into: list[U8]


@dataclass
class Receiver:
    """The receiver's end, ready for calls.

    Attributes:
        channel: to the sender.
        allowed: how many rows may choose in the session.
        asked: how many have.
    """

    channel: Channel
    allowed: int
    _end: ot.Receiver = field(repr=False)
    asked: int = 0

    def choose(self, choices: U8, options: int, *, blank: bool = False) -> U8:
        """One call; see :meth:`choose_all`."""
        return self.choose_all([(choices, options)], blank=blank)[0]

    def choose_all(self, calls: list[tuple[U8, int]], *, blank: bool = False) -> list[U8]:
        """Calls that the sender serves one after another: sent before the first answer is awaited, unless too many.

        The answers must find room at this end while it sends: with too many batches on their way the sender would wait
        to answer and this side to send, for ever. From then on the oldest answer is taken before a batch is sent.

        Args:
            calls: for each, choices uint8 (n,), below the number of options, or equal to it for no bit, if ``blank``;
                and that number: how many bits the sender has for each row, 1 to 256, with the blank one 2 to 256.
            blank: whether the calls have a blank option. It must not depend on the choices: the sender sees it.

        Returns:
            For each call uint8 (⌈n/8⌉,), one bit for each row in little-endian bit order; 0 for blank.

        Raises:
            ValueError: a choice or the number of options is out of range; nothing was sent.
            OverBudget: more rows than allowed; nothing was sent.
            WrongLength: the sender's answer does not fit.
        """
        for choices, options in calls:
            if choices.dtype != np.uint8 or (len(choices) and int(choices.max()) >= options + blank):
                raise ValueError(f"choices are bytes, one of {options} options each")
            ot.Code.of(options + blank)  # raises where there is none
        rows = self.asked + sum(len(choices) for choices, _ in calls)
        if rows > self.allowed:
            raise OverBudget(f"oblivious transfers for {rows} rows are over the {self.allowed} of the session")
        self.asked = rows
        found = [[np.empty(0, np.uint8)] for _ in calls]
        sent = deque[_Sent]()
        for into, (choices, options) in zip(found, calls, strict=True):
            for first in range(0, len(choices), _ROWS):
                batch = choices[first : first + _ROWS]
                while self._too_many(sent, len(batch)):
                    self._open(sent.popleft())
                sent.append(self._ask(batch, options, blank, into))
        while sent:
            self._open(sent.popleft())
        return [np.concatenate(parts) for parts in found]

    def prepare(self, rows: int, options: int, *, blank: bool = False) -> None:
        """Make ready, while there is nothing better to do, what the next call needs whatever its rows choose.

        Args:
            rows: of the next call, which must have as many.
            options, blank: as for :meth:`choose_all`, as many as it may have. The sender sees this bound.
        """
        if not self._end.prepared and self.asked + rows <= self.allowed:
            for first in range(0, min(rows, _PREPARED), _ROWS):
                self._end.prepare(min(_ROWS, rows - first), options + blank)

    def _too_many(self, sent: deque[_Sent], rows: int) -> bool:
        """Whether an answer must be taken before ``rows`` more are sent."""
        awaited = sum(len(batch.choices) for batch in sent)
        return 2 * len(sent) >= self.channel.limits.ahead or (awaited > 0 and awaited + rows > _AWAITED)

    def _ask(self, choices: U8, options: int, blank: bool, into: list[U8]) -> _Sent:
        words, masked, pads = self._end.extend(choices, options + blank)
        self.channel.send(pb.TransferColumns(rows=len(choices), options=options, blank=blank, words=words), masked)
        return _Sent(choices, options, pads, into)

    def _open(self, sent: _Sent) -> None:
        """Wait for the answer to the oldest batch that has none."""
        answer = self.channel.receive(pb.TransferBits)
        rows, bits, due = len(sent.choices), self.channel.bulk, sent.options * len(sent.pads)
        if answer.rows != rows or len(bits) != due:
            raise self.channel.misbehaved(
                WrongLength, f"answered {answer.rows} rows in {len(bits)} bytes where {rows} in {due} were due"
            )
        sent.into.append(ot.open_bits(bits, sent.pads, sent.choices, sent.options))


def open_receiver(channel: Channel, allowed: int) -> Receiver:
    """Step 1 as the receiver.

    Args:
        channel: a channel that has been greeted over.
        allowed: how many rows may choose in the session, all calls together.

    Raises:
        WrongLength, InvalidPoint: the sender's points are not what is due.
    """
    channel.open(TABLE, "receiver")
    blinded = channel.receive(pb.TransferBlinded).points
    _check_points(channel, blinded)
    raised, tag, seeds = ot.offer(channel.session, blinded)
    channel.send(pb.TransferRaised(points=raised))
    return Receiver(channel, allowed, ot.Receiver(tag, seeds))


# --- sender ------------------------------------------------------------------------------------------


@dataclass
class Sender:
    """The sender's end, ready for calls.

    Attributes:
        channel: to the receiver.
        allowed: how many rows may choose in the session.
        served: how many have.
    """

    channel: Channel
    allowed: int
    _end: ot.Sender = field(repr=False)
    served: int = 0

    def serve(self, bits: U8, rows: int, *, blank: bool = False) -> None:
        """One call, all its batches.

        Args:
            bits: uint8 (s, ⌈rows/8⌉), one bit for each row of each option, in little-endian bit order.
            rows: n, which both sides know from the calling protocol.
            blank: whether the call has a blank option.

        Raises:
            ValueError: ``bits`` does not have ``rows`` rows, or the number of options is out of range.
            BeyondContract: more rows than allowed.
            Malformed, WrongLength: the receiver's message is not what is due.
        """
        if bits.shape[1] != -(-rows // 8):
            raise ValueError(f"{bits.shape[1]} bytes are not the bits of {rows} rows")
        ot.Code.of(len(bits) + blank)  # raises where there is none
        for first in range(0, rows, _ROWS):
            count = min(_ROWS, rows - first)
            words, masked = self._receive(count, len(bits), blank)
            part = bits[:, first // 8 : (first + count + 7) // 8]
            self.channel.send(pb.TransferBits(rows=count), self._end.answer(masked, part, count, words))

    def _receive(self, rows: int, options: int, blank: bool) -> tuple[int, memoryview]:
        message = self.channel.receive(pb.TransferColumns)
        if (message.options, message.blank) != (options, blank):
            raise self.channel.misbehaved(
                Malformed,
                f"chose among {message.options} options {'with' if message.blank else 'without'} a blank one "
                f"where {options} {'with' if blank else 'without'} were due",
            )
        if self.served + message.rows > self.allowed:
            raise self.channel.misbehaved(
                BeyondContract, f"asked for row {self.served + message.rows} where {self.allowed} are allowed"
            )
        words = message.words
        if not max(2, options + blank) <= words <= ot.OPTIONS or words & (words - 1):
            raise self.channel.misbehaved(Malformed, f"chose among {options} options by a code of {words} words")
        columns, due = self.channel.bulk, ot.Code.of(words).length * -(-rows // 8)
        if message.rows != rows or len(columns) != due:
            raise self.channel.misbehaved(
                WrongLength,
                f"chose for {message.rows} rows in {len(columns)} bytes where {rows} in {due} were due",
            )
        self.served += rows
        return words, columns


def open_sender(channel: Channel, allowed: int) -> Sender:
    """Step 1 as the sender.

    Args:
        channel: a channel that has been greeted over.
        allowed: how many rows may choose in the session, all calls together.

    Raises:
        WrongLength, InvalidPoint: the receiver's points are not what is due.
    """
    channel.open(TABLE, "sender")
    choice, blinded = ot.choose(channel.session)
    channel.send(pb.TransferBlinded(points=blinded))
    raised = channel.receive(pb.TransferRaised).points
    _check_points(channel, raised)
    tag, seeds = ot.accept(channel.session, choice, blinded, raised)
    return Sender(channel, allowed, ot.Sender(tag, choice.bits, seeds))


def _check_points(channel: Channel, points: bytes) -> None:
    if len(points) != ot.BASES * ristretto.POINT_BYTES:
        raise channel.misbehaved(
            WrongLength, f"sent {len(points)} bytes where {ot.BASES} points of {ristretto.POINT_BYTES} bytes were due"
        )
    bad = ristretto.check_points(points)
    if bad is not None:
        raise channel.misbehaved(InvalidPoint, f"sent an invalid point, number {bad}")
    if len(np.unique(np.frombuffer(points, f"V{ristretto.POINT_BYTES}"))) < ot.BASES:
        raise channel.misbehaved(Malformed, "sent a point more than once")
