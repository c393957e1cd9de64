"""``train`` and ``predict`` of a contract with ``[glm]``: what each role does between alignment and farewell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.channel import Channel
from fedlearn.contract import Contract, Data, Glm, Kind, Side
from fedlearn.data import PartyTable, load_table, periods
from fedlearn.data.design import Codes, Column, Design, Evidence, fit_codes, fit_design, unseen_in
from fedlearn.data.table import Encode
from fedlearn.errors import BadLabel, ColumnMissing, NoOverlap, OverBudget
from fedlearn.jobs_score import Found, Pieces, run_active, run_passive, write_rows, write_table
from fedlearn.learner import glm as learner
from fedlearn.learner.select import redundant
from fedlearn.learner.woe import Groups, Tenths, merge, stability
from fedlearn.models import linear as shares
from fedlearn.models.linear import LinearShare
from fedlearn.models.pmml import pmml
from fedlearn.models.scorecard import Points, codes_of, reasons_due, total
from fedlearn.protocols import linear, regression, sealed, woe
from fedlearn.report.metrics import linear_figures

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Summary = dict[str, Any]
_OFFSET = "offset"  # among what a table to score is encoded to


@dataclass(frozen=True)
class Loaded:
    """A table, offset and period of its rows (float64 and int8 (n,); None without), and warnings about it."""

    table: PartyTable
    offset: F64 | None
    warnings: tuple[str, ...] = ()
    period: NDArray[np.int8] | None = None


def load(data: Data, contract: Contract, role: str, train: bool, share: LinearShare | None = None) -> Loaded:
    """Read this side's table with the offset that the contract names.

    At scoring the table is encoded for ``share``, and an offset may be missing, in part or altogether: it counts as 0,
    with a warning.

    Raises:
        BadLabel: a row to train on has no offset. And as :func:`fedlearn.data.load_table`.
    """
    side, column = contract.side(role), contract.label.offset if role == "active" else None
    label = contract.label if role == "active" and train else None
    features: dict[str, Kind] = dict(side.features)
    if column:
        features[column] = "number"
    later = contract.out_of_time if label else None
    if later is not None:
        features = periods.with_period(features, later.column, later.first)

    def read(names: Mapping[str, Kind], encode: Encode | None) -> PartyTable:
        agreed = contract.align
        return load_table(data, agreed.key, names, label, contract.budget.rows, contract.target, agreed.also, encode)

    said = []
    try:
        table = read(features, _encoder(share, column))
    except ColumnMissing:
        if column is None or train:
            raise
        table = read(side.features, _encoder(share, None))  # only at scoring, where no period is read
        said.append(f"offset column {column!r} is not in {data.source}: it counts as 0")
    offset = table.encoded.get(_OFFSET)
    if column is not None and column in table.columns:
        offset = np.asarray(table.columns[column])
        table = replace(table, columns={n: v for n, v in table.columns.items() if n != column})
    if offset is not None:
        missing = np.isnan(offset)
        if missing.any() and train:
            raise BadLabel(
                f"offset column {column!r} of {data.source} is missing in {missing.sum()} row(s), "
                f"the first is row {int(np.argmax(missing)) + 1} of those kept"
            )
        if missing.any():
            said.append(f"offset column {column!r} is missing in {missing.sum()} row(s), where it counts as 0")
            offset = np.where(missing, 0.0, offset)
    period = None
    if later is not None:
        table, period = periods.split_off(table, later.column, later.first)
    return Loaded(table, offset, tuple(said), period)


def _encoder(share: LinearShare | None, offset: str | None) -> Encode | None:
    """What a table to score is encoded by, the offset's column kept beside; None without a share."""
    if share is None:
        return None
    return lambda rows: share.encode(rows) | ({_OFFSET: np.asarray(rows.columns[offset])} if offset else {})


def settings_of(contract: Contract) -> Glm:
    """The contract's ``[glm]``, which it has."""
    if contract.glm is None:
        raise ValueError("the contract has no [glm]")
    return contract.glm


