"""Generalised linear models over vertically divided columns, exact: the pooled maximum-likelihood fit by Newton steps.

The *active* side has label, weights, offset and columns, and drives; the *passive* side has columns only. Rows are
aligned (:mod:`fedlearn.protocols.align`); rows of the shared order that are not the active side's customers count zero.

    active                                                passive
      1. GlmOpen      how many columns it has       ──►
      2.                                            ◄──   GlmColumns  bounds of its standardised columns, shuffled
      3. encrypted products over the columns        ◄─►   (matvec: hint or key; see products)
         and over the products of pairs of columns
      for each Newton step:
      4. GlmAsk       how many vectors follow       ──►
         residual; weight times each own column     ◄─►   gradient; cross curvature
         weight                                     ◄─►   curvature of the passive columns
         (curvature only while weights still move)
      5. GlmCoefficients   to try                   ──►
                                                    ◄──   GlmScores   its partial score of every row
      at the end:
      6. GlmResult    coefficients, errors          ──►
         both: GlmSaved once written                ◄─►

The active side learns the gradient and the curvature over the passive columns at each step, hence the coefficients of
all opaque columns; and the partial score of every row of the shared order at each step. After as many steps as there
are passive columns it can solve for the columns' values themselves: see SECURITY.md. The passive side learns the
coefficients that were tried for its own columns, and of the fit what the contract grants.

Newton's method on the pooled columns: McCullagh & Nelder, "Generalized Linear Models" (1989).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message as ProtobufMessage
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract, Glm, Side
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BadLabel, BeyondContract, Collinear, Malformed, NoOverlap, OverBudget, WrongLength
from fedlearn.learner import glm as learner
from fedlearn.protocols import matvec, products
from fedlearn.v1 import glm_pb2 as pb

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
T = TypeVar("T", bound=ProtobufMessage)


def _told_at_the_end(message: pb.GlmResult) -> int:
    figures = sum(message.HasField(name) for name in ("deviance", "null_deviance", "aic", "dispersion"))
    return len(message.coefficients) + len(message.errors) + len(message.inflation) + len(message.changes) + figures


TABLE = Table(
    "glm",
    ("active", "passive"),
    (
        Message(pb.GlmOpen, "active", (START,), Reveals("how many columns the active side's design has")),
        Message(
            pb.GlmColumns,
            "passive",
            ("GlmOpen",),
            Reveals(
                "for each opaque column its largest standardised value, rounded up; and names if agreed",
                lambda m: len(m.largest),
            ),
        ),
        Message(
            pb.GlmAsk,
            "active",
            ("GlmColumns", "GlmAsk", "GlmScores"),
            Reveals("how many encrypted vectors follow", lambda _: 2),
        ),
        Message(
            pb.GlmCoefficients,
            "active",
            ("GlmAsk",),
            Reveals("coefficients to try for its own columns", lambda m: len(m.values)),
        ),
        Message(
            pb.GlmScores,
            "passive",
            ("GlmCoefficients", "GlmScores"),
            Reveals("the partial score of every row at the coefficients tried", lambda m: len(m.values) // 4),
        ),
        Message(
            pb.GlmResult,
            "active",
            ("GlmAsk", "GlmScores"),
            Reveals(
                "the coefficients of its own columns, how the fit converged; errors, VIF, deviance, dispersion and AIC "
                "if agreed",
                _told_at_the_end,
            ),
        ),
        Message(pb.GlmSaved, BOTH, ("GlmResult", "GlmSaved"), nothing("an acknowledgement")),
    ),
)

#: Units of a partial score on the wire: a 65,536th of a unit of the linear predictor.
_UNIT = 2.0**-16
#: Largest partial score that the wire takes, and that a linear model's are brought to (at least half as large a bound):
#: 24 bits and a sign, about what the other families' take.
_REACH, _LINEAR_REACH = 32_767.0, 256.0
#: Characters that are told of a category's text at most, as part of a column's name.
_TEXT = 100
#: Largest and smallest range of a linear model's labels: squares of what lies beyond are no numbers.
_RANGE = 1e100
_PIECE_ROWS = 4 << 20
#: How the run's leakage budget is divided: columns and pairs (the rest is for weights of evidence).
_COLUMNS_SHARE, _PAIRS_SHARE = 0.5, 0.375
#: Bits of the products of pairs: their errors average out over rows, and no coefficient depends on the curvature.
_PAIR_BITS = 12


@dataclass(frozen=True)
class ActiveData:
    """What the active side fits.

    Attributes:
        rows: its own rows, in its own order; columns standardised.
        position: int64 (m,), place of each row in the shared order.
        universe: n, length of the shared order.
        names: of its columns, for messages.
        later: int64, places of rows out of time: no part of the fit, but scored by it.
    """

    rows: learner.Rows
    position: I64
    universe: int
    names: tuple[str, ...] = ()
    later: I64 = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class PassiveData:
    """The passive side's standardised columns, float64 (p_P, n), in the shared order; and their names."""

    columns: F64
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Pearson correlations (p, p) of all columns, the active side's first, and variance inflation factors (p,)."""

    correlation: F64
    inflation: F64


