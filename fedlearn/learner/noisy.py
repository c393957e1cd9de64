"""What the learner does about noise in the peer's sums, which a contract may ask for (differential privacy).

The active side knows every node's total exactly, since gradients are its own. So it moves each feature's noisy bins by
the same amount until they add up to the node's total: the least-squares estimate under that constraint, and
post-processing, which costs no privacy. Gains are then judged with the noise in mind
(:func:`fedlearn.kernels.trees.best_split`), and once rows are routed, children are checked against their exact sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


def reconciled(sums: I64, sizes: I64, totals: I64) -> I64:
    """Noisy sums, moved so that the bins of each feature add up to the node's total.

    Args:
        sums: int64 (nodes, R, V).
        sizes: int64 (F,), bins of each feature; R is their sum.
        totals: int64 (nodes, V).

    Returns:
        int64 (nodes, R, V); each bin of a feature moved by the same amount, give or take one unit.
    """
    starts = np.cumsum(sizes) - sizes
    short = totals[:, None] - np.add.reduceat(sums, starts, axis=1)
    share, rest = np.divmod(short, sizes[:, None])
    place = np.arange(sums.shape[1]) - np.repeat(starts, sizes)
    moved: I64 = sums + np.repeat(share, sizes, axis=1) + (place[:, None] < np.repeat(rest, sizes, axis=1))
    return moved
