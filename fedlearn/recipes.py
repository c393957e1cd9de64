"""Recipes: a folder of examples/ with a contract, both party files and a real table, played from start to end.

A recipe's ``prepare.py`` has one function, ``table()``, which returns a real table of a package on PyPI with the
columns that its contract names. Here the table is cut in two by these columns, and each side loses customers that the
other keeps. As the recipe holds both halves, it can also say what either side reaches alone and what pooling would
give, by the same learner on the same rows and folds. The parties themselves could not.
"""

from __future__ import annotations

import json
import runpy
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn import jobs, jobs_glm, keys
from fedlearn.channel.channel import Progress
from fedlearn.contract import Contract, Data, Side, load_contract, load_party
from fedlearn.data import PartyTable, fit_binning, load_table
from fedlearn.data.design import fit_design
from fedlearn.errors import FileMissing, OwnMistake
from fedlearn.learner import glm as regression
from fedlearn.learner.objective import objective_of
from fedlearn.models import share as shares
from fedlearn.protocols import boost
from fedlearn.report.metrics import figures, linear_figures

F64 = NDArray[np.float64]
_ONLY = 0.05  # share of customers that only one side has
_FILES = ("contract.toml", "bank.toml", "platform.toml")


def home() -> Path:
    """The folder of all recipes: within the package, or beside it in a source tree."""
    inside = Path(__file__).parent / "examples"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "examples"


def names() -> dict[str, str]:
    """Each recipe's name, and the title of its page."""
    found = sorted(path.parent for path in home().glob("*/prepare.py"))
    return {path.name: (path / "README.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in found}


def prepare(name: str, folder: Path, most: int | None = None) -> None:
    """Write contract, party files, certificates and both parties' tables into ``folder``, at most ``most`` customers.

    Raises:
        OwnMistake: there is no such recipe.
        OutputExists: the folder holds something that is not a recipe's.
        FileMissing: a package with the table is not installed.
    """
    if name not in names():
        raise OwnMistake(f"there is no recipe {name!r}: it is one of {', '.join(names())}")
    shares.clear_own(folder, "recipe")
    for file in _FILES:
        shutil.copy(home() / name / file, folder)
    contract = load_contract(folder / "contract.toml")
    try:
        whole = runpy.run_path(str(home() / name / "prepare.py"))["table"]()
    except ModuleNotFoundError as error:
        raise FileMissing(f'the recipe\'s table is not installed ({error}): pip install "fedlearn[recipes]"') from None
    _cut(folder, contract, whole, most)
    keys.create_authority(folder / "authority", "recipe authority")
    for party in (contract.active.name, contract.passive.name):
        keys.issue(folder / "authority", folder / "keys" / party, party)


def _cut(folder: Path, contract: Contract, whole: Any, most: int | None) -> None:
    """Each side's table in its own order, and the pooled rows in the active side's order."""
    order, key = np.random.default_rng(20240607), contract.align.key.column  # who goes where: a story, not a secret
    whole = whole.iloc[order.permutation(len(whole))[:most]].reset_index(drop=True)
    whole.insert(0, key, [f"6{n:08d}" for n in order.choice(10**8, len(whole), replace=False)])
    only = int(_ONLY * len(whole))
    ours = [key, contract.label.column, *contract.active.features]
    theirs = [key, *contract.passive.features]
    active = whole.iloc[only:]
    passive = whole.iloc[: len(whole) - only]
    active[ours].to_csv(folder / f"{contract.active.name}.csv", index=False)
    passive[theirs].iloc[order.permutation(len(passive))].to_csv(folder / f"{contract.passive.name}.csv", index=False)
    whole.iloc[only : len(whole) - only][[*ours, *theirs[1:]]].to_csv(folder / "pooled.csv", index=False)


def play(
    name: str, folder: Path, most: int | None = None, on_progress: jobs.OnProgress | None = None
) -> dict[str, Any]:
    """Prepare and train a recipe, both sides in this process; returns what is also written to ``summary.json``.

    Raises:
        FedlearnError: as :func:`prepare`, and whatever a party meets.
    """
    started = time.monotonic()
    prepare(name, folder, most)
    contract = load_contract(folder / "contract.toml")
    sides = [contract.active.name, contract.passive.name]
    own = [jobs.prepare(load_party(folder / f"{party}.toml"), "train") for party in sides]
    trained = jobs.simulate_both("train", own[0], own[1], (on_progress, _silent))
    both = contract.active.features | contract.passive.features
    found = {
        f"{sides[0]} alone": trained[0].get("alone"),
        f"{sides[1]} alone, had it the outcome": _centrally(folder, contract, contract.passive.features),
        "joint": trained[0].get("joint"),
        "pooled": _centrally(folder, contract, both),
    }
    summary = {
        "recipe": name,
        "on": "training rows" if contract.glm is not None else f"held-out rows, {contract.boost.folds} folds",
        "rows_shared": trained[0]["rows_shared"],
        "figures": found,
        "seconds": time.monotonic() - started,
        "bytes": trained[0]["bytes_sent"] + trained[0]["bytes_received"],
        "ledgers_identical": trained[0]["ledger"] == trained[1]["ledger"],
        "reports": {party: str(folder / f"results-{party}" / "model" / "report.html") for party in sides},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _silent(progress: Progress) -> None:
    """Nothing is shown of the second side."""


def _centrally(folder: Path, contract: Contract, features: Any) -> dict[str, float]:
    """The same learner in the clear on the shared rows, with other columns than the active side's own."""
    side = Side(name=contract.active.name, features=features)
    table = load_table(
        Data(path=folder / "pooled.csv"), contract.align.key, features, contract.label, contract.budget.rows,
        contract.target,
    )  # fmt: skip
    if contract.glm is not None:
        return _regressed(table, side, contract)
    changed = contract.model_copy(update={"active": side})
    rows = jobs.rows_of(table, fit_binning(table, contract.boost.bins, features), changed)
    _, held_out, _ = boost.cross_validate(changed, rows, None)
    return figures(objective_of(contract.boost, contract.outputs), rows.label, held_out)


def _regressed(table: PartyTable, side: Side, contract: Contract) -> dict[str, float]:
    settings = jobs_glm.settings_of(contract)
    evidence = jobs_glm.own_evidence(table, side, settings)[0] if settings.woe else None
    design, _ = fit_design(table, side.features, evidence, settings.bins, settings.least_iv)
    label = np.zeros(table.rows) if table.label is None else table.label.astype(np.float64)
    rows = regression.Rows(design.standardised(table), label, np.ones(table.rows), np.zeros(table.rows))
    return linear_figures(settings, label, regression.fit(rows, settings, None, design.names).eta)
