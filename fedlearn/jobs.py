"""What two parties do together: check, align, statistics, train, predict. Each job is one function that both sides run.

A job has three parts. :func:`prepare` checks everything on this side before anybody connects. The job function talks
through a channel (gRPC, or memory in :func:`simulate_both`) and writes its result beside its final place. Only when
both sides have parted with the same ledger is the result moved there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import feather

from fedlearn import jobs_glm, jobs_kmeans, jobs_score, samples
from fedlearn import prepared as tables
from fedlearn.channel import Channel, Limits, simulate
from fedlearn.channel.channel import Progress
from fedlearn.contract import Contract, Kind, PartyFile, Side, load_contract
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.lwe import Plan
from fedlearn.crypto.privacy import epsilon_of
from fedlearn.data import Binning, FeatureBins, PartyTable, fit_binning, load_table, periods
from fedlearn.data.table import Encode
from fedlearn.errors import BadConfig, BadLabel, NotInContract, OutputExists, WrongCheckpoint, WrongModel
from fedlearn.keys import check_own, is_signed, key_fingerprint, sign
from fedlearn.learner import booster
from fedlearn.learner.booster import Rows
from fedlearn.learner.grower import Features
from fedlearn.models import calibration, checkpoint, cluster, linear, reference
from fedlearn.models import plan as plans
from fedlearn.models import share as shares
from fedlearn.models.calibration import Calibration
from fedlearn.protocols import (
    align,
    align_cached,
    boost,
    disclose,
    handshake,
    kmeans,
    matvec,
    regression,
    replay,
    screen,
    statistics,
)
from fedlearn.protocols.align import Alignment
from fedlearn.protocols.resume import Start
from fedlearn.report import page

Job = Literal["check", "align", "statistics", "train", "predict"]
Summary = dict[str, Any]
F64 = NDArray[np.float64]
OnProgress = Callable[[Progress], None]

_SEED_BYTES = 32
_SIGNED = b"fedlearn/1 alignment\n"


@dataclass(frozen=True)
class Own:
    """One side, checked and ready to meet the other.

    Attributes:
        party: its name.
        role: ``active`` or ``passive`` under the contract.
        contract: what both agreed to.
        table: its own rows; for ``predict``, encoded for its share.
        folder: where the job's result goes; nothing is there yet.
        share: its share of the model to score with (``predict`` only).
        on_file: an alignment made earlier of exactly these IDs under exactly this contract, if there is one.
        key: PEM file of its private key, which signs the alignment; None where it has none (simulations).
        plan: of the encrypted product if all its rows were aligned (``check`` and ``train`` of trees with ``lwe``).
        earlier: its share of the model that training goes on from (warm start), if it does.
        kept: the checkpoint that training resumes from, if it does.
        offset: float64 (n,), of the linear predictor of a regression; None without.
        warnings: what was odd about the table, though no reason to stop.
        tables: with method ``cached``, the passive side's table prepared ahead, or where the active side keeps it.
        period: int8 (n,), of the active side's rows (:mod:`fedlearn.data.periods`), for ``statistics``, and for
            ``check`` and ``train`` where the contract has [out_of_time]; None without.
        plan_id: of the plan of columns that training goes by; ``contract`` then has these columns only.
        form: ``csv`` or ``parquet``: how scores are written.
    """

    party: str
    role: str
    contract: Contract
    table: PartyTable
    folder: Path
    share: shares.Share | linear.LinearShare | cluster.ClusterShare | None = None
    on_file: Alignment | None = None
    plan: Plan | None = None
    earlier: shares.Share | None = None
    kept: checkpoint.Checkpoint | None = None
    offset: F64 | None = None
    warnings: tuple[str, ...] = ()
    key: Path | None = None
    tables: align_cached.Prepared | align_cached.Shelf | None = None
    period: NDArray[np.int8] | None = None
    plan_id: bytes = b""
    form: str = "csv"

    @property
    def model_id(self) -> bytes:
        """The model that both shares must form, or the plan; empty unless the job scores or goes on from either."""
        share = self.share or self.earlier
        return share.model_id if share else self.plan_id


def prepare(
    party: PartyFile,
    job: Job,
    *,
    model: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    earlier: Path | None = None,
    plan: Path | None = None,
    form: str = "csv",
) -> Own:
    """Check this side's contract, data, budget and output before anything is sent.

    Args:
        party: the party file.
        job: what is to be done.
        model: for ``predict``, the folder of this side's share; ``<output>/model`` by default.
        out: where the result goes; ``<output>/<name of the result>`` by default.
        resume: for ``train`` (of trees) and ``predict`` (not of k-means), go on from the checkpoint beside ``out``.
        earlier: for ``train``, the folder of this side's share of a model to go on from (warm start).
        plan: for ``train``, the folder of ``statistics`` whose plan of columns to keep to.
        form: for ``predict``, ``csv`` or ``parquet``.

    Raises:
        OwnMistake, Refused: with the file, field or column.
    """
    contract = load_contract(party.contract)
    contract.check_not_expired()
    role = contract.role_of(party.party)
    results = {"check": "check", "align": "alignment", "statistics": "statistics"}
    results |= {"train": "model", "predict": "predictions"}
    folder = out or party.output.folder / results[job]
    if job != "check":
        shares.refuse_existing(folder)
        _check_writable(folder)
    if job in ("statistics", "train", "predict") and contract.align.mode == "cardinality":
        raise NotInContract(
            f"contract {contract.name!r} aligns by cardinality, which gives a count and no rows to {job} on"
        )
    if job == "statistics":
        return _prepare_statistics(party, contract, role, folder)
    if plan is not None:
        return _prepare_planned(party, contract, role, plan, out, resume, earlier)
    return replace(_prepare_job(party, contract, job, role, folder, model, resume, earlier), form=form)


def _prepare_statistics(party: PartyFile, contract: Contract, role: str, folder: Path) -> Own:
    from fedlearn import jobs_statistics

    if contract.statistics is None:
        raise NotInContract(f"contract {contract.name!r} has no [statistics], so nothing may be told")
    table, period = jobs_statistics.load(party.data, contract, role)
    jobs_statistics.check_budget(contract, table)
    return replace(_with_alignment(party, contract, role, table, folder), period=period)


def _prepare_planned(
    party: PartyFile, contract: Contract, role: str, plan: Path, out: Path | None, resume: bool, earlier: Path | None
) -> Own:
    """Training on the columns of a plan, which both sides must hold."""
    if earlier is not None:
        raise NotInContract("training goes on from an earlier model with that model's columns: --plan does not apply")
    kept = plans.load(plan, contract, party.party)
    folder = out or party.output.folder / "model"
    return _prepare_job(party, kept.narrowed(contract, role), "train", role, folder, None, resume, None, kept.plan_id)


def _with_alignment(party: PartyFile, contract: Contract, role: str, table: PartyTable, folder: Path) -> Own:
    """A side with its table, and the alignment on file if there is one."""
    signing = party.tls.key if party.tls.key.exists() else None
    on_file = _alignment_on_file(party.output.folder / "alignment", contract, table, signing)
    shelved = _tables(party, contract, role, table)
    return Own(party.party, role, contract, table, folder, on_file=on_file, key=signing, tables=shelved)


def _prepare_job(
    party: PartyFile, contract: Contract, job: Job, role: str, folder: Path, model: Path | None, resume: bool,
    earlier: Path | None, plan_id: bytes = b"",
) -> Own:  # fmt: skip
    if contract.glm is not None or contract.kmeans is not None:
        if (resume and job != "predict") or earlier is not None:
            what = "a regression" if contract.glm else "k-means"
            raise NotInContract(f"{what} takes a few steps: it cannot be resumed or go on from an earlier model")
        by_steps = _prepare_glm if contract.glm else _prepare_kmeans
        own = replace(by_steps(party, contract, job, role, folder, model), plan_id=plan_id)
        return _with_scoring_on_file(own, resume) if job == "predict" else own
    share = None
    if job == "predict":
        share = shares.load(model or party.output.folder / "model", contract, party.party)
        if isinstance(share, shares.ActiveShare) != (role == "active"):
            raise WrongModel(f"the share of {party.party!r} is not that of the {role} side")
    table, period = _load(party, contract, role, job, None if share is None else share.binning.encode)
    plan = None
    if job in ("check", "train"):
        plan = budget_plan(contract, role, table)
    own = replace(
        _with_alignment(party, contract, role, table, folder), share=share, plan=plan, plan_id=plan_id, period=period,
        warnings=_period_warnings(contract, period),
    )  # fmt: skip
    if job != "train":
        return _with_scoring_on_file(own, resume) if job == "predict" else own
    if earlier is not None:
        own = replace(own, earlier=_earlier_share(earlier, contract, party.party, role))
    if resume:
        _check_resumable(contract)
        kept = checkpoint.load(_checkpoint_folder(own), _binding(own))
        return replace(own, kept=kept, on_file=kept.alignment)
    if checkpoint.exists(_checkpoint_folder(own)):
        raise OutputExists(
            f"{_checkpoint_folder(own)} holds training that has not ended: use --resume on both sides, or remove it"
        )
    return own


def _load(
    party: PartyFile, contract: Contract, role: str, job: Job, encode: Encode | None
) -> tuple[PartyTable, NDArray[np.int8] | None]:
    """This side's table; and on the active side, where the contract has [out_of_time], each row's period."""
    judges = role == "active" and job in ("check", "train")
    later = contract.out_of_time if judges else None
    features: dict[str, Kind] = dict(contract.side(role).features)
    if later is not None:
        features = periods.with_period(features, later.column, later.first)
    key, also = contract.align.key, contract.align.also
    label = contract.label if judges else None
    table = load_table(party.data, key, features, label, contract.budget.rows, contract.target, also, encode)
    return (table, None) if later is None else periods.split_off(table, later.column, later.first)


def _period_warnings(contract: Contract, period: NDArray[np.int8] | None) -> tuple[str, ...]:
    later, found = contract.out_of_time, []
    if later is None or period is None:
        return ()
    if not np.any(period == periods.LATER):
        found.append(f"no row is from {later.first} on by {later.column}: nothing is judged out of time")
    if unknown := int(np.sum(period == periods.NEITHER)):
        found.append(f"{unknown} rows have no {later.column}: they neither train nor are judged")
    return tuple(found)


def _check_resumable(contract: Contract) -> None:
    """Raises NotInContract where a round that broke off must not be answered again."""
    if contract.screen is not None:
        raise NotInContract(
            "training with [screen] cannot be resumed: the screening would be answered, and its leakage spent, again"
        )
    if contract.privacy is not None:
        raise NotInContract(
            "training under [privacy] cannot be resumed: answers given again would spend its epsilon again; train anew"
        )


def _with_scoring_on_file(own: Own, resume: bool) -> Own:
    """With the alignment of a batch that broke off. Raises OutputExists when there is one and nobody asked for it."""
    folder = _checkpoint_folder(own)
    if not folder.exists():
        return own
    if not resume:
        raise OutputExists(f"{folder} holds scoring that has not ended: use --resume on both sides, or remove it")
    before = _alignment_on_file(folder, own.contract, own.table, own.key)
    return own if before is None else replace(own, on_file=before)


def _earlier_share(folder: Path, contract: Contract, party: str, role: str) -> shares.Share:
    """This side's share of a model to go on from. Raises WrongModel, NotInContract when the contract has no room."""
    if contract.screen is not None:
        raise NotInContract("training cannot go on from an earlier model with [screen], which may keep other columns")
    if contract.boost.forest == "random" or contract.boost.folds:
        raise NotInContract(
            "training cannot go on from an earlier model with [boost] folds (whose trees are not kept) "
            "or with a random forest (which has one round)"
        )
    share = shares.load(folder, contract, party, to_go_on=True)
    if isinstance(share, shares.ActiveShare) != (role == "active"):
        raise WrongModel(f"the share of {party!r} in {folder} is not that of the {role} side")
    if isinstance(share, shares.PassiveShare) and len(share.disguise) != _SEED_BYTES:
        raise WrongModel(f"the share in {folder} was not made for training to go on from")
    if isinstance(share, shares.ActiveShare):
        rounds = share.forest.trees // contract.outputs
        if not 0 < rounds < contract.boost.rounds or len(share.forest.base) != contract.outputs:
            raise WrongModel(
                f"the model in {folder} has {rounds} rounds and cannot grow to the contract's {contract.boost.rounds}"
            )
        if share.passive_splits != len(share.forest.passive_splits):
            raise WrongModel(f"the share in {folder} is damaged: it does not use every split of the pair")
        deepest = int(replay.depths(share.forest).max())
        if deepest > contract.boost.depth:  # the passive side lets a row choose once a level, by the contract
            raise WrongModel(
                f"the trees of the model in {folder} have depth {deepest}, the contract allows {contract.boost.depth}"
            )
    return share


