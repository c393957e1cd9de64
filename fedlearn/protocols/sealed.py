"""Logistic regression in which partial scores never meet: residuals as additive shares, each side its own gradient.

    active                                                    passive
      1. SealedOpen     columns, mean information, key  ──►
                                                        ◄──   SealedColumns   columns, key
      2. SealedMatrix   its columns, encrypted          ◄─►   SealedMatrix    its columns, encrypted
      in each round:
      3. SealedTerms    Enc_A of the sigmoid's series   ──►
                                                        ◄──   SealedResidual  Enc_A of the series plus a uniform mask
         both hold a share of the residual, uniform modulo T, and add up to it
      4. SealedProduct  Enc_P of X_P·(its share)        ◄─►   SealedProduct   Enc_A of X_A·(its share)
         each side adds X·(own share): its own block of the gradient
      5.                                                ◄──   SealedPart      sum of its share; products of its steps
         SealedStep     products of its steps; go on?   ──►
         both mix their steps (learner.anderson) and move their own coefficients
      at the end:
      6. SealedResult   how it converged                ──►
         both: GlmSaved once written                    ◄─►

3: the active side knows z_A of every row, and writes σ(z_A + v) as a series Σ a_k(z_A)·T_k(v/range) of Chebyshev
polynomials in the passive partial score v. It sends Enc_A(a_k), the passive side multiplies with T_k of what it knows,
so one multiplication with a known value is deep enough, and the series need hold over the passive side's range alone.
A truncated Chebyshev series is within a small factor of the minimax polynomial (Trefethen, "Approximation Theory and
Approximation Practice", 2013, ch. 16).

4: a column's products with a share come as SLOTS sums, masked by uniform values of sum zero, so the total alone shows;
and that is masked by the own share until it is added.

Shares are modulo the prime T of :mod:`fedlearn.crypto.bfv`, where noise flooding hides what multiplied. What is
learned: SECURITY.md.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract, Glm, Side
from fedlearn.crypto import bfv
from fedlearn.crypto.bfv import SLOTS, T
from fedlearn.errors import BeyondContract, Malformed, OverBudget, WrongLength
from fedlearn.learner import glm as learner
from fedlearn.learner.anderson import Block, Mixture
from fedlearn.protocols.regression import ActiveData, PassiveData, PassiveResult, check_columns, check_rows, model_id
from fedlearn.v1 import glm_pb2
from fedlearn.v1 import sealed_pb2 as pb

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

TABLE = Table(
    "sealed",
    ("active", "passive"),
    (
        Message(
            pb.SealedOpen,
            "active",
            (START,),
            Reveals(
                "how many columns the active side's design has, and the mean of its rows' information", lambda _: 2
            ),
        ),
        Message(
            pb.SealedColumns, "passive", ("SealedOpen",), Reveals("how many columns the passive side's design has")
        ),
        Message(pb.SealedMatrix, BOTH, ("SealedColumns", "SealedMatrix"), nothing("encrypted columns")),
        Message(
            pb.SealedTerms,
            "active",
            ("SealedMatrix", "SealedStep", "SealedTerms", "SealedResidual"),
            nothing("encrypted coefficients of the sigmoid's series"),
        ),
        Message(
            pb.SealedResidual,
            "passive",
            ("SealedTerms", "SealedResidual"),
            nothing("shares of residuals are uniform"),
        ),
        Message(
            pb.SealedProduct,
            BOTH,
            ("SealedResidual", "SealedProduct"),
            Reveals("with its own share, one entry of its own block of the gradient, over all rows", lambda _: 1),
        ),
        Message(
            pb.SealedPart,
            "passive",
            ("SealedProduct",),
            Reveals(
                "the sum of all residuals; inner products of the passive side's steps", lambda m: 1 + len(m.products)
            ),
        ),
        Message(
            pb.SealedStep,
            "active",
            ("SealedPart",),
            Reveals(
                "inner products of the active side's steps; and whether another round follows, which with the products "
                "bounds the number of shared rows from both sides",
                lambda m: len(m.products) + 1,
            ),
        ),
        Message(
            pb.SealedResult,
            "active",
            ("SealedStep",),
            Reveals("how the fit converged, and the sizes of its steps if agreed", lambda m: 1 + len(m.changes)),
        ),
        Message(glm_pb2.GlmSaved, BOTH, ("SealedResult", "GlmSaved"), nothing("an acknowledgement")),
    ),
)

#: Products of columns that are sent before the peer's first is read.
_AHEAD = 32
#: Scales of fixed-point numbers: the series' coefficients, the polynomials, and columns.
_TERM, _VALUE, _COLUMN = 2.0**13, 2.0**13, 2.0**10
_MOST_ROWS = 1 << 22
#: Ciphertexts of one message at most.
_AT_ONCE = 32
#: Rounds end when a step is below this, in standard errors: fixed point has the last word below.
_LEAST_CHANGE = 0.05


@dataclass(frozen=True)
class ActiveResult:
    """What the active side gets.

    Attributes:
        coefficients: float64 (1 + p_A,), the intercept first.
        converged, changes: how it went; sizes of steps in standard errors, roughly: see :func:`fit_active`.
        passive_columns: how many columns the passive side has.
        alone: the active side's own fit, from which rounds start.
        model_id: 16 bytes that both shares carry.
    """

    coefficients: F64
    converged: bool
    changes: list[float]
    passive_columns: int
    alone: learner.Fit
    model_id: bytes


# --- what both sides compute from the contract and the sizes -----------------------------------------


def flooding(contract: Contract, active_columns: int, passive_columns: int, universe: int) -> float:
    """Statistical distance by which noise could tell what multiplied, over all answers of a fit, to both sides.

    Raises:
        OverBudget: more rows than fixed point has room for, or more distance than the leakage budget.
        BadConfig: TenSEAL is not installed.
    """
    bfv.context()
    glm, blocks = _glm(contract), _blocks(universe)
    if universe > _MOST_ROWS:
        raise OverBudget(f"sealed regression has room for {_MOST_ROWS} rows; there are {universe}")
    answers = glm.max_steps * (blocks + active_columns + passive_columns)
    found = bfv.distance(max(glm.degree, blocks), answers)
    if found > contract.budget.kl_nats:
        raise OverBudget(
            f"{answers} answers of {blocks} blocks could differ by {found:.2g} in their noise, "
            f"over the {contract.budget.kl_nats:.2g} of [budget] kl_nats"
        )
    return found


def series(z: F64, degree: int, reach: float) -> F64:
    """Coefficients a_k of σ(z + v) ≈ Σ a_k·T_k(v/reach) on |v| ≤ reach: float64 (degree + 1, len(z))."""
    nodes = 2 * degree + 4
    angles = (np.arange(nodes) + 0.5) * (np.pi / nodes)
    values = 0.5 * (1 + np.tanh(0.5 * (z[None, :] + reach * np.cos(angles)[:, None])))
    basis = np.cos(np.outer(np.arange(degree + 1), angles)) * (2 / nodes)
    basis[0] /= 2
    return np.asarray(basis @ values)


def chebyshev(v: F64, degree: int, reach: float) -> F64:
    """T_k(v/reach) for k = 1 … degree, v clipped to the reach: float64 (degree, len(v))."""
    angles = np.arccos(np.clip(v / reach, -1.0, 1.0))
    return np.asarray(np.cos(np.outer(np.arange(1, degree + 1), angles)))


def _glm(contract: Contract) -> Glm:
    if contract.glm is None:
        raise ValueError("the contract has no [glm]")
    return contract.glm


def _blocks(universe: int) -> int:
    return -(-universe // SLOTS)


def _parts(universe: int) -> Iterator[slice]:
    return (slice(first, min(first + SLOTS, universe)) for first in range(0, universe, SLOTS))


# --- active ------------------------------------------------------------------------------------------


def fit_active(channel: Channel, contract: Contract, data: ActiveData) -> ActiveResult:
    """Fit as the side that has the label.

    A step's size is √(gᵀH⁻¹g) with each side's own block of the curvature at the start: with correlated sides it
    differs from a Newton step's.

    Raises:
        NoOverlap: too few aligned rows, or one label only.
        OverBudget: before any row's value leaves either side.
        Collinear, Separation: of the active side's own columns.
        PeerMisbehaved: see the subclasses.
    """
    glm, rows = _glm(contract), data.rows
    check_rows(rows, glm)
    alone = learner.fit(rows, glm, None, data.names)
    total, count = float(rows.weight.sum()), len(rows.columns)
    weight = rows.weight * (data.universe / total)
    if float(weight @ weight) * data.universe * (_TERM * _VALUE * _COLUMN) ** 2 > (T / 4) ** 2:
        raise OverBudget("row weights differ too much for fixed point: lessen the largest ones")
    design = np.vstack([np.ones(len(rows.label)), rows.columns])
    mean = learner.family_of(glm).mean(alone.eta)
    information = rows.weight * mean * (1 - mean) / total
    block = Block((design * information) @ design.T + _ridge(glm, count, 1), alone.coefficients)
    channel.open(TABLE, "active")
    spread_out = np.zeros((count, data.universe))
    spread_out[:, data.position] = rows.columns
    with channel.phase("hint"):
        key = bfv.Key()
        channel.send(pb.SealedOpen(columns=count, information=_rounded_up(float(information.sum())), key=key.public))
        told = channel.receive(pb.SealedColumns)
        theirs = _checked(channel, told.columns, told.key, contract, contract.passive)
        flooding(contract, count, told.columns, data.universe)
        side = _Side(channel, key, theirs, spread_out, told.columns)
        side.send_matrix()
        side.receive_matrix()
    with channel.phase("steps"):
        changes = _rounds_active(channel, glm, data, side, block, weight)
    converged = changes[-1] <= _least_change(glm)
    found = ActiveResult(block.at, converged, changes, told.columns, alone, model_id(channel, contract))
    result = pb.SealedResult(converged=found.converged, model_id=found.model_id)
    if contract.align.mode == "mutual":
        result.changes.extend(changes)
    channel.send(result)
    return found


def _least_change(glm: Glm) -> float:
    return max(glm.tolerance, _LEAST_CHANGE)


def _rounds_active(channel: Channel, glm: Glm, data: ActiveData, side: _Side, block: Block, weight: F64) -> list[float]:
    """Steps 3 to 5 until a step is small; ``block`` moves. Returns the sizes of the steps in standard errors."""
    rows, mixture, changes = data.rows, Mixture(), list[float]()
    design = np.vstack([np.ones(len(rows.label)), rows.columns])
    while True:
        share = _residual_active(channel, side.key, glm, data, rows.offset + block.at @ design, weight)
        whole = side.gradient(share)
        part = channel.receive(pb.SealedPart)
        if part.sum >= T:
            raise channel.misbehaved(Malformed, "sent a sum beyond its modulus")
        intercept = _centred(_total(share) + part.sum) / (_TERM * _VALUE)
        gradient = np.concatenate([[intercept], whole]) / data.universe
        gradient[1:] -= glm.l2 * block.at[1:]
        own = block.products(gradient)
        size = _added(channel, mixture, own, part.products)
        changes.append(float(np.sqrt(max(size, 0.0) * rows.weight.sum())))
        more = changes[-1] > _least_change(glm) and len(changes) < glm.max_steps
        if more:
            _move(channel, block, mixture)  # before this side's own message: an error names the peer's
        channel.send(pb.SealedStep(products=own.tolist(), more=more))
        channel.progress(len(changes), glm.max_steps, "rounds at most")
        if not more:
            return changes


def _residual_active(channel: Channel, key: bfv.Key, glm: Glm, data: ActiveData, eta: F64, weight: F64) -> U64:
    """Step 3: this side's share of weight·(label − σ), uint64 (universe,) below T."""
    universe = data.universe
    terms = np.zeros((glm.degree + 1, universe))
    terms[:, data.position] = series(eta, glm.degree, glm.reach) * weight
    share = np.zeros(universe, np.int64)
    share[data.position] = np.rint((weight * data.rows.label) * (_TERM * _VALUE))
    share -= np.rint(terms[0] * (_TERM * _VALUE)).astype(np.int64)
    for number, part in enumerate(_parts(universe)):
        block = np.rint(terms[1:, part] * _TERM).astype(np.int64)
        channel.send(pb.SealedTerms(block=number, terms=[key.encrypt(_slots(row)) for row in block]))
    out = np.mod(share, T).astype(np.uint64)
    for number, part in enumerate(_parts(universe)):
        said = channel.receive(pb.SealedResidual)
        if said.block != number:
            raise channel.misbehaved(WrongLength, f"sent block {said.block} where {number} was due")
        got = _decrypted(channel, key, said.words)[: part.stop - part.start]
        out[part] = (out[part] + np.uint64(T) - got) % np.uint64(T)
    return out


