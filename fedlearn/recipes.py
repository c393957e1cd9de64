"""Recipes: a folder of examples/ with a contract, both party files and a real table, played from start to end.

A recipe's ``prepare.py`` has one function, ``table()``, which returns a real table of a package on PyPI with the
columns that its contract names. Here the table is cut in two by these columns, and each side loses customers that the
other keeps. As the recipe holds both halves, it can also say what either side reaches alone and what pooling would
give, by the same learner on the same rows and folds. The parties themselves could not.

``prepare.py`` may also have ``business(rows, predicted)``: the shared rows as a DataFrame and predictions by their
names in a score file, to figures in the terms of the business. They are added to those of every model.
"""

from __future__ import annotations

import json
import runpy
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from fedlearn import jobs, jobs_glm, jobs_kmeans, keys, samples
from fedlearn.channel.channel import Progress
from fedlearn.contract import Contract, Data, Side, load_contract, load_party
from fedlearn.data import PartyTable, fit_binning, load_table
from fedlearn.data.design import fit_design
from fedlearn.errors import FileMissing, OwnMistake
from fedlearn.learner import glm as regression
from fedlearn.models import share as shares
from fedlearn.protocols import boost, kmeans, screen
from fedlearn.report.metrics import linear_figures

F64 = NDArray[np.float64]
Predicted = dict[str, F64]
Figures = dict[str, dict[str, float]]
Business = Callable[[Any, Predicted], dict[str, float]]
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
    ours = [key, *filter(None, contract.label.columns), *contract.active.features]
    theirs = [key, *contract.passive.features]
    active = whole.iloc[only:]
    passive = whole.iloc[: len(whole) - only]
    _write(folder / f"{contract.active.name}.csv", active[ours])
    _write(folder / f"{contract.passive.name}.csv", passive[theirs].iloc[order.permutation(len(passive))])
    _write(folder / "pooled.csv", whole.iloc[only : len(whole) - only][[*ours, *theirs[1:]]])


def _write(path: Path, frame: Any) -> None:
    """A DataFrame as CSV, by Arrow: with thousands of columns, pandas' own writer takes ten times as long."""
    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)


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
    compared = _clusters if contract.kmeans is not None else _compared
    found, targets = compared(folder, contract, trained[0], business_of(name))
    summary = {
        "recipe": name,
        "on": f"held-out rows, {contract.boost.folds} folds" if contract.boost.folds else "training rows",
        "rows_shared": trained[0]["rows_shared"],
        "figures": found,
        **({"targets": targets} if targets else {}),
        "seconds": time.monotonic() - started,
        "bytes": trained[0]["bytes_sent"] + trained[0]["bytes_received"],
        "ledgers_identical": trained[0]["ledger"] == trained[1]["ledger"],
        "reports": {party: str(folder / f"results-{party}" / "model" / "report.html") for party in sides},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _silent(progress: Progress) -> None:
    """Nothing is shown of the second side."""


def _frame(path: Path) -> Any:
    """A CSV file as a DataFrame; the packages with the recipes' tables need pandas anyway."""
    import pandas as pd

    return pd.read_csv(path)


def business_of(name: str) -> Business | None:
    """The recipe's own figures, if it has any."""
    found: Business | None = runpy.run_path(str(home() / name / "prepare.py")).get("business")
    return found


def _compared(
    folder: Path, contract: Contract, trained: dict[str, Any], business: Business | None
) -> tuple[Figures, dict[str, Figures]]:
    """Figures of the four models; with several labels, means over them, and each label's own."""
    sides = (contract.active.name, contract.passive.name)
    cases = {"alone": f"{sides[0]} alone", "joint": "joint"}
    told = trained.get("targets") or {contract.label.column: {case: trained[case] for case in cases}}
    by_label: dict[str, Figures] = {
        column: {name: told[column][case] for case, name in cases.items()} for column in told
    }
    rows, more = _frame(folder / "pooled.csv"), {}
    if business is not None:
        more = {name: business(rows, _held_out(folder, contract, case)) for case, name in cases.items()}
    both = contract.active.features | contract.passive.features
    table = load_table(
        Data(path=folder / "pooled.csv"),
        contract.align.key,
        both,
        contract.label,
        contract.budget.rows,
        contract.target,
    )
    theirs = contract.passive.features if contract.screen is None else _screened(table, contract)
    pooled = contract.active.features | theirs
    for name, features in ((f"{sides[1]} alone, had it the outcome", theirs), ("pooled", pooled)):
        found, predicted = _centrally(table, contract, features)
        for column, values in zip(told, found, strict=True):
            by_label[column][name] = values
        if business is not None:
            more[name] = business(rows, predicted)
    order = (cases["alone"], f"{sides[1]} alone, had it the outcome", "joint", "pooled")
    merged = {name: _means([by_label[column][name] for column in told]) | more.get(name, {}) for name in order}
    return merged, by_label if len(told) > 1 else {}


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean over the labels that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in names}