def _checkpoint_folder(own: Own) -> Path:
    return own.folder.with_name(f"{own.folder.name}.checkpoint")


def _binding(own: Own) -> dict[str, str]:
    rows = own.table.fingerprint()
    if own.period is not None:
        rows = hashlib.sha256(rows + own.period.tobytes()).digest()
    return checkpoint.bind(own.contract.hash(), rows, own.party, own.role, own.model_id)


def _prepare_glm(party: PartyFile, contract: Contract, job: Job, role: str, folder: Path, model: Path | None) -> Own:
    share = None
    if job == "predict":
        share = linear.load(model or party.output.folder / "model", contract, party.party)
        if share.role != role:
            raise WrongModel(f"the share of {party.party!r} is not that of the {role} side")
    loaded = jobs_glm.load(party.data, contract, role, job in ("check", "train"), share)
    if job in ("check", "train"):
        jobs_glm.check_budget(contract, loaded.table)
    own = _with_alignment(party, contract, role, loaded.table, folder)
    said = (*loaded.warnings, *_period_warnings(contract, loaded.period))
    return replace(own, share=share, offset=loaded.offset, warnings=said, period=loaded.period)


def _prepare_kmeans(party: PartyFile, contract: Contract, job: Job, role: str, folder: Path, model: Path | None) -> Own:
    share = None
    if job == "predict":
        share = cluster.load(model or party.output.folder / "model", contract, party.party)
        if share.role != role:
            raise WrongModel(f"the share of {party.party!r} is not that of the {role} side")
    features, key, also = contract.side(role).features, contract.align.key, contract.align.also
    encode = None if share is None else partial(jobs_kmeans.encode, share)
    table = load_table(party.data, key, features, None, contract.budget.rows, also=also, encode=encode)
    if job in ("check", "train"):
        jobs_kmeans.check_budget(contract, table)
    return replace(_with_alignment(party, contract, role, table, folder), share=share)


