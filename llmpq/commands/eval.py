"""llmpq eval: cross entropy and perplexity of a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands.output import print_json, progress, stdout
from llmpq.errors import InputError

if TYPE_CHECKING:
    from llmpq.evaluation import LogProbs


@click.command("eval")
@click.argument("model")
@click.option("--text", required=True, help="A text file, or one of the bundled texts: calibrate, tune, report.")
@click.option("--against", help="Another model or compiled output: adds the divergence from it (kl, nats per token).")
@click.option("--window", type=int, default=512, show_default=True, help="Tokens of a window; it moves by half of that.")
@click.option("--max-tokens", type=int, help="Only the first tokens of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, text: str, against: str | None, window: int, max_tokens: int | None, as_json: bool) -> None:
    """Cross entropy and perplexity of MODEL (a compiled output or an original model) over a text."""
    from llmpq.evaluation import evaluate_text
    from llmpq.frontend.models import read_text, token_ids

    content, name = read_text(text)
    scorer, tokenizer = _scorer(model)
    other = _scorer(against)[0] if against is not None else None
    ids = token_ids(tokenizer, content)[:max_tokens]
    with progress() as advance:
        result = evaluate_text(ids, scorer, other, window, lambda done: advance(f"eval {model}", done, len(ids)))
    if as_json:
        print_json(result)
        return
    figures = f"cross entropy {result.cross_entropy:.4f} nats per token, perplexity {result.perplexity:.3f}"
    line = f"{model} on {name}: {figures}, {result.tokens} tokens"
    stdout().print(line + ("" if result.kl is None else f", kl {result.kl:.4f} from {against}"))


def _scorer(model: str) -> "tuple[LogProbs, Any]":
    """Log-probabilities by our stages for a compiled output, by transformers for any other model; and the tokenizer."""
    from llmpq.checkpoint.manifest import is_output
    from llmpq.frontend.models import load_tokenizer, resolve

    if is_output(Path(model)):
        from llmpq.compiled import load

        compiled = load(model)
        return compiled.log_probs, compiled.tokenizer
    from llmpq.quantization.original import load_original, log_probs_of

    directory = resolve(model, weights=True).directory
    if directory is None:
        raise InputError(f"model {model!r} is a configuration without weights; give a directory, a hub id or `demo`")
    return log_probs_of(load_original(directory)), load_tokenizer(directory)