# --- passive -----------------------------------------------------------------------------------------


def fit_passive(channel: Channel, contract: Contract, data: PassiveData) -> tuple[PassiveResult, float]:
    """Serve a fit as the side without the label.

    Returns:
        the result, without errors and facts; and the share of rows whose partial score went beyond the reach.

    Raises:
        OverBudget, Collinear, PeerMisbehaved: see the subclasses.
    """
    glm, columns = _glm(contract), data.columns
    count, universe = columns.shape
    channel.open(TABLE, "passive")
    with channel.phase("hint"):
        told = channel.receive(pb.SealedOpen)
        theirs = _checked(channel, told.columns, told.key, contract, contract.active)
        if not 0 < told.information <= 0.3:
            raise channel.misbehaved(Malformed, "announced a mean information that no labels have")
        flooding(contract, told.columns, count, universe)
        key = bfv.Key()
        channel.send(pb.SealedColumns(columns=count, key=key.public))
        side = _Side(channel, key, theirs, columns, told.columns)
        side.receive_matrix()
        side.send_matrix()
    block = Block(columns @ columns.T * (told.information / universe) + _ridge(glm, count, 0), np.zeros(count))
    mixture, steps = Mixture(), 0
    with channel.phase("steps"):
        while True:
            partial = block.at @ columns
            share = _residual_passive(channel, theirs, glm, partial)
            own = block.products(side.gradient(share) / universe - glm.l2 * block.at)
            channel.send(pb.SealedPart(sum=_total(share) % T, products=own.tolist()))
            step = channel.receive(pb.SealedStep)
            _added(channel, mixture, own, step.products)
            steps += 1
            channel.progress(steps, glm.max_steps, "rounds at most")
            if not step.more:
                break
            if steps == glm.max_steps:
                raise channel.misbehaved(BeyondContract, f"asked for more than {glm.max_steps} rounds")
            _move(channel, block, mixture)
    said = channel.receive(pb.SealedResult)
    if not hmac.compare_digest(said.model_id, model_id(channel, contract)):
        raise channel.misbehaved(Malformed, "named another model than this session's")
    if len(said.changes) not in ((steps,) if contract.align.mode == "mutual" else (0,)):
        raise channel.misbehaved(WrongLength, f"reported the sizes of {len(said.changes)} steps where {steps} were due")
    beyond = float(np.mean(np.abs(partial) > glm.reach))
    result = PassiveResult(block.at, None, None, said.converged, steps, list(said.changes), {}, bytes(said.model_id))
    return result, beyond


