"""Scorecards: points of both sides, their sum, reasons, and an export that another program can score from."""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_left
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from pydantic import ValidationError

import fedlearn
from fedlearn.channel import Limits, simulate
from fedlearn.contract import Contract, Glm, Scorecard, Side
from fedlearn.data import make_table
from fedlearn.data.design import fit_design
from fedlearn.errors import FedlearnError, Malformed, WrongLength, WrongModel
from fedlearn.models import linear
from fedlearn.models.linear import LinearShare
from fedlearn.models.pmml import NAMESPACE, pmml
from fedlearn.models.scorecard import Points
from fedlearn.protocols import linear as linear_protocol
from fedlearn.v1 import linear_pb2 as pb
from tests.boosting import spoiling
from tests.regression import contract
from tests.test_woe import KINDS, evidence_of, table

SETTINGS = Scorecard(codes={"age": "R1", "town": "R2", "score": "R2"}, reasons=2)
SIDE = Side(name="side", features=KINDS)
GLM = Glm(woe=True, special={"score": (-999.0,)})


def share(role: str = "active", seed: int = 0) -> LinearShare:
    rows = table(seed=seed)
    design, _ = fit_design(rows, KINDS, evidence_of(rows, GLM))
    intercept = 0.3 if role == "active" else 0.0
    return LinearShare(role, bytes(16), design, np.array([-0.5, -0.4, -0.7]), intercept)


def test_both_sides_points_add_up_to_the_score_of_the_odds() -> None:
    active, passive, rows = share(), share("passive", seed=3), table(400, seed=5)
    total = sum(Points.of(s, SETTINGS, SIDE).of_rows(rows).sum(axis=0) for s in (active, passive))
    odds = np.exp(-(active.scores(rows) + passive.scores(rows)))
    np.testing.assert_allclose(total, 600 + 20 * np.log2(odds / 50))


def test_points_double_the_odds_and_start_where_agreed() -> None:
    rows = table(50, seed=5)
    eta = share().scores(rows)
    low = Points.of(share(), Scorecard(base_score=0, base_odds=1, pdo=10), SIDE).of_rows(rows).sum(axis=0)
    np.testing.assert_allclose(low, -10 * eta / math.log(2))


@pytest.mark.parametrize("against", ["best", "mean"])
def test_reasons_are_the_codes_that_cost_most(against: str) -> None:
    rows = table(300, seed=5)
    points = Points.of(share(), SETTINGS.model_copy(update={"against": against}), SIDE)
    by_column = points.of_rows(rows)
    lost = points.lost(by_column)
    if against == "best":
        assert (lost >= -1e-9).all()
    else:
        training = points.of_rows(table())
        np.testing.assert_allclose(points.lost(training).mean(axis=1), 0, atol=1e-9)
    codes, amounts = points.reasons(by_column)
    assert points.named == ("R1", "R2")
    due = np.stack([lost[0], lost[1] + lost[2]])
    for i in range(rows.rows):
        ranked = sorted((0, 1), key=lambda c: -due[c, i])
        assert codes[i].tolist() == [c if due[c, i] > 0 else 255 for c in ranked]
        np.testing.assert_allclose(amounts[i], [max(due[c, i], 0) for c in ranked], rtol=1e-5, atol=1e-5)


def test_another_program_scores_the_export() -> None:
    """Scored here from the JSON alone, a row at a time."""
    rows = table(300, seed=6)
    points = Points.of(share(), SETTINGS, SIDE)
    exported = json.loads(json.dumps(points.export()))

    def score(value: Any, column: dict[str, Any]) -> float:
        for special in column["special"]:
            if value == special["value"]:
                return float(special["points"])
        if value is None or value != value:
            return float(column["points_missing"])
        if column["kind"] == "number":
            return float(column["points"][bisect_left(column["upper_edges"], value)])
        if value not in column["texts"]:
            return float(column["points_missing"])
        return float(column["points"][column["texts"].index(value)])

    found = np.zeros(rows.rows)
    for column in exported["columns"]:
        values: Any = rows.columns[column["column"]]
        values = values.tolist() if isinstance(values, np.ndarray) else values.to_pylist()
        found += [score(value, column) for value in values]
    np.testing.assert_allclose(found, points.of_rows(rows).sum(axis=0))


def test_the_table_lists_every_group_once() -> None:
    lines = Points.of(share(), SETTINGS, SIDE).table()
    assert {line["column"] for line in lines} == set(KINDS)
    assert sum(line["rows"] for line in lines if line["column"] == "age") == 3000
    assert ["missing"] in [line["bins"] for line in lines]


