"""Profiler of vLLM: a model's profile in vLLM on this machine's CPU, begun or gone on with."""

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from llmpq.backends.vllm_environment import engine_python, require_vllm
from llmpq.costs.kv_blocks import block_size_of
from llmpq.costs.point import Point
from llmpq.costs.profile import Profile, ends_digest, kind_digest
from llmpq.errors import InputError
from llmpq.export.vllm_settings import VLLM_VERSION
from llmpq.frontend.models import ModelSource
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.support import compute_dtype
from llmpq.plan import ComputeDtype
from llmpq.precision import Precision
from llmpq.profiling.link import measure_link
from llmpq.profiling.measure import Keep, Progress, repeated, timing
from llmpq.profiling.probe import Clock
from llmpq.profiling.profiler import continued, generating_graph, machine_of
from llmpq.profiling.sizes import Extent, Size
from llmpq.profiling.vllm_model import Arrangement, arrangements, runs_in_vllm, write_config
from llmpq.profiling.vllm_probe import Ready, StepTimes, VllmProbe

ENGINE = "vllm"
CACHE_BYTES = 512 * 2**20  # of keys and values; sizes that need more are left out


class Stepping(Protocol):
    """What runs steps of vLLM: a VllmProbe."""

    @property
    def ready(self) -> Ready: ...

    def step_times(self, **step: int) -> StepTimes: ...


