"""``fedlearn bench boost``: seconds per tree through the whole protocol, against XGBoost on the pooled table.

Rows are taken as aligned. Both models are judged on rows held out from both: a fifth of a given table, or a quarter as
many generated ones on top. XGBoost gets the same bins, depth, rate and rows, and all cores; its figure, like ours,
leaves out the reading of the table, the binning and the set-up, which are given by themselves.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from fedlearn.bench import yardstick
from fedlearn.bench.pair import party_channel, peak_mib, run_pair
from fedlearn.bench.tables import ROLES, Source
from fedlearn.channel import Channel
from fedlearn.contract import Align, Boost, Budget, Contract, Encryption, Key, Kind, Label, Side
from fedlearn.data import PartyTable, fit_binning, make_table
from fedlearn.jobs import features_of, rows_of
from fedlearn.learner.objective import LOGISTIC
from fedlearn.protocols import boost, score
from fedlearn.report.metrics import figures

_HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class Setting(Source):
    """What is measured."""

    bins: int
    depth: int
    trees: int
    gradient_bits: int
    backend: str
    routing: str
    link: str = "loopback"


def measure(setting: Setting) -> dict[str, Any]:
    """Run both parties as processes, then XGBoost on the pooled rows.

    Raises:
        FileMissing: a table cannot be read, or xgboost is not installed.
        FedlearnError: a party failed, with what it said.
    """
    contract = _contract(setting, {role: setting.kinds(role) for role in ROLES})
    active, passive = run_pair(
        "fedlearn.bench.boost",
        {"setting": asdict(setting), "contract": contract.model_dump_json(), "link": setting.link},
    )
    pooled = _xgboost(setting, contract)
    return {
        **{name: value for name, value in asdict(setting).items() if value is not None},
        **active["result"],
        **passive["result"],
        # A side that was ready later waited less; the longer time is that of the work.
        "seconds_setup": max(side["result"]["seconds_setup"] for side in (active, passive)),
        **pooled,
        "ratio_to_xgboost": active["result"]["seconds_per_tree"] / pooled["xgboost_seconds_per_tree"],
        "bytes_setup_passive": passive["bytes_setup"],
        "bytes_per_tree_active": active["bytes_trees"] / setting.trees,
        "bytes_per_tree_passive": passive["bytes_trees"] / setting.trees,
        "peak_mib_active": active["peak_mib"],
        "peak_mib_passive": passive["peak_mib"],
    }


# --- the tables --------------------------------------------------------------------------------------


def _tables(setting: Setting, contract: Contract, role: str) -> tuple[PartyTable, PartyTable]:
    """One side's rows to train on and those held out, aligned."""
    rows = setting.rows + round(setting.rows * _HELD_OUT / (1 - _HELD_OUT))
    table = setting.table(contract, role, rows=rows, strength=0.4)
    if setting.file(role) is None:
        order, count = np.arange(table.rows), setting.rows
    else:
        order, count = np.random.default_rng(0).permutation(table.rows), round((1 - _HELD_OUT) * table.rows)
    return table.take(np.sort(order[:count])), table.take(np.sort(order[count:]))


def _contract(setting: Setting, kinds: dict[str, dict[str, Kind]]) -> Contract:
    return Contract(
        name="bench",
        purpose="measuring the speed of training",
        expires=date.max,
        active=Side(name="active", features=kinds["active"]),
        passive=Side(name="passive", features=kinds["passive"]),
        label=Label(column=setting.label, positive=setting.positive),
        align=Align(key=Key(column=setting.key)),
        boost=Boost.model_validate(
            {
                "trees": setting.trees,
                "depth": setting.depth,
                "bins": setting.bins,
                "gradient_bits": setting.gradient_bits,
                "routing": setting.routing,
            }
        ),
        encryption=Encryption.model_validate({"backend": setting.backend}),
        budget=Budget(vectors=10_000_000, rows=100_000_000),
    )


# --- one party's process -----------------------------------------------------------------------------