def _check_writable(folder: Path) -> None:
    """Whether a folder can be made there: better to know now than after hours of training. Raises BadConfig."""
    nearest = next(parent for parent in folder.absolute().parents if os.path.exists(parent))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise BadConfig(f"cannot write {folder}: {nearest} is not a folder that this user may write to")


def budget_plan(contract: Contract, role: str, table: PartyTable) -> Plan | None:
    """The plan that training would use at most: all own rows aligned, all passive bins used.

    Raises:
        OverBudget: no plan fits, so training would be refused.
    """
    settings, terms = contract.boost, boost.terms(contract)
    if contract.screen is not None:
        screen.check_budget(contract, len(contract.passive.features), table.rows)
        sizes = np.full(min(contract.screen.keep, len(contract.passive.features)), settings.bins + 1)
        shape = matvec.Shape.indicator(sizes, table.rows)
    elif role == "passive":
        sizes = fit_binning(table, settings.bins, contract.passive.features).offsets
        shape = matvec.Shape.indicator(np.diff(sizes), table.rows)
    else:
        sizes = np.full(len(contract.passive.features), settings.bins + 1)
        shape = matvec.Shape.indicator(sizes, table.rows)
    return shape.plan(terms) if terms.backend == "lwe" else None


@contextmanager
def connect(party: PartyFile, contract: Contract, on_progress: OnProgress | None = None) -> Iterator[Channel]:
    """A channel to the peer over gRPC with mutual TLS; an error inside tells the peer and ends it.

    Raises:
        BadCertificate: before anything is sent.
        PeerTrouble: nobody there, or somebody else.
    """
    from fedlearn.channel.grpc_link import dial, listen

    check_own(party.tls, party.party)
    network, peer = party.network, contract.peer_of(party.party)
    if network.listen is not None:
        link = listen(network.listen, party.tls, party.party, peer, network.connect_seconds)
    else:
        link = dial(str(network.connect), party.tls, party.party, peer, network.connect_seconds)
    limits = Limits(silence=network.silence_seconds, step=network.step_seconds)
    with Channel(link, me=party.party, peer=peer, limits=limits, on_progress=on_progress) as channel:
        yield channel


