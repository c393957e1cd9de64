"""Points and reasons that JPMML (Java) gives to rows by our PMML: writes tests/vectors/pmml.json, for test_scorecard.

JPMML is under the AGPL and needs a Java runtime, so this is no dependency. Run it in an environment that has this
package, jpmml-evaluator and lxml: ``python -m tests.make_pmml_vectors``. The document is also held against JPMML's copy
of the schema, ``pmml.xsd`` in its pmml-model library.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fedlearn.contract import Scorecard
from fedlearn.models.pmml import pmml
from fedlearn.models.scorecard import Points
from tests.test_scorecard import PMML_SETTINGS, SIDE, essence, plain_rows, share
from tests.test_woe import table

PATH = Path(__file__).parent / "vectors" / "pmml.json"


def scored(role: str, settings: Scorecard) -> dict[str, Any]:
    """The document's hash, and what JPMML makes of 60 rows."""
    import jpmml_evaluator
    from lxml import etree

    text = pmml(Points.of(share(role), settings, SIDE), "card")
    (library,) = (Path(jpmml_evaluator.__file__).parent / "dependencies").glob("pmml-model-[0-9]*.jar")
    schema = etree.XMLSchema(etree.parse(io.BytesIO(zipfile.ZipFile(library).read("pmml.xsd"))))
    schema.assertValid(etree.fromstring(text.encode()))
    with tempfile.NamedTemporaryFile("w", suffix=".pmml") as file:
        file.write(text)
        file.flush()
        evaluator = jpmml_evaluator.make_evaluator(file.name).verify()
    found = [evaluator.evaluate(row) for row in plain_rows(table(60, seed=11))]
    return {
        "sha256": hashlib.sha256(essence(text).encode()).hexdigest(),
        "points": [float(one["points"]) for one in found],
        "reasons": [[one[f"reason_{k}"] for k in range(1, settings.reasons + 1)] for one in found],
    }


if __name__ == "__main__":
    body = {f"{role}, {against}": scored(role, settings) for role in ("active", "passive")
            for against, settings in PMML_SETTINGS.items()}  # fmt: skip
    PATH.write_text(json.dumps(body) + "\n", encoding="utf-8")