def _train_active(channel: Channel, contract: Contract, train: PartyTable, held_out: PartyTable) -> dict[str, Any]:
    binning = fit_binning(train, contract.boost.bins, contract.active.features)
    data = boost.ActiveData(rows_of(train, binning, contract), np.arange(train.rows), train.rows)
    forest = boost.train_active(channel, contract, data).fit.forest
    splits, bins = len(forest.passive_splits), binning.transform(held_out)
    with channel.phase("score"):
        margins = score.score_active(channel, forest, splits, bins, np.arange(held_out.rows), held_out.rows)
    return {
        "seconds_setup": channel.phases["hint"].seconds,
        "seconds_per_tree": channel.phases["trees"].seconds / contract.boost.trees,
        "cpu_seconds_per_tree_active": channel.phases["trees"].cpu_seconds / contract.boost.trees,
        "auc": figures(LOGISTIC, rows_of(held_out, binning, contract).label, margins)["auc"],
        "kl_nats": channel.ledger.kl_nats,
    }


def _train_passive(channel: Channel, contract: Contract, train: PartyTable, held_out: PartyTable) -> dict[str, Any]:
    binning = fit_binning(train, contract.boost.bins, contract.passive.features)
    data = boost.PassiveData(binning.transform(train), features_of(binning, contract.passive))
    result = boost.train_passive(channel, contract, data)
    with channel.phase("score"):
        score.score_passive(channel, result.feature, result.masks, binning.transform(held_out))
    return {
        "seconds_setup": channel.phases["hint"].seconds,
        "cpu_seconds_per_tree_passive": channel.phases["trees"].cpu_seconds / contract.boost.trees,
    }


def _warm_up(channel: Channel, contract: Contract, role: str) -> None:
    """One small tree through the same channel, so that kernels are compiled or loaded before time is taken."""
    small = contract.model_copy(update={"boost": contract.boost.model_copy(update={"trees": 1, "folds": 0})})
    kinds = small.side(role).features
    draws, label = np.random.default_rng(ROLES.index(role)), np.arange(300) % 2
    columns = {  # numbers that tell something of the label, not the same on both sides, so that the tree splits on both
        name: draws.normal(label) if kind == "number" else draws.choice(["a", "b"], 300) for name, kind in kinds.items()
    }
    table = make_table([str(i) for i in range(300)], columns, kinds, label if role == "active" else None)
    (_train_active if role == "active" else _train_passive)(channel, small, table, table)
    channel.phases.clear()
    channel.ledger = type(channel.ledger)()


def _main(settings: dict[str, Any]) -> dict[str, Any]:
    setting, contract = Setting(**settings["setting"]), Contract.model_validate_json(settings["contract"])
    role = settings["party"]
    train, held_out = _tables(setting, contract, role)
    with party_channel(settings) as channel:
        _warm_up(channel, contract, role)
        result = (_train_active if role == "active" else _train_passive)(channel, contract, train, held_out)
        return {
            "result": result,
            "bytes_setup": channel.phases["hint"].bytes_sent,
            "bytes_trees": channel.phases["trees"].bytes_sent,
            "peak_mib": peak_mib(),
        }


# --- the yardstick -----------------------------------------------------------------------------------


def _xgboost(setting: Setting, contract: Contract) -> dict[str, float]:
    """XGBoost ``hist`` on the pooled rows, in this process, with all cores."""
    xgboost = yardstick.load()
    tables = {role: _tables(setting, contract, role) for role in ROLES}
    binning = fit_binning(tables["active"][0], contract.boost.bins, contract.active.features)
    labels = [rows_of(table, binning, contract).label for table in tables["active"]]

    def matrix(part: int, reference: Any = None) -> Any:
        values, types = yardstick.values_of(
            t[part].columns[f] for r, t in tables.items() for f in contract.side(r).features
        )
        return xgboost.QuantileDMatrix(
            values,
            labels[part],
            feature_types=types,
            enable_categorical=True,
            max_bin=contract.boost.bins,
            ref=reference,
        )

    started = time.perf_counter()
    train = matrix(0)
    setup = time.perf_counter() - started
    settings = yardstick.settings_of(contract.boost)
    xgboost.train(settings, train, 1)
    started, cpu = time.perf_counter(), time.process_time()
    model = xgboost.train(settings, train, contract.boost.trees)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    margins = model.predict(matrix(1, train), output_margin=True)
    return {
        "xgboost_seconds_setup": setup,
        "xgboost_seconds_per_tree": seconds / contract.boost.trees,
        "xgboost_cpu_seconds_per_tree": cpu / contract.boost.trees,
        "auc_xgboost": figures(LOGISTIC, labels[1], margins[None])["auc"],
    }


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