def run(job: Job, channel: Channel, own: Own) -> Summary:
    """Run a job over a channel; both sides call this with the same ``job``.

    Returns:
        What this side may tell its operator: rows, seconds and bytes by phase, ledger, figures, where files are.
    """
    command = job + " --from" * (own.earlier is not None) + " --plan" * bool(own.plan_id)
    command += " --resume" * (own.kept is not None)
    handshake.greet(channel, own.contract, role=own.role, job=command, model_id=own.model_id)
    play = {"check": _check, "align": _align, "statistics": _statistics, "train": _train, "predict": _predict}
    return play[job](channel, own)


def simulate_both(
    job: Job, active: Own, passive: Own, on_progress: tuple[OnProgress | None, OnProgress | None] = (None, None)
) -> tuple[Summary, Summary]:
    """Both sides of a job in one process; every message is still serialised, checked and counted."""

    def play(own: Own, progress: OnProgress | None) -> Callable[[Channel], Summary]:
        def role(channel: Channel) -> Summary:
            channel.on_progress = progress
            return run(job, channel, own)

        return role

    names = (active.party, passive.party)
    return simulate(play(active, on_progress[0]), play(passive, on_progress[1]), names=names)


# --- the jobs ----------------------------------------------------------------------------------------


def _check(channel: Channel, own: Own) -> Summary:
    """Greet, compare sizes, part; nothing is written and no row is touched."""
    from fedlearn.jobs_statistics import would_tell

    listed = align.length(own.table.rows, own.contract, own.role)  # as in alignment: padded where the contract pads
    rows, features = handshake.exchange_readiness(channel, listed, len(own.table.columns))
    handshake.part(channel)
    plan = own.plan
    if own.contract.glm is not None:
        facts = jobs_glm.check_budget(own.contract, own.table) | would_tell(own.contract)
    elif own.contract.kmeans is not None:
        facts = jobs_kmeans.check_budget(own.contract, own.table)
    if own.contract.glm is not None or own.contract.kmeans is not None:
        summary = _summary(channel, own, "check") | {"folder": "nothing was written"} | facts
        return summary | {"peer_rows": rows, "peer_features": features, "would_write_to": str(own.folder.parent)}
    vectors = boost.most_vectors(own.contract)
    most_trees = boost.most_trees(own.contract)
    settings = own.contract.boost
    summary = _summary(channel, own, "check")
    summary["folder"] = "nothing was written"
    return summary | {
        "would_align": f"{own.contract.align.mode}, by {own.contract.align.method}",
        "would_train": f"{most_trees} trees of depth {settings.depth} in {settings.rounds} rounds and "
        f"{settings.folds} folds, {settings.routing} routing, {own.contract.encryption.backend} back end",
        "would_write_to": str(own.folder.parent),
        "peer_rows": rows,
        "peer_features": features,
        "most_vectors": vectors,
        "query_megabytes": plan.query_bytes * vectors / 1e6 if plan else None,
        "hint_megabytes": plan.hint_bytes / 1e6 if plan else None,
        "kl_nats_at_most": plan.kl_total if plan else 0.0,
        "privacy": _privacy_told(own.contract),
        **would_tell(own.contract),
    }


def _align(channel: Channel, own: Own) -> Summary:
    """Private set intersection; the result is kept for later runs."""
    alignment = _aligned(channel, own)
    with shares.staged(own.folder) as folder:
        save_alignment(folder, alignment, own)
        summary = _summary(channel, own, "align") | _alignment_facts(alignment, own.contract)
        handshake.part(channel)
        _write_run(folder, summary)
    return summary


def _statistics(channel: Channel, own: Own) -> Summary:
    """Align, then tell each other what the contract allows; both sides keep their half of the plan or neither does."""
    from fedlearn import jobs_statistics

    alignment = _aligned(channel, own)
    with shares.staged(own.folder) as folder:
        if own.role == "active":
            order, position = own_order(alignment)
            period = None if own.period is None else own.period[order]
            table = own.table.take(order)
            facts = jobs_statistics.run_active(channel, own.contract, table, period, position, alignment.size, folder)
        else:
            facts = jobs_statistics.run_passive(channel, own.contract, own.table.take(alignment.rows), folder)
        statistics.exchange_saved(channel)
        summary = _summary(channel, own, "statistics") | _alignment_facts(alignment, own.contract) | facts
        handshake.part(channel)
        _write_run(folder, summary)
    return summary


