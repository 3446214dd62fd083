"""Engine host: a process that imported vLLM once and forks an engine per configuration; speaks JSON lines.

Runs in the engine's interpreter. Requests, one per line, and their answers:
{"start": [engine, ...]} -> {"ready": [facts, ...]}; {"run": [job, ...]} -> {"results": [...]} (all begin together);
{"stop": true} -> {"stopped": true}; {"error": text} where an engine failed. End of input ends everything.
"""

import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rank_environment import obey

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}
START_LIMIT_S, RUN_LIMIT_S = 120.0, 240.0
WORKER = "rank_worker.RankWorker"


def main() -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr
    import rank_worker  # noqa: F401
    import vllm.entrypoints.llm  # type: ignore[import-not-found]
    import vllm.model_executor.models.llama  # type: ignore[import-not-found]
    import vllm.v1.executor.multiproc_executor  # type: ignore[import-not-found]  # noqa: F401

    register_overrides()
    gc.collect()
    gc.freeze()  # what is imported is neither copied nor gone through again in every fork
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    say(replies, {"warm": True})
    running: list[tuple[Any, Connection]] = []
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if "start" in request:
                running = [fork(engine) for engine in request["start"]]
                say(replies, together("ready", answers(running, START_LIMIT_S)))
            elif "run" in request:
                for (_, connection), job in zip(running, request["run"], strict=True):
                    connection.send(job)
                say(replies, together("results", answers(running, RUN_LIMIT_S)))
            else:
                stop(running)
                running = []
                say(replies, {"stopped": True})
    finally:
        stop(running, patience_s=1.0)


def register_overrides() -> None:
    """vLLM's replacements of Triton kernels, registered once before the forks, which then need not search all modules."""
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)


def say(replies: Any, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def together(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    errors = [answer["error"] for answer in answers if "error" in answer]
    return {"error": "; ".join(errors)} if errors else {name: answers}


def answers(running: Sequence[tuple[Any, Connection]], limit_s: float) -> list[dict[str, Any]]:
    """Of every engine; an engine that says nothing within the limit is ended, with its ranks."""
    deadline, found = time.monotonic() + limit_s, []
    for process, connection in running:
        if connection.poll(max(0.0, deadline - time.monotonic())):
            found.append(connection.recv())
        else:
            os.killpg(process.pid, signal.SIGKILL)
            found.append({"error": f"no answer within {limit_s:g} s"})
    return found


def fork(engine: dict[str, Any]) -> tuple[Any, Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(engine, there))
    process.start()
    there.close()
    return process, here


def stop(running: Sequence[tuple[Any, Connection]], patience_s: float = 20.0) -> None:
    for _, connection in running:
        with suppress(OSError):
            connection.send(None)
    for process, _ in running:
        process.join(patience_s)
        if process.is_alive():
            process.kill()
            process.join()


def serve(engine: dict[str, Any], connection: Connection) -> None:
    """One engine: loads, then a job per message until the connection closes."""
    os.setpgid(0, 0)
    shared: set[str] = set()
    try:
        started = time.perf_counter()
        llm = load(engine)
        facts = llm.collective_rpc("rank_facts")
        shared |= {fact["ident"] for fact in facts}
        blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
        connection.send({"ranks": facts, "kv_blocks": blocks, "load_s": round(time.perf_counter() - started, 2)})
        while job := connection.recv():
            llm.collective_rpc("parts")
            done = BATCH_OR_TRACE[job["kind"]](llm, job)
            connection.send(done | {"parts": llm.collective_rpc("parts")})
        llm.llm_engine.engine_core.shutdown(timeout=10)
    except BaseException as error:
        connection.send({"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        for ident in shared:  # segments that vLLM's ranks leave when they are ended
            for path in Path("/dev/shm").glob(f"{ident}*"):
                path.unlink(missing_ok=True)
        os._exit(0)


def load(engine: dict[str, Any]) -> Any:
    """engine: model, partition, max_model_len, max_num_seqs, max_num_batched_tokens, block_size, kv_cache_memory_bytes,
    environment (variables of all ranks), rank_environments (of each)."""
    from vllm import LLM
    from vllm.v1.executor import multiproc_executor

    partition = engine["partition"]
    os.environ.update(engine.get("environment", {}))
    set_start_method(multiproc_executor, engine.get("rank_environments"))
    if len(partition) > 1:
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, partition))
    names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes")
    return LLM(
        engine["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        enable_prefix_caching=False,
        pipeline_parallel_size=len(partition),
        distributed_executor_backend="mp",
        worker_cls=WORKER,
        **{name: engine[name] for name in names},
    )


def set_start_method(executor: Any, rank_environments: list[dict[str, str]] | None) -> None:
    """Ranks are forked, with all imports done (vLLM asks for spawn on CPUs); spawned where they need variables of their own."""
    method = multiprocessing.get_context("fork" if rank_environments is None else "spawn")
    executor.get_mp_context = lambda: method
    if rank_environments is None:
        return
    make = executor.WorkerProc.make_worker_process

    def with_variables(*args: Any, **kwargs: Any) -> Any:
        before = dict(os.environ)
        os.environ.update(rank_environments[kwargs["rank"]])
        try:
            return make(*args, **kwargs)
        finally:
            os.environ.clear()
            os.environ.update(before)

    executor.WorkerProc.make_worker_process = staticmethod(with_variables)


def batch(llm: Any, job: dict[str, Any]) -> dict[str, Any]:
    """All prompts at once, every one continued by `gen_len` tokens."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=job["gen_len"], ignore_eos=True, temperature=0, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}


def trace(llm: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Requests (arrival_s, prompt, gen_len) at their times. ttft_s, tpot_s: of each request, in the order of the trace."""
    from vllm import SamplingParams

    engine, waiting = llm.llm_engine, list(enumerate(job["requests"]))
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    tokens: dict[str, int] = {}
    started = time.perf_counter()
    while waiting or engine.has_unfinished_requests():
        now = time.perf_counter() - started
        while waiting and waiting[0][1]["arrival_s"] <= now:
            index, request = waiting.pop(0)
            params = SamplingParams(max_tokens=request["gen_len"], ignore_eos=True, temperature=0, detokenize=False)
            engine.add_request(str(index), {"prompt_token_ids": request["prompt"]}, params)
        if not engine.has_unfinished_requests():
            time.sleep(max(0.0, waiting[0][1]["arrival_s"] - (time.perf_counter() - started)))
            continue
        for output in engine.step():
            now, count = time.perf_counter() - started, len(output.outputs[0].token_ids)
            if count:
                first.setdefault(output.request_id, now)
                last[output.request_id], tokens[output.request_id] = now, count
    order = [str(index) for index in range(len(job["requests"]))]
    arrivals = [request["arrival_s"] for request in job["requests"]]
    return {
        "seconds": time.perf_counter() - started,
        "tokens": sum(tokens.values()),
        "ttft_s": [first[name] - arrival for name, arrival in zip(order, arrivals)],
        "tpot_s": [(last[name] - first[name]) / max(1, tokens[name] - 1) for name in order],
    }


obey()  # where this file is imported by a rank that was spawned, not forked

BATCH_OR_TRACE = {"batch": batch, "trace": trace}

if __name__ == "__main__":
    main()
