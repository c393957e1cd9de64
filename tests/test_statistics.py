"""Joint statistics against pooled rows (numpy, statsmodels, scikit-learn); the plan both sides keep; bad peers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from pydantic import ValidationError
from statsmodels.stats.outliers_influence import variance_inflation_factor

from fedlearn import jobs_statistics
from fedlearn.channel import Limits, simulate
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Contract, Glm
from fedlearn.data import PartyTable, make_table
from fedlearn.errors import (
    BeyondContract,
    FedlearnError,
    JobMismatch,
    Malformed,
    NoOverlap,
    NotInContract,
    WrongLength,
    WrongModel,
)
from fedlearn.learner.select import by_correlation
from fedlearn.learner.woe import evidence, stability
from fedlearn.models import plan as plans
from fedlearn.protocols import handshake
from fedlearn.v1 import statistics_pb2 as pb
from tests.boosting import spoiling
from tests.parties import MODULES, Pair, read_csv, write_csv
from tests.test_glm_end_to_end import CARD, glm_pair, keyring, simulated

__all__ = ["keyring"]

ALL = {"iv": True, "missing": True, "correlation": True, "vif": True, "period": "month", "second_from": "2026-01"}
ACTIVE: dict[str, Any] = {"a": "number", "b": "number", "t": "category"}
PASSIVE: dict[str, Any] = {"x": "number", "y": "number", "z": "number", "u": "category"}


def contract(statistics: dict[str, Any], **more: Any) -> Contract:
    return Contract.model_validate(
        {
            "name": "test",
            "purpose": "tests of statistics",
            "expires": "2999-01-01",
            "active": {"name": "bank", "features": ACTIVE},
            "passive": {"name": "shop", "features": PASSIVE},
            "label": {"column": "label"},
            "align": {"key": {"column": "id"}},
            "statistics": statistics,
            "budget": {"kl_nats": 1e-3},
            **more,
        }
    )


class Tables:
    """Both sides' rows; ``extra`` rows of the shared order are not the active side's customers."""

    def __init__(self, n: int = 3000, extra: int = 400, classes: int = 2) -> None:
        rng = np.random.default_rng(8)
        whole = n + extra
        self.position = rng.permutation(whole)[:n]
        x, y = rng.normal(size=(2, whole))
        z = x + 0.3 * rng.normal(size=whole)
        u = rng.choice(["Aa", "Bb", "Cc"], whole).astype(object)
        y[rng.random(whole) < 0.1] = np.nan
        u[rng.random(whole) < 0.05] = None
        self.passive = {"x": x, "y": y, "z": z, "u": u}
        at = {name: column[self.position] for name, column in self.passive.items()}
        a, b = at["x"] * 0.8 + rng.normal(size=n), rng.normal(size=n)
        t = rng.choice(["p", "q"], n).astype(object)
        self.period = rng.integers(0, 2, n)
        z[self.position] += self.period  # what drifts between the periods
        self.active = {"a": a, "b": b, "t": t}
        slopes = rng.normal(size=classes)
        eta = slopes[:, None] * at["x"] + np.arange(classes)[:, None] * ((at["u"] == "Bb") * 0.5 + b * 0.4)
        self.label = np.argmax(eta + rng.gumbel(size=(classes, n)), axis=0)
        self.pooled = {**self.active, **{name: column[self.position] for name, column in self.passive.items()}}

    def tables(self) -> tuple[PartyTable, PartyTable]:
        own = replace(make_table(np.arange(len(self.label)), self.active, ACTIVE), label=self.label)
        return own, make_table(np.arange(len(self.passive["x"])), self.passive, PASSIVE)


TABLES = Tables()


def meet(
    agreed: Contract, folder: Path, tables: Tables = TABLES, active: Any = None, passive: Any = None
) -> tuple[Any, Any]:
    """Both roles in memory; ``active`` and ``passive`` spoil one message each."""
    own, theirs = tables.tables()
    period = np.asarray(tables.period, np.int8) if agreed.statistics and agreed.statistics.period else None
    for name in ("bank", "shop"):
        (folder / name).mkdir(parents=True)

    def play(role: str, spoil: Any, serve: Any) -> Any:
        def run(channel: Any) -> Any:
            handshake.greet(channel, agreed, role=role, job="statistics")
            facts = serve(spoiling(channel, *spoil) if spoil else channel)
            handshake.part(channel)
            return facts | {"ledger": channel.ledger.lines()}

        return run

    universe = len(tables.passive["x"])
    return simulate(
        play("active", active, lambda c: jobs_statistics.run_active(
            c, agreed, own, period, tables.position, universe, folder / "bank")),
        play("passive", passive, lambda c: jobs_statistics.run_passive(c, agreed, theirs, folder / "shop")),
        limits=Limits(step=60),
    )  # fmt: skip


def by_name(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["column"]: line for line in lines}


def groups_of(folder: Path, tables: Tables = TABLES) -> dict[str, np.ndarray]:
    """The group of each of the active side's rows in each column, by what the sides saved."""
    from fedlearn.data.design import Design

    found = {}
    for name, table in zip(("bank", "shop"), tables.tables(), strict=True):
        saved = json.loads((folder / name / "weights.json").read_text(encoding="utf-8"))
        for column in Design.from_json(saved).columns:
            assert column.evidence is not None
            group = column.evidence.group[column.evidence.codes.of(table)]
            found[column.name] = group if name == "bank" else group[tables.position]
    return found


