"""Bundled data: the YAML files that ship with the package."""

from importlib.resources import files
from typing import Any


def bundled_yaml(name: str) -> Any:
    """The parsed file `llmpq/data/<name>`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 8x faster, but not in every build
    return yaml.load((files("llmpq") / "data" / name).read_text("utf-8"), Loader=loader)
