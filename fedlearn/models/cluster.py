"""One party's share of a joint k-means: its design and the centres in its own columns. Plain JSON.

The active side's share also has the centres in the opaque columns, as the contract's protocol told them. A share names
contract, party and model as :mod:`fedlearn.models.linear` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Contract
from fedlearn.data.design import Design
from fedlearn.errors import WrongModel
from fedlearn.models import linear

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
KIND = "clusters"


@dataclass(frozen=True, eq=False)
class ClusterShare:
    """One side's half of the centres of k clusters.

    Attributes:
        role: ``active`` or ``passive``.
        model_id: 16 bytes that both shares carry.
        design: makes the columns.
        centres: float64 (k, p), in this side's standardised columns.
        peer: int32 (k, p_P), centres in the opaque columns; None on the passive side. Units as in the protocol.
    """

    role: str
    model_id: bytes
    design: Design
    centres: F64
    peer: I32 | None = None

    def profile(self) -> list[dict[str, float]]:
        """The centre of each cluster in the columns' own units; of a category, the share of rows with that text."""
        raw = self.centres * self.design.scales + self.design.means
        return [dict(zip(self.design.names, row.tolist(), strict=True)) for row in raw]


def save(share: ClusterShare, folder: Path, contract: Contract, party: str) -> None:
    """Write a share into ``folder``, which exists."""
    body: dict[str, Any] = {
        "format": linear.FORMAT,
        "kind": KIND,
        "role": share.role,
        "party": party,
        "peer": contract.peer_of(party),
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "model_id": share.model_id.hex(),
        "centres": share.centres.tolist(),
        "peer_centres": None if share.peer is None else share.peer.tolist(),
        "design": share.design.to_json(),
    }
    body["sha256"] = linear.digest(body)
    (folder / "share.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, contract: Contract, party: str) -> ClusterShare:
    """Read and check this party's share.

    Raises:
        FileMissing: there is no share in ``folder``.
        WrongModel: it is damaged, or belongs to another contract or party.
    """
    body = linear.read(folder, contract, party, KIND, "clusters")
    try:
        design = Design.from_json(body["design"])
        peer = None if body["peer_centres"] is None else np.array(body["peer_centres"], np.int32)
        share = ClusterShare(
            str(body["role"]), bytes.fromhex(body["model_id"]), design, np.array(body["centres"], np.float64), peer
        )
        if share.role not in ("active", "passive") or len(share.model_id) != 16:
            raise ValueError("it is of neither role, or its model_id is not 16 bytes")
        clusters = contract.kmeans.clusters if contract.kmeans else 0
        if share.centres.shape != (clusters, len(design.columns)) or not np.isfinite(share.centres).all():
            raise ValueError("its centres do not fit its columns or the contract")
        if (share.role == "active") != (peer is not None and peer.ndim == 2 and len(peer) == clusters):
            raise ValueError("its centres in the peer's columns do not fit")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WrongModel(f"the share in {folder} is damaged: {error}") from None
    return share