def _held_out(folder: Path, contract: Contract, case: str) -> Predicted:
    """The active side's own held-out predictions, under their names in a score file."""
    kept = _frame(folder / f"results-{contract.active.name}" / "model" / "held_out.csv")
    end = f"_{case}"
    return {name.removesuffix(end): kept[name].to_numpy() for name in kept if name.endswith(end)}


def _centrally(table: PartyTable, contract: Contract, features: Any) -> tuple[list[dict[str, float]], Predicted]:
    """The same learner in the clear on the shared rows, with other columns than the active side's own.

    Returns:
        figures of every label, and predictions under their names in a score file.
    """
    side = Side(name=contract.active.name, features=features)
    if contract.glm is not None:
        return [_regressed(table, side, contract)], {}
    changed = contract.model_copy(update={"active": side})
    rows = jobs.rows_of(table, fit_binning(table, contract.boost.bins, features), changed)
    _, held_out, _ = boost.cross_validate(changed, rows, None)
    return samples.judged(contract, np.atleast_2d(rows.targets), held_out), samples.predictions(contract, held_out)


def _screened(table: PartyTable, contract: Contract) -> dict[str, Any]:
    """The passive side's columns that a screening in the clear keeps."""
    theirs = contract.passive.features
    settings = screen.settings_of(contract)
    binning = fit_binning(table, settings.bins, theirs)
    own = jobs.rows_of(table, fit_binning(table, 2, contract.active.features), contract)
    events = jobs.label_events(contract, own)
    bins, offsets = binning.transform(table), binning.offsets
    cells = [codes + first for codes, first in zip(bins.astype(np.int64), offsets[:-1], strict=True)]
    rows = np.bincount(np.concatenate(cells), minlength=int(offsets[-1]))
    hits = np.array(
        [np.concatenate([np.bincount(codes, one, int(n)) for codes, n in zip(bins, np.diff(offsets), strict=True)])
         for one in events]
    )  # fmt: skip
    kept = screen.choose(screen.values_of(hits.astype(np.int64), rows, offsets), settings)
    names = {binning.features[k].name for k in kept.tolist()}
    return {name: kind for name, kind in theirs.items() if name in names}


def _clusters(
    folder: Path, contract: Contract, trained: dict[str, Any], _: Business | None
) -> tuple[Figures, dict[str, Figures]]:
    """k-means of either side's columns, of both jointly, and scikit-learn's of the pooled columns from the same start.

    ``explained`` is the share of the variance of all columns between the clusters; ``agreement`` is the adjusted Rand
    index with the pooled clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    settings = kmeans.settings_of(contract)
    both = contract.active.features | contract.passive.features
    table = load_table(Data(path=folder / "pooled.csv"), contract.align.key, both, None, contract.budget.rows)
    parts = [
        fit_design(table, side.features, None, settings.bins)[0].standardised(table)
        for side in (contract.active, contract.passive)
    ]
    columns = np.concatenate(parts)
    own, theirs = (jobs_kmeans.own_clusters(part, settings) for part in parts)
    start = np.stack([columns[:, own == c].mean(axis=1) for c in range(settings.clusters)])
    pooled = KMeans(settings.clusters, init=start, n_init=1).fit(columns.T).labels_
    kept = _frame(folder / f"results-{contract.active.name}" / "model" / "clusters.csv")

    def judged(cluster: NDArray[np.int64]) -> dict[str, float]:
        filled = np.unique(cluster)
        centres = np.stack([columns[:, cluster == c].mean(axis=1) for c in filled])
        within = ((columns - centres[np.searchsorted(filled, cluster)].T) ** 2).sum()
        return {"explained": float(1 - within / columns.size), "agreement": adjusted_rand_score(pooled, cluster)}

    names = (contract.active.name, contract.passive.name)
    found = {f"{names[0]} alone": own, f"{names[1]} alone": theirs}
    found |= {"joint": kept["cluster"].to_numpy() - 1, "pooled": pooled}
    return {name: judged(cluster) for name, cluster in found.items()}, {}


def _regressed(table: PartyTable, side: Side, contract: Contract) -> dict[str, float]:
    settings = jobs_glm.settings_of(contract)
    evidence = jobs_glm.own_evidence(table, side, settings)[0] if settings.woe else None
    design, _ = fit_design(table, side.features, evidence, settings.bins, settings.least_iv)
    label = np.zeros(table.rows) if table.label is None else table.label.astype(np.float64)
    rows = regression.Rows(design.standardised(table), label, np.ones(table.rows), np.zeros(table.rows))
    return linear_figures(settings, label, regression.fit(rows, settings, None, design.names).eta)
