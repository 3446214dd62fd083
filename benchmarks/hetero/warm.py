"""Warm devices: one process per device, slowed to its share of a core, in which plans run as stages with random weights."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.plan import Plan
from llmpq.printing import format_ranges
from llmpq.runtime.launcher import free_port

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llmpq.backends.distributed import DistributedBackend
    from llmpq.profiling.probe import Subject
    from llmpq.runtime.timeline import Action

UNIFIED, BY_GROUP = Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")  # clocks of control groups
PATIENCE_S = 120.0  # for an answer of a process
QUIET = 0.12  # cores that others may keep busy during a run
MOST_TRIES = 3
MOST_KEPT = 24  # modules with weights that a process keeps for the plans to come


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of one run, of them until every sequence had its first token, and the share of them that each device was at work.

    others: cores that everything else on the machine kept busy meanwhile
    """

    seconds: float
    prefill_s: float
    utilisation: dict[str, float]
    others: float


@dataclass(frozen=True, slots=True)
class Task:
    """A plan, which of its stages the process is, and its share of a core.

    link_bytes_per_s: at which its results leave; None: as fast as they can
    """

    plan: Plan
    stage: int
    share: float
    port: int
    link_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An action of a stage (`P0`, `D3`), seconds from the start of the last run of its plan."""

    stage: int
    action: str
    start_s: float
    end_s: float


def key_of(made: Plan) -> str:
    """What runs: sequences of a step of prefill and decode, and the layers of every device. Equal keys are the same run."""
    stages = " | ".join(f"{stage.device} {format_ranges(stage.options, stage.first_layer)}" for stage in made.stages)
    return f"{made.pipeline.prefill_micro_batch}/{made.pipeline.decode_micro_batch}: {stages}"


class WarmDevices:
    """Processes by the names of the cluster's devices; `measure` runs a plan on those that it uses."""

    def __init__(self, model: Path, shares: dict[str, float], link_bytes_per_s: float | None = None) -> None:
        self._shares, self._link = shares, link_bytes_per_s
        self._ends: dict[str, Connection] = {}
        self._processes: dict[str, multiprocessing.process.BaseProcess] = {}
        context = multiprocessing.get_context("spawn")
        for name in shares:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, str(model)), daemon=True)
            process.start()
            self._ends[name], self._processes[name] = here, process

    def measure(self, plan: Plan, rounds: int) -> list[Outcome]:
        """The plan's batch, `rounds` times, after a first pass that does not count."""
        return self.record(plan, rounds)[0]

    def record(self, plan: Plan, rounds: int) -> tuple[list[Outcome], tuple[Recorded, ...]]:
        """The same, and what every stage did in the last of them."""
        names, port = [stage.device for stage in plan.stages], free_port()
        for stage, name in enumerate(names):
            self._ends[name].send(Task(plan, stage, self._shares[name], port, self._link))
        self._answer(names[0])  # warm
        found = [self._quiet_round(names) for _ in range(rounds)]
        self._ends[names[0]].send("leave")
        began: dict[int, float] = {}
        actions: list[tuple[int, str, float, float]] = []
        for stage, name in enumerate(names):
            began[stage], noted = self._answer(name)  # gone
            actions += noted
        recorded = (Recorded(j, name, start - began[0], end - began[0]) for j, name, start, end in actions if start >= began[0])
        return found, tuple(recorded)

    def close(self) -> None:
        for name, process in self._processes.items():
            self._ends[name].send(None)
            process.join(5)
            process.kill()

    def _quiet_round(self, names: Sequence[str]) -> Outcome:
        """One that others did not disturb, or of some that they did the one that they disturbed the least."""
        found: list[Outcome] = []
        while len(found) < MOST_TRIES and (not found or found[-1].others > QUIET):
            found.append(self._round(names))
        return min(found, key=lambda outcome: outcome.others)

    def _round(self, names: Sequence[str]) -> Outcome:
        before, busy_before = {name: _cpu_s(self._pid(name)) for name in names}, _busy_s()
        self._ends[names[0]].send("go")
        seconds, prefill_s = self._answer(names[0])
        used = {name: _cpu_s(self._pid(name)) - before[name] for name in names}
        others = max(0.0, _busy_s() - busy_before - sum(used.values())) / seconds
        return Outcome(seconds, prefill_s, {name: used[name] / (seconds * self._shares[name]) for name in names}, others)

    def _answer(self, name: str) -> tuple[float, Any]:
        if not self._ends[name].poll(PATIENCE_S):
            raise TimeoutError(f"{name} did not answer within {PATIENCE_S:.0f} s")
        answer: tuple[float, Any] = self._ends[name].recv()
        return answer

    def _pid(self, name: str) -> int:
        pid = self._processes[name].pid
        assert pid is not None
        return pid


@contextmanager
def warm_devices(model: Path, shares: dict[str, float], link_bytes_per_s: float | None = None) -> Iterator[WarmDevices]:
    """Devices by their names in the cluster, each with that share of a core; no process is left."""
    devices = WarmDevices(model, shares, link_bytes_per_s)
    try:
        yield devices
    finally:
        devices.close()


