"""Anderson acceleration of two sides' own quasi-Newton steps: what each needs of the other are inner products.

Each side takes steps f = H⁻¹·g on its own block of coefficients, with its own blocks H of the curvature and g of the
gradient. Alone, these would converge as a block Jacobi iteration. Anderson's mixing (J. ACM 12, 1965) chooses
weights α with Σα = 1 that minimise ‖Σ α_t·f_t‖ in the norm of H over both sides and goes to Σ α_t·(b_t + f_t): a
multisecant quasi-Newton method (Fang & Saad, Numer. Linear Algebra Appl. 16, 2009), on a quadratic as fast as GMRES
(Walker & Ni, SIAM J. Numer. Anal. 49, 2011). The norm needs g_sᵀ·f_t of both sides, a number each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

#: Steps that are mixed at most.
_WINDOW = 10
#: Beyond any product of honest steps and any coefficient, and small enough that what is computed from it is finite.
_LARGEST = 1e100


@dataclass
class Block:
    """One side's block of coefficients.

    Attributes:
        curvature: float64 (p, p), positive definite.
        at: float64 (p,), the coefficients; the caller reads them, :meth:`move` changes them.
    """

    curvature: F64
    at: F64
    _places: list[F64] = field(default_factory=list)
    _gradients: list[F64] = field(default_factory=list)
    _steps: list[F64] = field(default_factory=list)

    def products(self, gradient: F64) -> F64:
        """Take the gradient (p,) at the present coefficients; this side's part of ⟨f_s, f_t⟩ for all s ≤ t."""
        self._places.append(self.at)
        self._gradients.append(gradient)
        self._steps.append(np.asarray(np.linalg.solve(self.curvature, gradient), np.float64))
        return np.array([float(g @ self._steps[-1]) for g in self._gradients])

    def move(self, weights: F64) -> None:
        """Go to the mixture of the latest steps. Raises ValueError where that is no place to go to."""
        places, steps = (np.array(kept[-len(weights) :]) for kept in (self._places, self._steps))
        with np.errstate(over="ignore", invalid="ignore"):
            self.at = _bounded(np.asarray(weights @ (places + steps)), "coefficients")


@dataclass
class Mixture:
    """Both sides' inner products, and the weights that follow from them; the same on both sides."""

    _gram: F64 = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, products: F64) -> float:
        """Take the sum of both sides' :meth:`Block.products`, float64 (t + 1,). Returns ⟨f_t, f_t⟩.

        Raises:
            ValueError: they are not finite, or beyond any step's.
        """
        size = len(products)
        gram = np.zeros((size, size))
        gram[:-1, :-1] = self._gram
        gram[-1], gram[:, -1] = products, _bounded(products, "products")
        self._gram = gram
        return float(products[-1])

    @property
    def weights(self) -> F64:
        """α of the latest steps, float64 (at most _WINDOW,).

        Raises:
            ValueError: none follow: the products are not those of any steps.
        """
        gram = self._gram[-_WINDOW:, -_WINDOW:]
        roots = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        with np.errstate(all="ignore"):
            scaled = gram / np.outer(roots, roots) + 1e-9 * np.eye(len(gram))
            found = np.linalg.solve(scaled, 1 / roots) / roots  # LinAlgError is a ValueError
            return _bounded(np.asarray(found / found.sum()), "weights")


def _bounded(values: F64, what: str) -> F64:
    if not np.all(np.abs(values) < _LARGEST):  # nor is NaN
        raise ValueError(f"no finite {what}")
    return values
