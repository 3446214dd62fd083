"""Indicators: ways to tell what rounding a layer costs, all ending in nats per token with a standard error."""

import random
from collections.abc import Mapping, Sequence
from math import hypot, log, sqrt

from llmpq.graph import LayerGraph
from llmpq.layer_option import LayerOption, PartPrecisions
from llmpq.precision import PARTS, PRECISIONS, Part, Precision
from llmpq.program import Calibration
from llmpq.quantization.fisher import fisher_noise
from llmpq.quantization.output_noise import Noise, output_noise
from llmpq.quantization.scoring import Advance, Loss, Measurements
from llmpq.sensitivity import SensitivityTable

Unit = tuple[int, Part | None]  # a layer, or a part of it
Figure = tuple[float, float]  # nats per token and one standard error
INDICATORS: dict[str, str] = {
    "fisher": "rounding noise as the loss feels it, by gradients",
    "variance": "rounding noise of the outputs, inputs taken as uncorrelated (LLM-PQ's)",
    "hessian": "rounding noise of the outputs with the inputs' correlations (GPTQ's proxy loss)",
    "measured": "the divergence with one layer rounded at a time",
    "random": "a control that knows nothing of the layers",
}
PROBES = 3  # layers measured alone, to learn how far an indicator is off
SEED = 0
SIXTEEN = PRECISIONS["16"]


def estimate_sensitivity(
    indicator: str,
    graph: LayerGraph,
    options: Sequence[LayerOption],
    calibration: Calibration,
    advance: Advance = lambda what, done, total: None,
) -> SensitivityTable:
    """The sensitivity of every layer at every option, nats per token.

    An indicator says how the layers compare at one precision; where an option has another one for the attention than for the mlp,
    how all parts of layers do. Their sum is then scaled to the divergence of the next-token distributions measured with every
    layer at that precision: what the cross entropy rises by on text that is distributed as the original model says. What was
    measured before on the same model and text is taken from the user's cache.
    """
    return table_of(indicator, Measurements.of(graph, calibration), options, advance)


def table_of(
    indicator: str,
    measured: Measurements,
    options: Sequence[LayerOption],
    advance: Advance = lambda what, done, total: None,
) -> SensitivityTable:
    """The table of one indicator from the measurements of a model."""
    quantized = [used for used in dict.fromkeys(p for option in options for p in option.parts) if used.is_quantized]
    units = layers_of(measured.graph) if all(isinstance(option, Precision) for option in options) else parts_of(measured.graph)
    shares = raw_shares(indicator, measured, quantized, advance, units)
    columns: dict[str, list[Figure]] = {}
    for done, precision in enumerate(quantized):
        advance("calibrate", done, len(quantized))
        joint = measured.together([precision] * measured.graph.num_layers)
        columns[precision.name] = _calibrated(indicator, measured, precision, units, shares[precision.name], joint)
    advance("calibrate", len(quantized), len(quantized))
    cells = [[_cell(layer, option, units, columns) for option in options] for layer in range(measured.graph.num_layers)]
    tokens, text = measured.windows.numel(), measured.calibration.text_name
    table = SensitivityTable(
        options=tuple(option.name for option in options),
        rows=tuple(tuple(value for value, _ in row) for row in cells),
        indicator=indicator,
        provenance=f"{indicator} indicator, scaled to each precision's joint divergence on {tokens} tokens of {text}",
        errors=tuple(tuple(error for _, error in row) for row in cells),
    )
    return _with_cache(table, measured)


def _with_cache(table: SensitivityTable, measured: Measurements) -> SensitivityTable:
    """The table with the divergence that rounding the whole KV cache makes, where the graph has a rounded one."""
    kept = measured.graph.cached_at
    if kept == "16":
        return table
    divergence = measured.cached(kept).divergence
    return table.with_cache(kept, max(0.0, divergence.mean), divergence.error, "its divergence measured")


def layers_of(graph: LayerGraph) -> list[Unit]:
    return [(layer, None) for layer in range(graph.num_layers)]


def parts_of(graph: LayerGraph) -> list[Unit]:
    return [(layer, part) for layer in range(graph.num_layers) for part in PARTS]


