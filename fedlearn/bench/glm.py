"""``fedlearn bench glm``: seconds of a whole fit between two processes, against statsmodels on the pooled columns.

Rows are taken as aligned. Both fit the same columns: for weights of evidence those that the two parties agreed on. Our
figure holds hint, steps and (with ``--woe``) screening; statsmodels' is that of ``GLM(...).fit()``. Processor time of
the protocol's phases, all cores together, is given beside, as both sides share one machine here.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn import jobs_glm
from fedlearn.bench.pair import party_channel, peak_mib, run_pair
from fedlearn.bench.tables import ROLES, Source
from fedlearn.channel import Channel
from fedlearn.contract import Align, Budget, Contract, Glm, Key, Kind, Label, Side
from fedlearn.data import PartyTable, make_table
from fedlearn.data.design import Design
from fedlearn.errors import FileMissing, NotInContract

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Setting(Source):
    """What is measured."""

    disclosure: str
    family: str
    woe: bool


def measure(setting: Setting) -> dict[str, Any]:
    """Run both parties as processes, then statsmodels on the pooled columns.

    Raises:
        FileMissing: a table cannot be read, or statsmodels is not installed.
        NotInContract: a disclosure that does not exist.
        FedlearnError: a party failed, with what it said.
    """
    if setting.disclosure not in ("score", "none"):
        raise NotInContract(f"there is no disclosure {setting.disclosure!r}; score and none are")
    contract = _contract(setting)
    active, passive = run_pair(
        "fedlearn.bench.glm", {"setting": asdict(setting), "contract": contract.model_dump_json()}
    )
    return {
        **{name: value for name, value in asdict(setting).items() if value is not None},
        "active_features": len(contract.active.features),
        "passive_features": len(contract.passive.features),
        "seconds_fit": max(active["seconds"], passive["seconds"]),
        "rounds": active["rounds"],
        "converged": active["converged"],
        "bytes_active": active["bytes"],
        "bytes_passive": passive["bytes"],
        "kl_nats": active["kl_nats"],
        "phases_active": active["phases"],
        "cpu_seconds_active": active["cpu_seconds"],
        "cpu_seconds_passive": passive["cpu_seconds"],
        **_pooled(setting, contract, active, passive),
        "peak_mib_active": active["peak_mib"],
        "peak_mib_passive": passive["peak_mib"],
    }


def _contract(setting: Setting) -> Contract:
    return Contract(
        name="bench",
        purpose="measuring the speed of regression",
        expires=date.max,
        active=Side(name="active", features=setting.kinds("active")),
        passive=Side(name="passive", features=setting.kinds("passive")),
        label=Label(column=setting.label, positive=setting.positive),
        align=Align(key=Key(column=setting.key)),
        glm=Glm.model_validate(
            {
                "family": setting.family,
                "woe": setting.woe,
                "disclosure": setting.disclosure,
                "max_steps": 20 if setting.disclosure == "none" else 12,
            }
        ),
        budget=Budget(rows=100_000_000),
    )


def _table(setting: Setting, contract: Contract, role: str) -> PartyTable:
    return setting.table(contract, role, rows=setting.rows, strength=0.2)


# --- one party's process -----------------------------------------------------------------------------


def _fit(channel: Channel, contract: Contract, table: PartyTable, role: str) -> dict[str, Any]:
    started = time.perf_counter()
    if role == "active":
        share, facts = jobs_glm.train_active(channel, contract, table, None, np.arange(table.rows), table.rows)
    else:
        share, facts = jobs_glm.train_passive(channel, contract, table)
    seconds = time.perf_counter() - started - (channel.phases["alone"].seconds if "alone" in channel.phases else 0.0)
    return {
        "seconds": seconds,
        "rounds": facts["steps"],
        "converged": facts["converged"],
        "bytes": channel.bytes_sent,
        "kl_nats": channel.ledger.kl_nats,
        "phases": {name: phase.seconds for name, phase in channel.phases.items()},
        "cpu_seconds": sum(phase.cpu_seconds for name, phase in channel.phases.items() if name != "alone"),
        "design": share.design.to_json(),
        "coefficients": [share.intercept, *share.coefficients] if role == "active" else share.coefficients.tolist(),
        "peak_mib": peak_mib(),
    }


def _warm_up(channel: Channel, contract: Contract, role: str) -> None:
    """A small fit through the same channel, so that kernels are compiled or loaded before time is taken."""
    kinds: dict[str, Kind] = {"a": "number", "b": "number"}
    small = contract.model_copy(update={"active": Side(name="active", features=kinds),
                                        "passive": Side(name="passive", features=kinds)})  # fmt: skip
    draws = np.random.default_rng(1 if role == "active" else 2)
    columns = {name: draws.normal(size=500) for name in kinds}
    table = make_table([str(i) for i in range(500)], columns, kinds, np.arange(500) % 2 if role == "active" else None)
    _fit(channel, small, table, role)
    channel.phases.clear()
    channel.bytes_sent = channel.bytes_received = 0
    channel.ledger = type(channel.ledger)()


def _main(settings: dict[str, Any]) -> dict[str, Any]:
    setting, contract = Setting(**settings["setting"]), Contract.model_validate_json(settings["contract"])
    role = settings["party"]
    table = _table(setting, contract, role)
    with party_channel(settings) as channel:
        _warm_up(channel, contract, role)
        return _fit(channel, contract, table, role)


# --- the yardstick -----------------------------------------------------------------------------------


def _pooled(
    setting: Setting, contract: Contract, active: dict[str, Any], passive: dict[str, Any]
) -> dict[str, float | None]:
    """Statsmodels on the pooled columns, in this process, with all cores."""
    try:
        import statsmodels.api as sm
    except ModuleNotFoundError:
        raise FileMissing("the yardstick is not installed: pip install statsmodels") from None
    from sklearn.metrics import roc_auc_score

    tables = {role: _table(setting, contract, role) for role in ROLES}
    parts = [Design.from_json(said["design"]).standardised(tables[role]) for role, said in
             (("active", active), ("passive", passive))]  # fmt: skip
    label = np.asarray(tables["active"].label, np.float64)
    del tables
    columns = np.concatenate([np.ones((1, len(label))), *parts]).T
    del parts
    families = {"logistic": sm.families.Binomial, "linear": sm.families.Gaussian, "poisson": sm.families.Poisson}
    if setting.family not in families:
        return {}
    started = time.perf_counter()
    fit = sm.GLM(label, columns, family=families[setting.family]()).fit()
    seconds = time.perf_counter() - started
    found = np.array([*active["coefficients"], *passive["coefficients"]])
    logistic = setting.family == "logistic"
    return {
        "statsmodels_seconds": seconds,
        "max_coefficient_error_in_standard_errors": float(np.abs((found - fit.params) / fit.bse).max()),
        "auc": float(roc_auc_score(label, columns @ found)) if logistic else None,
        "auc_pooled": float(roc_auc_score(label, columns @ fit.params)) if logistic else None,
        "calibration_slope": _slope(label, columns @ found) if logistic else None,
    }


def _slope(label: F64, score: F64) -> float:
    """Slope of the label on the fitted log-odds: 1 when calibrated."""
    import statsmodels.api as sm

    return float(sm.GLM(label, sm.add_constant(score), family=sm.families.Binomial()).fit().params[1])


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
