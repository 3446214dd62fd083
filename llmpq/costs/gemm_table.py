"""GemmTable: latency of a matrix product of any shape, from those measured on one system at one precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpq.costs.band import Band, calibrate
from llmpq.costs.gaussian_process import Posterior, condition, terms
from llmpq.costs.kernel_weights import fit_weights
from llmpq.costs.silicon import ACTIVATION_BYTES, WEIGHT_BYTES, System
from llmpq.costs.soft_roofline import SoftRoofline, Work, fit_soft_roofline

Array = NDArray[np.float64]

OUTPUT_BYTES = 2.0
LARGE = 1024  # a shape whose n and k reach this is a projection of a model; smaller ones are bound by launches
_SMALL_WEIGHT = 0.1  # of a shape below 512, in the fit of the soft roofline
_REGIME_SPEEDUP = 1.5  # from this speed-up in the cache on, in and out of it are told apart in full
_CHUNK = 512
_TILES = ((64, 0.4), (128, 0.3), (256, 0.2))  # rows, share; by leaving out every m in turn: error 6.7 %, 8.1 % for plain log m
_SMALL_IMPORTANCE = 0.3  # of a shape below LARGE, in the fit of the weights of the kernels
_RANGES = (12, 144, 896, float("inf"))  # largest m of each range, which have a kernel and bands each


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates that a roofline of one precision needs; bytes per weight and per activation."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    weight_bytes: float
    activation_bytes: float

    def work(self, m: Array, n: Array, k: Array) -> Work:
        kept = self.weight_bytes * n * k
        streamed = self.activation_bytes * m * k + OUTPUT_BYTES * m * n
        return Work(
            kept / self.bandwidth_bytes_per_s,
            streamed / self.bandwidth_bytes_per_s,
            2 * m * n * k / self.flops_per_s,
            kept,
        )


def hardware_of(system: System, dtype: str) -> Hardware:
    return Hardware(system.bandwidth_bytes_per_s, system.peak(dtype), WEIGHT_BYTES[dtype], ACTIVATION_BYTES[dtype])


@dataclass(frozen=True, slots=True)
class Measurements:
    """tokens [M] and shapes [S, 2] (n, k), ascending; latency_s [S, M]."""

    tokens: Array
    shapes: Array
    latency_s: Array

    def rows(self, chosen: NDArray[np.bool_]) -> "Measurements":
        return Measurements(self.tokens, self.shapes[chosen], self.latency_s[chosen])

    def columns(self, chosen: NDArray[np.bool_]) -> "Measurements":
        return Measurements(self.tokens[chosen], self.shapes, self.latency_s[:, chosen])


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Measurements over a soft roofline: the residual is a process over (n, k) at each measured m, log-linear in between."""

    hardware: Hardware
    roofline: SoftRoofline
    measured: Measurements
    residuals: Array
    posteriors: tuple[Posterior, ...]

    def latency_s(self, m: Array, n: Array, k: Array, hardware: Hardware | None = None) -> Array:
        """Seconds [P] of products [P]; on other `hardware` the residuals over its soft roofline are kept."""
        shapes, which = np.unique(np.stack([n, k], -1), axis=0, return_inverse=True)
        chunks = range(0, len(shapes), _CHUNK)
        rows = np.concatenate([self.log_latency(shapes[start : start + _CHUNK], hardware) for start in chunks])
        return self.between(rows[which.ravel()], m, n, k, hardware or self.hardware)

    def between(self, rows: Array, m: Array, n: Array, k: Array, hardware: Hardware) -> Array:
        """Seconds [P] from `rows` [P, M], the `log_latency` of these shapes; beyond the measured m along the soft roofline."""
        inside = np.clip(m, self.measured.tokens[0], self.measured.tokens[-1])
        found = np.exp(interpolate(tile_coordinate(self.measured.tokens), rows, tile_coordinate(inside)))
        beyond, edge = (self.roofline.latency_s(hardware.work(tokens, n, k)) for tokens in (m, inside))
        return np.asarray(found * beyond / edge)

    def log_latency(self, shapes: Array, hardware: Hardware | None = None) -> Array:
        """Logarithms of the seconds [P, M] of shapes [P, 2] at the measured m."""
        work = (hardware or self.hardware).work(self.measured.tokens[None, :], shapes[:, :1], shapes[:, 1:])
        return np.asarray(np.log(self.roofline.latency_s(work)) + self.rows(shapes))

    def rows(self, shapes: Array) -> Array:
        """Residuals [P, M] of shapes [P, 2] at the measured m; beyond the measured shapes those of the nearest edge."""
        inside = np.clip(shapes, self.measured.shapes.min(axis=0), self.measured.shapes.max(axis=0))
        between = terms(*(_features(self.hardware, self.roofline, points) for points in (inside, self.measured.shapes)))
        found = np.empty((len(shapes), len(self.measured.tokens)))
        for posterior, columns in zip(self.posteriors, _ranges(self.measured.tokens)):
            found[:, columns] = posterior.predict(between)
        return found

    def range_of(self, m: Array) -> NDArray[np.intp]:
        """Index of the range of m, by which kernels and bands differ."""
        return np.searchsorted(_RANGES, m)