def raw_shares(
    indicator: str,
    measured: Measurements,
    precisions: Sequence[Precision],
    advance: Advance = lambda what, done, total: None,
    units: Sequence[Unit] | None = None,
) -> dict[str, list[float]]:
    """Precision name -> a figure for every unit, by default every layer, before calibration: nats for `measured`, without a
    unit of measure for the others."""
    units = layers_of(measured.graph) if units is None else units
    able = [_is_quantizable(measured.graph, unit) for unit in units]
    if indicator == "random":
        draw = random.Random(SEED)
        drawn = [draw.random() * quantizable for quantizable in able]
        return {precision.name: drawn for precision in precisions}
    if indicator == "measured":
        wanted = [unit for unit, quantizable in zip(units, able) if quantizable]
        cells = [(layer, _alone(part, precision)) for layer, part in wanted for precision in precisions]
        found = dict(zip(cells, measured.alone(cells, advance)))
        return {
            precision.name: [
                max(0.0, found[layer, _alone(part, precision)].divergence.mean) if quantizable else 0.0
                for (layer, part), quantizable in zip(units, able)
            ]
            for precision in precisions
        }
    noises = _noises(indicator, measured, precisions)
    return {name: [noise.of(*unit) for unit in units] for name, noise in noises.items()}


def _cell(layer: int, option: LayerOption, units: Sequence[Unit], columns: Mapping[str, Sequence[Figure]]) -> Figure:
    """Of a layer at an option: the sum over its units, whose errors are taken to go the same way."""
    figures = [
        columns[used.name][index]
        for index, (at, part) in enumerate(units)
        if at == layer and (used := option.of(part or "mlp")).is_quantized
    ]
    return sum(value for value, _ in figures), sum(error for _, error in figures)


def _alone(part: Part | None, precision: Precision) -> LayerOption:
    """The option of a layer of which only that part is rounded; None: all of it."""
    if part is None:
        return precision
    return PartPrecisions(precision, SIXTEEN) if part == "attention" else PartPrecisions(SIXTEEN, precision)


def _is_quantizable(graph: LayerGraph, unit: Unit) -> bool:
    layer, part = unit
    return any(linear.is_quantizable and part in (None, linear.part) for linear in graph.kind_of(layer).linears)


def _noises(indicator: str, measured: Measurements, precisions: Sequence[Precision]) -> dict[str, Noise]:
    """Precision name -> noise of every layer; what the store has is not computed again."""
    found = {precision.name: measured.store.get(f"{indicator}-{precision.name}", Noise) for precision in precisions}
    missing = [precision for precision in precisions if found[precision.name] is None]
    if missing:
        made = fisher_noise(measured, missing) if indicator == "fisher" else output_noise(measured, indicator, missing)
        found |= {name: measured.store.put(f"{indicator}-{name}", noise) for name, noise in made.items()}
    return {name: noise for name, noise in found.items() if noise is not None}


def probed_layers(graph: LayerGraph) -> list[int]:
    """The layers that every indicator is checked against: spread over the depth, quantizable ones."""
    able = [layer for layer in range(graph.num_layers) if graph.kind_of(layer).is_quantizable]
    chosen = {able[(2 * probe + 1) * len(able) // (2 * PROBES)] for probe in range(PROBES)} if able else set()
    return sorted(chosen)


def _calibrated(
    indicator: str, measured: Measurements, precision: Precision, units: Sequence[Unit], shares: Sequence[float], joint: Loss
) -> list[Figure]:
    """(nats, standard error) of every unit: `shares` scaled to the joint divergence.

    The relative error is that of the joint divergence together with the root mean square of log(predicted / measured) over the
    probed layers, which are measured alone; the indicator `measured` has every unit measured, and its error is
    the sampling error of each with how far their sum lies from the joint divergence.
    """
    total, whole = max(0.0, joint.divergence.mean), sum(shares)
    scale = total / whole if whole else 0.0
    values = [share * scale for share in shares]
    sampling = (joint.divergence.error or 0.0) / total if total else 0.0
    if indicator == "measured":
        cells = [(layer, _alone(part, precision)) for (layer, part), share in zip(units, shares) if share]
        errors = iter(
            [hypot((loss.divergence.error or 0.0) * scale, loss.divergence.mean * (scale - 1)) for loss in measured.alone(cells)]
        )
        return [(value, next(errors) if share else 0.0) for value, share in zip(values, shares)]
    layers = [0.0] * measured.graph.num_layers
    for (layer, _), value in zip(units, values):
        layers[layer] += value
    off = hypot(sampling, _misfit(measured, precision, layers))
    return [(value, value * off) for value in values]


def _misfit(measured: Measurements, precision: Precision, values: Sequence[float]) -> float:
    """Root mean square of log(predicted / measured alone) over the probed layers; values: of every layer."""
    layers = probed_layers(measured.graph)
    losses = measured.alone([(layer, precision) for layer in layers])
    logs = [
        log(values[layer] / loss.divergence.mean)
        for layer, loss in zip(layers, losses)
        if values[layer] > 0 and loss.divergence.mean > 0
    ]
    return sqrt(sum(value * value for value in logs) / len(logs)) if logs else 0.0
