"""Split linears: experts in one parameter, and Conv1D, as nn.Linear modules on the memory of the model's parameters."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llmpq.fx.experts import ExpertsForm, RoutedExperts, experts_form, routed_experts


def split_linears(model: nn.Module, paths: Collection[str]) -> None:
    """Make every path of `paths` that is no linear of `model` one, in place: what is written to its weight the model has, too.

    Such paths are those of Conv1D modules, and `experts.0.gate_proj` below a set of experts of a known form, which becomes one
    of RoutedExperts. Others are left alone.
    """
    for path, module in _of_other_kinds(model, paths):
        model.set_submodule(path, _on_view(module.weight.t(), module.bias) if isinstance(module, Conv1D) else _routed(module))


def joined_state(model: nn.Module, state: Mapping[str, Tensor], paths: Collection[str]) -> dict[str, Tensor]:
    """The state of `model`, without memory itself, from one in which the linears of `paths` are split."""
    joined = dict(state)
    for path, module in _of_other_kinds(model, paths):
        if isinstance(module, Conv1D):
            joined[f"{path}.weight"] = joined[f"{path}.weight"].t()
            continue
        form = experts_form(module)
        assert form is not None, "experts of a known form"
        for name, parameter in module.named_parameters(recurse=False):
            joined[f"{path}.{name}"] = _joined(form, path, name, parameter, joined)
    return joined


def _joined(form: ExpertsForm, path: str, name: str, parameter: Tensor, state: dict[str, Tensor]) -> Tensor:
    """One parameter of a set of experts, from the pieces of all of them, which are taken out of the state."""
    of, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    first = state[f"{path}.0.{form.pieces[of][0]}.{kind}"]
    whole = torch.empty(parameter.shape, dtype=first.dtype)
    for piece, rows in form.rows(of, whole).items():
        for expert, view in enumerate(rows):
            view.copy_(state.pop(f"{path}.{expert}.{piece}.{kind}"))
    return whole


def _of_other_kinds(model: nn.Module, paths: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of every Conv1D among the paths, and of every set of experts that one of them lies in, once."""
    modules = dict(model.named_modules())
    for path in dict.fromkeys(path if path in modules else path.rsplit(".", 2)[0] for path in paths):
        module = modules.get(path)
        if isinstance(module, Conv1D) or (module is not None and experts_form(module) is not None):
            yield path, module


def _routed(module: nn.Module) -> RoutedExperts:
    form = experts_form(module)
    assert form is not None, "experts of a known form"
    views = {
        piece: (rows, biases.get(piece))
        for parameter in form.pieces
        for biases in [form.rows(parameter, getattr(module, f"{parameter}_bias").detach()) if form.has_bias else {}]
        for piece, rows in form.rows(parameter, getattr(module, parameter).detach()).items()
    }

    def linear(piece: str, expert: int) -> nn.Module:
        rows, bias = views[piece]
        return _on_view(rows[expert], None if bias is None else bias[expert])

    return routed_experts(module, linear)


def _on_view(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear on memory that others have, which learns nothing."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
