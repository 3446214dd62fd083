"""RoutedExperts: experts that are linears of their own, of which those multiply that some token is routed to."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

DOWN = "down_proj"
UP: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",)}
ROUTED = 3  # arguments of a set of experts: hidden states, the experts of each token, their weights
PLAIN_GATE = "_default_apply_gate"  # transformers' name for activation(gate) * up


@dataclass(frozen=True, slots=True)
class ExpertsForm:
    """How a module of transformers keeps and uses its experts, by the attributes that `use_experts_implementation` gives it.

    up: the parameter of the matrices before the activation, [experts, out, in], transposed [experts, in, out]. is_routed: it is
    called with the experts of each token and their weights; else with the rows of every expert, those of others zero (Llama 4).
    """

    up: str
    is_transposed: bool
    is_interleaved: bool
    has_bias: bool
    is_routed: bool

    @property
    def pieces(self) -> dict[str, tuple[str, ...]]:
        """Parameter -> the linears that its rows are, of every expert."""
        return {self.up: UP[self.up], DOWN: (DOWN,)}

    def rows(self, parameter: str, whole: Tensor) -> dict[str, Tensor]:
        """Piece -> [experts, out, in] (of a bias [experts, out]), views of the parameter or bias that `whole` is."""
        pieces = self.pieces[parameter]
        upright = whole.transpose(1, 2) if self.is_transposed and whole.dim() == 3 else whole
        if self.is_interleaved:
            return {piece: upright[:, start :: len(pieces)] for start, piece in enumerate(pieces)}
        return dict(zip(pieces, upright.chunk(len(pieces), 1)))


def experts_form(module: nn.Module) -> ExpertsForm | None:
    """The form of a set of experts; None for any other module, and for experts whose use is not described."""
    parameters = dict(module.named_parameters(recurse=False))
    up = next((name for name in UP if name in parameters), None)
    if up is None or any(parameters[name].dim() != 3 for name in (up, DOWN) if name in parameters):
        return None
    biases = {f"{up}_bias", f"{DOWN}_bias"} & set(parameters)
    if set(parameters) != {up, DOWN} | biases or len(biases) == 1:
        return None
    if hasattr(module, "is_transposed"):
        interleaved = not getattr(module, "is_concatenated", True)
        return ExpertsForm(up, bool(module.is_transposed), interleaved, bool(biases), is_routed=True)
    return _undescribed(module, up, bool(biases))


def _undescribed(module: nn.Module, up: str, has_bias: bool) -> ExpertsForm | None:
    """The form of experts of the plain kind that no decorator describes: by shapes, and by what they are called with."""
    outer, inner = getattr(module, up).shape[1:], getattr(module, DOWN).shape[1:]
    share = len(UP[up])
    upright, transposed = ((outer[0], outer[1]) == (share * inner[1], inner[0])), (tuple(outer) == (inner[1], share * inner[0]))
    arguments = len(signature(module.forward).parameters)
    known = hasattr(module, "_apply_gate") if arguments == ROUTED else arguments == 1 and hasattr(module, "act_fn")
    if upright == transposed or not known or (has_bias and arguments != ROUTED):
        return None
    return ExpertsForm(up, transposed, False, has_bias, is_routed=arguments == ROUTED)


@dataclass(frozen=True, slots=True)
class Route:
    """What one expert works on: `rows` of what the module is given, which stand for `tokens`; `pairs`: of token and choice."""

    expert: int
    rows: Tensor
    tokens: Tensor
    pairs: Tensor


class RoutedExperts(nn.Module):
    """What `original`, a set of experts of that form, computes, expert by expert: `experts` has the linears of each by name.

    Experts that no token is routed to multiply nothing. Children other than the experts are the original's.
    """

    act_fn: Callable[[Tensor], Tensor]

    def __init__(self, original: nn.Module, form: ExpertsForm, experts: Sequence[Mapping[str, nn.Module]]) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        for expert, linears in enumerate(experts):
            self.add_module(str(expert), nn.ModuleDict(dict(linears)))
        self.num_experts, self.form = len(experts), form
        methods: Any = _without_parameters(original)
        if hasattr(methods, "act_fn"):
            self.act_fn = methods.act_fn
        gate = getattr(methods, "_apply_gate", None)
        plain = gate is None or gate.__name__ == PLAIN_GATE
        self._gate: Callable[[Tensor], Tensor] | None = None if plain or len(UP[form.up]) == 1 else gate
        self._norm = "post_expert_norm" if getattr(original, "has_post_expert_norm", False) else None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; top_k_index, top_k_weights: [rows, experts of each]."""
        result = torch.zeros_like(hidden_states)
        for route in self.routes(hidden_states, top_k_index):
            made = self._expert(route.expert, hidden_states[route.rows])
            if top_k_weights is not None:
                made = made * top_k_weights.reshape(-1)[route.pairs, None]
            result.index_add_(0, route.rows, made.to(result.dtype))
        return result

    def routes(self, hidden_states: Tensor, top_k_index: Tensor | None = None) -> Iterator[Route]:
        """Expert by expert, without those that have nothing to do."""
        if top_k_index is None:
            yield from self._of_own_rows(hidden_states)
            return
        chosen = top_k_index.reshape(-1)
        counts = torch.bincount(chosen, minlength=self.num_experts).tolist()
        for expert, pairs in zip(range(self.num_experts), torch.split(chosen.argsort(stable=True), counts)):
            if len(pairs):
                tokens = pairs // top_k_index.shape[1]
                yield Route(expert, tokens, tokens, pairs)

    def _of_own_rows(self, hidden_states: Tensor) -> Iterator[Route]:
        """Every expert has as many rows; those that are zero stay zero, as nothing is added."""
        each = hidden_states.shape[0] // self.num_experts
        rows = hidden_states.any(-1).nonzero().flatten()
        for expert in range(self.num_experts):
            own = rows[(rows >= expert * each) & (rows < (expert + 1) * each)]
            if len(own):
                yield Route(expert, own, own - expert * each, own)

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        linears = self.get_submodule(str(expert))
        made = tuple(linears.get_submodule(piece)(x) for piece in UP[self.form.up])
        result: Tensor = linears.get_submodule(DOWN)(self._activated(made))
        return self.get_submodule(self._norm)(result) if self._norm else result

    def _activated(self, made: tuple[Tensor, ...]) -> Tensor:
        if self._gate is not None:
            together = torch.stack(made, -1).flatten(-2) if self.form.is_interleaved else torch.cat(made, -1)
            return self._gate(together)
        activated = self.act_fn(made[0])
        return activated * made[1] if len(made) > 1 else activated


def routed_experts(original: nn.Module, linear: Callable[[str, int], nn.Module]) -> RoutedExperts:
    """The experts of `original` as linears that `linear` makes of a piece's name and an expert's number."""
    form = experts_form(original)
    assert form is not None, "experts of a known form"
    names = [piece for pieces in form.pieces.values() for piece in pieces]
    count = len(getattr(original, DOWN))
    return RoutedExperts(original, form, [{name: linear(name, expert) for name in names} for expert in range(count)])


def _without_parameters(module: nn.Module) -> nn.Module:
    """The module as far as its methods need it, on the same children."""
    shell = copy.copy(module)
    shell.__dict__["_parameters"] = {}
    return shell
