"""``statistics``: what each role does between alignment and farewell; and ``weigh``, which needs no peer.

Own and opaque features go through the same functions, as counts by bin: the active side counts its own itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn import jobs, jobs_glm
from fedlearn.channel import Channel
from fedlearn.contract import Boost, Contract, Data, Glm, Kind, Side, Statistics
from fedlearn.crypto.draws import Draws
from fedlearn.data import PartyTable, fit_binning, load_table, periods
from fedlearn.data.design import Codes, Column, Design, Evidence, fit_codes, fit_design
from fedlearn.errors import ConstantColumns, FileMissing, NoOverlap, WrongModel
from fedlearn.jobs_glm import bins_of, evidence_told, one_sided
from fedlearn.jobs_score import write_table
from fedlearn.learner.select import by_correlation
from fedlearn.learner.woe import Groups, merge, score_stability, stability
from fedlearn.models import plan as plans
from fedlearn.models.linear import LinearShare
from fedlearn.protocols import boost, statistics, woe

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Summary = dict[str, Any]

#: Weights of evidence of this side's own columns, for ``weigh``.
WEIGHTS = "weights.json"
#: Period of a row: the first, the second, or neither.
_FIRST, _SECOND, _NEITHER = periods.EARLIER, periods.LATER, periods.NEITHER


def load(data: Data, contract: Contract, role: str) -> tuple[PartyTable, NDArray[np.int8] | None]:
    """This side's table; and on the active side, where the contract has periods, that of each row: int8 (n,).

    Raises:
        OwnMistake, Refused: as :func:`fedlearn.data.load_table`.
    """
    wanted, side = statistics.settings_of(contract), contract.side(role)
    label = contract.label if role == "active" else None
    features: dict[str, Kind] = dict(side.features)
    if wanted.period is not None and role == "active":
        features = periods.with_period(features, wanted.period, wanted.second_from)
    align, most = contract.align, contract.budget.rows
    table = load_table(data, align.key, features, label, most, contract.target, align.also)
    if wanted.period is None or role != "active":
        return table, None
    return periods.split_off(table, wanted.period, wanted.second_from)


def would_tell(contract: Contract) -> Summary:
    """For ``check``: what the job would tell; nothing where the contract has no [statistics]."""
    if contract.statistics is None:
        return {}
    wanted = contract.statistics.model_dump(exclude={"select", "coding", "depth", "second_from"})
    return {"statistics_would_tell": ", ".join(name for name, value in wanted.items() if value)}


def merging(contract: Contract) -> Glm:
    """How bins are made and merged: as [glm] says, or by its defaults."""
    return contract.glm or Glm()


def check_budget(contract: Contract, table: PartyTable) -> None:
    """Whether correlations and trees fit the budget, by the contract's columns. Raises OverBudget."""
    wanted = statistics.settings_of(contract)
    if wanted.correlation or wanted.vif:
        statistics.layouts(contract, len(contract.active.features), len(contract.passive.features), table.rows)
    if wanted.trees:
        boost.terms(_trees(contract))
    if wanted.stepwise:
        jobs_glm.check_budget(_for_steps(contract), table)


def _trees(contract: Contract) -> Contract:
    """The contract of the boosted trees that only rank columns."""
    objective = contract.boost.objective
    if contract.glm is not None:
        by_family = {"logistic": "logistic", "linear": "squared", "poisson": "poisson"}
        objective = by_family.get(contract.glm.family, "tweedie")  # type: ignore[assignment]
    wanted, budget = statistics.settings_of(contract), contract.budget
    trees = Boost(objective=objective, trees=wanted.trees, depth=wanted.depth, learning_rate=0.3)
    share = budget.model_copy(update={"kl_nats": budget.kl_nats * statistics.TREES_SHARE})
    return contract.model_copy(update={"glm": None, "scorecard": None, "boost": trees, "budget": share})


