"""Joint statistics of the aligned rows, and the plan of columns that both sides keep.

The *active* side has the label, and drives; each step runs only where the contract's [statistics] has it.

    active                                                passive
      1.                                            ◄──   StatisticsFeatures  its features, shuffled, and names if
                                                          agreed; the order of all that follows but step 4
      2. counts of rows and events by bin, WOE      ◄─►   (woe) with iv, missing or period
      3. StatisticsOpen   how many columns          ──►
                                                    ◄──   StatisticsColumns   bounds of its standardised columns
         encrypted products over the columns        ◄─►   (matvec) with 1 and with each active column
         and over their squares, or all pairs       ◄─►   (matvec) with 1
      4. boosted trees, for their gain              ◄─►   (boost)
      5. StatisticsResult   by passive feature      ──►
         StatisticsPlan     which stay, and why     ──►
                                                    ◄──   StatisticsKept   which stay when its splits are counted in
      6. joint fits of what is left                 ◄─►   (woe, glm) with stepwise
                                                    ◄──   StatisticsKept   which stay after these
         both: StatisticsSaved once written         ◄─►

The active side learns, of opaque features: counts by bin (woe); with ``correlation`` the means and variances of the
passive columns over its own rows, in units of deviations over all rows, and their covariance with each of its own
columns; with ``vif`` also the covariances between passive columns; with ``trees`` what training reveals (boost). Of all
products it learns the sums by digit (products). With ``stepwise`` both learn what a fit tells (regression). The passive
side learns missing rates, stability indices and variance inflation of its own columns, rounded, which of them stay, and
why the others go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import Message as ProtobufMessage
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract, Kind, Statistics
from fedlearn.errors import BeyondContract, Malformed, WrongLength
from fedlearn.protocols import matvec, products, woe
from fedlearn.protocols.woe import DECIMALS
from fedlearn.v1 import statistics_pb2 as pb

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

TABLE = Table(
    "statistics",
    ("active", "passive"),
    (
        Message(
            pb.StatisticsFeatures,
            "passive",
            (START,),
            Reveals(
                "kind and monotone constraint of each opaque feature; and names if agreed", lambda m: len(m.ordered)
            ),
        ),
        Message(
            pb.StatisticsOpen,
            "active",
            ("StatisticsFeatures",),
            Reveals("how many columns the active side brings to the correlations"),
        ),
        Message(
            pb.StatisticsColumns,
            "passive",
            ("StatisticsOpen",),
            Reveals(
                "for each opaque column its feature and its largest standardised value, rounded up",
                lambda m: len(m.largest),
            ),
        ),
        Message(
            pb.StatisticsResult,
            "active",
            ("StatisticsFeatures", "StatisticsColumns"),
            Reveals(
                "missing rate, stability index and variance inflation of its own columns, as far as agreed",
                lambda m: len(m.missing) + len(m.stability) + len(m.inflation),
            ),
        ),
        Message(
            pb.StatisticsPlan,
            "active",
            ("StatisticsResult",),
            Reveals(
                "which of its own features stay, which limit the others are over, and which of its splits matter",
                lambda m: 2 * len(m.kept) + len(m.important),
            ),
        ),
        Message(
            pb.StatisticsKept,
            "passive",
            ("StatisticsPlan", "StatisticsKept"),
            Reveals("which opaque features stay", lambda m: len(m.kept)),
        ),
        Message(pb.StatisticsSaved, BOTH, ("StatisticsKept", "StatisticsSaved"), nothing("an acknowledgement")),
    ),
)

#: How the run's leakage budget is divided; an eighth is that of the counts.
_COLUMNS_SHARE, _PAIRS_SHARE, TREES_SHARE, STEPWISE_SHARE = 0.25, 0.125, 0.25, 0.25
#: Bits of a standardised value of the passive side, and of a product of two.
_BITS, _PAIR_BITS = 15, 12
#: What a feature is left out for; the words are those of the contract's limits.
REASONS = ("iv", "missing", "stability", "importance", "correlation", "vif")


@dataclass(frozen=True)
class Features:
    """The passive side's features as they are told: opaque, in the session's order.

    Attributes:
        names: made up, or disclosed.
        kinds: number or category.
        monotone: -1, 0 or 1 each.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    monotone: tuple[int, ...]


