"""Kernel shapes: what an engine's kernels ask of the sizes of a layer's linears, by rules with a source each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmpq.bundled import bundled_yaml
from llmpq.graph import Attention, LayerKind, Linear
from llmpq.hardware.devices import DeviceKind, DeviceType
from llmpq.hardware.support import Support, cache_support, support
from llmpq.layer_option import LayerOption
from llmpq.precision import Precision


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of the linears at `precisions` on devices of `kinds`: columns and rows of the fused weight are multiples, the stored
    group is one of `groups` (() allows all; a whole row is always allowed)."""

    kinds: tuple[str, ...]
    precisions: tuple[str, ...]
    columns: int
    rows: int
    groups: tuple[int, ...]
    source: str

    def problem(self, linear: Linear, rows: int, precision: Precision) -> str | None:
        """What is wrong with a linear whose fused weight has `rows` rows."""
        group = precision.group_size_for(linear.in_features)
        if linear.in_features % self.columns:
            return f"{linear.name} has {linear.in_features} columns; the kernel wants a multiple of {self.columns}"
        if rows % self.rows:
            return f"{linear.name} has {rows} rows with those fused to it; the kernel wants a multiple of {self.rows}"
        if self.groups and group != linear.in_features and group not in self.groups:
            known = ", ".join(map(str, self.groups))
            return f"{linear.name} has groups of {group} columns; the kernel knows {known}"
        return None


def layer_support(engine: str, device_type: DeviceType, option: LayerOption, kind: LayerKind) -> Support:
    """What `support` answers, or "unsupported" where the sizes of a linear of this kind of layer are not taken."""
    answer = support(engine, device_type, option)
    if answer.level == "unsupported":
        return answer
    refused = cache_problem(engine, device_type, kind) or next(shape_problems(engine, device_type.kind, option, kind), None)
    return answer if refused is None else refused


def cache_problem(engine: str, device_type: DeviceType, kind: LayerKind) -> Support | None:
    """An "unsupported" answer where the engine cannot cache such a layer's keys and values at its precision; else None."""
    attention = kind.attention
    if attention.cached_at == "16" or not attention.num_kv_heads:
        return None
    answer = cache_support(engine, device_type, attention.cached_at)
    if answer.level == "unsupported":
        return answer
    for rule in _cache_shapes().get(engine, ()):
        if device_type.kind in rule["kinds"] and (reason := _cache_reason(rule, attention)):
            return Support("unsupported", reason, bundled_yaml("support.yaml")["sources"][rule["source"]])
    return None


def _cache_reason(rule: dict[str, Any], attention: Attention) -> str | None:
    if rule.get("plain") and (attention.value_head_dim is not None or attention.index_dim):
        return f"a latent or indexed cache at {attention.cached_at} has a layout of its own, which is not planned"
    return None


@cache
def _cache_shapes() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = bundled_yaml("support.yaml")["cache_shapes"]
    return found


def shape_problems(engine: str, device_kind: DeviceKind, option: LayerOption, kind: LayerKind) -> Iterator[Support]:
    """One "unsupported" answer for every linear of the layer whose sizes the engine's kernel does not take."""
    yield from _without_place(engine, option, kind)
    yield from _split_groups(option, kind)
    fused = fused_rows(kind)
    for rule in _shapes().get(engine, ()):
        for linear in kind.linears if device_kind in rule.kinds else ():
            precision = option.of(linear.part)
            if linear.is_quantizable and precision.name in rule.precisions:
                reason = rule.problem(linear, fused[linear.fusion_group], precision)
                if reason is not None:
                    yield Support("unsupported", reason, rule.source)


def _without_place(engine: str, option: LayerOption, kind: LayerKind) -> Iterator[Support]:
    """Linears that the engine does not find in a checkpoint once they are quantized."""
    for held_as, reason, source in _layouts().get(engine, ()):
        for linear in kind.linears:
            found = "experts" if linear.experts > 1 else "conv1d" if linear.transposed else None
            if found == held_as and linear.is_quantizable and option.of(linear.part).is_quantized:
                yield Support("unsupported", f"{linear.name} {reason}", source)


@cache
def _layouts() -> dict[str, tuple[tuple[str, str, str], ...]]:
    """Engine -> (how weights are held that it does not find once they are quantized, what is said of them, source)."""
    data: dict[str, Any] = bundled_yaml("support.yaml")
    return {
        engine: tuple((rule["of"], rule["reason"], data["sources"][rule["source"]]) for rule in rules)
        for engine, rules in data["layouts"].items()
    }


def _split_groups(option: LayerOption, kind: LayerKind) -> Iterator[Support]:
    """Where the columns of a linear are split among ranks within a group of columns that share a scale."""
    for linear in kind.linears:
        precision = option.of(linear.part)
        whole = precision.group_size_for(linear.in_features * linear.column_ranks)
        if linear.column_ranks > 1 and linear.is_quantizable and precision.group_size and linear.in_features % whole:
            found = f"{linear.name} has {linear.in_features} columns on each of {linear.column_ranks} ranks"
            reason = f"{found}; its scales are of groups of {whole}, which the split would cut"
            yield Support("unsupported", reason, bundled_yaml("support.yaml")["sources"]["vllm-tensor-parallel"])


def fused_rows(kind: LayerKind) -> dict[str, int]:
    """Fusion group -> rows of the weight that engines make of it."""
    rows: dict[str, int] = {}
    for linear in kind.linears:
        if linear.is_quantizable:
            rows[linear.fusion_group] = rows.get(linear.fusion_group, 0) + linear.out_features
    return rows


@cache
def _shapes() -> dict[str, tuple[_Shape, ...]]:
    data: dict[str, Any] = bundled_yaml("support.yaml")
    return {
        engine: tuple(
            _Shape(
                kinds=tuple(rule["kinds"]),
                precisions=tuple(rule["precisions"]),
                columns=rule.get("columns", 1),
                rows=rule.get("rows", 1),
                groups=tuple(rule.get("groups", ())),
                source=data["sources"][rule["source"]],
            )
            for rule in rules
        )
        for engine, rules in data["shapes"].items()
    }