def _sets(contract: Contract, label: Any, period: NDArray[np.int8] | None) -> NDArray[np.int8]:
    """Sets of rows to count: the positive label or all classes but the first, then the two periods; int8 (V, m)."""
    wanted, sets = statistics.settings_of(contract), []
    if wanted.iv:
        sets += [label == k for k in range(1, _classes(contract))]
    if period is not None:
        sets += [period == _FIRST, period == _SECOND]
    return np.array(sets, np.int8).reshape(len(sets), len(label))


def _classes(contract: Contract) -> int:
    """Values of the label: two, or those of the contract."""
    return len(contract.label.classes) or 2


def _plans_due(contract: Contract) -> int:
    """Groupings of each feature: one of two values, one for each of several classes."""
    return len(contract.label.classes) or 1


def _set_count(contract: Contract) -> int:
    wanted = statistics.settings_of(contract)
    return (_classes(contract) - 1) * wanted.iv + 2 * (wanted.period is not None)


# --- what counts tell --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figures:
    """Of some features: groups by class (empty without iv), missing rates and stability (None where not agreed)."""

    groups: list[list[Groups]]
    missing: list[float | None]
    stability: list[float | None]

    def value(self, f: int) -> float | None:
        """Information value: of the class that the feature tells most of, where there are several."""
        return max(g.iv for g in self.groups[f]) if self.groups[f] else None


def _figures(contract: Contract, counts: woe.Counts) -> _Figures:
    wanted, settings = statistics.settings_of(contract), merging(contract)
    groups, missing, drifts = [], [], []
    for rows, sets, regular, ordered in zip(counts.rows, counts.sets, counts.regular, counts.ordered, strict=True):
        found: list[Groups] = []
        if wanted.iv:
            events = list(sets[: _classes(contract) - 1])
            if _plans_due(contract) > 1:
                events.insert(0, rows - np.sum(events, axis=0))
            found = [merge(e, rows, int(regular), bool(ordered), settings) for e in events]
        groups.append(found)
        missing.append(float(rows[regular] / rows.sum()) if wanted.missing else None)
        drifts.append(_drift(sets[-2], sets[-1], found) if wanted.period is not None else None)
    return _Figures(groups, missing, drifts)


def _drift(first: I64, second: I64, groups: list[Groups]) -> float:
    """Stability index between the periods, over the bins; over merged ones where there is one merging."""
    if len(groups) == 1:
        first, second = (np.bincount(groups[0].group, part, len(groups[0].woe)) for part in (first, second))
    return stability(first, second)


def _own_counts(table: PartyTable, fitted: tuple[Codes, ...], sets: NDArray[np.int8]) -> woe.Counts:
    """The active side's own features, counted as the peer's are."""
    rows, by_set = [], []
    for codes in fitted:
        bins = codes.of(table)
        rows.append(np.bincount(bins, minlength=codes.count))
        by_set.append(np.array([np.bincount(bins, s, codes.count) for s in sets], np.int64).reshape(-1, codes.count))
    regular = np.array([codes.bins.regular for codes in fitted])
    ordered = np.array([codes.bins.kind == "number" for codes in fitted])
    return woe.Counts(rows, by_set, regular, ordered, tuple(codes.bins.name for codes in fitted))


# --- active ------------------------------------------------------------------------------------------