def tile_coordinate(m: Array) -> Array:
    """Where m stands between measured m: mostly by its tiles of 64, 128 and 256 rows, of which a part costs the whole."""
    smooth = 1 - sum(share for _, share in _TILES)
    return np.asarray(sum(share * np.log(rows * np.ceil(m / rows)) for rows, share in _TILES) + smooth * np.log(m))


def interpolate(grid: Array, values: Array, wanted: Array) -> Array:
    """Row by row linear interpolation of values [P, M] over the grid [M] at wanted [P]; constant beyond its ends."""
    right = np.clip(np.searchsorted(grid, wanted), 1, max(len(grid) - 1, 1))
    if len(grid) == 1:
        return values[:, 0]
    share = np.clip((wanted - grid[right - 1]) / (grid[right] - grid[right - 1]), 0, 1)
    row = np.arange(len(values))
    return np.asarray((1 - share) * values[row, right - 1] + share * values[row, right])


def _ranges(tokens: Array) -> list[NDArray[np.intp]]:
    index = np.searchsorted(_RANGES, tokens)
    return [np.flatnonzero(index == number) for number in range(len(_RANGES))]


def _features(hardware: Hardware, roofline: SoftRoofline, shapes: Array) -> Array:
    n, k = shapes[:, 0], shapes[:, 1]
    told_apart = min(1.0, (roofline.cache_speedup - 1) / (_REGIME_SPEEDUP - 1))
    regime = told_apart * roofline.uncached(hardware.work(np.ones_like(n), n, k))
    return np.stack([np.log2(n), np.log2(k), regime], -1)


def fit_roofline(hardware: Hardware, measured: Measurements) -> SoftRoofline:
    """The soft roofline of a table; takes about a second, so that of shipped tables is stored."""
    weight = np.where(measured.shapes.min(axis=1) >= LARGE / 2, 1.0, _SMALL_WEIGHT)[:, None] * np.ones(len(measured.tokens))
    return fit_soft_roofline(_work(hardware, measured), measured.latency_s, weight)


def fit_kernels(hardware: Hardware, roofline: SoftRoofline, measured: Measurements) -> Array:
    """Weights [R, T] of the terms of the kernel at each range of m; about a second, so those of shipped tables are stored."""
    residuals, within = _residuals(hardware, roofline, measured), _terms(hardware, roofline, measured)
    importance = np.where(measured.shapes.min(axis=1) >= LARGE, 1.0, _SMALL_IMPORTANCE)
    return np.array([fit_weights(within, residuals[:, columns], importance) for columns in _ranges(measured.tokens)])


def condition_table(hardware: Hardware, roofline: SoftRoofline, kernels: Array, measured: Measurements) -> GemmTable:
    """The table of these measurements; tens of milliseconds for 300 shapes."""
    residuals, within = _residuals(hardware, roofline, measured), _terms(hardware, roofline, measured)
    posteriors = tuple(
        condition(weights, within, residuals[:, columns]) for weights, columns in zip(kernels, _ranges(measured.tokens))
    )
    return GemmTable(hardware, roofline, measured, residuals, posteriors)


