"""LoadRenamings: how transformers renames the tensors of an architecture as it loads them, as far as names go."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadRenamings:
    """`renamings`: one name for another; `mergers`: several tensors become one, by concatenation."""

    renamings: tuple[Any, ...] = ()
    mergers: tuple[Any, ...] = ()

    def rename(self, name: str) -> tuple[str, int | None]:
        """The name in the model, and of a tensor that is merged which of its expert's matrices it is (gate 0, up 1)."""
        if not (self.renamings or self.mergers):
            return name, None
        from transformers.core_model_loading import rename_source_key

        renamed, pattern = rename_source_key(name, list(self.renamings), list(self.mergers))
        if pattern is None:
            return renamed, None
        merger = next(merger for merger in self.mergers if pattern in merger.source_patterns)
        return renamed, merger.source_patterns.index(pattern)


@cache
def load_renamings(architecture: str) -> LoadRenamings:
    """Those of a class of transformers; none of a class that it does not know."""
    import transformers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightRenaming

    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        return LoadRenamings()
    look_up: Any = get_checkpoint_conversion_mapping
    conversions = look_up(architecture)
    if conversions is None:
        conversions = look_up(model_class.config_class.model_type) or []
    merging = (MergeModulelist, Concatenate)
    return LoadRenamings(
        tuple(found for found in conversions if isinstance(found, WeightRenaming)),
        tuple(found for found in conversions if all(isinstance(op, merging) for op in getattr(found, "operations", [None]))),
    )


def tied_source(architecture: str, name: str) -> str:
    """The parameter that `name` is tied to in every model of the architecture; "" for none."""
    import transformers

    ties: Any = getattr(getattr(transformers, architecture, None), "_tied_weights_keys", None) or {}
    return next((source for pattern, source in ties.items() if re.fullmatch(pattern, name)), "") if isinstance(ties, dict) else ""
