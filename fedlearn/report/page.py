"""The model report: one HTML file per party, of what that party has in its run's folder, and no more.

Every section takes the :class:`Run` and returns HTML, or nothing where the run has nothing for it. The file needs no
script and asks for nothing from anywhere, so it can be sent, printed and archived.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from fedlearn.contract import Contract
from fedlearn.errors import FileMissing, WrongModel
from fedlearn.learner.woe import score_stability
from fedlearn.report import curves, draw
from fedlearn.report.draw import ALONE, BAD, GOOD, JOINT, PLAIN
from fedlearn.report.markup import Bytes, Markup, Share, join, minus, size, table, tag

F64 = NDArray[np.float64]
#: Files with scored rows that the active side keeps, and which rows these are; a run's first is its main one.
_SAMPLES = {
    "held_out": "held-out rows (cross-validation)",
    "out_of_time": "out-of-time rows",
    "validation": "validation rows (early stopping)",
    "fitted": "training rows",
}
#: How people write the figures' names.
NAMES = {
    "explained": "variance explained",
    "auc": "AUC",
    "ks": "KS",
    "log_loss": "log-loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}


@dataclass(frozen=True)
class Run:
    """What a run left in one party's folder.

    Attributes:
        facts: its run.json.
        contract: under which it ran.
        rows: columns of the main sample of scored rows by name, float64 (n,) each, without IDs; empty without samples.
        sample: its name.
        others: the other samples, likewise.
    """

    facts: dict[str, Any]
    contract: Contract
    rows: dict[str, F64]
    sample: str = ""
    others: dict[str, dict[str, F64]] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """Which rows the sample has, in words."""
        later = self.contract.out_of_time
        since = f", {later.column} from {later.first} on" if later and self.sample == "out_of_time" else ""
        return _SAMPLES.get(self.sample, "") + since

    @property
    def samples(self) -> list[Run]:
        """This run on each of its samples, the main one first; their figures take the place of the run's own."""
        found = {self.sample: self.rows, **self.others} if self.rows else {}
        told = self.facts.get("samples", {})
        return [
            replace(self, facts=self.facts | {"joint": {}, "alone": {}} | told[name] if name in told else self.facts,
                    rows=rows, sample=name, others={})
            for name, rows in found.items()
        ]  # fmt: skip

    @property
    def peer(self) -> str:
        """The other party."""
        return self.contract.peer_of(str(self.facts["party"]))

    @property
    def models(self) -> dict[str, str]:
        """Suffix of each model's columns to its name and colour's key."""
        return {"joint": "joint", "alone": f"{self.facts['party']} alone"}


def load(folder: Path, contract: Contract, party: str) -> Run:
    """Read a party's own run folder.

    Raises:
        FileMissing: there is no run in it.
        WrongModel: it is damaged, another party's, or of another contract.
    """
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(f"no run in {folder}: {error.strerror}") from None
    except ValueError:
        raise WrongModel(f"{folder / 'run.json'} is damaged: not JSON") from None
    if not isinstance(facts, dict) or facts.get("party") != party:
        raise WrongModel(f"the run in {folder} is not of party {party!r}")
    if "contract_hash" not in facts:  # train-alone
        raise WrongModel(f"the run in {folder} is not one of both parties; its run.json has all there is to tell")
    if facts.get("contract_hash") != contract.hash().hex():
        raise WrongModel(f"the run in {folder} was under another contract than {contract.name!r}")
    found = {name: _numbers(folder / f"{name}.csv") for name in _SAMPLES if (folder / f"{name}.csv").exists()}
    if not found:
        return Run(facts, contract, {})
    main = next(iter(found))
    return Run(facts, contract, found.pop(main), main, found)


def _numbers(path: Path) -> dict[str, F64]:
    try:
        found = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"id": pa.string()}))
        return {n: found[n].to_numpy().astype(np.float64) for n in found.column_names if n != "id"}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise WrongModel(f"{path} is damaged: {error}") from None