def _train(channel: Channel, own: Own) -> Summary:
    """Align, then boost or regress; both sides keep their share or neither does. Boosting can be resumed."""
    alignment = _aligned(channel, own)
    keeper = own.kept or checkpoint.Checkpoint(_checkpoint_folder(own), _binding(own), channel.session, alignment)
    if keeper.alignment.id != alignment.id:
        raise WrongCheckpoint(f"the checkpoint of the peer {channel.peer!r} is of another run than this side's")
    with shares.staged(own.folder) as folder:
        if own.contract.glm is not None:
            facts = _train_glm(channel, own, alignment, folder)
            regression.exchange_saved(channel)
        elif own.contract.kmeans is not None:
            facts = _train_kmeans(channel, own, alignment, folder)
            kmeans.exchange_saved(channel)
        else:
            train = _train_active if own.role == "active" else _train_passive
            facts = train(channel, own, alignment, keeper, folder)
            boost.exchange_saved(channel)
        summary = _summary(channel, own, "train") | _alignment_facts(alignment, own.contract) | facts
        handshake.part(channel)
        _write_run(folder, summary)
    keeper.remove()
    page.write(own.folder, own.contract, own.party)  # the model is safe by now, whatever becomes of its report
    return summary


def _start_facts(own: Own, start: Start) -> Summary:
    """What a run went on from; alike on both sides. ``ledger`` and ``kl_nats`` then are those of all attempts."""
    facts: Summary = {}
    if own.earlier is not None:
        facts["goes_on_from_model"] = own.earlier.model_id.hex()
    if start.point is not None:
        facts["resumed_after_round"] = start.round
        facts["used_by_earlier_attempts"] = vars(start.spent).copy()
    return facts


def _kept_for(own: Own, keeper: checkpoint.Checkpoint) -> checkpoint.Checkpoint | None:
    """Where training is kept round by round; not under [privacy] or [screen], which allow no answer twice."""
    return keeper if own.contract.privacy is None and own.contract.screen is None else None


def _train_glm(channel: Channel, own: Own, alignment: Alignment, folder: Path) -> Summary:
    contract = own.contract
    if own.role == "active":
        order, position = own_order(alignment)
        offset = None if own.offset is None else own.offset[order]
        period = None if own.period is None else own.period[order]
        share, facts = jobs_glm.train_active(
            channel, contract, own.table.take(order), offset, position, alignment.size, folder, period
        )
    else:
        share, facts = jobs_glm.train_passive(channel, contract, own.table.take(alignment.rows))
    facts["warnings"] = [*own.warnings, *facts["warnings"]]
    return facts | jobs_glm.save(share, folder, contract, own.party, own.role, facts["selection"])


def _train_kmeans(channel: Channel, own: Own, alignment: Alignment, folder: Path) -> Summary:
    if own.role == "passive":
        return jobs_kmeans.train_passive(channel, own.contract, own.table.take(alignment.rows), folder)
    order, position = own_order(alignment)
    return jobs_kmeans.train_active(channel, own.contract, own.table.take(order), position, alignment.size, folder)


def _train_active(
    channel: Channel, own: Own, alignment: Alignment, keeper: checkpoint.Checkpoint, folder: Path
) -> Summary:
    contract, settings = own.contract, own.contract.boost
    order, position = own_order(alignment)
    table = own.table.take(order)
    if table.label is None:
        raise BadLabel(f"the table of {own.party!r} was read without its label")
    earlier = own.earlier if isinstance(own.earlier, shares.ActiveShare) else None
    period = None if own.period is None else own.period[order]
    later = None if period is None else period == periods.LATER
    trains = None if period is None else period == periods.EARLIER
    fitted = table if trains is None else table.take(np.flatnonzero(trains))
    binning = earlier.binning if earlier else fit_binning(fitted, settings.bins, contract.active.features)
    rows = replace(rows_of(table, binning, contract), trains=trains)
    data = boost.ActiveData(rows, position, alignment.size)
    kept = None
    if contract.screen is not None:
        with channel.phase("screen"):
            events, places = label_events(contract, rows)[:, rows.training], position[rows.training]
            kept = screen.screen_active(channel, contract, events, places, alignment.size)
        data = replace(data, ordered=kept.ordered)
    result = boost.train_active(
        channel, contract, data, checkpoint=_kept_for(own, keeper), earlier=earlier.forest if earlier else None
    )
    forest = result.fit.forest
    disclosed = None
    if contract.disclosure.model:
        told = disclose.receive(channel, contract, forest, result.features, result.names)
        disclosed = share_of(told, contract, result.model_id)
    curve = calibrated(contract, rows, result.held_out)
    share = shares.ActiveShare(
        result.model_id, binning, forest, len(forest.passive_splits), result.names, disclosed, curve
    )
    shares.save(share, folder, contract, own.party)
    reference.save(folder, binning, rows.bins[:, rows.training], result.fit.margins[0][rows.training])
    opaque = tuple(f"{contract.passive.name}#{k}" for k in range(len(result.features.sizes)))
    facts: Summary = {
        **_start_facts(own, result.start),
        **({} if kept is None else {"screened": {"columns_kept": len(kept.iv), "least_iv": min(kept.iv)}}),
        "model_id": result.model_id.hex(),
        "trees": forest.trees,
        f"validation_{settings.metric}": result.fit.history,
        "importance": forest.importance(tuple(f.name for f in binning.features), result.names or opaque),
        "mean_label": float(rows.label[rows.training].mean()),
        "warnings": list(own.warnings),
    }
    if curve is not None:
        facts["calibration"] = curve.method
    if settings.folds or settings.validation or later is not None:
        with channel.phase("alone"):
            alone = samples.Judged(*boost.cross_validate(contract, rows, None))
        joint = samples.Judged(result.fold, result.held_out, result.fit)
        facts |= samples.write(folder, table, rows, contract, joint, alone, later)
    return facts


