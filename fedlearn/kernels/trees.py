"""Histograms, split search, row partition and prediction for boosted trees; all arrays flat.

Sums are exact integers of quantised gradients, so sibling subtraction is exact and both back ends of the encrypted
product give the same trees. A set of bins is a bit mask of 32 bytes (bit b of byte b // 8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit
from fedlearn.kernels.negacyclic import _FLAGS, F64, U64
from fedlearn.kernels.threads import CORES, ranges, spread

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
B1 = NDArray[np.bool_]

#: Bytes of a bin mask.
MASK = 32
#: Under noise, a child's hessian must exceed the least by so many deviations of the noise in it, and the gain of a
#: split is cut by so many times what noise adds to it on average, because the best of hundreds is picked. Measured:
#: docs/decisions/0016-differential-privacy.md.
_NOISE_GUARD = 2.0
_NOISE_CUT = 5.0


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
def place(values: I32, position: I64, out: I32) -> None:
    """Spread own rows over the order that both sides share.

    Args:
        values: int32 (V, m), of every own row.
        position: int64 (m,), place of each row in the shared order.
        out: int32 (V, n).
    """
    for k in range(values.shape[0]):
        for i in range(values.shape[1]):
            out[k, position[i]] = values[k, i]


@njit(**_FLAGS)
def node_vectors(values: I32, node: I32, tree: I32, leaf: I32, first: int, start: int, out: I32) -> None:
    """A block of the vectors to encrypt: each node's values, one kind after another, zero outside the node.

    Args:
        values: int32 (T, V, n), of T trees in shared order.
        node: int32 (T, n), the leaf of each place in each tree.
        tree, leaf: int32 (nodes,), what is asked about; vectors beyond them are zero.
        first: number of the first vector of the block.
        start: first place of the block.
        out: int32 (vectors, places).
    """
    kinds, count = values.shape[1], out.shape[1]
    for k in range(out.shape[0]):
        at, kind = divmod(first + k, kinds)
        if at >= leaf.shape[0]:
            out[k, :] = 0
            continue
        # Slices that start at 0: an index that might be negative would keep the loop from being vectorised.
        source, where = values[tree[at], kind, start : start + count], node[tree[at], start : start + count]
        row, wanted = out[k], leaf[at]
        for i in range(count):
            row[i] = source[i] if where[i] == wanted else 0


@njit(**_FLAGS)
def divide(rows: I64, node: I32, left: int, values: I32, lefts: I64, rights: I64, totals: I64) -> int:
    """Rows of a split node by child.

    Args:
        rows: int64 (c,), the node's training rows.
        node: int32 (m,), the child of each.
        left: the left child.
        values: int32 (V, m).
        lefts, rights: int64 (c,), receive each child's rows, in order.
        totals: int64 (V,), added to: the left child's sums.

    Returns:
        Number of rows on the left.
    """
    a, b = np.int64(0), np.int64(0)
    for i in rows:  # without branches: which side a row goes to cannot be predicted
        is_left = np.int64(node[i] == left)
        lefts[a], rights[b] = i, i
        a += is_left
        b += 1 - is_left
    for k in range(values.shape[0]):
        row, total = values[k], np.int64(0)
        for i in lefts[:a]:
            total += row[i]
        totals[k] += total
    return int(a)


@njit(**_FLAGS)
def leaf_sums(node: I32, rows: I64, gradient: F64, hessian: F64, sums: F64, sizes: I64) -> None:
    """Exact gradient and hessian of every leaf.

    Args:
        node: int32 (m,), leaf of each row.
        rows: int64, the training rows.
        gradient, hessian: float64 (m,).
        sums: float64 (nodes, 2), added to.
        sizes: int64 (nodes,), added to.
    """
    for i in rows:
        at = node[i]
        sums[at, 0] += gradient[i]
        sums[at, 1] += hessian[i]
        sizes[at] += 1


@njit(**_FLAGS)
def _histogram(bins: U8, values: I32, rows: I64, out: I64) -> None:
    """out[bin, k] += values[k, i] over some rows of one feature; out int64 (bins, V)."""
    for i in rows:
        for k in range(values.shape[0]):
            out[bins[i], k] += values[k, i]


@njit(**_FLAGS)
def _pack_pairs(values: I32, rows: I64, out: I64) -> bool:
    """Both values of each row in one word, the first shifted by 32; False if their sums may not fit 32 bits."""
    largest = np.int64(0)
    for k in range(rows.shape[0]):
        first, second = np.int64(values[0, rows[k]]), np.int64(values[1, rows[k]])
        out[k] = (first << 32) + second
        largest = max(largest, abs(first), abs(second))
    return bool(largest * rows.shape[0] < 2**31)


@njit(**_FLAGS)
def _histogram_of_pairs(bins: U8, pairs: I64, rows: I64, out: I64) -> None:
    """As :func:`_histogram` for pairs, into four histograms by turns.

    An addition to the bin just added to waits for that one; where most rows are in one bin, they all would.
    """
    sums = np.zeros((out.shape[0], 4), np.int64)
    whole = rows.shape[0] // 4 * 4
    for k in range(0, whole, 4):
        sums[bins[rows[k]], 0] += pairs[k]
        sums[bins[rows[k + 1]], 1] += pairs[k + 1]
        sums[bins[rows[k + 2]], 2] += pairs[k + 2]
        sums[bins[rows[k + 3]], 3] += pairs[k + 3]
    for k in range(whole, rows.shape[0]):
        sums[bins[rows[k]], 0] += pairs[k]
    for b in range(out.shape[0]):
        total = sums[b].sum()
        second = np.int64(np.int32(total))
        out[b, 0] += (total - second) >> 32
        out[b, 1] += second


def histograms(bins: U8, sizes: I64, requests: list[tuple[I32, I64]]) -> I64:
    """Sums of values by node and bin over this side's own features.

    Args:
        bins: uint8 (F, m).
        sizes: int64 (F,), bins of each feature.
        requests: for each node, values int32 (V, m) and rows int64.

    Returns:
        int64 (nodes, R, V) with R = sum of sizes.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    out = np.zeros((len(requests), int(offsets[-1]), len(requests[0][0])), np.int64)

    def packed(request: tuple[I32, I64]) -> I64 | None:
        values, rows = request
        pairs = np.empty(len(rows), np.int64)
        return pairs if len(values) == 2 and _pack_pairs(values, rows, pairs) else None

    every = spread(packed, requests)

    def features(part: range) -> None:
        for (values, rows), pairs, sums in zip(requests, every, out, strict=True):
            for f in part:
                own = sums[offsets[f] : offsets[f + 1]]
                if pairs is None:
                    _histogram(bins[f], values, rows, own)
                else:
                    _histogram_of_pairs(bins[f], pairs, rows, own)

    spread(features, ranges(len(sizes), CORES))
    return out


