"""Which rows a model is judged on: each sample is a file of scores, joint and alone, and its figures of merit.

| sample | rows | scored by |
|---|---|---|
| held out | all that train, with folds | the model of the fold that did not see the row |
| out of time | those of the later period | the final model, which saw none of them |
| validation | those that early stopping follows | the final model, whose number of trees they chose |
| training | those that the final model was trained on | the final model |

The first sample that there is gives the run's own figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from fedlearn.contract import Contract
from fedlearn.data import PartyTable
from fedlearn.learner import booster
from fedlearn.learner.booster import Fit, Rows
from fedlearn.learner.objective import objective_of
from fedlearn.report.metrics import figures

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HELD_OUT, OUT_OF_TIME, VALIDATION, TRAINING = "held_out", "out_of_time", "validation", "fitted"


@dataclass(frozen=True)
class Judged:
    """What a learner says of every own row: fold int64 (m,), held_out float64 (K, m), and its final fit."""

    fold: I64
    held_out: F64
    fit: Fit


def samples(rows: Rows, contract: Contract, later: NDArray[np.bool_] | None) -> dict[str, I64]:
    """The rows of each sample that there is, int64, by name; ``later`` bool (m,) says which are out of time."""
    boost, found = contract.boost, {}
    if boost.folds:
        found[HELD_OUT] = rows.training
    if later is not None:
        found[OUT_OF_TIME] = np.flatnonzero(later)
    rest = np.ones(len(rows.label), np.bool_)
    rest[rows.training] = False
    split = booster.split_of(len(rows.label), boost, rest)
    if len(split.valid):
        found[VALIDATION] = split.valid
    found[TRAINING] = split.train
    return {name: chosen for name, chosen in found.items() if len(chosen)}


def write(
    folder: Path, table: PartyTable, rows: Rows, contract: Contract, joint: Judged, alone: Judged,
    later: NDArray[np.bool_] | None,
) -> dict[str, Any]:  # fmt: skip
    """Write each sample's scores into ``folder`` as ``<sample>.csv``, and return their figures.

    Returns:
        ``samples``: by name, number of rows and figures of both models (none where all labels are alike); and
        ``joint`` and ``alone``, those of the first.
    """
    objective = objective_of(contract.boost, contract.outputs)
    told: dict[str, Any] = {}
    for name, chosen in samples(rows, contract, later).items():
        columns: dict[str, Any] = {"id": table.ids.take(pa.array(chosen)), "fold": joint.fold[chosen]}
        columns["label"] = None if table.label is None else table.label[chosen]
        told[name] = {"rows": len(chosen)}
        for suffix, judged in (("joint", joint), ("alone", alone)):
            margins = (judged.held_out if name == HELD_OUT else judged.fit.margins)[:, chosen]
            columns |= {f"{n}_{suffix}": values for n, values in predictions(contract, margins).items()}
            if objective.name != "logistic" or len(np.unique(rows.label[chosen])) > 1:
                told[name][suffix] = figures(objective, rows.label[chosen], margins)
        write_csv(folder / f"{name}.csv", columns)
    first = next(sample for sample in told.values() if "joint" in sample)
    return {"samples": told, "joint": first["joint"], "alone": first["alone"]}


def predictions(contract: Contract, margins: F64) -> dict[str, F64]:
    """Columns of a score file: the prediction under its usual name, then the margins float64 (K, m)."""
    mean = objective_of(contract.boost, contract.outputs).mean(margins)
    if contract.boost.objective == "softmax":
        return {f"probability_{name}": mean[k] for k, name in enumerate(contract.label.classes)}
    if contract.boost.objective == "logistic":
        return {"probability": mean[0], "log_odds": margins[0]}
    return {"prediction": mean[0]}


def write_csv(path: Path, columns: dict[str, Any]) -> None:
    """Numbers are written so that they read back exactly."""
    csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
