"""llmpq: a declarative compiler that runs a language model well on a mixed set of devices.

What it is given: a model (hub id, directory, `demo`, a bundled name, nn.Module), a `Cluster` ("3xT4,1xV100-32", a YAML file,
"local") and a workload (`Batch` or `Serving`). Options are those of `llmpq.options.Options`.

    decide    make_plan, max_context, max_batch, whatif, pareto, simulate
    ask       explain, diff, write_report
    make      compile, compile_plan, load; CompiledModel.generate, .export, .vllm, .explain
    measure   profile, validate, evaluate, measure_sensitivity; solve, for a bare problem
    on disk   load_plan, save_plan

Modules are imported when a name is first used, so that `import llmpq` stays fast and free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmpq.answers.plan_file import load_plan, save_plan
    from llmpq.api import (
        compile_plan,
        diff,
        evaluate,
        explain,
        make_plan,
        max_batch,
        max_context,
        measure_sensitivity,
        pareto,
        profile,
        simulate,
        solve,
        validate,
        whatif,
        write_report,
    )
    from llmpq.compiled import CompiledModel, load
    from llmpq.compiler import compile
    from llmpq.hardware.cluster import Cluster
    from llmpq.plan import Plan
    from llmpq.workload import Batch, Serving

__version__ = "0.1.0"

_HOME = {
    "Batch": "llmpq.workload",
    "Cluster": "llmpq.hardware.cluster",
    "CompiledModel": "llmpq.compiled",
    "Plan": "llmpq.plan",
    "Serving": "llmpq.workload",
    "compile": "llmpq.compiler",
    "compile_plan": "llmpq.api",
    "diff": "llmpq.api",
    "evaluate": "llmpq.api",
    "explain": "llmpq.api",
    "load": "llmpq.compiled",
    "load_plan": "llmpq.answers.plan_file",
    "make_plan": "llmpq.api",
    "max_batch": "llmpq.api",
    "max_context": "llmpq.api",
    "measure_sensitivity": "llmpq.api",
    "pareto": "llmpq.api",
    "profile": "llmpq.api",
    "save_plan": "llmpq.answers.plan_file",
    "simulate": "llmpq.api",
    "solve": "llmpq.api",
    "validate": "llmpq.api",
    "whatif": "llmpq.api",
    "write_report": "llmpq.api",
}
__all__ = [
    "Batch",
    "Cluster",
    "CompiledModel",
    "Plan",
    "Serving",
    "compile",
    "compile_plan",
    "diff",
    "evaluate",
    "explain",
    "load",
    "load_plan",
    "make_plan",
    "max_batch",
    "max_context",
    "measure_sensitivity",
    "pareto",
    "profile",
    "save_plan",
    "simulate",
    "solve",
    "validate",
    "whatif",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import on first use.

    Planning alone is `make_plan`, or `llmpq.compiler.plan` for the whole program: `llmpq.plan` is the module of the value.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'llmpq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
