"""Probe: some layers of a model between its ends, lowered as for a plan but with random weights, timed pass by pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from llmpq.fused.prepare import prepare_stage
from llmpq.fx.graphs import copy_graph, with_graph
from llmpq.generation import SamplingParams
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import parse_options
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.plan import ComputeDtype, DeviceMemory, Optimality, Pipeline, Plan, Prediction, Quality
from llmpq.plan import Stage as PlannedStage
from llmpq.precision import Precision
from llmpq.profiling.random_weights import SEED, fill
from llmpq.program import Program, Request
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.sampling import sample
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.workload import Batch as Workload

WORKING_SET = 192 * 2**20  # bytes of layers of one kind, beyond any cache, so that their weights come from memory
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Seconds of one pass: embedding, one layer of each kind on average (None: cannot have the precision), behind the layers.

    rank_s: of what every stage of a pipeline does beside: masks, positions, rotary values, calls of modules
    busy: share of them in which this thread ran; other processes had the core for the rest
    """

    first_s: float
    layers_s: tuple[float | None, ...]
    last_s: float
    rank_s: float
    busy: float = field(default=1.0, compare=False)

    @property
    def total_s(self) -> float:
        return self.first_s + self.rank_s + self.last_s + sum(seconds or 0.0 for seconds in self.layers_s)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a traced model on one device of a type."""

    traced: GraphModule
    graph: LayerGraph
    cluster: Cluster
    compute_dtype: ComputeDtype
    device: torch.device


class Probe:
    """One stage with the ends and some layers of each kind at one precision; `pass_times` runs it once."""

    def __init__(self, subject: Subject, precision: Precision, clock: Clock = time.perf_counter) -> None:
        graph = self._graph = subject.graph
        dtype: torch.dtype = getattr(torch, subject.compute_dtype)
        has = tuple(can_have(subject, index, precision) for index in range(len(graph.kinds)))
        self._measured = has
        self._kept = kept_layers(graph, precision)
        options = tuple(precision.name if has[kind] else "16" for kind in graph.layer_kind)
        module = without_layers(lowered(subject, options), tuple(graph.layer_names[i] for i in self._dropped()))
        fill(module, dtype, subject.device)
        prepare_stage(module)
        self._clock = clock if subject.device.type == "cpu" else synchronized(clock)
        self._times: list[float] = []
        self._embedding_times: list[float] = []
        self._decoded: tuple[int, int] | None = None  # sequences and positions of the cache that is there
        for layer in self._kept:
            found = module.get_submodule(graph.layer_names[layer])
            found.register_forward_pre_hook(self._tick)
            found.register_forward_hook(self._tick)
        for name in embeddings(module, graph.layer_names[self._kept[0]]):
            module.get_submodule(name).register_forward_pre_hook(self._tick_embedding)
            module.get_submodule(name).register_forward_hook(self._tick_embedding)
        attention = {layer: graph.kind_of(layer).attention for layer in self._kept}
        self._stage = Stage(module.eval().requires_grad_(False), attention, dtype, subject.device)

    def pass_times(self, rows: int, tokens: int, context: int) -> PassTimes:
        """`rows` sequences of `tokens` new tokens that see `context` positions at the end: a prefill, or a decode step at 1."""
        decode = tokens == 1
        length = context if decode else tokens
        step = Step(Action("D" if decode else "P", 0), 0, tuple(Row(row, row, length) for row in range(rows)))
        if not decode or self._decoded != (rows, context):
            self._stage.reserve(rows, length)  # a run decodes into memory that prefill has touched, so not anew
        self._decoded = (rows, context) if decode else None
        self._times, self._embedding_times = [], []
        start, ran = self._clock(), time.thread_time()
        unlike = torch.Generator().manual_seed(SEED)  # tokens that reach as many experts as those of a text do
        ids = torch.randint(self._graph.vocab_size, (rows, tokens), generator=unlike)
        logits = self._stage.run(step, ids)
        sample(logits[:, -1], SamplingParams(1), range(rows), [0] * rows).tolist()
        end, ran = self._clock(), time.thread_time() - ran
        return self._split(start, end, ran / max(end - start, 1e-9))

    def _split(self, start: float, end: float, busy: float) -> PassTimes:
        """The ticks before and after every layer as seconds; what passes between two layers every stage spends."""
        spent: dict[int, list[float]] = {}
        for layer, before, after in zip(self._kept, self._times[::2], self._times[1::2], strict=True):
            spent.setdefault(self._graph.layer_kind[layer], []).append(after - before)
        layers = tuple(sum(spent[kind]) / len(spent[kind]) if measured else None for kind, measured in enumerate(self._measured))
        last = end - self._times[-1]
        first = sum(self._embedding_times[1::2]) - sum(self._embedding_times[::2])
        return PassTimes(first, layers, last, end - start - first - last - sum(map(sum, spent.values())), busy)

    def _tick(self, *_: object) -> None:
        self._times.append(self._clock())

    def _tick_embedding(self, *_: object) -> None:
        self._embedding_times.append(self._clock())

    def _dropped(self) -> list[int]:
        return [layer for layer in range(self._graph.num_layers) if layer not in self._kept]


def can_have(subject: Subject, kind: int, precision: Precision) -> bool:
    """Whether the own runtime runs layers of that kind at the precision on the device."""
    support = layer_support("local", subject.cluster.devices[0].type, precision, subject.graph.kinds[kind])
    return support.level != "unsupported"


def kept_layers(graph: LayerGraph, precision: Precision) -> tuple[int, ...]:
    """The first layers of each kind, as many as fill the working set; all of a small model's."""
    kept = []
    for index, kind in enumerate(graph.kinds):
        layers = [layer for layer, of in enumerate(graph.layer_kind) if of == index]
        kept += layers[: max(1, -(-WORKING_SET // kind.weight_bytes(precision)))]
    return tuple(sorted(kept))


def embeddings(module: GraphModule, first_layer: str) -> tuple[str, ...]:
    """The modules before the layers that have parameters: those of the first stage alone. Rotary values have none."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    before = dict.fromkeys(names[: names.index(first_layer)])
    return tuple(name for name in before if any(True for _ in module.get_submodule(name).parameters()))


def lowered(subject: Subject, options: tuple[str, ...]) -> GraphModule:
    """The whole model as one stage, layers at these options, without weights."""
    workload = Workload(1, 1, 1)
    device = subject.cluster.devices[0]
    pipeline = Pipeline((PlannedStage(device.name, 0, options),), 1, 1)
    memory = DeviceMemory(device.name, 0, 0, 0, 0, 0, device.capacity_bytes)
    plan = Plan(
        model=subject.graph.model,
        compute_dtype=subject.compute_dtype,
        workload=workload,
        cluster=subject.cluster,
        pipelines=(pipeline,),
        prediction=Prediction(0.0, 0.0, (memory,), "none"),
        quality=Quality(0.0, None, "none"),
        optimality=Optimality(0.0, None, False, "one device"),
    )
    request = Request(subject.cluster, workload, parse_options(tuple(dict.fromkeys(options))))
    program = Program(subject.graph, request, compute_dtype=subject.compute_dtype, plan=plan, graph_module=subject.traced)
    (stage,) = run_passes(program, parse_pipeline(LOWERING)).require("stages")
    found: GraphModule = stage
    return found


def without_layers(module: GraphModule, names: tuple[str, ...]) -> GraphModule:
    """The stage without some layers: what enters them goes on to the next."""
    graph = copy_graph(module)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in names:
            hidden = node.args[0] if node.args else node.kwargs["hidden_states"]
            node.replace_all_uses_with(hidden)
            graph.erase_node(node)
    return with_graph(module, graph, type(module).__name__)


def synchronized(clock: Clock) -> Clock:
    """The clock, after all kernels of the accelerator have ended."""

    def now() -> float:
        torch.cuda.synchronize()
        return clock()

    return now
