"""PageOutline: an HTML page as lines of elements and text, strict about nesting."""

from html.parser import HTMLParser

VOID = {"meta"}
SHOWN = ("id", "class", "role", "aria-label", "aria-labelledby", "scope")


class PageOutline(HTMLParser):
    """`lines`: elements by depth with text; `said`: text; `elements`: (name, attributes). ValueError: a tag is out of place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.said: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if len(given) < len(attrs):
            raise ValueError(f"<{tag}> has an attribute twice: {attrs}")
        self.elements.append((tag, given))
        told = " ".join(f"{name}={given[name]}" for name in SHOWN if name in given)
        self.lines.append(f"{'  ' * len(self.open)}<{tag}{' ' * bool(told)}{told}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes nothing that is open")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.said.append(" ".join(data.split()))
            self.lines.append("  " * len(self.open) + self.said[-1])

    @property
    def text(self) -> str:
        """What is read, without markup."""
        return "\n".join(self.said)