@njit(**_FLAGS)
def leaf_weight(g: float, h: float, l1: float, l2: float, most: float, low: float, high: float) -> float:
    """The weight that minimises g·w + (h + l2)·w²/2 + l1·|w| within ±most (0: no bound) and [low, high]."""
    if h + l2 <= 0:
        return 0.0
    w = 0.0
    if g > l1:
        w = -(g - l1) / (h + l2)
    elif g < -l1:
        w = -(g + l1) / (h + l2)
    if most > 0:
        w = min(max(w, -most), most)
    return min(max(w, low), high)


@njit(**_FLAGS)
def _worth(g: float, h: float, l1: float, l2: float, w: float) -> float:
    """Twice the fall of the loss at weight w; g²/(h + l2) at the unbounded optimum."""
    return -(2 * g * w + (h + l2) * w * w + 2 * l1 * abs(w))


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
    sums: I64,
    offsets: I64,
    ordered: B1,
    monotone: NDArray[np.int8],
    allowed: B1,
    units: F64,
    rules: F64,
    noise: F64,
    low: float,
    high: float,
    mask: U8,
) -> tuple[float, int, float, float]:
    """The split of one node with the largest gain (Chen & Guestrin, KDD 2016, eq. 7, without the factor ½ and γ).

    Bins of an ordered feature are cut between neighbours; those of a category first sorted by gradient over
    hessian (Fisher, JASA 1958: the best subset is a prefix of that order). The last bin of a feature holds
    missing values and tries both sides; where this node has none, it goes with the heavier child.

    Args:
        sums: int64 (R, V): quantised gradient, hessian and, when V is 3, row count of each bin.
        offsets: int64 (F + 1,), rows of each feature.
        ordered: bool (F,).
        monotone: int8 (F,): 1 or -1 where weights must not fall or not rise with the bins, else 0.
        allowed: bool (F,), features that this tree may use.
        units: float64 (2,), value of one unit of gradient and of hessian.
        rules: float64 (5,): L1, L2, max delta step, least hessian and least rows (with V = 3) of a child.
        noise: float64 (F,): variance of each bin's noise in gradient and hessian, in units squared; 0 for exact sums.
            Noisy bins must add up to the node's total. Their row counts are not looked at; bounds on hessians and
            gains are raised with the noise (``_NOISE_GUARD``, ``_NOISE_CUT``).
        low, high: bounds on the node's weight that monotone splits above it have set.
        mask: uint8 (32,), receives the bins that go left.

    Returns:
        gain (0 when there is no split), feature (-1 then), and the left child's gradient and hessian.
    """
    l1, l2, most, least_weight, least_size = rules
    counted = sums.shape[1] == 3
    best, best_feature, best_g, best_h = 0.0, -1, 0.0, 0.0
    for f in range(len(offsets) - 1):
        if not allowed[f]:
            continue
        begin, last = offsets[f], offsets[f + 1] - 1
        regular = last - begin
        tg, th, tn = 0, 0, 0
        for r in range(begin, last + 1):
            tg += sums[r, 0]
            th += sums[r, 1]
            if counted:
                tn += sums[r, 2]
        whole_g, whole_h = tg * units[0], th * units[1]
        whole = _worth(whole_g, whole_h, l1, l2, leaf_weight(whole_g, whole_h, l1, l2, most, low, high))
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
        # All present values against the missing ones: with a constraint it matters which of them are on the left.
        alone = monotone[f] != 0 and not none_missing
        for cut in range(-1 if alone else 0, regular):
            if cut >= 0:
                r = begin + order[cut]
                g += sums[r, 0]
                h += sums[r, 1]
                if counted:
                    n += sums[r, 2]
            for missing_left in range(0 if cut >= 0 else 1, 1 if none_missing else 2):
                gl, hl, nl = g, h, n
                if missing_left:
                    gl, hl, nl = g + mg, h + mh, n + mn
                gr, hr = tg - gl, th - hl
                if hl * units[1] < least_weight or hr * units[1] < least_weight or hl == 0 or hr == 0:
                    continue
                spread = 0.0
                if noise[f] > 0:
                    part = cut + 1 + missing_left
                    spread = noise[f] * part * (regular + 1 - part) / (regular + 1)
                    if min(hl, hr) * units[1] < least_weight + _NOISE_GUARD * units[1] * np.sqrt(spread):
                        continue
                elif counted and (nl < least_size or tn - nl < least_size):
                    continue
                lg, lh, rg, rh = gl * units[0], hl * units[1], gr * units[0], hr * units[1]
                wl = leaf_weight(lg, lh, l1, l2, most, low, high)
                wr = leaf_weight(rg, rh, l1, l2, most, low, high)
                if monotone[f] * (wr - wl) < 0:
                    continue
                gain = _worth(lg, lh, l1, l2, wl) + _worth(rg, rh, l1, l2, wr) - whole
                if spread > 0:
                    gain -= _NOISE_CUT * spread * units[0] ** 2 * (1 / (lh + l2) + 1 / (rh + l2))
                if gain > best:
                    best, best_feature, best_g, best_h = gain, f, lg, lh
                    heavier_left = hl > hr or (hl == hr and gl > gr)
                    _left_bins(sums[begin:last], order, cut, ordered[f], heavier_left, mask)
                    if missing_left or (none_missing and heavier_left):
                        _set_bit(mask, regular)
    return best, best_feature, best_g, best_h


