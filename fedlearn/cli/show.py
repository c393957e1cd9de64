"""What the operator sees: progress while a job runs, and its result as tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fedlearn.channel.channel import Progress

#: Results go to standard output, progress and errors to standard error. Brackets in paths and names are no markup.
out = Console(width=None if sys.stdout.isatty() else 140, markup=False)
err = Console(stderr=True, markup=False)

Report = Callable[[Progress], None]


def bars() -> Bars:
    """Progress bars with phase, count, bytes, elapsed and remaining time."""
    return Bars(
        TextColumn("[bold]{task.fields[party]}"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[traffic]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def traffic(sent: int, received: int) -> str:
    """Bytes both ways, short."""
    return f"↑{sent / 1e6:.1f} ↓{received / 1e6:.1f} MB"


@contextmanager
def progress(party: str, style: str) -> Iterator[Report | None]:
    """Show a job's progress.

    Args:
        party: whose.
        style: ``auto`` (bars on a terminal, else lines), ``lines``, ``json`` (one object a line) or ``none``.
    """
    if style == "none":
        yield None
    elif style == "json":
        yield _json_lines(party)
    elif style == "lines" or not err.is_terminal:
        yield _lines(party)
    else:
        with bars() as display:
            yield _live(party, display)


@contextmanager
def progress_of_two(parties: tuple[str, str], quiet: bool) -> Iterator[Callable[[str, Progress], None]]:
    """Show the progress of two parties that run on this machine; called as report(party, progress)."""
    if quiet:
        yield lambda party, p: None
    elif err.is_terminal:
        with bars() as display:
            live = {party: _live(party, display) for party in parties}
            yield lambda party, p: live[party](p)
    else:
        lines = {party: _lines(party) for party in parties}
        yield lambda party, p: lines[party](p)


def _live(party: str, display: Bars) -> Report:
    tasks: dict[str, Any] = {}

    def report(p: Progress) -> None:
        if p.phase not in tasks:
            tasks[p.phase] = display.add_task(f"{p.phase} ({p.unit})", total=p.total, party=party, traffic="")
        display.update(tasks[p.phase], completed=p.done, total=p.total, traffic=traffic(p.bytes_sent, p.bytes_received))

    return report


def _every(interval: float, report: Report) -> Report:
    """Pass on at most one report of a phase in ``interval`` seconds, and always its last."""
    last: dict[str, float] = {}

    def sometimes(p: Progress) -> None:
        now = time.monotonic()
        if p.done >= p.total or now - last.get(p.phase, -interval) >= interval:
            last[p.phase] = now
            report(p)

    return sometimes


def _lines(party: str) -> Report:
    def report(p: Progress) -> None:
        left = p.seconds / p.done * (p.total - p.done) if p.done else 0.0
        print(
            f"{party}: {p.phase} {p.done}/{p.total} {p.unit}, {traffic(p.bytes_sent, p.bytes_received)}, "
            f"{p.seconds:.1f} s, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return _every(2.0, report)


def _json_lines(party: str) -> Report:
    def report(p: Progress) -> None:
        # One write: an interrupt must not leave half a line for the error to stand behind.
        sys.stderr.write(json.dumps({"progress": {"party": party, **vars(p)}}) + "\n")
        sys.stderr.flush()

    return _every(0.1, report)


# --- results as tables -------------------------------------------------------------------------------


_FIGURES = {"auc": "AUC", "ks": "KS", "log_loss": "log-loss", "rmse": "RMSE", "mae": "MAE", "r2": "R²"}


def figures_table(rows: dict[str, dict[str, float]], title: str) -> Table:
    """Figures of merit by model."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in next(iter(rows.values())):
        table.add_column(_FIGURES.get(name, name), justify="right")
    for model, row in rows.items():
        table.add_row(model, *(f"{value:.4f}" for value in row.values()))
    return table