def run_active(
    channel: Channel, contract: Contract, table: PartyTable, period: NDArray[np.int8] | None, position: I64,
    universe: int, folder: Path,
) -> Summary:  # fmt: skip
    """The job as the active side; ``table`` and ``period`` are its aligned rows. Writes plan and weights."""
    wanted, settings, said = statistics.settings_of(contract), merging(contract), _period_warnings(period)
    _check_rows(table, period, wanted)
    features = statistics.features_active(channel, contract)
    fitted = fit_codes(table, contract.active.features, settings)
    sets = _sets(contract, table.label, period)
    own = _figures(contract, _own_counts(table, fitted, sets))
    theirs = _Figures([[]] * len(features.names), [None] * len(features.names), [None] * len(features.names))
    if wanted.counts:
        with channel.phase("counts"):
            most = settings.bins if wanted.iv or wanted.period is not None else 1
            counted = woe.Counted(sets, position, universe)
            counts = statistics.counts_active(channel, contract, features, counted, most)
            theirs = _figures(contract, counts)
            if wanted.iv:
                woe.tell_plan(channel, [group for by_class in theirs.groups for group in by_class])
    names = (*contract.active.features, *features.names)
    moments, places, more = _moments(channel, contract, table, fitted, own, position, universe)
    said += more
    gains: dict[str, float] = {}
    trees: dict[str, Any] = {}
    important = None
    if wanted.trees:
        gains, important, trees = _ranked_by_trees(channel, contract, table, period, position, universe)
    lines = [
        {"column": name, "side": contract.active.name if f < len(fitted) else contract.passive.name,
         **_line(own if f < len(fitted) else theirs, f if f < len(fitted) else f - len(fitted), contract)}
        for f, name in enumerate(names)
    ]  # fmt: skip
    if moments is not None:
        _add_moments(lines, moments, places, wanted)
    if wanted.trees:
        known = contract.disclosure.names
        for f, line in enumerate(lines):
            line["gain"] = gains.get(line["column"], 0.0) if f < len(fitted) or known else None
    reasons = _reasons(lines, moments, places, wanted, len(fitted), said)
    result = statistics.Result(
        np.array(theirs.missing if wanted.missing else [], np.float64),
        np.array(theirs.stability if wanted.period is not None else [], np.float64),
        moments.inflation[len(moments.correlation) - len(moments.feature) :]
        if moments is not None and moments.inflation is not None else np.zeros(0),
    )  # fmt: skip
    their_kinds = [r.split()[0] if r else "" for r in reasons[len(fitted) :]]
    kept = statistics.close_active(channel, result, their_kinds, important)
    for k, stays in enumerate(kept.tolist()):
        if not stays and not reasons[len(fitted) + k]:
            reasons[len(fitted) + k] = "importance"
    plan = _plan_of(channel, contract, features, reasons)
    if wanted.stepwise:
        narrow = _for_steps(plan.narrowed(contract, "active"))
        share, _ = jobs_glm.train_active(channel, narrow, table, None, position, universe)
        left = _left(share, names[: len(fitted)]) + statistics.after_steps(channel, kept).tolist()
        reasons = [reason or ("" if stays else "stepwise") for reason, stays in zip(reasons, left, strict=True)]
        plan = _plan_of(channel, contract, features, reasons)
    _finish(lines, reasons)
    said += one_sided([(name, g) for name, gs in zip(names, own.groups + theirs.groups, strict=True) for g in gs])
    plans.save(plan, folder, contract, contract.active.name)
    if wanted.iv:
        _save_weights(folder, contract, [_evidence(fitted, list(g)) for g in zip(*own.groups, strict=True)])
    return {
        "plan_id": plan.plan_id.hex(),
        "columns_kept": sum(line.kept for line in plan.own),
        "peer_columns_kept": sum(line.kept for line in plan.peer),
        **({} if period is None else {"rows_by_period": [int((period == p).sum()) for p in (_FIRST, _SECOND)]}),
        **({} if moments is None else {"correlation": {
            "columns": [names[k] for k in places], "values": moments.correlation.round(6).tolist()}}),
        **trees,
        "features": _by_value(lines),
        "warnings": said,
    }  # fmt: skip


def _plan_of(channel: Channel, contract: Contract, features: statistics.Features, reasons: list[str]) -> plans.Plan:
    """The active side's half; ``reasons`` of its own features, then of the opaque ones."""
    own = _lines_of(contract.active, reasons[: len(contract.active.features)])
    told = zip(features.names, features.kinds, reasons[len(own) :], features.monotone, strict=True)
    return plans.Plan(statistics.plan_id(channel, contract), own, tuple(plans.Line(*one) for one in told))


