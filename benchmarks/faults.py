"""Faults: stages killed, stopped for good or slowed down at seeded moments, and what is left of the run each time.

OMP_NUM_THREADS=1 python benchmarks/faults.py [--cases 200] [--json FILE]

A tiny Llama in fp32 on three CPU stages, forked from one warm process; 6 to 12 prompts in 4 slots. A killed or stopped stage must
be named and what was generated kept, or with recovery all sequences must end as if nothing had happened; a slow stage must be
waited for. After each case no process, no shared memory and no open file may be left over.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table

from llmpq.backends.processes import ProcessesBackend
from llmpq.errors import PeerError
from llmpq.generation import Generation, SamplingParams

RESULTS = Path(__file__).parent / "results" / "faults.json"
KINDS = ("kill", "hang", "slow")
STAGES, SLOTS, NEW_TOKENS = 3, 4, 12
LOST_AFTER_S = 1.0
SLOW_S, SLOW_PERIOD_S = 0.6, 0.1  # a slow stage is stopped every other period for so long
SHARED = ("torch_", "psm_", "pym-")  # what torch and Python call shared memory
Start = Callable[[bool, Callable[[str], None]], ProcessesBackend]  # whether it shall recover, and who is told
Kind = Literal["kill", "hang", "slow"]


@dataclass(frozen=True, slots=True)
class Case:
    """The fault meets `stage` when `after` tokens have come; `recover`: whether the run shall go on without it."""

    seed: int
    kind: Kind
    stage: int
    after: int
    prompts: int
    recover: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """`told_s`: from the fault to the error, or with recovery to the new plan; `problems`: what should not have been."""

    case: Case
    told_s: float | None
    ended: int
    problems: tuple[str, ...]


def draw(seed: int) -> Case:
    """The case of a seed; kinds take turns, every other kill and hang is recovered from."""
    generator = random.Random(seed)
    kind: Kind = ("kill", "hang", "slow")[seed % 3]
    prompts = generator.randrange(6, 13)
    after, recover = generator.randrange(prompts * NEW_TOKENS // 2), kind != "slow" and seed // 3 % 2 == 1
    return Case(seed, kind, generator.randrange(STAGES), after, prompts, recover)


def run(case: Case, start: Start, prompts: Sequence[Sequence[int]], expected: Sequence[Generation]) -> Outcome:
    """Carry a case out; `expected`: what the prompts become without faults."""
    before = leftovers()
    moments: list[float] = []  # of the fault, and of being told
    count = 0

    def on_token(sequence: int, token: int) -> None:
        nonlocal count
        count += 1
        if count == case.after + 1:
            moments.append(time.perf_counter())
            inflict(case.kind, backend.pids[case.stage])

    found: Sequence[tuple[int, ...]] = ()
    ended: Sequence[int] = ()
    lost = None
    with start(case.recover, lambda notice: moments.append(time.perf_counter())) as backend:
        names = [backend.spec.stage_name(stage) for stage in range(STAGES)]
        try:
            generations = backend.generate(prompts[: case.prompts], SamplingParams(NEW_TOKENS), on_token)
            found, ended = [generation.token_ids for generation in generations], range(case.prompts)
        except PeerError as error:
            moments.append(time.perf_counter())
            lost, found, ended = error, error.generated, error.ended
    problems = [*_unexpected(case, lost, names, len(ended)), *_wrong(found, ended, expected[: case.prompts]), *_left(before)]
    told_s = moments[1] - moments[0] if len(moments) > 1 else None
    return Outcome(case, told_s, len(ended), tuple(problems))


def inflict(kind: Kind, pid: int) -> None:
    if kind != "slow":
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        return
    Thread(target=_slow_down, args=(pid, time.monotonic() + SLOW_S), daemon=True).start()


def _slow_down(pid: int, until: float) -> None:
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            for number in (signal.SIGSTOP, signal.SIGCONT):
                os.kill(pid, number)
                time.sleep(SLOW_PERIOD_S / 2)


def leftovers() -> dict[str, set[str]]:
    """What a run may leave behind: children of this process, entries of /dev/shm, open files."""
    own = os.getpid()
    files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    kept = {path for path in files if not path.startswith("/proc/")}
    shared = {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(SHARED)}
    return {"process": {str(pid) for pid in children(own)}, "shared memory": shared, "open file": kept}


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _unexpected(case: Case, lost: PeerError | None, names: Sequence[str], ended: int) -> list[str]:
    """An error where there should be none, none where there should be one, or one that blames another stage."""
    if case.kind == "slow" or case.recover:
        return [] if lost is None else [f"ended with: {lost}"]
    if lost is None:  # a busy parent hears of tokens late: the stages may have been done, and then all must be there
        return [] if ended == case.prompts else ["ended without an error"]
    return [] if lost.rank == case.stage and names[case.stage] in str(lost) else [f"blamed another: {lost}"]


def _wrong(found: Sequence[tuple[int, ...]], ended: Sequence[int], expected: Sequence[Generation]) -> list[str]:
    """Sequences that are not as far as they came what they become without faults."""
    problems = [] if len(found) == len(expected) else [f"{len(found)} sequences of {len(expected)}"]
    for index, (tokens, whole) in enumerate(zip(found, expected)):
        if index in ended and tokens != whole.token_ids:
            problems.append(f"sequence {index} ended with other tokens")
        if tokens != whole.token_ids[: len(tokens)]:
            problems.append(f"sequence {index} has other tokens")
    return problems


def _left(before: dict[str, set[str]]) -> list[str]:
    new = [(what, entry) for what, entries in leftovers().items() for entry in sorted(entries - before[what])]
    return [f"{what} left: {entry}" for what, entry in new if what != "shared memory" or not _is_mapped(entry)]


def _is_mapped(shared: str) -> bool:
    """Whether some process still uses an entry of /dev/shm: none of ours is left by now, so it is another program's."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if f"/dev/shm/{shared}" in maps.read_text():
                return True
    return not (Path("/dev/shm") / shared).exists()


