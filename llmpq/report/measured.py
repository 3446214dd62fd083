"""Measured: what a run of the compiled model took, beside what was predicted."""

from typing import TYPE_CHECKING

from llmpq.report.markup import Markup, section, table, tag
from llmpq.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llmpq.profiling.validation import Comparison, Validation


def measured_section(validation: "Validation") -> Markup:
    """A row per figure; a ratio outside of its band is named so."""
    workload = validation.workload
    ran = f"{workload.batch_size} sequences, prompts of {workload.prompt_len} and answers of {workload.gen_len} tokens"
    inside = len(validation.rows) - len(validation.outside)
    words = f"A run of {ran}: {inside} of {len(validation.rows)} figures lie within the bands of their predictions."
    header = ("what", "device", "predicted", "measured", "ratio", "note")
    rows = [_row(row) for row in validation.rows]
    return section("measured", "Predicted against measured", tag("p", words), table("Predicted and measured", header, rows))


def _row(row: "Comparison") -> tuple[str, ...]:
    told = "" if row.is_within else "outside of its band"
    return row.what, row.device, _figure(row, row.predicted), _figure(row, row.measured), f"{row.ratio:.3f}", told


def _figure(row: "Comparison", value: float) -> str:
    return format_bytes(value) if row.unit == "bytes" else format_seconds(value)