def _lines_of(side: Side, reasons: list[str]) -> tuple[plans.Line, ...]:
    """A side's own features in its half of a plan."""
    return tuple(
        plans.Line(name, kind, reason, side.monotone.get(name, 0))
        for (name, kind), reason in zip(side.features.items(), reasons, strict=True)
    )


def _for_steps(narrow: Contract) -> Contract:
    """The contract of the fits that eliminate, within their part of the leakage budget."""
    share = narrow.budget.kl_nats * statistics.STEPWISE_SHARE
    return narrow.model_copy(update={"budget": narrow.budget.model_copy(update={"kl_nats": share}), "scorecard": None})


def _left(share: LinearShare, names: Iterable[str]) -> list[bool]:
    """Whether a fit kept a column of each feature."""
    kept = {column.feature for column in share.design.columns}
    return [name in kept for name in names]


def _moments(
    channel: Channel, contract: Contract, table: PartyTable, fitted: tuple[Codes, ...], own: _Figures, position: I64,
    universe: int,
) -> tuple[statistics.Moments | None, I64, list[str]]:  # fmt: skip
    """Correlations as the contract has them, the place of each column's feature among all, and warnings."""
    wanted, kinds = statistics.settings_of(contract), contract.active.features
    if not (wanted.correlation or wanted.vif):
        return None, np.zeros(0, np.int64), []
    with channel.phase("correlations"):
        evidence = _evidence(fitted, [g[0] for g in own.groups]) if wanted.coding == "woe" else None
        columns, at, said = _columns(table, kinds, evidence)
        moments = statistics.moments_active(channel, contract, columns, position, universe)
    return moments, np.concatenate([at, len(kinds) + moments.feature]), said


def _check_rows(table: PartyTable, period: NDArray[np.int8] | None, wanted: Statistics) -> None:
    """Raises NoOverlap where there is nothing to count."""
    if not table.rows:
        raise NoOverlap("no row is shared, so there is nothing to count")
    if wanted.iv and len(np.unique(np.asarray(table.label))) < 2:
        raise NoOverlap(f"all {table.rows} aligned rows have the same label, so no column tells anything of it")
    if period is not None and min((period == _FIRST).sum(), (period == _SECOND).sum()) == 0:
        raise NoOverlap(f"all aligned rows are on one side of {wanted.second_from!r}, so that there is one period")


def _period_warnings(period: NDArray[np.int8] | None) -> list[str]:
    if period is None or not (period == _NEITHER).any():
        return []
    return [f"the period is missing in {(period == _NEITHER).sum()} row(s), which count in neither"]


def _evidence(fitted: tuple[Codes, ...], groups: list[Groups]) -> tuple[Evidence, ...]:
    return tuple(Evidence(c, g.group, g.woe, g.rows, g.iv) for c, g in zip(fitted, groups, strict=True))


def _columns(
    table: PartyTable, kinds: dict[str, Kind], evidence: tuple[Evidence, ...] | None
) -> tuple[F64, I64, list[str]]:
    """Standardised columns for the correlations, the place of each one's feature, and warnings."""
    said = []
    if evidence is None and "category" in kinds.values():
        texts = [repr(name) for name, kind in kinds.items() if kind == "category"]
        said.append(f"{', '.join(texts)} are texts and have no correlations: agree coding woe for theirs")
    chosen = {name: kind for name, kind in kinds.items() if evidence is not None or kind == "number"}
    names = list(kinds)
    try:
        design, more = fit_design(table, chosen, evidence)
    except ConstantColumns as error:
        return np.zeros((0, table.rows)), np.zeros(0, np.int64), [*said, str(error)]
    places = np.array([names.index(name) for name in design.names], np.int64)
    return design.standardised(table), places, said + more


