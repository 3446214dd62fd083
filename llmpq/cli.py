"""The command line: a lazy group, so that `llmpq --help` imports nothing heavy, and the mapping of errors to exit codes."""

import os
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import TextIO

import click

from llmpq import __version__
from llmpq.errors import LlmpqError, LlmpqWarning
from llmpq.suggest import did_you_mean

COMMANDS: dict[str, str] = {
    "compile": "Plan, quantize and write one shard per device.",
    "plan": "Decide the same from config.json alone: no weights.",
    "run": "Generate text with a compiled model.",
    "sensitivity": "What rounding each layer costs, by an indicator.",
    "eval": "Cross entropy and perplexity of a text.",
    "export": "Hand a compiled model to another engine.",
    "serve": "Serve a compiled model with vLLM.",
    "profile": "Measure this machine's layers and links.",
    "validate": "Predicted against measured, of a compiled model.",
    "verify": "Check a compiled model's files.",
    "report": "One HTML page about a compiled model or a plan.",
    "solve": "Solve a bare assignment problem (llmpq-problem-2).",
    "simulate": "Serve requests by a plan, in simulated time.",
    "max-context": "The longest context that fits, and what limits it.",
    "max-batch": "The largest batch that fits, and what limits it.",
    "explain": "Why a plan is as it is, and what would buy what.",
    "diff": "Two plans side by side.",
    "whatif": "Other hardware: speed, price, quality, concurrency.",
    "pareto": "The fastest plan at each loss of quality.",
    "devices": "Known device types, and the devices of this machine.",
    "passes": "Known passes.",
    "backends": "Known backends.",
    "completion": "What makes a shell complete commands and names.",
}
INTERRUPTED = 130
NAMED_BY_THE_USER = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class LazyGroup(click.Group):
    """Imports a command's module when it is called; the help text needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = "list_" + cmd_name if cmd_name in ("passes", "backends", "devices") else cmd_name
        command: click.Command = import_module(f"llmpq.commands.{module.replace('-', '_')}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f"no command {args[0]!r}; `llmpq --help` lists them{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.version_option(__version__, prog_name="llmpq")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Compile a language model for a mixed set of devices."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main() -> None:
    """Run the command line; errors become one line on stderr and the documented exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = cli.main(arguments, prog_name="llmpq", standalone_mode=False)
    except LlmpqError as error:
        code = _report(error, str(error), error.exit_code, debug)
    except click.ClickException as error:
        code = _report(error, error.format_message(), 2, debug)
    except (KeyboardInterrupt, click.Abort) as error:
        code = _report(error, "interrupted; nothing half-written was left behind", INTERRUPTED, debug)
    except BrokenPipeError:
        # whoever read our output has closed it; keep Python from complaining about the same at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _report(error, str(error), 2 if isinstance(error, NAMED_BY_THE_USER) else 1, debug)
    except Exception as error:
        # the one place where anything may arrive: a defect of ours, told in a line as all else is
        code = _report(error, _internal(error), 1, debug)
    sys.exit(code or 0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What we warn of, as one line; warnings of libraries as Python shows them."""
    if issubclass(category, LlmpqWarning):
        from llmpq.commands.output import notice

        notice(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _internal(error: Exception) -> str:
    """What to say of an exception that nobody raised on purpose: what it is, where it comes from, and what to do."""
    *_, last = traceback.extract_tb(error.__traceback__)
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"internal error at {place}: {type(error).__name__}: {error}; --debug shows the traceback, which a report should hold"


def _report(error: BaseException, text: str, code: int, debug: bool) -> int:
    """Print one line, after the traceback when it is asked for; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    print("llmpq:", " ".join(text.split()), file=sys.stderr)
    for line in error.details if isinstance(error, LlmpqError) else ():
        print(line, file=sys.stderr)
    return code
