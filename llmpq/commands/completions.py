"""Completions: the names that a shell offers for an argument or option, from the registries."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from llmpq.passmanager import PASSES

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offer(names: Callable[[], Iterable[str]]) -> Complete:
    """Those of the names that begin with what was typed; they are asked for only then."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return complete


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`demo`, the bundled configurations, and directories; where none of the names fits, files as the shell knows them."""
    from llmpq.frontend.models import DEMO, bundled_configurations

    found = offer(lambda: (DEMO, *bundled_configurations()))(ctx, param, incomplete)
    return found or [CompletionItem(incomplete, type="dir")]


def _engines() -> Iterable[str]:
    from llmpq.hardware.support import engines

    return engines()


def _targets() -> Iterable[str]:
    from llmpq.export.target import TARGETS

    return TARGETS


def _indicators() -> Iterable[str]:
    from llmpq.passes.estimate_sensitivity import INDICATORS

    return INDICATORS


def _quantizers() -> Iterable[str]:
    from llmpq.options import QUANTIZERS

    return QUANTIZERS


engines, targets, indicators, quantizers = map(offer, (_engines, _targets, _indicators, _quantizers))
passes = offer(lambda: PASSES)
assignments = offer(lambda: (name for name in PASSES if name.startswith("assign-")))
