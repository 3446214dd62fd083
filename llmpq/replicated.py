"""Replicas on disk: a plan of several pipelines carried out, a compiled model for each in a folder of its own."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

from llmpq.answers.plan_file import PLAN_FILE, load_plan, options_of, save_plan
from llmpq.checkpoint.replacing import replacing, require_replaceable
from llmpq.compiler import compile
from llmpq.errors import InputError
from llmpq.export.router import NGINX_FILE, SCRIPT_FILE, nginx_config, start_script
from llmpq.export.target import EXECUTABLE
from llmpq.options import PlanningOptions
from llmpq.plan import Plan

if TYPE_CHECKING:
    from llmpq.checkpoint.shards import Progress
    from llmpq.compiled import CompiledModel


def replica_folders(directory: Path, plan: Plan) -> tuple[Path, ...]:
    """Where each pipeline of the plan is, or is to be, compiled or exported."""
    return tuple(directory / f"replica-{number}" for number in range(len(plan.pipelines)))


def is_replicated(directory: Path) -> bool:
    """Whether `compile_replicas` wrote the directory."""
    file = directory / PLAN_FILE
    return file.is_file() and not (directory / "config.json").exists() and len(load_plan(file).pipelines) > 1


def compile_replicas(
    model: Any, plan: Plan, out: str | Path, *, progress: "Progress | None" = None, **options: Unpack[PlanningOptions]
) -> "tuple[CompiledModel, ...]":
    """Quantize and write each pipeline of the plan to OUT/replica-0, OUT/replica-1, ..., and the whole plan to OUT/plan.json.

    Each folder is a compiled model by itself. options: as for `compile`; what the plan says is taken from it.
    """
    directory = Path(out)
    require_replaceable(directory, may_replace)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PLAN_FILE).unlink(missing_ok=True)
    compiled = []
    with TemporaryDirectory(prefix="llmpq-replicas-") as temporary:
        for number, (one, folder) in enumerate(zip(plan.replicas, replica_folders(directory, plan))):
            file = save_plan(one, Path(temporary) / f"{number}.json")
            asked: PlanningOptions = {**options, **options_of(one, file), "replicas": 1}
            compiled.append(compile(model, one.cluster, one.workload, out=folder, progress=progress, **asked))
    for folder in set(directory.glob("replica-*")) - set(replica_folders(directory, plan)):
        shutil.rmtree(folder)
    save_plan(plan, directory / PLAN_FILE)
    return tuple(compiled)


def may_replace(directory: Path) -> bool:
    """Whether it holds nothing but what `compile_replicas` writes, perhaps not all of it yet."""
    return all(path.name == PLAN_FILE or path.name.startswith(("replica-", ".replica-")) for path in directory.iterdir())


def load_replicas(directory: Path) -> "tuple[CompiledModel, ...]":
    """The compiled model of every replica. Raises InputError where `compile_replicas` did not write the directory."""
    from llmpq.compiled import load

    if not is_replicated(directory):
        raise InputError(f"{directory}: holds no replicas; `llmpq compile MODEL --replicas N -o {directory}` writes them")
    return tuple(load(folder) for folder in replica_folders(directory, load_plan(directory / PLAN_FILE)))


def export_replicas(directory: Path, out: Path, to: str, *, link: bool = False) -> Path:
    """The export of each replica to `out`/replica-0, ...; for vLLM with a script that starts all, and how nginx shares out."""
    plan = load_plan(directory / PLAN_FILE)
    models = load_replicas(directory)
    with replacing(out, lambda path: (path / "replica-0").is_dir()) as partial:
        for model, folder in zip(models, replica_folders(partial, plan)):
            model.export(folder, to=to, link=link)
        if to == "vllm":
            (partial / NGINX_FILE).write_text(nginx_config(plan), encoding="utf-8")
            (partial / SCRIPT_FILE).write_text(start_script(plan), encoding="utf-8")
            (partial / SCRIPT_FILE).chmod(EXECUTABLE)
    return out
