"""The passive half of a boosted model in plain terms, for contracts with ``[disclosure] model = true`` and no others.

    passive                                                active
      1. DisclosedSplits   for each split that the
         model keeps: feature, threshold or
         categories, side of missing values      ──►   holds them against the opaque splits that it chose

The active side learns what it could not tell from training alone: the names of the passive features that the model
uses, its thresholds on them in the features' own units, and all texts of the category features among them. It learns
nothing of features and thresholds that the model does not use. The message says nothing of rows, but with the rows'
sides, which it has (:mod:`fedlearn.protocols.boost`), it can now place customers above or below a known threshold.

What is told must fit what was chosen: one feature for each opaque feature, of its kind and monotone as the contract
says, thresholds in the order of the opaque cuts, missing values on the same side. An honest active side cannot check
more, because it never sees the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table
from fedlearn.contract import Contract
from fedlearn.errors import Malformed, WrongLength
from fedlearn.kernels import trees as kernel
from fedlearn.learner.grower import Features
from fedlearn.models.forest import Forest
from fedlearn.v1 import disclose_pb2 as pb

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
B1 = NDArray[np.bool_]

TABLE = Table(
    "disclose",
    ("active", "passive"),
    (
        Message(
            pb.DisclosedSplits,
            "passive",
            (START,),
            Reveals(
                "for each passive split of the model its feature's name, its threshold or the categories that go left, "
                "and the side of missing values; and all categories of those features",
                lambda m: len(m.splits) + sum(len(f.categories) for f in m.features),
            ),
        ),
    ),
)

#: Bytes of one category's text at most, which a column of a table has seldom.
_TEXT_BYTES = 4096


@dataclass(frozen=True)
class Splits:
    """Passive splits in plain terms.

    Attributes:
        names: of the features.
        edges: for each number, float64, strictly ascending: bin b holds the values x with edges[b-1] < x <= edges[b].
            Empty for a category.
        categories: for each category, the text of each bin. Empty for a number.
        feature: int64 (S,), which of the features each split uses.
        masks: uint8 (S, 32), the bins that go left; the bin after the last regular one is for missing values.
    """

    names: tuple[str, ...]
    edges: tuple[NDArray[np.float64], ...]
    categories: tuple[tuple[str, ...], ...]
    feature: I64
    masks: U8

    def regular(self, f: int, ordered: bool) -> int:
        """Bins of a feature but for the last."""
        return len(self.edges[f]) + 1 if ordered else max(1, len(self.categories[f]))


def _open(channel: Channel, contract: Contract, role: str) -> None:
    if not contract.disclosure.model:
        raise ValueError(f"contract {contract.name!r} does not disclose the model")
    channel.open(TABLE, role)


def send(channel: Channel, contract: Contract, kept: Splits) -> None:
    """Passive role: tell the splits that the model keeps, and of their features no more than these need.

    Args:
        channel: after training.
        contract: which has ``[disclosure] model``; without, nothing may be told.
        kept: all own features, and the kept splits on them.

    Raises:
        Malformed: the active side had chosen a split of a number that is no threshold, to see more than one.
    """
    _open(channel, contract, "passive")
    features: list[pb.DisclosedSplits.Feature] = []
    splits = [pb.DisclosedSplits.Split() for _ in kept.feature]
    for number, f in enumerate(np.unique(kept.feature)):
        name = kept.names[f]
        ordered = contract.passive.features[name] == "number"
        regular, used = kept.regular(f, ordered), np.flatnonzero(kept.feature == f)
        bits = np.unpackbits(kept.masks[used], axis=1, bitorder="little")[:, : regular + 1]
        told = pb.DisclosedSplits.Feature(name=name)
        if ordered:
            turns = bits[:, 1:-1] != bits[:, :-2]
            if (turns.sum(axis=1) > 1).any():
                raise channel.misbehaved(Malformed, "kept a split of a number that is no threshold")
            cuts = np.flatnonzero(turns.any(axis=0))
            told.edges.extend(kept.edges[f][cuts].tolist())
            bins = np.concatenate([[0], cuts + 1, [regular]])
        else:  # by text: by frequency would tell the frequencies' order
            order = sorted(range(len(kept.categories[f])), key=kept.categories[f].__getitem__)
            told.categories.extend(kept.categories[f][b] for b in order)
            bins = np.array([*(order or [0]), regular])
        features.append(told)
        for s, row in zip(used, bits[:, bins], strict=True):
            splits[s].feature, splits[s].left = number, np.packbits(row, bitorder="little").tobytes()
    channel.send(pb.DisclosedSplits(features=features, splits=splits))


def receive(
    channel: Channel, contract: Contract, forest: Forest, opaque: Features, names: tuple[str, ...] = ()
) -> Splits:
    """Active role: learn the passive splits of the model.

    Args:
        channel: after training.
        contract: which has ``[disclosure] model``.
        forest: the trees, their passive splits numbered 0, 1, …, with the opaque bins that go left.
        opaque: the passive features as they were announced for training.
        names: of these, if they were announced, too.

    Raises:
        WrongLength, Malformed: what the peer tells is not of the contract, or does not fit the splits chosen.
    """
    _open(channel, contract, "active")
    message = channel.receive(pb.DisclosedSplits)
    due = len(forest.passive_splits)
    if len(message.splits) != due:
        raise channel.misbehaved(WrongLength, f"disclosed {len(message.splits)} splits where {due} were due")
    _check_features(channel, contract, message)
    told = Splits(
        tuple(f.name for f in message.features),
        tuple(np.array(f.edges, np.float64) for f in message.features),
        tuple(tuple(f.categories) for f in message.features),
        np.array([split.feature for split in message.splits], np.int64),
        np.zeros((due, kernel.MASK), np.uint8),
    )
    if not np.array_equal(np.unique(told.feature), np.arange(len(told.names))):
        raise channel.misbehaved(Malformed, "disclosed splits of other features than it listed")
    for s, split in enumerate(message.splits):
        f = split.feature
        bins = told.regular(f, contract.passive.features[told.names[f]] == "number") + 1
        if len(split.left) != -(-bins // 8) or int.from_bytes(split.left, "little") >> bins:
            raise channel.misbehaved(WrongLength, f"disclosed a split that does not fit the {bins} bins of its feature")
        told.masks[s, : len(split.left)] = np.frombuffer(split.left, np.uint8)
    _check_choices(channel, contract, told, forest, opaque, names)
    return told


def _check_features(channel: Channel, contract: Contract, message: pb.DisclosedSplits) -> None:
    """Names of the contract, each once, with edges or texts of its kind, in order and no more than the bins allow."""
    names = [f.name for f in message.features]
    if len(set(names)) != len(names) or not set(names) <= set(contract.passive.features):
        raise channel.misbehaved(Malformed, "disclosed a feature twice, or one that is not in the contract")
    for f in message.features:
        ordered = contract.passive.features[f.name] == "number"
        if (f.categories if ordered else f.edges) or len(f.edges) >= contract.boost.bins:
            raise channel.misbehaved(Malformed, f"disclosed feature {f.name!r} as another kind, or with too many bins")
        if not all(map(math.isfinite, f.edges)) or any(a >= b for a, b in pairwise(f.edges)):
            raise channel.misbehaved(Malformed, f"disclosed thresholds of {f.name!r} that are no ascending numbers")
        if len(f.categories) > contract.boost.bins or any(a >= b for a, b in pairwise(f.categories)):
            raise channel.misbehaved(Malformed, f"disclosed categories of {f.name!r} that are too many or out of order")
        if any(len(text.encode()) > _TEXT_BYTES for text in f.categories):
            raise channel.misbehaved(WrongLength, f"disclosed a category of {f.name!r} over {_TEXT_BYTES} bytes")


def _check_choices(
    channel: Channel, contract: Contract, told: Splits, forest: Forest, opaque: Features, names: tuple[str, ...]
) -> None:
    """Whether plain splits can be the opaque ones that were chosen."""
    node = np.zeros(len(told.feature), np.int64)
    passive = np.flatnonzero((forest.left >= 0) & (forest.feature < 0))
    node[-1 - forest.feature[passive]] = passive
    hidden = forest.opaque[node]
    chosen = np.unpackbits(forest.masks[node], axis=1, bitorder="little").astype(np.bool_)
    masks = np.unpackbits(told.masks, axis=1, bitorder="little").astype(np.bool_)
    seen: list[int] = []
    for f, name in enumerate(told.names):
        used = np.flatnonzero(told.feature == f)
        k = int(hidden[used[0]])
        if (hidden[used] != k).any() or k in seen or (names and names[k] != name):
            raise channel.misbehaved(Malformed, f"disclosed splits of other features as splits of {name!r}")
        seen.append(k)
        ordered = contract.passive.features[name] == "number"
        before, after = int(opaque.sizes[k]) - 1, told.regular(f, ordered)
        if ordered != opaque.ordered[k] or after > before or (not ordered and after != before):
            raise channel.misbehaved(Malformed, f"disclosed {name!r} as another kind than it had announced")
        left, was = masks[used, :after], chosen[used, :before]
        if (masks[used, after] != chosen[used, before]).any():
            raise channel.misbehaved(Malformed, f"disclosed another side for missing values of {name!r}")
        fits = _cuts_fit(left, was, contract.passive.monotone.get(name, 0), int(opaque.monotone[k]))
        if not (fits if ordered else (left.sum(axis=1) == was.sum(axis=1)).all()):
            raise channel.misbehaved(Malformed, f"disclosed splits of {name!r} that cannot be those chosen")


def _cuts_fit(left: B1, was: B1, monotone: int, announced: int) -> bool:
    """Whether thresholds on one number are in the order of the opaque cuts, or all in the reverse order.

    Args:
        left: bool (S, bins told), bins that go left; ``was``: bool (S, opaque bins), the same as chosen.
        monotone: the contract's constraint; ``announced``: the same as announced in the opaque order.
    """
    whole = was.all(axis=1) | ~was.any(axis=1)  # only missing values apart: no threshold
    if (left[whole] != was[whole, :1]).any():
        return False
    left, was = left[~whole], was[~whole]
    if not len(left):
        return bool(left.shape[1] == 1)
    if ((left[:, 1:] != left[:, :-1]).sum(axis=1) != 1).any():
        return False
    low = bool(left[0, 0])
    if (left[:, 0] != low).any() or announced != (monotone if low else -monotone):
        return False
    _, rank = np.unique(was.sum(axis=1), return_inverse=True)
    used = int(rank.max()) + 1
    return bool(left.shape[1] == used + 1 and (left.sum(axis=1) == rank + 1).all())