def test_a_model_without_weights_of_evidence_has_no_points() -> None:
    design, _ = fit_design(table(), KINDS)
    with pytest.raises(WrongModel, match="weights of evidence"):
        Points.of(LinearShare("active", bytes(16), design, np.ones(5)), SETTINGS, SIDE)


# --- shares on disk ----------------------------------------------------------------------------------


def test_a_share_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    agreed, made = contract(1, 1, woe=True), share()
    linear.save(made, tmp_path, agreed, "active")
    again, rows = linear.load(tmp_path, agreed, "active"), table(100, seed=9)
    assert (again.scores(rows) == made.scores(rows)).all()
    slopes, constant = again.raw
    np.testing.assert_allclose(slopes @ again.design.raw(rows) + constant, made.scores(rows))
    with pytest.raises(WrongModel, match="belongs to party"):
        linear.load(tmp_path, agreed, "passive")
    with pytest.raises(WrongModel, match="another contract"):
        linear.load(tmp_path, contract(1, 2), "active")


def test_a_damaged_share_is_refused(tmp_path: Path) -> None:
    agreed = contract(1, 1)
    linear.save(share(), tmp_path, agreed, "active")
    path = tmp_path / "share.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"intercept": 0.3', '"intercept": 0.4'), encoding="utf-8")
    with pytest.raises(WrongModel, match="damaged"):
        linear.load(tmp_path, agreed, "active")


def test_one_row_of_a_number_without_bins() -> None:
    kinds: Any = {"a": "number"}
    rows = make_table([1, 2, 3, 4], {"a": [1.0, 2.0, float("nan"), 4.0]}, kinds, [0, 1, 0, 1])
    design, said = fit_design(rows, kinds)
    assert "missing in 1 row" in said[0]
    assert design.standardised(rows)[0, 2] == pytest.approx(0)


# --- the partial scores between the sides ------------------------------------------------------------


def exchange(spoil: Any = None, codes: int = 2) -> Any:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=50)
    reasons = linear_protocol.Reasons(
        rng.integers(0, 2, (50, 2)).astype(np.uint8), rng.random((50, 2)).astype(np.float32)
    )

    def passive(channel: Any) -> None:
        end = spoiling(channel, pb.LinearScores, spoil) if spoil else channel
        linear_protocol.score_passive(end, scores, reasons)

    def active(channel: Any) -> Any:
        return linear_protocol.score_active(channel, 50, 2, codes)

    (found, why), _ = simulate(active, passive, limits=Limits(step=30))
    return (found == scores).all(), (why.code == reasons.code).all(), (why.lost == reasons.lost).all()


def test_partial_scores_and_reasons_arrive_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_protocol, "_PIECE_ROWS", 16)
    assert exchange() == (True, True, True)


def put(field: str, value: Any) -> Any:
    return lambda message: setattr(message, field, value)


@pytest.mark.parametrize(
    ("spoil", "codes", "error"),
    [
        (put("values", bytes(8)), 2, WrongLength),
        (put("first", 1), 2, WrongLength),
        (put("reasons", b""), 2, WrongLength),
        (put("lost", bytes(4)), 2, WrongLength),
        (put("values", np.full(50, np.nan).tobytes()), 2, Malformed),
        (put("lost", np.full(100, np.inf, np.float32).tobytes()), 2, Malformed),
        (None, 1, Malformed),
    ],
)
def test_scores_out_of_line(spoil: Any, codes: int, error: type[FedlearnError]) -> None:
    with pytest.raises(error):
        exchange(spoil, codes)


#: Children of PMML 4.4's elements in the order of its schema, and the attributes that it demands.
SCHEMA = {
    "PMML": (["Header", "DataDictionary", "Scorecard"], {"version"}),
    "Scorecard": (["MiningSchema", "Output", "Characteristics"], {"functionName"}),
    "Characteristic": (["Attribute"], {"reasonCode", "baselineScore"}),
    "Attribute": (["SimplePredicate", "SimpleSetPredicate", "True"], {"partialScore"}),
    "DataField": ([], {"name", "optype", "dataType"}),
    "SimplePredicate": ([], {"field", "operator"}),
    "SimpleSetPredicate": (["Array"], {"field", "booleanOperator"}),
    "Array": ([], {"type"}),
}


def tag(element: ET.Element) -> str:
    return element.tag.removeprefix(f"{{{NAMESPACE}}}")