def page(run: Run) -> str:
    """The report as an HTML document."""
    style = resources.files("fedlearn.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"{run.contract.name}: model report of {run.facts['party']}"
    parts = (_head, _cards, _contract, _data, _samples, _judged, _folds, _coefficients, _points, _importance,
             _clusters, _targets, _stability, _others, _ledger, _timings)  # fmt: skip
    head = tag(
        "head", Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title), tag("style", Markup(style)),
    )  # fmt: skip
    end = f"Made from the run folder of {run.facts['party']} alone; {run.peer} has its own report, of what it may see."
    body = tag("body", _with_contents([part(run) for part in parts]), tag("footer", end))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _with_contents(parts: list[Markup | None]) -> Markup:
    """The sections, with a list of their headings after the head and the cards. Texts are escaped: an h2 is ours."""
    before, *sections = join(*parts[2:]).split("<h2>")
    links, found = [], [Markup(before)]
    for k, section in enumerate(sections, 1):
        links.append(tag("a", Markup(section.split("</h2>")[0]), href=f"#s{k}"))
        found.append(Markup(f'<h2 id="s{k}">{section}'))
    return join(*parts[:2], tag("nav", *links, aria_label="Contents"), *found)


def write(folder: Path, contract: Contract, party: str) -> Path:
    """Write ``report.html`` into a party's own run folder, and return where. Raises as :func:`load`."""
    path = folder / "report.html"
    path.write_text(page(load(folder, contract, party)), encoding="utf-8")
    return path


# --- what ran ----------------------------------------------------------------------------------------


def _head(run: Run) -> Markup:
    facts = run.facts
    side = "brings the outcome and gets the scores" if facts["role"] == "active" else "brings features only"
    kind = {"train": "Training", "predict": "Scoring"}.get(facts["job"], facts["job"].capitalize())
    told = f"{kind} with {run.peer}, as {facts['party']} may see it, which {side}."
    return join(
        tag("p", f"Model report of {facts['party']}", class_="kind"), tag("h1", run.contract.name),
        tag("p", run.contract.purpose, class_="lead"), tag("p", told, class_="quiet"),
    )  # fmt: skip


def _card(name: str, value: object, note: object = "") -> Markup:
    return tag("div", tag("small", name), tag("b", value), tag("small", note), class_="card")


def _cards(run: Run) -> Markup:
    facts, found = run.facts, []
    if facts.get("rows_shared") is not None:  # with one-sided alignment, the passive side does not learn it
        found.append(_card("Shared customers", f"{facts['rows_shared']:,}", f"of {facts['rows']:,} own rows"))
    if "joint" in facts:
        for name, value in facts["joint"].items():
            alone = f"{facts['party']} alone {facts['alone'][name]:.4f}"
            found.append(_card(f"{NAMES.get(name, name)}, joint", f"{value:.4f}", alone))
    if _binary(run):
        gain = curves.uplift_of(run.rows["label"], run.rows["log_odds_joint"], run.rows["log_odds_alone"])
        if gain:
            found.append(
                _card("Uplift in AUC", f"{gain.value:+.4f}", minus(f"95 %: {gain.low:+.4f} to {gain.high:+.4f}"))
            )
    seconds = sum(p["seconds"] for p in facts["phases"].values())
    found.append(_card("Time", f"{seconds:.1f} s", f"{size(facts['bytes_sent'] + facts['bytes_received'])} exchanged"))
    return tag("div", *found, class_="cards")


def _contract(run: Run) -> Markup:
    contract, facts = run.contract, run.facts
    algorithm = (
        f"{contract.glm.family} regression{' on weights of evidence' if contract.glm.woe else ''}"
        if contract.glm
        else f"k-means, {contract.kmeans.clusters} clusters"
        if contract.kmeans
        else f"{contract.boost.trees} rounds of trees of depth {contract.boost.depth}, {contract.boost.objective}, "
        f"{contract.boost.folds} folds, {contract.boost.routing} routing"
    )
    lines: list[list[object]] = [
        ["Purpose", contract.purpose],
        ["Valid until", str(contract.expires)],
        ["Contract hash", tag("code", contract.hash().hex())],
        ["Outcome side", f"{contract.active.name}: {', '.join(contract.active.features)}"],
        ["Feature side", f"{contract.passive.name}: {', '.join(contract.passive.features)}"],
        ["Outcome", ", ".join(contract.label.columns) or "none"],
        ["Alignment", f"{contract.align.mode} on {', '.join(k.column for k in contract.align.keys)}"],
        ["Algorithm", algorithm],
        ["Encryption", contract.encryption.backend],
        ["Differential privacy", _privacy(contract)],
        ["Model", tag("code", facts.get("model_id", "none"))],
        ["Session", tag("code", facts["session"])],
    ]
    return join(tag("h2", "Purpose and contract"), table(["", ""], lines))


