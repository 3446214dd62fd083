"""llmpq completion: the script that teaches a shell to complete commands, options and names."""

import click

SHELLS = {
    "bash": "llmpq completion bash > ~/.local/share/bash-completion/completions/llmpq",
    "zsh": "llmpq completion zsh > ~/.zfunc/_llmpq   # with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "fish": "llmpq completion fish > ~/.config/fish/completions/llmpq.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(SHELLS.values()))
@click.argument("shell", type=click.Choice(list(SHELLS)))
def command(shell: str) -> None:
    """Print what makes SHELL complete llmpq's commands, options, models, engines and passes."""
    from click.shell_completion import get_completion_class

    from llmpq.cli import cli

    found = get_completion_class(shell)
    assert found is not None, shell
    click.echo(found(cli, {}, "llmpq", "_LLMPQ_COMPLETE").source())
