"""The encrypted matrix-vector product: the one primitive under all training.

The *holder* has a matrix M (R rows, n samples, small integers), fixed for the session. The *querier* has a stream of
private vectors v. The querier learns M·v; the holder learns how many vectors were asked.

    holder                                        querier
      1. MatvecShape   R, n, bounds       ──►     both compute the same plan, or refuse
      2. lwe:       MatvecHint (rows)     ──►     keeps the hint
         paillier:                        ◄──     MatvecKey (public key)
      3.                                  ◄──     MatvecQuery   Enc(v_1) … Enc(v_K)
      4. MatvecAnswer  Enc(M·v_1) …       ──►     decodes
         3 and 4 repeat; the holder counts the vectors and stops at the contract's number.

What M·v itself reveals is the calling protocol's matter. A querier that deviates may ask for any v, for
instance unit vectors; the count of vectors bounds what it can get.

Back ends: ``lwe`` (:mod:`fedlearn.crypto.lwe`) and ``paillier`` (:mod:`fedlearn.crypto.paillier`), same results bit for
bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract
from fedlearn.crypto import lwe, paillier
from fedlearn.crypto.matrix import Indicator, Matrix
from fedlearn.errors import BeyondContract, Malformed, OverBudget, WrongLength
from fedlearn.kernels.lattice import LANES
from fedlearn.kernels.negacyclic import N
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
        ),
        Message(pb.MatvecKey, "querier", ("MatvecShape",), nothing("a public key")),
        Message(
            pb.MatvecQuery,
            "querier",
            ("MatvecHint", "MatvecKey", "MatvecQuery", "MatvecAnswer"),
            Reveals("how many sums are asked for at once; the vectors are encrypted"),
        ),
        Message(
            pb.MatvecAnswer,
            "holder",
            ("MatvecQuery", "MatvecAnswer"),
            Reveals("exact sums of the querier's values over rows of the matrix (M·v)", lambda m: m.count * m.rows),
        ),
    ),
)

#: Bytes of ciphertext after which a query is split into several messages, so that both sides work at once.
_QUERY_BYTES = 6 << 20
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
    """

    backend: str
    paillier_bits: int
    largest_value: int
    vectors: int
    kl_nats: float

    @classmethod
    def of(cls, contract: Contract, *, largest_value: int, vectors: int) -> Terms:
        """Terms under a contract.

        Raises:
            OverBudget: more vectors than the contract's budget allows.
        """
        if vectors > contract.budget.vectors:
            raise OverBudget(
                f"the run may need {vectors} encrypted vectors, "
                f"over the {contract.budget.vectors} of [budget] vectors in contract {contract.name!r}"
            )
        encryption = contract.encryption
        return cls(encryption.backend, encryption.paillier_bits, largest_value, vectors, contract.budget.kl_nats)


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
        )


class Vectors(Protocol):
    """Vectors to ask about: an int32 array (K, n), or something that makes its slices when they are due."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.int32]: ...


class Querier(Protocol):
    """The querier's end, ready for queries."""

    def ask(self, values: Vectors) -> NDArray[np.int64]:
        """M·v for K ≥ 1 vectors of length n: exact sums, int64 (K, R)."""


class Holder(Protocol):
    """The holder's end, ready to answer."""

    def answer(self, query: pb.MatvecQuery) -> None:
        """Answer one query message.

        Raises:
            WrongLength, BeyondContract, Malformed: the query is not what both sides agreed.
        """


# --- set-up: both roles ------------------------------------------------------------------------------


def open_holder(channel: Channel, matrix: Matrix, terms: Terms) -> Holder:
    """Steps 1 and 2 as the holder of ``matrix``. Raises OverBudget before anything is sent."""
    channel.open(TABLE, "holder")
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
        channel.send(pb.MatvecHint(first=first, count=len(rows), words=rows.astype("<u8").tobytes()))
        channel.progress(min(first + step, shape.rows), shape.rows, "hint rows")
    return _LweHolder(channel, matrix, mask, plan)


def open_querier(channel: Channel, shape: Shape, terms: Terms) -> Querier:
    """Steps 1 and 2 as the querier, who knows from the calling protocol what ``shape`` must be.

    Raises:
        OverBudget: no plan fits.
        WrongLength: the holder announces another shape.
    """
    channel.open(TABLE, "querier")
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
    hint = np.empty((shape.rows, N), np.uint64)
    filled = 0
    while filled < shape.rows:
        message = channel.receive(pb.MatvecHint)
        if message.first != filled or not 0 < message.count <= shape.rows - filled:
            raise channel.misbehaved(WrongLength, f"sent hint rows from {message.first} where {filled} was due")
        if len(message.words) != 8 * N * message.count:
            raise channel.misbehaved(
                WrongLength, f"sent {len(message.words)} bytes for {message.count} hint rows of {8 * N} bytes"
            )
        hint[filled : filled + message.count] = np.frombuffer(message.words, "<u8").reshape(-1, N)
        filled += message.count
        channel.progress(filled, shape.rows, "hint rows")
    return _LweQuerier(channel, public, hint, plan)


def _seed(channel: Channel) -> bytes:
    """Seed of the public elements: bound to both sides' nonces and the contract through the session."""
    return hashlib.sha256(b"fedlearn/1 matvec public elements" + channel.session).digest()


# --- lwe: both roles ---------------------------------------------------------------------------------