def _ranked_by_trees(
    channel: Channel, contract: Contract, table: PartyTable, period: NDArray[np.int8] | None, position: I64,
    universe: int,
) -> tuple[dict[str, float], NDArray[np.bool_] | None, Summary]:  # fmt: skip
    """Share of the trees' gain by name; whether each passive split is on a column that matters; and facts for the run.

    The trees know passive columns under numbers of their own, so that their names here are not those of the rest.
    """
    agreed, limit = _trees(contract), statistics.settings_of(contract).select.importance
    binning = fit_binning(table, agreed.boost.bins, agreed.active.features)
    data = boost.ActiveData(jobs.rows_of(table, binning, agreed), position, universe)
    trained = boost.train_active(channel, agreed, data)
    forest, own = trained.fit.forest, tuple(f.name for f in binning.features)
    opaque = trained.names or tuple(f"{contract.passive.name} in trees {k}" for k in range(len(trained.features.sizes)))
    found = forest.importance(own, opaque)
    total = sum(entry["gain"] for entry in found.values()) or 1.0
    shares = {name: entry["gain"] / total for name, entry in found.items()}
    facts: Summary = {"importance": found}
    if period is not None and len(trained.fit.margins) == 1:
        margins = trained.fit.margins[0]
        facts["score_stability_index"] = score_stability(margins[period == _FIRST], margins[period == _SECOND])
    if not limit:
        return shares, None, facts
    important = np.zeros(len(forest.passive_splits), np.bool_)
    for at in np.flatnonzero((forest.left >= 0) & (forest.feature < 0)):
        important[-1 - forest.feature[at]] = shares[opaque[forest.opaque[at]]] >= limit
    return shares, important, facts


def _line(figures: _Figures, f: int, contract: Contract) -> Summary:
    """The figures of a feature that the contract has, by name."""
    wanted, line = statistics.settings_of(contract), Summary()
    if wanted.iv:
        line["iv"] = figures.value(f)
        if contract.label.classes:
            line["iv_by_class"] = dict(
                zip(contract.label.classes, [float(g.iv) for g in figures.groups[f]], strict=True)
            )
    if wanted.missing:
        line["missing"] = figures.missing[f]
    if wanted.period is not None:
        line["stability"] = figures.stability[f]
    return line


def _add_moments(lines: list[Summary], moments: statistics.Moments, places: I64, wanted: Statistics) -> None:
    """The largest correlation of each feature, and its variance inflation, where it has a column."""
    size = np.abs(moments.correlation - np.eye(len(places)))
    for line in lines:
        line.update({"correlation": None, "with": None} | ({"vif": None} if wanted.vif else {}))
    for j, place in enumerate(places.tolist()):
        other = int(size[j].argmax())
        lines[place]["correlation"] = float(moments.correlation[j, other])
        lines[place]["with"] = lines[int(places[other])]["column"]
        if moments.inflation is not None:
            lines[place]["vif"] = float(moments.inflation[j])


