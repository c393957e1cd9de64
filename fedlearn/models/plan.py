"""One party's half of a plan of columns: which of its own stay for training, and why the others go. Plain JSON.

Both halves carry the same id, so that a later training uses the same plan on both sides, or none. A half names contract
and party as a share of a model does, and carries a hash of its own content. The active side's half also has the opaque
columns that the peer keeps: their kinds, and names only where these were disclosed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlearn.contract import Contract, Kind, Side
from fedlearn.errors import FileMissing, WrongModel

FORMAT = 1
FILE = "plan.json"


@dataclass(frozen=True)
class Line:
    """A column of the plan; ``reason`` says why it goes, "" where it stays."""

    column: str
    kind: Kind
    reason: str = ""
    monotone: int = 0

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return not self.reason


@dataclass(frozen=True)
class Plan:
    """One party's half.

    Attributes:
        plan_id: 16 bytes that both halves carry.
        own: of this side's columns, in the contract's order.
        peer: of the other side's, as this side knows them; empty on the passive side.
    """

    plan_id: bytes
    own: tuple[Line, ...]
    peer: tuple[Line, ...] = ()

    def narrowed(self, contract: Contract, role: str) -> Contract:
        """The contract on the columns that stay, as far as this side knows them."""
        own, peer = _fewer(contract.side(role), self.own), contract.side("passive" if role == "active" else "active")
        if role == "active":
            return contract.narrowed(own, _fewer(peer, self.peer))
        return contract.narrowed(peer, own)


def _fewer(side: Side, lines: Iterable[Line]) -> Side:
    kept = [line for line in lines if line.kept]
    monotone = {line.column: line.monotone for line in kept if line.monotone}
    return side.model_copy(update={"features": {line.column: line.kind for line in kept}, "monotone": monotone})


def save(plan: Plan, folder: Path, contract: Contract, party: str) -> None:
    """Write a half into ``folder``, which exists."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "kind": "plan",
        "party": party,
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "plan_id": plan.plan_id.hex(),
        "own": [vars(line) for line in plan.own],
        "peer": [vars(line) for line in plan.peer],
    }
    body["sha256"] = _digest(body)
    (folder / FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, contract: Contract, party: str) -> Plan:
    """Read and check this party's half.

    Raises:
        FileMissing: there is no plan in ``folder``.
        WrongModel: it is damaged, or belongs to another contract, party or set of columns.
    """
    path, role = folder / FILE, contract.role_of(party)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(f"no plan in {folder}: {error.strerror}") from None
    except ValueError:
        raise WrongModel(f"{path} is damaged: not JSON") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("kind") != "plan":
        raise WrongModel(f"{path} is not a plan that the job statistics of this release made")
    if body.get("party") != party:
        raise WrongModel(f"the plan in {folder} belongs to party {body.get('party')!r}, not to {party!r}")
    if body.get("contract_hash") != contract.hash().hex():
        raise WrongModel(f"the plan in {folder} was made under another contract than {contract.name!r}")
    if body.pop("sha256", None) != _digest(body):
        raise WrongModel(f"{path} is damaged: its hash differs from its content's")
    try:
        own, peer = (tuple(Line(**line) for line in body[side]) for side in ("own", "peer"))
        plan = Plan(bytes.fromhex(body["plan_id"]), own, peer)
    except (KeyError, TypeError, ValueError) as error:
        raise WrongModel(f"the plan in {folder} is damaged: {error}") from None
    if {line.column: line.kind for line in own} != contract.side(role).features:
        raise WrongModel(f"the plan in {folder} is of other columns than the contract gives {party!r}")
    peers = len(contract.passive.features) if role == "active" else 0
    if len(plan.plan_id) != 16 or len(peer) != peers or not any(line.kept for line in own):
        raise WrongModel(f"the plan in {folder} is damaged: it keeps no column, or not every column is in it")
    return plan


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
