"""Scoring: what a text costs a compiled output or an original model, and the distance between two of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.errors import InputError

if TYPE_CHECKING:
    from llmpq.compiled import CompiledModel
    from llmpq.evaluation import Evaluation, LogProbs

WINDOW = 512


@dataclass(frozen=True, slots=True)
class Scorer:
    """What scores a text: `max_positions` is the context of the model, None where nothing bounds it; `compiled`: an output."""

    name: str
    log_probs: "LogProbs"
    tokenizer: Any
    max_positions: int | None
    compiled: "CompiledModel | None" = None


def evaluate(
    model: str,
    text: str,
    against: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Evaluation":
    """The loss of `model` on a text, and its distance from another model; progress(tokens done, tokens in all).

    text: a file, dataset:NAME/CONFIG:SPLIT or a bundled text. Raises InputError for models that cut it into different tokens.
    """
    from llmpq.evaluation import evaluate_text
    from llmpq.frontend.models import token_ids
    from llmpq.frontend.texts import load_text

    content, _ = load_text(text)
    scorers = [scorer(model)] if against is None else [scorer(model), scorer(against)]
    ids = token_ids(scorers[0].tokenizer, content)[:max_tokens]
    if token_ids(scorers[-1].tokenizer, content)[:max_tokens] != ids:
        raise InputError(f"{model} and {against} cut the text into different tokens; a divergence needs one tokenizer")
    chosen = min(_window(each, window) for each in scorers)
    other = None if against is None else scorers[1].log_probs
    return evaluate_text(ids, scorers[0].log_probs, other, chosen, lambda done: progress(done, len(ids)), stride)


def _window(scorer: Scorer, asked: int | None) -> int:
    most = scorer.max_positions
    if asked is not None and most is not None and asked > most:
        raise InputError(f"--window {asked} is more than {scorer.name} takes; give at most {most}")
    return asked or min(WINDOW, most or WINDOW)


def scorer(model: str) -> Scorer:
    """A compiled output scored by our stages, any other model by transformers."""
    from llmpq.checkpoint.output_directory import is_output
    from llmpq.frontend.models import load_tokenizer, resolve

    if is_output(Path(model)):
        from llmpq.compiled import load

        compiled = load(model)
        return Scorer(model, compiled.log_probs, compiled.tokenizer, compiled.graph.max_positions, compiled)
    from llmpq.quantization.original import load_original, log_probs_of, max_positions

    directory = resolve(model, weights=True).directory
    if directory is None:
        raise InputError(f"model {model!r} is a configuration without weights; give a directory, a hub id or `demo`")
    original = load_original(directory)
    return Scorer(model, log_probs_of(original), load_tokenizer(directory), max_positions(original))
