"""Coverage: every class of transformers' causal language models, traced, cut, run, compiled and loaded; writes docs/coverage.md.

python benchmarks/coverage.py [--only CLASS ...] [--again] [--seconds N]

A forked child per class, so that one which dies or hangs is a row like the others. Rows are kept as they come: a sweep that was
stopped goes on where it was; --again sweeps anew what is named, or what failed.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"
LIMIT_S = 120
STATE_SPACE = "state-space"
UNCUT = "one device only"
STEPS = ("prefill", "decode", "left_padded", "two_stages", "compiled")
COLUMNS = (
    "class",
    "prefill",
    "cached decode",
    "left-padded batch",
    "two stages",
    "compiled and loaded",
    "matrices that can be quantized",
    "engines",
)


def main() -> None:
    options = _options()
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["classes"] if RESULTS.is_file() else {}
    _sweep(rows, options)
    PAGE.write_text(page(rows), encoding="utf-8")
    print(totals(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Coverage of transformers' causal language models.")
    parser.add_argument("--only", nargs="*", default=[], metavar="CLASS")
    parser.add_argument("--again", action="store_true", help="sweep anew what --only names, or what failed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; the next run goes on")
    return parser.parse_args()


def _sweep(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    import coverage_case  # noqa: F401  (children inherit what it imports)
    import torch
    import transformers
    from coverage_models import classes

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.monotonic()
    for name, model_types in classes().items():
        wanted = not options.only or name in options.only
        done = name in rows and not (options.again and (options.only or rows[name]["reasons"]))
        if wanted and not done and time.monotonic() - started < options.seconds:
            rows[name] = _in_child(name, model_types)
            print(f"{name}: {outcome(rows[name])}", flush=True)
            _write(rows)


def _in_child(name: str, model_types: tuple[str, ...]) -> dict[str, Any]:
    """The row of one class, made in a child that may take LIMIT_S seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        os.close(reading)
        _write_case(writing, name, model_types)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status == 0 and text:
        row: dict[str, Any] = json.loads(text)
        return row
    how = f"more than {LIMIT_S} s" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else f"status {status}"
    return {"name": name, "model_types": list(model_types), "reasons": {"sweep": f"the check of this class ended with {how}"}}


def _write_case(writing: int, name: str, model_types: tuple[str, ...]) -> None:
    from coverage_case import check

    with os.fdopen(writing, "w", encoding="utf-8") as pipe:
        json.dump(asdict(check(name, model_types)), pipe)


def _write(rows: dict[str, dict[str, Any]]) -> None:
    import torch
    import transformers
    from coverage_models import classes

    machine = {"machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    RESULTS.parent.mkdir(exist_ok=True)
    value = {"machine": machine, "versions": versions, "count": len(classes()), "classes": dict(sorted(rows.items()))}
    RESULTS.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def outcome(row: dict[str, Any]) -> str:
    """works, or state-space, or fails: and where and why."""
    if not row["reasons"]:
        return "works"
    ((step, reason),) = row["reasons"].items()
    return "state-space" if STATE_SPACE in reason else f"fails, {step}: {reason}"


def totals(rows: dict[str, dict[str, Any]]) -> str:
    """Both ratios over all classes, and the classes by the last step that they pass."""
    outcomes = [outcome(row).split(",")[0] for row in rows.values()]
    count, works, states = len(outcomes), outcomes.count("works"), outcomes.count("state-space")
    exact = sum(all(row[step] == "exact" for step in STEPS) for row in rows.values() if not row["reasons"])
    alone = sum(row["two_stages"] == UNCUT for row in rows.values() if not row["reasons"])
    return (
        f"{works} of {count} classes ({works / count:.1%}) work end to end, {exact} of them bit for bit in every column; "
        f"{states} ({states / count:.1%}) have state-space layers and are refused by that name; {count - works - states} fail. "
        f"{alone} of those that work cannot be cut: one device only. "
        f"Without the state-space classes: {works} of {count - states} ({works / max(1, count - states):.1%})."
    )


def page(rows: dict[str, dict[str, Any]]) -> str:
    """docs/coverage.md: totals, the table of what works, and a reason for each of the others."""
    ordered = [rows[name] for name in sorted(rows)]
    works = [row for row in ordered if not row["reasons"]]
    versions = json.loads(RESULTS.read_text())["versions"]
    return "\n".join(
        (
            "# Coverage of transformers' causal language models",
            "",
            f"Every class of `MODEL_FOR_CAUSAL_LM_MAPPING` of transformers {versions['transformers']}, each with a tiny random",
            f"model, by `python benchmarks/coverage.py` (torch {versions['torch']}); see `benchmarks/results/coverage.json`.",
            "",
            totals(rows),
            *_unswept(rows),
            "",
            *EXPLANATION,
            "",
            "## What works",
            "",
            *_table(COLUMNS, (_cells(row) for row in works)),
            "",
            "## State-space layers: refused",
            "",
            *_table(("class", "model types"), ((row["name"], _types(row)) for row in ordered if outcome(row) == "state-space")),
            "",
            "## What fails, and why",
            "",
            *_table(("class", "step", "reason"), (_failure(row) for row in ordered if outcome(row).startswith("fails"))),
            "",
        )
    )


def _unswept(rows: dict[str, dict[str, Any]]) -> list[str]:
    missing = json.loads(RESULTS.read_text()).get("count", len(rows)) - len(rows)
    return [f"{missing} classes have not been swept yet: run the script again, it goes on where it was."] if missing else []


EXPLANATION = (
    "- prefill, cached decode: logits of the traced graph with our KV cache against the eager model with transformers' own;",
    "  the eager model numbers its tokens itself. `exact`: bit for bit. A figure: the largest difference, relative to the",
    "  largest logit, where sums have fewer terms (transformers' sliding cache drops what the window passed).",
    "  Models that keep no cache compute the whole sequence again at every step, here as in transformers.",
    "- left-padded batch: three sequences of unlike length, prefill and decode.",
    "- two stages: the graph cut by the passes, as near to the middle as it can be cut, against the uncut graph.",
    "  `one device only`: before every layer more than the hidden state would have to be sent (keys and values that layers",
    "  share, embeddings of the ids for every layer, several streams); the planner keeps such layers together.",
    "- compiled and loaded: layers in turn at w8a16 and 16 bits, written to two files, loaded from these and compared with",
    "  the dequantized reference in transformers.",
    "- matrices: of one layer of each kind. Experts that are one 3-D parameter count as one; they are quantized one by one where",
    "  their module is of a known form.",
    "- engines: what loads that output (`vllm` is vLLM on CUDA), by the limits in `docs/engines.md`, not by a run. Shapes this",
    "  small alone keep engines out that load the real model.",
)


def _table(head: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(cells) for cells in body)]
    return [f"| {line} |" for line in lines]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    engines = ", ".join(engine for engine, loads in row["engines"].items() if loads is True)
    return (f"`{row['name']}`", *(row[step] for step in STEPS), row["quantizable"], engines)


def _types(row: dict[str, Any]) -> str:
    return ", ".join(row["model_types"])


def _failure(row: dict[str, Any]) -> tuple[str, ...]:
    ((step, reason),) = row["reasons"].items()
    return f"`{row['name']}`", step, _one_sentence(reason)


def _one_sentence(reason: str) -> str:
    reason = reason.split(" While executing")[0].split(" See the torch.fx docs")[0].replace("|", "\\|")
    return reason if len(reason) <= 240 else f"{reason[:237]}..."


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
