"""Plans by hand for the tests of exports: stages on any cluster, with memory to spare."""

from dataclasses import replace
from itertools import accumulate

from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.plan import ComputeDtype, DeviceMemory, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.workload import Batch
from tests.values import llama_graph

BATCH = Batch(4, 24, 9)
LEFT = 3 << 20  # bytes that every device of a plan here leaves for the cache


def on(
    cluster: str, *stages: tuple[str, str], dtype: ComputeDtype = "float16", workload: Batch = BATCH, left: int = LEFT
) -> Plan:
    """`stages`: (device, options joined by spaces) in order."""
    options = [tuple(text.split()) for _, text in stages]
    starts = [0, *accumulate(len(kept) for kept in options)]
    made = tuple(Stage(device, start, kept) for (device, _), start, kept in zip(stages, starts, options))
    memory = tuple(DeviceMemory(stage.device, 1 << 20, 4096, 1 << 18, 0, 0, (1 << 20) + (1 << 18) + left) for stage in made)
    return Plan(
        model="tiny",
        compute_dtype=dtype,
        workload=workload,
        cluster=Cluster.load(cluster),
        pipelines=(Pipeline(made, 2, 4),),
        prediction=Prediction(1.0, 1.0, memory, "assumed"),
        quality=Quality(0.0, None, "assumed"),
        optimality=Optimality(1.0, None, False, "by hand"),
    )


def graph_of(plan: Plan, window: int | None = None) -> LayerGraph:
    """A small Llama with as many layers."""
    graph = llama_graph(len(plan.options), tied=False)
    kinds = tuple(replace(kind, attention=replace(kind.attention, window=window)) for kind in graph.kinds)
    return replace(graph, kinds=kinds)


def modules_of(plan: Plan) -> dict[str, int]:
    """What the traced graph of such a model calls, and the stages."""
    layers = {f"model.layers.{layer}": index for index, stage in enumerate(plan.stages) for layer in stage.layers}
    last = len(plan.stages) - 1
    return {"model.embed_tokens": 0, "model.rotary_emb": 0, **layers, "model.norm": last, "lm_head": last}


TWO_CPUS = on("2xCPU", ("CPU:0", "w8a16 w4a16 16"), ("CPU:1", "w8a8"), dtype="bfloat16")
FOUR_T4 = on("4xT4+2xV100-32", ("T4:2", "w4a16 w4a16"), ("T4:0", "16"), ("T4:3", "w8a8 w8a16"))
EVEN_HOSTS = on(
    "2xL4,2xA100-40", ("A100-40:0", "16"), ("A100-40:1", "16"), ("L4:1", "w4a16"), ("L4:0", "w4a16"), dtype="bfloat16"
)
UNEVEN_HOSTS = on("1xL4,2xA100-40", ("L4:0", "w4a16"), ("A100-40:0", "16"), ("A100-40:1", "16"), dtype="bfloat16")
OLD_CARDS = on("2xV100-32+1xP100-16+1xCPU", ("V100-32:1", "16 w8a16"), ("CPU:0", "w4a16"), ("P100-16:0", "w4a16 w4a16"))
