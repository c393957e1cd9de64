"""Counts in the passive side's bins, and weight of evidence from encrypted labels.

    passive                                              active
      1. bins its features, shuffles their order
         WoeBins   bins of each opaque feature     ──►
      2. encrypted product over its indicator rows ◄─►   (matvec) one vector for every own row, and one for each set of
                                                         rows it counts: those with the label, of a class, of a period
      3. only where the label is asked about:            merges bins on the decoded counts
                                                   ◄──   WoePlan   group of each bin, WOE of each group, IV

The active side learns how many of its rows, and how many of each set (for instance the events), are in each bin of each
opaque feature. The passive side learns how many sets there are; and the merge plan, and WOE and IV of its own bins: the
ratio of event rates between its bins, but no row's label; both are rounded, as the exact ratio would give the counts
away. Rows of the shared order that are not the active side's customers count zero in all vectors.

A label of several classes is counted and merged for each class against the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table
from fedlearn.contract import Contract, Glm
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.errors import BeyondContract, Malformed, WrongLength
from fedlearn.learner.woe import Groups, merge
from fedlearn.protocols import matvec
from fedlearn.v1 import woe_pb2 as pb

I64 = NDArray[np.int64]

TABLE = Table(
    "woe",
    ("active", "passive"),
    (
        Message(
            pb.WoeBins,
            "passive",
            (START,),
            Reveals(
                "number of bins of each opaque feature, how many are for missing and special values, whether the rest "
                "are ordered; and names if agreed",
                lambda m: 3 * len(m.bins),
            ),
        ),
        Message(
            pb.WoePlan,
            "active",
            ("WoeBins",),
            Reveals(
                "the merge plan of its own bins, their weight of evidence and information value, by class",
                lambda m: len(m.group) + len(m.woe) + len(m.iv),
            ),
        ),
    ),
)

_SHARE = 0.125
#: Decimals of WOE and IV on the wire: an exact ratio of counts would give the counts away.
DECIMALS = 4
#: Vectors of a screening of a binary label: presence and label.
_VECTORS = 2


@dataclass(frozen=True)
class Bins:
    """The passive side's bins.

    Attributes:
        codes: uint8 (F, n), bin of each row of the shared order.
        sizes: int64 (F,), bins of each feature, those for missing and special values included.
        regular: int64 (F,), how many of them may be merged.
        ordered: bool (F,).
        names: of the features.
    """

    codes: NDArray[np.uint8]
    sizes: I64
    regular: I64
    ordered: NDArray[np.bool_]
    names: tuple[str, ...] = ()


def _terms(contract: Contract, vectors: int) -> matvec.Terms:
    terms = matvec.Terms.of(contract, largest_value=1, vectors=vectors)
    return replace(terms, kl_nats=contract.budget.kl_nats * _SHARE)


@dataclass(frozen=True)
class Counted:
    """Sets of rows that the active side counts.

    Attributes:
        sets: int8 (V, m), 1 for its rows that belong to each set.
        position: int64 (m,), their places in the shared order.
        universe: n, length of the shared order.
    """

    sets: NDArray[np.int8]
    position: I64
    universe: int

    @classmethod
    def of(cls, label: NDArray[np.int8], position: I64, universe: int) -> Counted:
        """The rows with a binary label, as :func:`evidence_active` takes them."""
        return cls(label[None], position, universe)

    def vectors(self) -> NDArray[np.int32]:
        """Presence, then the sets, at every place: int32 (1 + V, n)."""
        out = np.zeros((1 + len(self.sets), self.universe), np.int32)
        out[0, self.position] = 1
        out[1:, self.position] = self.sets
        return out


@dataclass(frozen=True)
class Counts:
    """What the active side counted, by opaque feature.

    Attributes:
        rows: of each feature int64 (bins,), the active side's rows.
        sets: of each feature int64 (V, bins).
        regular: int64 (F,), bins that may be merged; the next is for missing values.
        ordered: bool (F,).
        names: of the features, if the contract discloses them.
    """

    rows: list[I64]
    sets: list[I64]
    regular: I64
    ordered: NDArray[np.bool_]
    names: tuple[str, ...]


def counts_active(channel: Channel, contract: Contract, counted: Counted, most_bins: int) -> Counts:
    """Learn the counts in the opaque bins, of which a feature has ``most_bins`` at most, missing and special apart.

    Raises:
        OverBudget, PeerMisbehaved: see the subclasses.
    """
    channel.open(TABLE, "active")
    told = channel.receive(pb.WoeBins)
    sizes, regular, due = (
        np.array(told.bins, np.int64),
        np.array(told.regular, np.int64),
        len(contract.passive.features),
    )
    if not len(sizes) == len(regular) == len(told.ordered) == due:
        raise channel.misbehaved(WrongLength, f"announced {len(sizes)} features where the contract names {due}")
    if regular.min() < 1 or np.any(sizes <= regular) or sizes.max() > 256 or regular.max() > most_bins:
        raise channel.misbehaved(BeyondContract, f"announced {sizes.max()} bins, which the contract does not allow")
    if sum(told.ordered) != sum(kind == "number" for kind in contract.passive.features.values()):
        raise channel.misbehaved(Malformed, "announced other ordered features than the contract has")
    if sorted(told.names) != (sorted(contract.passive.features) if contract.disclosure.names else []):
        raise channel.misbehaved(Malformed, "announced other feature names than the contract discloses")
    vectors = counted.vectors()
    shape = matvec.Shape.indicator(sizes, counted.universe)
    querier = matvec.open_querier(channel, shape, _terms(contract, len(vectors)))
    parts = [vectors[first : first + matvec.AT_ONCE] for first in range(0, len(vectors), matvec.AT_ONCE)]
    sums = np.concatenate([querier.ask(part)() for part in parts])
    by_feature = np.split(sums, np.cumsum(sizes)[:-1], axis=1)
    for cells in by_feature:
        if np.any((cells[1:] < 0) | (cells[1:] > cells[0])) or cells[0].sum() != len(counted.position):
            raise channel.misbehaved(Malformed, "answered counts that no division of the rows into bins has")
    ordered = np.array(told.ordered, np.bool_)
    return Counts([c[0] for c in by_feature], [c[1:] for c in by_feature], regular, ordered, tuple(told.names))


def evidence_active(channel: Channel, contract: Contract, counted: Counted) -> tuple[list[Groups], tuple[str, ...]]:
    """Learn counts of the opaque bins, merge them, tell the passive side the plan.

    Args:
        channel: after alignment.
        contract: has [glm].
        counted: one set, the rows with the label.

    Returns:
        one :class:`Groups` per opaque feature, and the features' names if the contract discloses them.

    Raises:
        OverBudget, PeerMisbehaved: see the subclasses.
    """
    glm = contract.glm
    if glm is None:
        raise ValueError("the contract has no [glm]")
    counts = counts_active(channel, contract, counted, glm.bins)
    found = merged(counts, 0, glm)
    tell_plan(channel, found)
    return found, counts.names


def merged(counts: Counts, number: int, glm: Glm) -> list[Groups]:
    """Bins of every opaque feature merged by one of the counted sets, as events."""
    return [
        merge(sets[number], rows, int(regular), bool(ordered), glm)
        for rows, sets, regular, ordered in zip(counts.rows, counts.sets, counts.regular, counts.ordered, strict=True)
    ]


def tell_plan(channel: Channel, found: list[Groups]) -> None:
    """Send the plan: for each opaque feature, and within it for each class."""
    channel.send(
        pb.WoePlan(
            groups=[len(g.woe) for g in found],
            group=np.concatenate([g.group for g in found]).tolist(),
            woe=np.concatenate([g.woe for g in found]).round(DECIMALS).tolist(),
            iv=[round(g.iv, DECIMALS) for g in found],
        )
    )


#: A plan as the passive side gets it: group of each bin int64, WOE of each group float64, and IV.
Told = tuple[I64, NDArray[np.float64], float]


def counts_passive(channel: Channel, contract: Contract, bins: Bins, sets: int, order: I64) -> None:
    """Serve the counting of ``sets`` sets of rows; features are told in ``order``."""
    channel.open(TABLE, "passive")
    sizes = bins.sizes[order]
    names = tuple(bins.names[f] for f in order) if contract.disclosure.names else ()
    channel.send(
        pb.WoeBins(
            bins=sizes.tolist(), regular=bins.regular[order].tolist(), ordered=bins.ordered[order].tolist(), names=names
        )
    )
    matrix = Indicator(np.ascontiguousarray(bins.codes[order]), sizes)
    holder = matvec.open_holder(channel, matrix, _terms(contract, 1 + sets))
    matvec.serve(channel, holder, 1 + sets)


def evidence_passive(
    channel: Channel, contract: Contract, bins: Bins, sets: int = 1, order: I64 | None = None, classes: int = 1
) -> list[list[Told]]:
    """Serve one screening.

    Args:
        channel: after alignment.
        contract: as the active side has it.
        bins: of its own features, in their natural order.
        sets: how many sets of rows the active side counts.
        order: in which features are told; drawn by default.
        classes: how many plans come back for each feature.

    Returns:
        for each own feature, in its natural order: for each class, a plan.
    """
    order = Draws().permutation(len(bins.sizes)) if order is None else order
    counts_passive(channel, contract, bins, sets, order)
    plans = _plan(channel, channel.receive(pb.WoePlan), np.repeat(bins.sizes[order], classes))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return [plans[k * classes : (k + 1) * classes] for k in place.tolist()]


def _plan(channel: Channel, plan: pb.WoePlan, sizes: I64) -> list[Told]:
    groups, group = np.array(plan.groups, np.int64), np.array(plan.group, np.int64)
    woe, iv = np.array(plan.woe, np.float64), np.array(plan.iv, np.float64)
    fits = len(groups) == len(iv) == len(sizes) and len(group) == sizes.sum() and len(woe) == groups.sum()
    fits = fits and bool(((groups > 0) & (groups <= sizes)).all())
    if not fits or not np.isfinite(woe).all() or not np.isfinite(iv).all():
        raise channel.misbehaved(WrongLength, f"planned groups of {len(group)} bins where {sizes.sum()} were due")
    found = []
    by_bin, by_group = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([[0], np.cumsum(groups)])
    for f in range(len(sizes)):
        mine = group[by_bin[f] : by_bin[f + 1]]
        if set(mine.tolist()) != set(range(int(groups[f]))):
            raise channel.misbehaved(Malformed, "planned groups that are not numbered without gaps")
        found.append((mine, woe[by_group[f] : by_group[f + 1]], float(iv[f])))
    return found
