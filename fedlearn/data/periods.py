"""Rows of two periods, told apart by a column of the owner's table that is no feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedlearn.contract import Kind
from fedlearn.data.table import PartyTable

EARLIER, LATER, NEITHER = 0, 1, -1


def with_period(features: Mapping[str, Kind], column: str, first: str) -> dict[str, Kind]:
    """The columns to read: the features, and the period's column as a number or a text, as ``first`` is."""
    return {**features, column: "category" if _number(first) is None else "number"}


def split_off(table: PartyTable, column: str, first: str) -> tuple[PartyTable, NDArray[np.int8]]:
    """Take the period's column out of a table.

    Args:
        table: read with :func:`with_period`.
        column: the period's column.
        first: first value of the later period; a number, or a text that is compared as text (ISO dates sort as text).

    Returns:
        The table without the column; and int8 (n,): EARLIER, LATER, or NEITHER where the column is missing.
    """
    values, start = table.columns[column], _number(first)
    if isinstance(values, np.ndarray):
        missing, later = np.isnan(values), values >= (start or 0.0)
    else:
        texts = values.cast(pa.string())
        missing = np.asarray(texts.is_null())
        later = np.asarray(pc.greater_equal(texts, first).fill_null(False))
    period = np.where(missing, NEITHER, np.where(later, LATER, EARLIER)).astype(np.int8)
    return replace(table, columns={name: v for name, v in table.columns.items() if name != column}), period


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
