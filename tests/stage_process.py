"""One stage of the toy as a process: what test_backend_distributed starts once per rank."""

import json
import os
import signal
import sys

import torch

from llmpq.backends.distributed import DistributedBackend
from llmpq.errors import LlmpqError
from llmpq.generation import SamplingParams
from llmpq.runtime.heartbeat import Patience
from llmpq.runtime.pipeline_backend import PipelineBackend
from tests.toys import ToyStage, prompts_of, toy_graph, toy_plan, toy_stages

CUTS = (1, 3)
LENGTHS = (5, 1, 9, 3, 12, 5)
CONTINUATIONS = (4, 7, 0, 1, 6, 2)


def results(backend: PipelineBackend) -> dict[str, object]:
    """What the other process's stage and this one make of the jobs of the test."""
    prompts = prompts_of(LENGTHS)
    streamed: list[tuple[int, int]] = []
    greedy = backend.generate(prompts, SamplingParams(5), lambda sequence, token: streamed.append((sequence, token)))
    first = greedy[0].token_ids[1]
    seeded = SamplingParams(7, temperature=1.0, top_p=0.9, seed=11, eos_token_ids=(first,))
    return {
        "greedy": [generation.token_ids for generation in greedy],
        "streamed": streamed,
        "seeded": [generation.token_ids for generation in backend.generate(prompts, seeded)],
        "forced": backend.log_probs(prompts, prompts_of(CONTINUATIONS, seed=2)),
        "scores": backend.score(prompts),
    }


def dying(stage: ToyStage, how: str, calls: int) -> ToyStage:
    """The stage, which at that call is killed, raises or stops."""
    count = 0

    def hook(module: torch.nn.Module, inputs: object) -> None:
        nonlocal count
        count += 1
        if count == calls and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == calls and how == "raises":
            raise RuntimeError("out of memory, says the stage")
        if count == calls and how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)

    stage.register_forward_pre_hook(hook)
    return stage


def main(fate: str = "lives", lost_after_s: str = "5") -> None:
    torch.set_num_threads(1)

    def load_stage(index: int) -> ToyStage:
        stage = toy_stages(CUTS)[index]
        return stage if index == 0 or fate == "lives" else dying(stage, fate, calls=4)

    try:
        with DistributedBackend(
            toy_plan(CUTS, 1, 2), toy_graph(), load_stage, patience=Patience(60, float(lost_after_s), 60)
        ) as backend:
            if backend.rank:
                backend.follow()
            else:
                print(json.dumps(results(backend)))
    except LlmpqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