def partition(node: I32, split: I32, feature: I32, masks: U8, goes_left: U8, left: I32, bins: U8) -> None:
    """Move every row of a split node to the child it belongs to.

    Args:
        node: int32 (m,), node of each row; updated.
        split: int32 (nodes,), number of the node's split in this call, or -1 for nodes that stay.
        feature: int32 (splits,), own feature, or -1 for a passive one.
        masks: uint8 (splits, 32), bins that go left; for own features.
        goes_left: uint8 (m,), the answer for rows at passive splits.
        left: int32 (splits,), left child; the right one follows it.
        bins: uint8 (F, m), own bins.
    """
    spread(
        lambda part: _partition(node, split, feature, masks, goes_left, left, bins, part.start, part.stop),
        ranges(len(node), CORES),
    )


@njit(**_FLAGS)
def _partition(
    node: I32, split: I32, feature: I32, masks: U8, goes_left: U8, left: I32, bins: U8, first: int, last: int
) -> None:
    """As :func:`partition` for rows ``first`` to ``last``."""
    for i in range(first, last):
        s = split[node[i]]
        if s < 0:
            continue
        if feature[s] >= 0:
            b = bins[feature[s], i]
            is_left = (masks[s, b >> 3] >> (b & 7)) & 1
        else:
            is_left = goes_left[i]
        node[i] = left[s] if is_left else left[s] + 1