@dataclass(frozen=True)
class Moments:
    """Correlations of the active side's columns and then the opaque ones, over the active side's rows.

    Attributes:
        correlation: float64 (p, p); between two different opaque columns 0 without ``vif``.
        inflation: float64 (p,), variance inflation factors; None without ``vif``.
        feature: int64 (p_P,), the opaque feature of each opaque column.
    """

    correlation: F64
    inflation: F64 | None
    feature: I64


def settings_of(contract: Contract) -> Statistics:
    """The contract's ``[statistics]``, which it has."""
    if contract.statistics is None:
        raise ValueError("the contract has no [statistics]")
    return contract.statistics


def plan_id(channel: Channel, contract: Contract) -> bytes:
    """16 bytes that both halves of this session's plan carry."""
    return hashlib.sha256(b"fedlearn/1 plan" + channel.session + contract.hash()).digest()[:16]


# --- features ----------------------------------------------------------------------------------------


def features_active(channel: Channel, contract: Contract) -> Features:
    """Step 1 as the active side. Raises PeerMisbehaved: see the subclasses."""
    channel.open(TABLE, "active")
    told = channel.receive(pb.StatisticsFeatures)
    side = contract.passive
    if not len(told.ordered) == len(told.monotone) == len(side.features):
        raise channel.misbehaved(
            WrongLength, f"announced {len(told.ordered)} features where the contract names {len(side.features)}"
        )
    due = sorted((kind == "number", side.monotone.get(name, 0)) for name, kind in side.features.items())
    if sorted(zip(told.ordered, told.monotone, strict=True)) != due:
        raise channel.misbehaved(Malformed, "announced features of other kinds than the contract has")
    if sorted(told.names) != (sorted(side.features) if contract.disclosure.names else []):
        raise channel.misbehaved(Malformed, "announced other feature names than the contract discloses")
    names = tuple(told.names) or tuple(f"{side.name}#{f}" for f in range(len(told.ordered)))
    kinds: tuple[Kind, ...] = tuple("number" if ordered else "category" for ordered in told.ordered)
    if told.names and any(side.features[name] != kind for name, kind in zip(names, kinds, strict=True)):
        raise channel.misbehaved(Malformed, "announced features of other kinds than the contract has")
    return Features(names, kinds, tuple(told.monotone))


def features_passive(channel: Channel, contract: Contract, order: I64) -> None:
    """Step 1 as the passive side, its features in ``order``."""
    channel.open(TABLE, "passive")
    side = contract.passive
    names = [list(side.features)[f] for f in order]
    channel.send(
        pb.StatisticsFeatures(
            ordered=[side.features[name] == "number" for name in names],
            monotone=[side.monotone.get(name, 0) for name in names],
            names=names if contract.disclosure.names else (),
        )
    )


def counts_active(
    channel: Channel, contract: Contract, features: Features, counted: woe.Counted, most_bins: int
) -> woe.Counts:
    """Step 2 as the active side: counts in the bins of the features as announced; as :func:`woe.counts_active`."""
    counts = woe.counts_active(channel, contract, counted, most_bins)
    if [kind == "number" for kind in features.kinds] != counts.ordered.tolist() or (
        counts.names and counts.names != features.names
    ):
        raise channel.misbehaved(Malformed, "counted features in another order than it announced")
    return counts


# --- correlations ------------------------------------------------------------------------------------


def layouts(
    contract: Contract, active_columns: int, passive_columns: int, universe: int
) -> tuple[products.Layout, products.Layout]:
    """Layouts of the columns, and of their squares or the products of all pairs.

    Raises:
        OverBudget: more vectors than the contract allows, or more leakage.
    """
    count = passive_columns * (passive_columns + 1) // 2 if settings_of(contract).vif else passive_columns
    columns = matvec.Terms.of(contract, largest_value=1, vectors=2 + active_columns)
    pairs = replace(columns, vectors=1, kl_nats=contract.budget.kl_nats * _PAIRS_SHARE)
    columns = replace(columns, kl_nats=contract.budget.kl_nats * _COLUMNS_SHARE)
    return (
        products.Layout.choose(columns, passive_columns, universe, _BITS),
        products.Layout.choose(pairs, count, universe, _PAIR_BITS),
    )


