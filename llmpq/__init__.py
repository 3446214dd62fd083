"""llmpq: a declarative compiler that runs a language model well on a mixed set of devices."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmpq.compiled import CompiledModel, load
    from llmpq.compiler import compile
    from llmpq.hardware.cluster import Cluster
    from llmpq.plan import Plan
    from llmpq.workload import Batch, Serving

__version__ = "0.1.0"
__all__ = ["Batch", "Cluster", "CompiledModel", "Plan", "Serving", "compile", "load"]

_HOME = {
    "Batch": "llmpq.workload",
    "Cluster": "llmpq.hardware.cluster",
    "CompiledModel": "llmpq.compiled",
    "Plan": "llmpq.plan",
    "Serving": "llmpq.workload",
    "compile": "llmpq.compiler",
    "load": "llmpq.compiled",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import llmpq` stays fast and free of torch.

    Planning alone is `llmpq.compiler.plan`: `llmpq.plan` is the module of the value.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'llmpq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
