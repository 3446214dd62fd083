"""AttentionTable: latency of attention for any heads, batch and context, from points measured on one system."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpq.costs.band import Band, calibrate
from llmpq.costs.silicon import Phase, System
from llmpq.costs.soft_roofline import SoftRoofline, Work, fit_soft_roofline

Array = NDArray[np.float64]

ELEMENT_BYTES = {"bfloat16": 2.0, "fp8": 1.0}
NEIGHBOURS = 48
_CHUNK = 256
_CALIBRATION_POINTS = 400
_MEAN_VARIANCE = 25.0
_GROUP_SLOPE = 0.2  # beyond two query heads per key/value head engines use one kernel, which fills tiles with them


@dataclass(frozen=True, slots=True)
class LocalKernel:
    """Matern 3/2 plus exponential in (log key/value heads of the batch, log context, log group of heads), lengths in octaves."""

    kv_rows: float
    context: float
    group: float
    smooth: float
    rough: float
    rough_length: float
    noise: float

    def covariance(self, distance: Array) -> Array:
        scaled = np.sqrt(3) * distance
        return np.asarray(
            self.smooth * (1 + scaled) * np.exp(-scaled) + self.rough * np.exp(-distance / self.rough_length) + _MEAN_VARIANCE
        )


# Found by cross-validation over heads, batch sizes and contexts, averaged over the tables of each phase. Batch and heads enter
# only through their product: whether 4 sequences have 8 key/value heads or 8 have 4 makes no difference beyond the noise.
KERNELS: dict[Phase, LocalKernel] = {
    "prefill": LocalKernel(2.0, 2.0, 2.0, 0.18, 0.30, 3.7, 6e-4),
    "decode": LocalKernel(0.83, 1.48, 0.23, 0.0665, 0.0745, 11.4, 1e-4),
}


@dataclass(frozen=True, slots=True)
class AttentionHardware:
    """Rates of one system, bytes per element of the activations and of the cache, and the head size."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    activation_bytes: float
    kv_bytes: float
    head_dim: int
    phase: Phase

    def work(self, points: Array, new_tokens: Array) -> Work:
        """points [P, 4]: sequences, context, heads, key/value heads; `new_tokens` [P] of each sequence attend."""
        rows, context, heads, kv_heads = points.T
        pairs = new_tokens * (context - (new_tokens - 1) / 2)
        kept = 2 * rows * context * kv_heads * self.head_dim * self.kv_bytes
        streamed = 2 * rows * new_tokens * heads * self.head_dim * self.activation_bytes
        return Work(
            kept / self.bandwidth_bytes_per_s,
            streamed / self.bandwidth_bytes_per_s,
            4 * rows * heads * pairs * self.head_dim / self.flops_per_s,
            kept,
        )


def attention_hardware(system: System, phase: Phase, dtype: str, kv_dtype: str, head_dim: int) -> AttentionHardware:
    rate = system.peak(dtype)
    return AttentionHardware(system.bandwidth_bytes_per_s, rate, ELEMENT_BYTES[dtype], ELEMENT_BYTES[kv_dtype], head_dim, phase)


@dataclass(frozen=True, slots=True)
class AttentionPoints:
    """points [P, 4]: sequences, context (tokens seen at the end), heads, key/value heads; latency_s [P]."""

    points: Array
    latency_s: Array

    def rows(self, chosen: NDArray[np.bool_]) -> "AttentionPoints":
        return AttentionPoints(self.points[chosen], self.latency_s[chosen])


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """Measurements over a soft roofline: the residual is a process over the 48 nearest measured points."""

    hardware: AttentionHardware
    roofline: SoftRoofline
    measured: AttentionPoints
    residuals: Array

    def latency_s(self, points: Array, new_tokens: Array, hardware: AttentionHardware | None = None) -> Array:
        """Seconds [P]. Prefill behind a prefix (context > new tokens) keeps the residual of prefill without one."""
        soft = self.roofline.latency_s((hardware or self.hardware).work(points, new_tokens))
        seen = points.copy()
        if self.hardware.phase == "prefill":
            seen[:, 1] = new_tokens
        return np.asarray(soft * np.exp(self.expected(seen)))

    def expected(self, points: Array, groups: tuple[Array, Array] | None = None) -> Array:
        """Residuals [P] at points [P, 4]; `groups` (of the points, of the measured): only points of another group are used."""
        kernel = KERNELS[self.hardware.phase]
        lowest, highest = self.measured.points.min(axis=0), self.measured.points.max(axis=0)
        wanted = _features(kernel, np.clip(points, lowest, highest))
        known = _features(kernel, self.measured.points)
        parts = []
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            squared = ((wanted[part, None] - known[None]) ** 2).sum(-1)
            if groups is not None:
                squared[groups[0][part, None] == groups[1][None]] = np.inf
            parts.append(_regress(kernel, squared, known, self.residuals))
        return np.concatenate(parts)


