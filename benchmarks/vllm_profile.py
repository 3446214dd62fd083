"""vLLM's steps: predicted by a profile of a few layers beside measured on the whole model, off the grid of the profile.

python benchmarks/vllm_profile.py [--python PATH] [--full] [--layers 16] [--rounds 3] [--json FILE]
"""

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.costs.profile import Profile
from llmpq.costs.step import Step
from llmpq.frontend.models import ModelSource
from llmpq.precision import PRECISIONS, Precision, parse_precisions
from llmpq.profiling.sizes import VLLM_FULL, VLLM_QUICK, Size
from llmpq.profiling.vllm_model import Arrangement
from llmpq.profiling.vllm_profiler import VllmSubject, profile_in_vllm, vllm_subject

MEASURED = parse_precisions("16,w8a8,w4a16")
MIXED = "all three"  # in runs, as a plan has them
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
STEPS = {
    "prefill": (Size(1, 48, 48), Size(2, 100, 100), Size(1, 350, 350)),
    "decode": (Size(3, 1, 100), Size(8, 1, 64), Size(12, 1, 200), Size(24, 1, 160)),
    "mixed": (Size(1, 40, 40, 6, 100), Size(1, 100, 100, 12, 200), Size(2, 96, 96, 20, 150)),
}
PASSES = 2  # of a step in a round, after one that warms up
RESULTS = Path(__file__).parent / "results" / "vllm_profile.json"


@dataclass(frozen=True)
class Row:
    """Seconds of a step of the whole model at a precision: predicted, and of every pass in every round."""

    precision: str
    kind: str
    step: Size
    predicted_s: float
    measured_s: tuple[float, ...]
    is_within: bool

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return statistics.median(self.measured_s) / self.predicted_s


def subject_of(folder: Path, layers: int, python: str | None) -> VllmSubject:
    """A Llama of that many layers without weights."""
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return vllm_subject(ModelSource("llama-1024", config=path), python)


def options_of(name: str, layers: int) -> tuple[Precision, ...]:
    if name != MIXED:
        return (PRECISIONS[name],) * layers
    return tuple(MEASURED[layer * len(MEASURED) // layers] for layer in range(layers))


def predicted_s(profile: Profile, subject: VllmSubject, options: tuple[Precision, ...], size: Size) -> float:
    """Of a whole step on one device of the profiled speed."""
    device, graph = subject.cluster.devices[0], subject.graph
    step = Step(size.rows, size.context) if size.tokens == 1 else step_with_prompts(size)
    layers = [profile.layer_s(device, graph.kinds[0], precision, step) for precision in options]
    ends = profile.ends_s(device, graph, step)
    assert ends is not None
    return sum(ends) + sum(seconds for seconds in layers if seconds is not None)


def step_with_prompts(size: Size) -> Step:
    return Step(size.decoding, size.decode_context, size.rows, size.tokens, size.context)


def rows_of(profile: Profile, subject: VllmSubject, name: str, rounds: int) -> list[Row]:
    """All steps in every round, in one process: other work on the machine rarely lasts for all rounds."""
    options = options_of(name, subject.graph.num_layers)
    arrangement = Arrangement(subject.graph, options)
    sizes = [size for several in STEPS.values() for size in several]
    seconds: dict[Size, list[float]] = {size: [] for size in sizes}
    with TemporaryDirectory() as folder, subject.opened(arrangement, sizes, Path(folder)) as probe:
        for size in sizes * rounds:
            probe.step_times(**asdict(size))  # warms up
            seconds[size] += [probe.step_times(**asdict(size)).total_s for _ in range(PASSES)]
    low, high = profile.band
    found = []
    for kind, several in STEPS.items():
        for size in several:
            predicted = predicted_s(profile, subject, options, size)
            ratio = statistics.median(seconds[size]) / predicted
            found.append(Row(name, kind, size, predicted, tuple(seconds[size]), low <= ratio <= high))
    return found


def summary_of(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """By kind of step and by precision."""
    groups = {kind: [row for row in rows if row.kind == kind] for kind in STEPS}
    groups |= {name: [row for row in rows if row.precision == name] for name in dict.fromkeys(row.precision for row in rows)}
    groups["all"] = rows
    found = {}
    for name, own in groups.items():
        ratios = [row.ratio for row in own]
        found[name] = {
            "steps": len(own),
            "median_ratio": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4, method="inclusive")[::2],
            "median_error": statistics.median(abs(ratio - 1) for ratio in ratios),
            "largest_error": max(abs(ratio - 1) for ratio in ratios),
            "within_band": sum(row.is_within for row in own),
        }
    return found


@click.command()
@click.option("--python", help="The interpreter that has vLLM; by default the one of `make engines`.")
@click.option("--full", is_flag=True, help="The full grid instead of the quick one.")
@click.option("--layers", type=click.IntRange(3), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), default=RESULTS, show_default="results/vllm_profile.json")
def main(python: str | None, full: bool, layers: int, rounds: int, out: Path) -> None:
    """Profile first, then every precision and a mixture."""
    with TemporaryDirectory() as folder:
        subject = subject_of(Path(folder), layers, python)
        profile = profile_in_vllm(subject, MEASURED, VLLM_FULL if full else VLLM_QUICK, lambda found: None, with_link=False)
        names = (*(precision.name for precision in MEASURED), MIXED)
        rows = [row for name in names for row in rows_of(profile, subject, name, rounds)]
    table = Table("steps of", "steps", "median ratio", "quartiles", "median |error|", "largest", "within band")
    summary = summary_of(rows)
    for name, of in summary.items():
        low, high = of["quartiles"]
        errors = (f"{of['median_error']:.1%}", f"{of['largest_error']:.1%}")
        table.add_row(
            name, str(of["steps"]), f"{of['median_ratio']:.3f}", f"{low:.3f}-{high:.3f}", *errors, str(of["within_band"])
        )
    Console().print(table)
    Console().print("band: {:.0%} to {:.0%}".format(*profile.band))
    points = Counter(point.precision for point in profile.points)
    told: dict[str, Any] = {
        "machine": machine(),
        "vllm": dict(profile.machine.versions),
        "model": CONFIG | {"num_hidden_layers": layers},
    }
    told |= {"rounds": rounds, "grid": "full" if full else "quick", "points": points, "band": profile.band}
    out.write_text(json.dumps(told | {"summary": summary, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
