"""Which of the passive side's many columns are worth training on: information values by one encrypted query.

    passive                                                 active
      1. ScreenBins   bins of its opaque columns      ──►
      2. encrypted product over its indicator rows    ◄─►   each label, and presence, of the rows (matvec)
      3.                                              ◄──   ScreenKept     the columns to keep

The active side learns for every label how many of its rows and how many of its events are in each bin of each opaque
column. The passive side learns which of its columns are kept. It leaves out by itself what has a bin of fewer of its
rows than the contract's floor.

A number as a label counts as an event where it is above its median. With several labels each in turn has the column of
the highest value that is not yet kept, until there are as many as the contract allows. Information value as in
:mod:`fedlearn.learner.woe`, of unmerged bins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import START, Channel, Message, Reveals, Table
from fedlearn.contract import Contract, Screen
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.errors import BeyondContract, ConstantColumns, Malformed, WrongLength
from fedlearn.protocols import matvec
from fedlearn.v1 import screen_pb2 as pb

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]

TABLE = Table(
    "screen",
    ("active", "passive"),
    (
        Message(
            pb.ScreenBins,
            "passive",
            (START,),
            Reveals("number of bins of each opaque column, and whether they are ordered", lambda m: len(m.bins)),
        ),
        Message(
            pb.ScreenKept,
            "active",
            ("ScreenBins",),
            Reveals("which of its own columns are worth keeping", lambda m: len(m.kept)),
        ),
    ),
)

#: The screening's share of the run's leakage budget; trees have the rest.
SHARE = 0.125


@dataclass(frozen=True)
class Kept:
    """What the active side knows of the columns kept: whether each has an order, and its best information value."""

    ordered: tuple[bool, ...]
    iv: tuple[float, ...]


def settings_of(contract: Contract) -> Screen:
    """The contract's ``[screen]``, which it has."""
    if contract.screen is None:
        raise ValueError("the contract has no [screen]")
    return contract.screen


def _terms(contract: Contract) -> matvec.Terms:
    terms = matvec.Terms.of(contract, largest_value=1, vectors=contract.outputs + 1)
    return replace(terms, kl_nats=contract.budget.kl_nats * SHARE)


def check_budget(contract: Contract, columns: int, rows: int) -> None:
    """Whether a screening of so many columns fits. Raises OverBudget when it does not."""
    terms = _terms(contract)
    if terms.backend == "lwe":
        matvec.Shape.indicator(np.full(columns, settings_of(contract).bins + 1), rows).plan(terms)


def screen_active(channel: Channel, contract: Contract, events: I32, position: I64, universe: int) -> Kept:
    """Choose the columns to keep.

    Args:
        channel: after handshake and alignment.
        contract: as the passive side has it.
        events: int32 (K, m), 0 or 1, of own rows for each label.
        position, universe: as in :class:`fedlearn.protocols.boost.ActiveData`.

    Raises:
        ConstantColumns: no column has the least information value.
        OverBudget, PeerMisbehaved: see the subclasses.
    """
    channel.open(TABLE, "active")
    told = channel.receive(pb.ScreenBins)
    sizes = np.array(told.bins, np.int64)
    kinds = list(contract.passive.features.values())
    if not 1 <= len(sizes) == len(told.ordered) <= len(kinds):
        raise channel.misbehaved(WrongLength, f"announced {len(sizes)} columns where the contract names {len(kinds)}")
    if sizes.min() < 2 or sizes.max() > settings_of(contract).bins + 1:
        raise channel.misbehaved(BeyondContract, f"announced {sizes.max()} bins, which the contract does not allow")
    if sum(told.ordered) > kinds.count("number") or len(sizes) - sum(told.ordered) > kinds.count("category"):
        raise channel.misbehaved(Malformed, "announced other ordered columns than the contract has")
    querier = matvec.open_querier(channel, matvec.Shape.indicator(sizes, universe), _terms(contract))
    values = np.zeros((len(events) + 1, universe), np.int32)
    values[:-1, position], values[-1, position] = events, 1
    found = querier.ask(values)()
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if np.any((found[:-1] < 0) | (found[:-1] > found[-1])) or np.any(
        np.add.reduceat(found[-1], offsets[:-1]) != len(position)
    ):
        raise channel.misbehaved(Malformed, "answered counts that no division of the rows into bins has")
    value = values_of(found[:-1], found[-1], offsets)
    kept = choose(value, settings_of(contract))
    if not len(kept):
        raise ConstantColumns(
            f"none of the {len(sizes)} columns of {channel.peer!r} has an information value of "
            f"{settings_of(contract).least_iv:g}: agree a smaller [screen] least_iv"
        )
    channel.send(pb.ScreenKept(kept=kept.tolist()))
    best = value.max(axis=0)
    return Kept(tuple(told.ordered[k] for k in kept), tuple(float(best[k]) for k in kept))