def _residual_passive(channel: Channel, peer: bfv.Peer, glm: Glm, partial: F64) -> U64:
    """Step 3: this side's share, uniform, uint64 (universe,)."""
    share = bfv.uniform(len(partial))
    for number, part in enumerate(_parts(len(partial))):
        asked = channel.receive(pb.SealedTerms)
        if asked.block != number or len(asked.terms) != glm.degree:
            raise channel.misbehaved(
                WrongLength, f"sent {len(asked.terms)} terms of block {asked.block} where {number} was due"
            )
        values = np.rint(chebyshev(partial[part], glm.degree, glm.reach) * _VALUE).astype(np.int64)
        pairs = [
            (_taken(channel, peer, term), peer.known(_slots(row)))
            for term, row in zip(asked.terms, values, strict=True)
        ]
        mask = bfv.uniform(SLOTS)
        mask[: part.stop - part.start] = share[part]
        channel.send(pb.SealedResidual(block=number, words=peer.answer(pairs, mask)))
    return share


# --- both roles --------------------------------------------------------------------------------------


class _Side:
    """Step 4 of one side: its own columns, and the peer's under the peer's key."""

    def __init__(self, channel: Channel, key: bfv.Key, peer: bfv.Peer, columns: F64, peer_columns: int) -> None:
        self.channel, self.key, self.peer, self.peer_columns = channel, key, peer, peer_columns
        self.columns = np.rint(columns * _COLUMN).astype(np.int64)
        self.matrix: list[list[Any]] = []

    def send_matrix(self) -> None:
        for j, column in enumerate(self.columns):
            parts = list(_parts(len(column)))
            for first in range(0, len(parts), _AT_ONCE):
                blocks = [self.key.encrypt(_slots(column[part])) for part in parts[first : first + _AT_ONCE]]
                self.channel.send(pb.SealedMatrix(column=j, first=first, blocks=blocks))
            self.channel.progress(j + 1, len(self.columns), "columns")

    def receive_matrix(self) -> None:
        blocks = _blocks(self.columns.shape[1])
        for j in range(self.peer_columns):
            column: list[Any] = []
            while len(column) < blocks:
                said = self.channel.receive(pb.SealedMatrix)
                due = min(_AT_ONCE, blocks - len(column))
                if (said.column, said.first, len(said.blocks)) != (j, len(column), due):
                    raise self.channel.misbehaved(
                        WrongLength, f"sent {len(said.blocks)} blocks of column {said.column} where {j} was due"
                    )
                column += [_taken(self.channel, self.peer, block) for block in said.blocks]
            self.matrix.append(column)

    def gradient(self, share: U64) -> F64:
        """Own columns times the residual, float64 (p,): what the peer sends and the own share together.

        The peer's columns times this side's share go out meanwhile, some ahead of what comes in, but not all: if both
        sides sent first, neither would read what is more than a channel takes in.
        """
        own = _dot(self.columns, share)
        known = [self.peer.known(_padded(share[part])) for part in _parts(len(share))]
        out = np.empty(len(own))
        for j in range(max(len(self.matrix), len(own) + _AHEAD)):
            if j < len(self.matrix):
                self._send(j, known)
            if 0 <= j - _AHEAD < len(own):
                out[j - _AHEAD] = _centred(self._receive(j - _AHEAD) + own[j - _AHEAD])
        return np.asarray(out / (_TERM * _VALUE * _COLUMN))

    def _send(self, j: int, known: list[Any]) -> None:
        mask = bfv.uniform(SLOTS)
        mask[-1] = -_total(mask[:-1]) % T
        words = self.peer.answer(list(zip(self.matrix[j], known, strict=True)), mask)
        self.channel.send(pb.SealedProduct(column=j, words=words))

    def _receive(self, j: int) -> int:
        said = self.channel.receive(pb.SealedProduct)
        if said.column != j:
            raise self.channel.misbehaved(WrongLength, f"sent column {said.column} where {j} was due")
        return _total(_decrypted(self.channel, self.key, said.words))


