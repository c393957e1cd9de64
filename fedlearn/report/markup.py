"""HTML and SVG by nested calls: every text is escaped, and nothing is loaded from anywhere else."""

from __future__ import annotations

from html import escape


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


def table(head: list[str], rows: list[list[object]], caption: str | None = None) -> Markup:
    """A table that scrolls sideways on a narrow screen; numbers stand to the right."""
    body = [tag("tr", *(tag("td", _cell(c), class_=_kind(c)) for c in row)) for row in rows]
    top = tag("tr", *(tag("th", name, class_=_kind(rows[0][k]) if rows else None) for k, name in enumerate(head)))
    title = tag("caption", caption) if caption else None
    return tag("div", tag("table", title, tag("thead", top), tag("tbody", *body)), class_="scroll")


def _kind(value: object) -> str | None:
    return "n" if isinstance(value, int | float) else None


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def size(count: float) -> str:
    """A number of bytes in a unit that suits it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
