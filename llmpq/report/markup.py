"""Markup: HTML that is known to be escaped, made of tags and text."""

from collections.abc import Sequence
from html import escape


class Markup(str):
    """Text that may stand in a page as it is; any other string is escaped first."""

    __slots__ = ()


def text(value: str | float) -> Markup:
    """`value` escaped, for content and for quoted attributes alike; Markup as it is."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """An element. `class_` is the attribute class, other underscores are hyphens: `aria_label="..."`."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{''.join(map(text, children))}</{name}>")


def table(caption: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Markup:
    """A table whose first column names its rows; it scrolls inside a box of its own."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return scrolling(caption, tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body)))


def scrolling(label: str, child: Markup) -> Markup:
    """A box that is scrolled sideways on narrow screens, by keyboard too."""
    return tag("div", child, class_="scroll", role="region", tabindex="0", aria_label=label)


def section(identity: str, title: str, *children: str) -> Markup:
    """A landmark with a heading."""
    heading = tag("h2", title, id=f"{identity}-title")
    return tag("section", heading, *children, id=identity, aria_labelledby=f"{identity}-title")


def bullets(lines: list[str]) -> Markup:
    return tag("ul", *(tag("li", line) for line in lines))