def _pairs(contract: Contract, columns: int) -> tuple[I64, I64]:
    first, second = np.triu_indices(columns) if settings_of(contract).vif else (np.arange(columns),) * 2
    return first.astype(np.int64), second.astype(np.int64)


def moments_active(channel: Channel, contract: Contract, own: F64, position: I64, universe: int) -> Moments:
    """Step 3 as the active side.

    Args:
        channel: after step 1.
        contract: as the passive side has it.
        own: float64 (p_A, m), its standardised columns.
        position: int64 (m,), places of its rows in the shared order.
        universe: n, length of the shared order.

    Raises:
        OverBudget, PeerMisbehaved: see the subclasses.
    """
    channel.send(pb.StatisticsOpen(columns=len(own)))
    told = channel.receive(pb.StatisticsColumns)
    feature, largest = np.array(told.feature, np.int64), np.array(told.largest, np.float64)
    most = len(contract.passive.features)
    if len(feature) != len(largest) or len(feature) > most or np.any(np.diff(feature) <= 0) or np.any(feature >= most):
        raise channel.misbehaved(BeyondContract, "announced columns that are not one for each of some features")
    products.check_largest(channel, largest)
    count, theirs = len(position), len(feature)
    if not theirs:
        return _moments(contract, own, np.zeros(0), np.zeros((0, len(own))), np.zeros((0, 0)), feature)
    by_column, by_pair = layouts(contract, len(own), theirs, universe)
    first, second = _pairs(contract, theirs)
    ones = np.ones(count)
    columns = products.Querier.open(channel, by_column, largest, position)
    sums = columns.ask([ones], lambda j: own[j], len(own))
    squares = products.Querier.open(channel, by_pair, largest[first] * largest[second], position)
    own_moments = np.zeros((theirs, theirs))
    own_moments[first, second] = own_moments[second, first] = squares.ask([], lambda _: ones, 1)[0]
    return _moments(contract, own, sums[0], sums[1:].T, own_moments, feature)


def _moments(contract: Contract, own: F64, sums: F64, cross: F64, squares: F64, feature: I64) -> Moments:
    count = own.shape[1]
    means = np.concatenate([own.mean(axis=1), sums / count])
    covariance = np.block([[own @ own.T, cross.T], [cross, squares]]) / count - np.outer(means, means)
    deviations = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = np.clip(covariance / np.outer(deviations, deviations), -1, 1)
    if settings_of(contract).vif:
        return Moments(correlation, np.diag(np.linalg.pinv(correlation, hermitian=True)), feature)
    passive = np.arange(len(own), len(correlation))
    correlation[np.ix_(passive, passive)] = np.eye(len(passive))
    return Moments(correlation, None, feature)


def moments_passive(channel: Channel, contract: Contract, columns: F64, feature: I64) -> None:
    """Step 3 as the passive side.

    Args:
        channel: after step 1.
        contract: as the active side has it.
        columns: float64 (p_P, n), standardised, in the order of step 1.
        feature: int64 (p_P,), the place of each column's feature in that order, ascending.
    """
    opened = channel.receive(pb.StatisticsOpen)
    if opened.columns > len(contract.active.features):
        raise channel.misbehaved(BeyondContract, f"announced {opened.columns} columns, more than the contract names")
    largest = products.largest_of(columns)
    channel.send(pb.StatisticsColumns(feature=feature.tolist(), largest=largest.tolist()))
    if not len(columns):
        return
    by_column, by_pair = layouts(contract, opened.columns, *columns.shape)
    first, second = _pairs(contract, len(columns))
    ones = np.ones(columns.shape[1])
    holder = products.open_holder(channel, by_column, lambda j: (columns[j], ones), largest)
    matvec.serve(channel, holder, 2 + opened.columns)
    holder = products.open_holder(
        channel, by_pair, lambda k: (columns[first[k]], columns[second[k]]), largest[first] * largest[second]
    )
    matvec.serve(channel, holder, 1)


