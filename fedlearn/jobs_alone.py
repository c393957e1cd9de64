"""A model of the active side alone: what it answers with when the other side does not. Nothing is sent.

It is a share like any other, of a pair of which the passive half is empty, trained on all own rows that have a label.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from fedlearn import jobs_glm, samples
from fedlearn.contract import PartyFile, load_contract
from fedlearn.data import fit_binning, load_table
from fedlearn.errors import NotInContract
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
    key = contract.align.key
    with trees.staged(out) as folder:
        if contract.glm is not None:
            loaded = jobs_glm.load(party.data, contract, "active", True)
            share, found = jobs_glm.train_alone(contract, loaded.table, loaded.offset, model_id)
            linear.save(share, folder, contract, party.party)
            facts |= found | {"rows": loaded.table.rows}
        else:
            features = contract.active.features
            table = load_table(party.data, key, features, contract.label, contract.budget.rows, contract.target)
            binning = fit_binning(table, contract.boost.bins, features)
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
