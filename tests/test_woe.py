"""Weights of evidence: merging on counts, the encrypted screening, the design that training and scoring share."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from fedlearn.channel import Limits, simulate
from fedlearn.contract import Glm
from fedlearn.data import make_table
from fedlearn.data.design import Design, Evidence, fit_codes, fit_design
from fedlearn.errors import BeyondContract, ConstantColumns, FedlearnError, Malformed, WrongLength, WrongModel
from fedlearn.learner.woe import evidence, merge, stability
from fedlearn.protocols import handshake, woe
from fedlearn.v1 import woe_pb2 as pb
from tests.boosting import spoiling
from tests.regression import contract

LOOSE = {"least_share": 0.0, "least_events": 0}


def counts(data: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=12)))
    rows[0] += 1
    events = np.array([data.draw(st.integers(0, int(n))) for n in rows])
    return events, rows


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["quantile", "monotone", "tree"]), st.booleans())
def test_merging_keeps_counts_and_rules(data: Any, binning: str, ordered: bool) -> None:
    events, rows = counts(data)
    regular = data.draw(st.integers(1, len(rows)))
    glm = Glm(woe=True, binning=binning, max_groups=4, least_share=0.1, least_events=1, least_rate=0.05)  # type: ignore[arg-type]
    found = merge(events, rows, regular, ordered, glm)
    assert found.rows.sum() == rows.sum()
    assert found.events.sum() == events.sum()
    assert sorted(set(found.group.tolist())) == list(range(len(found.woe)))
    merged = int(found.group[:regular].max()) + 1
    if ordered:
        assert (np.diff(found.group[:regular]) >= 0).all()
    assert found.group[regular:].tolist() == list(range(merged, len(found.woe)))
    if binning != "quantile":
        assert merged <= 4
    if merged > 1 and binning != "tree":
        assert (found.rows[:merged] >= 0.1 * rows.sum()).all()
        rates = found.events[:merged] / found.rows[:merged]
        assert (np.minimum(rates, 1 - rates) >= 0.05).all()
        assert not set(found.one_sided) & set(range(merged))
    if binning == "monotone":
        rates = found.events[:merged] / np.maximum(found.rows[:merged], 1)
        assert (np.diff(rates) >= 0).all() or (np.diff(rates) <= 0).all()
    assert found.iv >= 0
    assert np.isfinite(found.woe).all()


def test_values_by_hand() -> None:
    """Siddiqi's formula: 10 of 100 bad rows and 90 of 900 good ones in the first bin, and so on."""
    found = evidence(np.array([10, 30, 60]), np.array([100, 330, 570]), np.arange(3))
    goods = np.array([90, 300, 510]) / 900
    bads = np.array([10, 30, 60]) / 100
    np.testing.assert_allclose(found.woe, np.log(goods / bads))
    assert found.iv == pytest.approx(((goods - bads) * np.log(goods / bads)).sum())


def test_a_bin_without_events_counts_half_a_row_more_and_is_named() -> None:
    found = evidence(np.array([0, 5]), np.array([10, 20]), np.arange(2))
    assert found.one_sided == (0,)
    assert found.woe[0] == pytest.approx(np.log((10.5 / 25) / (0.5 / 5)))


def test_stability_by_hand() -> None:
    before, now = np.array([10, 40, 50]), np.array([20, 30, 50])
    assert stability(before, now) == pytest.approx(0.1 * np.log(2) - 0.1 * np.log(3 / 4))
    assert stability(before, before) == 0
    assert stability(np.array([5, 0]), np.array([0, 5])) > 1


def test_a_split_in_two_is_where_a_decision_tree_splits() -> None:
    rng = np.random.default_rng(0)
    code = rng.integers(0, 20, 20_000)
    label = (rng.random(len(code)) < np.where(code < 13, 0.1, 0.4)).astype(int)
    glm = Glm(woe=True, binning="tree", max_groups=2, **LOOSE)  # type: ignore[arg-type]
    found = merge(np.bincount(code, label).astype(int), np.bincount(code), 20, True, glm)
    tree = DecisionTreeClassifier(max_depth=1, criterion="entropy").fit(code[:, None], label)
    assert np.flatnonzero(np.diff(found.group))[0] + 0.5 == tree.tree_.threshold[0] == 12.5


@pytest.mark.parametrize("number", range(24))
def test_monotone_bins_are_the_optimum_that_optbinning_finds(number: int) -> None:
    """optbinning solves the same problem by constraint programming, in integers (tests/make_optbinning_vectors.py)."""
    path = Path(__file__).parent / "vectors" / "optbinning.json"
    case = json.loads(path.read_text(encoding="utf-8"))["cases"][number]
    events, rows = np.array(case["events"]), np.array(case["rows"])
    glm = Glm(woe=True, max_groups=case["max_groups"], least_share=case["least_share"], least_events=1)
    found = merge(events, rows, len(rows), True, glm)
    due = max((case["ascending"], case["descending"]), key=lambda one: one["iv"])
    assert found.iv == pytest.approx(due["iv"], rel=1e-6) or found.iv > due["iv"]
    if number != 23:  # there, optbinning's own first step has merged what the optimum keeps apart
        assert (np.flatnonzero(np.diff(found.group)) + 0.5).tolist() == due["splits"]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 5), st.sampled_from([0.0, 0.15]), st.integers(0, 2), st.sampled_from([0.0, 0.2]))
