"""The house: import floors, cycles, packaging, the map of modules."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: dict[str, int] = {
    **dict.fromkeys(
        ("errors", "units", "suggest", "bundled", "versions", "precision", "layer_option", "graph", "workload", "hardware"), 0
    ),
    **dict.fromkeys(("fix", "cache", "native", "pieces", "op_graph", "op_facts"), 0),
    **dict.fromkeys(("plan", "serialize", "sensitivity", "costs", "solver", "simulation", "planning", "program", "options"), 1),
    **dict.fromkeys(("answers", "verify", "printing", "evaluation", "generation", "store", "quality_check"), 1),
    **dict.fromkeys(("pipeline_text", "passmanager", "comparison", "pipelines", "backend", "fx", "quantization", "fused"), 2),
    **dict.fromkeys(("checkpoint", "export"), 2),
    **dict.fromkeys(("frontend", "passes", "runtime"), 3),
    "backends": 4,
    **dict.fromkeys(
        ("compiler", "compiled", "explaining", "quality_loop", "profiling", "lm_eval", "report", "api", "scoring", "measuring"), 5
    ),
    **dict.fromkeys(("commands", "replicated", "cli", "__main__", "__init__"), 5),
}
LOWERING = {"passes", "frontend"}
RUNNING = {"runtime", "backends"}


def sources() -> dict[str, Path]:
    """Module name -> file, `passes` and `backends` under the names they install as."""
    found = {}
    for folder, package in (("llmpq", "llmpq"), ("passes", "llmpq.passes"), ("backends", "llmpq.backends")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder == "llmpq" and path.relative_to(ROOT / "llmpq").parts[0] in ("passes", "backends"):
                continue
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()


def piece(module: str) -> str:
    """The first name below llmpq: the unit that has a floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """llmpq modules imported by a file: at its top, or anywhere but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmpq":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in SOURCES else node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "llmpq"}
    return found


def test_every_module_stands_on_a_known_floor() -> None:
    assert {piece(module) for module in SOURCES} <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module: str) -> None:
    here = piece(module)
    for imported in imports(SOURCES[module], everywhere=True):
        there = piece(imported)
        if there == "__init__":
            continue  # llmpq itself holds only the version and lazy names
        assert FLOORS[there] <= FLOORS[here], f"{module} (floor {FLOORS[here]}) imports {imported} (floor {FLOORS[there]})"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_passes_and_runtime_never_see_each_other(module: str) -> None:
    seen = {piece(imported) for imported in imports(SOURCES[module], everywhere=True)}
    if piece(module) in LOWERING:
        assert not seen & RUNNING, f"{module} imports {seen & RUNNING}"
    if piece(module) in RUNNING:
        assert not seen & LOWERING, f"{module} imports {seen & LOWERING}"


def test_there_is_no_import_cycle() -> None:
    edges = {module: imports(path, everywhere=True) & set(SOURCES) - {module} for module, path in SOURCES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail[trail.index(module) :], module))}"
        if module not in done:
            for imported in sorted(edges[module]):
                visit(imported, (*trail, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def test_packages_folders_and_links_agree() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == folders
    for name in ("passes", "backends"):
        link = ROOT / "llmpq" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"
        assert setuptools["package-dir"][f"llmpq.{name}"] == name


def test_absolute_names_are_used_for_passes_and_backends() -> None:
    for path in (*SOURCES.values(), *sorted((ROOT / "tests").glob("*.py"))):
        assert not re.search(r"^\s*(from|import) (passes|backends)\b", path.read_text(), re.M), path


def module_map() -> str:
    """A line per module, by folder: its path and the noun of its docstring."""
    folders: dict[str, list[str]] = {}
    for path in SOURCES.values():
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        lines = folders.setdefault(path.parent.relative_to(ROOT).as_posix(), [])
        lines += [f"\n{summary}\n"] if path.name == "__init__.py" else [f"- `{path.relative_to(ROOT)}`: {summary}"]
    return "\n\n".join(f"### {folder}/\n" + "\n".join(lines) for folder, lines in sorted(folders.items()))


def test_the_map_of_modules_is_true(pytestconfig: pytest.Config) -> None:
    path = ROOT / "docs/architecture.md"
    text = path.read_text()
    start, end = text.index("## Map of modules\n") + len("## Map of modules\n"), text.index("<!-- end of the map -->")
    if pytestconfig.getoption("--update-golden"):
        path.write_text(f"{text[:start]}\n{module_map()}\n\n{text[end:]}")
    assert path.read_text()[start:].split("<!-- end of the map -->")[0].strip() == module_map(), "run pytest --update-golden"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_files_and_functions_stay_small(module: str) -> None:
    text = SOURCES[module].read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"


def test_module_docstrings_are_one_line_nouns() -> None:
    for module, path in SOURCES.items():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, f"{module} has no docstring"