def test_all_statistics_are_those_of_the_pooled_rows(tmp_path: Path) -> None:
    agreed = contract(ALL, glm={"bins": 10}, disclosure={"names": True})
    active, passive = meet(agreed, tmp_path)
    lines, own = by_name(active["features"]), by_name(passive["features"])
    assert set(lines) == {*ACTIVE, *PASSIVE}
    groups = groups_of(tmp_path)
    label, period = TABLES.label, TABLES.period
    for name, group in groups.items():
        size = int(group.max()) + 1
        due = evidence(np.bincount(group, label, size).astype(int), np.bincount(group, minlength=size), np.arange(size))
        assert lines[name]["iv"] == pytest.approx(due.iv, abs=1e-9)
        counts = [np.bincount(group[period == p], minlength=size) for p in (0, 1)]
        assert lines[name]["stability"] == pytest.approx(stability(*counts), abs=1e-9)
        values = TABLES.pooled[name]
        missing = np.mean([v is None or v != v for v in values])
        assert lines[name]["missing"] == pytest.approx(missing, abs=1e-9)
        if name in PASSIVE:
            for key in ("iv", "stability", "missing"):
                assert own[name][key] == pytest.approx(lines[name][key], abs=5.1e-5)
    assert lines["z"]["stability"] > 0.25 > 10 * lines["x"]["stability"]

    numbers = [n for n in (*ACTIVE, *PASSIVE) if (ACTIVE | PASSIVE)[n] == "number"]
    pooled = np.array([np.where(np.isnan(v := TABLES.pooled[n]), np.nanmean(
        (TABLES.passive | TABLES.active)[n]), v) for n in numbers])  # fmt: skip
    at = [active["correlation"]["columns"].index(n) for n in numbers]
    found = np.array(active["correlation"]["values"])[np.ix_(at, at)]
    np.testing.assert_allclose(found, np.corrcoef(pooled), atol=2e-3)
    design = np.vstack([np.ones(pooled.shape[1]), pooled]).T
    for j, name in enumerate(numbers):
        due_vif = variance_inflation_factor(design, 1 + j)
        assert lines[name]["vif"] == pytest.approx(due_vif, rel=0.02)
        if name in PASSIVE:
            assert own[name]["vif"] == pytest.approx(due_vif, rel=0.02)
    assert lines["a"]["with"] == "x"
    assert lines["u"]["correlation"] is None
    assert any("'t'" in said for said in active["warnings"])
    assert active["ledger"] == passive["ledger"]
    assert active["plan_id"] == passive["plan_id"]


def test_of_several_classes_each_is_held_against_the_rest(tmp_path: Path) -> None:
    tables = Tables(classes=3)
    agreed = contract(
        {"iv": True, "trees": 1}, boost={"objective": "softmax"}, disclosure={"names": True},
        label={"column": "label", "classes": ["0", "1", "2"]},
    )  # fmt: skip
    active, passive = meet(agreed, tmp_path, tables)
    lines, groups = by_name(active["features"]), groups_of(tmp_path, tables)
    assert set(groups) == {f"{name}={k}" for name in (*ACTIVE, *PASSIVE) for k in range(3)}
    for name in (*ACTIVE, *PASSIVE):
        for k in range(3):
            group = groups[f"{name}={k}"]
            size = int(group.max()) + 1
            one = evidence(
                np.bincount(group, tables.label == k, size).astype(int), np.bincount(group, minlength=size),
                np.arange(size),
            )  # fmt: skip
            assert lines[name]["iv_by_class"][str(k)] == pytest.approx(one.iv, abs=1e-9)
        assert lines[name]["iv"] == max(lines[name]["iv_by_class"].values())
    told = by_name(passive["features"])
    assert told["x"]["iv_by_class"] == pytest.approx(lines["x"]["iv_by_class"], abs=5.1e-5)
    ranked = [line["column"] for line in active["features"]]
    assert ranked.index("x") < ranked.index("b")