def check_budget(contract: Contract, table: PartyTable) -> Summary:
    """What a fit would need at most, by the contract's columns. Raises OverBudget when it does not fit."""
    glm = settings_of(contract)
    active, passive = (regression.most_columns(glm, contract.side(role)) for role in ("active", "passive"))
    if glm.disclosure == "none":
        return {
            "would_train": f"sealed logistic regression{' on weights of evidence' if glm.woe else ''}, "
            f"at most {glm.max_steps} rounds",
            "flooding_distance": sealed.flooding(contract, active, passive, table.rows),
        }
    by_column, by_pair = regression.layouts(contract, active, passive, table.rows)
    steps = glm.max_steps
    return {
        "would_train": f"{glm.family} regression{' on weights of evidence' if glm.woe else ''}, at most {steps} steps, "
        f"{contract.encryption.backend} back end",
        "most_vectors": regression.most_vectors(glm, active),
        "digits": f"{by_column.digits} of base {by_column.base}; pairs {by_pair.digits} of base {by_pair.base}",
        "partial_scores_revealed": f"{steps} a row at most; {passive} would tell the active side every passive column",
        "kl_nats_at_most": contract.budget.kl_nats,
    }


# --- train -------------------------------------------------------------------------------------------


def train_active(
    channel: Channel, contract: Contract, table: PartyTable, offset: F64 | None, position: I64, universe: int,
    keep: Path | None = None, period: NDArray[np.int8] | None = None,
) -> tuple[LinearShare, Summary]:  # fmt: skip
    """Fit as the active side; ``table``, ``offset`` and ``period`` are of its aligned rows.

    With ``keep``, it writes fitted.csv into that folder: the training rows' predictions, joint and alone; and with
    ``period`` out_of_time.csv, those of the later rows, which are no part of the fit.
    """
    glm = settings_of(contract)
    offset = np.zeros(table.rows) if offset is None else offset
    later = _Period.of(table, offset, position, period, periods.LATER)
    if period is not None:
        early = _Period.of(table, offset, position, period, periods.EARLIER)
        table, offset, position = early.table, early.offset, early.position
    label = _labels(contract, table)
    facts: Summary = {}
    evidence, said = None, []
    if glm.woe:
        with channel.phase("woe"):
            evidence, own = own_evidence(table, contract.active, glm)
            theirs, names = woe.evidence_active(
                channel, contract, woe.Counted.of(label.astype(np.int8), position, universe)
            )
        names = names or tuple(f"{contract.passive.name}#{f}" for f in range(len(theirs)))
        facts["iv"] = _ranked({e.codes.bins.name: e.iv for e in evidence} | _ivs(names, theirs))
        said += one_sided([(e.codes.bins.name, g) for e, g in zip(evidence, own, strict=True)])
        said += one_sided(list(zip(names, theirs, strict=True)))
    design, more = fit_design(table, contract.active.features, evidence, glm.bins, glm.least_iv)
    design, plan = _selected(design, table, glm)
    columns = design.standardised(table)
    if not glm.l2:
        regression.check_independent(columns, design.names)
    weight = np.ones(table.rows) if table.weight is None else table.weight
    rows = learner.Rows(columns, label, weight, offset)
    if glm.disclosure == "none":
        data = regression.ActiveData(rows, position, universe, design.names)
        share, found = _sealed_active(channel, contract, data, design)
        return share, facts | found | {
            "selection": plan,
            "warnings": said + more + _unconverged(found["converged"], glm),
        }
    data = regression.ActiveData(rows, position, universe, design.names, later.position)
    result = regression.fit_active(channel, contract, data)
    fit, own_size = result.fit, 1 + len(columns)
    errors = fit.errors
    share = LinearShare(
        "active", result.model_id, design, fit.coefficients[1:own_size], float(fit.coefficients[0]),
        None if errors is None else errors[1:own_size], None if errors is None else float(errors[0]),
        Tenths.of(fit.eta),
    )  # fmt: skip
    share = _without(share, {j - 1: p for j, p in fit.dropped.items() if j < own_size}, plan)
    opaque = result.names or tuple(f"{contract.passive.name}#{j}" for j in range(len(fit.coefficients) - own_size))
    theirs_fitted = LinearShare("passive", result.model_id, _unit_design(opaque), fit.coefficients[own_size:],
                                errors=None if errors is None else errors[own_size:])  # fmt: skip
    theirs_fitted = _without(theirs_fitted, {j - own_size: p for j, p in fit.dropped.items() if j >= own_size}, plan)
    if result.statistics is not None:
        every = (*design.names, *opaque)
        facts["variance_inflation"] = dict(zip(every, result.statistics.inflation.tolist(), strict=True))
        facts["correlation"] = {"columns": list(every), "values": result.statistics.correlation.round(6).tolist()}
    with channel.phase("alone"):
        alone = learner.fit(rows, glm, None, design.names)
    if keep is not None:
        _write_fitted(keep / "fitted.csv", table, glm, fit.eta, alone.eta)
    facts |= _progress(fit.converged, len(fit.changes), fit.changes, glm, len(fit.coefficients) - own_size) | {
        "model_id": result.model_id.hex(),
        "selection": plan,
        "coefficients": share.table(),
        "peer_coefficients_standardised": theirs_fitted.table(),
        "deviance": fit.deviance,
        "null_deviance": fit.null_deviance,
        "dispersion": fit.dispersion,
        "aic": fit.aic,
        "joint": linear_figures(glm, label, fit.eta),
        "alone": linear_figures(glm, label, alone.eta),
        "warnings": said + more + _unconverged(fit.converged, glm),
    }
    if keep is not None and len(later.position):
        facts |= _judge_later(keep, later, glm, design, fit.coefficients[:own_size], result.later, alone, facts)
    return share, facts