def screen_passive(
    channel: Channel, contract: Contract, bins: NDArray[np.uint8], sizes: I64, ordered: NDArray[np.bool_], draws: Draws
) -> I64:
    """Serve the screening.

    Args:
        channel: after handshake and alignment.
        contract: as the active side has it.
        bins: uint8 (F, n), own columns in the shared order; sizes int64 (F,) and ordered bool (F,) as in
            :class:`fedlearn.learner.grower.Features`.
        sizes: see ``bins``.
        ordered: see ``bins``.
        draws: what shuffles the columns.

    Returns:
        the columns kept, int64, ascending, in their own numbering.

    Raises:
        ConstantColumns: every column has a bin of too few rows.
    """
    channel.open(TABLE, "passive")
    counts = [np.bincount(row, minlength=int(size)) for row, size in zip(bins, sizes, strict=True)]
    allowed = np.flatnonzero([c[c > 0].min() >= contract.budget.least_rows for c in counts])
    if not len(allowed):
        raise ConstantColumns(
            f"every column has a bin of fewer rows than the {contract.budget.least_rows} of [budget] least_rows"
        )
    order = allowed[draws.permutation(len(allowed))]
    channel.send(pb.ScreenBins(bins=sizes[order].tolist(), ordered=ordered[order].tolist()))
    matrix = Indicator(np.ascontiguousarray(bins[order]), sizes[order])
    holder = matvec.open_holder(channel, matrix, _terms(contract))
    matvec.serve(channel, holder, contract.outputs + 1)
    kept = np.array(channel.receive(pb.ScreenKept).kept, np.int64)
    most = min(settings_of(contract).keep, len(order))
    if not 1 <= len(kept) <= most or np.any(np.diff(kept) <= 0) or kept[-1] >= len(order):
        raise channel.misbehaved(Malformed, f"keeps {len(kept)} columns where 1 to {most} in order were due")
    return np.sort(order[kept])


def values_of(events: I64, rows: I64, offsets: I64) -> F64:
    """Information values float64 (K, F) from counts by bin, int64 (K, R) and (R,).

    As :func:`fedlearn.learner.woe.evidence` has them for bins that are not merged, of all labels and columns at once.
    """
    rest, total = rows - events, rows[: offsets[1]].sum()
    half = np.where((rows > 0) & ((events == 0) | (rest == 0)), 0.5, 0.0)
    hits = events[:, : offsets[1]].sum(axis=1, keepdims=True)
    share_of_rest = (rest + half) / np.maximum(total - hits, 1)
    share_of_hits = (events + half) / np.maximum(hits, 1)
    ratio = np.divide(share_of_rest, share_of_hits, out=np.ones(events.shape), where=rows > 0)
    return np.asarray(np.add.reduceat((share_of_rest - share_of_hits) * np.log(ratio), offsets[:-1], axis=1))


def choose(value: F64, settings: Screen) -> I64:
    """The columns to keep, int64, ascending: by turns the best left of each label; value float64 (K, F)."""
    order = np.argsort(-value, axis=1, kind="stable")
    kept: dict[int, None] = {}
    for rank in range(value.shape[1]):
        for k, row in enumerate(order):
            if len(kept) < settings.keep and value[k, row[rank]] >= settings.least_iv:
                kept[int(row[rank])] = None
    return np.array(sorted(kept), np.int64)


def events_of(labels: F64, binary: list[bool]) -> I32:
    """Labels float64 (K, m) as events: a number is one where it is above its median."""
    return np.stack([row if two else row > np.median(row) for row, two in zip(labels, binary, strict=True)]).astype(
        np.int32
    )
