"""Log-probabilities of forced continuations by transformers: over the whole sequence at once, or by the steps of a pipeline."""

from collections.abc import Sequence
from typing import Any

import torch

from llmpq import CompiledModel
from llmpq.quantization.original import log_probs_of
from llmpq.runtime.batching import Rows
from llmpq.runtime.job import force_job
from llmpq.runtime.spec import cut, pipeline_spec

Ids = Sequence[Sequence[int]]


def at_once(model: Any, sequence: Sequence[int]) -> list[float]:
    """Of tokens 1, 2, … of a sequence, each given those before it."""
    following = torch.tensor(sequence)[1:, None]
    found: list[float] = log_probs_of(model)(sequence)[:-1].gather(1, following)[:, 0].tolist()
    return found


def by_steps(model: Any, compiled: CompiledModel, prompts: Ids, continuations: Ids) -> list[list[float]]:
    """Of each continuation: prefill and cached decode in the micro-batches of the plan, by transformers' own masks and cache.

    Activations rounded to 8 bits jump where they lie halfway between two steps, and there the last bit of fp32 decides. So a
    model that rounds them must be given the same shapes to be compared closely: transformers too differs from itself by
    0.001 to 0.01 between decoding with a cache and a pass over the whole sequence.
    """
    job, spec = force_job(prompts, continuations), pipeline_spec(compiled.plan, compiled.graph, "float32")
    found: dict[int, list[float]] = {}
    for batch in cut(job, spec):
        for rows in batch.decode:
            found |= zip(rows.sequences, _decode(model, rows, prompts, continuations))
    return [found[index] for index in range(len(prompts))]


@torch.inference_mode()
def _decode(model: Any, rows: Rows, prompts: Ids, continuations: Ids) -> list[list[float]]:
    forced = [continuations[sequence] for sequence in rows.sequences]
    found: list[list[float]] = [[] for _ in forced]
    ids = rows.input_ids(prompts)
    mask = (torch.arange(rows.padded_len) >= rows.padded_len - torch.tensor(rows.lengths)[:, None]).long()
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    for step in range(max(map(len, forced))):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache, log_probs = output.past_key_values, output.logits[:, -1].float().log_softmax(-1)
        ids = torch.tensor([[tokens[step] if step < len(tokens) else 0] for tokens in forced])
        for row, tokens in enumerate(forced):
            found[row] += [float(log_probs[row, tokens[step]])] if step < len(tokens) else []
        mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
    return found
