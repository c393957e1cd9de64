"""A run in plain words, for those who read no tables: what happened, who learned what, where the files are."""

from __future__ import annotations

from pathlib import Path

from fedlearn.report.markup import size
from fedlearn.report.page import NAMES, Run

_FILES = {
    "share.json": "this side's half of the model; scoring needs both",
    "share.arrow": "the numbers of that half",
    "held_out.csv": "scores of held-out customers, joint and alone, with outcomes: personal data",
    "out_of_time.csv": "scores of customers of the later period, joint and alone, with outcomes: personal data",
    "validation.csv": "scores of the customers that early stopping followed, with outcomes: personal data",
    "fitted.csv": "scores of the training customers, joint and alone, with outcomes: personal data",
    "scores.csv": "scores of the customers asked for: personal data",
    "clusters.csv": "the cluster of every training customer: personal data",
    "scores.parquet": "the same as Parquet: personal data",
    "scorecard.json": "this side's points, for other programs",
    "rows.arrow": "which own rows are shared: personal data",
    "alignment.json": "which alignment this is",
    "alignment.sig": "this side's signature of it",
    "scorecard.pmml": "the same in PMML",
    "weights.json": "weights of evidence of this side's own columns, for `weigh`",
    "disclosed.arrow": "the other side's splits, as far as the contract discloses them",
    "plan.json": "which of this side's columns were kept, and why not the others",
    "reference.json": "how scores and features were distributed in training, to notice drift",
    "report.html": "the report, for people",
    "run.json": "all figures of this run, for programs",
}


def explain(run: Run, folder: Path) -> dict[str, list[str]]:
    """Sentences under headings; the same for any kind of run, as far as it has something to tell."""
    return {
        "What happened": _happened(run),
        f"What {run.facts['party']} learned": _learned(run, str(run.facts["party"])),
        f"What {run.peer} learned": _learned(run, run.peer),
        "Where the files are": _files(folder),
    }


def _happened(run: Run) -> list[str]:
    facts, me, peer = run.facts, run.facts["party"], run.peer
    said = [f"{me} and {peer} ran {facts['job']!r} under the contract {run.contract.name!r}: {run.contract.purpose}."]
    if facts.get("rows_shared") is not None:
        said.append(f"Of {me}'s {facts['rows']:,} rows, {facts['rows_shared']:,} are of customers whom both have.")
    if run.contract.glm is not None and "steps" in facts:
        said.append(
            f"They fitted one {run.contract.glm.family} regression in {facts['steps']} steps on encrypted sums."
        )
    elif run.contract.kmeans is not None and "clusters" in facts:
        said.append(f"They found {len(facts['clusters'])} clusters in {facts['steps']} steps on encrypted sums.")
    elif "trees" in facts or "splits_by_feature" in facts:
        said.append("They grew trees from encrypted gradients; each side keeps the half with its own features.")
    if "joint" in facts:
        name, joint = next(iter(facts["joint"].items()))
        of = run.of or "training rows"
        alone = facts["alone"][name]
        said.append(f"On {of} the {NAMES.get(name, name)} is {alone:.4f} for {me} alone and {joint:.4f} jointly.")
    if "rows_scored" in facts:
        said.append(f"{facts['rows_scored']:,} rows were scored.")
    seconds = sum(p["seconds"] for p in facts["phases"].values())
    sent, received = size(facts["bytes_sent"]), size(facts["bytes_received"])
    said.append(f"It took {seconds:.0f} s; {me} sent {sent} and received {received}.")
    return said


def _learned(run: Run, party: str) -> list[str]:
    """What a party was told, by the ledger, without the messages that reveal nothing."""
    lines = [e for e in run.facts["ledger"] if e["receiver"] == party and not e["reveals"].startswith("nothing")]
    return [f"{e['reveals']} ({e['protocol']}.{e['message']}, {e['values']:,} values)" for e in lines] or ["nothing"]


def _files(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [f"{folder / name}: {_FILES.get(name, 'another file')}" for name in found]