def test_monotone_bins_are_the_best_of_all_groupings(
    data: Any, most: int, share: float, least: int, rate: float
) -> None:
    events, rows = counts(data)
    glm = Glm(woe=True, max_groups=most, least_share=share, least_events=least, least_rate=rate)
    best = None
    for cuts in itertools.product((0, 1), repeat=len(rows) - 1):
        one = evidence(events, rows, np.cumsum([0, *cuts]))
        rest = one.rows - one.events
        rates = one.events / np.maximum(one.rows, 1)
        fits = one.rows.min() >= max(1, share * rows.sum()) and np.all(
            np.minimum(one.events, rest) >= np.maximum(least, rate * one.rows)
        )
        if fits and len(rates) <= glm.max_groups and ((np.diff(rates) >= 0).all() or (np.diff(rates) <= 0).all()):
            best = one.iv if best is None else max(best, one.iv)
    assert merge(events, rows, len(rows), True, glm).iv == pytest.approx(
        evidence(events, rows, np.zeros(len(rows), np.int64)).iv if best is None else best, abs=1e-9
    )


# --- the design --------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {"age": "number", "town": "category", "score": "number"}


def table(n: int = 3000, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    age, town = rng.normal(40, 10, n), np.array(["Aa", "Bb", "Cc", "Dd"])[rng.integers(0, 4, n)].astype(object)
    score = np.where(rng.random(n) < 0.2, -999.0, rng.normal(size=n))
    label = rng.random(n) < 1 / (1 + np.exp(-(age - 40) / 10 - (town == "Bb") + (score == -999) + 1))
    age[rng.random(n) < 0.1] = np.nan
    town[rng.random(n) < 0.05] = None
    return make_table(np.arange(n), {"age": age, "town": town, "score": score}, KINDS, label.astype(int))


@pytest.mark.parametrize("binning", ["quantile", "width", "tree", "monotone"])
def test_special_and_missing_values_have_bins_of_their_own(binning: str) -> None:
    glm = Glm(woe=True, binning=binning, special={"score": (-999.0, 7.0)})  # type: ignore[arg-type]
    rows = table()
    age, town, score = fit_codes(rows, KINDS, glm)
    assert score.count == score.bins.regular + 3
    values = np.asarray(rows.columns["score"])
    assert (score.of(rows) == score.bins.bins).sum() == (values == -999).sum() > 0
    assert (age.of(rows) == age.bins.regular).sum() == np.isnan(rows.columns["age"]).sum()
    assert score.label(score.bins.bins) == "= -999"
    assert score.bins.edges.min() > -999
    assert town.label(town.bins.regular) == "missing"


def evidence_of(rows: Any, glm: Glm) -> tuple[Evidence, ...]:
    found = []
    for codes in fit_codes(rows, KINDS, glm):
        code = codes.of(rows)
        size = np.bincount(code, minlength=codes.count)
        groups = merge(
            np.bincount(code, rows.label, codes.count).astype(int), size, codes.bins.regular,
            codes.bins.kind == "number", glm,
        )  # fmt: skip
        found.append(Evidence(codes, groups.group, groups.woe, groups.rows, groups.iv))
    return tuple(found)


@pytest.mark.parametrize("woe_columns", [False, True])
def test_the_same_columns_at_training_and_after_saving(woe_columns: bool) -> None:
    rows, new = table(), table(500, seed=1)
    glm = Glm(woe=True, special={"score": (-999.0,)})
    design, _ = fit_design(rows, KINDS, evidence_of(rows, glm) if woe_columns else None)
    assert len(design.columns) == (3 if woe_columns else 5)
    made = design.standardised(rows)
    np.testing.assert_allclose(made.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(made.std(axis=1), 1, atol=1e-9)
    again = Design.from_json(design.to_json())
    assert (again.standardised(new) == design.standardised(new)).all()
    assert again.names == design.names


def test_texts_that_training_never_saw_are_named_and_count_as_missing() -> None:
    rows = table()
    strange = make_table([1, 2], {"age": [30.0, 40.0], "town": ["Zz", None], "score": [0.0, 0.0]}, KINDS)
    for evidences in (None, evidence_of(rows, Glm(woe=True))):
        design, _ = fit_design(rows, KINDS, evidences)
        (said,) = design.unseen(strange)
        assert "'town'" in said
        assert "1 row" in said
        towns = [j for j, column in enumerate(design.columns) if column.feature == "town"]
        found = design.standardised(strange)[towns]
        assert (found[:, 0] == found[:, 1]).all()
        assert design.unseen(rows) == []


def test_constant_columns_are_left_out_with_a_warning() -> None:
    kinds: Any = {"a": "number", "b": "number", "c": "category"}
    columns = {"a": [1.0, 2.0, 3.0], "b": [5.0, 5.0, 5.0], "c": ["x", "x", "x"]}
    design, said = fit_design(make_table([1, 2, 3], columns, kinds), kinds)
    assert design.names == ("a",)
    assert len(said) == 2
    only: Any = {"b": "number"}
    with pytest.raises(ConstantColumns, match="b varies"):
        fit_design(make_table([1, 2, 3], {"b": columns["b"]}, only), only)


def test_features_of_little_information_are_left_out() -> None:
    rows = table()
    evidences = evidence_of(rows, Glm(woe=True))
    least = min(e.iv for e in evidences) + 1e-6
    design, said = fit_design(rows, KINDS, evidences, least_iv=least)
    assert len(design.columns) == 2
    assert "information value" in said[0]


@pytest.mark.parametrize("spoilt", [{}, {"columns": 1}, {"columns": [{}], "references": []}])
def test_damaged_designs(spoilt: Any) -> None:
    with pytest.raises(WrongModel):
        Design.from_json(spoilt)


# --- the screening -----------------------------------------------------------------------------------


class Screening:
    """Four passive features, one of them a category; 150 of the shared rows are not the active side's."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        n = 1200
        self.sizes, self.regular = np.array([9, 5, 7, 12]), np.array([8, 4, 5, 11])
        self.codes = np.stack([rng.integers(0, s, n) for s in self.sizes]).astype(np.uint8)
        self.position = rng.permutation(n)[: n - 150]
        rate = 1 / (1 + np.exp(2 - self.codes[0, self.position] / 4 - (self.codes[3, self.position] == 3)))
        self.label = (rng.random(len(rate)) < rate).astype(np.int8)
        self.ordered = np.array([True, True, True, False])
        base = contract(1, 4, woe=True, bins=11, binning="monotone")
        features = {"w": "number", "x": "number", "y": "number", "z": "category"}
        self.contract = base.model_copy(update={"passive": base.passive.model_copy(update={"features": features})})
        self.bins = woe.Bins(self.codes, self.sizes, self.regular, self.ordered, tuple(features))

    def meet(self, active: Any = None, passive: Any = None) -> Any:
        label = woe.Counted.of(self.label, self.position, self.codes.shape[1])

        def play(role: str, spoil: Any, serve: Any) -> Any:
            def run(channel: Any) -> Any:
                handshake.greet(channel, self.contract, role=role, job="train")
                return serve(spoiling(channel, *spoil) if spoil else channel)

            return run

        return simulate(
            play("active", active, lambda c: woe.evidence_active(c, self.contract, label)),
            play("passive", passive, lambda c: woe.evidence_passive(c, self.contract, self.bins)),
            limits=Limits(step=60),
        )


SCREENING = Screening()


def test_the_passive_side_gets_what_pooled_rows_give() -> None:
    (groups, names), found = SCREENING.meet()
    assert names == ()
    glm = SCREENING.contract.glm
    assert glm is not None
    ivs = []
    for f, ((group, values, iv),) in enumerate(found):
        code = SCREENING.codes[f, SCREENING.position]
        size = int(SCREENING.sizes[f])
        events = np.bincount(code, SCREENING.label, size).astype(int)
        due = merge(events, np.bincount(code, minlength=size), int(SCREENING.regular[f]), f < 3, glm)
        assert (group == due.group).all()
        np.testing.assert_allclose(values, due.woe, rtol=0, atol=5.001e-5)
        assert iv == pytest.approx(due.iv, abs=5.001e-5)
        ivs.append(iv)
    assert sorted(g.iv for g in groups) == pytest.approx(sorted(ivs), abs=5.001e-5)


def put(field: str, value: Any) -> Any:
    def change(message: Any) -> None:
        del getattr(message, field)[:]
        getattr(message, field).extend(value)

    return change


@pytest.mark.parametrize(
    ("role", "kind", "change", "error"),
    [
        ("passive", pb.WoeBins, put("bins", [3]), WrongLength),
        ("passive", pb.WoeBins, put("regular", [40] * 4), BeyondContract),
        ("passive", pb.WoeBins, put("ordered", [True] * 4), Malformed),
        ("passive", pb.WoeBins, put("names", ["w", "x", "y", "z"]), Malformed),
        ("active", pb.WoePlan, put("woe", [0.0]), WrongLength),
        ("active", pb.WoePlan, put("group", [0] * 33), Malformed),
        ("active", pb.WoePlan, put("iv", [float("nan")] * 4), WrongLength),
        ("active", pb.WoePlan, put("groups", [2**31, 2, 2, 2]), WrongLength),
    ],
)
def test_messages_out_of_line(role: str, kind: Any, change: Any, error: type[FedlearnError]) -> None:
    with pytest.raises(error):
        SCREENING.meet(**{role: (kind, change)})