@njit(**_FLAGS)
def pick_sides(sides: U8, which: I32, position: I64, out: U8) -> None:
    """The side of each row at the split of its own node.

    Args:
        sides: uint8 (splits, ⌈n/8⌉), one bit per row in shared order, set means left.
        which: int32 (m,), the split of each row's node, or -1.
        position: int64 (m,), place of each row in the shared order.
        out: uint8 (m,), 1 means left.
    """
    for i in range(which.shape[0]):
        if which[i] >= 0:
            p = position[i]
            out[i] = (sides[which[i], p >> 3] >> (p & 7)) & 1


@njit(**_FLAGS)
def choose_sides(which: I32, position: I64, first: int, options: int, out: U8) -> None:
    """What each row asks an oblivious transfer for: the split of its own node, from ``first`` on.

    Args:
        which, position: as for :func:`pick_sides`.
        first, options: the transfer's splits are ``first`` to ``first + options``.
        out: uint8 (n,), set at the places of rows at these splits; the others are left alone.
    """
    for i in range(which.shape[0]):
        choice = which[i] - first
        if 0 <= choice < options:
            out[position[i]] = choice


@njit(**_FLAGS)
def take_sides(bits: U8, position: I64, out: U8) -> None:
    """Sides from one bit a place: bits uint8 (⌈n/8⌉,); position int64 (m,); out uint8 (m,), added to by OR."""
    for i in range(position.shape[0]):
        p = position[i]
        out[i] |= (bits[p >> 3] >> (p & 7)) & 1


@njit(**_FLAGS)
def side_bits(bins: U8, mask: U8, out: U8) -> None:
    """One bit per row, set where the row's bin is in the mask. Args: bins uint8 (n,); out uint8 (⌈n/8⌉,)."""
    left = np.empty(256, np.uint8)
    for b in range(256):
        left[b] = (mask[b >> 3] >> (b & 7)) & 1
    for g in range(out.shape[0]):
        byte = np.uint8(0)
        for r in range(min(8, bins.shape[0] - 8 * g)):
            byte |= left[bins[8 * g + r]] << np.uint8(r)
        out[g] = byte