def _reasons(
    lines: list[Summary], moments: statistics.Moments | None, places: I64, wanted: Statistics, own: int,
    said: list[str],
) -> list[str]:  # fmt: skip
    """Why each feature goes, "" where it stays; own features first. The first word is the name of the limit.

    A side keeps the best of its features at least.
    """
    limits, reasons = wanted.select, [""] * len(lines)
    for f, line in enumerate(lines):
        if (line.get("iv") or 0.0) < limits.iv:
            reasons[f] = f"iv {line['iv']:.3g}"
        elif (line.get("missing") or 0.0) > limits.missing:
            reasons[f] = f"missing {line['missing']:.3g}"
        elif limits.stability and (line.get("stability") or 0.0) > limits.stability:
            reasons[f] = f"stability {line['stability']:.3g}"
        elif f < own and limits.importance and line["gain"] < limits.importance:
            reasons[f] = f"importance {line['gain']:.3g}"
    worth = np.array([line.get("iv") or line.get("gain") or 0.0 for line in lines])
    if moments is not None and (limits.correlation < 1 or limits.vif):
        left = np.array([j for j, place in enumerate(places.tolist()) if not reasons[place]], np.int64)
        names = tuple(str(lines[places[j]]["column"]) for j in left)
        out = by_correlation(
            moments.correlation[np.ix_(left, left)], worth[places[left]], limits.correlation, limits.vif, names
        )
        for k, why in out.items():
            reasons[int(places[left[k]])] = why.replace("variance inflation", "vif")
    for part in (range(own), range(own, len(lines))):
        if all(reasons[f] for f in part):
            best = max(part, key=lambda f: worth[f])
            said.append(f"{lines[best]['column']!r} stays though over a limit ({reasons[best]}): its side has no other")
            reasons[best] = ""
    return reasons


def _by_value(lines: list[Summary]) -> list[Summary]:
    """The largest information value first."""
    return sorted(lines, key=lambda line: -(line.get("iv") or 0.0))


def _finish(lines: list[Summary], reasons: list[str]) -> None:
    for line, reason in zip(lines, reasons, strict=True):
        line.update({"kept": not reason, "reason": reason})


# --- passive -----------------------------------------------------------------------------------------


def run_passive(channel: Channel, contract: Contract, table: PartyTable, folder: Path) -> Summary:
    """The job as the passive side; ``table`` is its rows of the shared order. Writes plan and weights."""
    wanted, side = statistics.settings_of(contract), contract.passive
    order = Draws().permutation(len(side.features))
    rank = np.argsort(order)
    statistics.features_passive(channel, contract, order)
    said: list[str] = []
    told, at = _serve_counts(channel, contract, table, order), np.zeros(0, np.int64)
    if wanted.correlation or wanted.vif:
        with channel.phase("correlations"):
            evidence = tuple(one[0] for one in told) if wanted.coding == "woe" else None
            columns, at, said = _columns(table, side.features, evidence)
            shuffled = np.argsort(rank[at])
            at = at[shuffled]
            statistics.moments_passive(channel, contract, np.ascontiguousarray(columns[shuffled]), rank[at])
    splits = np.zeros(0, np.int64)
    if wanted.trees:
        agreed = _trees(contract)
        binning = fit_binning(table, agreed.boost.bins, side.features)
        features = jobs.features_of(binning, side)
        data = boost.PassiveData(binning.transform(table), features, tuple(side.features))
        splits = boost.train_passive(channel, agreed, data).feature
    result, by_rank, plan_id = statistics.close_passive(channel, contract, len(at), splits, order)
    reasons = [by_rank[k] for k in rank]
    lines = _told_lines(contract, told, result, rank, at)
    plan = plans.Plan(plan_id, _lines_of(side, reasons))
    if wanted.stepwise:
        share, _ = jobs_glm.train_passive(channel, _for_steps(plan.narrowed(contract, "passive")), table)
        left = _left(share, side.features)
        reasons = [reason or ("" if stays else "stepwise") for reason, stays in zip(reasons, left, strict=True)]
        statistics.tell_kept(channel, [reasons[f] for f in order])
        plan = plans.Plan(plan_id, _lines_of(side, reasons))
    _finish(lines, reasons)
    plans.save(plan, folder, contract, side.name)
    if wanted.iv:
        _save_weights(folder, contract, list(zip(*told, strict=True)))
    return {
        "plan_id": plan_id.hex(),
        "columns_kept": sum(line.kept for line in plan.own),
        "features": _by_value(lines),
        "warnings": said,
    }


