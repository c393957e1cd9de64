"""``train`` and ``predict`` of a contract with ``[kmeans]``: what each role does between alignment and farewell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.contract import Contract, Kmeans
from fedlearn.data import PartyTable
from fedlearn.data.design import fit_design, unseen_in
from fedlearn.errors import NoOverlap
from fedlearn.jobs_score import Found, Pieces, run_active, run_passive, write_rows, write_table
from fedlearn.models import cluster as shares
from fedlearn.models.cluster import ClusterShare
from fedlearn.protocols import kmeans

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Summary = dict[str, Any]


def check_budget(contract: Contract, table: PartyTable) -> Summary:
    """What clustering would need at most, by the contract's columns. Raises OverBudget when it does not fit."""
    settings = kmeans.settings_of(contract)
    most = sum(1 if kind == "number" else settings.bins - 1 for kind in contract.passive.features.values())
    agreed = kmeans.layout(contract, most, table.rows)
    return {
        "would_train": f"k-means of {settings.clusters} clusters, at most {settings.max_steps} steps, "
        f"{contract.encryption.backend} back end",
        "most_vectors": kmeans.most_vectors(contract),
        "most_transfers": kmeans.most_transfers(contract, table.rows, settings.max_steps),
        "digits": f"{agreed.digits} of base {agreed.base}",
        "kl_nats_at_most": contract.budget.kl_nats,
    }


def own_clusters(columns: F64, settings: Kmeans) -> I64:
    """Clusters of one side's own rows, int64 (m,), columns float64 (p, m): where the joint ones start from.

    Raises:
        NoOverlap: fewer distinct rows than clusters.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    distinct = len(np.unique(columns, axis=1).T)
    if distinct < settings.clusters:
        raise NoOverlap(
            f"the {columns.shape[1]} aligned rows have {distinct} distinct value(s) in this side's columns, fewer than "
            f"the {settings.clusters} of [kmeans] clusters: agree fewer, or more columns"
        )
    found = KMeans(settings.clusters, n_init=10, random_state=settings.seed).fit(columns.T)
    return np.asarray(found.labels_, np.int64)


# --- train -------------------------------------------------------------------------------------------


def train_active(
    channel: Channel, contract: Contract, table: PartyTable, position: I64, universe: int, folder: Path
) -> Summary:
    """Cluster as the active side; ``table`` is its aligned rows. Writes the share and ``clusters.csv``."""
    settings = kmeans.settings_of(contract)
    design, said = fit_design(table, contract.active.features, None, settings.bins)
    columns = design.standardised(table)
    with channel.phase("start"):
        start = own_clusters(columns, settings)
    result = kmeans.fit_active(channel, contract, kmeans.ActiveData(columns, start, position, universe))
    share = ClusterShare("active", result.model_id, design, result.own, result.theirs)
    shares.save(share, folder, contract, contract.active.name)
    _write(folder / "clusters.csv", table, result.cluster)
    names = result.names or tuple(f"{contract.passive.name}#{j}" for j in range(result.theirs.shape[1]))
    theirs = [dict(zip(names, (row * kmeans.UNIT).tolist(), strict=True)) for row in result.theirs]
    facts: Summary = {
        **_facts(result.model_id, len(result.moved), result.converged, settings, said),
        "moved": result.moved,
        "clusters": [
            {"cluster": c + 1, "rows": int((result.cluster == c).sum()), "profile": own, "peer_standardised": peer}
            for c, (own, peer) in enumerate(zip(share.profile(), theirs, strict=True))
        ],
    }
    if contract.align.mode == "mutual":  # the opaque columns are standardised over just these rows
        own_start = np.stack([columns[:, start == c].mean(axis=1) for c in range(settings.clusters)])
        facts["joint"] = {"explained": _explained(result.cluster, result.own, result.theirs)}
        facts["alone"] = {"explained": _explained(start, own_start, result.first)}
    empty = [line["cluster"] for line in facts["clusters"] if line["rows"] == 0]
    facts["warnings"] += [f"cluster {c} has no row left; its centre stays where it was" for c in empty]
    return facts


def train_passive(channel: Channel, contract: Contract, table: PartyTable, folder: Path) -> Summary:
    """Serve as the passive side; ``table`` is its rows of the shared order. Writes the share."""
    settings = kmeans.settings_of(contract)
    design, said = fit_design(table, contract.passive.features, None, settings.bins)
    data = kmeans.PassiveData(design.standardised(table), design.names)
    result = kmeans.fit_passive(channel, contract, data)
    share = ClusterShare("passive", result.model_id, design, np.asarray(result.centres * kmeans.UNIT, np.float64))
    shares.save(share, folder, contract, contract.passive.name)
    profile = [{"cluster": c + 1, "profile": line} for c, line in enumerate(share.profile())]
    return _facts(result.model_id, result.steps, result.converged, settings, said) | {"clusters": profile}


def _facts(model_id: bytes, steps: int, converged: bool, settings: Kmeans, said: list[str]) -> Summary:
    unconverged = [] if converged else [f"not converged after {settings.max_steps} steps: agree more"]
    return {"model_id": model_id.hex(), "steps": steps, "converged": converged, "warnings": said + unconverged}


def _explained(cluster: I64, own: F64, theirs: I32) -> float:
    """Share of the variance of all columns that lies between the clusters' centres."""
    rows = np.bincount(cluster, minlength=len(own))
    squares = (own**2).sum(axis=1) + ((theirs * kmeans.UNIT) ** 2).sum(axis=1)
    return float(rows @ squares / (len(cluster) * (own.shape[1] + theirs.shape[1])))


