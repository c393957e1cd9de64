"""Generalised linear models by penalised Newton steps; standard errors from the expected information.

Model: η = offset + b_0 + X_A·b_A + X_P·b_P, mean μ = link⁻¹(η); weights multiply each row's log-likelihood. Score and
Fisher information as in McCullagh & Nelder, "Generalized Linear Models" (2nd ed., 1989), 2.5; elastic net by coordinate
descent on the quadratic model, as in Friedman, Hastie & Tibshirani (J. Stat. Softw. 33, 2010). The objective is
deviance / (2·Σ weight) + l2/2·‖b‖² + l1·‖b‖₁ over coefficients of standardised columns, the intercept free.

The passive side's columns are not here: :class:`Passive` answers with X_P·b_P, and with products of X_P with what the
active side has. Without it, :func:`fit` fits the active side's columns alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Glm, Select
from fedlearn.errors import Collinear, Separation

F64 = NDArray[np.float64]

#: Curvature is asked for again when the weights have moved by this share of their sum since it was last.
_STALE = 2e-5
#: A step that moves the linear predictor of a row by more than this is no step near a maximum.
_FAR = 0.5
#: Halvings of a step that does not lower the objective.
_HALVINGS = 12
#: A step below this many standard errors is taken whole: it lowers the objective by less than the rounding of partial
#: scores may, and Newton's steps converge from there without halving.
_SMALL = 0.05


@dataclass(frozen=True)
class Family:
    """A distribution with its link. Arrays are float64 (m,).

    Attributes:
        name: as in the contract.
        mean: η to μ.
        start: mean of y to η.
        residual: (y, μ) to the derivative of a row's log-likelihood by η, at dispersion 1.
        information: μ to its expected negative second derivative, for standard errors.
        curvature: (y, μ) to the second derivative itself, for steps; the same under a canonical link.
        variance: μ to the variance function V(μ).
        deviance: (y, η) to a row's unit deviance.
        estimates_dispersion: whether the dispersion is Pearson's χ²/(n − p) or 1.
    """

    name: str
    mean: Callable[[F64], F64]
    start: Callable[[float], float]
    residual: Callable[[F64, F64], F64]
    information: Callable[[F64], F64]
    curvature: Callable[[F64, F64], F64]
    variance: Callable[[F64], F64]
    deviance: Callable[[F64, F64], F64]
    estimates_dispersion: bool


def family_of(glm: Glm) -> Family:
    """The contract's family: logit link for ``logistic``, identity for ``linear``, else log."""
    if glm.family == "logistic":
        return Family(
            "logistic", _expit, lambda m: float(np.log(m / (1 - m))), lambda y, mu: y - mu,
            lambda mu: mu * (1 - mu), lambda y, mu: mu * (1 - mu), lambda mu: mu * (1 - mu),
            lambda y, eta: 2 * (np.logaddexp(0, eta) - y * eta), False,
        )  # fmt: skip
    if glm.family == "linear":
        return Family(
            "linear", lambda eta: eta, float, lambda y, mu: y - mu,
            np.ones_like, lambda y, mu: np.ones_like(mu), np.ones_like,
            lambda y, eta: (y - eta) ** 2, True,
        )  # fmt: skip
    power = {"poisson": 1.0, "gamma": 2.0, "tweedie": glm.tweedie_power}[glm.family]
    return Family(
        glm.family, np.exp, lambda m: float(np.log(m)), lambda y, mu: (y - mu) * mu ** (1 - power),
        lambda mu: mu ** (2 - power),
        lambda y, mu: (2 - power) * mu ** (2 - power) + (power - 1) * y * mu ** (1 - power),
        lambda mu: mu**power, _power_deviance(power), power != 1,
    )  # fmt: skip


def _expit(eta: F64) -> F64:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * eta)))


