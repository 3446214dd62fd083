"""LlmpqLM: a compiled or an original model as lm-evaluation-harness asks for it (pip install 'llmpq[lm-eval]')."""

from collections.abc import Sequence
from typing import Any

from llmpq.errors import InputError
from llmpq.evaluation import token_losses

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise InputError("lm-evaluation-harness is not installed; pip install 'llmpq[lm-eval]'") from error

MAX_NEW_TOKENS = 256


class LlmpqLM(LM):  # type: ignore[misc]  # lm-eval is not annotated
    """`lm_eval.simple_evaluate(model=LlmpqLM("out"), tasks=["lambada_openai"])`.

    pretrained: what `llmpq eval` takes: a compiled output, whose stages run in this process, a directory, a hub id or `demo`.
    Only compiled outputs generate; any model has likelihoods.
    """

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        from llmpq.scoring import scorer

        self.scorer = scorer(pretrained)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the greedy one) for each (context, continuation)."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of each whole text, in windows with half a window of past."""
        return [self._text(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy continuations, cut before the first of the `until` strings."""
        return [self._generate(*request.args) for request in requests]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        import torch

        stripped = context.rstrip()  # spaces belong to the tokens after them
        whole = self._start() + self._encode(context + continuation)
        before = len(self._start() + self._encode(stripped))
        targets = torch.tensor(whole[before:])
        ids = whole[-(self._window + 1) :]
        predicted = self.scorer.log_probs(ids[:-1])[-len(targets) :]
        chosen = predicted.gather(1, targets[-len(predicted) :, None])
        return float(chosen.sum()), bool((predicted.argmax(-1) == targets[-len(predicted) :]).all())

    def _text(self, text: str) -> float:
        ids = self._start() + self._encode(text)
        if len(ids) < 2:
            return 0.0
        return -sum(float(window.sum()) for window in token_losses(ids, self.scorer.log_probs, self._window))

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        compiled = self.scorer.compiled
        if compiled is None:
            raise InputError(f"{self.scorer.name} is an original model; only a compiled output generates: llmpq compile it first")
        until = options.get("until", [])
        (text,) = compiled.generate(context, max_new_tokens=int(options.get("max_gen_toks", MAX_NEW_TOKENS)))
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return str(text)

    @property
    def _window(self) -> int:
        return self.scorer.max_positions or 2048

    def _encode(self, text: str) -> list[int]:
        return list(self.scorer.tokenizer.encode(text, verbose=False, add_special_tokens=False))

    def _start(self) -> list[int]:
        """The token that stands for the beginning of a text."""
        tokenizer = self.scorer.tokenizer
        tokens = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        return tokens[:1]
