"""llmpq run: generate text in one process, or in one per stage."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands.output import output_options, print_json, progress
from llmpq.errors import InputError

if TYPE_CHECKING:
    from llmpq.backend import Backend
    from llmpq.compiled import CompiledModel


@click.command("run")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be given several times.")
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path), help="A file with one prompt per line.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 keeps every token.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token.")
@click.option("--processes", is_flag=True, help="One process per stage on this machine; under torchrun this is implied.")
@output_options
def command(
    out: Path, prompts: tuple[str, ...], prompts_file: Path | None, processes: bool, as_json: bool, **sampling: Any
) -> None:
    """Continue prompts with the compiled model in OUT: in one process, or one process per stage."""
    from llmpq.compiled import load

    texts = _prompts(prompts, prompts_file)
    sampling["stop_at_eos"] = not sampling.pop("ignore_eos")
    compiled = load(out)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with compiled.distributed() as backend:
            if backend.rank:
                backend.follow()
            else:
                _generate(compiled, texts, as_json, backend, sampling)
    elif processes:
        from llmpq.runtime.launcher import launch

        compiled.check(texts, compiled.sampling(**sampling))
        names = [f"stage {index} ({stage.device})" for index, stage in enumerate(compiled.plan.stages)]
        sys.exit(launch([sys.executable, "-m", "llmpq", *sys.argv[1:]], len(names), names.__getitem__))
    else:
        with progress("loading"):
            _ = compiled.stages
        _generate(compiled, texts, as_json, compiled.backend, sampling)


def _generate(compiled: "CompiledModel", texts: list[str], as_json: bool, backend: "Backend", sampling: dict[str, Any]) -> None:
    """Print one prompt's continuation as it arrives, several when all are done."""
    stream = _Stream(compiled, texts[0]) if len(texts) == 1 and not as_json else None
    continuations = compiled.generate(texts, on_token=stream, backend=backend, **sampling)
    if as_json:
        print_json([{"prompt": prompt, "continuation": text} for prompt, text in zip(texts, continuations)])
    elif stream is not None:
        stream.end(texts[0] + continuations[0])
    else:
        for prompt, text in zip(texts, continuations):
            click.echo(prompt + text + "\n" + "-" * 20)


def _prompts(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    from llmpq.frontend.models import read_utf8

    texts = [*prompts, *(read_utf8(file, "prompts").splitlines() if file else ())]
    if not texts:
        raise InputError("no prompt was given; use --prompt TEXT or --prompts FILE")
    return texts


class _Stream:
    """Prints the prompt and tokens of one sequence as they arrive, decoding as much as forms whole characters."""

    def __init__(self, compiled: "CompiledModel", prompt: str) -> None:
        self._compiled = compiled
        self._prompt = prompt
        self._ids: list[int] = []
        self._shown = ""

    def __call__(self, sequence: int, token: int) -> None:
        self._ids.append(token)
        text = self._prompt + self._compiled.tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            self._show(text)

    def end(self, text: str) -> None:
        """Print what was held back, and end the line."""
        self._show(text + "\n")

    def _show(self, text: str) -> None:
        click.echo(text[len(self._shown) :], nl=False)
        self._shown = text