@njit(**_FLAGS)
def add_margins(
    roots: I32,
    output: I32,
    feature: I32,
    masks: U8,
    left: I32,
    value: F64,
    bins: U8,
    sides: U8,
    position: I64,
    out: F64,
) -> None:
    """Add the leaf values of all trees to each row's margins.

    Args:
        roots: int32 (T,), root of each tree.
        output: int32 (T,), the margin that each tree adds to.
        feature: int32 (nodes,): own feature, or -1 - (row of ``sides``).
        masks: uint8 (nodes, 32).
        left: int32 (nodes,), left child (the right one follows), or -1 at a leaf.
        value: float64 (nodes,), leaf values.
        bins: uint8 (F, m), own bins.
        sides: uint8 (S, ⌈n/8⌉), side bits of every passive split.
        position: int64 (m,), place of each row in the shared order.
        out: float64 (K, m), added to.
    """
    for i in range(out.shape[1]):
        p = position[i]
        for tree in range(len(roots)):
            at = roots[tree]
            while left[at] >= 0:
                if feature[at] >= 0:
                    b = bins[feature[at], i]
                    goes_left = (masks[at, b >> 3] >> (b & 7)) & 1
                else:
                    goes_left = (sides[-1 - feature[at], p >> 3] >> (p & 7)) & 1
                at = left[at] if goes_left else left[at] + 1
            out[output[tree], i] += value[at]


@njit(**_FLAGS)
def row_codes(values: F64, edges: F64, first: I64, places: I64, out: U8) -> None:
    """The bins of one row's numbers, as :meth:`fedlearn.data.binning.Binning.transform` has them.

    Args:
        values: float64 (m,), missing ones NaN.
        edges: float64, ascending edges of all numbers, one feature after the other.
        first: int64 (m + 1,), where each number's edges begin, the end last.
        places: int64 (m,), the place of each number in ``out``.
        out: uint8; other places are left alone.
    """
    for j in range(len(places)):
        low, high, value = first[j], first[j + 1], values[j]
        if value != value:  # noqa: PLR0124  (NaN: the bin after the regular ones)
            out[places[j]] = high - low + 1
            continue
        while low < high:
            middle = (low + high) >> 1
            if edges[middle] < value:
                low = middle + 1
            else:
                high = middle
        out[places[j]] = low - first[j]


@njit(**_FLAGS)
def row_sides(codes: U8, feature: I64, masks: U8, out: U8) -> None:
    """The sides of one row: bit s of ``out`` is set where the row goes left at split s.

    Args:
        codes: uint8 (F,), the row's bins.
        feature: int64 (S,), of each split.
        masks: uint8 (S, 32).
        out: uint8 (⌈S/8⌉,).
    """
    out[:] = 0
    for s in range(len(feature)):
        b = codes[feature[s]]
        out[s >> 3] |= np.uint8(((masks[s, b >> 3] >> (b & 7)) & 1) << (s & 7))


@njit(**_FLAGS)
def row_margin(roots: I32, feature: I32, masks: U8, left: I32, value: F64, codes: U8, sides: U8, base: float) -> float:
    """The margin of one row, as :func:`add_margins` has it for one output.

    Args:
        sides: uint8, packed as :func:`row_sides` does.
        base: what every row starts from.
    """
    margin = base
    for tree in range(len(roots)):
        at = roots[tree]
        while left[at] >= 0:
            if feature[at] >= 0:
                b = codes[feature[at]]
                goes_left = (masks[at, b >> 3] >> (b & 7)) & 1
            else:
                s = -1 - feature[at]
                goes_left = (sides[s >> 3] >> (s & 7)) & 1
            at = left[at] if goes_left else left[at] + 1
        margin += value[at]
    return margin
