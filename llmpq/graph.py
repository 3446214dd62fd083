"""LayerGraph: a language model as embedding, layers and head, without torch."""

from dataclasses import dataclass, field, replace
from math import prod

from llmpq.layer_option import LayerOption
from llmpq.op_graph import NO_OPS, OpGraph
from llmpq.precision import PARTS, CachePrecision, Part, Precision

FLOAT_BYTES = 2  # bf16 or fp16, the plan's compute dtype
SCALE_BYTES = 4  # of int8 keys and values: one fp32 scale for each head of each token


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that no precision touches: its name in the checkpoint and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix of a layer: y = W x (+ bias), W [out_features, in_features], `name` relative to the layer.

    Linears of one `fusion_group` read the same input and are fused by engines, so they share a precision.
    `experts` > 1: a 3-D parameter [experts, out, in], of which `active_experts` work on each token.
    `transposed`: stored [in, out] (GPT-2's Conv1D). `column_ranks`: among which the columns of a larger linear are split.
    `pieces`: names of the linears as which an expert's matrix is quantized, equal shares of its rows, one below the other (gate,
    then up) or `interleaved`; none where nothing is known of what the module does with its experts.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    part: Part
    fusion_group: str
    transposed: bool = False
    experts: int = 1
    active_experts: int = 1
    column_ranks: int = field(default=1, metadata={"rare": True})
    pieces: tuple[str, ...] = field(default=(), metadata={"rare": True})
    interleaved: bool = field(default=False, metadata={"rare": True})

    @property
    def is_quantizable(self) -> bool:
        """False for experts in one parameter whose module is not known: they stay at 16 bits."""
        return self.experts == 1 or len(self.pieces) > 0

    @property
    def stored(self) -> tuple["Linear", ...]:
        """The linears as which it is quantized, expert by expert: `experts.0.gate_proj`, ...; itself where it is one."""
        if self.experts == 1 or not self.pieces:
            return (self,)
        sizes = (self.in_features, self.out_features // len(self.pieces), self.bias, self.part)
        owners = [f"{self.name.rpartition('.')[0]}.{expert}" for expert in range(self.experts)]
        return tuple(Linear(f"{owner}.{piece}", *sizes, f"{owner}.{self.pieces[0]}") for owner in owners for piece in self.pieces)

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes of the weight with its scales, and of the 16-bit bias."""
        bias = self.out_features * FLOAT_BYTES * self.experts if self.bias else 0
        if not precision.is_quantized or not self.is_quantizable:
            return self.experts * self.in_features * self.out_features * FLOAT_BYTES + bias
        return self.experts * precision.weight_bytes(self.out_features, self.in_features) + bias


@dataclass(frozen=True, slots=True)
class Attention:
    """Heads of one layer and what it caches of each token: nothing where `num_kv_heads` is 0 (encoders).

    `window` is the length of a sliding window, None for full attention. Latent attention (MLA) caches values of another
    size than keys: `value_head_dim`, None where both have `head_dim`. Sparse attention (DSA) also caches an index key of
    `index_dim` for each token. `cached_at`: the precision of cached keys and values; index keys stay at 16 bits.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    value_head_dim: int | None = None
    index_dim: int = 0
    cached_at: CachePrecision = field(default="16", metadata={"rare": True})

    @property
    def value_dim(self) -> int:
        return self.head_dim if self.value_head_dim is None else self.value_head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys, values and index keys of one token of one sequence."""
        heads = self.num_kv_heads * (_head_bytes(self.head_dim, self.cached_at) + _head_bytes(self.value_dim, self.cached_at))
        return heads + self.index_dim * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What structurally equal layers have in common; `other_parameters` counts norms, routers and the like.

    ops: the operators of one layer, which latencies are made of; parameters are named relative to the layer, as linears are
    """

    name: str
    linears: tuple[Linear, ...]
    other_parameters: int
    attention: Attention
    ops: OpGraph = NO_OPS

    @property
    def is_quantizable(self) -> bool:
        return any(linear.is_quantizable for linear in self.linears)

    def part_size(self, part: Part) -> int:
        """Weights of the part that a precision changes."""
        linears = (linear for linear in self.linears if linear.is_quantizable and linear.part == part)
        return sum(linear.experts * linear.in_features * linear.out_features for linear in linears)

    @property
    def stored(self) -> tuple[Linear, ...]:
        """The linears as which its weights are quantized."""
        return tuple(found for linear in self.linears for found in linear.stored)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys, values and index keys of one token of one sequence."""
        return self.attention.kv_bytes_per_token

    def with_cache(self, precision: CachePrecision) -> "LayerKind":
        """The same layer with its keys and values cached at that precision."""
        return replace(self, attention=replace(self.attention, cached_at=precision))

    @property
    def parameters(self) -> int:
        return self.other_parameters + sum(
            linear.experts * (linear.in_features + linear.bias) * linear.out_features for linear in self.linears
        )

    def weight_bytes(self, option: LayerOption) -> int:
        stored = sum(linear.weight_bytes(option.of(linear.part)) for linear in self.linears)
        return self.other_parameters * FLOAT_BYTES + stored


@dataclass(frozen=True, slots=True)
class LayerGraph:
    """The outer graph: what stands before the layers, the layers by kind, what stands after them.

    `first` is owned by the first stage (embeddings), `last` by the last (final norm, head). `head` is the path of the linear
    behind the layers, "" where there is none. With `tied_head` set, the head's weight is that parameter of `first` and is not
    in `last`; a last stage elsewhere holds a copy of it.

    uncut: layers that must run where the one before them runs, because more than the hidden state passes between the two.
    everywhere: parameters of `first` that every stage holds, because its layers read what is made of them (tables of angles).
    first_ops, last_ops: the operators that make the hidden state, and the logits from it; shared_ops: masks, positions, rotary
    values, made once in every stage for all its layers.
    """

    model: str
    architecture: str
    hidden_size: int
    vocab_size: int
    max_positions: int
    kinds: tuple[LayerKind, ...]
    layer_kind: tuple[int, ...]
    layer_names: tuple[str, ...]
    first: tuple[Parameter, ...]
    last: tuple[Parameter, ...]
    head: str
    tied_head: str | None
    first_ops: OpGraph = NO_OPS
    shared_ops: OpGraph = NO_OPS
    last_ops: OpGraph = NO_OPS
    uncut: tuple[int, ...] = ()
    everywhere: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layer_kind)

    def kind_of(self, layer: int) -> LayerKind:
        return self.kinds[self.layer_kind[layer]]

    @property
    def cached_at(self) -> CachePrecision:
        """The precision of the KV cache, the same in all layers that have one."""
        return next((kind.attention.cached_at for kind in self.kinds if kind.attention.num_kv_heads), "16")

    def with_cache(self, precision: CachePrecision) -> "LayerGraph":
        """The same model with its keys and values cached at that precision."""
        return replace(self, kinds=tuple(kind.with_cache(precision) for kind in self.kinds))

    @property
    def generates(self) -> bool:
        """Whether the model continues texts: it caches keys and values. False for encoders."""
        return any(kind.attention.num_kv_heads for kind in self.kinds)

    @property
    def parameters(self) -> int:
        """Parameters of the model, a tied head counted once."""
        ends = sum(parameter.size for parameter in self.first + self.last)
        return ends + sum(self.kinds[kind].parameters for kind in self.layer_kind)

    @property
    def attention_share(self) -> float:
        """Share of the attention in the weights that a precision changes; 0.5 where there are none."""
        sizes = {
            part: sum(self.layer_kind.count(i) * kind.part_size(part) for i, kind in enumerate(self.kinds)) for part in PARTS
        }
        total = sum(sizes.values())
        return sizes["attention"] / total if total else 0.5

    @property
    def first_bytes(self) -> int:
        return sum(parameter.size for parameter in self.first) * FLOAT_BYTES

    def last_bytes(self, with_first: bool) -> int:
        """Bytes of norm and head; a tied head costs nothing on the device that also holds the embedding."""
        own = sum(parameter.size for parameter in self.last)
        copied = [p.size for p in self.first if p.name in (self.tied_head, *self.everywhere)] if not with_first else []
        return (own + sum(copied)) * FLOAT_BYTES


def _head_bytes(dim: int, precision: CachePrecision) -> int:
    """Bytes of one head of keys or values of one token."""
    return {"16": FLOAT_BYTES * dim, "int8": dim + SCALE_BYTES, "fp8": dim}[precision]