def _labels(contract: Contract, table: PartyTable) -> F64:
    """Labels of the rows to train on, float64 (m,); checked here, before anything that depends on them is sent.

    Raises:
        NoOverlap, BadLabel: no fit can be had from them.
    """
    if table.label is None:
        raise BadLabel("the active side's table was read without its label")
    when = contract.out_of_time
    if when is not None and not table.rows:
        raise NoOverlap(f"no aligned row is before {when.first} by {when.column!r}, so there is none to train on")
    label = table.label.astype(np.float64)
    regression.check_label(label, settings_of(contract))
    return label


@dataclass(frozen=True)
class _Period:
    """Rows of one period: table, offset float64 (k,), and places in the shared order int64 (k,)."""

    table: PartyTable
    offset: F64
    position: I64

    @classmethod
    def of(cls, table: PartyTable, offset: F64, position: I64, period: NDArray[np.int8] | None, which: int) -> _Period:
        rows = np.zeros(0, np.int64) if period is None else np.flatnonzero(period == which)
        return cls(table.take(rows), offset[rows], position[rows])


def _judge_later(
    keep: Path, later: _Period, glm: Glm, design: Design, own: F64, theirs: F64, alone: learner.Fit, facts: Summary
) -> Summary:
    """Score the rows out of time, write out_of_time.csv, and tell both samples' figures; the later ones come first."""
    columns = design.standardised(later.table)
    joint = later.offset + own[0] + own[1:] @ columns + theirs
    by_itself = later.offset + alone.coefficients[0] + alone.coefficients[1:] @ columns
    _write_fitted(keep / "out_of_time.csv", later.table, glm, joint, by_itself)
    label = np.asarray(later.table.label, np.float64)
    told: Summary = {"rows": len(label)}
    if glm.family != "logistic" or len(np.unique(label)) > 1:
        told |= {"joint": linear_figures(glm, label, joint), "alone": linear_figures(glm, label, by_itself)}
    fitted = {"rows": len(alone.eta), "joint": facts["joint"], "alone": facts["alone"]}
    first = told if "joint" in told else fitted
    return {"samples": {"out_of_time": told, "fitted": fitted}, "joint": first["joint"], "alone": first["alone"]}


