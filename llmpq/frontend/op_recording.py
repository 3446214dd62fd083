"""Recording: every aten operator of a piece of a model, on fake tensors whose batch, tokens and past are symbols."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils._sympy.functions import FloorDiv

from llmpq.errors import TraceError
from llmpq.fx.example_calls import CHECKS
from llmpq.op_graph import Size

COMPUTE_DTYPE = torch.bfloat16
HINTS = (3, 5, 11)  # batch, tokens, past where a model branches on them: decode-like, masks needed, no two alike
_SILENT = ("prim::", "aten::sym_", "aten::is_", "aten::_version", "aten::_local_scalar_dense")
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_MASKED = ("aten::index", "aten::index_put", "aten::index_put_")
_UNREAD = ("_like",)  # of what they are given, these read the shape


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One tensor: its shape, the bytes of an element. Identity counts, not contents."""

    shape: tuple[Size, ...]
    itemsize: int

    @property
    def numel(self) -> Size:
        size = Size.of(1)
        for extent in self.shape:
            size = size * extent
        return size

    @property
    def nbytes(self) -> Size:
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One call: the operator without its overload, what it was given, the tensors it read and made."""

    operator: str
    arguments: tuple[Any, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(slots=True)
class Recording:
    """Records by piece of the model, in order; `names` of the tensors that stand at the edges of pieces."""

    pieces: dict[str, list[Record]] = field(default_factory=dict)
    names: dict[Value, str] = field(default_factory=dict)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Appends what is called while it is active to the piece that is current.

    torch.export is not used: it takes no cache objects, and refuses models that branch on sizes (windows, chunks) unless
    their constraints are written down for each. Shapes are symbolic in the same way.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.current: list[Record] = []
        self.fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.fake.cache_enabled = False  # looking symbolic shapes up costs more than computing them
        self.batch, self.tokens, self.past = _symbols(self.fake)
        self._sizes: dict[Any, Size] = {}
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # so that ids stay distinct
        self._stand_ins: dict[Tensor, Tensor] = {}
        self._checks: dict[int, Tensor] = {}  # whether all values are in order: taken to hold
        self.parameters: set[Value] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            return id(args[0]) in self._checks or _no_value(args[0])
        if name == "aten::nonzero":
            return self._chosen(args[0])
        if name in _MASKED and any(_is_mask(index) for index in args[1]):
            args = (args[0], self._as_positions(args[1]), *args[2:])
        if name == "aten::split_with_sizes":
            args = (args[0], _all_in_one(args[0], *args[1:]), *args[2:])
        given = [*args, *(kwargs or {}).values()]
        inputs = () if name.endswith(_UNREAD) or name.startswith("aten::new_") else self._all(given)
        if name in _PRODUCTS:
            args = self._alike(args)
        out = self._added_product(args) if name == "aten::baddbmm" else func(*args, **(kwargs or {}))
        if name in CHECKS:
            self._checks[id(out)] = out
        if not name.startswith(_SILENT):
            outputs = tuple(self._renewed(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            self.current.append(Record(name.removeprefix("aten::"), tuple(args), inputs, outputs))
            if func._schema.is_mutable:
                self._rewrite_base(args[0], outputs)
        return out

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.no_grad(), self.fake, self, _WholeAttention(self):
            yield

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """What is called inside belongs to that piece of the model."""
        before, self.current = self.current, self.recording.pieces.setdefault(name, [])
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """What is called inside leaves no record."""
        before, self.current = self.current, []
        try:
            yield
        finally:
            self.current = before

    def append(self, operator: str, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        """Record an operator that torch does not have."""
        self.current.append(Record(operator, arguments, self._all(arguments), (self._renewed(output),)))
        return output

    def empty(self, *shape: int | torch.SymInt, dtype: torch.dtype = COMPUTE_DTYPE) -> Tensor:
        """A fake tensor that comes from nowhere."""
        with self.unrecorded():
            return torch.empty(shape, dtype=dtype)

    def stand_in(self, tensor: Tensor, name: str) -> Tensor:
        """A fake tensor in place of a parameter or buffer, floats in the compute dtype, the same one at every call."""
        if tensor not in self._stand_ins:
            floating = tensor.is_floating_point()
            self._stand_ins[tensor] = self.empty(*tensor.shape, dtype=COMPUTE_DTYPE if floating else tensor.dtype)
            made = self.value(self._stand_ins[tensor])
            self.recording.names[made] = name
            if isinstance(tensor, nn.Parameter):
                self.parameters.add(made)
        return self._stand_ins[tensor]

    def value(self, tensor: Tensor) -> Value:
        found = self._values.get(id(tensor))
        return self._renewed(tensor) if found is None else found

    def size(self, extent: int | torch.SymInt) -> Size:
        """An extent as a polynomial; the past is context - tokens. Raises TraceError where it is none."""
        if isinstance(extent, int):
            return Size.of(extent)
        expression = extent.node.expr
        if expression not in self._sizes:
            self._sizes[expression] = self._polynomial(expression)
        return self._sizes[expression]

    def _polynomial(self, expression: Any) -> Size:
        batch, tokens, past = (symbol.node.expr for symbol in (self.batch, self.tokens, self.past))
        context = sympy.Symbol("context", positive=True, integer=True)
        exact = expression.replace(FloorDiv, lambda whole, part: sympy.cancel(whole / part))  # XLNet: tokens^2 // tokens
        wanted = sympy.expand(exact.xreplace({past: context - tokens}))
        if not wanted.is_polynomial(batch, tokens, context) or wanted.free_symbols - {batch, tokens, context}:
            raise TraceError(f"a tensor has an extent of {expression}, which is no polynomial in batch, tokens and context")
        terms = sympy.Poly(wanted, batch, tokens, context).terms()
        return Size.sum((int(coefficient), b, t, c) for (b, t, c), coefficient in terms)

    def _rewrite_base(self, written: Any, outputs: tuple[Value, ...]) -> None:
        """What was written through a view is part of the tensor behind it from now on."""
        base = written._base if isinstance(written, Tensor) else None
        if base is not None:
            before = self.value(base)
            self.current.append(Record("copy_", (), (before, *outputs), (self._renewed(base),)))

    def _chosen(self, mask: Tensor) -> Tensor:
        """What nonzero returns, its length made up: values decide it. Of a set whose size is fixed (experts that were hit, in
        turn) one; of tokens, or pairs of token and choice, all: those that each of the set gets add up to that."""
        counted = [extent for extent in mask.shape if not isinstance(extent, int)]
        found = 1
        for extent in mask.shape if counted else ():
            found = found * extent
        return self.append("nonzero", (mask,), self.empty(found, mask.ndim, dtype=torch.long))

    def _as_positions(self, indices: Any) -> list[Any]:
        """Indices with the positions where masks are true in the masks' places."""
        found: list[Any] = []
        for index in indices:
            found.extend(self._chosen(index).unbind(1) if _is_mask(index) else [index])
        return found

    def _alike(self, args: Any) -> tuple[Any, ...]:
        """Operands of one dtype: a model that was traced in another one has its own written into masks."""
        if len({a.dtype for a in args if isinstance(a, Tensor)}) == 1:
            return tuple(args)
        return tuple(self._cast(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == COMPUTE_DTYPE else self.append("_to_copy", (tensor,), tensor.to(COMPUTE_DTYPE))

    def _added_product(self, args: Any) -> Tensor:
        """The result of baddbmm, whose own shape function refuses symbols."""
        _, left, right = args
        return self.empty(*left.shape[:2], right.shape[2], dtype=left.dtype)

    def _all(self, arguments: Any) -> tuple[Value, ...]:
        return tuple(self.value(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))

    def _renewed(self, tensor: Tensor) -> Value:
        """A new value for a tensor: it was just made, or written in place."""
        made = Value(tuple(map(self.size, tensor.shape)), tensor.element_size())
        self._values[id(tensor)] = made
        self._alive.append(tensor)
        return made


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _all_in_one(tensor: Tensor, sizes: Any, dim: int = 0) -> list[Any]:
    """The sizes of a split; where they were read from values, which are all zero here, the first part gets everything."""
    return [tensor.shape[dim], *sizes[1:]] if sizes and all(size == 0 for size in sizes) else list(sizes)


def _symbols(fake: FakeTensorMode) -> tuple[torch.SymInt, ...]:
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(HINTS))
    return tuple(fake.from_tensor(torch.empty(HINTS), symbolic_context=context).shape)  # type: ignore[arg-type]


def _no_value(tensor: Tensor) -> bool | int | float:
    """What a branch on a value sees: false, zero. There are no values here, and such branches handle rare cases."""
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0


class _WholeAttention(TorchFunctionMode):
    """Keeps scaled_dot_product_attention one operator, whatever a device would decompose it to."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, _, value = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        output = self._recorder.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
        return self._recorder.append("scaled_dot_product_attention", (*args, *kwargs.values()), output)
