"""Regression cases that several test files share: rows divided by columns between two sides that meet in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlearn.channel import Limits, simulate
from fedlearn.contract import Contract
from fedlearn.learner.glm import Rows
from fedlearn.protocols import handshake, regression


def contract(active: int, passive: int, **changes: Any) -> Contract:
    names = [f"x{j}" for j in range(active + passive)]
    glm = {k: v for k, v in changes.items() if k not in ("backend", "mode", "budget", "disclosure", "disclosure_none")}
    glm |= {"disclosure": "none"} if changes.get("disclosure_none") else {}
    return Contract.model_validate(
        {
            "name": "test",
            "purpose": "tests of regression",
            "expires": "2999-01-01",
            "active": {"name": "active", "features": dict.fromkeys(names[:active] or ["none"], "number")},
            "passive": {"name": "passive", "features": dict.fromkeys(names[active:], "number")},
            "label": {"column": "the label"},
            "align": {"mode": changes.get("mode", "mutual"), "key": {"column": "the key"}},
            "glm": glm,
            "encryption": {"backend": changes.get("backend", "lwe"), "paillier_bits": 2048},
            "budget": changes.get("budget", {}),
            "disclosure": changes.get("disclosure", {}),
        }
    )


def meet(agreed: Contract, active: Any, passive: Any, protocol: Any = regression, limits: Limits | None = None) -> Any:
    """Both sides of a fit over a channel in memory; each is its data, or a function of the channel."""

    def play(role: str, side: Any, serve: Any) -> Any:
        def run(channel: Any) -> Any:
            handshake.greet(channel, agreed, role=role, job="train")
            return side(channel) if callable(side) else (serve(channel, agreed, side), channel.ledger)

        return run

    return simulate(
        play("active", active, protocol.fit_active),
        play("passive", passive, protocol.fit_passive),
        limits=limits or Limits(step=60),
    )


def data(
    x: np.ndarray, y: np.ndarray, active: int, weight: Any = None, offset: Any = None, extra: int = 0, seed: int = 0
) -> tuple[regression.ActiveData, regression.PassiveData]:
    """Columns x (p, m), of which the first are the active side's; ``extra`` rows are the passive side's alone."""
    rng = np.random.default_rng(seed)
    m = len(y)
    position = rng.permutation(m + extra)[:m]
    theirs = rng.normal(size=(len(x) - active, m + extra))
    theirs[:, position] = x[active:]
    rows = Rows(
        x[:active], y, np.ones(m) if weight is None else weight, np.zeros(m) if offset is None else np.asarray(offset)
    )
    names = tuple(f"x{j}" for j in range(len(x)))
    return (
        regression.ActiveData(rows, position, m + extra, names[:active]),
        regression.PassiveData(theirs, names[active:]),
    )