def _power_deviance(power: float) -> Callable[[F64, F64], F64]:
    """Unit deviance of a variance function μ^power under the log link (Jørgensen 1997)."""

    def deviance(y: F64, eta: F64) -> F64:
        mu = np.exp(eta)
        if power == 1:
            return np.asarray(2 * (np.where(y > 0, y * (np.log(np.where(y > 0, y, 1)) - eta), 0) - (y - mu)))
        if power == 2:
            return np.asarray(2 * (eta - np.log(y) + y / mu - 1))
        a, b = 1 - power, 2 - power
        return np.asarray(2 * (y**b / (a * b) - y * mu**a / a + mu**b / b))

    return deviance


def expects(glm: Glm) -> bool:
    """Whether standard errors take another curvature than steps do: without a canonical link (gamma, Tweedie).

    There the expected information may be far from the curvature on rows with large columns, and Fisher's steps then
    crawl; the likelihood is log-concave in η with either, so Newton's own steps with halving always converge.
    """
    return glm.family in ("gamma", "tweedie")


@dataclass(frozen=True)
class Rows:
    """The active side's rows: columns float64 (p_A, m), standardised; label, weight and offset float64 (m,)."""

    columns: F64
    label: F64
    weight: F64
    offset: F64


@dataclass(frozen=True)
class Blocks:
    """Products of the passive columns: what only the passive side's data can give.

    Attributes:
        gradient: float64 (p_P,), X_P·residual.
        cross: float64 (p_P, 1 + p_A), X_P·W·(1, X_A); None when not asked for.
        own: float64 (p_P, p_P), X_P·W·X_Pᵀ; None when not asked for.
        noise: deviation of an entry of the curvature by rounding, relative to the geometric mean of its diagonals.
    """

    gradient: F64
    cross: F64 | None = None
    own: F64 | None = None
    noise: float = 0.0


class Passive(Protocol):
    """The passive side as the learner sees it."""

    @property
    def columns(self) -> int:
        """How many columns p_P it has."""

    def products(self, residual: F64, weight: F64 | None) -> Blocks:
        """Gradient, and curvature under ``weight`` (m,) unless that is None."""

    def scores(self, coefficients: F64) -> F64:
        """X_P·coefficients, float64 (m,)."""


@dataclass(frozen=True)
class Fit:
    """A fitted model on standardised columns; the intercept comes first, then the active columns, then the passive.

    Attributes:
        coefficients: float64 (1 + p_A + p_P,).
        covariance: float64, square of that size, dispersion included; None under an L1 penalty.
        eta: float64 (m,), linear predictor of the training rows, offset included.
        partial: float64 (m,), the passive share of it.
        converged: whether the last step was within the tolerance.
        changes: size of each Newton step, in standard errors: √(dᵀ H d / dispersion), H with the L2 penalty.
        deviance, null_deviance: of the fit, and of intercept and offset alone.
        dispersion: 1, or Pearson's χ²/(m − p).
        log_likelihood: at that dispersion; None for ``tweedie``, which has no closed form, and of a perfect linear fit.
        dropped: p-value of each coefficient that backward elimination left out, by place; these are exactly 0, and so
            are their errors.
    """

    coefficients: F64
    covariance: F64 | None
    eta: F64
    partial: F64
    converged: bool
    changes: list[float]
    deviance: float
    null_deviance: float
    dispersion: float
    log_likelihood: float | None
    dropped: dict[int, float] = field(default_factory=dict)

    @property
    def aic(self) -> float | None:
        """Akaike's information criterion, the intercept counted, the dispersion not (as statsmodels does)."""
        return (
            None
            if self.log_likelihood is None
            else 2 * (len(self.coefficients) - len(self.dropped) - self.log_likelihood)
        )

    @property
    def errors(self) -> F64 | None:
        """Standard errors, float64 (1 + p,)."""
        return None if self.covariance is None else np.sqrt(np.diag(self.covariance))


def fit(rows: Rows, glm: Glm, passive: Passive | None = None, names: tuple[str, ...] = ()) -> Fit:
    """Fit by Newton steps, with halving; from the active side's own fit where there is a passive side.

    Args:
        rows: the active side's.
        glm: the contract's settings.
        passive: what answers for the passive columns.
        names: of all columns, for messages.

    Raises:
        Collinear: the curvature is singular: columns repeat each other.
        Separation: a column or a combination predicts the label perfectly, and no L2 penalty holds it.
    """
    return _Newton(rows, glm, passive, names).run()


