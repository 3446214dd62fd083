"""Norms, gated MLPs and attention layers as fewer operations: recognised by what they compute, near to it, nothing else taken."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llmpq.backends.local import LocalBackend
from llmpq.fused import gated_mlps, norms, rotated_attention
from llmpq.fused.attention import use_attention_kernel
from llmpq.fused.attention_kernel import attention_kernel
from llmpq.fused.gated_mlps import GatedMlp, fuse_gated_mlp
from llmpq.fused.norms import FusedNorm, fuse_norm
from llmpq.fused.operators import ACTIVATIONS, NORM_FORMS, Activation, NormForm, Operators, operators
from llmpq.fused.prepare import prepare_stage
from llmpq.fused.rotated_attention import RotatedAttention, fuse_attention
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.precision import PRECISIONS
from llmpq.quantization.dense_linear import DenseLinear
from llmpq.quantization.merged_linear import merged_linear
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import quantize
from tests.tiny_models import program_of, tiny_model

OPERATORS = operators()
needs_kernels = pytest.mark.skipif(
    OPERATORS is None or attention_kernel() is None, reason="no C compiler, or this CPU multiplies no bfloat16"
)


def kernels() -> Operators:
    assert OPERATORS is not None
    return OPERATORS


def normed(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, form: NormForm) -> Tensor:
    """The definition in fp64, but for the one rounding that a form has on the way."""
    wide = x.double()
    wide = wide - wide.mean(-1, keepdim=True) if form == "centered" else wide
    n = wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    n = n.bfloat16().double() if form == "rounded" else n
    y = n * (weight.double() + 1 if form == "one more" else weight.double())
    return y if bias is None else y + bias.double()


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5),
    columns=st.sampled_from([1, 2, 15, 16, 17, 64, 192, 250]),
    size=st.sampled_from([1e-3, 1.0, 50.0]),
    form=st.sampled_from(NORM_FORMS),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norms_are_their_definition_but_for_rounding(
    rows: int, columns: int, size: float, form: NormForm, with_bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = (torch.randn(rows, columns) * size).bfloat16(), torch.randn(columns).bfloat16()
    bias = torch.randn(columns).bfloat16() if with_bias else None
    found = kernels().norm(x, weight, bias, 1e-6, form).double()
    wanted = normed(x, weight, bias, 1e-6, form)
    inner = normed(x, weight, None, 1e-6, form).abs()
    assert bool(((found - wanted).abs() <= 2**-8 * wanted.abs() + 2**-7 * inner * (form == "rounded") + 1e-5 * (1 + inner)).all())


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 4),
    columns=st.sampled_from([1, 16, 17, 48, 200]),
    activation=st.sampled_from(ACTIVATIONS),
    size=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_gated_activations_are_their_definition_but_for_rounding(
    rows: int, columns: int, activation: Activation, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    both = (torch.randn(rows, 2 * columns) * size).bfloat16()
    gate, up = both[:, :columns], both[:, columns:]
    wide = gate.double()
    act = functional.silu(wide) if activation == "silu" else functional.gelu(wide, approximate="tanh")
    found = kernels().gated(gate, up, activation)
    assert torch.allclose(found.double(), act * up.double(), rtol=2**-7, atol=1e-5 * size)


@needs_kernels
@pytest.mark.parametrize("dim", [2, 16, 62, 64, 128])
def test_rotations_are_those_of_transformers(dim: int) -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(2, 3, 5, dim).bfloat16(), torch.rand(2, 3, dim) * 6
    cosine, sine = angles.cos().bfloat16(), angles.sin().bfloat16()
    heads = x.double().transpose(1, 2)
    wanted, _ = apply_rotary_pos_emb(heads, heads, cosine.double(), sine.double())
    turned = x.clone().view(6, 5, dim)
    kernels().rotate(turned[:, :4], cosine, sine)
    assert torch.allclose(turned.view(2, 3, 5, dim)[:, :, :4].double(), wanted.transpose(1, 2)[:, :, :4], rtol=2**-8, atol=1e-5)
    assert torch.equal(turned[:, 4], x.view(6, 5, dim)[:, 4])


@needs_kernels
def test_operators_share_rows_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up = torch.randn(2, 50, 64).bfloat16()
    alone = kernels().norm(gate, up[0], None, 1e-6, "wide"), kernels().gated(gate, up, "silu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("llmpq.fused.operators.LEAST_ELEMENTS", 64)
    for found, wanted in zip((kernels().norm(gate, up[0], None, 1e-6, "wide"), kernels().gated(gate, up, "silu")), alone):
        assert torch.equal(found, wanted)


class Gemma(nn.Module):
    """A norm whose weight is the gain less one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (n * (1.0 + self.weight.float())).type_as(x)


