"""Trees of two parties as one inner product: the active side's numbers times the passive side's bits.

Split s of the passive side has the bit x_s: 1 when a row arrives at s as far as passive splits above it decide, and
goes left there. Whatever the active side's own splits decide, which it knows, a tree's value is a constant plus
Σ c_s·x_s: at a node reached with indicator R the value is R·T(node), with

    T(leaf) = its weight,  T(own split) = T(the side taken),  T(s) = T(right of s),  and  c_s = T(left) - T(right),

plus c_s·x_s for each passive split s below, because left of s is reached with x_s and right of it with R - x_s. So
there is one number for each passive split, and none for leaves; of the trees' shape the passive side needs to know
which of its splits is next above which, and on which side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS

I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@njit(**_FLAGS)
def weights(roots: I32, feature: I32, masks: U8, left: I32, value: I64, bins: U8, out: I64) -> int:
    """The active side's numbers for one row.

    Args:
        roots: int32 (T,), root of each tree; children follow their parents.
        feature: int32 (nodes,): own feature, or -1 - s for passive split s.
        masks: uint8 (nodes, 32), bins that go left.
        left: int32 (nodes,), left child (the right one follows), or -1 at a leaf.
        value: int64 (nodes,), leaf weights in fixed point.
        bins: uint8 (F,), own bins of the row.
        out: int64 (S,), zeros; becomes c.

    Returns:
        The constant: the sum of the trees when every x_s is 0.
    """
    nodes = len(left)
    reached = np.zeros(nodes, np.bool_)
    for root in roots:
        reached[root] = True
    for at in range(nodes):
        if reached[at] and left[at] >= 0:
            if feature[at] >= 0:
                b = bins[feature[at]]
                reached[left[at] + 1 - ((masks[at, b >> 3] >> (b & 7)) & 1)] = True
            else:
                reached[left[at]] = reached[left[at] + 1] = True
    below = np.zeros(nodes, np.int64)
    for at in range(nodes - 1, -1, -1):
        if not reached[at]:
            continue
        if left[at] < 0:
            below[at] = value[at]
        elif feature[at] >= 0:
            below[at] = below[left[at]] if reached[left[at]] else below[left[at] + 1]
        else:
            below[at] = below[left[at] + 1]
            out[-1 - feature[at]] = below[left[at]] - below[at]
    constant = 0
    for root in roots:
        constant += below[root]
    return constant


@njit(**_FLAGS)
def arrived(above: I32, sides: U8, out: I8) -> None:
    """The passive side's bits x of one row.

    Args:
        above: int32 (S,), of each split 2·p + (1 on the right) with p < s the split next above it, or -1.
        sides: uint8 (S,), 1 where the row goes left.
        out: int8 (S,), x.
    """
    here = np.ones(len(above), np.bool_)
    for s in range(len(above)):
        if above[s] >= 0:
            p = above[s] >> 1
            here[s] = here[p] and (sides[p] == 0) == (above[s] & 1 == 1)
        out[s] = here[s] and sides[s] != 0


@njit(**_FLAGS)
def shape(roots: I32, feature: I32, left: I32, value: I64, above: I32) -> tuple[int, int]:
    """What does not depend on a row.

    Args:
        roots, feature, left, value: as of :func:`weights`.
        above: int32 (S,), filled with -2; becomes what :func:`arrived` takes.

    Returns:
        A bound on ``|Σ c_s·x_s|``: the spreads of the leaf weights of trees with passive splits, added up; and how many
        nodes split on a passive feature.
    """
    nodes = len(left)
    tree = np.full(nodes, -1, np.int32)
    near = np.full(nodes, -1, np.int32)  # as in ``above``
    for t in range(len(roots)):
        tree[roots[t]] = t
    least = np.full(len(roots), np.iinfo(np.int64).max)
    most = np.full(len(roots), np.iinfo(np.int64).min)
    mixed = np.zeros(len(roots), np.bool_)
    count = 0
    for at in range(nodes):
        t = tree[at]
        if t < 0:
            continue
        if left[at] < 0:
            least[t], most[t] = min(least[t], value[at]), max(most[t], value[at])
            continue
        tree[left[at]] = tree[left[at] + 1] = t
        if feature[at] >= 0:
            near[left[at]] = near[left[at] + 1] = near[at]
        else:
            s = -1 - feature[at]
            above[s] = near[at]
            near[left[at]], near[left[at] + 1] = 2 * s, 2 * s + 1
            mixed[t] = True
            count += 1
    return (most - least)[mixed].sum(), count
