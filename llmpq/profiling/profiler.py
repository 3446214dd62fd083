"""Profiler: a model's profile on a device of this machine, begun or gone on with."""

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmpq.costs.profile import Machine, Profile, ends_digest, kind_digest
from llmpq.errors import InputError
from llmpq.frontend.cached_graphs import layer_graph_of, traced_module_of
from llmpq.frontend.models import ModelSource
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.devices import find_card_type
from llmpq.hardware.support import compute_dtype
from llmpq.precision import Precision
from llmpq.profiling.link import measure_link
from llmpq.profiling.measure import Keep, Progress, measure
from llmpq.profiling.messages import measure_message
from llmpq.profiling.probe import Probe, Subject, can_have
from llmpq.profiling.sizes import Extent
from llmpq.versions import library_versions

PROCESSOR = Path("/proc/cpuinfo")


def subject_of(source: ModelSource, device: str) -> Subject:
    """The model on that device of this machine: "cpu" or "cuda:0". Raises InputError where there is none of the library."""
    graph = generating_graph(source)
    cluster = Cluster.load(f"1x{_type_name(device)}")
    return Subject(
        traced_module_of(source), graph, cluster, compute_dtype((cluster.devices[0].type,), "local"), torch.device(device)
    )


def generating_graph(source: ModelSource) -> LayerGraph:
    """The graph of the model. Raises InputError for an encoder."""
    graph = layer_graph_of(source)
    if not graph.generates:
        raise InputError(f"{graph.model} is an encoder; profiles are of models that generate")
    return graph


def profile_model(
    subject: Subject,
    precisions: Sequence[Precision],
    extent: Extent,
    keep: Keep,
    begun: Profile | None = None,
    speed: float = 1.0,
    with_link: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """The profile, with what `begun` already has. Raises InputError when that is of another model, machine or device."""
    profile = continued(empty_profile(subject, speed), begun)
    if with_link and profile.link is None:
        profile = replace(profile, link=measure_link())
        keep(profile)
    if with_link and not profile.message_cpu_s and subject.device.type == "cpu":  # a card computes while messages pass
        profile = replace(profile, message_cpu_s=measure_message(subject.graph.hidden_size))
        keep(profile)
    return measure_points(profile, subject, precisions, extent, keep, progress)


def measure_points(
    profile: Profile,
    subject: Subject,
    precisions: Sequence[Precision],
    extent: Extent,
    keep: Keep,
    progress: Progress | None = None,
) -> Profile:
    """The profile with the points of the grid that it lacked, at the precisions that the device can run."""
    usable = [p for p in precisions if any(can_have(subject, kind, p) for kind in range(len(subject.graph.kinds)))]
    positions = subject.graph.max_positions
    return measure(profile, usable, positions, extent, lambda precision: Probe(subject, precision), keep, progress)


def empty_profile(subject: Subject, speed: float) -> Profile:
    return Profile(
        device_type=subject.cluster.devices[0].type.name,
        speed=speed,
        compute_dtype=subject.compute_dtype,
        model=subject.graph.model,
        kinds=tuple(kind_digest(kind) for kind in subject.graph.kinds),
        ends=ends_digest(subject.graph),
        machine=this_machine(subject.device),
    )


def this_machine(device: torch.device) -> Machine:
    """What makes times comparable: processor or card, cores, threads, versions; no host name."""
    found = machine_of(torch.get_num_threads(), tuple(library_versions().items()))
    return replace(found, processor=torch.cuda.get_device_name(device)) if device.type == "cuda" else found


def machine_of(threads: int, versions: tuple[tuple[str, str], ...]) -> Machine:
    """This machine's processor, as so many threads of a process with these libraries use it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(f"{platform.system()} {platform.machine()}", _processor(), cores, threads, versions)


def continued(fresh: Profile, begun: Profile | None) -> Profile:
    """What was begun, where it is of the same as the fresh one; else InputError. Points of releases that did not tell `rank`
    from `first` are measured again."""
    if begun is None:
        return fresh
    if replace(begun, points=(), beside=(), link=None, message_cpu_s=0.0) != fresh:
        differing = ("engine", "device_type", "speed", "compute_dtype", "kinds", "ends", "machine", "model", "format")
        found = next(name for name in differing if getattr(begun, name) != getattr(fresh, name))
        raise InputError(
            f"the profile that was begun has another {found.replace('_', ' ')}: {getattr(begun, found)}, "
            f"not {getattr(fresh, found)}; name another file with -o"
        )
    points, beside = (tuple(point for point in taken if point.rank is not None) for taken in (begun.points, begun.beside))
    return replace(begun, points=points, beside=beside)


def _type_name(device: str) -> str:
    if device == "cpu":
        return "CPU"
    index = device.removeprefix("cuda:")
    if not index.isdigit() or not torch.cuda.is_available() or int(index) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: torch sees {torch.cuda.device_count()} cards here; expected cpu or cuda:N of these")
    properties = torch.cuda.get_device_properties(int(index))
    found = find_card_type(properties.name, int(properties.total_memory))
    if found is None:
        raise InputError(f"device {device!r} is a {properties.name}, which is not in the library of `llmpq devices`")
    return found.name


def _processor() -> str:
    lines = PROCESSOR.read_text("utf-8").splitlines() if PROCESSOR.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