def _train_passive(
    channel: Channel, own: Own, alignment: Alignment, keeper: checkpoint.Checkpoint, folder: Path
) -> Summary:
    contract = own.contract
    table = own.table.take(alignment.rows)
    earlier = own.earlier if isinstance(own.earlier, shares.PassiveShare) else None
    features = dict(contract.passive.features)
    if contract.screen is not None:
        with channel.phase("screen"):
            features = _screened(channel, own, table)
    binning = earlier.binning if earlier else fit_binning(table, contract.boost.bins, features)
    names = tuple(f.name for f in binning.features)
    data = boost.PassiveData(binning.transform(table), features_of(binning, contract.passive), names)
    seed = earlier.disguise if earlier else _disguise_seed(own)
    splits = (earlier.feature, earlier.masks) if earlier else None
    result = boost.train_passive(
        channel, contract, data, Draws(seed), checkpoint=_kept_for(own, keeper), earlier=splits
    )
    share = shares.PassiveShare(result.model_id, binning, result.feature, result.masks, seed)
    if contract.disclosure.model:
        disclose.send(channel, contract, splits_of(share))
    shares.save(share, folder, contract, own.party)
    reference.save(folder, binning, data.bins)
    used = np.bincount(result.feature, minlength=len(binning.features))
    return {
        **_start_facts(own, result.start),
        "model_id": result.model_id.hex(),
        **({} if contract.screen is None else {"screened": {"columns_kept": list(features)}}),
        "splits_by_feature": {name: int(n) for name, n in zip(names, used, strict=True)},
    }


def _screened(channel: Channel, own: Own, table: PartyTable) -> dict[str, Kind]:
    """The passive side's columns that a screening keeps; shuffled alike whenever the run is resumed."""
    contract = own.contract
    features = contract.passive.features
    binning = fit_binning(table, screen.settings_of(contract).bins, features)
    told = features_of(binning, contract.passive)
    order = Draws(hashlib.sha256(b"fedlearn/1 screen" + _disguise_seed(own)).digest())
    kept = screen.screen_passive(channel, contract, binning.transform(table), told.sizes, told.ordered, order)
    names = [f.name for f in binning.features]
    return {names[k]: features[names[k]] for k in kept}


def label_events(contract: Contract, rows: Rows) -> NDArray[np.int32]:
    """What a screening counts, int32 (K, m): see :func:`fedlearn.protocols.screen.events_of`."""
    if contract.boost.objective == "softmax":
        return np.asarray(np.arange(contract.outputs)[:, None] == rows.label, np.int32)
    names = (contract.boost.objective, *contract.also)
    return screen.events_of(np.atleast_2d(rows.targets), [name == "logistic" for name in names])


def _disguise_seed(own: Own) -> bytes:
    """The same rows and seed give the same disguise, so that even ties fall alike when a run is repeated or resumed.

    Whatever the number of trees, so that it also repeats when training later goes on to more. The peer does not know
    the rows, so it does not know the disguise.
    """
    one_tree = own.contract.boost.model_copy(update={"trees": 1})
    agreed = own.contract.model_copy(update={"boost": one_tree})
    return hashlib.sha256(b"fedlearn/1 disguise" + own.table.fingerprint() + agreed.hash()).digest()


def _predict(channel: Channel, own: Own) -> Summary:
    """Align new rows, evaluate both shares; the active side gets the scores."""
    alignment = _aligned(channel, own)
    with shares.staged(own.folder) as folder:
        facts: Summary = {}
        scores = folder / f"scores.{own.form}"
        with channel.phase("score"):
            if isinstance(own.share, linear.LinearShare):
                facts = _predict_glm(channel, own, own.share, alignment, scores)
            elif isinstance(own.share, cluster.ClusterShare):
                facts = _predict_kmeans(channel, own, own.share, alignment, scores)
            elif own.share is not None:
                facts = _predict_trees(channel, own, own.share, alignment, scores)
        summary = _summary(channel, own, "predict") | _alignment_facts(alignment, own.contract) | facts
        handshake.part(channel)
        _write_run(folder, summary)
    shutil.rmtree(_checkpoint_folder(own), ignore_errors=True)
    return summary


def _pieces(own: Own, alignment: Alignment, model_id: bytes) -> jobs_score.Pieces:
    """What was scored before, of this alignment, model and table."""
    table = own.table.fingerprint().hex()
    binding = {"alignment": alignment.id.hex(), "model": model_id.hex(), "table": table}

    def keep(folder: Path) -> None:
        save_alignment(folder, alignment, own)

    return jobs_score.Pieces(_checkpoint_folder(own), binding, alignment.size, keep)


def _predict_trees(channel: Channel, own: Own, share: shares.Share, alignment: Alignment, path: Path) -> Summary:
    pieces, order, bins = _pieces(own, alignment, share.model_id), alignment.rows, own.table.encoded
    if isinstance(share, shares.PassiveShare):
        before = jobs_score.score_passive(channel, share, bins, order, pieces)
        return {"pieces": pieces.count, "pieces_from_before": before}
    margins = jobs_score.score_active(channel, share, bins, order, own.table.rows, pieces)
    scored, curve = np.sort(order[order >= 0]), share.calibration

    def columns(part: slice) -> dict[str, Any]:
        chosen = np.stack([values[scored[part]] for values in margins])
        ids = {"id": own.table.ids.take(pa.array(scored[part]))}
        beside = {} if curve is None else {"calibrated": curve.of(chosen[0])}
        return ids | samples.predictions(own.contract, chosen) | beside

    jobs_score.write_rows(path, len(scored), columns)
    return {"pieces": pieces.count, "pieces_from_before": pieces.done, "rows_scored": len(scored)}