def _privacy(contract: Contract) -> str:
    noise = contract.privacy
    return "none: sums are exact" if noise is None else f"epsilon {noise.epsilon:g}, delta {noise.delta:g}"


def _data(run: Run) -> Markup:
    facts, lines = run.facts, []
    lines.append(["Own rows", facts["rows"]])
    lines += [[f"Left out: {name.replace('_', ' ')}", count] for name, count in facts.get("skipped", {}).items()]
    if facts.get("rows_shared") is not None:
        lines.append(["Shared rows", facts["rows_shared"]])
        lines.append(["Share of own rows found at the peer", Share(facts["rows_shared"] / max(facts["rows"], 1))])
    lines += [[f"Shared rows by {key}", count] for key, count in facts.get("rows_by_key", {}).items()]
    if "label" in run.rows and run.contract.target != "classes":
        name = "Base rate" if run.contract.target == "binary" else "Mean outcome"
        mean = float(run.rows["label"].mean())
        lines.append([f"{name} of the {run.of}", Share(mean) if name == "Base rate" else mean])
    return join(
        tag("h2", "Data"), table(["", ""], lines), *(tag("p", f"Warning: {w}") for w in facts.get("warnings", []))
    )


# --- scores against outcomes -------------------------------------------------------------------------


def _samples(run: Run) -> Markup | None:
    """Every sample side by side: does the model hold on rows that it has not seen, and later?"""
    if len(run.samples) < 2:
        return None
    names = list(run.facts["joint"])
    lines: list[list[object]] = []
    for sample in run.samples:
        for suffix, model in run.models.items():
            figures = sample.facts[suffix]
            rate = float(sample.rows["label"].mean()) if run.contract.target != "classes" else ""
            lines.append([sample.of, model, len(sample.rows["label"]), rate, *(figures.get(n, "") for n in names)])
    rate_name = {"binary": "Base rate", "classes": ""}.get(run.contract.target, "Mean outcome")
    head = ["Rows judged", "Model", "Rows", rate_name, *(NAMES.get(n, n) for n in names)]
    note = "Training rows flatter every model: only rows that it has not seen say how it will do."
    return join(tag("h2", "Samples"), table(head, lines), tag("p", note, class_="note"))


def _judged(run: Run) -> Markup:
    """All that scores against outcomes show, of one sample."""
    return join(_discrimination(run), _number(run), _classes(run))


def _others(run: Run) -> Markup:
    """The same of the other samples, out of time first."""
    return join(*(_judged(sample) for sample in run.samples[1:]))


def _binary(run: Run) -> bool:
    return {"label", "log_odds_joint", "log_odds_alone"} <= set(run.rows) and 0 < run.rows["label"].mean() < 1


def _discrimination(run: Run) -> Markup | None:
    if not _binary(run):
        return None
    label, colours = run.rows["label"], {"joint": JOINT, "alone": ALONE}
    legend = {name: colours[suffix] for suffix, name in run.models.items()}
    lines: list[list[object]] = []
    for suffix, name in run.models.items():
        score, values = run.rows[f"log_odds_{suffix}"], run.facts["joint" if suffix == "joint" else "alone"]
        lines.append([name, str(curves.auc_of(label, score) or "too few rows"), values["ks"], 2 * values["auc"] - 1,
                      values["log_loss"]])  # fmt: skip
    plots = [_roc(run, legend, colours), _ks(run), _gain(run, legend, colours), _lift(run, legend, colours),
             _calibration(run, legend, colours), _distribution(run)]  # fmt: skip
    gain = curves.uplift_of(label, run.rows["log_odds_joint"], run.rows["log_odds_alone"])
    told = f"AUC of the joint model less that of {run.facts['party']} alone: {gain}; 95 % interval, DeLong, paired."
    return join(
        tag("h2", f"Discrimination and calibration on {run.of}"),
        table(["Model", "AUC (95 % interval, DeLong)", "KS", "Gini", "log-loss"], lines),
        tag("p", told) if gain else None,
        tag("div", *plots, class_="plots"), _bands(run), _cut_offs(run),
    )  # fmt: skip


