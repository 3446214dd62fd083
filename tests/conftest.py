"""Shared fixtures: golden files."""

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="Write what the tests print to tests/golden instead of comparing."
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(name, text)`: the text must equal tests/golden/NAME; a missing file fails."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text.rstrip("\n") + "\n")
        assert path.is_file(), f"tests/golden/{name} is missing; run pytest --update-golden and read what it wrote"
        assert text.rstrip("\n") + "\n" == path.read_text()

    return check
