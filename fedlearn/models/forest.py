"""Trees as flat arrays. No I/O here: :mod:`fedlearn.models.share` saves and loads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.kernels import trees as kernel
from fedlearn.kernels.threads import ranges, spread

_MANY = 1 << 15  #: rows that are walked by one thread at a time


@dataclass(frozen=True)
class Forest:
    """The active side's trees. A split on a passive feature is known by its number only.

    Attributes:
        base: float64 (K,), where margins start; K is 1 but for multi-class models.
        roots: int32 (T,), first node of each tree.
        output: int32 (T,), the margin that each tree adds to.
        feature: int32 (nodes,): own feature; or -1 - s for passive split s. 0 at a leaf.
        opaque: int32 (nodes,): which opaque passive feature a passive split uses, else -1.
        masks: uint8 (nodes, 32): bins that go left; of an opaque passive feature its opaque bins.
        left: int32 (nodes,): left child, its sibling follows; -1 at a leaf.
        value: float64 (nodes,): weight of a leaf, learning rate included; 0 at a split.
        gain: float64 (nodes,): gain of a split.
        cover: float64 (nodes,): sum of hessians of the training rows.
        size: int64 (nodes,): number of training rows.
    """

    base: NDArray[np.float64]
    roots: NDArray[np.int32]
    output: NDArray[np.int32]
    feature: NDArray[np.int32]
    opaque: NDArray[np.int32]
    masks: NDArray[np.uint8]
    left: NDArray[np.int32]
    value: NDArray[np.float64]
    gain: NDArray[np.float64]
    cover: NDArray[np.float64]
    size: NDArray[np.int64]

    @property
    def trees(self) -> int:
        """Number of trees."""
        return len(self.roots)

    @property
    def passive_splits(self) -> NDArray[np.int64]:
        """Sorted numbers of the passive splits that the trees use."""
        used = self.feature[(self.left >= 0) & (self.feature < 0)]
        return np.unique(-1 - used.astype(np.int64))

    def margins(
        self, bins: NDArray[np.uint8], sides: NDArray[np.uint8], position: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Margins of rows, float64 (K, m).

        Args:
            bins: uint8 (F, m), own bins.
            sides: uint8 (S, ⌈n/8⌉), side bits by passive split number, in shared order.
            position: int64 (m,), place of each row in the shared order.
        """
        if len(position) < _MANY:
            return self._walked(bins, sides, position)
        out = np.empty((len(self.base), len(position)))
        order = np.argsort(position)  # rows that share cache lines of ``sides`` one after the other

        def walk(part: range) -> None:
            rows = order[part.start : part.stop]
            out[:, rows] = self._walked(bins[:, rows], sides, position[rows])

        spread(walk, ranges(len(order), -(-len(order) // _MANY)))
        return out

    def _walked(
        self, bins: NDArray[np.uint8], sides: NDArray[np.uint8], position: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        out = np.repeat(self.base[:, None], len(position), axis=1)
        kernel.add_margins(
            self.roots,
            self.output,
            self.feature,
            self.masks,
            self.left,
            self.value,
            bins,
            sides,
            position,
            out,
        )
        return out

    def margin(self, codes: NDArray[np.uint8], sides: NDArray[np.uint8]) -> float:
        """Margin of one row, of a forest with one output.

        Args:
            codes: uint8 (F,), own bins.
            sides: uint8 (⌈S/8⌉,), side bits by passive split number, the first in the lowest bit.
        """
        found: float = kernel.row_margin(
            self.roots, self.feature, self.masks, self.left, self.value, codes, sides, float(self.base[0])
        )
        return found

    def importance(self, own: tuple[str, ...], passive: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Total gain, total cover and number of splits by feature, the largest gain first.

        Args:
            own: names of the own features.
            passive: names of the opaque features, made up or disclosed.
        """
        found: dict[str, dict[str, float]] = {}
        for at in np.flatnonzero(self.left >= 0):
            f = int(self.feature[at])
            name = own[f] if f >= 0 else passive[self.opaque[at]]
            entry = found.setdefault(name, {"gain": 0.0, "cover": 0.0, "splits": 0})
            entry["gain"] += float(self.gain[at])
            entry["cover"] += float(self.cover[at])
            entry["splits"] += 1
        return dict(sorted(found.items(), key=lambda item: -item[1]["gain"]))

    def renumbered(self) -> Forest:
        """The same trees with passive splits numbered 0, 1, … in the order of :attr:`passive_splits`."""
        used = self.passive_splits
        passive = (self.left >= 0) & (self.feature < 0)
        feature = self.feature.copy()
        feature[passive] = (-1 - np.searchsorted(used, -1 - feature[passive])).astype(np.int32)
        return Forest(**{**vars(self), "feature": feature})


@dataclass
class Growth:
    """Nodes of a forest while it grows; ``freeze`` makes the arrays."""

    feature: list[int] = field(default_factory=list)
    opaque: list[int] = field(default_factory=list)
    masks: list[NDArray[np.uint8]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    cover: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, forest: Forest) -> Growth:
        """The nodes of a finished forest, to grow on from; the inverse of ``freeze``."""
        names = ("feature", "opaque", "left", "value", "gain", "cover", "size", "roots")
        lists = {name: getattr(forest, name).tolist() for name in names}
        return cls(masks=list(forest.masks), **lists)

    def add(self) -> int:
        """A new leaf; returns its number."""
        self.feature.append(0)
        self.opaque.append(-1)
        self.masks.append(np.zeros(kernel.MASK, np.uint8))
        self.left.append(-1)
        self.value.append(0.0)
        self.gain.append(0.0)
        self.cover.append(0.0)
        self.size.append(0)
        return len(self.left) - 1

    def append(self, tree: Growth) -> None:
        """Take over the nodes of a tree that was grown by itself."""
        first = len(self.left)
        self.roots.extend(first + root for root in tree.roots)
        self.left.extend(first + at if at >= 0 else -1 for at in tree.left)
        for name in ("feature", "opaque", "masks", "value", "gain", "cover", "size"):
            getattr(self, name).extend(getattr(tree, name))

    def freeze(self, base: NDArray[np.float64], trees: int, output: list[int]) -> Forest:
        """The first ``trees`` trees as arrays; ``output`` says which margin each adds to."""
        end = self.roots[trees] if trees < len(self.roots) else len(self.left)
        return Forest(
            base=np.asarray(base, np.float64),
            roots=np.array(self.roots[:trees], np.int32),
            output=np.array(output[:trees], np.int32),
            feature=np.array(self.feature[:end], np.int32),
            opaque=np.array(self.opaque[:end], np.int32),
            masks=np.array(self.masks[:end], np.uint8).reshape(end, kernel.MASK),
            left=np.array(self.left[:end], np.int32),
            value=np.array(self.value[:end], np.float64),
            gain=np.array(self.gain[:end], np.float64),
            cover=np.array(self.cover[:end], np.float64),
            size=np.array(self.size[:end], np.int64),
        )
