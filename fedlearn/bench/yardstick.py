"""XGBoost on pooled rows: what the joint model is held against. No part of the product."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Boost
from fedlearn.data.table import Column
from fedlearn.errors import FileMissing


def load() -> Any:
    """The module. Raises FileMissing where it is not installed."""
    try:
        import xgboost
    except ModuleNotFoundError:
        raise FileMissing("the yardstick is not installed: pip install xgboost-cpu") from None
    return xgboost


def settings_of(boost: Boost) -> dict[str, Any]:
    """XGBoost's parameters for the same trees: depth, bins, rate, regularisation; categories as subsets."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": boost.depth,
        "max_bin": boost.bins,
        "eta": boost.learning_rate,
        "lambda": boost.reg_lambda,
        "min_child_weight": boost.min_child_weight,
        "max_cat_to_onehot": 1,
    }


def values_of(columns: Iterable[Column]) -> tuple[NDArray[np.float64], list[str]]:
    """Columns as XGBoost takes them: values float64 (n, F), NaN for missing, and their types, ``q`` or ``c``."""
    values, types = [], []
    for column in columns:
        if isinstance(column, np.ndarray):
            values.append(column)
            types.append("q")
        else:
            values.append(column.indices.to_numpy(zero_copy_only=False).astype(np.float64))
            types.append("c")
    return np.stack(values, axis=1), types
