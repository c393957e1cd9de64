"""The encrypted matrix-vector product: the one primitive under all training.

The *holder* has a matrix M (R rows, n samples, small integers), fixed for the session. The *querier* has a stream of
private vectors v. The querier learns M·v; the holder learns how many vectors were asked.

    holder                                        querier
      1. MatvecShape   R, n, bounds       ──►     both compute the same plan, or refuse
      2. lwe:       MatvecHint (rows)     ──►     keeps the hint
         paillier:                        ◄──     MatvecKey (public key)
      3.                                  ◄──     MatvecQuery   Enc(v_1) … Enc(v_K), in pieces
      4. MatvecAnswer  Enc(M·v_1) …       ──►     decodes
         3 and 4 repeat; the holder counts the vectors and stops at the contract's number.

Where the contract has [privacy], the holder adds discrete Gaussian noise to every sum (:mod:`fedlearn.crypto.privacy`),
the same way in both back ends: what decodes is M·v + noise.

What M·v itself reveals is the calling protocol's matter. A querier that deviates may ask for any v, for
instance unit vectors; the count of vectors bounds what it can get.

Back ends: ``lwe`` (:mod:`fedlearn.crypto.lwe`) and ``paillier`` (:mod:`fedlearn.crypto.paillier`), same results bit for
bit.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract
from fedlearn.crypto import lwe, paillier
from fedlearn.crypto.matrix import Indicator, Matrix
from fedlearn.crypto.privacy import Change, Noise
from fedlearn.errors import BeyondContract, Malformed, NotInContract, OverBudget, WrongLength
from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import N
from fedlearn.kernels.threads import ahead
from fedlearn.v1 import matvec_pb2 as pb

TABLE = Table(
    "matvec",
    ("querier", "holder"),
    (
        Message(pb.MatvecShape, "holder", (START,), Reveals("the size of the matrix", lambda _: 2)),
        Message(
            pb.MatvecHint,
            "holder",
            ("MatvecShape", "MatvecHint"),
            nothing("hint rows are RLWE samples under the holder's secret masks"),
            bulk="words",
        ),
        Message(pb.MatvecKey, "querier", ("MatvecShape",), nothing("a public key")),
        Message(
            pb.MatvecQuery,
            "querier",
            ("MatvecHint", "MatvecKey", "MatvecQuery", "MatvecAnswer"),
            Reveals("how many sums are asked for at once; the vectors are encrypted", lambda m: 0 if m.first else 1),
            bulk="ciphertext",
        ),
        Message(
            pb.MatvecAnswer,
            "holder",
            ("MatvecQuery", "MatvecAnswer"),
            Reveals("exact sums of the querier's values over rows of the matrix (M·v)", lambda m: m.count * m.rows),
        ),
    ),
)

#: Vectors of one query at most.
AT_ONCE = 32

#: The message table where the holder adds noise.
NOISY_TABLE = replace(
    TABLE,
    messages=(
        *TABLE.messages[:-1],
        replace(
            TABLE.messages[-1],
            reveals=Reveals(
                "sums of the querier's values over rows of the matrix (M·v) with noise for differential privacy",
                lambda m: m.count * m.rows,
            ),
        ),
    ),
)

_HINT_BYTES = 8 << 20


@dataclass(frozen=True)
class Terms:
    """What the contract fixes for one use of the product.

    Attributes:
        backend: ``lwe`` or ``paillier``.
        paillier_bits: key size of that back end.
        largest_value: bound on the absolute value of an entry of v.
        vectors: how many vectors may be asked for in the session.
        kl_nats: leakage budget.
        noise: what the holder adds to every sum for differential privacy; None: nothing.
    """

    backend: str
    paillier_bits: int
    largest_value: int
    vectors: int
    kl_nats: float
    noise: Noise | None = None

    @classmethod
    def of(cls, contract: Contract, *, largest_value: int, vectors: int, change: Change | None = None) -> Terms:
        """Terms under a contract; ``change`` says how far one row of the holder moves the sums.

        Raises:
            OverBudget: more vectors than the contract's budget allows.
            NotInContract: the contract asks for differential privacy, and ``change`` is not known.
        """
        if vectors > contract.budget.vectors:
            raise OverBudget(
                f"the run may need {vectors} encrypted vectors, "
                f"over the {contract.budget.vectors} of [budget] vectors in contract {contract.name!r}"
            )
        encryption, noise = contract.encryption, None
        if contract.privacy is not None:
            if change is None:
                raise NotInContract(
                    f"[privacy] of contract {contract.name!r} asks for noise that this job does not add"
                )
            noise = Noise.of(change, contract.privacy.epsilon, contract.privacy.delta)
        kl_nats = contract.budget.kl_nats
        return cls(encryption.backend, encryption.paillier_bits, largest_value, vectors, kl_nats, noise)

    @property
    def room(self) -> int:
        """Bound on the absolute value of the noise."""
        return self.noise.largest if self.noise else 0


@dataclass(frozen=True)
class Shape:
    """The size of M and the bounds that the plan needs; fields as in :class:`fedlearn.crypto.matrix.Indicator`."""

    rows: int
    samples: int
    largest: int
    squares: int

    @classmethod
    def of(cls, matrix: Matrix) -> Shape:
        """The shape of a matrix."""
        return cls(matrix.rows, matrix.samples, matrix.largest, matrix.squares)

    @classmethod
    def indicator(cls, sizes: NDArray[np.int64], samples: int) -> Shape:
        """The shape of the indicator rows of features with so many bins."""
        return cls(int(sizes.sum()), samples, 1, len(sizes) * samples)

    def plan(self, terms: Terms) -> lwe.Plan:
        """The plan of the ``lwe`` back end. Raises OverBudget when nothing fits."""
        return lwe.make_plan(
            rows=self.rows,
            samples=self.samples,
            largest=self.largest,
            squares=self.squares,
            largest_value=terms.largest_value,
            vectors=terms.vectors,
            kl_nats=terms.kl_nats,
            room=terms.room,
        )


class Vectors(Protocol):
    """Vectors to ask about: int32 (K, n), or something that makes a block (vectors, samples) when it is due."""

    def __len__(self) -> int: ...

    def __getitem__(self, block: tuple[slice, slice], /) -> NDArray[np.int32]: ...


#: Waits for the answer to a query and decodes it.
Answer = Callable[[], NDArray[np.int64]]


class Querier(Protocol):
    """The querier's end, ready for queries."""

    def ask(self, values: Vectors) -> Answer:
        """Send K ≥ 1 vectors of length n. What is returned gives M·v, int64 (K, R); call it once.

        Sums are exact unless the terms have noise. Where very many queries are on their way, the oldest are decoded
        before the next is sent.
        """


