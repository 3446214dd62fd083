"""Taking: a profile as a command or a call asks for it, kept point by point in a file and gone on with where that is there."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmpq.costs.profile import Profile
from llmpq.errors import InputError
from llmpq.frontend.models import read_utf8, resolve
from llmpq.precision import parse_precisions
from llmpq.profiling.measure import Progress
from llmpq.profiling.neighbour import measure_beside
from llmpq.profiling.profile_file import write_profile
from llmpq.profiling.profiler import profile_model, subject_of
from llmpq.profiling.sizes import FULL, QUICK, VLLM_FULL, VLLM_QUICK
from llmpq.profiling.vllm_profiler import lacking_sizes, profile_in_vllm, vllm_subject
from llmpq.serialize import loads


@dataclass(frozen=True, slots=True)
class Taken:
    """A profile, and how many of the sizes that were asked for it lacks for want of time."""

    profile: Profile
    lacking: int


def take_profile(
    model: Any,
    path: Path,
    precisions: str,
    *,
    engine: str = "local",
    python: str | None = None,
    quick: bool = False,
    device: str = "cpu",
    speed: float = 1.0,
    link: bool = True,
    beside: bool = False,
    progress: Progress | None = None,
) -> Taken:
    """engine: local, or vllm in the interpreter `python`; beside: also while another process of this machine computes.

    Raises InputError for another engine, and for what it cannot measure.
    """
    begun = loads(Profile, read_utf8(path, "profile"), str(path)) if path.exists() else None
    source, chosen, keep = resolve(model, weights=False), parse_precisions(precisions), partial(write_profile, path)
    if beside and (engine, device) != ("local", "cpu"):
        raise InputError("--beside is measured on the CPU, for the own runtime; leave it out, or --engine and --device")
    if beside and not isinstance(model, str | Path):
        raise InputError("beside: another process loads the model too; name it, or save it in a directory")
    if engine == "vllm":
        if device != "cpu":
            raise InputError(f"--device {device}: in vLLM the CPU alone is measured so far; leave --device out")
        extent, inside = VLLM_QUICK if quick else VLLM_FULL, vllm_subject(source, python)
        found = profile_in_vllm(inside, chosen, extent, keep, begun, speed, link, progress)
        return Taken(found, lacking_sizes(inside, chosen, extent, found))
    if engine != "local":
        raise InputError(f"engine {engine!r} is not measured; known are local, vllm")
    extent, subject = QUICK if quick else FULL, subject_of(source, device)
    found = profile_model(subject, chosen, extent, keep, begun, speed, link, progress)
    if beside:
        found = measure_beside(found, subject, chosen, extent, str(model), keep, progress)
    names = {precision.name for precision in chosen}
    wanted = len(extent.sizes(subject.graph.max_positions)) * len(names)
    sets = (found.points, found.beside) if beside else (found.points,)
    return Taken(found, sum(max(0, wanted - sum(point.precision in names for point in taken)) for taken in sets))