@dataclass(frozen=True)
class ActiveResult:
    """What the active side gets.

    Attributes:
        fit: passive columns in opaque order.
        model_id: 16 bytes that both shares carry.
        names: of the opaque columns, if disclosed.
        statistics: of all columns over the aligned rows, if the contract has them.
        later: float64, the passive side's partial scores of the rows out of time.
    """

    fit: learner.Fit
    model_id: bytes
    names: tuple[str, ...]
    statistics: Statistics | None = None
    later: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class PassiveResult:
    """What the passive side gets, in its own order of columns.

    Attributes:
        coefficients: float64 (p_P,).
        errors: float64 (p_P,), standard errors; None where the contract keeps them or there are none (L1).
        converged, steps: how the fit went.
        changes: sizes of the steps in standard errors; empty where these are not told.
        inflation: float64 (p_P,), variance inflation factors; None where the contract has no statistics.
        facts: deviance, null deviance, AIC and dispersion as far as the contract goes.
        model_id: 16 bytes that both shares carry.
    """

    coefficients: F64
    errors: F64 | None
    inflation: F64 | None
    converged: bool
    steps: int
    changes: list[float]
    facts: dict[str, float]
    model_id: bytes


# --- what both sides compute from the contract and the sizes -----------------------------------------


def asks(glm: Glm) -> int:
    """How often products are asked for at most: at every step, at the end, for errors and for statistics."""
    return glm.max_steps + 1 + int(glm.statistics) + int(learner.expects(glm))


def scorings(contract: Contract) -> int:
    """How often the passive side scores all rows at most: at every step, and once more for rows out of time."""
    return _glm(contract).max_steps + int(contract.out_of_time is not None)


def most_vectors(glm: Glm, active_columns: int) -> int:
    """How many encrypted vectors a fit may need."""
    return asks(glm) * (active_columns + 4)


