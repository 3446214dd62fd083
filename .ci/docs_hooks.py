"""Hooks of the documentation site: pages that stand outside docs/, and links from docs/ to files of the repository."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import log

ROOT = Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "examples/README.md": "examples.md"}
IMAGES = (".svg", ".png")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```\n", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of PAGES, and every image that a page of docs/ shows from elsewhere."""
    for source, name in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for _, _, target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = _in_repository(page.relative_to(ROOT).as_posix(), target)
            if path.endswith(IMAGES) and not path.startswith("docs/"):
                files.append(File.generated(config, f"images/{Path(path).name}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links between files of the repository as links of the site; a file that is no page is named instead."""
    here = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == here), f"docs/{here}")

    def rewrite(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if ":" in target or target.startswith("#"):
            return match[0]
        path, _, anchor = target.partition("#")
        found = _in_repository(source, path)
        if not (ROOT / found).exists():
            log.warning(f"{source}: links to {target}, which is not there")
        if found.endswith(IMAGES) and not found.startswith("docs/"):
            found = f"docs/images/{Path(found).name}"
        found = f"docs/{PAGES[found]}" if found in PAGES else "docs/index.md" if found == "README.md" else found
        if not found.startswith("docs/"):
            return f"{text} (`{found}`)" if text.strip("`") != found else f"`{found}`"
        relative = posixpath.relpath(found, posixpath.dirname(f"docs/{here}"))
        return f"{mark}[{text}]({relative}{'#' * bool(anchor)}{anchor})"

    fences = FENCE.findall(markdown)
    parts = [LINK.sub(rewrite, part) for part in FENCE.split(markdown)]
    return "".join(part + fence for part, fence in zip(parts, [*fences, ""], strict=True))


def _in_repository(source: str, target: str) -> str:
    """The path from the root of the repository that `target` means in the file `source`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