def train_alone(
    contract: Contract, table: PartyTable, offset: F64 | None, model_id: bytes
) -> tuple[LinearShare, Summary]:
    """Fit the active side's own columns by themselves; nothing is sent."""
    glm = settings_of(contract)
    evidence = own_evidence(table, contract.active, glm)[0] if glm.woe else None
    design, said = fit_design(table, contract.active.features, evidence, glm.bins, glm.least_iv)
    columns = design.standardised(table)
    if not glm.l2:
        regression.check_independent(columns, design.names)
    label = np.asarray(table.label, np.float64)
    weight = np.ones(table.rows) if table.weight is None else table.weight
    rows = learner.Rows(columns, label, weight, np.zeros(table.rows) if offset is None else offset)
    fit = learner.fit(rows, glm, None, design.names)
    tenths = Tenths.of(fit.eta)
    share = LinearShare("active", model_id, design, fit.coefficients[1:], float(fit.coefficients[0]), tenths=tenths)
    return share, {"alone": linear_figures(glm, label, fit.eta), "warnings": said + _unconverged(fit.converged, glm)}


def train_passive(channel: Channel, contract: Contract, table: PartyTable) -> tuple[LinearShare, Summary]:
    """Serve a fit as the passive side; ``table`` is its rows of the shared order."""
    glm = settings_of(contract)
    facts: Summary = {}
    evidence = None
    if glm.woe:
        with channel.phase("woe"):
            evidence = _peers_evidence(channel, contract, table, glm)
        facts["iv"] = _ranked({e.codes.bins.name: e.iv for e in evidence})
    design, said = fit_design(table, contract.passive.features, evidence, glm.bins, glm.least_iv)
    design, plan = _selected(design, table, glm)
    data = regression.PassiveData(design.standardised(table), design.names)
    if glm.disclosure == "none":
        share, found = _sealed_passive(channel, contract, data, design)
        said += found["warnings"] + _unconverged(found["converged"], glm)
        return share, facts | found | {"selection": plan, "warnings": said}
    result = regression.fit_passive(channel, contract, data)
    share = LinearShare("passive", result.model_id, design, result.coefficients, errors=result.errors)
    if glm.select.p_value:
        share = _without(share, dict.fromkeys(np.flatnonzero(result.coefficients == 0).tolist()), plan)
    facts |= _progress(result.converged, result.steps, result.changes, glm, len(result.coefficients)) | result.facts
    if result.inflation is not None:
        facts["variance_inflation"] = dict(zip(design.names, result.inflation.tolist(), strict=True))
    facts |= {
        "model_id": result.model_id.hex(),
        "selection": plan,
        "coefficients": share.table(),
        "warnings": said + _unconverged(result.converged, glm),
    }
    return share, facts


def _selected(design: Design, table: PartyTable, glm: Glm) -> tuple[Design, list[Summary]]:
    """The design without this side's redundant columns, and the plan: a line for every column."""
    worth = np.array([0.0 if c.evidence is None else c.evidence.iv for c in design.columns])
    out: dict[int, str] = {}
    if glm.select.correlation < 1 or glm.select.vif:
        out = redundant(design.standardised(table), worth, glm.select, design.names)
    plan: list[Summary] = [
        {"column": column.name, "kept": j not in out, **({"reason": out[j]} if j in out else {})}
        for j, column in enumerate(design.columns)
    ]
    kept = tuple(column for j, column in enumerate(design.columns) if j not in out)
    return replace(design, columns=kept), plan


def _without(share: LinearShare, dropped: Mapping[int, float | None], plan: list[Summary]) -> LinearShare:
    """A share without columns that backward elimination dropped; the plan says so (with p-values, where known)."""
    lines = {line["column"]: line for line in plan}
    for j, p in dropped.items():
        name = share.design.columns[j].name
        if name not in lines:
            plan.append(lines.setdefault(name, {"column": name}))
        lines[name] |= {"kept": False, "reason": "p-value" if p is None else f"p-value {p:.3g}"}
    kept = [j for j in range(len(share.design.columns)) if j not in dropped]
    return replace(
        share,
        design=replace(share.design, columns=tuple(share.design.columns[j] for j in kept)),
        coefficients=share.coefficients[kept],
        errors=None if share.errors is None else share.errors[kept],
    )


def _sealed_active(
    channel: Channel, contract: Contract, data: regression.ActiveData, design: Design
) -> tuple[LinearShare, Summary]:
    """A fit without partial scores: no joint figures, errors or deviance, as nobody has the joint score of a row."""
    glm, rows = settings_of(contract), data.rows
    found = sealed.fit_active(channel, contract, data)
    share = LinearShare("active", found.model_id, design, found.coefficients[1:], float(found.coefficients[0]))
    return share, _sealed_facts(found.converged, found.changes, len(found.changes), len(rows.columns) + 1) | {
        "flooding_distance": sealed.flooding(contract, len(rows.columns), found.passive_columns, data.universe),
        "model_id": found.model_id.hex(),
        "coefficients": share.table(),
        "alone": linear_figures(glm, rows.label, found.alone.eta),
    }


