"""Infeasible requests: the reasons, and fixes that work when they are planned again from scratch."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmpq.errors import InfeasibleError
from llmpq.fix import Fix
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.fit import asked, fits, least_loss
from llmpq.planning.fixes import find_fixes
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import SensitivityTable, prior
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch
from tests.command_line import CLUSTER
from tests.conftest import CommandLine
from tests.random_programs import best_objective, random_program
from tests.values import llama_graph, program, two_cpus

PREPARE = "derive-costs,estimate-sensitivity{indicator=prior}"
PRICED = """
name: priced
devices:
  - {type: CPU, memory: 650 KiB, speed: 0.5, host: a, price_per_hour: 0.4}
  - {type: T4, host: a, memory: 600 KiB, price_per_hour: 0.3}
"""


def on(
    cluster: Cluster | None = None,
    *rules: str,
    precisions: str = "16,w8a16,w4a16",
    workload: Batch | None = None,
    target: Target | None = None,
    engine: str = "local",
) -> Program:
    workload, target = workload or Batch(4, 32, 16), target or Target()
    plain = program(llama_graph(tied=False), cluster or two_cpus("900 KiB", "900 KiB"), workload, precisions, target)
    return replace(plain, request=replace(plain.request, rules=parse_rules(rules), engine=engine))


SMALL = two_cpus("500 KiB", "450 KiB")
STRICT = Target(1e-5, explicit=True)
CASES: dict[str, tuple[Program, set[str]]] = {
    "devices too small": (on(SMALL), {"memory", "device"}),
    "a batch too large": (on(workload=Batch(64, 32, 16)), {"batch_size", "memory"}),
    "prompts too long": (on(workload=Batch(4, 900, 16)), {"prompt_len", "memory"}),
    "generations too long": (on(workload=Batch(4, 32, 900)), {"gen_len", "memory"}),
    "a cache that is a little too large": (on(workload=Batch(4, 106, 16)), {"cache", "memory"}),
    "16 bits do not fit": (on(two_cpus("900 KiB", "900 KiB"), precisions="16"), {"precisions", "memory", "device"}),
    "a budget that memory breaks": (on(two_cpus("900 KiB", "900 KiB"), target=STRICT), {"budget", "memory"}),
    "a budget below every precision": (on(two_cpus(), precisions="w4a16", target=STRICT), {"budget", "precisions"}),
    "a rule on bits": (on(two_cpus("900 KiB", "900 KiB"), "layers[0:4].bits >= 16"), {"rule", "memory"}),
    "a rule on the layers of a device": (on(two_cpus("2 MiB", "500 KiB"), "device('CPU:1').layers >= 3"), {"rule"}),
    "a rule on the average": (on(None, "average_bits <= 3"), {"rule"}),
    "a count of what is too large": (on(two_cpus("900 KiB", "900 KiB"), "count(16) >= 4"), {"rule", "memory"}),
    "a precision that was not offered": (on(None, "count(w8a8) >= 1"), {"rule", "precisions"}),
    "two rules against each other": (on(None, "layers[0].bits >= 16", "layers[0].bits <= 4"), {"rule"}),
    "a card that the engine has no kernels for": (on(Cluster.load("1xV100-32"), engine="vllm"), {"engine", "device"}),
    "devices with prices": (on(Cluster.from_yaml(PRICED, "priced.yaml")), {"device", "memory"}),
}


@dataclass(frozen=True, slots=True)
class Explained:
    reasons: tuple[str, ...]
    fixes: tuple[Fix, ...]
    programs: tuple[Program, ...]

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(changed.request for changed in self.programs)


def planned(plain: Program) -> Plan:
    plan: Plan = run_passes(plain, parse_pipeline(f"{PREPARE},assign-joint")).require("plan")
    return plan


def explained(plain: Program) -> Explained:
    programs: list[Program] = []

    def plan_again(changed: Program) -> Plan:
        plan: Plan = run_passes(changed, parse_pipeline("derive-costs,assign-joint")).require("plan")
        programs.append(changed)
        return plan

    def estimate(changed: Program) -> SensitivityTable | None:
        return run_passes(changed, parse_pipeline("estimate-sensitivity{indicator=prior}")).sensitivity

    with pytest.raises(InfeasibleError) as caught:
        planned(plain)
    return Explained(caught.value.reasons, find_fixes(plain, plan_again, estimate), tuple(programs))


@pytest.mark.parametrize("what", CASES)
def test_every_infeasible_case_is_explained_with_fixes_that_work(what: str) -> None:
    plain, kinds = CASES[what]
    found = explained(plain)
    assert found.reasons
    assert kinds <= {fix.kind for fix in found.fixes}, found.fixes
    for changed in found.programs:
        again = planned(Program(changed.graph, replace(changed.request, time_limit_s=60.0)))
        assert again.tokens_per_s > 0
    for fix in found.fixes:
        assert fix.tokens_per_s > 0
        assert not plain.request.target.explicit or fix.kind == "budget" or fix.sensitivity <= 1e-5


def test_the_sensitivity_of_a_precision_that_does_not_fit_either_is_not_estimated() -> None:
    plain = program(llama_graph(), two_cpus("24 KiB", "24 KiB"), precisions="16,w4a16")
    asked_for: list[str] = []

    def estimate(changed: Program) -> SensitivityTable | None:
        asked_for.append(",".join(precision.name for precision in changed.request.precisions))
        return prior(changed.graph, changed.request.precisions)

    find_fixes(plain, planned, estimate)
    assert set(asked_for) == {"16,w4a16"}


@pytest.mark.parametrize("what", ["a batch too large", "prompts too long", "generations too long"])
def test_one_more_than_a_fixed_length_does_not_fit(what: str) -> None:
    plain, _ = CASES[what]
    found = explained(plain)
    for fix, request in zip(found.fixes, found.requests, strict=True):
        if fix.kind in ("batch_size", "prompt_len", "gen_len"):
            more = replace(request.workload, **{fix.kind: getattr(request.workload, fix.kind) + 1})
            with pytest.raises(InfeasibleError):
                planned(Program(plain.graph, replace(request, workload=more)))


def test_a_little_less_memory_than_the_fix_does_not_fit() -> None:
    plain, _ = CASES["devices too small"]
    found = explained(plain)
    request = next(request for fix, request in zip(found.fixes, found.requests) if fix.kind == "memory")
    changed = [(a, b) for a, b in zip(plain.request.cluster.devices, request.cluster.devices) if a != b]
    assert len(changed) == 1
    less = replace(changed[0][1], memory_bytes=changed[0][1].memory_bytes - 2**16)
    devices = tuple(less if device == changed[0][1] else device for device in request.cluster.devices)
    with pytest.raises(InfeasibleError):
        planned(Program(plain.graph, replace(request, cluster=replace(request.cluster, devices=devices))))


def test_the_nearest_weaker_rule_is_offered_and_not_merely_its_absence() -> None:
    plain, _ = CASES["a rule on the layers of a device"]
    (fix,) = [fix for fix in explained(plain).fixes if fix.kind == "rule"]
    assert fix.how == "--constraint \"device('CPU:1').layers >= 1\""


def test_the_cheapest_device_of_the_cluster_is_added_and_its_price_told() -> None:
    plain, _ = CASES["devices with prices"]
    (fix,) = [fix for fix in explained(plain).fixes if fix.kind == "device"]
    assert "one more T4" in fix.change
    assert "at 0.3 an hour" in fix.change


def test_what_fits_has_no_fixes() -> None:
    ready = run_passes(on(), parse_pipeline(PREPARE))
    assert find_fixes(ready, planned, lambda changed: None) == ()


def test_fit_is_what_enumeration_finds() -> None:
    found = 0
    for seed in range(20):
        ready = random_program(seed)
        target = replace(ready.request.target, explicit=True)
        ready = replace(ready, request=replace(ready.request, target=target))
        bytes_alone = asked(ready, ready.request)
        assert fits(bytes_alone) == (best_objective(ready, target.budget) is not None), seed
        found += fits(bytes_alone)
    assert 0 < found < 20


def test_the_least_loss_keeps_the_budget_and_fits() -> None:
    for seed in range(10):
        ready = random_program(seed, Target(None))
        loss = least_loss(asked(ready, ready.request))
        if loss is None:
            continue
        exactly = replace(ready, request=replace(ready.request, target=Target(loss * (1 + 1e-9) + 1e-12, explicit=True)))
        below = replace(ready, request=replace(ready.request, target=Target(loss * 0.999 - 1e-12, explicit=True)))
        assert fits(exactly)
        assert not fits(below)


Run = Callable[..., object]


def test_the_options_that_a_fix_names_make_the_command_succeed(cli: CommandLine, tmp_path: Path) -> None:
    command = ("plan", "demo", "-c", CLUSTER, "--prompt-len", "64", "--gen-len", "32", "--indicator", "prior", "--json")
    asked_for = {"--batch-size": "12", "--precisions": "16", "--constraint": "device('CPU:1').layers >= 9"}
    outcome = cli(*command, *(part for option in asked_for.items() for part in option))
    assert outcome.code == 3
    answer = json.loads(outcome.out)
    assert answer["plan"] is None
    assert answer["reasons"]
    for fix in answer["fixes"]:
        option, _, value = fix["how"].partition(" ")
        if option in ("--precisions", "--batch-size"):
            changed = asked_for | {option: value}
            assert cli(*command, *(part for item in changed.items() for part in item)).code == 0, fix


def test_the_fixes_are_printed_below_each_other(cli: CommandLine) -> None:
    outcome = cli("plan", "demo", "-c", CLUSTER, "--prompt-len", "64", "--indicator", "prior", "--batch-size", "64")
    assert outcome.code == 3
    assert "Any one of these makes it fit" in outcome.out
    assert "--batch-size" in outcome.out
    assert outcome.err.startswith("llmpq: no plan exists: CPU:")