def _checked(channel: Channel, columns: int, key: bytes, contract: Contract, side: Side) -> bfv.Peer:
    """The peer's key, after its number of columns was held against the contract."""
    check_columns(channel, columns, _glm(contract), side)
    try:
        return bfv.Peer(key)
    except bfv.BadCiphertext as error:
        raise channel.misbehaved(Malformed, f"sent a bad key ({error})") from None


def _taken(channel: Channel, peer: bfv.Peer, data: bytes) -> Any:
    try:
        return peer.take(data, transform=True)
    except bfv.BadCiphertext as error:
        raise channel.misbehaved(Malformed, f"sent a bad ciphertext ({error})") from None


def _decrypted(channel: Channel, key: bfv.Key, words: bytes) -> U64:
    try:
        return key.decrypt(words)
    except bfv.BadCiphertext as error:
        raise channel.misbehaved(Malformed, f"sent a bad answer ({error})") from None


def _ridge(glm: Glm, columns: int, free: int) -> F64:
    return np.diag(np.concatenate([np.zeros(free), np.full(columns, max(glm.l2, 1e-9))]))


def _rounded_up(information: float) -> float:
    """To the next quarter power of two: the exact value would tell the base rate."""
    return float(2.0 ** (np.ceil(4 * np.log2(information)) / 4))