def _roc(run: Run, legend: dict[str, str], colours: dict[str, str]) -> Markup:
    marks = [draw.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), PLAIN, "4 4")]
    for suffix, colour in colours.items():
        _, good, bad = curves.distributions(run.rows["label"], -run.rows[f"log_odds_{suffix}"])
        marks.append(draw.line(np.concatenate([[0.0], good]), np.concatenate([[0.0], bad]), colour))
    return draw.plot("ROC", marks, (0, 1), (0, 1), "false positives", "true positives", legend)


def _ks(run: Run) -> Markup:
    score, good, bad = curves.distributions(run.rows["label"], run.rows["log_odds_joint"])
    k = int(np.argmax(good - bad))
    marks = [
        draw.line(score, good, GOOD), draw.line(score, bad, BAD),
        draw.line(score[[k, k]], np.array([bad[k], good[k]]), PLAIN, "4 4"),
    ]  # fmt: skip
    legend = {"label 0": GOOD, "label 1": BAD}
    note = minus(f"joint: KS {good[k] - bad[k]:.4f} at log-odds {score[k]:.3f}")
    return draw.plot("KS", marks, _ends(score), (0, 1), "log-odds", "share at or below", legend, note)


def _gain(run: Run, legend: dict[str, str], colours: dict[str, str]) -> Markup:
    marks = [draw.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), PLAIN, "4 4")]
    for suffix, colour in colours.items():
        marks.append(draw.line(*curves.gains(run.rows["label"], run.rows[f"log_odds_{suffix}"]), colour))
    return draw.plot("Gain", marks, (0, 1), (0, 1), "share of rows, riskiest first", "share of label 1 found", legend)


def _lift(run: Run, legend: dict[str, str], colours: dict[str, str]) -> Markup:
    marks, top = [], 1.0
    for suffix, colour in colours.items():
        score = run.rows[f"log_odds_{suffix}"]
        lift = np.array([b["lift"] for b in curves.band_table(run.rows["label"], score, score)])
        marks.append(draw.dots(np.arange(1.0, len(lift) + 1), lift, colour))
        marks.append(draw.line(np.arange(1.0, len(lift) + 1), lift, colour))
        top = max(top, float(lift.max()))
    return draw.plot("Lift by decile", marks, (0.5, 10.5), (0, top * 1.05), "decile, riskiest first", "lift", legend)


def _calibration(run: Run, legend: dict[str, str], colours: dict[str, str]) -> Markup:
    marks, top = [], 0.0
    for suffix, colour in colours.items():
        predicted = run.rows[f"probability_{suffix}"]
        lines = curves.band_table(run.rows["label"], predicted, predicted)
        x, rows = np.array([b["predicted"] for b in lines]), np.array([b["rows"] for b in lines], np.float64)
        low, high = curves.wilson(np.array([b["sum"] for b in lines]), rows)
        marks.append(draw.dots(x, np.array([b["mean"] for b in lines]), colour, low, high))
        top = max(top, float(x.max()), float(high.max()))
    ends = np.array([0.0, top])
    marks.insert(0, draw.line(ends, ends, PLAIN, "4 4"))
    note = "deciles of the prediction, 95 % Wilson intervals"
    return draw.plot("Calibration", marks, (0, top), (0, top), "mean prediction", "observed rate", legend, note)


def _distribution(run: Run) -> Markup:
    score, bad = run.rows["log_odds_joint"], run.rows["label"] == 1
    edges = np.linspace(*_ends(score), 31)
    heights = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (score[~bad], score[bad])]
    marks = [draw.steps(edges, h, colour) for h, colour in zip(heights, (GOOD, BAD), strict=True)]
    top = float(np.max(heights)) * 1.05
    legend = {"label 0": GOOD, "label 1": BAD}
    return draw.plot(
        "Score distribution", marks, _ends(score), (0, top), "joint log-odds", "share of the class", legend
    )


