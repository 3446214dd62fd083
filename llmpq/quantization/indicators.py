"""Indicators: ways to tell what rounding a layer costs, all ending in nats per token with a standard error."""

import random
from collections.abc import Sequence
from math import hypot, log, sqrt

from llmpq.graph import LayerGraph
from llmpq.precision import Precision
from llmpq.program import Calibration
from llmpq.quantization.fisher import fisher_noise
from llmpq.quantization.output_noise import Noise, output_noise
from llmpq.quantization.scoring import Advance, Loss, Measurements
from llmpq.sensitivity import SensitivityTable

INDICATORS: dict[str, str] = {
    "fisher": "rounding noise as the loss feels it, by gradients",
    "variance": "rounding noise of the outputs, inputs taken as uncorrelated (LLM-PQ's)",
    "hessian": "rounding noise of the outputs with the inputs' correlations (GPTQ's proxy loss)",
    "measured": "the divergence with one layer rounded at a time",
    "random": "a control that knows nothing of the layers",
}
PROBES = 3  # layers measured alone, to learn how far an indicator is off
SEED = 0


def estimate_sensitivity(
    indicator: str,
    graph: LayerGraph,
    precisions: Sequence[Precision],
    calibration: Calibration,
    advance: Advance = lambda what, done, total: None,
) -> SensitivityTable:
    """The sensitivity of every layer at every precision, nats per token.

    An indicator says how the layers compare at one precision. Their sum is then scaled to the divergence of the next-token
    distributions measured with every layer at that precision: what the cross entropy rises by on text that is distributed as
    the original model says. What was measured before on the same model and text is taken from the user's cache.
    """
    return table_of(indicator, Measurements.of(graph, calibration), precisions, advance)


def table_of(
    indicator: str,
    measured: Measurements,
    precisions: Sequence[Precision],
    advance: Advance = lambda what, done, total: None,
) -> SensitivityTable:
    """The table of one indicator from the measurements of a model."""
    quantized = [precision for precision in precisions if precision.is_quantized]
    shares = raw_shares(indicator, measured, quantized, advance)
    columns = {}
    for done, precision in enumerate(quantized):
        advance("calibrate", done, len(quantized))
        joint = measured.together([precision] * measured.graph.num_layers)
        columns[precision.name] = _calibrated(indicator, measured, precision, shares[precision.name], joint)
    advance("calibrate", len(quantized), len(quantized))
    nothing = [(0.0, 0.0)] * measured.graph.num_layers
    cells = list(zip(*(columns.get(precision.name, nothing) for precision in precisions)))
    tokens, text = measured.windows.numel(), measured.calibration.text_name
    return SensitivityTable(
        options=tuple(precision.name for precision in precisions),
        rows=tuple(tuple(value for value, _ in row) for row in cells),
        indicator=indicator,
        provenance=f"{indicator} indicator, scaled to each precision's joint divergence on {tokens} tokens of {text}",
        errors=tuple(tuple(error for _, error in row) for row in cells),
    )


def raw_shares(
    indicator: str,
    measured: Measurements,
    precisions: Sequence[Precision],
    advance: Advance = lambda what, done, total: None,
) -> dict[str, list[float]]:
    """Precision name -> a figure for every layer, before calibration: nats for `measured`, without a unit for the others."""
    layers = range(measured.graph.num_layers)
    quantizable = [measured.graph.kind_of(layer).is_quantizable for layer in layers]
    if indicator == "random":
        draw = random.Random(SEED)
        drawn = [draw.random() * able for able in quantizable]
        return {precision.name: drawn for precision in precisions}
    if indicator == "measured":
        cells = [(layer, precision) for layer in layers for precision in precisions if quantizable[layer]]
        found = dict(zip(cells, measured.alone(cells, advance)))
        nothing = {precision.name: [0.0] * len(layers) for precision in precisions}
        for (layer, precision), loss in found.items():
            nothing[precision.name][layer] = max(0.0, loss.divergence.mean)
        return nothing
    return {name: list(noise.layers) for name, noise in _noises(indicator, measured, precisions).items()}


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
    indicator: str, measured: Measurements, precision: Precision, shares: list[float], joint: Loss
) -> list[tuple[float, float]]:
    """(nats, standard error) of every layer: `shares` scaled to the joint divergence.

    The relative error is that of the joint divergence together with the root mean square of log(predicted / measured) over the
    probed layers, which are measured alone; the indicator `measured` has every layer measured, and its error is
    the sampling error of each with how far their sum lies from the joint divergence.
    """
    total, whole = max(0.0, joint.divergence.mean), sum(shares)
    scale = total / whole if whole else 0.0
    values = [share * scale for share in shares]
    sampling = (joint.divergence.error or 0.0) / total if total else 0.0
    if indicator == "measured":
        losses = measured.alone([(layer, precision) for layer, share in enumerate(shares) if share])
        errors = iter([hypot((loss.divergence.error or 0.0) * scale, loss.divergence.mean * (scale - 1)) for loss in losses])
        return [(value, next(errors) if value else 0.0) for value in values]
    off = hypot(sampling, _misfit(measured, precision, values))
    return [(value, value * off) for value in values]


def _misfit(measured: Measurements, precision: Precision, values: Sequence[float]) -> float:
    """Root mean square of log(predicted / measured alone) over the probed layers."""
    layers = probed_layers(measured.graph)
    losses = measured.alone([(layer, precision) for layer in layers])
    logs = [
        log(values[layer] / loss.divergence.mean)
        for layer, loss in zip(layers, losses)
        if values[layer] > 0 and loss.divergence.mean > 0
    ]
    return sqrt(sum(value * value for value in logs) / len(logs)) if logs else 0.0