@dataclass(frozen=True, slots=True)
class VllmSubject:
    """What is measured: a model on the CPU of this machine, by the vLLM of an interpreter."""

    source: ModelSource
    graph: LayerGraph
    cluster: Cluster
    compute_dtype: ComputeDtype
    python: str

    def opened(self, arrangement: Arrangement, sizes: Sequence[Size], folder: Path) -> AbstractContextManager[Stepping]:
        """A process that has loaded the layers and has room for the sizes."""
        model = write_config(folder, arrangement.config(self.source, self.compute_dtype))
        longest = max(max(size.context, size.decode_context) for size in sizes) + 32
        block = block_size_of(self.cluster.devices)
        most = max(size.cached for size in sizes) + block * (2 + max(size.rows + size.decoding for size in sizes))
        setup: dict[str, Any] = {
            "model": str(model),
            "dtype": self.compute_dtype,
            "layers": len(arrangement.options),
            "vocab": self.graph.vocab_size,
            "max_len": min(longest, self.graph.max_positions),
            "max_seqs": max(size.rows + size.decoding for size in sizes),
            "max_tokens": max(size.work for size in sizes),
            "block_size": block,
            "kv_bytes": arrangement.kv_bytes_per_token * -(-most // block) * block,
        }
        return VllmProbe(arrangement, setup, folder, self.python)


def vllm_subject(source: ModelSource, python: str | None) -> VllmSubject:
    """Raises InputError for an encoder, and where the interpreter has no vLLM of the version that is known."""
    graph = generating_graph(source)
    found = engine_python(python)
    require_vllm(found, VLLM_VERSION)
    cluster = Cluster.load("1xCPU")
    return VllmSubject(source, graph, cluster, compute_dtype((cluster.devices[0].type,), ENGINE), found)


def profile_in_vllm(
    subject: VllmSubject,
    precisions: Sequence[Precision],
    extent: Extent,
    keep: Keep,
    begun: Profile | None = None,
    speed: float = 1.0,
    with_link: bool = True,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """The profile, with what `begun` already has. Raises InputError when that is of another model, machine or engine."""
    told, todo = progress or (lambda what, done, total: None), arranged(subject, precisions)
    deadline, profile = clock() + extent.limit_s, begun
    if profile is not None:
        as_then = Ready(profile.machine.versions, profile.machine.threads, 0)
        profile = continued(empty_vllm_profile(subject, speed, as_then), profile)
    for number, arrangement in enumerate(todo):
        sizes = sizes_of(arrangement, extent)
        lacking = sizes if profile is None else missing(profile, arrangement.precisions, sizes)
        if not lacking or clock() > deadline:
            continue
        told("starting vLLM", number * len(sizes), len(todo) * len(sizes))
        with TemporaryDirectory() as folder, subject.opened(arrangement, lacking, Path(folder)) as probe:
            profile = continued(empty_vllm_profile(subject, speed, probe.ready), profile)
            if with_link and profile.link is None:
                profile = replace(profile, link=measure_link())
            share = clock() + (deadline - clock()) / (len(todo) - number)
            for done, size in enumerate(within(lacking, share, clock), 1 + len(sizes) - len(lacking)):
                profile = replace(profile, points=(*profile.points, *points_of(subject, arrangement, size, probe)))
                keep(profile)
                told(f"measuring: {described(size)}", number * len(sizes) + done, len(todo) * len(sizes))
    assert profile is not None, "there is a size at least"
    return profile


def arranged(subject: VllmSubject, precisions: Sequence[Precision]) -> tuple[Arrangement, ...]:
    """What is loaded one after the other to measure those of the precisions that vLLM runs. Raises InputError for none."""
    device = subject.cluster.devices[0].type
    usable = tuple(p for p in precisions if any(runs_in_vllm(kind, p, device) for kind in subject.graph.kinds))
    if not usable:
        raise InputError(f"vLLM runs {subject.graph.model} at none of {', '.join(p.name for p in precisions)} on a {device.name}")
    return arrangements(subject.graph, usable, device)


def lacking_sizes(subject: VllmSubject, precisions: Sequence[Precision], extent: Extent, profile: Profile) -> int:
    """How many steps of the extent were not measured, for want of time."""
    return sum(len(missing(profile, each.precisions, sizes_of(each, extent))) for each in arranged(subject, precisions))


def sizes_of(arrangement: Arrangement, extent: Extent) -> tuple[Size, ...]:
    """Those of the extent whose cache is not too large, and whose prompts leave a position for the token that answers them."""
    tokens = CACHE_BYTES // max(1, arrangement.kv_bytes_per_token)
    return tuple(size for size in extent.sizes(arrangement.graph.max_positions - 1) if size.cached <= tokens)


def missing(profile: Profile, precisions: Iterable[str], sizes: Iterable[Size]) -> tuple[Size, ...]:
    """The sizes that were not measured at all of the precisions."""
    have = {point.key for point in profile.points}
    return tuple(size for size in sizes if not {(name, *astuple(size)) for name in precisions} <= have)


def within(sizes: Iterable[Size], deadline: float, clock: Clock) -> Iterable[Size]:
    """Sizes, the quick ones first, until the next is not expected to end in time."""
    spent, work = 0.0, 1
    for size in sizes:
        start = clock()
        if start + spent * size.work / work > deadline:
            return
        yield size
        spent, work = clock() - start, size.work


def points_of(subject: VllmSubject, arrangement: Arrangement, size: Size, probe: Stepping) -> tuple[Point, ...]:
    """A point for each precision, by the same steps."""
    step = dict(zip(("rows", "tokens", "context", "decoding", "decode_context"), astuple(size)))
    passes = repeated(lambda: probe.step_times(**step))
    cells = arrangement.cells()

    def parts(name: str, attribute: str) -> tuple[Any, ...]:
        found = [[getattr(times, attribute).get((kind, name)) for times in passes] for kind in range(len(subject.graph.kinds))]
        return tuple(timing(seconds) if (kind, name) in cells else None for kind, seconds in enumerate(found))

    return tuple(
        Point(
            precision=name,
            rows=size.rows,
            tokens=size.tokens,
            context=size.context,
            decoding=size.decoding,
            decode_context=size.decode_context,
            layers=parts(name, "layers_s"),
            attention=parts(name, "attention_s"),
            first=timing([times.first_s for times in passes]),
            last=timing([times.last_s for times in passes]),
            rank=timing([times.rank_s for times in passes]),
            message=timing([times.message_s for times in passes]),
            engine=timing([times.engine_s for times in passes]),
        )
        for name in arrangement.precisions
    )


def empty_vllm_profile(subject: VllmSubject, speed: float, ready: Ready) -> Profile:
    return Profile(
        device_type=subject.cluster.devices[0].type.name,
        speed=speed,
        compute_dtype=subject.compute_dtype,
        model=subject.graph.model,
        kinds=tuple(kind_digest(kind) for kind in subject.graph.kinds),
        ends=ends_digest(subject.graph),
        machine=machine_of(ready.threads, ready.versions),
        engine=ENGINE,
    )


def described(size: Size) -> str:
    """For instance "8 decoding at 512 positions"."""
    if size.tokens == 1:
        return f"{size.rows} decoding at {size.context} positions"
    beside = f" beside {size.decoding} decoding" if size.decoding else ""
    return f"{size.rows} x {size.tokens} prompt tokens{beside}"
