"""Options of the workload: a batch, requests at a rate, or a trace, and what they become."""

from pathlib import Path
from typing import Any

import click

from llmpq.errors import InputError
from llmpq.workload import Batch, Serving, Workload

DEFAULT_BATCH_SIZE = 32

WORKLOAD_OPTIONS = (
    click.option("--batch-size", type=int, help=f"Sequences generated together; {DEFAULT_BATCH_SIZE} by default."),
    click.option("--prompt-len", type=int, default=512, show_default=True, help="Tokens of a prompt; the mean when serving."),
    click.option("--gen-len", type=int, default=100, show_default=True, help="Tokens generated for each; the mean when serving."),
    click.option("--rate", type=float, help="Plan for serving instead of a batch: requests per second."),
    click.option("--ttft", type=float, metavar="S", help="Serving: at most so many seconds to the first token, on average."),
    click.option("--tpot", type=float, metavar="S", help="Serving: at most so many seconds per token after it, on average."),
    click.option("--prefix-hits", type=float, metavar="SHARE", help="Serving: share of the prompts that is in a prefix cache."),
    click.option("--trace", type=click.Path(path_type=Path), help="Serving: rate and lengths of a CSV or JSONL trace."),
)


def workload_of(values: dict[str, Any]) -> Workload:
    """The workload of the options' values. Raises InputError for options that exclude or need each other."""
    given = [name for name in ("rate", "ttft", "tpot", "prefix_hits", "trace") if values.get(name) is not None]
    batch_size = values["batch_size"]
    if not given:
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        return Batch(size, values["prompt_len"], values["gen_len"])
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if batch_size is not None:
        raise InputError(f"--batch-size is of a batch, {flags} of serving; give one or the other")
    limits = {"ttft_s": values["ttft"], "tpot_s": values["tpot"], "prefix_hits": values["prefix_hits"] or 0.0}
    if values["trace"] is not None:
        from llmpq.simulation.requests import read_trace
        from llmpq.simulation.trace_workload import serving_of

        return serving_of(read_trace(values["trace"]), rate_per_s=values["rate"], **limits)
    if values["rate"] is None:
        raise InputError(f"{flags}: requests per second are not known; give --rate or --trace")
    return Serving(values["rate"], values["prompt_len"], values["gen_len"], **limits)