@pytest.mark.parametrize("switch", ["missing", "correlation", "vif", "iv", "period"])
def test_a_switch_tells_no_more_than_it_says(tmp_path: Path, switch: str) -> None:
    wanted = {switch: True} if switch != "period" else {"period": "month", "second_from": "2026-01"}
    active, passive = meet(contract(wanted), tmp_path)
    sent = {line["message"]: line for line in active["ledger"]}
    assert ("WoeBins" in sent) == (switch in ("missing", "iv", "period"))
    assert ("WoePlan" in sent) == (switch == "iv")
    assert ("StatisticsColumns" in sent) == (switch in ("correlation", "vif"))
    sums = sent["MatvecAnswer"]["values"]
    if switch == "missing":
        assert sums == 2 * len(PASSIVE)  # present and missing, one vector
    assert ("missing" in active["features"][0]) == (switch == "missing")
    assert ("stability" in passive["features"][0]) == (switch == "period")
    assert {line["column"] for line in active["features"]} == {*ACTIVE, *(f"shop#{f}" for f in range(4))}
    if switch == "correlation":
        columns = active["correlation"]["columns"]
        theirs = [k for k, name in enumerate(columns) if "#" in name]
        assert (np.array(active["correlation"]["values"])[np.ix_(theirs, theirs)] == np.eye(3)).all()
        assert "vif" not in passive["features"][0]


def test_the_plan_drops_by_every_limit_and_both_sides_know_why(tmp_path: Path) -> None:
    limits = {"stability": 0.25, "correlation": 0.6, "missing": 0.08, "iv": 0.002}
    agreed = contract({**ALL, "select": limits}, glm={"bins": 10}, disclosure={"names": True})
    active, passive = meet(agreed, tmp_path)
    halves = {name: plans.load(tmp_path / name, agreed, name) for name in ("bank", "shop")}
    assert halves["bank"].plan_id == halves["shop"].plan_id
    reasons = {line.column: line.reason.split()[0] if line.reason else "" for line in halves["bank"].own}
    theirs = {line.column: line.reason for line in halves["shop"].own}
    assert {line.column: line.reason.split()[0] if line.reason else "" for line in halves["bank"].peer} == theirs
    assert theirs["y"] in ("missing", "iv")
    assert theirs["z"] == "stability"
    assert theirs["x"] == ""
    assert by_name(active["features"])["a"]["reason"].startswith("correlation")
    assert reasons["a"] == "correlation"  # with x of the other side, which says more
    assert by_name(passive["features"])["z"]["reason"] == "stability"
    narrow = halves["shop"].narrowed(agreed, "passive")
    assert set(narrow.passive.features) == {n for n, reason in theirs.items() if not reason}
    assert narrow.hash() == agreed.hash()
    assert len(halves["bank"].narrowed(agreed, "active").passive.features) == len(narrow.passive.features)


def test_a_side_keeps_one_column(tmp_path: Path) -> None:
    agreed = contract({"iv": True, "select": {"iv": 1e6}})
    active, _ = meet(agreed, tmp_path)
    assert active["columns_kept"] == active["peer_columns_kept"] == 1
    assert sum("stays though" in said for said in active["warnings"]) == 2


def test_columns_that_trees_hardly_use_go(tmp_path: Path) -> None:
    agreed = contract(
        {"trees": 4, "select": {"importance": 0.1}}, disclosure={"names": True}, encryption={"backend": "lwe"}
    )
    active, passive = meet(agreed, tmp_path)
    lines = by_name(active["features"])
    assert sum(line["gain"] for line in lines.values()) == pytest.approx(1)
    kept = {name for name, line in lines.items() if line["kept"]}
    assert kept == {name for name, line in lines.items() if line["gain"] >= 0.1}
    assert "x" in kept
    assert {line["column"] for line in passive["features"] if line["kept"]} == kept & set(PASSIVE)
    assert active["ledger"] == passive["ledger"]


