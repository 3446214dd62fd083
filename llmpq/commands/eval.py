"""llmpq eval: cross entropy and perplexity of a text, and the distance from another model."""

from typing import TYPE_CHECKING

import click

from llmpq.commands.output import output_options, print_json, progress, stdout
from llmpq.scoring import WINDOW

if TYPE_CHECKING:
    from llmpq.evaluation import Evaluation


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
    from llmpq.frontend.texts import load_text
    from llmpq.scoring import evaluate

    name = load_text(text)[1]
    with progress() as advance:

        def tell(done: int, total: int) -> None:
            advance(f"eval {model}", done, total)

        result = evaluate(model, text, against, window, stride, max_tokens, tell)
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
