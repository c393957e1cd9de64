"""One party's share of a linear model: its design, its coefficients, and with a scorecard its points. Plain JSON.

The linear predictor is the sum of both shares (and the offset): the intercept stands with the active side. A share
names contract, party and model as :mod:`fedlearn.models.share` does, and carries a hash of its own content.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Contract
from fedlearn.data.design import Design
from fedlearn.data.table import PartyTable
from fedlearn.errors import FileMissing, WrongModel
from fedlearn.kernels.threads import spread
from fedlearn.learner.woe import Tenths

F64 = NDArray[np.float64]
FORMAT = 1


@dataclass(frozen=True, eq=False)
class LinearShare:
    """One side's half of a linear model.

    Attributes:
        role: ``active`` or ``passive``.
        model_id: 16 bytes that both shares carry.
        design: makes the columns.
        coefficients: float64 (p,), of the standardised columns.
        intercept: of the standardised model; 0 on the passive side.
        errors: float64 (p,), standard errors of the coefficients; None where there are none.
        intercept_error: standard error of the intercept; None where there is none, and on the passive side.
        tenths: the joint linear predictor over the training rows; None on the passive side.
    """

    role: str
    model_id: bytes
    design: Design
    coefficients: F64
    intercept: float = 0.0
    errors: F64 | None = None
    intercept_error: float | None = None
    tenths: Tenths | None = None

    def scores(self, table: PartyTable) -> F64:
        """This side's part of the linear predictor, float64 (n,)."""
        return np.asarray(self.encode(table)["eta"], np.float64)

    def encode(self, table: PartyTable) -> dict[str, NDArray[Any]]:
        """All that scoring needs of some rows: what a table to score is read as. A row's does not depend on the others.

        Returns:
            each of shape (n,): ``eta`` float64, this side's part of the linear predictor; ``group <column>`` uint8, for
            each column on weights of evidence; and ``unseen <feature>`` bool, where a category's text is one that
            training never saw.
        """

        def part(j: int) -> tuple[dict[str, NDArray[Any]], F64]:
            column = self.design.columns[j]
            if column.evidence is None:
                found, values = {}, column.raw(table)
            else:
                group = column.evidence.groups(table)
                found, values = {f"group {column.name}": group}, column.evidence.woe[group]
            return found, self.coefficients[j] * ((values - column.mean) / column.scale)

        encoded: dict[str, NDArray[Any]] = {"eta": np.full(table.rows, self.intercept)}
        for found, amounts in spread(part, range(len(self.design.columns))):
            encoded["eta"] += amounts
            encoded |= found
        return encoded | self.design.flagged(table)

    @property
    def raw(self) -> tuple[F64, float]:
        """Coefficients of the columns as they stand, float64 (p,), and the constant that goes with them."""
        slopes = self.coefficients / self.design.scales
        return slopes, float(self.intercept - slopes @ self.design.means)

    def table(self) -> list[dict[str, Any]]:
        """Coefficient, standard error, z and two-sided normal p-value of each column, in the column's own units.

        The intercept is that of the standardised columns: the linear predictor where every column of both sides has its
        mean.
        """
        from scipy.stats import norm

        lines = []
        names, scales = list(self.design.names), self.design.scales
        values = list(self.coefficients / scales)
        errors = [None] * len(values) if self.errors is None else list(self.errors / scales)
        if self.role == "active":
            names, values, errors = ["(intercept)", *names], [self.intercept, *values], [self.intercept_error, *errors]
        for name, value, error in zip(names, values, errors, strict=True):
            line: dict[str, Any] = {"column": name, "coefficient": float(value)}
            if error is not None:
                z = float(value / error)
                line |= {"error": float(error), "z": z, "p": float(2 * norm.sf(abs(z)))}
            lines.append(line)
        return lines


def save(share: LinearShare, folder: Path, contract: Contract, party: str) -> None:
    """Write a share into ``folder``, which exists."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "kind": "linear",
        "role": share.role,
        "party": party,
        "peer": contract.peer_of(party),
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "family": contract.glm.family if contract.glm else None,
        "model_id": share.model_id.hex(),
        "intercept": share.intercept,
        "intercept_error": share.intercept_error,
        "coefficients": share.coefficients.tolist(),
        "tenths": None if share.tenths is None else share.tenths.to_json(),
        "errors": None if share.errors is None else share.errors.tolist(),
        "design": share.design.to_json(),
    }
    body["sha256"] = digest(body)
    (folder / "share.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, contract: Contract, party: str) -> LinearShare:
    """Read and check this party's share.

    Raises:
        FileMissing: there is no share in ``folder``.
        WrongModel: it is damaged, or belongs to another contract or party.
    """
    body = read(folder, contract, party, "linear", "a linear model")
    try:
        errors = body["errors"]
        share = LinearShare(
            role=str(body["role"]),
            model_id=bytes.fromhex(body["model_id"]),
            design=Design.from_json(body["design"]),
            coefficients=np.array(body["coefficients"], np.float64),
            intercept=float(body["intercept"]),
            errors=None if errors is None else np.array(errors, np.float64),
            intercept_error=body["intercept_error"],
            tenths=Tenths.from_json(body["tenths"]) if body.get("tenths") else None,  # earlier releases wrote none
        )
        if share.role not in ("active", "passive") or len(share.model_id) != 16:
            raise ValueError("it is of neither role, or its model_id is not 16 bytes")
        if share.coefficients.shape != share.design.means.shape or not np.isfinite(share.coefficients).all():
            raise ValueError("its coefficients do not fit its columns")
    except (KeyError, TypeError, ValueError) as error:
        raise WrongModel(f"the share in {folder} is damaged: {error}") from None
    return share


def read(folder: Path, contract: Contract, party: str, kind: str, what: str) -> dict[str, Any]:
    """The content of a share of ``kind``, which messages call ``what``. Raises as :func:`load`."""
    try:
        body = json.loads((folder / "share.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(f"no model share in {folder}: {error.strerror}") from None
    except ValueError:
        raise WrongModel(f"{folder / 'share.json'} is damaged: not JSON") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("kind") != kind:
        raise WrongModel(f"{folder / 'share.json'} is not a share of {what} of this release")
    if body.get("party") != party:
        raise WrongModel(f"the share in {folder} belongs to party {body.get('party')!r}, not to {party!r}")
    if body.get("contract_hash") != contract.hash().hex():
        raise WrongModel(f"the share in {folder} was trained under another contract than {contract.name!r}")
    if body.pop("sha256", None) != digest(body):
        raise WrongModel(f"{folder / 'share.json'} is damaged: its hash differs from its content's")
    return body


def digest(body: dict[str, Any]) -> str:
    """SHA-256 of a share's content, hexadecimal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