def _serve_counts(channel: Channel, contract: Contract, table: PartyTable, order: I64) -> list[list[Evidence]]:
    """Serve the counts; what comes back is the evidence of each own feature by class, nothing without iv."""
    wanted = statistics.settings_of(contract)
    if not wanted.counts:
        return []
    with channel.phase("counts"):
        fitted = fit_codes(table, contract.passive.features, merging(contract))
        bins = bins_of(table, fitted, contract.budget.least_rows)
        if not wanted.iv:
            bins = bins if wanted.period is not None else _missing_alone(bins)
            woe.counts_passive(channel, contract, bins, _set_count(contract), order)
            return []
        answers = woe.evidence_passive(channel, contract, bins, _set_count(contract), order, _plans_due(contract))
        return [
            [evidence_told(codes, own, one) for one in by_class]
            for codes, own, by_class in zip(fitted, bins.codes, answers, strict=True)
        ]


def _told_lines(
    contract: Contract, told: list[list[Evidence]], result: statistics.Result, rank: I64, at: I64
) -> list[Summary]:
    """The passive side's own figures by column."""
    wanted, lines = statistics.settings_of(contract), []
    for f, name in enumerate(contract.passive.features):
        line: Summary = {"column": name, "side": contract.passive.name}
        if wanted.iv:
            line["iv"] = max(one.iv for one in told[f])
            if contract.label.classes:
                line["iv_by_class"] = dict(zip(contract.label.classes, [one.iv for one in told[f]], strict=True))
        if wanted.missing:
            line["missing"] = float(result.missing[rank[f]])
        if wanted.period is not None:
            line["stability"] = float(result.stability[rank[f]])
        if wanted.vif:
            mine = np.flatnonzero(at == f)
            line["vif"] = float(result.inflation[mine[0]]) if len(mine) else None
        lines.append(line)
    return lines


def _missing_alone(bins: woe.Bins) -> woe.Bins:
    """Two bins of each feature, present and missing: all that missing rates need."""
    codes = (bins.codes == bins.regular[:, None]).astype(np.uint8)
    count = len(codes)
    return woe.Bins(codes, np.full(count, 2), np.ones(count, np.int64), bins.ordered, bins.names)


# --- weights of evidence -----------------------------------------------------------------------------


def _save_weights(folder: Path, contract: Contract, by_class: list[tuple[Evidence, ...]]) -> None:
    """Own columns as weights of evidence: one for each, or one for each class of each."""
    classes = contract.label.classes
    columns = tuple(
        Column(
            f"{e.codes.bins.name}={classes[k]}" if classes else e.codes.bins.name,
            e.codes.bins.name, e.codes.bins.kind, evidence=e,
        )
        for k, evidences in enumerate(by_class)
        for e in evidences
    )  # fmt: skip
    body = {"contract_hash": contract.hash().hex(), **Design(columns).to_json()}
    (folder / WEIGHTS).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def weigh(data: Data, contract: Contract, role: str, folder: Path, out: Path) -> Summary:
    """Replace a table's columns by the weights of evidence of a run of ``statistics``; nothing is sent.

    Args:
        data: the table.
        contract: as at that run.
        role: of this side.
        folder: of the run.
        out: a CSV file to write.

    Raises:
        FileMissing, WrongModel: the folder has no weights, or those of another contract.
    """
    path = folder / WEIGHTS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        known = saved["contract_hash"]
    except OSError as error:
        raise FileMissing(f"no weights of evidence in {folder}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise WrongModel(f"{path} is damaged") from None
    if known != contract.hash().hex():
        raise WrongModel(f"the weights in {folder} were made under another contract than {contract.name!r}")
    design = Design.from_json(saved)
    align = contract.align
    kinds: dict[str, Kind] = {column.feature: column.kind for column in design.columns}
    table = load_table(data, align.key, kinds, None, contract.budget.rows, contract.target, align.also)
    write_table(out, {"id": table.ids, **dict(zip(design.names, design.raw(table), strict=True))})
    return {"rows": table.rows, "columns": len(design.names), "file": str(out), "warnings": design.unseen(table)}
