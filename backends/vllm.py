"""VllmBackend: generation and scoring by a server of vLLM that is running."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from llmpq.backends.vllm_server import VllmServer
from llmpq.generation import Generation, OnToken, SamplingParams
from llmpq.plan import Plan

AT_ONCE = 256  # requests under way; vLLM queues what it has no room for


class VllmBackend:
    """What a backend of `CompiledModel.generate` does, asked of `server`. Tokens arrive a whole sequence at a time."""

    name: ClassVar[str] = "vllm"

    def __init__(self, server: VllmServer) -> None:
        self._server = server

    @classmethod
    def unsupported(cls, plan: Plan) -> list[str]:
        """Nothing: what vLLM cannot run is refused when the export is written."""
        return []

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, on_token: OnToken | None = None
    ) -> list[Generation]:
        with ThreadPoolExecutor(max(1, min(len(prompts), AT_ONCE))) as threads:
            found = list(threads.map(lambda prompt: self._continue(prompt, params), prompts))
        if on_token is not None:
            for sequence, generation in enumerate(found):
                for token in generation.token_ids:
                    on_token(sequence, token)
        return found

    def log_probs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of the tokens of each continuation."""
        pairs = list(zip(prompts, continuations, strict=True))
        whole = self.score([[*prompt, *continuation] for prompt, continuation in pairs])
        return [scored[len(prompt) - 1 :] for scored, (prompt, _) in zip(whole, pairs)]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of tokens 1, 2, … of each sequence given those before them."""
        with ThreadPoolExecutor(max(1, min(len(sequences), AT_ONCE))) as threads:
            return [tuple(found) for found in threads.map(self._server.log_probs, sequences)]

    def _continue(self, prompt: Sequence[int], params: SamplingParams) -> Generation:
        choice = self._server.complete(_request(prompt, params))
        chosen = tuple(choice["logprobs"]["token_logprobs"]) if params.log_probs else None
        return Generation(tuple(choice["token_ids"]), "eos" if choice["finish_reason"] == "stop" else "length", chosen)


def _request(prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
    return {
        "prompt": list(prompt),
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "seed": params.seed,
        "stop_token_ids": list(params.eos_token_ids),
        "ignore_eos": True,  # the ids that end a text are those of the parameters alone
        "return_token_ids": True,
        **({"logprobs": 0} if params.log_probs else {}),
    }