class _Newton:
    def __init__(self, rows: Rows, glm: Glm, passive: Passive | None, names: tuple[str, ...]) -> None:
        self.rows, self.glm, self.passive = rows, glm, passive
        self.names = ("the intercept", *names)
        self.family = family_of(glm)
        self.total = float(rows.weight.sum())
        self.design = np.vstack([np.ones(rows.columns.shape[1]), rows.columns])
        self.own = len(self.design)
        self.size = self.own + (passive.columns if passive else 0)
        self.changes: list[float] = []
        self.model_from = 0  # the first of the changes since columns were last dropped
        self.expects = expects(glm)
        self.dropped: dict[int, float] = {}
        self.first: F64 | None = None
        self.suspected = False

    def run(self) -> Fit:
        rows = self.rows
        beta = np.zeros(self.size)
        null = self._null()
        beta[0] = null
        if self.passive is not None:
            bare = self.glm.model_copy(update={"select": Select()})
            beta[: self.own] = fit(rows, bare, None, self.names[1 : self.own]).coefficients
        partial = np.zeros(len(rows.label))
        curvature, noise, seen = np.zeros((0, 0)), 0.0, None
        converged, eta = False, np.zeros(0)
        for step in range(self.glm.max_steps + 1):
            eta, before = rows.offset + beta[: self.own] @ self.design + partial, eta
            self._check_overlap(eta)
            mu = self.family.mean(eta)
            residual = rows.weight * self.family.residual(rows.label, mu)
            weight = rows.weight * self.family.curvature(rows.label, mu)
            moved = seen is None or _moved(weight, seen)
            blocks = self.passive.products(residual, weight if moved else None) if self.passive else None
            gradient = self.design @ residual
            if blocks is not None:
                gradient = np.concatenate([gradient, blocks.gradient])
            if moved:
                curvature, noise, seen = self._curvature(weight, blocks), blocks.noise if blocks else 0.0, weight
                self._check(curvature, noise)
            change = self._step(curvature, gradient, beta)
            scale = self._dispersion(mu)
            # The penalty counts: along a combination in which columns cancel, there is nothing else to measure.
            size = float(change @ (curvature + self._ridge) @ change)
            self.changes.append(float(np.sqrt(max(0.0, size) / scale)))
            converged = self._converged(eta, before, change)
            if step == self.glm.max_steps:
                break
            if converged:
                fewer = self._eliminate(beta, curvature, noise, scale)
                if fewer is None:
                    break
                beta, self.model_from = fewer, len(self.changes)
                partial = self.passive.scores(beta[self.own :]) if self.passive else partial
                converged, eta = False, np.zeros(0)
                continue
            target = self.passive.scores(beta[self.own :] + change[self.own :]) if self.passive else partial
            share = 1.0 if self.changes[-1] <= _SMALL else self._share(beta, change, partial, target)
            if share == 0:
                break
            beta, partial = beta + share * change, partial + share * (target - partial)
        if self.expects and not self.glm.l1:
            weight = rows.weight * self.family.information(mu)
            blocks = self.passive.products(residual, weight) if self.passive else None
            curvature, noise = self._curvature(weight, blocks), blocks.noise if blocks else 0.0
        return self._result(beta, curvature, noise, eta, partial, converged)

    def _null(self) -> float:
        """Intercept of the model without columns, by Newton steps where an offset leaves no closed form."""
        rows, family = self.rows, self.family
        most = np.inf if family.name == "linear" else 2.0  # one step ends it there, however large the label's unit
        b = family.start(float(np.average(rows.label, weights=rows.weight)))
        if rows.offset.any():
            for _ in range(50):
                mu = family.mean(rows.offset + b)
                change = (rows.weight @ family.residual(rows.label, mu)) / (rows.weight @ family.information(mu))
                b += float(np.clip(change, -most, most))
                if abs(change) < 1e-10:
                    break
        self.null_deviance = self._deviance(rows.offset + b)
        return b

    def _deviance(self, eta: F64) -> float:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = float(self.rows.weight @ self.family.deviance(self.rows.label, eta))
        return found if np.isfinite(found) else np.inf

    def _objective(self, eta: F64, beta: F64) -> float:
        slopes = beta[1:]
        penalty = self.glm.l2 / 2 * float(slopes @ slopes) + self.glm.l1 * float(np.abs(slopes).sum())
        return self._deviance(eta) / (2 * self.total) + penalty

    def _curvature(self, weight: F64, blocks: Blocks | None) -> F64:
        own = (self.design * weight) @ self.design.T
        if blocks is None or blocks.cross is None or blocks.own is None:
            return np.asarray(own)
        return np.block([[own, blocks.cross.T], [blocks.cross, blocks.own]])

    def _check_overlap(self, eta: F64) -> None:
        """Raises Separation when the linear predictor tells the two labels apart without an exception."""
        if self.family.name != "logistic" or self.glm.l1 or self.glm.l2:
            return
        positive = self.rows.label > 0.5
        if eta[positive].min(initial=np.inf) > eta[~positive].max(initial=-np.inf):
            raise Separation("the columns together predict the label of every row perfectly")

    def _converged(self, eta: F64, before: F64, change: F64) -> bool:
        """Whether the step to come is too small to be taken. Raises Separation when small steps lead nowhere."""
        small = self.changes[-1] <= self.glm.tolerance or self._at_rounding()
        if not small or not self._runs_away(eta, before):
            self.suspected = False
            return small
        if self.suspected:
            where = self._name(1 + int(np.abs(change[1:]).argmax()))
            raise Separation(f"{where} predicts the label of some rows perfectly")
        self.suspected = True  # another step tells: a maximum would hold it
        return False

    def _runs_away(self, eta: F64, before: F64) -> bool:
        """Whether the last step moved some row's linear predictor far.

        Where a group of rows has one label, each step moves these rows by 1 for ever, and shrinks all the same in
        standard errors: these grow (Albert & Anderson, Biometrika 71, 1984). At a maximum the predictor comes to rest.
        """
        if self.family.name != "logistic" or self.glm.l1 or self.glm.l2 or len(before) != len(eta):
            return False
        return bool(np.abs(eta - before)[self.rows.weight > 0].max(initial=0.0) > _FAR)

    def _check(self, curvature: F64, noise: float) -> None:
        """Whether the curvature is safely positive definite, and has more of the start's information than noise."""
        if self.first is not None and self.family.name == "logistic" and not self.glm.l2 and noise:
            lower = np.linalg.cholesky(self.first)
            kept, ways = np.linalg.eigh(np.linalg.solve(lower, np.linalg.solve(lower, curvature).T))
            if kept[0] < 4 * noise:
                way = np.abs(np.linalg.solve(lower.T, ways[:, 0])) * np.sqrt(np.diag(self.first))
                way[0] = 0.0  # the intercept goes along with any group of rows
                raise Separation(f"{self._name(int(way.argmax()))} predicts the label of some rows perfectly")
        penalised = curvature + self._ridge
        roots = np.sqrt(np.maximum(np.diag(penalised), 1e-300))
        values, vectors = np.linalg.eigh(penalised / np.outer(roots, roots))
        if values[0] < max(1e-10, 4 * noise * np.sqrt(self.size)):
            if self.first is not None and self.family.name == "logistic":
                raise Separation("a combination of columns predicts the label of its rows perfectly")
            large = np.argsort(-np.abs(vectors[:, 0]), kind="stable")
            involved = [self._name(int(j)) for j in large[:4] if abs(vectors[j, 0]) > 0.2]
            raise Collinear(
                f"{' and '.join(involved)} {'repeat' if len(involved) > 1 else 'repeats'} what other columns say: "
                "the curvature is singular"
            )
        if self.first is None:
            self.first = curvature

    def _name(self, j: int) -> str:
        return self.names[j] if j < len(self.names) else f"passive column {j - self.own}"

    def _step(self, curvature: F64, gradient: F64, beta: F64) -> F64:
        """The change that minimises the quadratic model of the penalised objective."""
        matrix, slope = curvature + self._ridge, gradient - self._ridge @ beta
        if not self.glm.l1:
            free = self._free
            change = np.zeros(self.size)
            change[free] = np.linalg.solve(matrix[np.ix_(free, free)], slope[free])
            return change
        l1 = np.full(self.size, self.glm.l1 * self.total)
        l1[0] = 0.0
        return _descend(matrix, slope, beta, l1)

    @property
    def _free(self) -> NDArray[np.int64]:
        return np.array([j for j in range(self.size) if j not in self.dropped], np.int64)

    @property
    def _ridge(self) -> F64:
        """What the L2 penalty adds to the curvature, float64 of its size."""
        ridge = np.full(self.size, self.glm.l2 * self.total)
        ridge[0] = 0.0
        return np.diag(ridge)

    def _covariance(self, curvature: F64, noise: float, dispersion: float) -> F64:
        """Of all coefficients, zero for dropped ones: the sandwich of the penalised curvature."""
        free = np.ix_(self._free, self._free)
        root = self._root(curvature[free], noise)
        spread = np.linalg.solve(root @ root.T + self._ridge[free], root)
        covariance = np.zeros((self.size, self.size))
        covariance[free] = dispersion * spread @ spread.T  # no variance is negative, whatever the rounding
        return covariance

    def _root(self, part: F64, noise: float) -> F64:
        """What times its transpose is the curvature, but for what rounding put there.

        Along a combination in which columns cancel, the curvature is rounding of either sign. A penalty that holds the
        coefficients there divides by little, twice, so that what ought to be 0 would swell to the largest part of an
        error. Without a penalty there is no such combination (see :meth:`_check`), nor a 0 to divide by.
        """
        roots = np.sqrt(np.maximum(np.diag(part), 1e-300))
        values, ways = np.linalg.eigh((part + part.T) / 2 / np.outer(roots, roots))
        least = max(1e-10, 4 * noise * np.sqrt(len(part)))
        known = np.where(values < least, 0.0 if self.glm.l2 else least, values)
        return np.asarray(roots[:, None] * ways * np.sqrt(known))

    def _eliminate(self, beta: F64, curvature: F64, noise: float, dispersion: float) -> F64 | None:
        """Drop what is above the contract's p-value, the largest first; None when nothing is.

        Wald's statistic of each smaller model comes from the larger one's curvature, without another fit (Lawless &
        Singhal, Biometrics 34, 1978); steps go on from there. Each side keeps one column at least.
        """
        limit, before = self.glm.select.p_value, len(self.dropped)
        if not limit or self.glm.l1:
            return None
        matrix, whole = curvature + self._ridge, beta
        while True:
            free, covariance = self._free, self._covariance(curvature, noise, dispersion)
            open_ = [
                j for j in free.tolist() if j and ((free >= self.own) == (j >= self.own)).sum() > 1 + (j < self.own)
            ]
            p = {j: _p_value(beta[j], covariance[j, j]) for j in open_}
            worst = max(p, key=lambda j: p[j], default=0)
            if not worst or p[worst] <= limit:
                return beta if len(self.dropped) > before else None
            self.dropped[worst] = p[worst]
            beta, free = np.zeros(self.size), self._free
            beta[free] = np.linalg.solve(matrix[np.ix_(free, free)], matrix[free] @ whole)

    def _at_rounding(self) -> bool:
        """Whether small steps have stopped shrinking: rounding has the last word, and more steps reveal for nothing."""
        before, last = [np.inf, *self.changes[self.model_from :]][-2:]
        return before <= _SMALL and last > 0.5 * before

    def _share(self, beta: F64, change: F64, partial: F64, target: F64) -> float:
        """The best of 1, ½, ¼, … that lowers the objective, 0 if none does.

        Partial scores are linear in the coefficients, so nobody need be asked again. Halving goes on while it helps:
        where the quadratic model is poor, the first share that lowers the objective may hardly do so.
        """
        rows = self.rows
        base = rows.offset + beta[: self.own] @ self.design + partial
        towards = change[: self.own] @ self.design + target - partial
        start = self._objective(base, beta)
        best, lowest, share = 0.0, start + 1e-12 * abs(start), 1.0
        for _ in range(_HALVINGS):
            found = self._objective(base + share * towards, beta + share * change)
            if found <= lowest:
                best, lowest = share, found
            elif best:
                break
            share /= 2
        return best

    def _dispersion(self, mu: F64) -> float:
        rows, family = self.rows, self.family
        if not family.estimates_dispersion:
            return 1.0
        pearson = float(rows.weight @ ((rows.label - mu) ** 2 / family.variance(mu)))
        return max(pearson / max(1, len(rows.label) - self.size + len(self.dropped)), 1e-300)

    def _result(self, beta: F64, curvature: F64, noise: float, eta: F64, partial: F64, converged: bool) -> Fit:
        rows = self.rows
        dispersion = self._dispersion(self.family.mean(eta))
        covariance = None if self.glm.l1 else self._covariance(curvature, noise, dispersion)
        deviance = self._deviance(eta)
        return Fit(
            beta, covariance, eta, partial, converged, self.changes, deviance, self.null_deviance, dispersion,
            log_likelihood(self.family.name, rows.label, rows.weight, self.family.mean(eta), deviance, dispersion),
            self.dropped,
        )  # fmt: skip


