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

from fedlearn.contract import Contract
from fedlearn.data import PartyTable
from fedlearn.jobs_score import write_table
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
    told: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name, chosen in samples(rows, contract, later).items():
        columns: dict[str, Any] = {"id": table.ids.take(pa.array(chosen)), "fold": joint.fold[chosen]}
        columns["label"] = None if table.label is None else table.label[chosen]
        for target, values in zip(contract.label.also, table.more, strict=True):
            columns[f"label_{target.column}"] = values[chosen]
        told[name] = {"rows": len(chosen)}
        for suffix, one in (("joint", joint), ("alone", alone)):
            margins = (one.held_out if name == HELD_OUT else one.fit.margins)[:, chosen]
            columns |= {f"{n}_{suffix}": values for n, values in predictions(contract, margins).items()}
            found = judged(contract, np.atleast_2d(rows.targets)[:, chosen], margins)
            told[name] |= {suffix: found[0]} if found[0] else {}
            for column, figures_ in zip(contract.label.columns, found, strict=True):
                targets.setdefault(name, {}).setdefault(column, {})[suffix] = figures_
        write_table(folder / f"{name}.csv", columns)
    first = next(name for name, sample in told.items() if "joint" in sample)
    more = {"targets": targets[first]} if contract.label.also else {}
    return {"samples": told, "joint": told[first]["joint"], "alone": told[first]["alone"], **more}


def judged(contract: Contract, targets: F64, margins: F64) -> list[dict[str, float]]:
    """Figures of every label column, the first one first (:func:`fedlearn.report.metrics.figures`).

    Args:
        contract: whose labels they are.
        targets: float64 (K, m).
        margins: float64 (K, m), or (classes, m) of one label.

    Returns:
        Nothing for a label of two values that are all alike on these rows.
    """
    names = (contract.boost.objective, *contract.also)
    found = []
    for k, name in enumerate(names):
        boost = contract.boost.model_copy(update={"objective": name})
        own = margins[k : k + 1] if contract.label.also else margins
        alike = name == "logistic" and targets[k].min() == targets[k].max()
        outputs = 1 if contract.label.also else contract.outputs
        found.append({} if alike else figures(objective_of(boost, outputs), targets[k], own))
    return found


def predictions(contract: Contract, margins: F64) -> dict[str, F64]:
    """Columns of a score file: the prediction under its usual name, then the margins float64 (K, m).

    Then those of further labels, under their names.
    """
    if contract.label.also:
        first = contract.model_copy(update={"label": contract.label.model_copy(update={"also": ()})})
        found = predictions(first, margins[:1])
        for k, target in enumerate(contract.label.also):
            own = first.model_copy(update={"boost": first.boost.model_copy(update={"objective": target.objective})})
            later = predictions(own, margins[k + 1 : k + 2])
            found |= {f"{name}_{target.column}": values for name, values in later.items()}
        return found
    mean = objective_of(contract.boost, contract.outputs).mean(margins)
    if contract.boost.objective == "softmax":
        return {f"probability_{name}": mean[k] for k, name in enumerate(contract.label.classes)}
    if contract.boost.objective == "logistic":
        return {"probability": mean[0], "log_odds": margins[0]}
    return {"prediction": mean[0]}
