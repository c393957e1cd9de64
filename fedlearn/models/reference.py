"""How scores and features were spread over the training rows, kept beside a share to measure drift against.

``reference.json`` has, for each feature, the number of rows in each bin; and the joint margin by deciles where this
side knows it. It stays with the party.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.binning import Binning
from fedlearn.errors import WrongModel
from fedlearn.learner.woe import Tenths
from fedlearn.models.linear import LinearShare

I64 = NDArray[np.int64]
FILE = "reference.json"


@dataclass(frozen=True)
class Reference:
    """Training counts.

    Attributes:
        features: int64 (bins,) by feature.
        tenths: of the margin; None where it is not known.
    """

    features: dict[str, I64]
    tenths: Tenths | None = None


def save(folder: Path, binning: Binning, bins: NDArray[np.uint8], margins: NDArray[np.float64] | None = None) -> None:
    """Write what a share of trees was trained on: bins uint8 (F, n), margins float64 (n,)."""
    features = {
        feature.name: np.bincount(codes, minlength=feature.bins).tolist()
        for feature, codes in zip(binning.features, bins, strict=True)
    }
    tenths = None if margins is None else Tenths.of(margins).to_json()
    (folder / FILE).write_text(json.dumps({"features": features, "tenths": tenths}) + "\n", encoding="utf-8")


def load(folder: Path) -> Reference:
    """Read it; of a model that was trained without one, nothing. Raises WrongModel when it is damaged."""
    try:
        saved: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
        features = {str(name): np.array(counts, np.int64) for name, counts in saved["features"].items()}
        tenths = saved.get("tenths")  # earlier releases wrote none
        return Reference(features, Tenths.from_json(tenths) if tenths else None)
    except OSError:
        return Reference({})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WrongModel(f"{folder / FILE} is damaged") from None


def of_linear(share: LinearShare) -> Reference:
    """What a linear share itself knows: groups of weights of evidence, and scores by decile on the active side."""
    features = {c.name: c.evidence.rows for c in share.design.columns if c.evidence is not None}
    return Reference(features, share.tenths)