def _sealed_passive(
    channel: Channel, contract: Contract, data: regression.PassiveData, design: Design
) -> tuple[LinearShare, Summary]:
    glm = settings_of(contract)
    if not glm.l2:
        regression.check_independent(data.columns, data.names)
    result, beyond = sealed.fit_passive(channel, contract, data)
    share = LinearShare("passive", result.model_id, design, result.coefficients)
    said = [f"{beyond:.2%} of rows have a partial score beyond the reach of {glm.reach:g}"] if beyond > 1e-3 else []
    return share, _sealed_facts(result.converged, result.changes, result.steps, len(data.columns)) | {
        "model_id": result.model_id.hex(),
        "coefficients": share.table(),
        "warnings": said,
    }


def _sealed_facts(converged: bool, changes: list[float], rounds: int, columns: int) -> Summary:
    """``gradient_rank`` bounds the linear functions of the residuals that this side learned."""
    return {
        "family": "logistic",
        "disclosure": "none",
        "converged": converged,
        "steps": rounds,
        "gradient_rank_at_most": rounds * columns,
        **({"step_sizes_in_standard_errors": changes} if changes else {}),
    }


def own_evidence(table: PartyTable, side: Side, glm: Glm) -> tuple[tuple[Evidence, ...], list[Groups]]:
    """Weights of evidence of a table that has the label itself, and the groups they come from."""
    found, groups = [], []
    label = np.asarray(table.label)
    for codes in fit_codes(table, side.features, glm):
        bins = codes.of(table)
        rows = np.bincount(bins, minlength=codes.count)
        events = np.bincount(bins, label, codes.count).astype(np.int64)
        group = merge(events, rows, codes.bins.regular, codes.bins.kind == "number", glm)
        found.append(Evidence(codes, group.group, group.woe, group.rows, group.iv))
        groups.append(group)
    return tuple(found), groups


def bins_of(table: PartyTable, fitted: tuple[Codes, ...], least: int) -> woe.Bins:
    """The passive side's bins as the screening takes them. Raises OverBudget for one of too few own rows."""
    bins = woe.Bins(
        np.stack([codes.of(table) for codes in fitted]),
        np.array([codes.count for codes in fitted], np.int64),
        np.array([codes.bins.regular for codes in fitted], np.int64),
        np.array([codes.bins.kind == "number" for codes in fitted], np.bool_),
        tuple(codes.bins.name for codes in fitted),
    )
    _check_sizes(bins, least)
    return bins


def evidence_told(codes: Codes, own: NDArray[np.uint8], told: woe.Told) -> Evidence:
    """Weights of evidence of a feature whose own rows are in bins ``own``, by a plan that the active side sent."""
    group, values, iv = told
    return Evidence(codes, group, values, np.bincount(group[own], minlength=len(values)), iv)


def _peers_evidence(channel: Channel, contract: Contract, table: PartyTable, glm: Glm) -> tuple[Evidence, ...]:
    fitted = fit_codes(table, contract.passive.features, glm)
    bins = bins_of(table, fitted, contract.budget.least_rows)
    told = woe.evidence_passive(channel, contract, bins)
    return tuple(
        evidence_told(codes, own, plans[0]) for codes, own, plans in zip(fitted, bins.codes, told, strict=True)
    )


def _check_sizes(bins: woe.Bins, least: int) -> None:
    """Raises OverBudget for a bin of fewer own rows than the contract's floor: its counts would be told."""
    for name, codes, size in zip(bins.names, bins.codes, bins.sizes, strict=True):
        rows = np.bincount(codes, minlength=int(size))
        few = np.flatnonzero((rows > 0) & (rows < least))
        if len(few):
            raise OverBudget(
                f"column {name!r} has a bin of {rows[few[0]]} row(s), under the {least} of [budget] least_rows: agree "
                "fewer bins, or group its rare values"
            )


