"""llmpq eval: cross entropy and perplexity of a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands.output import print_json, progress, stdout
from llmpq.errors import InputError

if TYPE_CHECKING:
    from llmpq.evaluation import LogProbs

WINDOW = 512


@dataclass(frozen=True, slots=True)
class Scorer:
    """What scores a text: `max_positions` is the context of the model, None where nothing bounds it."""

    name: str
    log_probs: "LogProbs"
    tokenizer: Any
    max_positions: int | None


@click.command("eval")
@click.argument("model")
@click.option("--text", required=True, help="A text file, or one of the bundled texts: calibrate, tune, report.")
@click.option("--against", help="Another model or compiled output: adds the divergence from it (kl, nats per token).")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    help=f"Tokens of a window, which moves by half of that; by default {WINDOW}, or what the model takes.",
)
@click.option("--max-tokens", type=click.IntRange(min=2), help="Only the first tokens of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, text: str, against: str | None, window: int | None, max_tokens: int | None, as_json: bool) -> None:
    """Cross entropy and perplexity of MODEL (a compiled output or an original model) over a text."""
    from llmpq.evaluation import evaluate_text
    from llmpq.frontend.models import read_text, token_ids

    content, name = read_text(text)
    scorers = [scorer(model)] if against is None else [scorer(model), scorer(against)]
    ids = token_ids(scorers[0].tokenizer, content)[:max_tokens]
    if token_ids(scorers[-1].tokenizer, content)[:max_tokens] != ids:
        raise InputError(f"{model} and {against} cut the text into different tokens; a divergence needs one tokenizer")
    chosen = min(_window(each, window) for each in scorers)
    other = None if against is None else scorers[1].log_probs
    with progress() as advance:
        result = evaluate_text(ids, scorers[0].log_probs, other, chosen, lambda done: advance(f"eval {model}", done, len(ids)))
    if as_json:
        print_json(result)
        return
    figures = f"cross entropy {result.cross_entropy:.4f} nats per token, perplexity {result.perplexity:.3f}"
    line = f"{model} on {name}: {figures}, {result.tokens} tokens"
    stdout().print(line + ("" if result.kl is None else f", kl {result.kl:.4f} from {against}"))


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
        return Scorer(model, compiled.log_probs, compiled.tokenizer, compiled.graph.max_positions)
    from llmpq.quantization.original import load_original, log_probs_of, max_positions

    directory = resolve(model, weights=True).directory
    if directory is None:
        raise InputError(f"model {model!r} is a configuration without weights; give a directory, a hub id or `demo`")
    original = load_original(directory)
    return Scorer(model, log_probs_of(original), load_tokenizer(directory), max_positions(original))
