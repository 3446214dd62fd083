"""llmpq run: generate text in one process, or in one per stage."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.checkpoint.output_directory import require_output
from llmpq.commands.output import notice, output_options, print_json, progress
from llmpq.commands.signals import stopped_by_sigterm
from llmpq.errors import InputError, PeerError
from llmpq.generation import TextPieces
from llmpq.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llmpq.compiled import CompiledModel
    from llmpq.runtime.pipeline_backend import PipelineBackend as RunningBackend


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
@click.option("--recover", is_flag=True, help="With --processes: when a stage is lost, go on with the devices that are left.")
@click.option(
    "--without", multiple=True, metavar="DEVICE", help="Plan again without that device first; may be given several times."
)
@click.option(
    "--resume", type=click.Path(path_type=Path), help="Keep tokens in this file as they come; go on from what it holds."
)
@click.option("--lost-after", type=float, metavar="SECONDS", help="Without a sign of life so long, a stage is lost: 10.")
@click.option("--stream", is_flag=True, help="Print pieces of all continuations as they arrive, a JSON object per line.")
@click.option("--verbose", is_flag=True, help="Tell how long each stage took to load, and the memory of its process.")
@output_options
def command(
    out: Path,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    processes: bool,
    recover: bool,
    without: tuple[str, ...],
    **options: Any,
) -> None:
    """Continue prompts with the compiled model in OUT: in one process, or one process per stage."""
    if options["stream"] and options["resume"]:
        raise InputError("--stream and --resume exclude each other")
    if recover and not processes:
        raise InputError("--recover plans again where this command starts the stages: add --processes")
    options["stop_at_eos"] = not options.pop("ignore_eos")
    lost_after_s = options.pop("lost_after")
    shown = Shown(*(options.pop(name) for name in ("as_json", "stream", "verbose")))
    texts = _prompts(prompts, prompts_file)
    require_output(out)
    from llmpq.compiled import load

    compiled = load(out)
    for device in without:
        compiled = compiled.without(device)
    request = Prompts(compiled, texts, options, options.pop("resume"))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with request.compiled.distributed(lost_after_s) as member:
            if member.rank:
                member.follow()
            else:
                _generate(request, shown, member)
    elif processes:
        request.compiled.check(request.texts, request.compiled.sampling(**options))
        with stopped_by_sigterm(), request.compiled.processes(recover, notice, lost_after_s) as stages:
            with progress("loading"):
                stages.start()
            _generate(request, shown, stages)
    else:
        with progress("loading"):
            backend = request.compiled.backend
        _generate(request, shown, backend)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is printed, and when."""

    as_json: bool
    stream: bool
    verbose: bool


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked of which model; `options` of sampling, `resume` for what is generated."""

    compiled: "CompiledModel"
    texts: list[str]
    options: dict[str, Any]
    resume: Path | None


def _generate(request: Prompts, shown: Shown, backend: "RunningBackend") -> None:
    """Print the continuations; where a stage is lost, what there is of them before the error."""
    if shown.verbose:
        for stage, took in zip(request.compiled.plan.stages, backend.start_up):
            click.echo(f"{stage.device}: loaded in {format_seconds(took.load_s)}, peak {format_bytes(took.peak_bytes)}", err=True)
    if shown.stream:
        for sequence, piece in request.compiled.stream(request.texts, backend=backend, **request.options):
            click.echo(json.dumps({"sequence": sequence, "text": piece}, ensure_ascii=False))
        return
    live = _Live(request) if len(request.texts) == 1 and not (shown.as_json or request.resume) else None
    try:
        settings = {**request.options, "on_token": live, "backend": backend, "resume": request.resume}
        continuations = request.compiled.generate(request.texts, **settings)
    except PeerError as error:
        if live is None and error.generated and request.resume is None:  # a file that is resumed has them
            decode = request.compiled.tokenizer.decode
            found = [decode(tokens, skip_special_tokens=True) for tokens in error.generated]
            _print(request, shown, backend, found, set(error.ended))
        raise
    if live is not None:
        live.end()
    else:
        _print(request, shown, backend, continuations, set(range(len(continuations))))


def _print(request: Prompts, shown: Shown, backend: "RunningBackend", continuations: list[str], ended: set[int]) -> None:
    pairs = list(zip(request.texts, continuations))
    if not shown.as_json:
        for index, (prompt, text) in enumerate(pairs):
            click.echo(prompt + text + ("" if index in ended else " [interrupted]") + "\n" + "-" * 20)
        return
    interrupted = [{} if index in ended else {"interrupted": True} for index in range(len(pairs))]
    found = [{"prompt": prompt, "continuation": text} | more for (prompt, text), more in zip(pairs, interrupted)]
    print_json({"generations": found, "stages": backend.start_up} if shown.verbose else found)


def _prompts(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    from llmpq.frontend.models import read_utf8

    texts = [*prompts, *(read_utf8(file, "prompts").splitlines() if file else ())]
    if not texts:
        raise InputError("no prompt was given; use --prompt TEXT or --prompts FILE")
    return texts


class _Live:
    """Prints the prompt and the continuation of one sequence as its tokens arrive."""

    def __init__(self, request: Prompts) -> None:
        self._prompt, self._pieces = request.texts[0], TextPieces(request.compiled.tokenizer)

    def __call__(self, sequence: int, token: int) -> None:
        self._show(self._pieces.add(token))

    def end(self) -> None:
        """Print what was held back, and end the line."""
        self._show(self._pieces.rest() + "\n")

    def _show(self, piece: str) -> None:
        click.echo(self._prompt + piece, nl=False)
        self._prompt = ""
