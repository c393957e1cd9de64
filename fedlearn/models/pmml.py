"""One side's points as a PMML 4.4 Scorecard (Data Mining Group, dmg.org/pmml/v4-4-1/Scorecard.html).

Attributes are tried in order and the first that holds gives the points: missing, special values, then ascending upper
edges or sets of texts; what is left counts as the last bin, or for texts that training never saw as missing. Reasons
are ranked by the points that a characteristic lost; one that the contract has no code for goes by its column's name.
Columns that share a code are ranked one by one, where ours add them up.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np

import fedlearn
from fedlearn.data.design import Column
from fedlearn.models.scorecard import Points, evidence_of

NAMESPACE = "http://www.dmg.org/PMML-4_4"


def pmml(points: Points, name: str) -> str:
    """The document as text. The score is this side's part; the total is the sum of both sides'.

    Args:
        points: of one side.
        name: of the model, for its reader.
    """
    root = ET.Element("PMML", {"xmlns": NAMESPACE, "version": "4.4"})
    header = ET.SubElement(root, "Header", {"description": "points of one side; the total is the sum of both sides"})
    ET.SubElement(header, "Application", {"name": "fedlearn", "version": fedlearn.__version__})
    fields = ET.SubElement(root, "DataDictionary", {"numberOfFields": str(len(points.columns))})
    for column in points.columns:
        kind = ("continuous", "double") if column.kind == "number" else ("categorical", "string")
        ET.SubElement(fields, "DataField", {"name": column.feature, "optype": kind[0], "dataType": kind[1]})
    card = ET.SubElement(
        root,
        "Scorecard",
        {
            "modelName": name,
            "functionName": "regression",
            "algorithmName": "logistic regression on weights of evidence",
            "initialScore": "0",
            "useReasonCodes": "true",
            "reasonCodeAlgorithm": "pointsBelow",
            "baselineMethod": "max" if points.settings.against == "best" else "mean",
        },
    )
    schema = ET.SubElement(card, "MiningSchema")
    for column in points.columns:
        ET.SubElement(schema, "MiningField", {"name": column.feature, "invalidValueTreatment": "asIs"})
    output = ET.SubElement(card, "Output")
    ET.SubElement(
        output,
        "OutputField",
        {"name": "points", "feature": "predictedValue", "dataType": "double", "optype": "continuous"},
    )
    for rank in range(1, min(points.settings.reasons, len(points.columns)) + 1):
        ET.SubElement(
            output,
            "OutputField",
            {"name": f"reason_{rank}", "feature": "reasonCode", "rank": str(rank), "dataType": "string",
             "optype": "categorical"},
        )  # fmt: skip
    characteristics = ET.SubElement(card, "Characteristics")
    for column, by_group, code, baseline in zip(
        points.columns, points.points, points.codes, points.references, strict=True
    ):
        entry = ET.SubElement(
            characteristics,
            "Characteristic",
            {"name": column.name, "reasonCode": code or column.name, "baselineScore": repr(baseline)},
        )
        _attributes(entry, column, by_group[evidence_of(column).group].tolist())
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _attributes(entry: ET.Element, column: Column, by_bin: list[float]) -> None:
    evidence = evidence_of(column)
    bins, field = evidence.codes.bins, column.feature
    missing = by_bin[bins.regular]

    def simple(points: float, operator: str, **value: str) -> None:
        ET.SubElement(_attribute(entry, points), "SimplePredicate", {"field": field, "operator": operator, **value})

    simple(missing, "isMissing")
    for k, special in enumerate(evidence.codes.special):
        simple(by_bin[bins.bins + k], "equal", value=repr(float(special)))
    if column.kind == "number":
        for edge, points in zip(bins.edges.tolist(), by_bin, strict=False):
            simple(points, "lessOrEqual", value=repr(float(edge)))
        rest = by_bin[len(bins.edges)]
    else:
        texts, groups = np.array(bins.categories, object), evidence.group[: len(bins.categories)]
        for group in dict.fromkeys(groups.tolist()):
            chosen = texts[groups == group].tolist()
            inside = ET.SubElement(
                _attribute(entry, by_bin[int(np.argmax(groups == group))]),
                "SimpleSetPredicate",
                {"field": field, "booleanOperator": "isIn"},
            )
            array = ET.SubElement(inside, "Array", {"n": str(len(chosen)), "type": "string"})
            array.text = " ".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in chosen)
        rest = missing
    ET.SubElement(_attribute(entry, rest), "True")


def _attribute(entry: ET.Element, points: float) -> ET.Element:
    return ET.SubElement(entry, "Attribute", {"partialScore": repr(float(points))})