def _moved(weight: F64, seen: F64) -> bool:
    """Whether weights moved in all, or halved on any row: where labels separate they fade on a few rows only."""
    return float(np.abs(weight - seen).sum()) > _STALE * float(seen.sum()) or bool(np.any(weight < 0.5 * seen))


def _p_value(coefficient: float, variance: float) -> float:
    """Of Wald's test, two-sided; 0 where rounding has left nothing of the variance."""
    return math.erfc(abs(coefficient) / math.sqrt(2 * variance)) if variance > 0 else 0.0


def _descend(matrix: F64, slope: F64, beta: F64, l1: F64) -> F64:
    """Minimise ½·dᵀ·matrix·d − slopeᵀ·d + Σ l1·|beta + d| by coordinate descent."""
    change = np.zeros(len(beta))
    rest = slope.copy()  # slope − matrix·change
    roots = np.sqrt(np.diag(matrix))
    sizes = np.abs(np.concatenate([beta[1:] * roots[1:], slope / roots]))
    least = 1e-10 * float(sizes.max())  # a share, so that the label's unit does not matter
    for _ in range(1000):
        largest = 0.0
        for j in range(len(beta)):
            at = beta[j] + change[j]
            aim = at + rest[j] / matrix[j, j]
            shrunk = np.sign(aim) * max(abs(aim) - l1[j] / matrix[j, j], 0.0)
            by = shrunk - at
            if by:
                change[j] += by
                rest -= matrix[:, j] * by
                largest = max(largest, abs(by) * float(roots[j]))
        if largest <= least:
            break
    return change


def log_likelihood(name: str, y: F64, weight: F64, mu: F64, deviance: float, dispersion: float) -> float | None:
    """Log-likelihood with the conventions of statsmodels' GLM; None for ``tweedie``, and of a perfect linear fit."""
    from scipy.special import gammaln

    if name == "logistic":
        return -deviance / 2
    if name == "linear":  # at the variance's own maximum-likelihood estimate
        count = len(y)
        if deviance <= 0:
            return None
        return float(-count / 2 * (np.log(2 * np.pi * deviance / count) + 1) + np.log(weight).sum() / 2)
    if name == "poisson":
        return float(weight @ (y * np.log(mu) - mu - gammaln(y + 1)))
    if name == "gamma":
        shape = weight / dispersion
        return float(np.sum(shape * np.log(shape * y / mu) - shape * y / mu - np.log(y) - gammaln(shape)))
    return None
