"""The serving workload of a trace: its rate, mean lengths, longest request and mean use of the cache."""

from collections.abc import Sequence
from math import fsum, sqrt

from llmpq.errors import InputError
from llmpq.simulation.requests import Request
from llmpq.workload import Serving


def serving_of(
    requests: Sequence[Request],
    *,
    rate_per_s: float | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    prefix_hits: float = 0.0,
) -> Serving:
    """What the requests ask of a server in steady state; `rate_per_s`: another rate than the trace's own.

    A running sequence is met in proportion to the length n of its answer, so it holds E[n (s + n / 2)] / E[n] tokens.
    Raises InputError for a trace without a rate: one request, or all at once.
    """
    duration = max(request.arrival_s for request in requests) - min(request.arrival_s for request in requests)
    if rate_per_s is None and duration <= 0:
        raise InputError(f"the trace has {len(requests)} requests within 0 s; give a rate with --rate")
    answers = fsum(request.gen_len for request in requests)
    mean = fsum(request.gen_len * (request.prompt_len + request.gen_len / 2) for request in requests) / answers
    square = fsum(_square(request.prompt_len, request.gen_len) for request in requests) / answers
    return Serving(
        rate_per_s=(len(requests) - 1) / duration if rate_per_s is None else rate_per_s,
        prompt_len=max(1, round(fsum(request.prompt_len for request in requests) / len(requests))),
        gen_len=max(1, round(answers / len(requests))),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        prefix_hits=prefix_hits,
        longest=max(request.prompt_len + request.gen_len for request in requests),
        cached_tokens=mean,
        cached_tokens_std=sqrt(square - mean * mean),
    )


def _square(prompt_len: int, gen_len: int) -> float:
    """The integral of (s + t)^2 over an answer: the squares of what its sequence holds, summed over its tokens."""
    return gen_len * prompt_len**2 + prompt_len * gen_len**2 + gen_len**3 / 3