def _added(channel: Channel, mixture: Mixture, own: F64, theirs: object) -> float:
    """Both sides' products of steps, added up and given to the mixture, whose answer is returned."""
    array = np.array(theirs, np.float64)
    if array.shape != own.shape or not np.isfinite(array).all():
        raise channel.misbehaved(
            WrongLength, f"sent {array.size} products of steps where {own.size} finite ones were due"
        )
    try:
        return mixture.add(own + array)
    except ValueError as error:
        raise channel.misbehaved(Malformed, f"sent products that no steps have ({error})") from None


def _move(channel: Channel, block: Block, mixture: Mixture) -> None:
    """Go to the mixture. What the peer said decides where that is: NaN would be in every share from there on."""
    try:
        block.move(mixture.weights)
    except ValueError as error:
        raise channel.misbehaved(Malformed, f"sent products that no steps have ({error})") from None


def _slots(values: I64) -> U64:
    return _padded(np.mod(values, T).astype(np.uint64))


def _padded(values: U64) -> U64:
    out = np.zeros(SLOTS, np.uint64)
    out[: len(values)] = values
    return out


def _total(values: U64) -> int:
    """Sum without overflow, as a Python integer."""
    low, high = values & np.uint64((1 << 30) - 1), values >> np.uint64(30)
    return int(low.sum()) + (int(high.sum()) << 30)


def _dot(columns: I64, share: U64) -> list[int]:
    """Columns times a share, exactly: int64 (p, n) and uint64 (n,) to p Python integers."""
    mask = np.uint64((1 << 20) - 1)
    limbs = [((share >> np.uint64(20 * k)) & mask).astype(np.int64) for k in range(3)]
    sums = [columns @ limb for limb in limbs]
    return [sum(int(sums[k][j]) << (20 * k) for k in range(3)) for j in range(len(columns))]


def _centred(value: int) -> float:
    value %= T
    return float(value - T if value > T // 2 else value)
