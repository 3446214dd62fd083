"""Neighbour: a second process of this machine that computes as another stage would while a device is measured."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from llmpq.costs.profile import Profile
from llmpq.errors import BackendError
from llmpq.frontend.models import resolve
from llmpq.precision import PRECISIONS, Precision
from llmpq.profiling.measure import Keep, Progress
from llmpq.profiling.probe import Probe, Subject
from llmpq.profiling.profiler import measure_points, subject_of
from llmpq.profiling.sizes import Extent
from llmpq.runtime.launcher import LAUNCHER, end_with_launcher

PROCESS = "from llmpq.profiling.neighbour import work; work({model!r}, {precision!r}, {threads})"
READY = "at work"
DECODED = 4  # steps of its for a prompt
ROWS, PROMPT = 4, 64
RESTS = 4  # it rests a fourth of the time that it worked: stages wait for one another


def measure_beside(
    profile: Profile,
    subject: Subject,
    precisions: Sequence[Precision],
    extent: Extent,
    model: str,
    keep: Keep,
    progress: Progress | None = None,
) -> Profile:
    """The profile, its `beside` with what that lacked of the grid; model: what the neighbour runs, at the precision that is
    measured, since one of more bits takes more of the memory's bandwidth. Raises BackendError."""
    each = replace(extent, limit_s=extent.limit_s / len(precisions))
    for precision in precisions:
        profile = _of_precision(profile, subject, precision, each, model, keep, progress)
    return profile


def _of_precision(
    profile: Profile,
    subject: Subject,
    precision: Precision,
    extent: Extent,
    model: str,
    keep: Keep,
    progress: Progress | None,
) -> Profile:
    def with_points(taken: Profile) -> Profile:
        return replace(profile, beside=taken.points)

    begun = replace(profile.alone, points=profile.beside)
    with busy_neighbour(model, precision):
        return with_points(measure_points(begun, subject, (precision,), extent, lambda taken: keep(with_points(taken)), progress))


@contextmanager
def busy_neighbour(model: str, precision: Precision) -> Iterator[None]:
    """It prefills and decodes with random weights of that model until the end. Raises BackendError when it does not begin."""
    code = PROCESS.format(model=model, precision=precision.name, threads=torch.get_num_threads())
    environment = os.environ | {LAUNCHER: str(os.getpid())}  # it ends with this process, and is not interrupted by its Ctrl-C
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            raise BackendError(f"the process that computes beside ended with exit code {process.wait()}; leave --beside out")
        yield
    finally:
        process.kill()
        process.wait()


def work(model: str, precision: str, threads: int) -> None:
    """Until the process is ended."""
    end_with_launcher()
    torch.set_num_threads(threads)
    probe = Probe(subject_of(resolve(model, weights=False), "cpu"), PRECISIONS[precision])
    print(READY, flush=True)
    while True:
        start = time.perf_counter()
        for _ in range(DECODED):
            probe.pass_times(ROWS, 1, PROMPT)
        probe.pass_times(1, PROMPT, PROMPT)
        time.sleep((time.perf_counter() - start) / RESTS)
