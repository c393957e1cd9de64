"""Plots as inline SVG. A mark is a function of the plot's frame, so a plot is a list of marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.report.markup import Markup, join, minus, size, tag

F64 = NDArray[np.float64]
WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 46
JOINT, ALONE, GOOD, BAD, PLAIN = "#0b6e99", "#c2701c", "#3b8f5a", "#b3363b", "#8a8f98"
_MOST_POINTS = 300


@dataclass(frozen=True)
class Frame:
    """The data's ranges, and where they stand on the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: F64 | float) -> F64:
        """Pixels from the left."""
        low, high = self.x
        return np.asarray(_LEFT + (np.asarray(x) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT))

    def down(self, y: F64 | float) -> F64:
        """Pixels from the top."""
        low, high = self.y
        return np.asarray(HEIGHT - _BOTTOM - (np.asarray(y) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM))


Mark = Callable[[Frame], Markup]


def line(x: F64, y: F64, colour: str, dash: str | None = None) -> Mark:
    """A line through points, of which at most a few hundred are kept."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(np.int64))

    def draw(frame: Frame) -> Markup:
        pairs = zip(frame.across(x[keep]), frame.down(y[keep]), strict=True)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)
        return tag("polyline", points=points, fill="none", stroke=colour, stroke_width=2, stroke_dasharray=dash)

    return draw


def dots(x: F64, y: F64, colour: str, low: F64 | None = None, high: F64 | None = None) -> Mark:
    """Points, with whiskers from ``low`` to ``high``."""

    def draw(frame: Frame) -> Markup:
        across, down = frame.across(x), frame.down(y)
        found = [
            tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r=3.5, fill=colour) for a, b in zip(across, down, strict=True)
        ]
        if low is not None and high is not None:
            found += [
                tag("line", x1=f"{a:.1f}", x2=f"{a:.1f}", y1=f"{b:.1f}", y2=f"{c:.1f}", stroke=colour)
                for a, b, c in zip(across, frame.down(low), frame.down(high), strict=True)
            ]
        return join(*found)

    return draw


def steps(edges: F64, heights: F64, colour: str) -> Mark:
    """A histogram: ``edges`` float64 (k+1,), ``heights`` float64 (k,)."""

    def draw(frame: Frame) -> Markup:
        across, down, floor = frame.across(edges), frame.down(heights), float(frame.down(frame.y[0]))
        return join(
            *(
                tag("rect", x=f"{a:.1f}", y=f"{t:.1f}", width=f"{max(b - a - 0.5, 0.5):.1f}", height=f"{floor - t:.1f}",
                    fill=colour, fill_opacity=0.5)
                for a, b, t in zip(across[:-1], across[1:], down, strict=True)
            )
        )  # fmt: skip

    return draw


def plot(
    title: str, marks: list[Mark], x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str,
    legend: dict[str, str] | None = None, note: str = "",
) -> Markup:  # fmt: skip
    """A figure with a caption that holds the legend (so that it cannot cover the marks), axes and marks."""
    frame = Frame(_widened(x), _widened(y))
    swatches = [
        tag("span", tag("i", style=f"background:{colour}"), name, class_="key")
        for name, colour in (legend or {}).items()
    ]
    picture = tag(
        "svg", tag("title", title), _axes(frame, x_label, y_label), *(mark(frame) for mark in marks),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip
    caption = tag("figcaption", tag("b", title), *swatches, tag("span", note, class_="note") if note else None)
    return tag("figure", caption, picture)


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def ticks(low: float, high: float, count: int = 5) -> F64:
    """Round numbers (1, 2 or 5 times a power of ten apart) within a range."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    return np.asarray(np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step + 0.0)  # no -0