def test_stepwise_elimination_is_part_of_the_plan(tmp_path: Path) -> None:
    """Against backward elimination by statsmodels on the pooled columns that the limits left."""
    agreed = contract(
        {"missing": True, "stepwise": True, "select": {"missing": 0.05}}, disclosure={"names": True},
        glm={"select": {"p_value": 0.01}, "max_steps": 20}, budget={"kl_nats": 0.01},
    )  # fmt: skip
    active, passive = meet(agreed, tmp_path)
    lines = by_name(active["features"])
    assert all(lines[name]["reason"].startswith("missing") for name in ("y", "u"))
    columns = {name: TABLES.pooled[name] for name in ("a", "b", "x", "z")}
    columns["t"] = (TABLES.pooled["t"] == "p").astype(float)
    while True:
        fit = sm.GLM(
            TABLES.label, sm.add_constant(np.array([*columns.values()]).T), family=sm.families.Binomial()
        ).fit()
        worst = int(fit.pvalues[1:].argmax())
        if fit.pvalues[1 + worst] <= 0.01:
            break
        del columns[list(columns)[worst]]
    kept = {name for name, line in lines.items() if line["kept"]}
    assert kept == set(columns)
    assert {line["reason"] for name, line in lines.items() if name not in kept | {"y", "u"}} == {"stepwise"}
    assert {line["column"] for line in passive["features"] if line["kept"]} == kept & set(PASSIVE)
    assert active["ledger"] == passive["ledger"]


def test_joint_limits_are_those_of_a_brute_force(tmp_path: Path) -> None:
    """Of columns in three correlated pairs, the greedy choice keeps the most worthy of each pair."""
    rng = np.random.default_rng(2)
    base = rng.normal(size=(3, 2000))
    columns = np.vstack([base, base + 0.2 * rng.normal(size=base.shape)])
    correlation, worth = np.corrcoef(columns), rng.random(6)
    out = by_correlation(correlation, worth, 0.8, 0.0, tuple("abcdef"))
    allowed = [
        kept for size in range(7) for kept in itertools.combinations(range(6), size)
        if all(abs(correlation[i, j]) <= 0.8 for i, j in itertools.combinations(kept, 2))
    ]  # fmt: skip
    best = max(allowed, key=lambda kept: (len(kept), worth[list(kept)].sum()))
    assert set(range(6)) - set(out) == set(best)


# --- what a contract may not ask, and peers that lie -------------------------------------------------


