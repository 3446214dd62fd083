"""What fits: seconds to explain requests that do not, the fixes that are found, and the largest batch and context.

python benchmarks/fit.py [--json FILE]
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
from machine import machine

from llmpq.compiler import plan, prepare
from llmpq.errors import InfeasibleError
from llmpq.planning.limits import max_batch, max_context
from llmpq.serialize import to_json
from llmpq.workload import Batch

RESULTS = Path(__file__).parent / "results" / "fit.json"
CASES: tuple[tuple[str, str, Batch, dict[str, Any]], ...] = (
    ("llama-3-70b", "2xT4", Batch(32, 512, 100), {}),
    ("opt-30b", "3xT4+1xV100-32", Batch(128, 512, 100), {}),
    ("opt-30b", "3xT4+1xV100-32", Batch(32, 512, 100), {"precisions": "16"}),
    ("opt-30b", "3xT4+1xV100-32", Batch(32, 512, 100), {"engine": "vllm"}),
    ("opt-30b", "3xT4+1xV100-32", Batch(45, 512, 100), {"max_ppl_increase": 0.0002}),
    ("opt-30b", "3xT4+1xV100-32", Batch(32, 512, 100), {"constraints": ["layers[0:40].bits >= 16"]}),
    ("llama-3-70b", "4xL4,2xA100-40", Batch(1024, 512, 100), {}),
    ("llama-3-70b", "2xRTX3090+1xRTX4090", Batch(32, 512, 100), {"max_ppl_increase": 0.005}),
)
LIMITS = (("opt-30b", "3xT4+1xV100-32"), ("llama-3-70b", "4xL4,2xA100-40"))


def explain(model: str, cluster: str, workload: Batch, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the request to the last fix, in a process where the model's graph and the tables are loaded."""
    prepare(model, cluster, workload, **{key: value for key, value in options.items() if key != "engine"})
    started = time.perf_counter()
    head = {"model": model, "cluster": cluster, "workload": to_json(workload), "options": options}
    try:
        plan(model, cluster, workload, **options)
    except InfeasibleError as error:
        took = time.perf_counter() - started
        return {**head, "seconds": took, "reasons": list(error.reasons), "fixes": to_json(error.fixes)}
    return {**head, "seconds": time.perf_counter() - started, "reasons": [], "fixes": []}


def limits(model: str, cluster: str) -> dict[str, Any]:
    program = prepare(model, cluster, Batch(32, 512, 100))
    found: dict[str, Any] = {"model": model, "cluster": cluster}
    for name, ask in (("max_batch", max_batch), ("max_context", max_context)):
        started = time.perf_counter()
        found[name] = to_json(ask(program))
        found[f"{name}_seconds"] = time.perf_counter() - started
    return found


@click.command()
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(path: Path) -> None:
    """Explain every case and ask for the limits; a table, and JSON."""
    cases = [explain(*case) for case in CASES]
    for case in cases:
        print(f"{case['model']} on {case['cluster']}, {case['workload']}, {case['options']}: {case['seconds']:.1f} s")
        print(f"  {'; '.join(case['reasons'])}")
        for fix in case["fixes"]:
            print(f"  {fix['change']}: {fix['tokens_per_s']:.4g} tokens/s, +{fix['sensitivity']:.4f} ({fix['how']})")
    asked = [limits(*case) for case in LIMITS]
    for found in asked:
        within = {name: found[name][-1]["largest"] for name in ("max_batch", "max_context")}
        took = f"{found['max_batch_seconds']:.1f} s, {found['max_context_seconds']:.1f} s"
        print(f"{found['model']} on {found['cluster']}: {within}, {took}")
    seconds = sorted(case["seconds"] for case in cases)
    print(f"seconds to explain: median {median(seconds):.1f}, {seconds[0]:.1f} to {seconds[-1]:.1f}")
    report = {"machine": machine(), "cases": cases, "limits": asked}
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