def _predict_glm(channel: Channel, own: Own, share: linear.LinearShare, alignment: Alignment, path: Path) -> Summary:
    pieces = _pieces(own, alignment, share.model_id)
    if share.role == "passive":
        return jobs_glm.predict_passive(channel, own.contract, share, own.table, alignment.rows, pieces)
    rows = jobs_glm.Scored(own.table, own.offset, alignment.rows, np.sort(alignment.rows[alignment.rows >= 0]))
    facts = jobs_glm.predict_active(channel, own.contract, share, rows, pieces, path)
    return facts | {"warnings": [*own.warnings, *facts["warnings"]]}


def _predict_kmeans(
    channel: Channel, own: Own, share: cluster.ClusterShare, alignment: Alignment, path: Path
) -> Summary:
    pieces, order = _pieces(own, alignment, share.model_id), alignment.rows
    if share.role == "passive":
        return jobs_kmeans.predict_passive(channel, own.contract, share, own.table, order, pieces)
    return jobs_kmeans.predict_active(channel, own.contract, share, own.table, order, pieces, path)


# --- alignment ---------------------------------------------------------------------------------------


def own_order(alignment: Alignment) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """The active side's aligned rows in its own order, and their places in the shared order.

    Its own order does not change from run to run, so folds and rounding repeat; the shared order is random.

    Returns:
        rows: int64 (m,), ascending; and position: int64 (m,).
    """
    position = np.flatnonzero(alignment.rows >= 0)
    position = position[np.argsort(alignment.rows[position], kind="stable")]
    return alignment.rows[position], position


def _aligned(channel: Channel, own: Own) -> Alignment:
    keys, kept = own.table.keys, own.tables
    if own.role == "active":
        shelf = kept if isinstance(kept, align_cached.Shelf) else align_cached.NO_SHELF
        return align.align_active(channel, keys, own.contract, own.on_file, shelf)
    prepared = kept if isinstance(kept, align_cached.Prepared) else None
    return align.align_passive(channel, keys, own.contract, own.on_file, prepared)


def _tables(
    party: PartyFile, contract: Contract, role: str, table: PartyTable
) -> align_cached.Prepared | align_cached.Shelf | None:
    """What method ``cached`` needs on this side. Raises NotPrepared."""
    if contract.align.method != "cached":
        return None
    if role == "active":
        return tables.shelf(party.output.folder / "tables")
    return tables.load(party.output.folder / "prepared", table.keys, contract)


def prepare_table(party: PartyFile, progress: OnProgress | None = None) -> Summary:
    """Evaluate the passive side's table ahead, for alignment by ``cached``; without the peer.

    Raises:
        NotInContract: this side, or this contract, needs no such table.
        OwnMistake: with the file, field or column.
    """
    contract = load_contract(party.contract)
    contract.check_not_expired()
    if contract.align.method != "cached" or contract.role_of(party.party) != "passive":
        raise NotInContract(f"contract {contract.name!r} asks for no table to be prepared by {party.party!r}")
    agreed = contract.align
    table = load_table(party.data, agreed.key, {}, None, contract.budget.rows, also=agreed.also)
    folder, started = party.output.folder / "prepared", time.monotonic()

    def report(done: int, total: int) -> None:
        if progress:
            progress(Progress("prepare", done, total, "ids", time.monotonic() - started, 0, 0))

    done = tables.prepare(folder, table.keys, contract, report)
    seconds = time.monotonic() - started
    return {"job": "prepare", "party": party.party, **vars(done), "seconds": seconds, "folder": str(folder)}


def _alignment_facts(alignment: Alignment, contract: Contract) -> Summary:
    facts = {"mode": alignment.mode, "rows_common_order": alignment.size, "rows_shared": alignment.shared}
    columns = (key.column for key in contract.align.keys)
    return facts | {"rows_by_key": dict(zip(columns, alignment.by_key, strict=False))}


def save_alignment(folder: Path, alignment: Alignment, own: Own) -> None:
    """Write an alignment of this side's IDs into ``folder``, which exists."""
    feather.write_feather(pa.table({"row": pa.array(alignment.rows, pa.int64())}), folder / "rows.arrow")
    head = {
        "contract_hash": own.contract.hash().hex(),
        "ids": _fingerprint_of_ids(own.table),
        "alignment_id": alignment.id.hex(),
        "mode": alignment.mode,
        "size": alignment.size,
        "shared": alignment.shared,
        "by_key": alignment.by_key,
        "table_key": alignment.table_key.hex(),
        "signed_by": key_fingerprint(own.key) if own.key is not None else "",
        "rows_sha256": hashlib.sha256((folder / "rows.arrow").read_bytes()).hexdigest(),
    }
    body = (json.dumps(head, indent=1) + "\n").encode()
    (folder / "alignment.json").write_bytes(body)
    if own.key is not None:
        (folder / "alignment.sig").write_bytes(sign(own.key, _SIGNED + body))


