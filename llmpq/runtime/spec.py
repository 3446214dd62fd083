"""PipelineSpec: what the runtime needs to know of a graph and its plan, and how a job is cut into batches by it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmpq.errors import InputError
from llmpq.graph import Attention, LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.precision import QUANTIZABLE
from llmpq.runtime.batching import Batch, make_batch
from llmpq.runtime.job import Job
from llmpq.workload import Batch as Workload


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """`layers[j]`: layer number -> attention of stage j; the rest as in the plan. `compute_dtype` float32 is reference mode."""

    devices: tuple[str, ...]
    layers: tuple[dict[int, Attention], ...]
    compute_dtype: ComputeDtype
    workload: Workload
    prefill_micro_batch: int
    decode_micro_batch: int
    vocab_size: int
    max_positions: int

    @property
    def num_stages(self) -> int:
        return len(self.layers)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[self.compute_dtype]

    @property
    def cache_positions(self) -> int:
        """KV positions that the plan paid for, over all sequences."""
        return self.workload.batch_size * self.workload.kv_len

    def stage_name(self, stage: int) -> str:
        return f"stage {stage} ({self.devices[stage]})"


def pipeline_spec(plan: Plan, graph: LayerGraph, compute_dtype: ComputeDtype | None = None) -> PipelineSpec:
    """The spec of the plan's pipeline; `compute_dtype` overrides the plan's, float32 for reference mode."""
    layers = tuple({layer: graph.kind_of(layer).attention for layer in stage.layers} for stage in plan.stages)
    return PipelineSpec(
        devices=tuple(stage.device for stage in plan.stages),
        layers=layers,
        compute_dtype=compute_dtype or plan.compute_dtype,
        workload=plan.batch,
        prefill_micro_batch=plan.pipeline.prefill_micro_batch,
        decode_micro_batch=plan.pipeline.decode_micro_batch,
        vocab_size=graph.vocab_size,
        max_positions=graph.max_positions,
    )


def unsupported(plan: Plan) -> list[str]:
    """Why this runtime cannot run the plan, one sentence each."""
    if len(plan.pipelines) != 1:
        return [f"the plan has {len(plan.pipelines)} pipelines; this runtime runs one"]
    pipeline = plan.pipeline
    reasons = [f"option {name} is not one of {', '.join(QUANTIZABLE)}" for name in sorted(set(plan.options) - set(QUANTIZABLE))]
    if min(pipeline.prefill_micro_batch, pipeline.decode_micro_batch) < 1:
        reasons.append("a micro-batch of the plan holds no sequence")
    elif pipeline.decode_micro_batch % pipeline.prefill_micro_batch:
        reasons.append(
            f"a prefill micro-batch of {pipeline.prefill_micro_batch} sequences does not divide "
            f"a decode micro-batch of {pipeline.decode_micro_batch}"
        )
    return reasons


def validate(job: Job, spec: PipelineSpec) -> None:
    """Raise InputError naming the first sequence that the model or the planned memory cannot take."""
    for index, sequence in enumerate(job.sequences):
        tokens = sequence + (job.forced[index] if job.kind == "force" else ())
        if not sequence:
            raise InputError(f"sequence {index} is empty; give at least one token")
        if min(tokens) < 0 or max(tokens) >= spec.vocab_size:
            bad = next(token for token in tokens if not 0 <= token < spec.vocab_size)
            raise InputError(f"sequence {index} holds token {bad}; the model knows 0 to {spec.vocab_size - 1}")
        positions = _positions(job, index)
        if positions > spec.max_positions:
            raise InputError(f"sequence {index} needs {positions} positions; the model has {spec.max_positions}: shorten it")
        if job.kind != "score" and positions > spec.cache_positions:
            raise InputError(
                f"sequence {index} needs {positions} positions of KV cache; the plan reserved {spec.cache_positions}: "
                "shorten it, or compile with a larger prompt_len or gen_len"
            )


def cut(job: Job, spec: PipelineSpec) -> Iterator[Batch]:
    """Successive batches of at most the plan's sequences and KV positions, in order."""
    start = 0
    while start < len(job.sequences):
        stop = start + 1
        while stop < len(job.sequences) and _fits(job, spec, range(start, stop + 1)):
            stop += 1
        yield _batch(job, spec, range(start, stop))
        start = stop


def _fits(job: Job, spec: PipelineSpec, sequences: range) -> bool:
    if len(sequences) > spec.workload.batch_size:
        return False
    longest = max(len(job.sequences[index]) for index in sequences) + _new_tokens(job, sequences) - 1
    return job.kind == "score" or len(sequences) * longest <= spec.cache_positions


def _batch(job: Job, spec: PipelineSpec, sequences: range) -> Batch:
    lengths = [len(job.sequences[index]) for index in sequences]
    prefill = _prefill_micro_batch(spec, max(lengths))
    return make_batch(lengths, sequences[0], prefill, spec.decode_micro_batch, _new_tokens(job, sequences))


def _prefill_micro_batch(spec: PipelineSpec, padded_len: int) -> int:
    """The plan's, or less for prompts longer than planned, so that activations stay within the plan's tokens per pass."""
    most = max(1, spec.prefill_micro_batch * spec.workload.prompt_len // padded_len)
    sizes = range(1, min(most, spec.prefill_micro_batch) + 1)
    return max(size for size in sizes if spec.decode_micro_batch % size == 0)


def _new_tokens(job: Job, sequences: Sequence[int]) -> int:
    return max(1, *(job.new_tokens(index) for index in sequences))


def _positions(job: Job, sequence: int) -> int:
    return len(job.sequences[sequence]) + max(1, job.new_tokens(sequence)) - 1
