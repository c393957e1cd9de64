"""One row through one share. The same numbers as batch scoring gives, without an array per feature.

What depends on the model alone is laid out once, when it is loaded; a row then costs some look-ups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Contract
from fedlearn.data.design import Column
from fedlearn.errors import BadConfig
from fedlearn.learner.glm import family_of
from fedlearn.learner.objective import objective_of
from fedlearn.models.linear import LinearShare
from fedlearn.models.row import RowBins, Value, coder, row_sides
from fedlearn.models.scorecard import Points, codes_of, reasons_due, total
from fedlearn.models.share import ActiveShare, PassiveShare
from fedlearn.service.store import Row

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
        self._bins = RowBins(share.binning.features, names)
        self._share = share
        self.part((math.nan,) * len(names))  # compiles the kernels

    def part(self, row: Row) -> Part:
        """The side of every split."""
        return Part(sides=row_sides(self._share, self._bins.codes(row)))

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
        self._bins = RowBins(share.binning.features, names)
        self._mean, self._calibration = objective_of(contract.boost, 1).mean, share.calibration
        self.outcome((math.nan,) * len(names), Part(bytes(self.due)))  # compiles the kernel

    @property
    def due(self) -> int:
        """Bytes of sides that a part must have."""
        return -(-self.splits // 8)

    def outcome(self, row: Row, part: Part) -> Outcome:
        """Walk the trees. ``part.sides`` has :attr:`due` bytes."""
        return self._told(self._forest.margin(self._bins.codes(row), np.frombuffer(part.sides, np.uint8)))

    def _told(self, margin: float) -> Outcome:
        margins = np.array([[margin]])
        calibrated = None if self._calibration is None else float(self._calibration.of(margins[0])[0])
        return Outcome(float(self._mean(margins)[0, 0]), margin, calibrated=calibrated)

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
        both = list(zip(share.design.columns, share.coefficients.tolist(), strict=True))
        binned = [(column, column.evidence, slope) for column, slope in both if column.evidence is not None]
        self._plain = [(names.index(c.feature), _contribution(c, slope)) for c, slope in both if c.evidence is None]
        self._readers = [(names.index(column.feature), coder(evidence.codes)) for column, evidence, _ in binned]
        self._groups = [evidence.group.tolist() for _, evidence, _ in binned]
        self._points: list[list[float]] = [
            (slope / column.scale * (evidence.woe[evidence.group] - column.mean)).tolist()
            for column, evidence, slope in binned
        ]
        self._last: tuple[Row, list[int]] = ((), [])
        self._lost: list[tuple[int, int, list[float]]] = []  # a code, its column among those binned, lost by bin
        self._count = self._due = 0
        card = contract.scorecard
        if card is not None:
            points = Points.of(share, card, side)
            self._named, self._theirs = points.named, codes_of(card, contract.passive)
            self._count, self._due = len(points.named), reasons_due(card, points.named)
            self._lost_by_code(points)
        self._offset = names.index(contract.label.offset) if contract.label.offset in names else None
        self._family = family_of(contract.glm) if contract.glm is not None else None

    def _lost_by_code(self, points: Points) -> None:
        for j, (column, code) in enumerate(zip(points.columns, points.codes, strict=True)):
            if code is not None and column.evidence is not None:  # each column of a scorecard has it
                each = points.points[j][:, None].repeat(len(points.columns), axis=1).T
                lost = points.lost(each)[j][column.evidence.group].tolist()
                self._lost.append((points.named.index(code), j, lost))

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
        score = total(card, eta)
        both = [(-lost, self._named[k]) for k, lost in self._reasons(row)]
        both += [(-lost, self._theirs[k]) for k, lost in part.reasons]
        both.sort(key=lambda found: found[0])
        return Outcome(mean, eta, score, tuple(name for _, name in both[: card.reasons]))

    def _own(self, row: Row) -> float:
        eta = self._intercept
        for points, code in zip(self._points, self._bins(row), strict=True):
            eta += points[code]
        return eta + sum([part(row[at]) for at, part in self._plain])

    def _reasons(self, row: Row) -> Reasons:
        by_code, bins = [0.0] * self._count, self._bins(row)
        for code, at, lost in self._lost:
            by_code[code] += lost[bins[at]]
        found = [(code, lost) for code, lost in enumerate(by_code) if lost > 0]
        return sorted(found, key=lambda entry: -entry[1])[: self._due]

    def codes(self, row: Row) -> list[int]:
        """The group of each column on weights of evidence, for counts; nothing of other columns."""
        return [group[code] for group, code in zip(self._groups, self._bins(row), strict=True)]

    def _bins(self, row: Row) -> list[int]:
        """The bin of each column on weights of evidence. A row is asked for several times."""
        last, bins = self._last
        if last is not row:
            bins = [read(row[at]) for at, read in self._readers]
            self._last = row, bins
        return bins


def _contribution(column: Column, coefficient: float) -> Callable[[Value], float]:
    """What a column that is not on weights of evidence adds to the linear predictor."""
    slope, mean = coefficient / column.scale, column.mean
    if column.text is not None:
        return lambda value: slope * ((value == column.text) - mean)
    return lambda value: slope * (value - mean) if value == value else 0.0  # type: ignore[operator]  # noqa: PLR0124


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
