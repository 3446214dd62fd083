"""What can be traced: causal language models, encoders, and modules of the user's with a list of layers."""

import inspect

from torch import nn
from transformers import PreTrainedModel

from llmpq.errors import TraceError

IMPLEMENTATIONS = ("sdpa", "eager")
_STATEFUL = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}  # layer types that keep a state instead of keys and values


def require_traceable(model: nn.Module) -> nn.Module:
    """The model, when it is one that can be traced. Raises TraceError with the reason and the remedy."""
    name = type(model).__name__
    if model.training:
        raise TraceError(f"{name} is in training mode; call model.eval() first")
    if isinstance(model, PreTrainedModel):
        _require_supported(model, name)
    elif not parameters_of_forward(model):
        raise TraceError(f"the forward method of {name} takes no input; expected token ids [batch, tokens]")
    return model


def _require_supported(model: PreTrainedModel, name: str) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise TraceError(f"{name} is an encoder with a decoder; expected one of the two, such as a …ForCausalLM")
    if not is_encoder(model) and model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise TraceError(f"{name} has no language model head; expected a causal language model (…ForCausalLM)")
    found = model.config._attn_implementation
    if found not in IMPLEMENTATIONS:
        raise TraceError(
            f"attention implementation {found!r} cannot be traced; build the model with one of {', '.join(IMPLEMENTATIONS)}"
        )
    config = model.config.get_text_config(decoder=True)
    kinds = sorted(_STATEFUL.intersection(getattr(config, "layer_types", None) or ()))
    if kinds or model._is_stateful:
        what = ", ".join(kinds) or "recurrent"
        raise TraceError(f"{name}: unsupported: state-space layers ({what}); they keep a state, not keys and values")


def is_encoder(model: nn.Module) -> bool:
    """Whether a transformers model sees a whole sequence at once and caches nothing."""
    if not isinstance(model, PreTrainedModel):
        return False
    return getattr(model.config, "is_decoder", True) is False or "past_key_values" not in parameters_of_forward(model)


def parameters_of_forward(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of `forward`, in order."""
    return tuple(inspect.signature(model.forward).parameters)