def _ends(values: F64) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bands(run: Run) -> Markup:
    predicted = run.rows["probability_joint"]
    found = curves.band_table(run.rows["label"], predicted, predicted)
    most = max(b["mean"] for b in found) or 1.0
    lines: list[list[object]] = [
        [b["band"], b["rows"], Share(b["lowest"]), Share(b["highest"]), int(b["sum"]), b["lift"], Share(b["captured"]),
         Share(b["mean_so_far"]), Share(b["mean"]), draw.bar(b["mean"] / most, BAD)]
        for b in found
    ]  # fmt: skip
    head = ["Band", "Rows", "From", "To", "Bad", "Lift", "Captured", "Bad rate so far", "Bad rate", ""]
    return join(tag("h3", "Score bands of the joint model, riskiest first"), table(head, lines))


def _cut_offs(run: Run) -> Markup:
    head = ["Refuse from", "Accepted", "True positive", "False positive", "False negative", "True negative",
            "Precision", "Recall", "Bad rate of the accepted"]  # fmt: skip
    found = []
    for suffix, name in run.models.items():
        lines = curves.cut_offs(run.rows["label"], run.rows[f"probability_{suffix}"])
        rows: list[list[object]] = [
            [
                Share(c["cut"]),
                Share(c["accepted"]),
                c["tp"],
                c["fp"],
                c["fn"],
                c["tn"],
                Share(c["precision"]),
                Share(c["recall"]),
                Share(c["bad_accepted"]),
            ]
            for c in lines
        ]
        found.append(table(head, rows, name))
    return join(tag("h3", "Confusion at cut-offs"), *found)


def _number(run: Run) -> Markup | None:
    """A predicted amount: errors, their difference with an interval, and deciles."""
    if "prediction_joint" not in run.rows:
        return None
    label, colours = run.rows["label"], {"joint": JOINT, "alone": ALONE}
    legend = {name: colours[suffix] for suffix, name in run.models.items()}
    square = {s: (run.rows[f"prediction_{s}"] - label) ** 2 for s in colours}
    gain = curves.mean_of(square["alone"] - square["joint"])
    lines: list[list[object]] = [
        [name, *(run.facts["joint" if s == "joint" else "alone"][k] for k in ("rmse", "mae", "r2"))]
        for s, name in run.models.items()
    ]
    marks, top, low = [], -np.inf, np.inf
    for suffix, colour in colours.items():
        predicted = run.rows[f"prediction_{suffix}"]
        found = curves.band_table(label, predicted, predicted)
        x, y = np.array([b["predicted"] for b in found]), np.array([b["mean"] for b in found])
        marks.append(draw.dots(x, y, colour))
        top, low = max(top, float(x.max()), float(y.max())), min(low, float(x.min()), float(y.min()))
    ends = np.array([low, top])
    marks.insert(0, draw.line(ends, ends, PLAIN, "4 4"))
    plots = [
        draw.plot("Deciles of the prediction", marks, (low, top), (low, top), "mean prediction", "mean outcome", legend)
    ]
    if label.min() >= 0 and label.sum() > 0:
        curve = [draw.line(*curves.gains(label, run.rows[f"prediction_{s}"]), c) for s, c in colours.items()]
        plots.append(
            draw.plot("Gain", curve, (0, 1), (0, 1), "share of rows, largest first", "share of the total", legend)
        )
    told = f"Mean squared error of {run.facts['party']} alone less that of the joint model: {gain} (95 % interval)."
    return join(
        tag("h2", f"Predicted amounts on {run.of}"), table(["Model", "RMSE", "MAE", "R²"], lines), tag("p", told),
        tag("div", *plots, class_="plots"),
    )  # fmt: skip


def _classes(run: Run) -> Markup | None:
    """Several classes: one against the rest, and the confusion of the joint model."""
    names = run.contract.label.classes
    if not names or f"probability_{names[0]}_joint" not in run.rows:
        return None
    label = run.rows["label"].astype(np.int64)
    scores = {s: np.stack([run.rows[f"probability_{n}_{s}"] for n in names]) for s in run.models}
    lines: list[list[object]] = []
    for k, name in enumerate(names):
        one = (label == k).astype(np.float64)
        areas = [str(curves.auc_of(one, scores[s][k]) or "too few rows") for s in run.models]
        gain = curves.uplift_of(one, scores["joint"][k], scores["alone"][k])
        lines.append([name, int(one.sum()), *areas, str(gain or "too few rows")])
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (label, scores["joint"].argmax(axis=0)), 1)
    confusion: list[list[object]] = [[f"is {name}", *map(int, counts[k])] for k, name in enumerate(names)]
    return join(
        tag("h2", f"Classes on {run.of}"),
        table(["Class", "Rows", *(f"AUC against the rest, {m}" for m in run.models.values()), "Uplift"], lines),
        tag("h3", "Confusion of the joint model"), table(["", *(f"said {name}" for name in names)], confusion),
    )  # fmt: skip