def tiny_model(folder: Path) -> Path:
    """A Llama with random weights, sharp enough to be told apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=256, max_position_embeddings=128, initializer_range=0.2, eos_token_id=None, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        for recover in (False, True):
            own = [o for o in outcomes if o.case.kind == kind and o.case.recover == recover]
            told = sorted(o.told_s for o in own if o.told_s is not None)
            if own:
                times = {"median_s": median(told), "longest_s": told[-1]} if told else {}
                rows.append(
                    {"kind": kind, "recover": recover, "cases": len(own), "failed": sum(bool(o.problems) for o in own)} | times
                )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title="From the fault to the error, or with recovery to the new plan")
    for column in ("fault", "recovery", "cases", "failed", "median", "longest"):
        shown.add_column(column, justify="right")
    for row in rows:
        times = [f"{row[name]:.2f} s" if name in row else "" for name in ("median_s", "longest_s")]
        shown.add_row(row["kind"], "yes" if row["recover"] else "", str(row["cases"]), str(row["failed"]), *times)
    return shown


@click.command(help=__doc__)
@click.option("--cases", type=click.IntRange(1), default=200, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(cases: int, path: Path) -> None:
    import torch
    from machine import machine

    import llmpq

    torch.set_num_threads(1)  # as in the stages, so that all compute the same bits
    with TemporaryDirectory() as folder:
        source, workload = tiny_model(Path(folder) / "model"), llmpq.Batch(SLOTS, 8, NEW_TOKENS)
        rules = [f"layers[{layer}].device == 'CPU:{layer // 2}'" for layer in range(6)]
        options: dict[str, Any] = {"quantizer": "rtn", "indicator": "prior", "quality_check": False, "precisions": ("16",)}
        llmpq.compile(source, "3xCPU", workload, out=Path(folder) / "out", constraints=rules, **options)
        # a recovered run prefills at once what was decoded one by one, which rounds otherwise in 16 bits
        compiled = llmpq.load(Path(folder) / "out").reference()
        generator = random.Random(0)
        prompts = [[generator.randrange(256) for _ in range(generator.randrange(1, 9))] for _ in range(12)]
        with compiled.processes() as backend:
            expected = backend.generate(prompts, SamplingParams(NEW_TOKENS))
        outcomes, started = [], time.perf_counter()
        for seed in range(cases):
            outcomes.append(run(draw(seed), lambda *asked: compiled.processes(*asked, LOST_AFTER_S), prompts, expected))
            if outcomes[-1].problems:
                click.echo(f"{outcomes[-1]}", err=True)
        took = time.perf_counter() - started
    rows = summary(outcomes)
    Console(width=110).print(table(rows))
    found = {"machine": machine(), "seconds": took, "lost_after_s": LOST_AFTER_S, "summary": rows}
    path.write_text(json.dumps(found | {"outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
