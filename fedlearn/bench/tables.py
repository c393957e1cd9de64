"""The tables that ``bench boost`` and ``bench glm`` measure on: both parties' files, or generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.contract import Contract, Data, Kind
from fedlearn.data import PartyTable, load_table, make_table
from fedlearn.errors import FileMissing

ROLES = ("active", "passive")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from. Files, when given, take the place of generated rows; ``key`` and ``label`` are columns."""

    rows: int
    active_features: int
    passive_features: int
    active_file: str | None = None
    passive_file: str | None = None
    key: str = "id"
    label: str = "label"
    positive: str = "1"

    def file(self, role: str) -> str | None:
        """One side's file; None where its rows are generated."""
        return self.active_file if role == "active" else self.passive_file

    def kinds(self, role: str) -> dict[str, Kind]:
        """The features of one side; from its file's own types where there is one. Raises FileMissing."""
        path = self.file(role)
        if path is None:
            first = 0 if role == "active" else self.active_features
            count = self.active_features if role == "active" else self.passive_features
            return dict.fromkeys([f"x{i}" for i in range(first, first + count)], "number")
        import pyarrow.csv

        if not Path(path).exists():
            raise FileMissing(f"cannot read {path}")
        schema = pyarrow.csv.read_csv(path).schema
        return {
            field.name: "category" if pa.types.is_string(field.type) else "number"
            for field in schema
            if field.name not in (self.key, self.label)
        }

    def table(self, contract: Contract, role: str, *, rows: int, strength: float) -> PartyTable:
        """One side's rows, ordered by key so that both sides' rows are aligned.

        Args:
            contract: names the features.
            role: whose.
            rows: how many, where they are generated.
            strength: deviation of the generated log-odds' coefficients.
        """
        path, features = self.file(role), contract.side(role).features
        if path is None:
            return self._generated(features, role, rows, strength)
        label = contract.label if role == "active" else None
        key, also = contract.align.key, contract.align.also
        data = Data(path=Path(path))
        table = load_table(data, key, features, label, contract.budget.rows, contract.target, also)
        return table.take(np.argsort(np.array(table.ids.to_pylist()), kind="stable"))

    def _generated(self, features: dict[str, Kind], role: str, rows: int, strength: float) -> PartyTable:
        """Log-odds are linear; both sides draw the same numbers and keep their own columns."""
        draws = np.random.default_rng(7)
        weights = draws.normal(size=self.active_features + self.passive_features) * strength
        score = np.full(rows, -1.0)
        columns: dict[str, NDArray[np.float64]] = {}
        for i, weight in enumerate(weights):
            values = draws.normal(size=rows)
            score += weight * values
            if f"x{i}" in features:
                columns[f"x{i}"] = values
        label = draws.random(rows) < 1 / (1 + np.exp(-score))
        ids = pa.array(np.arange(rows)).cast(pa.string())
        return make_table(ids, columns, features, label.astype(np.int8) if role == "active" else None)
