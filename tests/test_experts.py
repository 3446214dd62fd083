"""Experts as linears of their own: every form against transformers' modules, and only what tokens are routed to at work."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from llmpq.fx.experts import RoutedExperts, experts_form
from llmpq.fx.split_linears import joined_state, split_linears
from tests.tiny_models import GQA

TOKENS, CHOSEN = 9, 2
MOE = GQA | {"num_local_experts": 4, "num_experts_per_tok": CHOSEN, "head_dim": 8}


def experts_class(module: str, name: str) -> Callable[..., nn.Module]:
    found: Callable[..., nn.Module] = getattr(
        __import__(f"transformers.models.{module}.modeling_{module}", fromlist=[name]), name
    )
    return found


def config(family: str, **values: Any) -> Any:
    found = AutoConfig.for_model(family, **MOE | values)
    found._experts_implementation_internal = "eager"
    return found


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[str, bool, bool, bool, bool]]] = {
    "mixtral": (
        lambda: experts_class("mixtral", "MixtralExperts")(config("mixtral")),
        ("gate_up_proj", False, False, False, True),
    ),
    "gpt_oss": (
        lambda: experts_class("gpt_oss", "GptOssExperts")(config("gpt_oss")),
        ("gate_up_proj", True, True, True, True),
    ),
    "llama4": (
        lambda: experts_class("llama4", "Llama4TextExperts")(config("llama4_text")),
        ("gate_up_proj", True, False, False, False),
    ),
    "nemotron_h": (
        lambda: experts_class("nemotron_h", "NemotronHExperts")(
            config("nemotron_h", n_routed_experts=4, moe_intermediate_size=24, layers_block_type=["moe", "attention"])
        ),
        ("up_proj", False, False, False, True),
    ),
    "step3p7": (
        lambda: experts_class("step3p7", "Step3p7Experts")(config("mixtral", moe_intermediate_size=24), 0.5),
        ("gate_up_proj", False, False, False, True),
    ),
}


@pytest.fixture(params=FORMS)
def experts(request: pytest.FixtureRequest) -> nn.Module:
    """A set of four experts with random weights; its form is checked on the way."""
    make, expected = FORMS[request.param]
    module = make().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(std=0.3, generator=generator)
    form = experts_form(module)
    assert form is not None
    assert (form.up, form.is_transposed, form.is_interleaved, form.has_bias, form.is_routed) == expected
    return module


def split(module: nn.Module) -> RoutedExperts:
    owner = nn.ModuleDict({"experts": copy.deepcopy(module)})
    split_linears(owner, ["experts.0.down_proj", "experts.3.up_proj"])
    found = owner["experts"]
    assert isinstance(found, RoutedExperts)
    return found


def inputs(module: nn.Module, choices: Tensor) -> tuple[Tensor, ...]:
    """What a layer calls the module with when tokens choose these experts, all with the same weight."""
    form = experts_form(module)
    assert form is not None
    x = torch.randn(len(choices), 32, generator=torch.Generator().manual_seed(1))
    if form.is_routed:
        return x, choices, torch.full(choices.shape, 0.5)
    mask = torch.zeros(4, len(choices)).scatter_(0, choices.t(), 0.5)
    return ((x[None] * mask[..., None]).flatten(0, 1),)


def test_linears_on_views_compute_what_the_module_does(experts: nn.Module) -> None:
    choices = torch.stack([torch.randperm(4)[:CHOSEN] for _ in range(TOKENS)])
    given = inputs(experts, choices)
    torch.testing.assert_close(split(experts)(*given), experts(*given), rtol=0, atol=1e-5)


def test_only_experts_that_a_token_is_routed_to_are_called(experts: nn.Module) -> None:
    routed, called = split(experts), set()
    for path, module in routed.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given, path=path: called.add((path, len(given[0]))))
    given = inputs(experts, torch.tensor([[0, 2], [2, 0], [2, 3]]))
    torch.testing.assert_close(routed(*given), experts(*given), rtol=0, atol=1e-5)
    assert {(path.split(".")[0], rows) for path, rows in called} == {("0", 2), ("2", 3), ("3", 1)}
    assert {route.expert: route.tokens.tolist() for route in routed.routes(*given[:2])} == {0: [0, 1], 2: [0, 1, 2], 3: [2]}


def test_nothing_is_routed_anywhere_when_there_are_no_tokens(experts: nn.Module) -> None:
    given = inputs(experts, torch.zeros(0, CHOSEN, dtype=torch.int64))
    assert split(experts)(*given).shape == (0, 32)


def test_what_is_written_to_a_linear_is_in_the_parameter_and_the_state_joins_again(experts: nn.Module) -> None:
    owner = nn.ModuleDict({"experts": experts})
    original = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    meta = copy.deepcopy(owner).to("meta")
    split_linears(owner, ["experts.0.down_proj"])
    separate = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    assert all(tensor.dim() < 3 for tensor in separate.values())
    joined = joined_state(meta, separate, ["experts.0.down_proj"])
    assert joined.keys() == original.keys() and all(torch.equal(joined[name], original[name]) for name in original)
    owner.get_submodule("experts.1.down_proj").get_parameter("weight").zero_()
    zeros = [float(weight.abs().sum()) == 0 for weight in experts.get_parameter("down_proj")]
    assert zeros == [False, True, False, False]


def test_a_copy_of_routed_experts_is_its_own(experts: nn.Module) -> None:
    routed = split(experts)
    twin = copy.deepcopy(routed)
    routed.get_submodule("2.down_proj").get_parameter("weight").zero_()
    given = inputs(experts, torch.tensor([[0, 2], [2, 1]]))
    torch.testing.assert_close(twin(*given), experts(*given), rtol=0, atol=1e-5)


def test_conv1d_becomes_a_linear_on_the_same_memory() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    original: Any = Conv1D(24, 16)  # type: ignore[no-untyped-call]
    owner = nn.ModuleDict({"fc": original, "other": nn.Linear(3, 3)}).requires_grad_(False)
    meta, x, before = copy.deepcopy(owner).to("meta"), torch.randn(5, 16), owner.get_submodule("other")
    wanted, weight = original(x), original.weight
    split_linears(owner, ["fc", "other", "absent"])
    linear: Any = owner["fc"]
    assert type(linear) is nn.Linear and owner["other"] is before
    torch.testing.assert_close(linear(x), wanted)
    assert torch.equal(joined_state(meta, owner.state_dict(), ["fc"])["fc.weight"], weight)
    linear.weight.zero_()
    assert not weight.any()


class Other(nn.Module):
    """Experts as DBRX and JetMoE have them, or with one thing that is not known."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        return x * scores


@pytest.mark.parametrize(
    "shapes",
    [
        {"weight": (4, 32, 16)},
        {"w1": (4 * 24, 32), "v1": (4 * 24, 32), "w2": (4 * 24, 32)},
        {"gate_up_proj": (4, 48, 32), "down_proj": (4, 32, 24)},
        {"gate_up_proj": (4, 48, 32), "down_proj": (4, 32, 24), "scale": (4,)},
        {"gate_up_proj": (48, 32), "down_proj": (32, 24)},
        {"up_proj": (4, 24, 32)},
        {"up_proj": (4, 24, 32), "down_proj": (4, 32, 24)},
    ],
)
def test_experts_of_another_form_are_left_alone(shapes: dict[str, tuple[int, ...]]) -> None:
    owner = nn.ModuleDict({"experts": Other(**shapes)})
    assert experts_form(owner["experts"]) is None and experts_form(nn.Linear(3, 3)) is None
    split_linears(owner, ["experts.0.down_proj"])
    assert isinstance(owner["experts"], Other)
