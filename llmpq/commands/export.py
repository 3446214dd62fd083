"""llmpq export: a compiled model handed to another engine."""

from pathlib import Path

import click

from llmpq.checkpoint.output_directory import require_output
from llmpq.commands import completions
from llmpq.commands.output import is_quiet, output_options, print_json, progress, stdout
from llmpq.errors import InputError


@click.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "engine",
    required=True,
    shell_complete=completions.targets,
    metavar="ENGINE",
    help="vllm, transformers, device-map or llama.cpp.",
)
@click.option("--out", "-o", "directory", type=click.Path(path_type=Path), required=True, help="The directory to write.")
@click.option("--check", is_flag=True, help="vllm: serve it once, compare log-probabilities and the number of KV blocks.")
@click.option("--python", help="For --check: the interpreter that has vLLM.")
@click.option("--text", default="report", show_default=True, help="For --check: a text file, or a bundled text.")
@output_options
def command(out: Path, engine: str, directory: Path, check: bool, python: str | None, text: str, as_json: bool) -> None:
    """Write the compiled model in OUT as another engine takes it, with a README of what was decided."""
    from llmpq.export.target import find_target

    target = find_target(engine)
    if check and engine != "vllm":
        raise InputError(f"--check runs vLLM; of an export to {engine} nothing is run: leave --check out")
    from llmpq.replicated import export_replicas, is_replicated

    several = is_replicated(out)
    if not several:
        require_output(out)
    from llmpq.compiled import load

    if several and check:
        raise InputError(f"--check serves one model; {out} holds replicas: export and check each, such as {out}/replica-0")
    with progress("exporting"):
        export_replicas(out, directory, engine) if several else load(out).export(directory, to=engine)
    names = sorted(path.name for path in directory.iterdir())
    checked = _check(out, directory, python, text) if check else None
    if as_json:
        print_json({"directory": str(directory), "files": names, "check": checked})
        return
    console = stdout()
    console.print(f"{directory}: {', '.join(names)}")
    if checked is not None:
        console.print(f"checked         {checked}")
    console.print(f"next            {_next(target.name, directory)}")


def _check(out: Path, directory: Path, python: str | None, text: str) -> object:
    from llmpq.backends.vllm_environment import server_of
    from llmpq.commands.engine_check import check

    server, settings = server_of(directory, python)
    if not is_quiet():
        click.echo(f"llmpq: checking with PYTHON={server.python} {' '.join(server.command)}", err=True)
    with server, progress("checking"):
        return check(server, settings, out, text)


def _next(engine: str, directory: Path) -> str:
    return {
        "vllm": f"llmpq serve {directory}, or {directory}/launch.sh",
        "transformers": f"python {directory}/generate.py PROMPT",
        "device-map": f"AutoModelForCausalLM.from_pretrained(…, device_map=json.load(open('{directory}/device_map.json')))",
        "llama.cpp": f"LLAMA_CPP=… {directory}/quantize.sh ORIGINAL_MODEL && LLAMA_CPP=… {directory}/launch.sh",
    }[engine]
