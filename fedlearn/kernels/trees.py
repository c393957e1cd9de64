"""Histograms, split search, row partition and prediction for boosted trees; all arrays flat.

Sums are exact integers of quantised gradients, so sibling subtraction is exact and both back ends of the encrypted
product give the same trees. A set of bins is a bit mask of 32 bytes (bit b of byte b // 8).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fedlearn.kernels.negacyclic import _FLAGS, F64, U64
from fedlearn.kernels.threads import CORES, ranges, spread

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
B1 = NDArray[np.bool_]

#: Bytes of a bin mask.
MASK = 32


@njit(**_FLAGS)
def quantise(values: F64, rows: I64, scale: float, words: U64, out: I32) -> None:
    """Stochastic rounding: out[i] = ⌊values[i]/scale + u⌋ with u uniform in [0, 1), for the given rows.

    Args:
        values: float64 (m,).
        rows: int64, which entries to round; the others of ``out`` are left alone.
        scale: value of one unit.
        words: uint64 (m,), one uniform word for each row.
        out: int32 (m,).
    """
    for i in rows:
        out[i] = np.int32(np.floor(values[i] / scale + np.float64(words[i] >> np.uint64(11)) * 2.0**-53))


@njit(**_FLAGS)
def scatter(values: I32, slots: I32, rows: I64, position: I64, out: I32) -> None:
    """Spread the values of each node over its own encrypted vectors.

    Args:
        values: int32 (V, m).
        slots: int32 (m,), which vector group a row belongs to.
        rows: int64, rows that belong to one.
        position: int64 (m,), place of each row in the order that both sides share.
        out: int32 (S·V, n), zero on entry.
    """
    count = values.shape[0]
    for i in rows:
        for k in range(count):
            out[slots[i] * count + k, position[i]] = values[k, i]


@njit(**_FLAGS)
def _histogram(bins: U8, values: I32, slots: I32, rows: I64, out: I64) -> None:
    """out[slot, bin, k] += values[k, i] for one feature; out int64 (S, bins, V)."""
    count = values.shape[0]
    for i in rows:
        for k in range(count):
            out[slots[i], bins[i], k] += values[k, i]


def histograms(bins: U8, sizes: I64, values: I32, slots: I32, rows: I64, nodes: int) -> I64:
    """Sums of values by node and bin over this side's own features.

    Args:
        bins: uint8 (F, m).
        sizes: int64 (F,), bins of each feature.
        values: int32 (V, m).
        slots: int32 (m,), node slot of each row.
        rows: int64, the rows to sum.
        nodes: number of slots.

    Returns:
        int64 (nodes, R, V) with R = sum of sizes.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    out = np.zeros((nodes, int(offsets[-1]), len(values)), np.int64)

    def features(part: range) -> None:
        for f in part:
            _histogram(bins[f], values, slots, rows, out[:, offsets[f] : offsets[f + 1]])

    spread(features, ranges(len(sizes), CORES))
    return out


@njit(**_FLAGS)
def _score(g: float, h: float, l2: float) -> float:
    return g * g / (h + l2) if h + l2 > 0 else 0.0


@njit(**_FLAGS)
def _set_bit(mask: U8, b: int) -> None:
    mask[b >> 3] |= np.uint8(1 << (b & 7))


@njit(**_FLAGS)
def _empty(sums: I64, b: int) -> bool:
    return not sums[b].any()


@njit(**_FLAGS)
def _left_bins(sums: I64, order: I64, cut: int, ordered: bool, heavier_left: bool, mask: U8) -> None:
    """Set the regular bins of one feature that go left when ``order`` is cut after place ``cut``.

    Where bins that are empty in this node go changes no sum, but other rows may be in them, so it must not depend on
    the direction in which the peer numbered its bins: in an order they go with the nearest bin that is not empty (the
    one midway with the heavier child), in a category with the heavier child.
    """
    regular = len(order)
    mask[:] = 0
    if not ordered:
        for c in range(regular):
            if heavier_left if _empty(sums, order[c]) else c <= cut:
                _set_bit(mask, order[c])
        return
    below, above = cut, cut + 1
    while below >= 0 and _empty(sums, below):
        below -= 1
    while above < regular and _empty(sums, above):
        above += 1
    twice_middle = below + above
    if below < 0:
        twice_middle = -1  # only missing values go left
    elif above == regular:
        twice_middle = 2 * regular  # only missing values go right
    for b in range(regular):
        if 2 * b < twice_middle or (2 * b == twice_middle and heavier_left):
            _set_bit(mask, b)


