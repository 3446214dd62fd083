"""Certificates: the exact solver's are accepted, against enumeration as well, and every kind of damage is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llmpq.cli import cli
from llmpq.errors import CertificateError, InputError
from llmpq.solver.certificate.build import certify
from llmpq.solver.certificate.check import check_certificate, check_cover
from llmpq.solver.certificate.front import undominated
from llmpq.solver.certificate.incumbent import objective, refusal
from llmpq.solver.certificate.layers import LayerBound
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.value import Certificate, Leaf, Multipliers, Start, load_certificate, problem_digest
from llmpq.solver.certificate.weights import ONE, Weights
from llmpq.solver.problem import Assignment, Problem, evaluate, load_problem
from llmpq.solver.solve import solve
from tests.random_problems import enumerate_optimum, random_problem
from tests.test_house import SOURCES, imports

PLANNING = Path(__file__).parent.parent / "benchmarks" / "data" / "planning"
GAP = 1e-4


def certified(name: str) -> tuple[Problem, Certificate]:
    problem = load_problem(PLANNING / f"{name}.json")
    return problem, certify(problem, best(problem), GAP)


def best(problem: Problem, gap: float = GAP / 4) -> Assignment:
    assignment = solve(problem, gap=gap).assignment
    assert assignment is not None
    return assignment


@pytest.fixture(scope="module")
def example() -> tuple[Problem, Certificate]:
    return certified("L24_N2_s10-c")


@pytest.mark.parametrize("name", ["L24_N2_s12-a", "L24_N2_s10-b", "L24_N4_s12-c", "L24_N4_s12-d", "L48_N4_s10-b", "L48_N4_s10-c"])
def test_the_gap_is_proven_on_problems_of_every_family(name: str) -> None:
    problem, certificate = certified(name)
    proof = check_certificate(problem, certificate)
    assert proof.gap == pytest.approx(GAP, rel=1e-6)
    known = json.loads((PLANNING / f"{name}.json").read_text())["best_known"]["objective"]
    assert proof.bound <= known * (1 + 1e-9) and proof.objective <= known * (1 + GAP)


def test_random_problems_are_certified_at_the_optimum_of_enumeration() -> None:
    feasible = 0
    for seed in range(400, 520):
        problem = random_problem(seed)
        optimum = enumerate_optimum(problem)
        if optimum is None:
            continue
        feasible += 1
        certificate = certify(problem, best(problem, 1e-9), 1e-6)
        proof = check_certificate(problem, certificate)
        assert proof.bound <= optimum <= proof.objective * (1 + 1e-9), seed
        assert check_certificate(problem, by_paths(certificate)).stages == 0, seed
    assert feasible > 40


def by_paths(certificate: Certificate) -> Certificate:
    """With every leaf by stages bounded by its paths instead."""

    def walked(start: Start) -> Start:
        return replace(start, leaves=tuple(replace(leaf, by="paths") if leaf.by == "stages" else leaf for leaf in start.leaves))

    return replace(certificate, starts=tuple(map(walked, certificate.starts)))


def test_a_bound_above_the_optimum_is_never_accepted() -> None:
    refused = 0
    for seed in range(400, 440):
        problem = random_problem(seed)
        if enumerate_optimum(problem) is None:
            continue
        certificate = certify(problem, best(problem, 1e-9), 1e-6)
        if certificate.objective == 0:
            continue
        with pytest.raises(CertificateError):
            check_certificate(problem, replace(certificate, bound=certificate.objective * (1 + 1e-6), gap=0.0))
        with pytest.raises(CertificateError):
            check_certificate(problem, replace(by_paths(certificate), bound=certificate.objective * (1 + 1e-6), gap=0.0))
        refused += 1
    assert refused > 10


def test_an_assignment_that_is_not_within_the_gap_gets_no_certificate() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    worse = best(problem)
    worse = replace(worse, option=(0, *worse.option[1:]))
    assert not evaluate(problem, worse).violations
    assert evaluate(problem, worse).objective > evaluate(problem, best(problem)).objective * (1 + 2 * GAP)
    with pytest.raises(CertificateError, match=r"cannot be split|paths|boxes"):
        certify(problem, worse, GAP)


def without_a_leaf(certificate: Certificate) -> Certificate:
    start = certificate.starts[0]
    return replace(certificate, starts=(replace(start, leaves=start.leaves[1:]), *certificate.starts[1:]))


def with_leaf(certificate: Certificate, by: str, change: Callable[[Multipliers], Multipliers]) -> Certificate:
    start = certificate.starts[0]
    at = next(i for i, leaf in enumerate(start.leaves) if leaf.by == by)
    leaf = replace(start.leaves[at], multipliers=change(start.leaves[at].multipliers))
    return replace(
        certificate, starts=(replace(start, leaves=(*start.leaves[:at], leaf, *start.leaves[at + 1 :])), *certificate.starts[1:])
    )


def with_multipliers_of_nothing(certificate: Certificate) -> Certificate:
    return with_leaf(certificate, "stages", lambda at: Multipliers((0.0,) * 2, (0.0,) * 2, (0.0,) * 2, 0.0, 1.0))


def with_too_large_multipliers(certificate: Certificate) -> Certificate:
    return with_leaf(certificate, "stages", lambda at: replace(at, prefill=tuple(value * 2 + 1 for value in at.prefill)))


def with_a_negative_multiplier(certificate: Certificate) -> Certificate:
    return with_leaf(certificate, "stages", lambda at: replace(at, budget=-1.0))


def with_a_larger_box(certificate: Certificate) -> Certificate:
    start = certificate.starts[0]
    at = next(i for i, leaf in enumerate(start.leaves) if leaf.by == "stages")
    leaf = replace(start.leaves[at], high=(None, None))
    return replace(
        certificate, starts=(replace(start, leaves=(*start.leaves[:at], leaf, *start.leaves[at + 1 :])), *certificate.starts[1:])
    )


def without_a_start(certificate: Certificate) -> Certificate:
    return replace(certificate, starts=certificate.starts[:-1])


def with_a_narrow_listing(certificate: Certificate) -> Certificate:
    start = certificate.starts[0]
    assert start.listing is not None
    listing = replace(start.listing, high=(1e-6, 1e-6))
    return replace(certificate, starts=(replace(start, listing=listing), *certificate.starts[1:]))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_a_leaf, "first device 0: no leaf covers slowest stages of prefill"),
        (without_a_start, "no proof for assignments whose first used device is"),
        (with_multipliers_of_nothing, r"leaf \d+: its multipliers prove .* s, below the bound"),
        (with_too_large_multipliers, "multipliers of prefill add up to"),
        (with_a_negative_multiplier, "the multiplier of the budget is -1.0"),
        (with_a_larger_box, "the box reaches beyond that of the listing"),
        (with_a_narrow_listing, "the box reaches beyond that of the listing"),
        (lambda whole: replace(whole, objective=whole.objective * (1 - 1e-12)), "the assignment has objective"),
        (lambda whole: replace(whole, bound=whole.bound * (1 - 1e-6)), "more than 0.0001 apart"),
        (lambda whole: replace(whole, device=whole.device[::-1]), "infeasible: layer .* comes after layer"),
        (lambda whole: replace(whole, option=(0,) * 24), "infeasible: sensitivity .* exceeds the budget"),
        (lambda whole: replace(whole, device=whole.device[:-1]), "23 devices and 24 options for 24 layers"),
        (lambda whole: replace(whole, option=(9, *whole.option[1:])), "there is no device . with option 9"),
        (lambda whole: replace(whole, problem="0" * 64), "the certificate is of another problem"),
    ],
)
def test_damage_is_refused_with_its_reason(
    example: tuple[Problem, Certificate], damage: Callable[[Certificate], Certificate], reason: str
) -> None:
    problem, certificate = example
    with pytest.raises(CertificateError, match=reason):
        check_certificate(problem, damage(certificate))


def test_an_assignment_that_does_not_fit_is_refused(example: tuple[Problem, Certificate]) -> None:
    problem = replace(example[0], capacity_bytes=(10**9, 10**9))
    with pytest.raises(CertificateError, match=r"infeasible: device . holds \d+ bytes, its capacity is 1000000000"):
        check_certificate(problem, replace(example[1], problem=problem_digest(problem)))


def test_a_path_below_the_bound_is_found(example: tuple[Problem, Certificate]) -> None:
    problem, certificate = example
    assert any(leaf.by == "paths" for start in certificate.starts for leaf in start.leaves)
    walked = by_paths(certificate)
    assert check_certificate(problem, walked).stages == 0
    looser = replace(walked, bound=certificate.objective, gap=0.0)
    with pytest.raises(CertificateError, match=r"a path of stages costs less than the bound|its multipliers prove"):
        check_certificate(problem, looser)


def test_exact_objective_and_feasibility_agree_with_evaluate() -> None:
    for seed in range(60):
        problem = random_problem(seed)
        scaled = Scaled.of(problem)
        for device in range(len(problem.devices)):
            for option in range(len(problem.options)):
                layers = problem.num_layers
                chosen = Assignment((device,) * (layers - 1) + (len(problem.devices) - 1,), (option,) * layers)
                found = evaluate(problem, chosen)
                assert (refusal(scaled, chosen.device, chosen.option) is None) == (not found.violations)
                if not found.violations:
                    assert float(objective(scaled, chosen.device, chosen.option)) == pytest.approx(found.objective, rel=1e-14)


def test_scaling_is_exact() -> None:
    problem = random_problem(7)
    scaled = Scaled.of(problem)
    for kind, table in zip(problem.prefill_s, scaled.prefill):
        for row, whole in zip(kind, table):
            assert [None if x is None else Fraction(x) for x in row] == [
                None if x is None else Fraction(x, scaled.unit) for x in whole
            ]


def test_any_multipliers_bound_every_objective_from_below() -> None:
    checked = 0
    for seed in range(80):
        problem = random_problem(seed)
        optimum, scaled = enumerate_optimum(problem), Scaled.of(problem)
        if optimum is None:
            continue
        devices, trip = scaled.devices, scaled.rounds * scaled.micro_batches
        decode = 0.3 * (0.5 * trip + scaled.slowest_decode) / devices
        price = 0.0 if scaled.budget is None else 0.01
        at = Multipliers((0.9 * scaled.slowest_prefill / devices,) * devices, (decode,) * devices, (1e-4,) * devices, price, 0.5)
        leaf = Leaf((0.0, 0.0), (None, None), "layers", at)
        values = [LayerBound.of(scaled, Weights.of(scaled, leaf, "leaf"), first).value for first in scaled.first_devices()]
        least = min(value for value in values if value is not None)
        assert Fraction(least, ONE * scaled.unit) <= Fraction(optimum) * (1 + Fraction(1, 10**12)), seed
        checked += 1
    assert checked > 30


def test_boxes_that_leave_a_hole_do_not_cover() -> None:
    scaled = Scaled.of(random_problem(0))
    none = Multipliers((), (), (), 0.0, 0.0)

    def start(*boxes: tuple[tuple[float, float], tuple[float | None, float | None]]) -> Start:
        return Start(0, None, tuple(Leaf(low, high, "layers", none) for low, high in boxes))

    corner, right, above = ((0.0, 0.0), (1.0, 2.0)), ((1.0, 0.0), (None, None)), ((0.0, 2.0), (1.0, None))
    check_cover(scaled, start(corner, right, above), "start")
    for boxes in ((corner, right), (corner, above), (right, above), (((0.5, 0.0), (1.0, 2.0)), right, above), ()):
        with pytest.raises(CertificateError, match="no leaf covers slowest stages of prefill"):
            check_cover(scaled, start(*boxes), "start")


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 4), max_size=30))
def test_the_front_is_that_of_comparing_every_pair(rows: list[tuple[int, int, int, int]]) -> None:
    front = undominated(rows)
    assert front == sorted(front) and set(front) <= set(rows)
    for row in rows:
        assert any(all(x <= y for x, y in zip(kept[:3], row[:3])) for kept in front)
    for kept in front:
        assert not any(other[:3] != kept[:3] and all(x <= y for x, y in zip(other[:3], kept[:3])) for other in rows)


def test_only_paths_that_no_other_is_no_worse_than_are_kept() -> None:
    paths = [(1, 5, 5, 0), (2, 4, 6, 0), (2, 6, 4, 0), (3, 5, 5, 0), (3, 4, 6, 0), (4, 3, 3, 0), (5, 4, 4, 0)]
    assert undominated(paths) == [(1, 5, 5, 0), (2, 4, 6, 0), (2, 6, 4, 0), (4, 3, 3, 0)]


def test_beyond_48_layers_and_4_devices_the_weak_dual_is_certified() -> None:
    problem = load_problem(PLANNING / "L48_N8_s10-a.json")
    certificate = certify(problem, best(problem, GAP), GAP)
    proof = check_certificate(problem, certificate)
    assert certificate.kind.startswith("weak dual bound alone")
    assert (proof.stages, proof.paths) == (0, 0) and 0 < proof.gap < 0.2


def test_a_certificate_is_read_back_exactly(example: tuple[Problem, Certificate], tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(example[1].dumps())
    assert load_certificate(path) == example[1]
    path.write_text(example[1].dumps().replace(repr(example[1].bound), "1e999"))
    with pytest.raises(InputError, match="1e999 is no finite number"):
        load_certificate(path)
    path.write_text('{"format": "other"}')
    with pytest.raises(InputError, match="format is 'other', expected 'llmpq-certificate-1'"):
        load_certificate(path)


def test_the_command_writes_a_certificate_and_checks_it(tmp_path: Path) -> None:
    problem, path = str(PLANNING / "L24_N2_s12-c.json"), tmp_path / "certificate.json"
    solved = CliRunner().invoke(cli, ["solve", problem, "--certificate", str(path)])
    assert solved.exception is None and json.loads(solved.stdout)["proven"] and "leaf boxes" in solved.stderr
    checked = CliRunner().invoke(cli, ["solve", problem, "--check", str(path)])
    assert checked.exception is None and checked.stdout.startswith("proven: no assignment is below ")
    path.write_text(path.read_text().replace('"objective":', '"objective":1'))
    both = CliRunner().invoke(cli, ["solve", problem, "--check", str(path), "--certificate", str(path)])
    assert both.exit_code == 2 and "give one of them" in both.output
    refused = CliRunner().invoke(cli, ["solve", problem, "--check", str(path)])
    assert isinstance(refused.exception, CertificateError) and refused.exception.exit_code == 1


def test_the_checker_shares_nothing_with_the_solver_but_the_reading_of_problems() -> None:
    seen, waiting = set[str](), ["llmpq.solver.certificate.check"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += sorted(imports(SOURCES[module], everywhere=True) & set(SOURCES))
    known = {"llmpq", "llmpq.solver", "llmpq.solver.problem", "llmpq.errors", "llmpq.fix", "llmpq.serialize"}
    own = {module for module in seen if module.startswith("llmpq.solver.certificate")}
    assert seen <= known | own
    assert not own & {"llmpq.solver.certificate.build", "llmpq.solver.certificate.tree"}