def _unit_design(names: tuple[str, ...]) -> Design:
    return Design(tuple(Column(name, name, "number") for name in names))


def _ivs(names: tuple[str, ...], groups: list[Groups]) -> dict[str, float]:
    return {name: group.iv for name, group in zip(names, groups, strict=True)}


def _ranked(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def one_sided(features: list[tuple[str, Groups]]) -> list[str]:
    """Warnings about bins without events, or with events only."""
    return [
        f"{len(group.one_sided)} bin(s) of {name!r} have no event, or events only: their WOE counts half a row more"
        for name, group in features
        if group.one_sided
    ]


def _progress(converged: bool, steps: int, changes: list[float], glm: Glm, passive_columns: int) -> Summary:
    told = steps - 1  # no partial scores are asked for at the start and after the last step
    return {
        "partial_scores_told": f"{told} a row, of {passive_columns} passive columns"
        + (": enough to solve for them" if told >= passive_columns else ""),
        "family": glm.family,
        "converged": converged,
        "steps": steps,
        **({"step_sizes_in_standard_errors": changes} if changes else {}),
    }


def _unconverged(converged: bool, glm: Glm) -> list[str]:
    return [] if converged else [f"not converged after {glm.max_steps} steps: agree more, or an l2 penalty"]


# --- predict -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """The active side's rows to score.

    Attributes:
        table: encoded (:meth:`fedlearn.models.linear.LinearShare.encode`), aligned or not.
        offset: float64 (n,), of its rows; None without.
        order: int64, own row at each place of the shared order, -1 for none.
        rows: int64 (m,), the aligned rows, ascending.
    """

    table: PartyTable
    offset: F64 | None
    order: I64
    rows: I64


def predict_active(
    channel: Channel, contract: Contract, share: LinearShare, scored: Scored, pieces: Pieces, path: Path
) -> Summary:
    """Score aligned rows and write them to ``path``."""
    card, table, offset = contract.scorecard, scored.table, scored.offset
    own = None if card is None else Points.of(share, card, contract.active)
    codes = codes_of(card, contract.passive) if card is not None else ()
    due = reasons_due(card, codes) if card is not None else 0
    kinds: dict[str, np.dtype[Any]] = {"eta": np.dtype(np.float64)}
    if own is not None:
        most = min(own.settings.reasons, reasons_due(own.settings, own.named) + due)
        kinds |= {f"reason_{k + 1}": np.dtype(np.uint16) for k in range(most)}

    def one(rows: I64, place: I64, length: int) -> Found:
        theirs, reasons = linear.score_active(channel, length, due, len(codes))
        eta = table.encoded["eta"][rows] + theirs[place] + (0.0 if offset is None else offset[rows])
        told = linear.Reasons(reasons.code[place], reasons.lost[place])
        return {"eta": eta, **({} if own is None else _reasons(own, _groups(share, table, rows), told, len(codes)))}

    found = run_active(channel, pieces, scored.order, table.rows, kinds, one)
    names = np.array([] if own is None else [*own.named, *codes, ""])

    def columns(part: slice) -> dict[str, Any]:
        rows = scored.rows[part]
        written = _scores(contract, found["eta"][rows])
        written |= {name: names[found[name][rows]].tolist() for name in kinds if name != "eta"}
        return {"id": table.ids.take(pa.array(rows))} | written

    write_rows(path, len(scored.rows), columns)
    facts: Summary = {"pieces": pieces.count, "pieces_from_before": pieces.done, "rows_scored": len(scored.rows)}
    if share.tenths is not None:
        facts["score_stability_index"] = share.tenths.stability(share.tenths.count(found["eta"][scored.rows]))
    return facts | _stability(share, table, scored.rows)


def predict_passive(
    channel: Channel, contract: Contract, share: LinearShare, table: PartyTable, order: I64, pieces: Pieces
) -> Summary:
    """Serve the scoring of aligned rows; ``table`` is encoded, ``order`` int64 (n,) its rows in the shared order."""
    points = None if contract.scorecard is None else Points.of(share, contract.scorecard, contract.passive)

    def one(rows: I64) -> None:
        none = np.empty((len(rows), 0))
        reasons = linear.Reasons(none.astype(np.uint8), none.astype(np.float32))
        if points is not None:
            reasons = linear.Reasons(*points.reasons(points.of_groups(_groups(share, table, rows))))
        linear.score_passive(channel, table.encoded["eta"][rows], reasons)

    before = run_passive(channel, pieces, order, one)
    return {"pieces": pieces.count, "pieces_from_before": before} | _stability(share, table, order)


def _groups(share: LinearShare, table: PartyTable, rows: I64) -> list[NDArray[np.uint8]]:
    """The groups of some rows of an encoded table, uint8 (m,) for each column, all on weights of evidence."""
    return [table.encoded[f"group {column.name}"][rows] for column in share.design.columns]


def _scores(contract: Contract, eta: F64) -> dict[str, Any]:
    """Columns of a score file for linear predictors float64 (m,)."""
    glm, card = settings_of(contract), contract.scorecard
    mean = learner.family_of(glm).mean(eta)
    columns: dict[str, Any] = (
        {"probability": mean, "log_odds": eta} if glm.family == "logistic" else {"prediction": mean}
    )
    if card is not None:
        columns["score"] = total(card, eta)
    return columns


def _stability(share: LinearShare, table: PartyTable, rows: I64) -> Summary:
    """Of some rows of an encoded table: each own column's stability index against the training rows, and warnings.

    There is an index of columns on weights of evidence alone.
    """
    found = {}
    for column in share.design.columns:
        if column.evidence is not None:
            group = table.encoded[f"group {column.name}"][rows]
            found[column.name] = stability(
                column.evidence.rows, np.bincount(group, minlength=len(column.evidence.rows))
            )
    return ({"stability_index": found} if found else {}) | {"warnings": unseen_in(table, rows)}


def _reasons(own: Points, groups: list[NDArray[np.uint8]], theirs: linear.Reasons, codes: int) -> Found:
    """reason_1, reason_2 and so on, uint16 (m,): codes of both sides that cost each row most, the dearest first.

    They count own codes first, then the peer's ``codes``, then one for none.
    """
    mine, lost = own.reasons(own.of_groups(groups))
    none = len(own.named) + codes
    sides = [np.where(code == 255, none, code.astype(np.uint16) + first)
             for code, first in ((mine, 0), (theirs.code, len(own.named)))]  # fmt: skip
    code, amount = np.concatenate(sides, axis=1), np.concatenate([lost, theirs.lost], axis=1)
    order = np.argsort(-amount, axis=1, kind="stable")[:, : own.settings.reasons]
    chosen = np.take_along_axis(code, order, axis=1).astype(np.uint16)
    return {f"reason_{k + 1}": chosen[:, k] for k in range(chosen.shape[1])}


# --- files -------------------------------------------------------------------------------------------


def _write_fitted(path: Path, table: PartyTable, glm: Glm, joint: F64, alone: F64) -> None:
    """The training rows' predictions by the joint model and by this side's own, for the report."""
    columns: dict[str, Any] = {"id": table.ids.to_pylist(), "label": table.label}
    for suffix, eta in (("joint", joint), ("alone", alone)):
        mean = learner.family_of(glm).mean(eta)
        own = {"probability": mean, "log_odds": eta} if glm.family == "logistic" else {"prediction": mean}
        columns |= {f"{name}_{suffix}": values for name, values in own.items()}
    write_table(path, columns)


def save(share: LinearShare, folder: Path, contract: Contract, party: str, role: str, plan: list[Summary]) -> Summary:
    """Write the share, the plan of its columns and, with a scorecard, this side's points and their export."""
    shares.save(share, folder, contract, party)
    (folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    if contract.scorecard is None:
        return {}
    points = Points.of(share, contract.scorecard, contract.side(role))
    export = points.export() | {"party": party, "contract": contract.name, "model_id": share.model_id.hex()}
    (folder / "scorecard.json").write_text(json.dumps(export, indent=1) + "\n", encoding="utf-8")
    (folder / "scorecard.pmml").write_text(pmml(points, f"{contract.name}, {party}"), encoding="utf-8")
    return {"points": points.table(), "scaling": export["scaling"]}