@njit(**_FLAGS)
def best_split(
    sums: I64, offsets: I64, ordered: B1, units: F64, l2: float, least_weight: float, least_size: int, mask: U8
) -> tuple[float, int]:
    """The split of one node with the largest gain (Chen & Guestrin, KDD 2016, eq. 7, without the factor ½ and γ).

    Bins of an ordered feature are cut between neighbours; those of a category first sorted by gradient over
    hessian (Fisher, JASA 1958: the best subset is a prefix of that order). The last bin of a feature holds
    missing values and tries both sides; where this node has none, it goes with the heavier child.

    Args:
        sums: int64 (R, V): quantised gradient, hessian and, when V is 3, row count of each bin.
        offsets: int64 (F + 1,), rows of each feature.
        ordered: bool (F,).
        units: float64 (2,), value of one unit of gradient and of hessian.
        l2: λ.
        least_weight: least sum of hessians in a child.
        least_size: least row count in a child; used when V is 3.
        mask: uint8 (32,), receives the bins that go left.

    Returns:
        gain (0 when there is no split) and feature (-1 then).
    """
    counted = sums.shape[1] == 3
    best, best_feature = 0.0, -1
    for f in range(len(offsets) - 1):
        begin, last = offsets[f], offsets[f + 1] - 1
        regular = last - begin
        tg, th, tn = 0, 0, 0
        for r in range(begin, last + 1):
            tg += sums[r, 0]
            th += sums[r, 1]
            if counted:
                tn += sums[r, 2]
        whole = _score(tg * units[0], th * units[1], l2)
        mg, mh = sums[last, 0], sums[last, 1]
        mn = sums[last, 2] if counted else 0
        none_missing = _empty(sums, last)
        order = np.arange(regular)
        if not ordered[f]:
            ratio = np.empty(regular)
            for b in range(regular):
                h = sums[begin + b, 1] * units[1]
                ratio[b] = sums[begin + b, 0] * units[0] / (h + l2) if h + l2 > 0 else 0.0
            order = np.argsort(ratio, kind="mergesort")
        g, h, n = 0, 0, 0
        for cut in range(regular):
            r = begin + order[cut]
            g += sums[r, 0]
            h += sums[r, 1]
            if counted:
                n += sums[r, 2]
            for missing_left in range(1 if none_missing else 2):
                gl, hl, nl = g, h, n
                if missing_left:
                    gl, hl, nl = g + mg, h + mh, n + mn
                gr, hr = tg - gl, th - hl
                if hl * units[1] < least_weight or hr * units[1] < least_weight or hl == 0 or hr == 0:
                    continue
                if counted and (nl < least_size or tn - nl < least_size):
                    continue
                gain = _score(gl * units[0], hl * units[1], l2) + _score(gr * units[0], hr * units[1], l2) - whole
                if gain > best:
                    best, best_feature = gain, f
                    heavier_left = hl > hr
                    _left_bins(sums[begin:last], order, cut, ordered[f], heavier_left, mask)
                    if missing_left or (none_missing and heavier_left):
                        _set_bit(mask, regular)
    return best, best_feature


@njit(**_FLAGS)
def partition(node: I32, split: I32, feature: I32, masks: U8, sides: U8, left: I32, bins: U8, position: I64) -> None:
    """Move every row of a split node to the child it belongs to.

    Args:
        node: int32 (m,), node of each row; updated.
        split: int32 (nodes,), number of the node's split in this call, or -1 for nodes that stay.
        feature: int32 (splits,), own feature, or -1 - (row of ``sides``) for a passive one.
        masks: uint8 (splits, 32), bins that go left; for own features.
        sides: uint8 (passive splits, ⌈n/8⌉), bit set for rows that go left, in shared order.
        left: int32 (splits,), left child; the right one follows it.
        bins: uint8 (F, m), own bins.
        position: int64 (m,), place of each row in the shared order.
    """
    for i in range(node.shape[0]):
        s = split[node[i]]
        if s < 0:
            continue
        if feature[s] >= 0:
            b = bins[feature[s], i]
            goes_left = (masks[s, b >> 3] >> (b & 7)) & 1
        else:
            p = position[i]
            goes_left = (sides[-1 - feature[s], p >> 3] >> (p & 7)) & 1
        node[i] = left[s] if goes_left else left[s] + 1


@njit(**_FLAGS)
def side_bits(bins: U8, mask: U8, out: U8) -> None:
    """One bit per row, set where the row's bin is in the mask. Args: bins uint8 (n,); out uint8 (⌈n/8⌉,)."""
    out[:] = 0
    for i in range(bins.shape[0]):
        b = bins[i]
        out[i >> 3] |= np.uint8(((mask[b >> 3] >> (b & 7)) & 1) << (i & 7))


@njit(**_FLAGS)
def add_margins(
    roots: I32, feature: I32, masks: U8, left: I32, value: F64, bins: U8, sides: U8, position: I64, out: F64
) -> None:
    """Add the leaf values of all trees to each row's margin.

    Args:
        roots: int32 (T,), root of each tree.
        feature: int32 (nodes,): own feature, or -1 - (row of ``sides``).
        masks: uint8 (nodes, 32).
        left: int32 (nodes,), left child (the right one follows), or -1 at a leaf.
        value: float64 (nodes,), leaf values.
        bins: uint8 (F, m), own bins.
        sides: uint8 (S, ⌈n/8⌉), side bits of every passive split.
        position: int64 (m,), place of each row in the shared order.
        out: float64 (m,), added to.
    """
    for i in range(out.shape[0]):
        p = position[i]
        for root in roots:
            at = root
            while left[at] >= 0:
                if feature[at] >= 0:
                    b = bins[feature[at], i]
                    goes_left = (masks[at, b >> 3] >> (b & 7)) & 1
                else:
                    goes_left = (sides[-1 - feature[at], p >> 3] >> (p & 7)) & 1
                at = left[at] if goes_left else left[at] + 1
            out[i] += value[at]