def _features(kernel: LocalKernel, points: Array) -> Array:
    rows, context, heads, kv_heads = np.log2(points).T
    group = heads - kv_heads
    kernels = np.minimum(group, 1) + _GROUP_SLOPE * np.maximum(group - 1, 0)
    return np.stack([(rows + kv_heads) / kernel.kv_rows, context / kernel.context, kernels / kernel.group], -1)


def _regress(kernel: LocalKernel, squared: Array, known: Array, residuals: Array) -> Array:
    count = min(NEIGHBOURS, squared.shape[1])
    nearest = np.argpartition(squared, count - 1, axis=1)[:, :count]
    features = known[nearest]
    between = np.sqrt(((features[:, :, None] - features[:, None]) ** 2).sum(-1))
    to = np.sqrt(np.take_along_axis(squared, nearest, axis=1))
    noisy = kernel.covariance(between) + kernel.noise * np.eye(count)
    weights = np.linalg.solve(noisy, residuals[nearest][..., None])[..., 0]
    return np.asarray((kernel.covariance(to) * weights).sum(-1))


def fit_attention_roofline(hardware: AttentionHardware, measured: AttentionPoints) -> SoftRoofline:
    return fit_soft_roofline(_work(hardware, measured), measured.latency_s, np.ones(len(measured.latency_s)))


def attention_table(hardware: AttentionHardware, roofline: SoftRoofline, measured: AttentionPoints) -> AttentionTable:
    residuals = np.log(measured.latency_s / roofline.latency_s(_work(hardware, measured)))
    return AttentionTable(hardware, roofline, measured, residuals)


def fit_attention_table(hardware: AttentionHardware, measured: AttentionPoints) -> AttentionTable:
    return attention_table(hardware, fit_attention_roofline(hardware, measured), measured)


def _work(hardware: AttentionHardware, measured: AttentionPoints) -> Work:
    context = measured.points[:, 1]
    return hardware.work(measured.points, context if hardware.phase == "prefill" else np.ones_like(context))


@dataclass(frozen=True, slots=True)
class AttentionBands:
    """Bands at measured points, at a context never measured, at a group (heads per key/value head) never measured."""

    on_grid: Band
    new_context: Band
    new_group: Band

    def factors(self, table: AttentionTable, points: Array) -> Array:
        """[P, 2]: low and high factors of points [P, 4]."""
        contexts = np.isin(points[:, 1], table.measured.points[:, 1])
        groups = np.isin(_group(points), _group(table.measured.points))
        bands = [self._widest(known, seen) for known, seen in zip(contexts, groups)]
        return np.array([(band.low, band.high) for band in bands]).reshape(-1, 2)

    def _widest(self, context: bool, group: bool) -> Band:
        band = self.on_grid if context else self.on_grid.wider(self.new_context)
        return band if group else band.wider(self.new_group)


def _group(points: Array) -> Array:
    return np.asarray(points[:, 2] / points[:, 3])


def attention_bands(table: AttentionTable) -> AttentionBands:
    """Calibrated on a sample of the table: all points of the same heads, of the same context, of the same group left out."""
    points = table.measured.points
    sample = np.unique(np.linspace(0, len(points) - 1, _CALIBRATION_POINTS).astype(int))

    def band(labels: Array) -> Band:
        errors = table.residuals[sample] - table.expected(points[sample], (labels[sample], labels))
        return calibrate(errors, errors)

    return AttentionBands(band(points[:, 2] * 1000 + points[:, 3]), band(points[:, 1]), band(_group(points)))