def _folds(run: Run) -> Markup | None:
    """How even the model is over the folds."""
    if not _binary(run) or "fold" not in run.rows:
        return None
    lines: list[list[object]] = []
    for k in np.unique(run.rows["fold"]):
        chosen = run.rows["fold"] == k
        label = run.rows["label"][chosen]
        areas = [str(curves.auc_of(label, run.rows[f"log_odds_{s}"][chosen]) or "too few rows") for s in run.models]
        lines.append([int(k), int(chosen.sum()), Share(label.mean()), *areas])
    head = ["Fold", "Rows", "Base rate", *(f"AUC, {name}" for name in run.models.values())]
    return join(tag("h2", "Stability over folds"), table(head, lines))


# --- the model ---------------------------------------------------------------------------------------


def _targets(run: Run) -> Markup | None:
    """Figures of every label column, where there are several."""
    found = run.facts.get("targets")
    if not found:
        return None
    lines: list[list[object]] = []
    for column, values in found.items():
        for name, joint in values["joint"].items():
            alone = values["alone"][name]
            lines.append([column, NAMES.get(name, name), alone, joint, joint - alone])
    heads = ["label", "figure", f"{run.facts['party']} alone", "joint", "difference"]
    return join(tag("h2", "All labels"), tag("p", "Models that grew together on one hint."), table(heads, lines))


def _clusters(run: Run) -> Markup | None:
    """Centres of a k-means: own columns in their own units, opaque ones in standard deviations from the mean."""
    found = run.facts.get("clusters")
    if not found:
        return None
    told = "Means of every cluster; of a category, the share of rows with that text."
    heads = ["", *(f"cluster {line['cluster']}" for line in found)]
    lines: list[list[object]] = [["rows", *(line["rows"] for line in found)]] if "rows" in found[0] else []
    for part in ("profile", "peer_standardised"):
        for name in found[0].get(part, {}):
            lines.append([name, *(round(line[part][name], 3) for line in found)])
    if "peer_standardised" in found[0]:
        told += f" The columns of {run.peer} in standard deviations from their means."
    return join(tag("h2", "Clusters"), tag("p", told), table(heads, lines))


def _coefficients(run: Run) -> Markup | None:
    facts, found = run.facts, []
    titles = {
        "coefficients": "Own coefficients",
        "peer_coefficients_standardised": f"Coefficients of {run.peer}, of standardised columns",
    }
    for key, title in titles.items():
        if facts.get(key):
            head = list(dict.fromkeys(name for line in facts[key] for name in line))
            found.append(table(head, [[line.get(h, "") for h in head] for line in facts[key]], title))
    if facts.get("iv"):
        top = max(facts["iv"].values()) or 1.0
        rows: list[list[object]] = [[name, value, draw.bar(value / top)] for name, value in facts["iv"].items()]
        found.append(table(["Column", "IV", ""], rows, "Information values"))
    if facts.get("variance_inflation"):
        found.append(
            table(["Column", "VIF"], [[n, v] for n, v in facts["variance_inflation"].items()], "Variance inflation")
        )
    return join(tag("h2", "The regression"), *found) if found else None


def _points(run: Run) -> Markup | None:
    if not run.facts.get("points"):
        return None
    scale = run.contract.scorecard
    most = max([1e-9, *(abs(p["woe"]) for p in run.facts["points"])])
    lines: list[list[object]] = [
        [p["column"], " or ".join(p["bins"]), p["rows"], p["woe"], round(p["points"], 1),
         draw.bar(abs(p["woe"]) / most, BAD if p["woe"] < 0 else GOOD)]
        for p in run.facts["points"]
    ]  # fmt: skip
    told = (
        f"{scale.base_score:g} points at odds of {scale.base_odds:g} to 1; {scale.pdo:g} points double the odds."
        if scale
        else ""
    )
    told += " Bars: the weight of evidence, green for fewer bad ones than on average and red for more."
    head = ["Column", "Bin", "Rows", "WOE", "Points", ""]
    return join(tag("h2", "Weights of evidence and points, own columns"), tag("p", told), table(head, lines))


