"""Agreement: how far indicators of sensitivity agree with what is measured layer by layer, and with real mixtures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from llmpq.precision import Precision
from llmpq.quantization.indicators import INDICATORS, probed_layers, raw_shares, table_of
from llmpq.quantization.output_noise import Noise
from llmpq.quantization.scoring import Advance, Measurements
from llmpq.sensitivity import SensitivityTable

MIXTURES = 8
SEED = 0


@dataclass(frozen=True, slots=True)
class IndicatorAgreement:
    """One indicator at one precision. rank: Spearman's correlation with the layers measured alone; off: typical factor between
    the two; mixed: typical factor between predicted and joint divergence of mixtures of precisions; seconds: all measuring that
    it needs, passes shared by indicators counted for each.
    """

    indicator: str
    precision: str
    rank: float
    off: float
    mixed: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """additivity[precision]: sum of the layers measured alone over the divergence with all of them."""

    text: str
    tokens: int
    precisions: tuple[str, ...]
    additivity: tuple[float, ...]
    mixed_joint: tuple[float, ...]
    rows: tuple[IndicatorAgreement, ...]


def compare(
    measured: Measurements, precisions: Sequence[Precision], advance: Advance = lambda what, done, total: None
) -> Agreement:
    """Every indicator against layers measured one at a time, and against seeded mixtures measured jointly."""
    quantized = [precision for precision in precisions if precision.is_quantized]
    tables = {indicator: table_of(indicator, measured, precisions, advance) for indicator in INDICATORS}
    mixtures = draw_mixtures(precisions, measured.graph.num_layers)
    joint = []
    for done, mixture in enumerate(mixtures):
        advance("measure mixtures", done, len(mixtures))
        joint.append(measured.together(mixture).divergence.mean)
    truth = raw_shares("measured", measured, quantized)
    whole = [measured.together([precision] * measured.graph.num_layers).divergence.mean for precision in quantized]
    rows = [
        IndicatorAgreement(
            indicator,
            precision.name,
            rank_correlation(_column(table, precision), truth[precision.name]),
            typical_factor(_column(table, precision), _column(tables["measured"], precision)),
            typical_factor([table.total(tuple(each.name for each in mixture)) for mixture in mixtures], joint),
            _seconds(measured, indicator, precision),
        )
        for indicator, table in tables.items()
        for precision in quantized
    ]
    return Agreement(
        text=measured.calibration.text_name,
        tokens=measured.windows.numel(),
        precisions=tuple(precision.name for precision in quantized),
        additivity=tuple(sum(truth[precision.name]) / total for precision, total in zip(quantized, whole)),
        mixed_joint=tuple(joint),
        rows=tuple(rows),
    )


def draw_mixtures(precisions: Sequence[Precision], layers: int) -> list[list[Precision]]:
    """A precision for every layer, drawn with a seed."""
    draw = random.Random(SEED)
    return [[draw.choice(list(precisions)) for _ in range(layers)] for _ in range(MIXTURES)]


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's, equal values sharing their mean rank; 0 where one side is constant."""
    a, b = _ranks(left), _ranks(right)
    middle = (len(a) - 1) / 2
    products = sum((x - middle) * (y - middle) for x, y in zip(a, b))
    norm = sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    return products / norm if norm else 0.0


def typical_factor(left: Sequence[float], right: Sequence[float]) -> float:
    """exp of the root mean square of log(left / right), over the pairs where both are positive; 1: equal."""
    logs = [log(a / b) for a, b in zip(left, right) if a > 0 and b > 0]
    return exp(sqrt(sum(value * value for value in logs) / len(logs))) if logs else 1.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values]


def _column(table: SensitivityTable, precision: Precision) -> list[float]:
    return [row[table.options.index(precision.name)] for row in table.rows]


def _seconds(measured: Measurements, indicator: str, precision: Precision) -> float:
    """Of the measuring behind one column: the indicator's own pass, the joint divergence, and layers measured alone."""
    layers = range(measured.graph.num_layers) if indicator == "measured" else probed_layers(measured.graph)
    able = [layer for layer in layers if measured.graph.kind_of(layer).is_quantizable]
    losses = [measured.together([precision] * measured.graph.num_layers)]
    losses += measured.alone([(layer, precision) for layer in able])
    own = measured.store.get(f"{indicator}-{precision.name}", Noise)
    return round(sum(loss.seconds for loss in losses) + (own.seconds if own else 0.0), 3)
