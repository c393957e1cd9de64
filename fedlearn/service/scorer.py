"""One row through one share. The same numbers as batch scoring gives, without an array per feature.

What depends on the model alone is laid out once, when it is loaded; a row then costs some look-ups.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Contract
from fedlearn.data.binning import FeatureBins
from fedlearn.data.design import Codes, Column
from fedlearn.errors import BadConfig
from fedlearn.learner.glm import family_of
from fedlearn.learner.objective import objective_of
from fedlearn.models.linear import LinearShare
from fedlearn.models.scorecard import Points, codes_of, reasons_due
from fedlearn.models.share import ActiveShare, PassiveShare
from fedlearn.service.store import Row, Value

U8 = NDArray[np.uint8]
Reasons = list[tuple[int, float]]  # index of a code, points lost; the dearest first


@dataclass(frozen=True)
class Part:
    """What the passive side says of one row.

    Attributes:
        sides: of trees: one bit for each of its splits, eight to a byte, the first in the lowest bit.
        points: of a linear model: its part of the linear predictor.
        reasons: of a scorecard: its codes that cost most.
        sealed: in sealed mode all that comes out, instead of a part.
    """

    sides: bytes = b""
    points: float = 0.0
    reasons: tuple[tuple[int, float], ...] = ()
    sealed: Outcome | None = None


@dataclass(frozen=True)
class Outcome:
    """What the active side makes of both parts: the mean (a probability), the margin, points and reason codes.

    ``calibrated`` is the probability that held on held-out rows; None where a model was trained without them.

    Where the contract tells the band alone: its number, the active side's own reason codes, and nothing else.
    """

    mean: float | None
    margin: float | None
    score: float | None = None
    reasons: tuple[str, ...] = ()
    band: int | None = None
    calibrated: float | None = None


class TreesPassive:
    """The passive half of trees."""

    def __init__(self, share: PassiveShare, names: Sequence[str]) -> None:
        """``names``: the order of a row's values."""
        self._bins = _Bins(share.binning.features, names)
        self._feature, self._masks = share.feature, share.masks
        self._each = np.arange(len(share.feature))

    def part(self, row: Row) -> Part:
        """The side of every split."""
        codes = self._bins.codes(row)[self._feature]
        sides = (self._masks[self._each, codes >> 3] >> (codes & 7)) & 1
        return Part(sides=np.packbits(sides, bitorder="little").tobytes())

    def codes(self, row: Row) -> list[int]:
        """The bin of each feature, for counts."""
        return self._bins.codes(row).tolist()  # type: ignore[no-any-return]