def fit_gemm_table(hardware: Hardware, measured: Measurements) -> GemmTable:
    roofline = fit_roofline(hardware, measured)
    return condition_table(hardware, roofline, fit_kernels(hardware, roofline, measured), measured)


def _residuals(hardware: Hardware, roofline: SoftRoofline, measured: Measurements) -> Array:
    return np.asarray(np.log(measured.latency_s / roofline.latency_s(_work(hardware, measured))))


def _terms(hardware: Hardware, roofline: SoftRoofline, measured: Measurements) -> Array:
    features = _features(hardware, roofline, measured.shapes)
    return terms(features, features)


def _work(hardware: Hardware, measured: Measurements) -> Work:
    return hardware.work(measured.tokens[None, :], measured.shapes[:, :1], measured.shapes[:, 1:])


Bands = tuple[tuple[Band, Band], ...]


@dataclass(frozen=True, slots=True)
class GemmBands:
    """Bands by range of m and by size of the shape (small, large): on the grid, and at an n, a k, an m never measured."""

    on_grid: Bands
    new_n: Bands
    new_k: Bands
    new_tokens: Bands

    def factors(self, table: GemmTable, m: Array, n: Array, k: Array) -> Array:
        """[P, 2]: low and high factors of flat m, n, k."""
        measured = table.measured
        large = (np.minimum(n, k) >= LARGE).astype(int)
        known = zip(np.isin(n, measured.shapes[:, 0]), np.isin(k, measured.shapes[:, 1]), np.isin(m, measured.tokens))
        bands = [self._widest(where, size, flags) for where, size, flags in zip(table.range_of(m), large, known)]
        return np.array([(band.low, band.high) for band in bands]).reshape(-1, 2)

    def _widest(self, where: int, size: int, known: tuple[bool, bool, bool]) -> Band:
        band = self.on_grid[where][size]
        for bands, measured in zip((self.new_n, self.new_k, self.new_tokens), known):
            band = band if measured else band.wider(bands[where][size])
        return band


def gemm_bands(table: GemmTable) -> GemmBands:
    """Calibrated on the table itself: every shape, every n, every k and every inner m left out in turn, in closed form."""
    shapes = table.measured.shapes
    alone = table.residuals - _left_out(table, np.arange(len(shapes)))
    n_lines, k_lines = (table.residuals - _left_out(table, shapes[:, axis]) for axis in range(2))
    tokens = table.residuals - _without_tokens(table)
    on_grid, new_n, new_k, new_tokens = (_by_range(table, errors) for errors in (alone, n_lines, k_lines, tokens))
    return GemmBands(on_grid, new_n, new_k, new_tokens)


def _left_out(table: GemmTable, groups: NDArray[Any]) -> Array:
    expected = np.empty_like(table.residuals)
    for posterior, columns in zip(table.posteriors, _ranges(table.measured.tokens)):
        expected[:, columns] = posterior.leave_out(groups)
    return expected


def _without_tokens(table: GemmTable) -> Array:
    """What each shape, left out itself, would get at each inner m from the two m beside it."""
    places = tile_coordinate(table.measured.tokens)
    soft = np.log(table.measured.latency_s) - table.residuals
    rows = soft + _left_out(table, np.arange(len(soft)))
    expected = rows.copy()
    for column in range(1, len(places) - 1):
        share = (places[column] - places[column - 1]) / (places[column + 1] - places[column - 1])
        expected[:, column] = (1 - share) * rows[:, column - 1] + share * rows[:, column + 1]
    return np.asarray(expected - soft)


def _by_range(table: GemmTable, errors: Array) -> Bands:
    large = table.measured.shapes.min(axis=1) >= LARGE
    return tuple(
        (calibrate(errors[~large][:, columns], errors), calibrate(errors[large][:, columns], errors))
        for columns in _ranges(table.measured.tokens)
    )
