"""Saving and loading one party's share of a model: ``share.json`` and one Arrow table, nothing executable.

A share names the contract it was trained under (by hash), the party it belongs to and the model both shares form. It is
written beside its final place and moved there in one step, so a broken run leaves nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import feather

from fedlearn.contract import Contract
from fedlearn.data.binning import Binning
from fedlearn.errors import FileMissing, OutputExists, WrongModel
from fedlearn.kernels.trees import MASK
from fedlearn.models.calibration import Calibration
from fedlearn.models.forest import Forest

FORMAT = 1
_COLUMNS = {
    "feature": pa.int32(), "opaque": pa.int32(), "left": pa.int32(), "value": pa.float64(),
    "gain": pa.float64(), "cover": pa.float64(), "size": pa.int64(),
}  # fmt: skip


@dataclass(frozen=True)
class ActiveShare:
    """The active side's half: its binning, its trees, and how many splits the passive half has.

    Attributes:
        names: of the opaque features, if the contract discloses them.
        disclosed: the passive half as far as the model uses it, if the contract discloses that.
        calibration: of the margin, where there were held-out folds to fit it on.
    """

    model_id: bytes
    binning: Binning
    forest: Forest
    passive_splits: int
    names: tuple[str, ...] = ()
    disclosed: PassiveShare | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class PassiveShare:
    """The passive side's half: its binning, and for each of its splits the feature and the bins that go left.

    Attributes:
        feature: int64 (S,), number of the feature in ``binning``.
        masks: uint8 (S, 32).
        disguise: 32 bytes from which the opaque features were drawn, so that they stay the same when training goes on
            from this share; empty where it cannot.
    """

    model_id: bytes
    binning: Binning
    feature: NDArray[np.int64]
    masks: NDArray[np.uint8]
    disguise: bytes = b""


Share = ActiveShare | PassiveShare


def refuse_existing(folder: Path) -> None:
    """Raises OutputExists when there is anything at ``folder``: nothing is ever overwritten."""
    if folder.exists():
        raise OutputExists(f"{folder} already exists")


def clear_own(folder: Path, maker: str) -> None:
    """Empty a folder that ``maker`` (``demo``, ``recipe``) made and marked earlier, or make and mark it.

    Raises:
        OutputExists: the folder holds something else.
    """
    mark = folder / f".fedlearn-{maker}"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise OutputExists(f"{folder} holds something that no {maker} wrote")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def replace_file(path: Path, *parts: bytes) -> None:
    """Write a file, readable by its owner only, so that it is there whole, or as it was, even after a power failure.

    When this returns, it is the new one that would be there.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that becomes it when the block ends well, and vanishes when it does not.

    Raises:
        OutputExists: there is something at ``folder`` already, before or after the block.
    """
    refuse_existing(folder)
    # Random: in a container every run has the same process ID, and a killed one leaves its folder.
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(8)}")
    partial.mkdir(parents=True)
    try:
        yield partial
        refuse_existing(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save(share: Share, folder: Path, contract: Contract, party: str) -> None:
    """Write a share into ``folder``, which exists."""
    table = _forest_table(share.forest) if isinstance(share, ActiveShare) else _split_table(share)
    feather.write_feather(table, folder / "share.arrow", compression="zstd")
    head: dict[str, Any] = {
        "format": FORMAT,
        "role": "active" if isinstance(share, ActiveShare) else "passive",
        "party": party,
        "peer": contract.peer_of(party),
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "model_id": share.model_id.hex(),
        "arrow_sha256": hashlib.sha256((folder / "share.arrow").read_bytes()).hexdigest(),
        "binning": share.binning.to_json(),
        "lasting": _lasting(contract, party),
    }
    if isinstance(share, PassiveShare):
        head["disguise"] = share.disguise.hex()
    if isinstance(share, ActiveShare):
        head |= {
            "base": share.forest.base.tolist(),
            "roots": share.forest.roots.tolist(),
            "output": share.forest.output.tolist(),
            "objective": contract.boost.objective,
            "passive_splits": share.passive_splits,
            "names": list(share.names),
        }
        if share.calibration is not None:
            head["calibration"] = share.calibration.to_json()
        if share.disclosed is not None:
            head["disclosed"] = _save_disclosed(share.disclosed, folder)
    (folder / "share.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")


def _lasting(contract: Contract, party: str) -> dict[str, Any]:
    """What a later contract must have in common, so that training can go on from a share: what its numbers mean."""
    side = contract.side(contract.role_of(party))
    boost = contract.boost
    lasting: dict[str, Any] = {"features": side.features, "monotone": side.monotone}
    lasting |= {name: getattr(boost, name) for name in ("objective", "tweedie_power", "bins")}
    return lasting | {"label": json.loads(contract.label.model_dump_json())}


def load(folder: Path, contract: Contract, party: str, *, to_go_on: bool = False) -> Share:
    """Read and check this party's share.

    Args:
        folder: where it is.
        contract: under which it is to be used.
        party: whose it must be.
        to_go_on: whether training is to go on from it, under a contract that may differ in rounds, rates and budgets.

    Raises:
        FileMissing: there is no share in ``folder``.
        WrongModel: it is damaged, or belongs to another contract or party.
    """
    try:
        head = json.loads((folder / "share.json").read_text(encoding="utf-8"))
        raw = (folder / "share.arrow").read_bytes()
    except OSError as error:
        raise FileMissing(f"no model share in {folder}: {error.strerror}") from None
    except ValueError:
        raise WrongModel(f"{folder / 'share.json'} is damaged: not JSON") from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise WrongModel(f"{folder / 'share.json'} is not a model share of this release")
    if head.get("party") != party:
        raise WrongModel(f"the share in {folder} belongs to party {head.get('party')!r}, not to {party!r}")
    if to_go_on:
        lasting = _lasting(contract, party)
        differ = [name for name, value in lasting.items() if head.get("lasting", {}).get(name) != value]
        if differ:
            raise WrongModel(f"the share in {folder} was trained with another {differ[0]} than {contract.name!r} has")
    elif head.get("contract_hash") != contract.hash().hex():
        raise WrongModel(f"the share in {folder} was trained under another contract than {contract.name!r}")
    if head.get("arrow_sha256") != hashlib.sha256(raw).hexdigest():
        raise WrongModel(f"{folder / 'share.arrow'} is damaged: its hash differs from share.json's")
    try:
        table = feather.read_table(pa.BufferReader(raw))
        binning = Binning.from_json(head["binning"])
        model_id = bytes.fromhex(head["model_id"])
        if head["role"] == "active":
            forest, names = _forest(table, head), tuple(map(str, head.get("names", ())))
            disclosed = _disclosed(head["disclosed"], folder, model_id) if "disclosed" in head else None
            calibration = Calibration.from_json(head["calibration"]) if "calibration" in head else None
            splits = int(head["passive_splits"])
            share: Share = ActiveShare(model_id, binning, forest, splits, names, disclosed, calibration)
        elif head["role"] == "passive":
            disguise = bytes.fromhex(head.get("disguise", ""))
            share = PassiveShare(model_id, binning, table["feature"].to_numpy(), _masks(table), disguise)
        else:
            raise ValueError("it is of neither role")
        _check(share)
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise WrongModel(f"the share in {folder} is damaged: {error}") from None
    return share


def _save_disclosed(half: PassiveShare, folder: Path) -> dict[str, Any]:
    feather.write_feather(_split_table(half), folder / "disclosed.arrow", compression="zstd")
    digest = hashlib.sha256((folder / "disclosed.arrow").read_bytes()).hexdigest()
    return {"arrow_sha256": digest, "binning": half.binning.to_json()}


def _disclosed(head: dict[str, Any], folder: Path, model_id: bytes) -> PassiveShare:
    try:
        raw = (folder / "disclosed.arrow").read_bytes()
    except OSError as error:
        raise ValueError(f"disclosed.arrow cannot be read ({error.strerror})") from None
    if head["arrow_sha256"] != hashlib.sha256(raw).hexdigest():
        raise ValueError("the hash of disclosed.arrow differs from share.json's")
    table = feather.read_table(pa.BufferReader(raw))
    return PassiveShare(model_id, Binning.from_json(head["binning"]), table["feature"].to_numpy(), _masks(table))


def _forest_table(forest: Forest) -> pa.Table:
    columns = {name: pa.array(getattr(forest, name), kind) for name, kind in _COLUMNS.items()}
    return pa.table({**columns, "mask": _mask_column(forest.masks)})


def _split_table(share: PassiveShare) -> pa.Table:
    return pa.table({"feature": pa.array(share.feature, pa.int64()), "mask": _mask_column(share.masks)})


def _mask_column(masks: NDArray[np.uint8]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(MASK), len(masks), [None, pa.py_buffer(masks.tobytes())])


def _masks(table: pa.Table) -> NDArray[np.uint8]:
    raw = b"".join(table["mask"].to_pylist())
    return np.frombuffer(raw, np.uint8).reshape(table.num_rows, MASK)


def _forest(table: pa.Table, head: dict[str, Any]) -> Forest:
    arrays = {name: table[name].cast(kind).to_numpy() for name, kind in _COLUMNS.items()}
    return Forest(
        base=np.array(head["base"], np.float64),
        roots=np.array(head["roots"], np.int32),
        output=np.array(head["output"], np.int32),
        masks=_masks(table),
        **arrays,
    )


def _check(share: Share) -> None:
    """Indices within bounds and children after parents, so that walking a tree ends. Raises ValueError."""
    features = len(share.binning.features)
    if len(share.model_id) != 16:
        raise ValueError("model_id is not 16 bytes")
    if isinstance(share, PassiveShare):
        if len(share.feature) and not 0 <= share.feature.min() <= share.feature.max() < features:
            raise ValueError("a split names a feature that does not exist")
        return
    if share.disclosed is not None:
        _check(share.disclosed)
        if len(share.disclosed.feature) != share.passive_splits:
            raise ValueError("it has other passive splits than were disclosed")
    forest = share.forest
    nodes, split = len(forest.left), forest.left >= 0
    if np.any(forest.left[split] <= np.flatnonzero(split)) or np.any(forest.left[split] + 1 >= nodes):
        raise ValueError("a child does not follow its parent")
    if np.any(forest.feature[split] >= features) or np.any(forest.feature[split] < -share.passive_splits):
        raise ValueError("a node names a split that does not exist")
    if forest.roots.ndim != 1 or forest.base.ndim != 1 or not np.isfinite([*forest.base, *forest.value]).all():
        raise ValueError("its trees or their values are not numbers")
    if forest.output.shape != forest.roots.shape or np.any((forest.output < 0) | (forest.output >= len(forest.base))):
        raise ValueError("a tree adds to a margin that does not exist")
    if len(forest.roots) and not 0 <= forest.roots.min() <= forest.roots.max() < nodes:
        raise ValueError("a tree has no root")