@pytest.mark.parametrize(
    ("statistics", "more", "said"),
    [
        ({}, {}, "nothing is switched on"),
        ({"iv": True, "period": "month"}, {}, "go together"),
        ({"missing": True, "coding": "woe"}, {}, "needs iv"),
        ({"iv": True, "select": {"vif": 5}}, {}, "select.vif"),
        ({"iv": True, "select": {"importance": 0.1}}, {}, "select.importance"),
        ({"iv": True}, {"glm": {"family": "linear"}}, "two values"),
        ({**ALL, "period": "a"}, {}, "cannot also be a feature"),
        ({"iv": True}, {"disclosure": {"model": True}}, "needs names too"),
        ({"stepwise": True}, {"glm": {}}, "needs .glm.select. p_value"),
        ({"iv": True}, {"privacy": {"epsilon": 1, "delta": 1e-6}}, "adds no noise"),
    ],
)
def test_what_a_contract_may_not_ask(statistics: Any, more: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        contract(statistics, **more)


def put(field: str, value: Any) -> Any:
    def change(message: Any) -> None:
        del getattr(message, field)[:]
        getattr(message, field).extend(value)

    return change


@pytest.mark.parametrize(
    ("role", "kind", "change", "error"),
    [
        ("passive", pb.StatisticsFeatures, put("ordered", [True]), WrongLength),
        ("passive", pb.StatisticsFeatures, put("ordered", [True] * 4), Malformed),
        ("passive", pb.StatisticsFeatures, put("monotone", [0, 0, 0, 5]), Malformed),
        ("passive", pb.StatisticsFeatures, put("names", ["x", "y", "z", "u"]), Malformed),
        ("passive", pb.StatisticsColumns, put("feature", [0, 0, 1]), BeyondContract),
        ("passive", pb.StatisticsColumns, put("feature", [0, 1, 9]), BeyondContract),
        ("passive", pb.StatisticsColumns, put("largest", [1.0, 2.0, -1.0]), Malformed),
        ("active", pb.StatisticsOpen, lambda m: setattr(m, "columns", 99), BeyondContract),
        ("active", pb.StatisticsResult, put("missing", [0.1]), WrongLength),
        ("active", pb.StatisticsResult, put("stability", [float("nan")] * 4), WrongLength),
        ("active", pb.StatisticsPlan, put("kept", [True]), WrongLength),
        ("active", pb.StatisticsPlan, put("reasons", ["whim", "", "", ""]), Malformed),
        ("active", pb.StatisticsPlan, put("important", [True]), WrongLength),
        ("passive", pb.StatisticsKept, put("kept", [False] * 4), Malformed),
        ("passive", pb.StatisticsKept, put("kept", [True, False, True, True]), Malformed),
    ],
)
def test_messages_out_of_line(tmp_path: Path, role: str, kind: Any, change: Any, error: type[FedlearnError]) -> None:
    with pytest.raises(error):
        meet(contract(ALL), tmp_path, Tables(300, 0), **{role: (kind, change)})


def test_one_label_value_is_named(tmp_path: Path) -> None:
    tables = Tables(300, 0)
    tables.label[:] = 1
    with pytest.raises(NoOverlap, match="same label"):
        meet(contract({"iv": True}), tmp_path, tables)


def test_a_constant_column_and_a_bin_without_events_are_warnings(tmp_path: Path) -> None:
    tables = Tables(600, 0)
    tables.active["a"][:] = 1.0
    tables.passive["z"][:] = 2.0
    tables.label[tables.pooled["u"] == "Cc"] = 0
    bins = {"binning": "quantile", "least_share": 0, "least_events": 0}
    active, passive = meet(contract(ALL, glm=bins, disclosure={"names": True}), tmp_path, tables)
    assert any("'a' is constant" in said for said in active["warnings"])
    assert any("'z' is constant" in said for said in passive["warnings"])
    assert any("'u' have no event" in said for said in active["warnings"])
    assert by_name(active["features"])["z"]["iv"] == by_name(active["features"])["a"]["iv"] == 0
    assert by_name(passive["features"])["z"]["vif"] is None


def test_paillier_counts_the_same(tmp_path: Path) -> None:
    tables = Tables(300, 20)
    switches, found = {"iv": True, "missing": True, "correlation": True}, []
    for backend in ("lwe", "paillier"):
        agreed = contract(switches, disclosure={"names": True}, encryption={"backend": backend, "paillier_bits": 2048})
        found.append(by_name(meet(agreed, tmp_path / backend, tables)[0]["features"]))
    for name, line in found[0].items():
        assert line["iv"] == found[1][name]["iv"]
        assert line["correlation"] == pytest.approx(found[1][name]["correlation"], abs=0.02)


def test_one_period_alone_is_named(tmp_path: Path) -> None:
    tables = Tables(300, 0)
    tables.period[:] = 1
    with pytest.raises(NoOverlap, match="one side of '2026-01'"):
        meet(contract(ALL), tmp_path, tables)


# --- whole runs --------------------------------------------------------------------------------------


def with_months(values: list[str]) -> Any:
    def change(pair: Pair) -> None:
        pair.contract["budget"]["kl_nats"] = 1e-3
        pair.rows["bank"] = [row | {"month": values[i % len(values)]} for i, row in enumerate(pair.rows["bank"])]

    return change


STATISTICS = {**ALL, "coding": "woe", "trees": 3, "select": {"iv": 0.2, "correlation": 0.9}}


@pytest.mark.processes
def test_a_plan_from_two_processes_is_what_both_train_on(tmp_path: Path, keyring: Path) -> None:
    pair = glm_pair(
        tmp_path, keyring, {"woe": True, "bins": 8, "l2": 0.001}, statistics=STATISTICS, scorecard=CARD,
        change=with_months(["2025-11", "2026-02", ""]),
    )  # fmt: skip
    said = {p: e.result for p, e in pair.run("statistics").items()}
    assert said["bank"]["ledger"] == said["platform"]["ledger"]
    assert sum(said["bank"]["rows_by_period"]) < said["bank"]["rows_shared"]
    assert 0 < said["bank"]["score_stability_index"] < 0.5
    assert any("period is missing" in warning for warning in said["bank"]["warnings"])
    files = {path.name for path in (pair.output("platform") / "statistics").iterdir()}
    assert files == {"run.json", "plan.json", "weights.json"}
    kept = {line["column"] for line in said["platform"]["features"] if line["kept"]}
    assert len(kept) == said["bank"]["peer_columns_kept"] < 3
    plan = {party: str(pair.output(party) / "statistics") for party in MODULES}
    ended = {}
    with pair.one("bank", *pair.arguments("bank", "train", "--plan", plan["bank"])) as one, \
            pair.one("platform", *pair.arguments("platform", "train", "--plan", plan["platform"])) as two:  # fmt: skip
        ended = {process.party: process.wait().result for process in (one, two)}
    assert ended["bank"]["plan_id"] == ended["platform"]["plan_id"] == said["bank"]["plan_id"]
    assert {line["column"] for line in ended["platform"]["coefficients"]} == kept
    scored = {p: e.result for p, e in pair.run("predict").items()}
    assert scored["bank"]["rows_scored"] == 240
    reasons = {row["reason_1"] for row in read_csv(pair.output("bank") / "predictions" / "scores.csv")}
    assert reasons <= {"P-SPEND", "P-VISITS", "B-INCOME", "B-DEBT", ""}

    planned = pair.arguments("platform", "train", "--plan", plan["platform"], "--out", "other")
    with pair.one("bank", *pair.arguments("bank", "train", "--out", "other")) as one, \
            pair.one("platform", *planned) as two:  # fmt: skip
        assert {process.wait().code for process in (one, two)} == {JobMismatch.exit_code}


def test_trees_train_on_a_plan_too(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.parties import make_pair

    def change(pair: Pair) -> None:
        pair.contract["statistics"] = {"iv": True, "select": {"iv": 0.2}}

    pair = make_pair(tmp_path, keyring, change=change)
    assert simulated(pair, capsys, "check")["passive"]["statistics_would_tell"] == "iv"
    found = simulated(pair, capsys, "statistics")
    kept = {line["column"] for line in found["passive"]["features"] if line["kept"]}
    assert 0 < len(kept) < 3
    files = [str(pair.party_file(party)) for party in MODULES]
    chosen = [x for party in MODULES for x in ("--plan", str(pair.output(party) / "statistics"))]
    assert command_line(["simulate", *files, "--job", "train", *chosen, "--json", "--progress", "none"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["passive"]["splits_by_feature"]) == kept
    assert simulated(pair, capsys, "predict")["active"]["rows_scored"] == 240


def test_a_plan_of_another_contract_or_party_is_refused(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = glm_pair(tmp_path, keyring, {"l2": 0.01}, statistics={"iv": True})
    simulated(pair, capsys, "statistics")
    folder = pair.output("bank") / "statistics"
    from fedlearn.contract import load_contract

    agreed = load_contract(pair.folder / "bank" / "contract.toml")
    plans.load(folder, agreed, "bank")
    with pytest.raises(WrongModel, match="belongs to party"):
        plans.load(folder, agreed, "platform")
    other = agreed.model_copy(update={"glm": Glm(l2=0.02)})
    with pytest.raises(WrongModel, match="another contract"):
        plans.load(folder, other, "bank")
    text = (folder / "plan.json").read_text(encoding="utf-8")
    (folder / "plan.json").write_text(text.replace('"income"', '"outcome"'), encoding="utf-8")
    with pytest.raises(WrongModel, match="damaged"):
        plans.load(folder, agreed, "bank")
    assert command_line(pair.arguments("bank", "train", "--plan", str(folder))) == WrongModel.exit_code
    bare = glm_pair(tmp_path / "bare", keyring, {"l2": 0.01})
    assert command_line(bare.arguments("bank", "statistics")) == NotInContract.exit_code


def test_new_rows_are_weighed_as_those_counted(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = glm_pair(tmp_path, keyring, {"woe": True, "bins": 8}, statistics={"iv": True})
    simulated(pair, capsys, "statistics")
    write_csv(tmp_path / "new.csv", [row | {"city": "Atlantis"} for row in pair.rows["platform"][:20]])
    out = tmp_path / "weighed.csv"
    weigh = ["weigh", "--party", str(pair.party_file("platform")), "--data", str(tmp_path / "new.csv")]
    assert command_line([*weigh, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "Atlantis" not in json.dumps(said)
    assert "'city'" in said["warnings"][0]
    rows = read_csv(out)
    assert list(rows[0]) == ["id", "spend", "visits", "city"]
    design = json.loads((pair.output("platform") / "statistics" / "weights.json").read_text(encoding="utf-8"))
    for place, name in enumerate(("spend", "visits", "city")):
        known = design["columns"][place]["evidence"]["woe"]
        assert {float(row[name]) for row in rows} <= set(known)
    assert command_line([*weigh, "--out", str(out)]) != 0