class Holder(Protocol):
    """The holder's end, ready to answer."""

    def answer(self, query: pb.MatvecQuery) -> bool:
        """Take the query message just received; answer once the query is complete, which is what is returned.

        Raises:
            WrongLength, BeyondContract, Malformed: the query is not what both sides agreed.
            OverBudget: the answer would cost more privacy than the contract allows.
        """


# --- set-up: both roles ------------------------------------------------------------------------------


def open_holder(channel: Channel, matrix: Matrix, terms: Terms) -> Holder:
    """Steps 1 and 2 as the holder of ``matrix``. Raises OverBudget before anything is sent."""
    channel.open(_table(terms), "holder")
    shape = Shape.of(matrix)
    message = pb.MatvecShape(rows=shape.rows, samples=shape.samples, largest=shape.largest, squares=shape.squares)
    if terms.backend == "paillier":
        _slot_bits(shape, terms)
        channel.send(message)
        key = channel.receive(pb.MatvecKey)
        try:
            public = paillier.PublicKey.from_bytes(key.modulus, terms.paillier_bits)
        except ValueError as error:
            raise channel.misbehaved(Malformed, f"sent a bad Paillier key ({error})") from None
        return _PaillierHolder(channel, matrix, terms, public)
    plan = shape.plan(terms)
    channel.send(message)
    hint, mask = lwe.make_hint(matrix, lwe.expand(_seed(channel), shape.samples))
    step = max(1, _HINT_BYTES // (8 * N))
    for first in range(0, shape.rows, step):
        rows = hint[first : first + step]
        words = memoryview(rows.astype("<u8", copy=False).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        channel.send(pb.MatvecHint(first=first, count=len(rows)), words)
        channel.progress(min(first + step, shape.rows), shape.rows, "hint rows")
    return _LweHolder(channel, matrix, mask, plan, terms.noise)


def open_querier(channel: Channel, shape: Shape, terms: Terms) -> Querier:
    """Steps 1 and 2 as the querier, who knows from the calling protocol what ``shape`` must be.

    Raises:
        OverBudget: no plan fits.
        WrongLength: the holder announces another shape.
    """
    channel.open(_table(terms), "querier")
    said = channel.receive(pb.MatvecShape)
    if Shape(said.rows, said.samples, said.largest, said.squares) != shape:
        raise channel.misbehaved(
            WrongLength,
            f"announced a matrix of {said.rows} × {said.samples} where {shape.rows} × {shape.samples} was due",
        )
    if terms.backend == "paillier":
        _slot_bits(shape, terms)
        private = paillier.generate(terms.paillier_bits)
        channel.send(pb.MatvecKey(modulus=private.public.to_bytes()))
        return _PaillierQuerier(channel, shape, terms, private)
    plan = shape.plan(terms)
    public = lwe.expand(_seed(channel), shape.samples)
    hint = np.empty((shape.rows, lattice.DIGITS, N), np.int16)
    filled = 0
    while filled < shape.rows:
        message = channel.receive(pb.MatvecHint)
        if message.first != filled or not 0 < message.count <= shape.rows - filled:
            raise channel.misbehaved(WrongLength, f"sent hint rows from {message.first} where {filled} was due")
        if len(channel.bulk) != 8 * N * message.count:
            raise channel.misbehaved(
                WrongLength, f"sent {len(channel.bulk)} bytes for {message.count} hint rows of {8 * N} bytes"
            )
        words = np.frombuffer(channel.bulk, "<u8").reshape(-1, N).astype(np.uint64, copy=False)
        lattice.split_words(words, hint[filled : filled + message.count])
        filled += message.count
        channel.progress(filled, shape.rows, "hint rows")
    return _LweQuerier(channel, public, hint, plan, terms.noise)


def _table(terms: Terms) -> Table:
    return TABLE if terms.noise is None else NOISY_TABLE


def _seed(channel: Channel) -> bytes:
    """Seed of the public elements: bound to both sides' nonces and the contract through the session."""
    return hashlib.sha256(b"fedlearn/1 matvec public elements" + channel.session).digest()


# --- lwe: both roles ---------------------------------------------------------------------------------


@dataclass(eq=False)
class _Asked:
    """A query on its way: what decodes its answer, and the sums once it has come."""

    secrets: NDArray[np.int8]
    sums: NDArray[np.int64] | None = None


@dataclass
class _LweQuerier:
    channel: Channel
    public: NDArray[np.float64]
    hint: NDArray[np.int16]
    plan: lwe.Plan
    noise: Noise | None
    answered: int = 0
    awaited: deque[_Asked] = field(default_factory=deque)

    def ask(self, values: Vectors) -> Answer:
        asked = [self._ask(values, slice(start, start + AT_ONCE)) for start in range(0, len(values), AT_ONCE)]
        return lambda: np.concatenate([self._sums(query) for query in asked])

    def _ask(self, values: Vectors, vectors: slice) -> _Asked:
        while self._too_many(len(range(len(values))[vectors])):
            self._take()
        query = _Asked(self._send(values, vectors))
        self.awaited.append(query)
        return query

    def _too_many(self, count: int) -> bool:
        """Whether an answer must be taken before ``count`` more vectors are sent.

        The holder answers while this side sends. If it had more to say than this side takes in meanwhile, it would wait
        to answer and this side to send.
        """
        limits = self.channel.limits
        answers = 8 * self.plan.rows * (sum(len(query.secrets) for query in self.awaited) + count)
        return len(self.awaited) > 0 and (2 * len(self.awaited) >= limits.ahead or 2 * answers > limits.message)

    def _take(self) -> None:
        query = self.awaited.popleft()
        query.sums = self._decode(query.secrets)

    def _sums(self, query: _Asked) -> NDArray[np.int64]:
        while query.sums is None:
            self._take()
        return query.sums

    def _send(self, values: Vectors, vectors: slice) -> NDArray[np.int8]:
        count = len(range(len(values))[vectors])
        secrets, transforms = lwe.draw_secrets(count)
        plan = self.plan
        parts = plan.pieces(count)

        def encrypt(part: range) -> memoryview:
            block = values[vectors, lwe.samples_of(part, plan)]
            piece = lwe.encrypt_piece(block, transforms, self.public, plan, part)
            return memoryview(piece.reshape(-1))  # type: ignore[arg-type]

        for part, ciphertext in zip(parts, ahead(encrypt, parts), strict=True):
            self.channel.send(pb.MatvecQuery(count=count, first=part.start), ciphertext)
        return secrets

    def _decode(self, secrets: NDArray[np.int8]) -> NDArray[np.int64]:
        known = lwe.known_part(self.hint, secrets)  # while the holder is at work
        answer = self.channel.receive(pb.MatvecAnswer)
        _check_answer(self.channel, answer, len(secrets), self.plan.rows)
        if len(answer.ciphertext) != 8 * len(secrets) * self.plan.rows:
            raise self.channel.misbehaved(WrongLength, f"sent {len(answer.ciphertext)} bytes of answers")
        self.channel.ledger.add_kl(self.plan.kl_vector * len(secrets))
        self.channel.ledger.add_rho(_cost(self.noise, self.answered, len(secrets)))
        self.answered += len(secrets)
        try:
            return lwe.round_off(known, answer.ciphertext, self.plan)
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent an answer that does not decode ({error})") from None


@dataclass
class _LweHolder:
    channel: Channel
    matrix: Matrix
    mask: NDArray[np.int8]
    plan: lwe.Plan
    noise: Noise | None
    answered: int = 0
    cost: float = 0.0
    sums: NDArray[np.uint64] | None = None
    due: list[range] = field(default_factory=list)

    def answer(self, query: pb.MatvecQuery) -> bool:
        if self.sums is None:
            self.cost = _affordable(self.channel, self.noise, self.answered, query.count)
            self.answered = _count(self.channel, query, self.answered, self.plan.vectors)
            if query.count > AT_ONCE:
                raise self.channel.misbehaved(
                    BeyondContract, f"asked for {query.count} vectors at once, {AT_ONCE} are allowed"
                )
            self.sums, self.due = np.zeros((query.count, self.plan.rows), np.uint64), self.plan.pieces(query.count)
        part = self.due.pop(0)
        size = self.plan.width * len(part)
        if (query.count, query.first) != (len(self.sums), part.start):
            raise self.channel.misbehaved(
                WrongLength,
                f"sent words from {query.first} of {query.count} vectors "
                f"where {part.start} of {len(self.sums)} was due",
            )
        ciphertext = self.channel.bulk
        if len(ciphertext) != query.count * size:
            raise self.channel.misbehaved(
                WrongLength, f"sent {len(ciphertext)} bytes for {query.count} vectors of {size} bytes"
            )
        lwe.accumulate(self.matrix, self.mask, ciphertext, part, self.plan, self.sums)
        if self.due:
            return False
        answer = lwe.answer(self.sums, self.plan)
        if self.noise is not None:
            answer = lwe.shifted(answer, self.noise.draw((query.count, self.plan.rows)), self.plan)
        self.channel.send(pb.MatvecAnswer(count=query.count, rows=self.plan.rows, ciphertext=answer))
        self.channel.ledger.add_kl(self.plan.kl_vector * query.count)
        self.channel.ledger.add_rho(self.cost)
        self.sums = None
        return True


# --- paillier: both roles ----------------------------------------------------------------------------


@dataclass
class _PaillierQuerier:
    channel: Channel
    shape: Shape
    terms: Terms
    private: paillier.PrivateKey
    answered: int = 0

    def ask(self, values: Vectors) -> Answer:
        slot = _slot_bits(self.shape, self.terms)
        count, samples = len(values), self.shape.samples
        whole = values[0:count, 0:samples].astype(np.int64)
        self.channel.send(pb.MatvecQuery(count=count), paillier.encrypt(whole, slot, self.private))
        return lambda: self._decode(count, slot)

    def _decode(self, count: int, slot: int) -> NDArray[np.int64]:
        answer = self.channel.receive(pb.MatvecAnswer)
        _check_answer(self.channel, answer, count, self.shape.rows)
        self.channel.ledger.add_rho(_cost(self.terms.noise, self.answered, count))
        self.answered += count
        try:
            return paillier.decode(answer.ciphertext, self.shape.rows, count, slot, self.private)
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent an answer that does not decode ({error})") from None


@dataclass
class _PaillierHolder:
    channel: Channel
    matrix: Matrix
    terms: Terms
    public: paillier.PublicKey
    answered: int = 0

    def answer(self, query: pb.MatvecQuery) -> bool:
        noise = self.terms.noise
        cost = _affordable(self.channel, noise, self.answered, query.count)
        self.answered = _count(self.channel, query, self.answered, self.terms.vectors)
        if query.first:
            raise self.channel.misbehaved(WrongLength, f"sent words from {query.first} where all were due")
        slot = _slot_bits(Shape.of(self.matrix), self.terms)
        due = paillier.query_bytes(query.count, self.matrix.samples, slot, self.public)
        ciphertext = bytes(self.channel.bulk)
        if len(ciphertext) != due:
            raise self.channel.misbehaved(
                WrongLength, f"sent {len(ciphertext)} bytes for {query.count} vectors of {due} bytes in all"
            )
        try:
            if isinstance(self.matrix, Indicator):
                answer = paillier.respond_indicator(
                    self.matrix.bins, self.matrix.offsets, ciphertext, query.count, slot, self.public
                )
            else:
                answer = paillier.respond_dense(
                    self.matrix.entries.astype(np.int64), ciphertext, query.count, slot, self.public
                )
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent a bad ciphertext ({error})") from None
        if noise is not None:
            answer = paillier.shifted(answer, noise.draw((query.count, self.matrix.rows)), slot, self.public)
        self.channel.send(pb.MatvecAnswer(count=query.count, rows=self.matrix.rows, ciphertext=answer))
        self.channel.ledger.add_rho(cost)
        return True


def _slot_bits(shape: Shape, terms: Terms) -> int:
    """Bits of one packed sum, sign included. Raises OverBudget when sums would not fit 64 bits."""
    bits = (shape.samples * shape.largest * terms.largest_value + terms.room).bit_length() + 1
    if bits > 64:
        raise OverBudget(
            f"sums over {shape.samples} rows of values up to {terms.largest_value} need {bits} bits, "
            "over the 64 that a slot has"
        )
    return bits


def serve(channel: Channel, holder: Holder, vectors: int, query: pb.MatvecQuery | None = None) -> None:
    """Steps 3 and 4 as the holder, until so many vectors are answered.

    Args:
        channel: after :func:`open_holder`.
        holder: the end that it gave.
        vectors: how many the calling protocol has at this point.
        query: the first message, where the calling protocol has received it.

    Raises:
        BeyondContract: more vectors come than are due. And as :meth:`Holder.answer`.
    """
    served = 0
    while served < vectors:
        query = channel.receive(pb.MatvecQuery) if query is None else query
        if served + query.count > vectors:
            raise channel.misbehaved(BeyondContract, f"sent {served + query.count} vectors where {vectors} were due")
        served += query.count if holder.answer(query) else 0
        query = None


# --- checks shared by the back ends ------------------------------------------------------------------


def _count(channel: Channel, query: pb.MatvecQuery, answered: int, allowed: int) -> int:
    if query.count < 1:
        raise channel.misbehaved(Malformed, "sent a query for no vector")
    if answered + query.count > allowed:
        raise channel.misbehaved(
            BeyondContract, f"asked for vector {answered + query.count} where the contract allows {allowed}"
        )
    return answered + query.count


def _cost(noise: Noise | None, before: int, count: int) -> float:
    """Privacy cost of answers, zCDP; both sides count alike."""
    return noise.cost(before, count) if noise else 0.0


def _affordable(channel: Channel, noise: Noise | None, before: int, count: int) -> float:
    """The cost of answers, before they are given. Raises OverBudget when other uses of the session have spent it."""
    cost = _cost(noise, before, count)
    if noise and channel.ledger.rho + cost > noise.session * (1 + 1e-9):
        raise OverBudget(
            f"answers to {count} more vectors would spend more than the epsilon that [privacy] allows for the session"
        )
    return cost


def _check_answer(channel: Channel, answer: pb.MatvecAnswer, count: int, rows: int) -> None:
    if answer.count != count or answer.rows != rows:
        raise channel.misbehaved(
            WrongLength, f"answered {answer.count} × {answer.rows} sums where {count} × {rows} were due"
        )