@dataclass
class _LweQuerier:
    channel: Channel
    public: NDArray[np.float64]
    hint: NDArray[np.uint64]
    plan: lwe.Plan

    def ask(self, values: Vectors) -> NDArray[np.int64]:
        secrets = []
        for batch in _batches(values, self.plan.query_bytes):
            ciphertext, secret = lwe.encrypt(batch, self.public, self.plan)
            self.channel.send(pb.MatvecQuery(count=len(batch), ciphertext=ciphertext))
            secrets.append(secret)
        return np.concatenate([self._decode(secret) for secret in secrets])

    def _decode(self, secrets: NDArray[np.int8]) -> NDArray[np.int64]:
        answer = self.channel.receive(pb.MatvecAnswer)
        _check_answer(self.channel, answer, len(secrets), self.plan.rows)
        if len(answer.ciphertext) != 8 * len(secrets) * self.plan.rows:
            raise self.channel.misbehaved(WrongLength, f"sent {len(answer.ciphertext)} bytes of answers")
        self.channel.ledger.add_kl(self.plan.kl_vector * len(secrets))
        try:
            return lwe.decode(self.hint, secrets, answer.ciphertext, self.plan)
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent an answer that does not decode ({error})") from None


@dataclass
class _LweHolder:
    channel: Channel
    matrix: Matrix
    mask: NDArray[np.int8]
    plan: lwe.Plan
    answered: int = 0

    def answer(self, query: pb.MatvecQuery) -> None:
        self.answered = _count(self.channel, query, self.answered, self.plan.vectors)
        if len(query.ciphertext) != query.count * self.plan.query_bytes:
            raise self.channel.misbehaved(
                WrongLength,
                f"sent {len(query.ciphertext)} bytes for {query.count} vectors of {self.plan.query_bytes} bytes",
            )
        answer = lwe.respond(self.matrix, self.mask, query.ciphertext, query.count, self.plan)
        self.channel.send(pb.MatvecAnswer(count=query.count, rows=self.plan.rows, ciphertext=answer))
        self.channel.ledger.add_kl(self.plan.kl_vector * query.count)


# --- paillier: both roles ----------------------------------------------------------------------------


@dataclass
class _PaillierQuerier:
    channel: Channel
    shape: Shape
    terms: Terms
    private: paillier.PrivateKey

    def ask(self, values: Vectors) -> NDArray[np.int64]:
        slot = _slot_bits(self.shape, self.terms)
        self.channel.send(
            pb.MatvecQuery(
                count=len(values), ciphertext=paillier.encrypt(values[:].astype(np.int64), slot, self.private)
            )
        )
        answer = self.channel.receive(pb.MatvecAnswer)
        _check_answer(self.channel, answer, len(values), self.shape.rows)
        try:
            return paillier.decode(answer.ciphertext, self.shape.rows, len(values), slot, self.private)
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent an answer that does not decode ({error})") from None


@dataclass
class _PaillierHolder:
    channel: Channel
    matrix: Matrix
    terms: Terms
    public: paillier.PublicKey
    answered: int = 0

    def answer(self, query: pb.MatvecQuery) -> None:
        self.answered = _count(self.channel, query, self.answered, self.terms.vectors)
        slot = _slot_bits(Shape.of(self.matrix), self.terms)
        due = paillier.query_bytes(query.count, self.matrix.samples, slot, self.public)
        if len(query.ciphertext) != due:
            raise self.channel.misbehaved(
                WrongLength, f"sent {len(query.ciphertext)} bytes for {query.count} vectors of {due} bytes in all"
            )
        try:
            if isinstance(self.matrix, Indicator):
                answer = paillier.respond_indicator(
                    self.matrix.bins, self.matrix.offsets, query.ciphertext, query.count, slot, self.public
                )
            else:
                answer = paillier.respond_dense(
                    self.matrix.entries.astype(np.int64), query.ciphertext, query.count, slot, self.public
                )
        except ValueError as error:
            raise self.channel.misbehaved(Malformed, f"sent a bad ciphertext ({error})") from None
        self.channel.send(pb.MatvecAnswer(count=query.count, rows=self.matrix.rows, ciphertext=answer))


def _slot_bits(shape: Shape, terms: Terms) -> int:
    """Bits of one packed sum, sign included. Raises OverBudget when sums would not fit 64 bits."""
    bits = (shape.samples * shape.largest * terms.largest_value).bit_length() + 1
    if bits > 64:
        raise OverBudget(
            f"sums over {shape.samples} rows of values up to {terms.largest_value} need {bits} bits, "
            "over the 64 that a slot has"
        )
    return bits


# --- checks shared by the back ends ------------------------------------------------------------------


def _batches(values: Vectors, vector_bytes: int) -> Iterator[NDArray[np.int32]]:
    """Vectors in messages of at most about _QUERY_BYTES; whole groups of LANES where several fit."""
    size = max(1, _QUERY_BYTES // vector_bytes)
    if size > LANES:
        size -= size % LANES
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _count(channel: Channel, query: pb.MatvecQuery, answered: int, allowed: int) -> int:
    if query.count < 1:
        raise channel.misbehaved(Malformed, "sent a query for no vector")
    if answered + query.count > allowed:
        raise channel.misbehaved(
            BeyondContract, f"asked for vector {answered + query.count} where the contract allows {allowed}"
        )
    return answered + query.count


def _check_answer(channel: Channel, answer: pb.MatvecAnswer, count: int, rows: int) -> None:
    if answer.count != count or answer.rows != rows:
        raise channel.misbehaved(
            WrongLength, f"answered {answer.count} × {answer.rows} sums where {count} × {rows} were due"
        )