def layouts(
    contract: Contract, active_columns: int, passive_columns: int, universe: int
) -> tuple[products.Layout, products.Layout]:
    """Layouts of the columns and of the products of pairs.

    Raises:
        OverBudget: more vectors than the contract allows, or more leakage.
    """
    glm, budget = _glm(contract), contract.budget
    vectors = most_vectors(glm, active_columns)
    if vectors > budget.vectors:
        raise OverBudget(
            f"the fit may need {vectors} encrypted vectors ({asks(glm)} times {active_columns + 4}), "
            f"over the {budget.vectors} of [budget] vectors in contract {contract.name!r}"
        )
    columns = matvec.Terms.of(contract, largest_value=1, vectors=asks(glm) * (active_columns + 3))
    pairs = replace(columns, vectors=asks(glm), kl_nats=budget.kl_nats * _PAIRS_SHARE)
    columns = replace(columns, kl_nats=budget.kl_nats * _COLUMNS_SHARE)
    return (
        products.Layout.choose(columns, passive_columns, universe, glm.digits),
        products.Layout.choose(pairs, passive_columns * (passive_columns + 1) // 2, universe, _PAIR_BITS),
    )


def _glm(contract: Contract) -> Glm:
    if contract.glm is None:
        raise ValueError("the contract has no [glm]")
    return contract.glm


def _pairs(columns: int) -> tuple[I64, I64]:
    first, second = np.triu_indices(columns)
    return first.astype(np.int64), second.astype(np.int64)


def model_id(channel: Channel, contract: Contract) -> bytes:
    """16 bytes that both shares of this session's model carry."""
    return hashlib.sha256(b"fedlearn/1 glm model" + channel.session + contract.hash()).digest()[:16]


# --- active ------------------------------------------------------------------------------------------


def fit_active(channel: Channel, contract: Contract, data: ActiveData) -> ActiveResult:
    """Fit as the side that has the label.

    Raises:
        NoOverlap, BadLabel: too few aligned rows, or labels that the family has no likelihood for.
        OverBudget: before any row's value leaves either side.
        Collinear, Separation: the likelihood has no single finite maximum.
        PeerMisbehaved: see the subclasses.
    """
    glm, rows = _glm(contract), data.rows
    check_rows(rows, glm)
    channel.open(TABLE, "active")
    with channel.phase("hint"):
        channel.send(pb.GlmOpen(columns=len(rows.columns)))
        peer = _open_peer(channel, contract, data)
    with channel.phase("steps"):
        names = (*data.names, *(peer.names or (f"{contract.passive.name}#{j}" for j in range(peer.columns))))
        statistics = _statistics(peer) if glm.statistics else None
        fit = learner.fit(rows, glm, peer, names)
        theirs = fit.coefficients[1 + len(rows.columns) :]
        later = peer.scores_at(theirs, data.later) if len(data.later) else np.zeros(0)
    result = _result(contract, fit, len(rows.columns))
    if statistics is not None:
        result.inflation.extend(statistics.inflation[len(rows.columns) :].tolist())
    result.model_id = model_id(channel, contract)
    channel.send(result)
    return ActiveResult(fit, result.model_id, peer.names, statistics, later)


def _statistics(peer: _Peer) -> Statistics:
    """Correlations and VIF = diagonal of the inverse correlation matrix, over the active side's rows, unweighted."""
    own = peer.data.rows.columns
    count = own.shape[1]
    blocks = peer.products(np.ones(count), np.ones(count))
    if blocks.cross is None or blocks.own is None:
        raise ValueError("products were asked for without curvature")
    means = np.concatenate([own.mean(axis=1), blocks.gradient / count])
    moments = np.block([[own @ own.T, blocks.cross[:, 1:].T], [blocks.cross[:, 1:], blocks.own]]) / count
    covariance = moments - np.outer(means, means)
    deviations = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = covariance / np.outer(deviations, deviations)
    return Statistics(correlation, np.diag(np.linalg.pinv(correlation)))


def check_rows(rows: learner.Rows, glm: Glm) -> None:
    """Raises NoOverlap or BadLabel for rows that no fit can be had from."""
    check_label(rows.label, glm, len(rows.columns))


def check_label(label: F64, glm: Glm, columns: int = 1) -> None:
    """Raises NoOverlap or BadLabel for labels that no fit can be had from with so many own columns or more."""
    count, size = len(label), columns + 2
    if count <= size + 10:
        raise NoOverlap(f"only {count} aligned rows have a label; {size} or more coefficients need more")
    if label.min() == label.max():
        raise NoOverlap(f"all {count} aligned rows have the same label, so there is nothing to learn")
    if glm.family == "gamma" and label.min() <= 0:
        raise BadLabel(f"family gamma needs positive labels; {int((label <= 0).sum())} aligned rows have others")
    apart = float(label.max()) - float(label.min())
    if glm.family == "linear" and not 1 / _RANGE < apart < _RANGE:
        raise BadLabel(f"the labels of the {count} aligned rows are {apart:.3g} apart: give them in another unit")


def _result(contract: Contract, fit: learner.Fit, own: int) -> pb.GlmResult:
    """What the passive side is told. One-sided alignment hides how many rows are shared, which deviances would tell.

    Standard errors, and steps measured in them, tell it roughly; the contract decides.
    """
    glm = _glm(contract)
    message = pb.GlmResult(
        coefficients=fit.coefficients[1 + own :].tolist(),
        converged=fit.converged,
        steps=len(fit.changes),
    )
    if glm.errors or contract.align.mode == "mutual":
        message.changes.extend(fit.changes)
    if glm.errors and fit.errors is not None:
        message.errors.extend(fit.errors[1 + own :].tolist())
    if contract.align.mode == "mutual":
        message.deviance, message.null_deviance = fit.deviance, fit.null_deviance
        message.dispersion = fit.dispersion
        if fit.aic is not None:
            message.aic = fit.aic
    return message


@dataclass
class _Peer:
    """The passive side as the learner sees it; see :class:`fedlearn.learner.glm.Passive`."""

    channel: Channel
    glm: Glm
    data: ActiveData
    names: tuple[str, ...]
    by_column: products.Querier
    by_pair: products.Querier
    steps: int = 0

    @property
    def columns(self) -> int:
        return self.by_column.layout.columns

    def products(self, residual: F64, weight: F64 | None) -> learner.Blocks:
        own = self.data.rows.columns
        if weight is None:
            self.channel.send(pb.GlmAsk(columns=2, pairs=0))
            return learner.Blocks(self.by_column.ask([residual], lambda _: residual, 0)[0])
        weights = weight
        self.channel.send(pb.GlmAsk(columns=3 + len(own), pairs=1))
        sums = self.by_column.ask([residual], lambda j: weights * own[j - 1] if j else weights, 1 + len(own))
        pair = self.by_pair.ask([], lambda _: weights, 1)[0]
        curvature = np.empty((self.columns, self.columns))
        first, second = _pairs(self.columns)
        curvature[first, second] = curvature[second, first] = pair
        return learner.Blocks(sums[0], sums[1:].T, curvature, self._noise(weight, curvature))

    def _noise(self, weight: F64, curvature: F64) -> float:
        """Deviation of the entries by both roundings (each uniform about 1/√6 of a step), relative to the diagonals."""
        by_pair = self.by_pair
        step = by_pair.largest / by_pair.layout.largest
        entries = step**2 * float(weight @ weight)
        values = len(weight) * 3 * (float(weight.max()) / by_pair.layout.terms.largest_value) ** 2
        diagonal = np.maximum(np.diag(curvature), 1e-300)
        first, second = _pairs(self.columns)
        relative = np.sqrt((entries + values) / 6 / (diagonal[first] * diagonal[second]))
        return float(np.median(relative))

    def scores(self, coefficients: F64) -> F64:
        return self.scores_at(coefficients, self.data.position)

    def scores_at(self, coefficients: F64, position: I64) -> F64:
        """The passive side's partial scores of the rows at these places of the shared order."""
        unit = self._unit(coefficients)
        self.channel.send(pb.GlmCoefficients(values=(coefficients / unit).tolist()))
        scores = np.empty(self.data.universe, np.int32)
        filled = 0
        while filled < len(scores):
            piece = self.channel.receive(pb.GlmScores)
            due = min(_PIECE_ROWS, len(scores) - filled)
            if piece.first != filled or len(piece.values) != 4 * due:
                raise self.channel.misbehaved(
                    WrongLength, f"sent {len(piece.values)} bytes of scores from row {piece.first} where {due} were due"
                )
            scores[filled : filled + due] = np.frombuffer(piece.values, "<i4")
            filled += due
        self.steps += 1
        self.channel.progress(self.steps, self.glm.max_steps, "steps at most")
        return np.asarray(scores[position] * (_UNIT * unit))

    def _unit(self, coefficients: F64) -> float:
        """The power of two that coefficients go out divided by, so that every score fits, and scores come back times.

        A linear predictor behind a link is of the order of 1; without one it has the label's own unit, which the range
        of scores must go along with. The passive side could work it out: it is told the coefficients in the end.
        """
        linear = self.glm.family == "linear"
        most = float(np.abs(coefficients) @ self.by_column.largest)
        unit = 2.0 ** np.ceil(np.log2(max(most, 1e-200) / (_LINEAR_REACH if linear else _REACH)))
        return float(unit if linear else max(unit, 1.0))


def _open_peer(channel: Channel, contract: Contract, data: ActiveData) -> _Peer:
    glm = _glm(contract)
    told = channel.receive(pb.GlmColumns)
    largest = np.array(told.largest, np.float64)
    check_columns(channel, len(largest), glm, contract.passive)
    products.check_largest(channel, largest)
    names = check_names(channel, contract, list(told.names), len(largest), glm.woe)
    by_column, by_pair = layouts(contract, len(data.rows.columns), len(largest), data.universe)
    first, second = _pairs(len(largest))
    return _Peer(
        channel,
        glm,
        data,
        names,
        products.Querier.open(channel, by_column, largest, data.position),
        products.Querier.open(channel, by_pair, largest[first] * largest[second], data.position),
    )


def most_columns(glm: Glm, side: Side) -> int:
    """One column of a number; of a category one for each of its texts but the most frequent."""
    return sum(1 if glm.woe or kind == "number" else glm.bins - 1 for kind in side.features.values())


def check_columns(channel: Channel, columns: int, glm: Glm, side: Side, least: int = 1) -> None:
    """Whether the peer has as many columns as its features can give: each is a product more that it may ask for.

    Raises:
        BeyondContract: it has announced fewer or more.
    """
    most = most_columns(glm, side)
    if not least <= columns <= most:
        raise channel.misbehaved(BeyondContract, f"announced {columns} columns, the contract allows {most}")


# --- names of columns: a feature, or of a category without weights of evidence ``feature=text`` --------


def told_names(contract: Contract, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of passive columns as they are told: texts of categories printable, short, distinct; () if not agreed."""
    if not contract.disclosure.names:
        return ()
    told: list[str] = []
    for j, name in enumerate(names):
        at = len(name) if name in contract.passive.features else _text_at(contract.passive, name)
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[at:])
        if len(text) > _TEXT or name[:at] + text in told:
            text = f"{text[: _TEXT - 8]}~{j}"
        told.append(name[:at] + text)
    return tuple(told)


def check_names(channel: Channel, contract: Contract, told: list[str], columns: int, woe: bool) -> tuple[str, ...]:
    """Names of opaque columns that the passive side told: distinct and of its features, or none where not agreed.

    Raises:
        Malformed: they are not what :func:`told_names` makes.
    """
    agreed = contract.disclosure.names
    if len(told) != (columns if agreed else 0) or len(set(told)) < len(told):
        raise channel.misbehaved(Malformed, "announced other column names than the contract discloses")
    for name in told:
        if not _is_name(contract.passive, name, woe):
            raise channel.misbehaved(Malformed, f"announced a column {name[:_TEXT]!r}, which no feature gives")
    return tuple(told)


def _is_name(side: Side, name: str, woe: bool) -> bool:
    if woe or side.features.get(name) == "number":
        return name in side.features
    at = _text_at(side, name)
    return at > 0 and len(name) - at <= _TEXT and name[at:].isprintable()


def _text_at(side: Side, name: str) -> int:
    """Where in a column's name the text of its category begins; 0 if no category gives such a name."""
    categories = (f"{feature}=" for feature, kind in side.features.items() if kind == "category")
    return max((len(start) for start in categories if name.startswith(start)), default=0)


# --- passive -----------------------------------------------------------------------------------------


def fit_passive(channel: Channel, contract: Contract, data: PassiveData) -> PassiveResult:
    """Serve a fit as the side that has columns only.

    Raises:
        Collinear: its own columns repeat each other.
        OverBudget: before any row's value leaves either side.
        PeerMisbehaved: see the subclasses.
    """
    glm = _glm(contract)
    if not glm.l2:
        check_independent(data.columns, data.names)
    channel.open(TABLE, "passive")
    order = Draws().permutation(len(data.columns))
    columns = np.ascontiguousarray(data.columns[order])
    with channel.phase("hint"):
        opened = channel.receive(pb.GlmOpen)
        check_columns(channel, opened.columns, glm, contract.active, least=0)
        holders = _open_holders(channel, contract, data, order, columns, opened.columns)
    done = 0
    with channel.phase("steps"):
        while True:
            message = channel.receive(pb.GlmAsk, pb.GlmCoefficients, pb.GlmResult)
            if isinstance(message, pb.GlmAsk):
                _answer(channel, message, holders, opened.columns)
            elif isinstance(message, pb.GlmCoefficients):
                done += 1
                if done > scorings(contract):
                    raise channel.misbehaved(
                        BeyondContract, f"tried coefficients {done} times where the contract has {glm.max_steps} steps"
                    )
                _send_scores(channel, _finite(channel, message.values, len(columns)) @ columns)
                channel.progress(done, scorings(contract), "steps at most")
            elif isinstance(message, pb.GlmResult):
                break
    return _received(channel, contract, message, order)


def exchange_saved(channel: Channel) -> None:
    """Both roles: say that this side's share is written, and wait for the other's word."""
    channel.send(pb.GlmSaved())
    channel.receive(pb.GlmSaved)


def check_independent(columns: F64, names: tuple[str, ...]) -> None:
    """Whether a side's own standardised columns can be fitted together.

    Raises:
        NoOverlap: there is no row.
        Collinear: columns repeat each other; it names them.
    """
    if not columns.shape[1]:
        raise NoOverlap("no aligned row is left to fit columns on")
    gram = columns @ columns.T
    roots = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    values, vectors = np.linalg.eigh(gram / np.outer(roots, roots))
    if len(values) and values[0] < 1e-8:
        involved = [names[j] if names else f"column {j}" for j in np.flatnonzero(np.abs(vectors[:, 0]) > 0.2)]
        raise Collinear(f"{' and '.join(involved)} repeat each other: the curvature is singular")


def _open_holders(
    channel: Channel, contract: Contract, data: PassiveData, order: I64, columns: F64, active_columns: int
) -> tuple[matvec.Holder, matvec.Holder]:
    count, universe = columns.shape
    by_column, by_pair = layouts(contract, active_columns, count, universe)
    largest = products.largest_of(columns)
    names = told_names(contract, tuple(data.names[j] for j in order) if data.names else ())
    channel.send(pb.GlmColumns(largest=largest.tolist(), names=names))
    ones = np.ones(universe)
    first, second = _pairs(count)
    return (
        products.open_holder(channel, by_column, lambda j: (columns[j], ones), largest),
        products.open_holder(
            channel, by_pair, lambda k: (columns[first[k]], columns[second[k]]), largest[first] * largest[second]
        ),
    )


def _answer(
    channel: Channel, ask: pb.GlmAsk, holders: tuple[matvec.Holder, matvec.Holder], active_columns: int
) -> None:
    if (ask.columns, ask.pairs) not in ((2, 0), (3 + active_columns, 1)):
        raise channel.misbehaved(
            Malformed, f"announced {ask.columns} and {ask.pairs} vectors, which no step of a fit asks for"
        )
    for holder, count in zip(holders, (ask.columns, ask.pairs), strict=True):
        matvec.serve(channel, holder, count)


def _finite(channel: Channel, values: object, due: int, what: str = "coefficients", least: float = -np.inf) -> F64:
    array = np.array(values, np.float64)
    if array.shape != (due,) or not (np.isfinite(array) & (array >= least)).all():
        bound = "" if least == -np.inf else f" of {least:g} or more"
        raise channel.misbehaved(WrongLength, f"sent {array.size} {what} where {due} finite ones{bound} were due")
    return array


def _send_scores(channel: Channel, scores: F64) -> None:
    """Raises Malformed for scores that do not fit: an active side scales its coefficients so that they do."""
    most = float(np.abs(scores).max(initial=0.0))
    if not most <= _REACH:
        raise channel.misbehaved(
            Malformed, f"tried coefficients that give a row a partial score of {most:.3g}, over the {_REACH:g} that fit"
        )
    whole = np.rint(scores / _UNIT).astype("<i4")
    for first in range(0, len(whole), _PIECE_ROWS):
        channel.send(pb.GlmScores(first=first, values=whole[first : first + _PIECE_ROWS].tobytes()))


def _received(channel: Channel, contract: Contract, message: pb.GlmResult, order: I64) -> PassiveResult:
    if not hmac.compare_digest(message.model_id, model_id(channel, contract)):
        raise channel.misbehaved(Malformed, "named another model than this session's")
    natural = np.empty(len(order))
    natural[order] = _finite(channel, message.coefficients, len(order))
    errors = None
    if message.errors:
        errors = np.empty(len(order))
        errors[order] = _finite(channel, message.errors, len(order), "standard errors", 0.0)
    inflation = None
    if message.inflation:
        inflation = np.empty(len(order))
        inflation[order] = _finite(channel, message.inflation, len(order), "inflation factors")
    due = (0, message.steps) if contract.align.mode != "mutual" else (message.steps,)
    if not 1 <= message.steps <= asks(_glm(contract)) or len(message.changes) not in due:
        raise channel.misbehaved(WrongLength, f"reported {message.steps} steps and the sizes of {len(message.changes)}")
    changes = _finite(channel, message.changes, len(message.changes), "sizes of steps", 0.0)
    told = [name for name in ("deviance", "null_deviance", "aic", "dispersion") if message.HasField(name)]
    facts = {name: float(getattr(message, name)) for name in told}
    for name, value in facts.items():
        if not np.isfinite(value):
            raise channel.misbehaved(Malformed, f"reported {value} for {name}")
    return PassiveResult(
        natural,
        errors,
        inflation,
        message.converged,
        message.steps,
        changes.tolist(),
        facts,
        bytes(message.model_id),
    )
