"""``fedlearn bench growth``: how the cost of a tree grows with rows, features, bins, depth, and the link.

One thing at a time is changed from the usual case. Each line is one run of ``fedlearn bench boost``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlearn.bench import boost
from fedlearn.errors import FileMissing

_USUAL = boost.Setting(
    rows=100_000,
    active_features=15,
    passive_features=15,
    bins=32,
    depth=5,
    trees=5,
    gradient_bits=8,
    backend="lwe",
    routing="bits",
)
_FEW = 2  # trees where a run takes long

#: What is varied, as (heading, field, values, other fields).
_VARIED: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("rows", "rows", (10_000, 30_000, 100_000, 300_000, 1_000_000), {}),
    ("rows, oblivious", "rows", (10_000, 30_000, 100_000, 300_000, 1_000_000), {"routing": "oblivious"}),
    ("passive features", "passive_features", (10, 30, 100, 300, 1000), {"rows": 30_000, "trees": _FEW}),
    ("bins", "bins", (8, 16, 32, 64, 128, 255), {}),
    ("depth", "depth", (2, 3, 4, 5, 6, 7, 8), {}),
    ("gradient bits", "gradient_bits", (2, 4, 6, 8), {"rows": 10_000}),
    ("link", "link", ("loopback", "lan", "100mbit", "10mbit"), {"trees": _FEW}),
    ("link, oblivious", "link", ("loopback", "lan", "100mbit", "10mbit"), {"trees": _FEW, "routing": "oblivious"}),
]
_COLUMNS = {
    "s a tree": "seconds_per_tree",
    "XGBoost, s a tree": "xgboost_seconds_per_tree",
    "ratio": "ratio_to_xgboost",
    "MB a tree, active": "bytes_per_tree_active",
    "MB a tree, passive": "bytes_per_tree_passive",
}

Runs = dict[str, list[dict[str, Any]]]


def measure(
    only: str | None = None,
    told: Callable[[str], None] = lambda _: None,
    keep: Callable[[Runs], None] = lambda _: None,
) -> Runs:
    """All runs by heading; ``only`` limits them to one.

    ``told`` hears of each run before it starts; ``keep`` gets all runs so far after each heading.

    Raises:
        FedlearnError: a party failed, with what it said.
    """
    runs: Runs = {}
    for heading, field, values, more in _VARIED:
        if only not in (None, heading):
            continue
        runs[heading] = []
        for value in values:
            told(f"{heading}: {value}")
            runs[heading].append(boost.measure(replace(_USUAL, **{**more, field: value})))
        keep(runs)
    return runs


def tables(runs: Runs) -> str:
    """The runs as Markdown tables."""
    lines = []
    for heading, field, _, more in _VARIED:
        if heading not in runs:
            continue
        told = replace(_USUAL, **more)
        lines += [f"## {heading}", "", _circumstances(told, field), ""]
        lines += ["| " + " | ".join([field.replace("_", " "), *_COLUMNS]) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
        for run in runs[heading]:
            cells = [run[name] / 1e6 if name.startswith("bytes") else run[name] for name in _COLUMNS.values()]
            lines.append(
                "| " + " | ".join([f"{run[field]:,}" if field != "link" else run[field], *map(_short, cells)]) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def _circumstances(setting: boost.Setting, varied: str) -> str:
    facts = {
        "rows": f"{setting.rows:,} rows",
        "passive_features": f"{setting.active_features} + {setting.passive_features} features",
        "bins": f"{setting.bins} bins",
        "depth": f"depth {setting.depth}",
        "gradient_bits": f"{setting.gradient_bits} gradient bits",
    }
    said = [text for name, text in facts.items() if name != varied]
    return ", ".join([*said, f"{setting.routing} routing", f"mean of {setting.trees} trees"]) + "."


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(runs: Runs, path: Path) -> None:
    """Seconds a tree against what is varied, one panel for each, as SVG.

    Raises:
        FileMissing: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise FileMissing("plots need matplotlib, which is not installed: pip install matplotlib") from None
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot as plt

    fields = {field: [h for h, f, _, _ in _VARIED if f == field and h in runs] for _, field, _, _ in _VARIED}
    shown = {field: headings for field, headings in fields.items() if headings}
    figure, panels = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.0), squeeze=False, layout="constrained")
    for panel, (field, headings) in zip(panels[0], shown.items(), strict=True):
        for heading in headings:
            values = [str(run[field]) if field == "link" else run[field] for run in runs[heading]]
            label = "oblivious" if heading.endswith("oblivious") else "bits"
            panel.plot(values, [run["seconds_per_tree"] for run in runs[heading]], "o-", label=label)
        values = [str(run[field]) if field == "link" else run[field] for run in runs[headings[0]]]
        yardstick = [run["xgboost_seconds_per_tree"] for run in runs[headings[0]]]
        panel.plot(values, yardstick, "--", color="grey", label="XGBoost, pooled")
        panel.set_yscale("log")
        if field in ("rows", "passive_features"):
            panel.set_xscale("log")
        panel.set_xlabel(field.replace("_", " "))
    panels[0][0].set_ylabel("seconds a tree")
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(runs: Runs, folder: Path) -> None:
    """``growth.json``, ``growth.md`` and ``growth.svg`` in a folder. Raises as :func:`plot`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (folder / "growth.md").write_text(tables(runs), encoding="utf-8")
    plot(runs, folder / "growth.svg")