def _importance(run: Run) -> Markup | None:
    facts = run.facts
    if facts.get("importance"):
        gains = [e["gain"] for e in facts["importance"].values()]
        total, most = sum(gains) or 1.0, max(gains) or 1.0
        rows: list[list[object]] = [
            [name, e["cover"], int(e["splits"]), Share(e["gain"] / total), draw.bar(e["gain"] / most)]
            for name, e in facts["importance"].items()
        ]
        note = f"Names with a number are columns of {run.peer}, which keeps their names to itself."
        head = ["Feature", "Cover", "Splits", "Share of gain", ""]
        opaque = any("#" in name for name in facts["importance"])
        return join(tag("h2", "Importance"), table(head, rows), tag("p", note, class_="note") if opaque else None)
    if facts.get("splits_by_feature"):
        most = max([1, *facts["splits_by_feature"].values()])
        rows = [[name, n, draw.bar(n / most)] for name, n in facts["splits_by_feature"].items()]
        return join(tag("h2", "Own features in the model"), table(["Feature", "Splits", ""], rows))
    return None


def _stability(run: Run) -> Markup | None:
    """Drift of a scored table, or of the later period, against the training rows."""
    found = dict(run.facts.get("stability_index", {}))
    if "score_stability_index" in run.facts:
        found["(score)"] = run.facts["score_stability_index"]
    found |= _later_stability(run)
    if not found:
        return None
    rows: list[list[object]] = [[name, value] for name, value in found.items()]
    return join(tag("h2", "Stability against the training rows"), table(["Column", "PSI"], rows))


def _later_stability(run: Run) -> dict[str, float]:
    """Stability index of the joint prediction between training and out-of-time rows, over deciles of the former."""
    rows = {sample.sample: sample.rows for sample in run.samples}
    column = next((c for c in ("log_odds_joint", "prediction_joint") if c in run.rows), None)
    if column is None or not {"fitted", "out_of_time"} <= set(rows):
        return {}
    return {"(score, out of time)": score_stability(rows["fitted"][column], rows["out_of_time"][column])}


# --- the conversation --------------------------------------------------------------------------------


def _ledger(run: Run) -> Markup:
    facts, ledger = run.facts, run.facts["ledger"]
    most = max([1, *(line["bytes"] for line in ledger)])
    colours = {facts["party"]: JOINT, run.peer: ALONE}
    rows: list[list[object]] = [
        [f"{e['protocol']}.{e['message']}", tag("span", f"{e['sender']} → {e['receiver']}", class_="whole"),
         tag("span", e["reveals"], class_="quiet") if e["reveals"].startswith("nothing") else e["reveals"],
         e["values"], e["messages"], Bytes(e["bytes"]), draw.bar(e["bytes"] / most, colours[e["sender"]])]
        for e in ledger
    ]  # fmt: skip
    told = f"Noise of all encrypted answers together leaks at most {facts['kl_nats']:.2g} nats."
    if "epsilon" in facts:
        told += (
            f" The sums with noise spent epsilon {facts['epsilon']:.3g} at delta {facts['delta']:.2g}, which covers "
            "neither the alignment nor the sides of rows."
        )
    head = ["Message", "From → to", "What the receiver learns", "Values", "Messages", "Size", ""]
    return join(
        tag("h2", "Who learned what"),
        tag("p", "Both sides keep the same ledger and compared it before they parted. ", told),
        draw.conversation(facts["party"], run.peer, facts["phases"]),
        table(head, rows),
    )


def _timings(run: Run) -> Markup:
    slowest = max([1e-9, *(p["seconds"] for p in run.facts["phases"].values())])
    rows: list[list[object]] = [
        [name, round(p["seconds"], 2), round(p["cpu_seconds"], 2), Bytes(p["bytes_sent"]), Bytes(p["bytes_received"]),
         draw.bar(p["seconds"] / slowest, PLAIN)]
        for name, p in run.facts["phases"].items()
    ]  # fmt: skip
    return join(tag("h2", "Timings"), table(["Phase", "Seconds", "CPU seconds", "Sent", "Received", ""], rows))
