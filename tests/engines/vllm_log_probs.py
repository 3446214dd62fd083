"""Teacher-forced log-probabilities of token sequences under vLLM on CPU; run by the engine environment's Python."""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.engines.kernels import linears

COMMON = {
    "VLLM_CPU_INT4_W4A8": "0",  # by default vLLM rounds the activations of 4-bit linears to 8 bits where there is AMX
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # the function `linears` is sent to the processes of a pipeline
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # a helper of the sampler is compiled in eager mode too, for 20 s
}
PLUGIN = "llmpq_vllm_plugin.Worker"
DISTRIBUTIONS = ("vllm-cpu", "torch", "transformers", "compressed-tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("windows", type=Path, help="JSON file: a list of token sequences")
    parser.add_argument("result", type=Path, help="JSON file to write: a list, a result per model")
    parser.add_argument("models", nargs="+", help="directories of checkpoints, run one after the other")
    parser.add_argument("--partition", help="layers of each stage, for instance 5,7; a process per stage")
    parser.add_argument("--stock", action="store_true", help="without llmpq's plugin")
    arguments = parser.parse_args()
    set_environment(arguments.partition)
    windows = json.loads(arguments.windows.read_text())
    results = [run(model, windows, arguments.partition, arguments.stock) for model in arguments.models]
    arguments.result.write_text(json.dumps(results, indent=1))


def set_environment(partition: str | None) -> None:
    """What vLLM reads when it is imported."""
    os.environ.pop("TQDM_DISABLE", None)  # vLLM 0.32 divides by the time that a disabled progress bar does not take
    mode = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if partition is None else {"VLLM_PP_LAYER_PARTITION": partition}
    os.environ.update(COMMON | mode)


def run(model: str, windows: list[list[int]], partition: str | None, stock: bool) -> dict[str, Any]:
    """Versions, instruction set, seconds, linears of each stage, and the log-probabilities of each window."""
    started = time.perf_counter()
    llm = load(model, max(map(len, windows)) + 1, partition, stock)
    loaded = time.perf_counter()
    log_probs = teacher_forced(llm, windows)
    ran, found = time.perf_counter(), llm.apply_model(linears)
    llm.llm_engine.engine_core.shutdown(timeout=60)
    if partition is None:
        forget_model()
    return {
        "versions": {name: version(name) for name in DISTRIBUTIONS},
        "instruction_set": instruction_set(),
        "load_s": round(loaded - started, 1),
        "run_s": round(ran - loaded, 1),
        "linears": found,
        "log_probs": log_probs,
    }


def forget_model() -> None:
    """Leave the process as if no model had been loaded."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # type: ignore[import-not-found]

    cleanup_dist_env_and_memory(False)


def load(model: str, max_model_len: int, partition: str | None, stock: bool) -> Any:
    """vLLM's engine in eager bfloat16 with a small KV cache; the first seconds are the import."""
    from vllm import LLM  # type: ignore[import-not-found]

    return LLM(
        model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=max_model_len,
        max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        pipeline_parallel_size=1 if partition is None else len(partition.split(",")),
        **({} if partition is None else {"distributed_executor_backend": "mp"}),
        **({} if stock else {"worker_cls": PLUGIN}),
    )


def teacher_forced(llm: Any, windows: list[list[int]]) -> list[list[float]]:
    """Of every token but the first of each window, given those before it."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": window} for window in windows], params, use_tqdm=False)
    return [
        [float(step[token].logprob) for token, step in zip(window[1:], output.prompt_logprobs[1:])]
        for window, output in zip(windows, outputs)
    ]


def instruction_set() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability() + (" with AMX" if torch.cpu._is_amx_tile_supported() else "")


if __name__ == "__main__":
    main()