class Other(Gemma):
    """Not a norm: it divides by the largest."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps)


def random_weights(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.bfloat16().eval().requires_grad_(False)


@needs_kernels
@pytest.mark.parametrize(
    ("module", "form"),
    [
        (tiny_model("llama").model.norm, "rounded"),
        (tiny_model("gemma3").model.norm, "one more"),
        (Gemma(40), "one more"),
        (nn.LayerNorm(40), "centered"),
        (nn.LayerNorm(40, bias=False), "centered"),
        (nn.RMSNorm(40, eps=1e-5), "wide"),
    ],
)
def test_norms_are_recognised_by_what_they_compute(module: nn.Module, form: NormForm) -> None:
    module = random_weights(copy.deepcopy(module))
    x = torch.randn(3, 2, next(module.parameters()).numel()).bfloat16()
    wanted = module(x)
    assert fuse_norm(module)
    assert vars(module)["forward"].form == form
    assert torch.allclose(module(x).float(), wanted.float(), rtol=2**-7)


def test_what_is_no_norm_is_left_alone() -> None:
    for module in (Other(40), nn.Linear(4, 4), nn.Embedding(4, 4), nn.PReLU(40), nn.LayerNorm((2, 20)), nn.SiLU()):
        assert not fuse_norm(random_weights(module))
        assert "forward" not in vars(module)
    assert not fuse_norm(nn.LayerNorm(40))  # of another type


class Mlp(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
        self.back, self.activation = nn.Linear(48, 32, bias=False), activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(self.activation(self.second(x)) * self.first(x))
        return y


class Doubled(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@needs_kernels
@pytest.mark.parametrize(
    ("activation", "known"),
    [(nn.SiLU(), "silu"), (nn.GELU(approximate="tanh"), "gelu_tanh"), (nn.ReLU(), None), (nn.GELU(), None)],
)
def test_gated_mlps_are_recognised_whatever_their_linears_are_called(activation: nn.Module, known: Activation | None) -> None:
    module = random_weights(Mlp(activation))
    prepare_linears(module)
    x = torch.randn(2, 3, 32).bfloat16()
    wanted = module(x)
    assert fuse_gated_mlp(module) == (known is not None)
    if known is not None:
        found = vars(module)["forward"]
        assert (found.activation, found.gate, found.merged is not None) == (known, module.second, True)
        assert torch.allclose(module(x).float(), wanted.float(), rtol=2**-5, atol=0.05)
    assert not fuse_gated_mlp(random_weights(Doubled(nn.SiLU())))


@needs_kernels
def test_merged_linears_multiply_as_each_does_and_hold_no_byte_more() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64).bfloat16()
    for with_bias in (True, False):
        dense = [nn.Linear(64, rows, with_bias, dtype=torch.bfloat16).requires_grad_(False) for rows in (48, 16, 23)]
        int8, packed = ([quantized(linear, name) for linear in dense] for name in ("w8a8", "w4a16"))
        for linears in (dense, int8, packed):
            for linear in linears:
                prepare_linears(linear)
            wanted, held = [linear(x) for linear in linears], [bytes_of(linear) for linear in linears]
            merged = merged_linear(linears)
            assert merged is not None
            assert merged.sizes == (48, 16, 23)
            assert torch.equal(merged.product(x), torch.cat(wanted, -1))
            assert [bytes_of(linear) for linear in linears] == held
            assert all(torch.equal(linear(x), before) for linear, before in zip(linears, wanted))
            storages = {place_of(linear).untyped_storage() for linear in linears}
            assert len({storage.data_ptr() for storage in storages}) == 1


def quantized(linear: nn.Linear, name: str = "w8a8") -> QuantizedLinear:
    precision = PRECISIONS[name]
    made = QuantizedLinear(linear.in_features, linear.out_features, linear.bias is not None, precision, torch.bfloat16, "cpu")
    made.load_state_dict(pack(quantize(linear.weight.float(), precision, torch.bfloat16)), strict=False, assign=True)
    if linear.bias is not None:
        made.bias = linear.bias.detach()
    return made


def place_of(linear: nn.Module) -> Tensor:
    """The memory of its weight."""
    held = [vars(linear).get(name) for name in ("_packed", "_prepacked")]
    found = next((tensor for tensor in held if tensor is not None), None)
    return linear.get_buffer("weight_packed") if found is None else found


def bytes_of(linear: nn.Module) -> int:
    own = sum(int(tensor.nbytes) for tensor in linear.state_dict().values())
    assert isinstance(linear, DenseLinear | QuantizedLinear)
    return own + linear.prepacked_bytes


@needs_kernels
def test_linears_that_cannot_be_joined_stay_as_they_are() -> None:
    def prepared(*shapes: tuple[int, int], bias: tuple[bool, ...] = (False, False)) -> list[nn.Module]:
        made = [nn.Linear(*shape, bias=of, dtype=torch.bfloat16).requires_grad_(False) for shape, of in zip(shapes, bias)]
        for linear in made:
            prepare_linears(linear)
        return list(made)

    assert merged_linear(prepared((64, 24), (64, 16))) is None
    assert merged_linear(prepared((64, 16), (32, 16))) is None
    assert merged_linear(prepared((64, 16), (64, 16), bias=(True, False))) is None
    assert merged_linear([nn.Linear(64, 16), nn.Linear(64, 16)]) is None
    mixed = prepared((64, 16), (64, 16))
    assert merged_linear([mixed[0], quantized(nn.Linear(64, 16, dtype=torch.bfloat16))]) is None
    assert merged_linear([quantized(nn.Linear(64, 16, dtype=torch.bfloat16), name) for name in ("w4a16", "w8a16")]) is None


FUSED = {  # norms, gated MLPs, attention layers of a model of four layers
    "llama": (9, 4, 4),
    "qwen2": (9, 4, 4),
    "qwen3": (17, 4, 4),
    "gemma3": (25, 4, 4),
    "mixtral": (9, 0, 4),
    "phi3": (9, 0, 0),
    "opt": (9, 0, 0),
    "gpt_neox": (9, 0, 0),
}


def stage_of(family: str) -> tuple[Any, nn.Module]:
    program = run_passes(program_of(tiny_model(family), [["16"] * 4]), parse_pipeline(LOWERING))
    (stage,) = program.require("stages")
    return program, stage.to(torch.bfloat16)


@needs_kernels
@pytest.mark.parametrize("family", FUSED)
def test_every_family_generates_by_fused_modules_as_it_did(family: str) -> None:
    """Prompts of unequal length, forced to go on."""
    prompts, more = [[5, 9, 11, 30, 7, 8, 4], [6], [12, 3, 40]], [[3, 50, 21, 9], [61, 17, 5, 44], [8, 8, 30, 2]]
    log_probs = []
    for prepared in (False, True):
        program, stage = stage_of(family)
        if prepared:
            prepare_stage(stage)
            forwards = [type(vars(module).get("forward")) for module in stage.modules()]
            assert tuple(forwards.count(kind) for kind in (FusedNorm, GatedMlp, RotatedAttention)) == FUSED[family]
        backend = LocalBackend(program.require("plan"), program.graph, lambda _, stage=stage: stage, "bfloat16")  # type: ignore[misc]
        log_probs.append(torch.tensor(backend.log_probs(prompts, more)))
    assert torch.allclose(log_probs[0], log_probs[1], atol=0.12)


def attention_layer() -> Any:
    layer = copy.deepcopy(tiny_model("llama").model.layers[1].self_attn)
    random_weights(layer)
    prepare_linears(layer)
    use_attention_kernel(layer)
    return layer


@needs_kernels
def test_an_attention_layer_that_does_something_else_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        def turned(x: Tensor) -> Tensor:
            return x * cosine[:, None] + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sine[:, None]

        return turned(query), turned(key)

    assert fuse_attention(attention_layer())
    other = attention_layer()
    monkeypatch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", interleaved)
    assert not fuse_attention(other)
    monkeypatch.undo()
    for change in ("layer_idx", "head_dim", "o_proj", "config"):
        other = attention_layer()
        if change == "o_proj":
            other.extra = nn.Linear(2, 2)
        elif change == "config":
            other.config = tiny_model("llama").config
        else:
            setattr(other, change, None)
        assert not fuse_attention(other)
        assert "forward" not in vars(other)


@needs_kernels
def test_a_call_of_another_form_goes_to_the_modules_own_code() -> None:
    layer = attention_layer()
    hidden, angles = torch.randn(2, 3, 32).bfloat16(), torch.rand(1, 3, 4).repeat(1, 1, 2)
    turn = angles.cos().bfloat16(), angles.sin().bfloat16()
    wanted, _ = layer(hidden, turn, None)
    assert fuse_attention(layer)
    found, _ = layer(hidden_states=hidden, position_embeddings=turn, attention_mask=None, use_cache=True)
    assert torch.allclose(found.float(), wanted.float(), rtol=2**-5, atol=0.05)
    narrow = angles.cos()[..., :4].bfloat16()
    with pytest.raises(RuntimeError, match="must match the size"):
        layer(hidden, (narrow, narrow), None)


def test_without_kernels_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (norms, gated_mlps, rotated_attention):
        monkeypatch.setattr(place, "operators", lambda: None)
    monkeypatch.setattr("llmpq.fused.attention.attention_kernel", lambda: None)
    _, stage = stage_of("llama")
    prepare_stage(stage)
    assert not any("forward" in vars(module) for module in stage.modules())
