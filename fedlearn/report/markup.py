"""HTML and SVG by nested calls: every text is escaped, and nothing is loaded from anywhere else."""

from __future__ import annotations

from html import escape
from math import floor, isfinite, log10


class Markup(str):
    """Text that is HTML already; any other text is escaped when it is put into a tag."""

    __slots__ = ()


def join(*children: object) -> Markup:
    """Children one after the other; None leaves nothing."""
    return Markup(
        "".join(c if isinstance(c, Markup) else escape(str(c)) for c in children if c is not None)  # one pass, in order
    )


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Attribute names lose a trailing underscore, and others become hyphens; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


class Share(float):
    """A share from 0 to 1, which a table writes in percent."""


class Bytes(int):
    """A number of bytes, which a table writes in a unit that suits it."""


def table(head: list[str], rows: list[list[object]], caption: str | None = None) -> Markup:
    """A table that scrolls sideways on a narrow screen; numbers stand to the right, a column's points below each other.

    Without any names in ``head``, the first column names what the others say.
    """
    places = [_places([row[k] for row in rows]) for k in range(len(head))]
    body = [tag("tr", *(_cell(c, places[k]) for k, c in enumerate(row))) for row in rows]
    top = tag("tr", *(tag("th", name, class_=_kind(rows[0][k]) if rows else None) for k, name in enumerate(head)))
    title = tag("caption", caption) if caption else None
    inner = tag("table", title, tag("thead", top) if any(head) else None, tag("tbody", *body),
                class_=None if any(head) else "pairs")  # fmt: skip
    return tag("div", inner, class_="scroll")


def _kind(value: object) -> str | None:
    return "n" if isinstance(value, int | float) else None


def _places(column: list[object]) -> int | None:
    """Decimals of a column's floats, so that the largest has four digits; None if that would hide the smallest."""
    found = [abs(v) for v in column if isinstance(v, float) and not isinstance(v, Share) and isfinite(v) and v]
    if not found:
        return 4
    places = 4 if max(found) < 1 else max(0, 3 - floor(log10(max(found))))
    return places if min(found) >= 0.5 * 10.0**-places else None


def _cell(value: object, places: int | None) -> Markup:
    return tag("td", _written(value, places), class_=_kind(value))


def _written(value: object, places: int | None) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Share):
        return f"{100 * value:.2f} %"
    if isinstance(value, Bytes):
        return size(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}" if places is None else f"{value:.{places}f}"
    elif isinstance(value, int):
        text = f"{value:,}"
    else:
        return value
    return minus(text)


def minus(text: str) -> str:
    """A number's text with a minus sign in place of the hyphen, also in its exponent."""
    return text.replace("-", "−")


def size(count: float) -> str:
    """A number of bytes in a unit that suits it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