# --- predict -----------------------------------------------------------------------------------------


def encode(share: ClusterShare, table: PartyTable) -> dict[str, NDArray[Any]]:
    """All that scoring needs of some rows: what a table to score is read as. A row's does not depend on the others.

    Returns:
        each of shape (n,): ``part <c>`` float64, for each cluster, of the active side its part of the squared distance
        to the centre, of the passive side the product with the centre; and ``unseen <feature>`` bool, where a
        category's text is one that training never saw.
    """
    parts = np.zeros((len(share.centres), table.rows))
    for j, column in enumerate(share.design.columns):
        values = (column.raw(table) - column.mean) / column.scale
        for c, centre in enumerate(share.centres[:, j]):
            parts[c] += values * centre if share.role == "passive" else (values - centre) ** 2
    return {f"part {c}": part for c, part in enumerate(parts)} | share.design.flagged(table)


def predict_active(
    channel: Channel, contract: Contract, share: ClusterShare, table: PartyTable, order: I64, pieces: Pieces, path: Path
) -> Summary:
    """Find the clusters of aligned rows and write them to ``path``.

    Args:
        channel, contract: after handshake and alignment.
        share: the active side's.
        table: encoded (:func:`encode`), aligned or not.
        order: int64 (n,), own row at each place of the shared order, -1 for none.
        pieces: what was done before, and where to keep what is done now.
        path: of the score file.
    """
    peer = np.empty((len(share.centres), 0), np.int32) if share.peer is None else share.peer
    nearest = kmeans.assign_active(channel, contract, peer, len(order))

    def one(rows: I64, place: I64, length: int) -> Found:
        return {"cluster": nearest(_parts(share, table, rows), place, length)}

    found = run_active(channel, pieces, order, table.rows, {"cluster": np.dtype(np.int64)}, one)["cluster"]
    kmeans.assigned(channel)
    rows = np.sort(order[order >= 0])

    def columns(part: slice) -> dict[str, Any]:
        return {"id": table.ids.take(pa.array(rows[part])), "cluster": found[rows[part]] + 1}

    write_rows(path, len(rows), columns)
    counts = np.bincount(found[rows], minlength=len(share.centres)).tolist()
    facts = {"rows_scored": len(rows), "rows_by_cluster": counts, "warnings": unseen_in(table, rows)}
    return {"pieces": pieces.count, "pieces_from_before": pieces.done, **facts}


def predict_passive(
    channel: Channel, contract: Contract, share: ClusterShare, table: PartyTable, order: I64, pieces: Pieces
) -> Summary:
    """Serve the clusters of aligned rows; ``table`` is encoded, ``order`` int64 (n,) its rows in the shared order."""
    serve = kmeans.assign_passive(channel, contract, _parts(share, table, order))
    before = run_passive(channel, pieces, order, lambda rows: serve(_parts(share, table, rows)))
    kmeans.end_assigning(channel)
    return {"pieces": pieces.count, "pieces_from_before": before, "warnings": unseen_in(table, order)}


def _parts(share: ClusterShare, table: PartyTable, rows: I64) -> F64:
    """Of some rows of an encoded table, float64 (k, m)."""
    return np.stack([table.encoded[f"part {c}"][rows] for c in range(len(share.centres))])


def _write(path: Path, table: PartyTable, cluster: I64) -> None:
    """Clusters count from 1."""
    write_table(path, {"id": table.ids, "cluster": cluster + 1})