def phases_table(sides: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Seconds and bytes by phase, for one or both parties."""
    table = Table(title="Seconds and bytes by phase", title_justify="left")
    table.add_column("phase")
    for party in sides:
        table.add_column(f"{party} s", justify="right")
        table.add_column(f"{party} sent", justify="right")
    names = list(dict.fromkeys(name for phases in sides.values() for name in phases))
    for name in names:
        cells = [name]
        for phases in sides.values():
            phase = phases.get(name)
            cells += [f"{phase['seconds']:.2f}", _size(phase["bytes_sent"])] if phase else ["", ""]
        table.add_row(*cells)
    return table


def ledger_table(lines: list[dict[str, Any]], kl_nats: float, privacy: tuple[float, float] | None = None) -> Table:
    """Who learned what: the same on both sides. ``privacy``: the (ε, δ) of sums with noise."""
    table = Table(title="Leakage ledger (identical on both sides)", title_justify="left")
    table.add_column("message", overflow="fold")
    table.add_column("from → to", overflow="fold")
    table.add_column("what the receiver learns", ratio=1)
    table.add_column("values", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            f"{line['protocol']}.{line['message']}",
            f"{line['sender']} → {line['receiver']}",
            line["reveals"],
            f"{line['values']:,}" if line["values"] else "",
            _size(line["bytes"]),
        )
    table.caption = f"noise of all encrypted answers together leaks at most {kl_nats:.2g} nats"
    if privacy is not None:
        table.caption += (
            f"; the sums with noise spent epsilon {privacy[0]:.3g} at delta {privacy[1]:.2g}, which covers neither the "
            "alignment nor the sides of rows"
        )
    table.caption_justify = "left"
    return table


def facts_table(title: str, facts: dict[str, Any]) -> Table:
    """Plain names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value")
    for name, value in facts.items():
        table.add_row(name, _shown(name, value))
    return table


def told(title: str, facts: dict[str, Any], as_json: bool) -> None:
    """Print plain facts as a table, or as JSON."""
    if as_json:
        print(
            json.dumps({name: value if isinstance(value, int | float) else str(value) for name, value in facts.items()})
        )
    else:
        out.print(facts_table(title, facts))


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(key, one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and name != "pid" else str(value)


def importance_table(importance: dict[str, dict[str, float]], most: int = 12) -> Table:
    """Gain and splits by feature; the peer's features under opaque names."""
    table = Table(title="Importance", title_justify="left")
    table.add_column("feature")
    table.add_column("gain", justify="right")
    table.add_column("cover", justify="right")
    table.add_column("splits", justify="right")
    for name, entry in list(importance.items())[:most]:
        table.add_row(name, f"{entry['gain']:,.1f}", f"{entry['cover']:,.0f}", f"{int(entry['splits'])}")
    return table


_SAMPLES = {
    "held_out": "Held-out rows (cross-validation, same learner, same folds)",
    "out_of_time": "Out-of-time rows",
    "validation": "Validation rows (early stopping)",
    "fitted": "Training rows",
}
#: Lists of a result that are shown as tables.
_LISTS = {
    "features": "Statistics by column",
    "coefficients": "Coefficients",
    "peer_coefficients_standardised": "The peer's coefficients, of standardised columns",
    "points": "Points",
}


def lines_table(lines: list[dict[str, Any]], title: str) -> Table:
    """Lines that have names and values in common, as a table."""
    table = Table(title=title, title_justify="left")
    for name in max(lines, key=len):
        table.add_column(name, overflow="fold")
    for line in lines:
        cells = (" or ".join(value) if isinstance(value, list) else _shown(name, value) for name, value in line.items())
        table.add_row(*cells)
    return table


def summary(result: dict[str, Any]) -> None:
    """A job's result on one side."""
    skip = {"phases", "ledger", "joint", "alone", "importance", "splits_by_feature", "skipped"}
    facts = {
        name: value
        for name, value in result.items()
        if name not in skip and value is not None and not isinstance(value, list | dict)
    }
    out.print(facts_table(f"{result['party']}: {result['job']}", facts))
    if "samples" in result:
        for name, sample in result["samples"].items():
            if "joint" in sample:
                models = {f"{result['party']} alone": sample["alone"], "joint": sample["joint"]}
                out.print(figures_table(models, f"{_SAMPLES[name]}: {sample['rows']:,}"))
    elif "joint" in result:
        out.print(figures_table({f"{result['party']} alone": result["alone"], "joint": result["joint"]},
                                "On the training rows"))  # fmt: skip
    for name, title in _LISTS.items():
        if result.get(name):
            out.print(lines_table(result[name], title))
    for warning in result.get("warnings", []):
        out.print(f"warning: {warning}")
    if "importance" in result:
        out.print(importance_table(result["importance"]))
    out.print(phases_table({result["party"]: result["phases"]}))
    privacy = (result["epsilon"], result["delta"]) if "epsilon" in result else None
    out.print(ledger_table(result["ledger"], result["kl_nats"], privacy))


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
