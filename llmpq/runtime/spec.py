"""PipelineSpec: what the runtime needs to know of a graph and its plan, and the slots that a job has within it."""

from dataclasses import dataclass

import torch

from llmpq.errors import InputError
from llmpq.graph import Attention, LayerGraph
from llmpq.layer_option import SEPARATOR
from llmpq.plan import ComputeDtype, Plan
from llmpq.precision import QUANTIZABLE
from llmpq.runtime.job import Job
from llmpq.workload import Batch


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """`layers[j]`: layer number -> attention of stage j; the rest as in the plan. `compute_dtype` float32 is reference mode."""

    devices: tuple[str, ...]
    hosts: tuple[str, ...]
    layers: tuple[dict[int, Attention], ...]
    compute_dtype: ComputeDtype
    workload: Batch
    prefill_micro_batch: int
    decode_micro_batch: int
    vocab_size: int
    max_positions: int
    hidden_size: int

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

    @property
    def most_rows(self) -> int:
        """Sequences of the largest step."""
        return max(self.prefill_micro_batch, self.decode_micro_batch)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence's hidden state at one position."""
        return self.hidden_size * self.torch_dtype.itemsize

    def prefilled_at_once(self, padded_len: int) -> int:
        """Prompts of that length: the plan's micro-batch, or fewer longer ones, within the plan's tokens per pass."""
        most = self.prefill_micro_batch * self.workload.prompt_len // padded_len
        return max(1, min(self.prefill_micro_batch, most))

    def stage_name(self, stage: int) -> str:
        return f"stage {stage} ({self.devices[stage]} on {self.hosts[stage]})"


def pipeline_spec(plan: Plan, graph: LayerGraph, compute_dtype: ComputeDtype | None = None) -> PipelineSpec:
    """The spec of the plan's pipeline; `compute_dtype` overrides the plan's, float32 for reference mode."""
    layers = tuple({layer: graph.kind_of(layer).attention for layer in stage.layers} for stage in plan.stages)
    return PipelineSpec(
        devices=tuple(stage.device for stage in plan.stages),
        hosts=tuple(plan.cluster.device(stage.device).host for stage in plan.stages),
        layers=layers,
        compute_dtype=compute_dtype or plan.compute_dtype,
        workload=plan.batch,
        prefill_micro_batch=plan.pipeline.prefill_micro_batch,
        decode_micro_batch=plan.pipeline.decode_micro_batch,
        vocab_size=graph.vocab_size,
        max_positions=graph.max_positions,
        hidden_size=graph.hidden_size,
    )


def unsupported(plan: Plan) -> list[str]:
    """Why this runtime cannot run the plan, one sentence each."""
    if len(plan.pipelines) != 1:
        return [f"the plan has {len(plan.pipelines)} pipelines; this runtime runs one"]
    pipeline = plan.pipeline
    precisions = {precision for option in plan.options for precision in option.split(SEPARATOR)}
    reasons = [f"option {name} is not one of {', '.join(QUANTIZABLE)}" for name in sorted(precisions - set(QUANTIZABLE))]
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
        positions = job.positions(index)
        if positions > spec.max_positions:
            raise InputError(f"sequence {index} needs {positions} positions; the model has {spec.max_positions}: shorten it")
        if job.kind != "score" and positions > spec.cache_positions:
            raise InputError(
                f"sequence {index} needs {positions} positions of KV cache; the plan reserved {spec.cache_positions}: "
                "shorten it, or compile with a larger prompt_len or gen_len"
            )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Sequences that share slots of `slot_len` positions each, `slots` of them at a time."""

    sequences: tuple[int, ...]
    slots: int
    slot_len: int


def arrangements(job: Job, spec: PipelineSpec) -> list[Arrangement]:
    """The job's sequences within the planned sequences and KV positions: first those as long as planned, then longer ones.

    Sequences that an earlier run has ended are in none.
    """
    left = [sequence for sequence in range(len(job.sequences)) if not job.was_ended(sequence)]
    if job.kind == "score":
        return [Arrangement(tuple(left), min(len(left), spec.workload.batch_size), 0)] if left else []
    planned = [sequence for sequence in left if job.positions(sequence) <= spec.workload.kv_len]
    longer = [sequence for sequence in left if job.positions(sequence) > spec.workload.kv_len]
    return [_arrangement(job, spec, sequences) for sequences in (planned, longer) if sequences]


def _arrangement(job: Job, spec: PipelineSpec, sequences: list[int]) -> Arrangement:
    slot_len = max(job.positions(sequence) for sequence in sequences)
    slots = min(len(sequences), spec.workload.batch_size, spec.cache_positions // slot_len)
    return Arrangement(tuple(sequences), slots, slot_len)
