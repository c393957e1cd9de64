"""Optima of the monotone binning problem by optbinning (constraint programming), for ``test_woe.py``.

optbinning needs OR-Tools, which at present excludes the protobuf that this package needs, so run this in an environment
of its own::

    python -m venv elsewhere && elsewhere/bin/pip install optbinning
    elsewhere/bin/python tests/make_optbinning_vectors.py > tests/vectors/optbinning.json
"""

from __future__ import annotations

import json

import numpy as np
import optbinning
from optbinning import OptimalBinning


def case(draw: np.random.Generator, bins: int, most: int, share: float) -> dict[str, object]:
    """Counts of one feature, and the optimum with rates that rise and with rates that fall."""
    rows = draw.integers(30, 300, bins)
    rate = 1 / (1 + np.exp(2 - draw.normal(0, 0.6, bins).cumsum() * draw.choice([0.2, 1.0])))
    events = draw.binomial(rows, rate)
    code = np.repeat(np.arange(bins), rows)
    label = np.concatenate([np.arange(n) < k for n, k in zip(rows, events, strict=True)]).astype(int)
    found = {}
    for trend in ("ascending", "descending"):
        model = OptimalBinning(
            monotonic_trend=trend, max_n_bins=most, min_bin_size=share, min_bin_n_event=1, min_bin_n_nonevent=1,
            min_prebin_size=1e-6, user_splits=np.arange(1, bins) - 0.5, solver="cp",
        )  # fmt: skip
        model.fit(code, label)
        table = model.binning_table
        table.build()
        found[trend] = {"status": model.status, "iv": float(table.iv), "splits": model.splits.tolist()}
    return {"rows": rows.tolist(), "events": events.tolist(), "max_groups": most, "least_share": share, **found}


def main() -> None:
    """Print the vectors."""
    draw = np.random.default_rng(17)
    cases = [case(draw, int(draw.integers(4, 21)), int(draw.integers(2, 9)), share) for share in (0.02, 0.1) * 12]
    print(json.dumps({"optbinning": optbinning.__version__, "cases": cases}, indent=None))


if __name__ == "__main__":
    main()