def _alignment_on_file(folder: Path, contract: Contract, table: PartyTable, key: Path | None) -> Alignment | None:
    """The alignment kept in ``folder`` if it is of this very contract and these very IDs; otherwise align anew.

    Raises:
        WrongModel: it is damaged, or this party did not sign it.
    """
    if not (folder / "alignment.json").exists():
        return None
    try:
        body = (folder / "alignment.json").read_bytes()
        if key is not None and not is_signed(key, _SIGNED + body, (folder / "alignment.sig").read_bytes()):
            raise WrongModel(f"the alignment in {folder} is not signed with this party's key")
        head = json.loads(body)
        if head["contract_hash"] != contract.hash().hex() or head["ids"] != _fingerprint_of_ids(table):
            return None
        if hashlib.sha256((folder / "rows.arrow").read_bytes()).hexdigest() != head["rows_sha256"]:
            raise WrongModel(f"the rows of the alignment in {folder} are not those that were signed")
        rows = feather.read_table(folder / "rows.arrow")["row"].to_numpy()
        identity, by_key = bytes.fromhex(head["alignment_id"]), tuple(head["by_key"])
        table_key = bytes.fromhex(head.get("table_key", ""))
        return Alignment(identity, head["mode"], head["size"], head["shared"], rows, by_key, table_key)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise WrongModel(f"the alignment in {folder} is damaged: {error}") from None


def _fingerprint_of_ids(table: PartyTable) -> str:
    """Features and labels may change without a row becoming another customer's."""
    return replace(table, columns={}, label=None, more=(), weight=None, content=b"").fingerprint().hex()


# --- results -----------------------------------------------------------------------------------------


def features_of(binning: Binning, side: Side) -> Features:
    """What a side's binned features are like: sizes, order, and the contract's monotone constraints."""
    return Features(
        np.diff(binning.offsets),
        np.array([f.kind == "number" for f in binning.features], np.bool_),
        np.array([side.monotone.get(f.name, 0) for f in binning.features], np.int8),
    )


def splits_of(share: shares.PassiveShare) -> disclose.Splits:
    """A passive half as it is told to a peer that may know it."""
    names, edges, categories = zip(*((f.name, f.edges, f.categories) for f in share.binning.features), strict=True)
    return disclose.Splits(names, edges, categories, share.feature, share.masks)


def share_of(told: disclose.Splits, contract: Contract, model_id: bytes) -> shares.PassiveShare:
    """What the active side was told, as a passive half that has the model's thresholds for edges."""
    features = tuple(
        FeatureBins(name, contract.passive.features[name], edges, categories)
        for name, edges, categories in zip(told.names, told.edges, told.categories, strict=True)
    )
    return shares.PassiveShare(model_id, Binning(features), told.feature, told.masks)


def rows_of(table: PartyTable, binning: Binning, contract: Contract) -> Rows:
    """The active side's rows as the learner takes them; ``table`` has a label."""
    label = np.zeros(0) if table.label is None else table.label.astype(np.float64)
    weight = np.ones(table.rows) if table.weight is None else table.weight
    features = features_of(binning, contract.active)
    more = np.stack([np.asarray(values, np.float64) for values in table.more]) if table.more else None
    classes = 1 if table.more else contract.outputs
    return Rows(binning.transform(table), features, label, weight, classes, more, contract.also if table.more else ())


def calibrated(contract: Contract, rows: Rows, held_out: F64) -> Calibration | None:
    """The curve of held-out margins float64 (K, m); None without folds, or where labels are not of two kinds."""
    if contract.boost.objective != "logistic" or not contract.boost.folds:
        return None
    judged = rows.training
    return calibration.fit(held_out[0][judged], rows.label[judged], rows.weight[judged])


def _summary(channel: Channel, own: Own, job: Job) -> Summary:
    return {
        "job": job,
        "party": own.party,
        "role": own.role,
        "contract": own.contract.name,
        "contract_hash": own.contract.hash().hex(),
        "session": channel.session.hex(),
        "pid": os.getpid(),
        "rows": own.table.rows,
        "skipped": own.table.skipped,
        "bytes_sent": channel.bytes_sent,
        "bytes_received": channel.bytes_received,
        "phases": {name: vars(phase).copy() for name, phase in channel.phases.items()},
        "kl_nats": channel.ledger.kl_nats,
        **_privacy_spent(channel, own.contract),
        "ledger": channel.ledger.lines(),
        **({"plan_id": own.plan_id.hex()} if own.plan_id else {}),
        "folder": str(own.folder),
    }


def _privacy_spent(channel: Channel, contract: Contract) -> Summary:
    """The (ε, δ) of all noisy sums of the session; nothing without [privacy]."""
    if contract.privacy is None:
        return {}
    return {"epsilon": epsilon_of(channel.ledger.rho, contract.privacy.delta), "delta": contract.privacy.delta}


def _privacy_told(contract: Contract) -> str:
    """What the noise of a training run would be, and what it does not cover."""
    noise = boost.terms(contract).noise
    if noise is None or contract.privacy is None:
        return "no noise: sums are exact"
    top = booster.largest_value(contract.boost)
    return (
        f"epsilon {contract.privacy.epsilon:g}, delta {contract.privacy.delta:g} for one row's passive features in all "
        f"sums of one session: noise of {noise.deviation / top:.3g} times the largest gradient on every sum; the rows' "
        f"sides at chosen splits ({contract.boost.routing} routing) and the alignment are exact"
    )


def _write_run(folder: Path, summary: Summary) -> None:
    (folder / "run.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
