"""Log-probabilities of forced continuations by transformers: over the whole sequence at once, or by the steps of a pipeline."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmpq import CompiledModel
from llmpq.quantization.original import log_probs_of
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import force_job
from llmpq.runtime.progress import Progress
from llmpq.runtime.spec import pipeline_spec
from llmpq.runtime.stage import Stage
from llmpq.runtime.transport import in_process_ring

Ids = Sequence[Sequence[int]]


def at_once(model: Any, sequence: Sequence[int]) -> list[float]:
    """Of tokens 1, 2, … of a sequence, each given those before it."""
    following = torch.tensor(sequence)[1:, None]
    found: list[float] = log_probs_of(model)(sequence)[:-1].gather(1, following)[:, 0].tolist()
    return found


def by_steps(model: Any, compiled: CompiledModel, prompts: Ids, continuations: Ids) -> list[list[float]]:
    """Of each continuation: transformers' model as the one stage of an engine, in the steps and slots of the plan.

    Activations rounded to 8 bits jump where they lie halfway between two steps, and there the last bit of fp32 decides. So a
    model that rounds them must be given the same shapes to be compared closely: transformers too differs from itself by
    0.001 to 0.01 between decoding with a cache and a pass over the whole sequence.
    """
    spec = pipeline_spec(compiled.plan, compiled.graph, "float32")
    layers = {layer: attention for stage in spec.layers for layer, attention in stage.items()}
    whole = replace(spec, devices=spec.devices[:1], hosts=spec.hosts[:1], layers=(layers,))
    progress = Progress(force_job(prompts, continuations))
    for _ in Engine(whole, {0: Stage(_Whole(model), layers, torch.float32)}, in_process_ring(1)).run(progress):
        pass
    return [list(generation.log_probs or ()) for generation in progress.generations()]


class _Whole(torch.nn.Module):
    """A model of transformers with the signature of a stage."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor | None, position_ids: Tensor, past: Any) -> Tensor:
        tokens, before = x.shape[1], past.get_seq_length()
        causal = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)
        allowed = causal if mask is None else causal & mask.bool()[:, None, None]
        settings = {"past_key_values": past, "use_cache": True, "logits_to_keep": 1}
        plain = allowed.expand(len(x), 1, tokens, before + tokens)
        logits: Tensor = self.model(input_ids=x, attention_mask=plain, position_ids=position_ids, **settings).logits
        return logits
