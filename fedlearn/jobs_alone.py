"""A model of the active side alone: what it answers with when the other side does not. Nothing is sent.

It is a share like any other, of a pair of which the passive half is empty, trained on all own rows that have a label,
but for those that the contract keeps out of time.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn import jobs_glm, samples
from fedlearn.contract import Contract, Kind, PartyFile, load_contract
from fedlearn.data import PartyTable, fit_binning, load_table, periods
from fedlearn.errors import NoOverlap, NotInContract
from fedlearn.jobs import calibrated, rows_of
from fedlearn.models import linear, reference
from fedlearn.models import share as trees
from fedlearn.protocols import boost


def train_alone(party: PartyFile, out: Path) -> dict[str, Any]:
    """Train on this side's own table with the contract's settings, and save the share to ``out``.

    Raises:
        NotInContract: this is not the side with labels.
        OwnMistake, Refused: as for ``train``.
    """
    contract = load_contract(party.contract)
    if contract.role_of(party.party) != "active":
        raise NotInContract(f"party {party.party!r} has no labels under contract {contract.name!r}")
    if contract.kmeans is not None:
        raise NotInContract(f"contract {contract.name!r} finds clusters, which have no outcome to be scored alone")
    trees.refuse_existing(out)
    model_id = secrets.token_bytes(16)
    facts: dict[str, Any] = {"job": "train-alone", "party": party.party, "model_id": model_id.hex()}
    with trees.staged(out) as folder:
        if contract.glm is not None:
            loaded = jobs_glm.load(party.data, contract, "active", True)
            table, kept = _earlier(contract, loaded.table, loaded.period)
            offset = None if loaded.offset is None else loaded.offset[kept]
            share, found = jobs_glm.train_alone(contract, table, offset, model_id)
            linear.save(share, folder, contract, party.party)
            facts |= found | {"rows": table.rows}
        else:
            table, _ = _earlier(contract, *_load(party, contract))
            binning = fit_binning(table, contract.boost.bins, contract.active.features)
            rows = rows_of(table, binning, contract)
            _, held_out, fit = boost.cross_validate(contract, rows, None)
            curve = calibrated(contract, rows, held_out)
            trees.save(
                trees.ActiveShare(model_id, binning, fit.forest, 0, calibration=curve), folder, contract, party.party
            )
            reference.save(folder, binning, rows.bins, fit.margins[0])
            margins = held_out if contract.boost.folds else fit.margins
            facts |= {"rows": table.rows, "trees": fit.forest.trees}
            facts["alone"] = samples.judged(contract, np.atleast_2d(rows.targets), margins)[0]
        (folder / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts | {"folder": str(out)}


def _load(party: PartyFile, contract: Contract) -> tuple[PartyTable, NDArray[np.int8] | None]:
    """The table with its label, and each row's period where the contract has [out_of_time]."""
    features: dict[str, Kind] = dict(contract.active.features)
    later = contract.out_of_time
    if later is not None:
        features = periods.with_period(features, later.column, later.first)
    table = load_table(party.data, contract.align.key, features, contract.label, contract.budget.rows, contract.target)
    return (table, None) if later is None else periods.split_off(table, later.column, later.first)


def _earlier(
    contract: Contract, table: PartyTable, period: NDArray[np.int8] | None
) -> tuple[PartyTable, NDArray[np.int64]]:
    """The rows to train on, and their places int64 (k,) in the table. Raises NoOverlap when there is none."""
    later = contract.out_of_time
    if later is None or period is None:
        return table, np.arange(table.rows)
    kept = np.flatnonzero(period == periods.EARLIER)
    if not len(kept):
        raise NoOverlap(f"no row is before {later.first} by {later.column!r}, so there is none to train on")
    return table.take(kept), kept
