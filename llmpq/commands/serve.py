"""llmpq serve: an OpenAI-compatible server of a compiled model, by vLLM."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import click

from llmpq.checkpoint.output_directory import require_output
from llmpq.commands.output import is_quiet, print_json, quiet_option
from llmpq.errors import BackendError, InputError

STOPPING = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130


@click.command("serve", context_settings={"ignore_unknown_options": True})
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("engine_options", nargs=-1, type=click.UNPROCESSED)
@click.option("--python", help="The interpreter that has vLLM [default: $LLMPQ_ENGINE_PYTHON, .engines/bin/python, this one].")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 answers other machines too.")
@click.option(
    "--check", "checking", is_flag=True, help="Compare with the dequantized reference and the predicted KV blocks first."
)
@click.option("--text", default="report", show_default=True, help="For --check: a text file, or a bundled text.")
@quiet_option
def command(
    out: Path, engine_options: tuple[str, ...], python: str | None, port: int, host: str, checking: bool, text: str
) -> None:
    """Serve OUT, a compiled model or its export to vllm, until interrupted. Further options go to vLLM as they are.

    Of a model compiled with --replicas every pipeline is started, at the ports from the next one on, behind a router.
    """
    from llmpq.backends.vllm_environment import server_of
    from llmpq.commands.engine_check import check
    from llmpq.replicated import is_replicated

    if is_replicated(out):
        _serve_replicas(out, engine_options, python, port, host, text if checking else None)
    with _export_of(out) as (directory, weights):
        log = _log("vllm")
        server, settings = server_of(directory, python, port, host=host, extra=engine_options, log=log)
        click.echo(f"llmpq: starting PYTHON={server.python} {' '.join(server.command)}", err=True)
        with _stopped_by_signals(), server:
            if checking:
                print_json({"url": server.url, "check": check(server, settings, weights, text)})
            click.echo(f"llmpq: serving {settings.served_model_name} at {server.url}/v1; Ctrl-C stops it", err=True)
            code = server.wait()
    raise BackendError(f"vLLM ended by itself with exit code {code}")


def _serve_replicas(
    out: Path, engine_options: tuple[str, ...], python: str | None, port: int, host: str, text: str | None
) -> NoReturn:
    """text: to check every replica on, None for no check."""
    from llmpq.answers.plan_file import PLAN_FILE, load_plan
    from llmpq.backends.replica_servers import ReplicaServers
    from llmpq.backends.vllm_environment import server_of
    from llmpq.commands.engine_check import check
    from llmpq.export.router import weights
    from llmpq.replicated import replica_folders

    plan = load_plan(out / PLAN_FILE)
    with ExitStack() as stack:
        exports = [stack.enter_context(_export_of(folder)) for folder in replica_folders(out, plan)]
        made = [
            server_of(directory, python, port + 1 + number, extra=engine_options, log=_log(f"vllm {number}"))
            for number, (directory, _) in enumerate(exports)
        ]
        hosts = sorted({host for _, settings in made for host in settings.nodes})
        if len(hosts) > 1:
            remedy = "`llmpq export --to vllm` writes what to start on each, and nginx.conf"
            raise InputError(f"{out}: its replicas are on hosts {', '.join(hosts)}; {remedy}")
        for server, _ in made:
            click.echo(f"llmpq: starting PYTHON={server.python} {' '.join(server.command)}", err=True)
        group = ReplicaServers([server for server, _ in made], weights(plan), port, host)
        stack.enter_context(_stopped_by_signals())
        with group:
            if text is not None:
                checked = [check(server, settings, own, text) for (server, settings), (_, own) in zip(made, exports)]
                print_json({"url": group.url, "checks": checked})
            shares = ", ".join(f"{weight} % at {server.url}" for (server, _), weight in zip(made, weights(plan)))
            name = made[0][1].served_model_name
            click.echo(f"llmpq: serving {name} at {group.url}/v1 ({shares}); Ctrl-C stops it", err=True)
            number, code = group.wait()
    raise BackendError(f"the vLLM of replica-{number} ended by itself with exit code {code}")


def _log(name: str) -> Callable[[str], None]:
    return (lambda line: None) if is_quiet() else (lambda line: click.echo(f"[{name}] {line}", err=True))


@contextmanager
def _export_of(out: Path) -> Iterator[tuple[Path, Path]]:
    """(export, weights): OUT itself if it is an export, else one in a temporary directory."""
    from llmpq.export.target import WEIGHTS
    from llmpq.export.vllm import SETTINGS_FILE

    if (out / SETTINGS_FILE).is_file():
        yield out, out / WEIGHTS
        return
    require_output(out)
    from llmpq.compiled import load

    compiled = load(out)
    with TemporaryDirectory(prefix="llmpq-serve-") as temporary:
        directory = Path(temporary) / "export"
        compiled.export(directory, to="vllm", link=True)
        yield directory, out


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the block, the server with it, and then this process with exit code 130."""

    def stop(number: int, frame: object) -> None:
        click.echo("llmpq: stopping vLLM", err=True)
        sys.exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