def holds(predicate: ET.Element, row: dict[str, Any]) -> bool:
    if tag(predicate) == "True":
        return True
    value = row[predicate.attrib["field"]]
    missing = value is None or value != value
    if tag(predicate) == "SimpleSetPredicate":
        return not missing and value in [text.strip('"') for text in (predicate[0].text or "").split('" "')]
    operator = predicate.attrib["operator"]
    if operator == "isMissing" or missing:
        return operator == "isMissing" and missing
    given = float(predicate.attrib["value"])
    return bool(value == given if operator == "equal" else value <= given)


@pytest.mark.parametrize("role", ["active", "passive"])
def test_pmml_scores_the_same(role: str) -> None:
    points = Points.of(share(role), SETTINGS, SIDE)
    root = ET.fromstring(pmml(points, 'a name with <signs> & "quotes"'))  # noqa: S314
    for element in root.iter():
        order, demanded = SCHEMA.get(tag(element), (None, set()))
        assert demanded <= set(element.attrib)
        if order is not None:
            places = [order.index(tag(child)) for child in element]
            assert places == sorted(places) or tag(element) == "Attribute"
    rows = table(300, seed=11)
    due = points.of_rows(rows)
    columns = {n: v.tolist() if isinstance(v, np.ndarray) else v.cast("string").to_pylist()
               for n, v in rows.columns.items()}  # fmt: skip
    cards = list(root.iter(f"{{{NAMESPACE}}}Characteristic"))
    for j, card in enumerate(cards):
        for i in range(300):
            row = {name: values[i] for name, values in columns.items()}
            first = next(attribute for attribute in card if holds(attribute[0], row))
            assert float(first.attrib["partialScore"]) == pytest.approx(due[j, i])
        assert float(card.attrib["baselineScore"]) == pytest.approx(points.references[j])


# --- JPMML, which scored the same document once (tests/make_pmml_vectors.py) ----------------------------

PMML_SETTINGS = {
    against: Scorecard(codes={"age": "R1", "town": "R2", "score": "R3"}, reasons=2, against=against)  # type: ignore[arg-type]
    for against in ("best", "mean")
}


def plain_rows(rows: Any) -> list[dict[str, Any]]:
    """Rows as plain values, None for missing ones."""
    columns = {n: [None if x != x else x for x in v.tolist()] if isinstance(v, np.ndarray) else
               v.cast("string").to_pylist() for n, v in rows.columns.items()}  # fmt: skip
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def essence(text: str) -> str:
    """A document without the release, and with numbers as far as all machines compute the same."""
    text = text.replace(f'version="{fedlearn.__version__}"', "")
    return re.sub(r"-?[0-9]+[.][0-9]+(e[-+]?[0-9]+)?", lambda number: f"{float(number[0]):.9g}", text)


@pytest.mark.parametrize("role", ["active", "passive"])
@pytest.mark.parametrize("against", ["best", "mean"])
def test_jpmml_gives_the_same_points_and_reasons(role: str, against: str) -> None:
    path = Path(__file__).parent / "vectors" / "pmml.json"
    found = json.loads(path.read_text(encoding="utf-8"))[f"{role}, {against}"]
    points = Points.of(share(role), PMML_SETTINGS[against], SIDE)
    digest = hashlib.sha256(essence(pmml(points, "card")).encode()).hexdigest()
    assert digest == found["sha256"], "the export changed: run tests/make_pmml_vectors.py again"
    by_column = points.of_rows(table(60, seed=11))
    np.testing.assert_allclose(found["points"], by_column.sum(axis=0), rtol=1e-9)
    codes, amounts = points.reasons(by_column)
    for i, (theirs, mine, lost) in enumerate(zip(found["reasons"], codes, amounts, strict=True)):
        for k in range(2):
            # The reasons in order as far as points were lost, and where no two columns lost the same.
            if mine[k] < 255 and lost[k] > 1e-6 and len(set(points.lost(by_column)[:, i].round(9))) == 3:
                assert theirs[k] == points.named[mine[k]]


@pytest.mark.parametrize(
    ("glm", "codes", "words"),
    [
        ({"special": {"typo": (1.0,)}}, {}, "special names 'typo', which is a column of neither"),
        ({}, {"typo": "R-9"}, "codes names 'typo', which is a column of neither"),
        ({}, {f"x{j}": f"R-{j}" for j in range(256)}, "more than 255 different codes"),
        ({"bins": 254, "special": {"x0": (-1.0, -2.0)}}, {}, "must not exceed 255"),
    ],
)
def test_settings_that_no_columns_have(glm: dict[str, Any], codes: dict[str, str], words: str) -> None:
    agreed = contract(256, 2, woe=True).model_dump()
    agreed["glm"] |= glm
    agreed["scorecard"] = {"codes": codes}
    with pytest.raises(ValidationError, match=words):
        Contract.model_validate(agreed)
