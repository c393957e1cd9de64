"""Walking many rows at once, in an order and by threads of its own, is walking each by itself."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.bench.serve import Setting, shares
from fedlearn.models import forest as forests
from fedlearn.models.share import ActiveShare


def test_many_rows_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(3)
    share = shares(Setting(trees=7, depth=4), draws)["active"]
    assert isinstance(share, ActiveShare)
    rows, universe = 1000, 1300
    bins = draws.integers(0, 33, (15, rows), np.uint8)
    bits = draws.integers(0, 2, (share.passive_splits, universe), np.uint8)
    sides = np.packbits(bits, axis=1, bitorder="little")
    position = draws.permutation(universe)[:rows].astype(np.int64)
    monkeypatch.setattr(forests, "_MANY", 64)
    found = share.forest.margins(bins, sides, position)
    for row in range(rows):
        own = bits[:, position[row]]
        total = 0.0
        for root in share.forest.roots:
            at = int(root)
            while share.forest.left[at] >= 0:
                feature = int(share.forest.feature[at])
                code = int(bins[feature, row]) if feature >= 0 else 0
                mask = share.forest.masks[at]
                left = (mask[code // 8] >> (code % 8)) & 1 if feature >= 0 else own[-1 - feature]
                at = int(share.forest.left[at]) + (0 if left else 1)
            total += share.forest.value[at]
        assert found[0, row] == total