class TreesActive:
    """The active half of trees."""

    def __init__(self, share: ActiveShare, names: Sequence[str], contract: Contract) -> None:
        """``names``: the order of a row's values. Raises BadConfig for several classes."""
        if contract.outputs != 1:
            raise BadConfig("models of several classes or labels are scored by `predict` only")
        self.splits, self._forest = share.passive_splits, share.forest
        self._bins, self._first = _Bins(share.binning.features, names), np.zeros(1, np.int64)
        self._mean, self._calibration = objective_of(contract.boost, 1).mean, share.calibration
        self.outcome((math.nan,) * len(names), Part(bytes(self.due)))  # compiles the kernel

    @property
    def due(self) -> int:
        """Bytes of sides that a part must have."""
        return -(-self.splits // 8)

    def outcome(self, row: Row, part: Part) -> Outcome:
        """Walk the trees. ``part.sides`` has :attr:`due` bytes."""
        sides = np.unpackbits(np.frombuffer(part.sides, np.uint8), count=self.splits, bitorder="little")
        margins = self._forest.margins(self._bins.codes(row)[:, None], sides[:, None], self._first)
        calibrated = None if self._calibration is None else float(self._calibration.of(margins[0])[0])
        return Outcome(float(self._mean(margins)[0, 0]), float(margins[0, 0]), calibrated=calibrated)

    def codes(self, row: Row) -> list[int]:
        """The bin of each feature, for counts."""
        return self._bins.codes(row).tolist()  # type: ignore[no-any-return]


class Linear:
    """Either half of a linear model, with its points where it is a scorecard."""

    due = 0

    def __init__(self, share: LinearShare, names: Sequence[str], contract: Contract) -> None:
        """``names``: the order of a row's values, on the active side with the offset last where there is one."""
        side = contract.side(share.role)
        self._contract, self._intercept = contract, share.intercept
        self._columns = [
            (names.index(column.feature), _contribution(column, coefficient))
            for column, coefficient in zip(share.design.columns, share.coefficients.tolist(), strict=True)
        ]
        self._groups = [
            (names.index(column.feature), _coder(column.evidence.codes), column.evidence.group.tolist())
            for column in share.design.columns
            if column.evidence is not None
        ]
        self._lost: list[tuple[int, Callable[[Value], float]]] = []
        self._count = self._due = 0
        card = contract.scorecard
        if card is not None:
            points = Points.of(share, card, side)
            self._named, self._theirs = points.named, codes_of(card, contract.passive)
            self._count, self._due = len(points.named), reasons_due(card, points.named)
            self._lost_by_code(points, names)
        self._offset = names.index(contract.label.offset) if contract.label.offset in names else None
        self._family = family_of(contract.glm) if contract.glm is not None else None

    def _lost_by_code(self, points: Points, names: Sequence[str]) -> None:
        for j, (column, code) in enumerate(zip(points.columns, points.codes, strict=True)):
            if code is not None and column.evidence is not None:
                each = points.points[j][:, None].repeat(len(points.columns), axis=1).T
                lost = points.lost(each)[j][column.evidence.group].tolist()
                read = _coder(column.evidence.codes)
                at = names.index(column.feature)
                self._lost.append((points.named.index(code), _at(at, read, lost)))

    def part(self, row: Row) -> Part:
        """This side's part of the linear predictor, and its reasons."""
        return Part(points=self._own(row), reasons=tuple(self._reasons(row)))

    def outcome(self, row: Row, part: Part) -> Outcome:
        """Both parts together; ``part`` is the passive side's."""
        eta = self._own(row) + part.points
        if self._offset is not None and isinstance(offset := row[self._offset], float) and not math.isnan(offset):
            eta += offset
        mean = float(self._family.mean(np.array([eta]))[0]) if self._family else eta
        card = self._contract.scorecard
        if card is None:
            return Outcome(mean, eta)
        score = card.base_score - card.pdo / math.log(2) * (math.log(card.base_odds) + eta)
        both = [(-lost, self._named[k]) for k, lost in self._reasons(row)]
        both += [(-lost, self._theirs[k]) for k, lost in part.reasons]
        both.sort(key=lambda found: found[0])
        return Outcome(mean, eta, score, tuple(name for _, name in both[: card.reasons]))

    def _own(self, row: Row) -> float:
        return self._intercept + sum(part(row[at]) for at, part in self._columns)

    def _reasons(self, row: Row) -> Reasons:
        by_code = [0.0] * self._count
        for code, lost in self._lost:
            by_code[code] += lost(row)  # type: ignore[arg-type]
        found = [(code, lost) for code, lost in enumerate(by_code) if lost > 0]
        return sorted(found, key=lambda entry: -entry[1])[: self._due]

    def codes(self, row: Row) -> list[int]:
        """The group of each column on weights of evidence, for counts; nothing of other columns."""
        return [group[read(row[at])] for at, read, group in self._groups]


class _Bins:
    """Bins of one row, as :meth:`fedlearn.data.binning.Binning.transform` has them."""

    def __init__(self, features: Sequence[FeatureBins], names: Sequence[str]) -> None:
        self._columns = [(names.index(feature.name), _coder(Codes(feature))) for feature in features]
        self._last: tuple[Row, U8] = ((), np.empty(0, np.uint8))

    def codes(self, row: Row) -> U8:
        """The same row may be asked for twice, for its score and for the counts."""
        last, codes = self._last
        if last is not row:
            codes = np.array([code(row[at]) for at, code in self._columns], np.uint8)
            self._last = row, codes
        return codes


def _coder(codes: Codes) -> Callable[[Value], int]:
    """The bin of one value, as :meth:`fedlearn.data.design.Codes.of` has it."""
    bins, last = codes.bins, codes.bins.regular
    if bins.kind == "category":
        known = {text: code for code, text in enumerate(bins.categories)}
        return lambda value: known.get(value, last)  # type: ignore[arg-type]
    edges = bins.edges.tolist()
    special = {value: bins.bins + k for k, value in enumerate(codes.special)}

    def number(value: Value) -> int:
        if value in special:
            return special[value]
        return bisect_left(edges, value) if value == value else last  # noqa: PLR0124

    return number


def _contribution(column: Column, coefficient: float) -> Callable[[Value], float]:
    """What a column adds to the linear predictor."""
    slope, mean = coefficient / column.scale, column.mean
    if column.evidence is not None:
        read = _coder(column.evidence.codes)
        by_code = (slope * (column.evidence.woe[column.evidence.group] - mean)).tolist()
        return lambda value: float(by_code[read(value)])
    if column.text is not None:
        return lambda value: slope * ((value == column.text) - mean)
    return lambda value: slope * (value - mean) if value == value else 0.0  # type: ignore[operator]  # noqa: PLR0124


def _at(place: int, read: Callable[[Value], int], table: list[float]) -> Callable[..., float]:
    return lambda row: table[read(row[place])]


def passive_scorer(share: object, names: Sequence[str], contract: Contract) -> TreesPassive | Linear:
    """The passive side's scorer of a share."""
    if isinstance(share, PassiveShare):
        return TreesPassive(share, names)
    if isinstance(share, LinearShare) and share.role == "passive":
        return Linear(share, names, contract)
    raise BadConfig("the model is not the passive side's share")


def active_scorer(share: object, names: Sequence[str], contract: Contract) -> TreesActive | Linear:
    """The active side's scorer of a share."""
    if isinstance(share, ActiveShare):
        return TreesActive(share, names, contract)
    if isinstance(share, LinearShare) and share.role == "active":
        return Linear(share, names, contract)
    raise BadConfig("the model is not the active side's share")
