"""Weight of evidence of the passive side's bins, from encrypted labels.

    passive                                              active
      1. bins its features, shuffles their order
         WoeBins   bins of each opaque feature     ──►
      2. encrypted product over its indicator rows ◄─►   (matvec) two vectors: the label, and one for every own row
      3.                                                 merges bins on the decoded counts
                                                   ◄──   WoePlan   group of each bin, WOE of each group, IV

The active side learns how many of its rows, and how many of its events, are in each bin of each opaque feature. The
passive side learns the merge plan, and WOE and IV of its own bins: the ratio of event rates between its bins, but no
row's label; both are rounded, as the exact ratio would give the counts away. Rows of the shared order that are not the
active side's customers count zero in both vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table
from fedlearn.contract import Contract
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.errors import BeyondContract, Malformed, WrongLength
from fedlearn.learner.woe import Groups, merge
from fedlearn.protocols import matvec
from fedlearn.v1 import matvec_pb2
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
            Reveals("number of bins of each opaque feature; and names if agreed", lambda m: len(m.bins)),
        ),
        Message(
            pb.WoePlan,
            "active",
            ("WoeBins",),
            Reveals(
                "the merge plan of its own bins, their weight of evidence and information value",
                lambda m: len(m.group) + len(m.woe) + len(m.iv),
            ),
        ),
    ),
)

_SHARE = 0.125
#: Decimals of WOE and IV on the wire: an exact ratio of counts would give the counts away.
_DECIMALS = 4
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


def _terms(contract: Contract) -> matvec.Terms:
    terms = matvec.Terms.of(contract, largest_value=1, vectors=_VECTORS)
    return replace(terms, kl_nats=contract.budget.kl_nats * _SHARE)


@dataclass(frozen=True)
class Label:
    """What the active side asks about: label and presence of its rows, which have places in the shared order."""

    label: NDArray[np.int8]
    position: I64
    universe: int

    def vectors(self) -> NDArray[np.int32]:
        """Label and presence of every place, int32 (2, n)."""
        out = np.zeros((_VECTORS, self.universe), np.int32)
        out[0, self.position] = self.label
        out[1, self.position] = 1
        return out


def evidence_active(channel: Channel, contract: Contract, label: Label) -> tuple[list[Groups], tuple[str, ...]]:
    """Learn counts of the opaque bins, merge them, tell the passive side the plan.

    Returns:
        one :class:`Groups` per opaque feature, and the features' names if the contract discloses them.

    Raises:
        OverBudget, PeerMisbehaved: see the subclasses.
    """
    glm = contract.glm
    if glm is None:
        raise ValueError("the contract has no [glm]")
    channel.open(TABLE, "active")
    told = channel.receive(pb.WoeBins)
    sizes, regular, due = (
        np.array(told.bins, np.int64),
        np.array(told.regular, np.int64),
        len(contract.passive.features),
    )
    if not len(sizes) == len(regular) == len(told.ordered) == due:
        raise channel.misbehaved(WrongLength, f"announced {len(sizes)} features where the contract names {due}")
    if regular.min() < 1 or np.any(sizes <= regular) or sizes.max() > 256 or regular.max() > glm.bins:
        raise channel.misbehaved(BeyondContract, f"announced {sizes.max()} bins, which the contract does not allow")
    if sum(told.ordered) != sum(kind == "number" for kind in contract.passive.features.values()):
        raise channel.misbehaved(Malformed, "announced other ordered features than the contract has")
    if sorted(told.names) != (sorted(contract.passive.features) if contract.disclosure.names else []):
        raise channel.misbehaved(Malformed, "announced other feature names than the contract discloses")
    querier = matvec.open_querier(channel, matvec.Shape.indicator(sizes, label.universe), _terms(contract))
    events, rows = querier.ask(label.vectors())()
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    found = []
    for f, (a, b) in enumerate(pairwise(offsets.tolist())):
        if np.any((events[a:b] < 0) | (events[a:b] > rows[a:b])) or rows[a:b].sum() != len(label.position):
            raise channel.misbehaved(Malformed, "answered counts that no division of the rows into bins has")
        found.append(merge(events[a:b], rows[a:b], int(regular[f]), bool(told.ordered[f]), glm))
    channel.send(
        pb.WoePlan(
            groups=[len(g.woe) for g in found],
            group=np.concatenate([g.group for g in found]).tolist(),
            woe=np.concatenate([g.woe for g in found]).round(_DECIMALS).tolist(),
            iv=[round(g.iv, _DECIMALS) for g in found],
        )
    )
    return found, tuple(told.names)


def evidence_passive(channel: Channel, contract: Contract, bins: Bins) -> list[tuple[I64, NDArray[np.float64], float]]:
    """Serve one screening.

    Returns:
        for each own feature, in its natural order: group of each bin int64, WOE of each group float64, and IV.
    """
    channel.open(TABLE, "passive")
    order = Draws().permutation(len(bins.sizes))
    sizes = bins.sizes[order]
    names = tuple(bins.names[f] for f in order) if contract.disclosure.names else ()
    channel.send(
        pb.WoeBins(
            bins=sizes.tolist(), regular=bins.regular[order].tolist(), ordered=bins.ordered[order].tolist(), names=names
        )
    )
    matrix = Indicator(np.ascontiguousarray(bins.codes[order]), sizes)
    holder = matvec.open_holder(channel, matrix, _terms(contract))
    answered = 0
    while answered < _VECTORS:
        query = channel.receive(matvec_pb2.MatvecQuery)
        answered += query.count if holder.answer(query) else 0
    return _plan(channel, channel.receive(pb.WoePlan), sizes, order)


def _plan(channel: Channel, plan: pb.WoePlan, sizes: I64, order: I64) -> list[tuple[I64, NDArray[np.float64], float]]:
    groups, group = np.array(plan.groups, np.int64), np.array(plan.group, np.int64)
    woe, iv = np.array(plan.woe, np.float64), np.array(plan.iv, np.float64)
    fits = len(groups) == len(iv) == len(sizes) and len(group) == sizes.sum() and len(woe) == groups.sum()
    if not fits or not np.isfinite(woe).all() or not np.isfinite(iv).all():
        raise channel.misbehaved(WrongLength, f"planned groups of {len(group)} bins where {sizes.sum()} were due")
    by_opaque = []
    by_bin, by_group = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([[0], np.cumsum(groups)])
    for f in range(len(sizes)):
        mine = group[by_bin[f] : by_bin[f + 1]]
        if set(mine.tolist()) != set(range(int(groups[f]))):
            raise channel.misbehaved(Malformed, "planned groups that are not numbered without gaps")
        by_opaque.append((mine, woe[by_group[f] : by_group[f + 1]], float(iv[f])))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return [by_opaque[int(k)] for k in place]