def _axes(frame: Frame, x_label: str, y_label: str) -> Markup:
    floor, left = HEIGHT - _BOTTOM, _LEFT
    found = []
    for value in ticks(*frame.x):
        at = f"{float(frame.across(value)):.1f}"
        found.append(tag("line", x1=at, x2=at, y1=_TOP, y2=floor, class_="grid"))
        found.append(tag("text", minus(f"{value:.4g}"), x=at, y=floor + 16, text_anchor="middle"))
    for value in ticks(*frame.y):
        at = f"{float(frame.down(value)):.1f}"
        found.append(tag("line", x1=left, x2=WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        found.append(tag("text", minus(f"{value:.4g}"), x=left - 6, y=at, dy="0.32em", text_anchor="end"))
    found.append(tag("path", d=f"M{left} {_TOP} V{floor} H{WIDTH - _RIGHT}", fill="none", class_="frame"))
    middle = (_TOP + floor) / 2
    found.append(tag("text", x_label, x=(left + WIDTH - _RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle", class_="axis"))
    turned = f"rotate(-90 12 {middle})"
    found.append(tag("text", y_label, x=12, y=middle, text_anchor="middle", transform=turned, class_="axis"))
    return join(*found)


def bar(share: float, colour: str = JOINT) -> Markup:
    """A bar within a table cell; ``share`` of the cell's width, 0 to 1."""
    return tag("span", class_="bar", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%;background:{colour}")


def conversation(me: str, peer: str, phases: dict[str, dict[str, float]]) -> Markup:
    """Who sent how much in each phase, and how long it took: two life lines, arrows as thick as their bytes are many.

    Args:
        me: whose figures these are.
        peer: the other party.
        phases: seconds, bytes_sent and bytes_received by phase, in their order; silent ones are left out.
    """
    left, right, row, top = 150, 590, 64, 46
    phases = {name: p for name, p in phases.items() if p["bytes_sent"] or p["bytes_received"]}
    height = top + row * len(phases)
    found = [tag("line", x1=x, x2=x, y1=30, y2=height, stroke=PLAIN, stroke_dasharray="3 3") for x in (left, right)] + [
        tag("text", name, x=x, y=20, text_anchor="middle", class_="who") for name, x in ((me, left), (peer, right))
    ]
    most = max([1.0, *(max(p["bytes_sent"], p["bytes_received"]) for p in phases.values())])
    slowest = max([1e-9, *(p["seconds"] for p in phases.values())])
    for k, (name, phase) in enumerate(phases.items()):
        y = top + row * k
        tall = max(3.0, (row - 14) * phase["seconds"] / slowest)
        found.append(tag("rect", x=left - 5, y=y, width=10, height=f"{tall:.1f}", fill=PLAIN))
        found.append(tag("text", name, x=left - 14, y=y + 14, text_anchor="end", class_="who"))
        found.append(tag("text", f"{phase['seconds']:.1f} s", x=left - 14, y=y + 32, text_anchor="end"))
        found.append(_arrow(left + 8, right - 8, y + 20, phase["bytes_sent"], most, JOINT))
        found.append(_arrow(right - 8, left + 8, y + 46, phase["bytes_received"], most, ALONE))
    picture = tag("svg", tag("title", "The conversation"), *found, viewBox=f"0 0 740 {height}", role="img",
                  xmlns="http://www.w3.org/2000/svg")  # fmt: skip
    note = "Top to bottom: phases in their order; the grey bar grows with seconds, an arrow's width with its bytes."
    caption = tag("figcaption", tag("b", "The conversation"), tag("span", note, class_="note"))
    return tag("figure", caption, picture, class_="wide")


def _arrow(start: float, end: float, y: float, count: float, most: float, colour: str) -> Markup:
    if not count:
        return Markup("")
    ahead = 1 if end > start else -1
    width = 1.0 + 5.0 * np.sqrt(count / most)
    tip = f"M{end} {y} l{-9 * ahead} -6 v12 z"
    return join(
        tag("line", x1=start, x2=end - 8 * ahead, y1=y, y2=y, stroke=colour, stroke_width=f"{width:.1f}"),
        tag("path", d=tip, fill=colour),
        tag("text", size(count), x=(start + end) / 2, y=y - 6, text_anchor="middle"),
    )
