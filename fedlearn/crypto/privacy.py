"""Differential privacy for the holder's sums: integer noise, and an accountant of what it must be.

Neighbouring tables differ in all values of one row of the holder. If no such change moves the integer sums of a session
by more than Δ in Euclidean norm, all answers together, then discrete Gaussian noise of deviation σ on every sum is
ρ-zCDP with ρ = Δ²/(2σ²) (Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020:
theorem 14 for several sums), also when each vector is chosen after seeing the answers before it, as long as Δ is never
exceeded (Feldman and Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021). What a querier makes of
noisy sums costs nothing more. (ε, δ) follows from ρ by corollary 13 of the former.

The norm is bounded for a querier that keeps to its protocol: nobody sees in a ciphertext how large a vector's values
are. Against one that deviates this noise promises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.draws import Draws

I64 = NDArray[np.int64]

#: Noise is cut at a power of two of at least so many deviations, which changes its distribution by less than 2^-106.
_TAIL = 12.0
#: Proposals drawn at once.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Change:
    """How far one row of the holder can move the sums: squared Euclidean norms.

    Attributes:
        vector: of the sums of any one vector.
        session: of all sums of the session together.
    """

    vector: int
    session: int

    @classmethod
    def of_indicator(cls, features: int, largest_value: int, vectors: int) -> Change:
        """For indicator rows: in each feature the row leaves one bin and enters another.

        Args:
            features: of the holder.
            largest_value: largest absolute entry of a vector.
            vectors: in how many vectors of the session one row has an entry that is not zero, at most.
        """
        one = 2 * features * largest_value**2
        return cls(one, one * vectors)


@dataclass(frozen=True)
class Noise:
    """Noise of one use of the product, computed alike by both sides from the contract.

    Attributes:
        deviation: σ, in units of the sums.
        vector: zCDP cost of the sums of one vector.
        session: zCDP cost of all vectors; never more, however many are asked for.
        delta: at which the contract states ε.
    """

    deviation: float
    vector: float
    session: float
    delta: float

    @classmethod
    def of(cls, change: Change, epsilon: float, delta: float) -> Noise:
        """The least noise that keeps a session within (ε, δ)."""
        session = rho_of(epsilon, delta)
        square = change.session / (2 * session)
        return cls(math.sqrt(square), change.vector / (2 * square), session, delta)

    @property
    def largest(self) -> int:
        """Bound on the absolute value of any noise: never exceeded, so that sums decode and slots hold them."""
        return 1 << (_bits(self.deviation) - 1)

    def cost(self, before: int, count: int) -> float:
        """zCDP cost of ``count`` more vectors after ``before`` of this use."""
        spent, then = (min(k * self.vector, self.session) for k in (before, before + count))
        return then - spent

    def draw(self, shape: tuple[int, ...], draws: Draws | None = None) -> I64:
        """Noise for some sums, int64. ``draws``: secret randomness, fresh by default."""
        return discrete_gaussian(self.deviation, shape, draws or Draws())


def _bits(deviation: float) -> int:
    """Bits of a proposal: noise lies in -2^(bits - 1) … 2^(bits - 1) - 1."""
    return 1 + max(1, math.ceil(math.log2(_TAIL * deviation)))


def discrete_gaussian(deviation: float, shape: tuple[int, ...], draws: Draws) -> I64:
    """Integers x with probability proportional to exp(-x²/(2σ²)).

    Rejection from a uniform power of two, so that floating point touches nothing but the chance of acceptance: the
    logarithm of every probability above 2^-20 is right to 2^-42, and no draw has 64 bits behind a decimal point that
    could tell something (Mironov, "On Significance of the Least Significant Bits", CCS 2012). Time depends on rejected
    proposals only.

    Args:
        deviation: σ > 0.
        shape: of the result.
        draws: secret randomness.

    Returns:
        int64 of that shape, below 2^(bits - 1) in absolute value, or equal to its negative.
    """
    count, bits = math.prod(shape), _bits(deviation)
    accepted = max(1.0, deviation * math.sqrt(2 * math.pi)) / 2.0**bits
    out, filled = np.empty(count, np.int64), 0
    while filled < count:
        size = min(_PIECE, int(1.1 * (count - filled) / accepted) + 64)
        proposed = (draws.words(size) >> np.uint64(64 - bits)).astype(np.int64) - (1 << (bits - 1))
        chance = np.exp((proposed / deviation) ** 2 / -2)
        kept = proposed[draws.words(size) >> np.uint64(1) < (chance * 2.0**63).astype(np.uint64)][: count - filled]
        out[filled : filled + len(kept)] = kept
        filled += len(kept)
    return out.reshape(shape)


# --- accountant --------------------------------------------------------------------------------------


def delta_of(rho: float, epsilon: float) -> float:
    """The δ at which ρ-zCDP is (ε, δ)-private (Canonne, Kamath and Steinke 2020, corollary 13).

    δ = min over α > 1 of exp((α - 1)(αρ - ε)) / (α - 1) · (1 - 1/α)^α. The logarithm's derivative in α is
    (2α - 1)ρ - ε + log(1 - 1/α), which rises: the minimum is where it crosses zero. Below, t = α - 1.
    """
    if rho <= 0:
        return 0.0
    t = _crossing(lambda t: (2 * t + 1) * rho - epsilon - math.log1p(1 / t))
    return math.exp(min(0.0, t * ((t + 1) * rho - epsilon) - math.log(t) - (t + 1) * math.log1p(1 / t)))


def epsilon_of(rho: float, delta: float) -> float:
    """The least ε ≥ 0 at which ρ-zCDP is (ε, δ)-private."""
    if rho <= 0 or delta_of(rho, 0.0) <= delta:
        return 0.0
    return _crossing(lambda epsilon: delta - delta_of(rho, epsilon))


def rho_of(epsilon: float, delta: float) -> float:
    """The largest ρ for which ρ-zCDP is (ε, δ)-private, to 12 digits from below."""
    return _crossing(lambda rho: delta_of(rho, epsilon) - delta) * (1 - 1e-12)


def _crossing(rising: Callable[[float], float]) -> float:
    """Where a function that rises from below zero crosses it, between 2^-60 and 2^60; by bisection of the logarithm."""
    low, high = -60.0, 60.0
    for _ in range(64):
        middle = (low + high) / 2
        if rising(2.0**middle) < 0:
            low = middle
        else:
            high = middle
    return math.exp2(high)
