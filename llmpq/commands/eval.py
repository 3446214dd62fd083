"""llmpq eval: cross entropy and perplexity of a text, and the distance from another model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands.output import output_options, print_json, progress, stdout
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


@click.command("eval")
@click.argument("model")
@click.option(
    "--text",
    required=True,
    help="A text file, a .jsonl file (field text), dataset:NAME/CONFIG:SPLIT, or a bundled text: calibrate, tune, report.",
)
@click.option("--against", help="Another model or compiled output, for instance the original: adds kl, increase and top1.")
@click.option("--window", type=click.IntRange(min=2), help=f"Tokens of a window; by default {WINDOW}, or what the model takes.")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens that a window moves by; by default half a window.")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Only the first tokens of the text.")
@output_options
def command(
    model: str, text: str, against: str | None, window: int | None, stride: int | None, max_tokens: int | None, as_json: bool
) -> None:
    """Cross entropy and perplexity of MODEL (a compiled output or an original model) over a text.

    Figures come with one standard error, from blocks of neighbouring tokens; that of `increase`, the cross entropy above the
    other model's, is of the paired difference.
    """
    from llmpq.evaluation import evaluate_text
    from llmpq.frontend.models import token_ids
    from llmpq.frontend.texts import load_text

    content, name = load_text(text)
    scorers = [scorer(model)] if against is None else [scorer(model), scorer(against)]
    ids = token_ids(scorers[0].tokenizer, content)[:max_tokens]
    if token_ids(scorers[-1].tokenizer, content)[:max_tokens] != ids:
        raise InputError(f"{model} and {against} cut the text into different tokens; a divergence needs one tokenizer")
    chosen = min(_window(each, window) for each in scorers)
    other = None if against is None else scorers[1].log_probs
    with progress() as advance:

        def tell(done: int) -> None:
            advance(f"eval {model}", done, len(ids))

        result = evaluate_text(ids, scorers[0].log_probs, other, chosen, tell, stride)
    if as_json:
        print_json(result)
        return
    for line in _lines(model, name, against, result):
        stdout().print(line)


def _lines(model: str, text: str, against: str | None, result: "Evaluation") -> list[str]:
    figures = f"cross entropy {_figure(result.cross_entropy, result.cross_entropy_error)} nats per token"
    lines = [f"{model} on {text}: {figures}, perplexity {result.perplexity:.3f}, {result.tokens} tokens"]
    if result.kl is not None and result.increase is not None and result.top1 is not None:
        lines.append(
            f"against {against}: increase {_figure(result.increase, result.increase_error, '+')}, "
            f"kl {_figure(result.kl, result.kl_error)} nats per token, same likeliest token {result.top1:.2%}"
        )
    return lines


def _figure(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def _window(scorer: Scorer, asked: int | None) -> int:
    most = scorer.max_positions
    if asked is not None and most is not None and asked > most:
        raise InputError(f"--window {asked} is more than {scorer.name} takes; give at most {most}")
    return asked or min(WINDOW, most or WINDOW)


def scorer(model: str) -> Scorer:
    """A compiled output scored by our stages, any other model by transformers."""
    from llmpq.checkpoint.manifest import is_output
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
