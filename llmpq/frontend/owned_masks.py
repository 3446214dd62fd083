"""Our mask function in place of transformers' mask builders, while a model is traced."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import fx, nn
from transformers import masking_utils

from llmpq.errors import TraceError
from llmpq.fx import ops


@contextmanager
def owned_masks(model: nn.Module) -> Iterator[None]:
    """Where the model's own Python modules refer to transformers' mask builders, put ones that emit our node."""
    found = [
        (module, name, getattr(masking_utils, name))
        for module in _python_modules(model)
        for name in _BUILDERS
        if getattr(module, name, None) is getattr(masking_utils, name)
    ]
    try:
        for module, name, original in found:
            setattr(module, name, _emitter(name, original))
        yield
    finally:
        for module, name, original in found:
            setattr(module, name, original)


def _python_modules(model: nn.Module) -> tuple[ModuleType, ...]:
    names = {cls.__module__: None for module in model.modules() for cls in type(module).__mro__}
    return tuple(sys.modules[name] for name in names if name != masking_utils.__name__ and name in sys.modules)


_BUILDERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "create_causal_mask": lambda config: {"window": None},
    "create_sliding_window_causal_mask": lambda config: {"window": int(config.sliding_window)},
    "create_chunked_causal_mask": lambda config: {"window": None, "chunk": int(config.attention_chunk_size)},
    "create_bidirectional_mask": lambda config: {"window": None, "causal": False},
    "create_recurrent_attention_mask": lambda config: _refuse_state(),
}


def _refuse_state() -> dict[str, Any]:
    raise TraceError("unsupported: state-space layers; they keep a state, not keys and values")


def _emitter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A mask builder that emits a node when it is traced, and is the original for everybody else (other threads)."""
    signature = inspect.signature(original)

    def build(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        hidden = given["inputs_embeds"]
        if not isinstance(hidden, fx.Proxy):
            return original(*args, **kwargs)
        for overlay in ("or_mask_function", "and_mask_function", "block_sequence_ids"):
            if given.get(overlay) is not None:
                raise TraceError(f"{name} is called with {overlay}: attention that is not plainly causal is not supported")
        if given.get("encoder_hidden_states") is not None:
            raise TraceError(f"{name} is called for attention to another sequence, which is not supported")
        options = {**_BUILDERS[name](given["config"]), "implementation": given["config"]._attn_implementation}
        if not (given.get("allow_is_causal_skip", True) and given.get("allow_is_bidirectional_skip", True)):
            options["materialize"] = True
        inputs = (given["attention_mask"], hidden, given.get("past_key_values"))
        return hidden.tracer.create_proxy("call_function", ops.attention_mask, inputs, options)

    return build