# --- results and plan --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What the passive side is told of its own features, in the order of step 1; empty where not agreed.

    Attributes:
        missing, stability: float64 (F,).
        inflation: float64 (p_P,), by column of step 3.
    """

    missing: F64
    stability: F64
    inflation: F64


def close_active(channel: Channel, result: Result, reasons: Sequence[str], important: Flags | None) -> Flags:
    """Step 5 as the active side.

    Args:
        channel: after all other steps.
        result: what the passive side is told.
        reasons: of each opaque feature, the limit that it is over; "" where it stays.
        important: bool (S,), splits of the trees on columns that matter; None without trees or limit.

    Returns:
        bool (F,), the opaque features that stay in the end.
    """
    channel.send(
        pb.StatisticsResult(
            missing=result.missing.round(DECIMALS).tolist(),
            stability=result.stability.round(DECIMALS).tolist(),
            inflation=result.inflation.round(DECIMALS).tolist(),
        )
    )
    kept = np.array([not reason for reason in reasons], np.bool_)
    channel.send(
        pb.StatisticsPlan(
            kept=kept.tolist(), reasons=reasons, important=[] if important is None else important.tolist()
        )
    )
    told = after_steps(channel, kept)
    if important is None and np.any(told != kept):
        raise channel.misbehaved(Malformed, "leaves out features that the plan keeps")
    return told


def after_steps(channel: Channel, kept: Flags) -> Flags:
    """Step 6 as the active side, once the fits are done: which of the opaque features that stayed still stay."""
    told = np.array(channel.receive(pb.StatisticsKept).kept, np.bool_)
    if len(told) != len(kept) or np.any(told & ~kept) or not told.any():
        raise channel.misbehaved(Malformed, "keeps features that the plan leaves out, or none")
    return told


def tell_kept(channel: Channel, reasons: Sequence[str]) -> None:
    """Step 6 as the passive side: ``reasons`` in the order of step 1, "" for what stays."""
    channel.send(pb.StatisticsKept(kept=[not reason for reason in reasons]))


def close_passive(
    channel: Channel, contract: Contract, columns: int, splits: I64, order: I64
) -> tuple[Result, list[str], bytes]:
    """Step 5 as the passive side.

    Args:
        channel: after all other steps.
        contract: as the active side has it.
        columns: how many it brought to step 3.
        splits: int64 (S,), its own feature (natural order) of each split of the trees; empty without.
        order: its features in the order of step 1.

    Returns:
        what it is told; the reason why each feature goes, "" where it stays, both in the order of step 1; and the
        plan's id.
    """
    wanted, count = settings_of(contract), len(order)
    told = channel.receive(pb.StatisticsResult)
    result = Result(*(np.array(part, np.float64) for part in (told.missing, told.stability, told.inflation)))
    due = (count * wanted.missing, count * (wanted.period is not None), columns * wanted.vif)
    lengths = tuple(len(part) for part in vars(result).values())
    if lengths != due or not all(np.isfinite(part).all() for part in vars(result).values()):
        raise channel.misbehaved(WrongLength, f"sent {lengths} statistics where {due} finite ones were due")
    plan = channel.receive(pb.StatisticsPlan)
    limited = wanted.select.importance > 0
    if not len(plan.kept) == len(plan.reasons) == count or len(plan.important) != len(splits) * limited:
        raise channel.misbehaved(WrongLength, f"sent a plan of {len(plan.kept)} features where {count} were due")
    if any((reason == "") != kept or reason not in ("", *REASONS) for kept, reason in
           zip(plan.kept, plan.reasons, strict=True)) or not any(plan.kept):  # fmt: skip
        raise channel.misbehaved(Malformed, "sent a plan with reasons that the contract has not, or without a feature")
    reasons = list(plan.reasons)
    if limited:
        matter = set(splits[np.array(plan.important, np.bool_)].tolist())
        minor = [k for k, f in enumerate(order.tolist()) if plan.kept[k] and f not in matter]
        if len(minor) < sum(plan.kept):
            for k in minor:
                reasons[k] = "importance"
    tell_kept(channel, reasons)
    return result, reasons, plan_id(channel, contract)


def exchange_saved(channel: Channel) -> None:
    """Both roles: say that this side's half is written, and wait for the other's word."""
    message: ProtobufMessage = pb.StatisticsSaved()
    channel.send(message)
    channel.receive(pb.StatisticsSaved)