def _cpu_s(pid: int) -> float:
    """Seconds that the process has computed, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy_s() -> float:
    """Seconds that all cores together have computed for anyone, or were taken away by the host.

    By the clock of the control groups where there are any; the ticks of /proc/stat count what runs at a tick.
    """
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, soft_irq, stolen = ticks[:8]
    if UNIFIED.exists():
        used = int(dict(line.split() for line in UNIFIED.read_text().splitlines())["usage_usec"]) / 1e6
    elif BY_GROUP.exists():
        used = int(BY_GROUP.read_text()) / 1e9
    else:
        used = user + nice + system + irq + soft_irq
    return used + stolen


def _serve(parent: Connection, model: str) -> None:
    """Runs stages of plans until None comes."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    import torch

    from llmpq.backends.distributed import DistributedBackend
    from llmpq.frontend.models import resolve
    from llmpq.profiling.profiler import subject_of

    torch.set_num_threads(1)
    subject = subject_of(resolve(model, weights=False), "cpu")
    modules = Modules(subject)
    while (task := parent.recv()) is not None:
        plan = task.plan
        pace, began = Pace(task.share), 0.0
        slow_sends(task.link_bytes_per_s)
        os.environ |= {"RANK": str(task.stage), "WORLD_SIZE": str(len(plan.stages)), "MASTER_PORT": str(task.port)}
        with DistributedBackend(plan, subject.graph, _loader(modules, plan), on_action=pace) as backend:
            pace.begin()
            if backend.rank:
                backend.follow()
            else:
                began = _lead(backend, plan, parent, subject.graph.vocab_size)
        parent.send((began, pace.noted))


class Pace:
    """An `OnAction` that makes this process a device of a share of a core: an action ends, and its result leaves, only when
    so much time has passed as what the process computed since the last one takes with that share.

    A kernel that holds processes to a quota does so in slices of several milliseconds, as long as a step; no card computes so.
    """

    def __init__(self, share: float) -> None:
        self._share, self._used = share, 0.0
        self.noted: list[tuple[int, str, float, float]] = []

    def begin(self) -> None:
        """What was computed until now is not held against it."""
        self._used = time.process_time()

    def __call__(self, stage: int, action: "Action", start: float, end: float) -> None:
        used = time.process_time()
        due = start + (used - self._used) / self._share
        self._used = used
        time.sleep(max(0.0, due - time.perf_counter()))
        self.noted.append((stage, str(action), start, time.perf_counter()))


def slow_sends(bytes_per_s: float | None) -> None:
    """What this process sends leaves no faster: its thread that sends is held while a tensor would travel."""
    import torch.distributed as dist

    send = getattr(dist.send, "unslowed", dist.send)
    dist.send = send
    if bytes_per_s is None:
        return

    def slowly(tensor: "Tensor", *args: Any, **kwargs: Any) -> None:
        time.sleep(tensor.nbytes / bytes_per_s)
        send(tensor, *args, **kwargs)

    slowly.unslowed = send  # type: ignore[attr-defined]
    dist.send = slowly


def _loader(modules: "Modules", plan: Plan) -> "Callable[[int], nn.Module]":
    return lambda stage: modules.stage(plan, stage)


def _lead(backend: "DistributedBackend", plan: Plan, parent: Connection, vocabulary: int) -> float:
    """Warm up, say so, and time the batch whenever it is asked for; when the last run began, by the clock."""
    from llmpq.generation import SamplingParams

    batch = plan.batch
    prompts = [[(7919 * row + 104729 * i + 1) % vocabulary for i in range(batch.prompt_len)] for row in range(batch.batch_size)]
    backend.generate(prompts, SamplingParams(min(2, batch.gen_len)))
    parent.send((0.0, 0.0))
    start = 0.0
    while parent.recv() == "go":
        first = FirstTokens()
        start = time.perf_counter()
        backend.generate(prompts, SamplingParams(batch.gen_len), first)
        parent.send((time.perf_counter() - start, max(first.seconds.values()) - start))
    return start


class FirstTokens:
    """When the first token of every sequence came, by the clock."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def __call__(self, sequence: int, token: int) -> None:
        self.seconds.setdefault(sequence, time.perf_counter())


class Modules:
    """Layers and ends with random weights, kept for the plans that need the same again."""

    def __init__(self, subject: "Subject") -> None:
        self._subject = subject
        self._kept: dict[tuple[str, str], nn.Module] = {}

    def stage(self, plan: Plan, stage: int) -> "nn.Module":
        """The module of one stage, lowered as for a run."""
        from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
        from llmpq.precision import parse_precisions
        from llmpq.program import Program, Request

        subject, own = self._subject, plan.stages[stage]
        request = Request(plan.cluster, plan.workload, parse_precisions(tuple(dict.fromkeys(plan.options))))
        program = Program(subject.graph, request, compute_dtype=plan.compute_dtype, plan=plan, graph_module=subject.traced)
        module: nn.Module = run_passes(program, parse_pipeline(LOWERING)).require("stages")[stage]
        if len(self._kept) > MOST_KEPT:
            self._kept.clear()
        names = {subject.graph.layer_names[layer]: option for layer, option in zip(own.layers, own.options)}
        leaves = [node.target for node in module.graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
        for name in dict.fromkeys(leaves):
            module.set_submodule(name, self._filled(name, names.get(name, ""), module.get_submodule(name)))
        return module.eval().requires_grad_(False)

    def _filled(self, name: str, option: str, found: "nn.Module") -> "nn.Module":
        import torch

        from llmpq.fused.prepare import prepare_stage
        from llmpq.profiling.random_weights import fill

        if (name, option) not in self._kept:
            fill(found, getattr(torch, self._subject.compute_dtype), self._subject.device)
            prepare_stage(found)
            self._kept[name, option] = found
        return self._kept[name, option]
