"""Checker: what a certificate proves, over integers; it shares the reading of problems with the solver and nothing else."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from llmpq.errors import CertificateError
from llmpq.solver.certificate.boxes import StageBox, TooManyPathsError
from llmpq.solver.certificate.incumbent import objective, refusal
from llmpq.solver.certificate.layers import LayerBound
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.stages import Stage, StageLister
from llmpq.solver.certificate.value import Certificate, Leaf, Start, problem_digest
from llmpq.solver.certificate.weights import ONE, Weights
from llmpq.solver.problem import Problem


@dataclass(frozen=True, slots=True)
class Proof:
    """What was checked: no objective is below `bound`, the assignment has `objective`, seconds; leaves by kind, stages listed."""

    objective: float
    bound: float
    gap: float
    layers: int
    stages: int
    paths: int
    listed: int

    @property
    def text(self) -> str:
        counts = f"{self.layers} leaves by layers, {self.stages} by stages, {self.paths} by paths; {self.listed} stages listed"
        claim = f"no assignment is below {self.bound!r} s; the one given has {self.objective!r} s"
        return f"proven: {claim}, so it is within {self.gap:.3g} of the optimum ({counts})"


def check_certificate(problem: Problem, certificate: Certificate) -> Proof:
    """Raises CertificateError with the first thing that fails.

    1. The assignment is feasible and its exact objective, rounded to the nearest float, is the one claimed.
    2. The bound is at least objective * (1 - gap).
    3. Every device that may be the first used one has a start, whose leaves cover every pair of slowest stages.
    4. In every leaf no assignment is below the bound.
    """
    digest = problem_digest(problem)
    if certificate.problem != digest:
        raise CertificateError(f"the certificate is of another problem: sha256 {certificate.problem}, expected {digest}")
    scaled = Scaled.of(problem)
    exact = _checked_objective(scaled, certificate)
    _check_gap(certificate)
    missing = set(scaled.first_devices()) - {start.first for start in certificate.starts}
    if missing:
        raise CertificateError(f"no proof for assignments whose first used device is {problem.devices[min(missing)]}")
    listed = 0
    for start in certificate.starts:
        name = f"first device {start.first}"
        if start.first not in scaled.first_devices():
            raise CertificateError(f"{name}: no assignment starts there; expected one of {list(scaled.first_devices())}")
        check_cover(scaled, start, name)
        checker = StartChecker.of(scaled, start, Fraction(certificate.bound), exact, name)
        listed += len(checker.listed)
        for number, leaf in enumerate(start.leaves):
            checker.check(leaf, f"{name}, leaf {number}")
    kinds = Counter(leaf.by for start in certificate.starts for leaf in start.leaves)
    gap = float((exact - Fraction(certificate.bound)) / abs(exact)) if exact else 0.0
    claims = certificate.objective, certificate.bound, gap
    return Proof(*claims, kinds["layers"], kinds["stages"], kinds["paths"], listed)


def _checked_objective(scaled: Scaled, certificate: Certificate) -> Fraction:
    reason = refusal(scaled, certificate.device, certificate.option)
    if reason is not None:
        raise CertificateError(f"the assignment is infeasible: {reason}")
    exact = objective(scaled, certificate.device, certificate.option)
    if float(exact) != certificate.objective:
        raise CertificateError(
            f"the assignment has objective {float(exact)!r} s, the certificate claims {certificate.objective!r} s"
        )
    return exact


def _check_gap(certificate: Certificate) -> None:
    claimed, bound = Fraction(certificate.objective), Fraction(certificate.bound)
    if claimed - bound > Fraction(certificate.gap) * abs(claimed):
        raise CertificateError(
            f"bound {certificate.bound!r} s and objective {certificate.objective!r} s are more than {certificate.gap:g} apart"
        )


def check_cover(scaled: Scaled, start: Start, where: str) -> None:
    """The leaves cover every slowest prefill and decode stage from 0 on."""
    boxes = [(tuple(map(scaled.up, leaf.low)), tuple(map(scaled.up, leaf.high))) for leaf in start.leaves]
    edges = sorted({0, *(low[0] or 0 for low, _ in boxes), *(high[0] for _, high in boxes if high[0] is not None)})
    for edge in (edge for edge in edges if edge >= 0):
        strip = sorted(
            ((low[1] or 0, high[1]) for low, high in boxes if (low[0] or 0) <= edge and (high[0] is None or edge < high[0])),
            key=lambda part: part[0],
        )
        reached: int | None = 0
        for low, high in strip:
            if reached is not None and low <= reached:
                reached = None if high is None else max(reached, high)
        if reached is not None:
            at = f"prefill {edge / scaled.unit:.9g} s, decode {reached / scaled.unit:.9g} s"
            raise CertificateError(f"{where}: no leaf covers slowest stages of {at}")


@dataclass(frozen=True, slots=True)
class StartChecker:
    """Checks the leaves of one first used device; bound and objective in units of Weights, the bound rounded up."""

    scaled: Scaled
    start: Start
    bound: int
    room: int
    box: Weights | None
    listed: list[Stage]

    @staticmethod
    def of(scaled: Scaled, start: Start, bound: Fraction, exact: Fraction, where: str) -> "StartChecker":
        unit = ONE * scaled.unit
        cutoff, room = -int(-bound * unit // 1), max(0, int((exact - bound) * unit))
        if start.listing is None:
            return StartChecker(scaled, start, cutoff, room, None, [])
        weights = Weights.of(scaled, start.listing, f"{where}, listing")
        listed = StageLister(LayerBound.of(scaled, weights, start.first), cutoff).run()
        return StartChecker(scaled, start, cutoff, room, weights, listed)

    def check(self, leaf: Leaf, where: str) -> None:
        """Raises CertificateError unless no assignment in the leaf is below the bound."""
        weights = Weights.of(self.scaled, leaf, where)
        if leaf.by == "layers":
            self._check_value(LayerBound.of(self.scaled, weights, self.start.first).value, where)
            return
        if self.box is None or not _inside(weights, self.box):
            raise CertificateError(f"{where}: the box reaches beyond that of the listing, so its stages are not known")
        box = StageBox.of(self.scaled, weights, self.start.first, self.listed)
        if leaf.by == "stages":
            self._check_value(box.value(), where)
            return
        try:
            proven = box.paths_above(self.bound, self.room)
        except TooManyPathsError as error:
            raise CertificateError(f"{where}: too many paths to walk; split the box") from error
        if not proven:
            raise CertificateError(f"{where}: a path of stages costs less than the bound")

    def proves(self, leaf: Leaf) -> bool:
        try:
            self.check(leaf, "leaf")
        except CertificateError:
            return False
        return True

    def _check_value(self, value: int | None, where: str) -> None:
        if value is not None and value < self.bound:
            unit = ONE * self.scaled.unit
            raise CertificateError(
                f"{where}: its multipliers prove {value / unit!r} s, below the bound of {self.bound / unit!r} s"
            )


def _inside(inner: Weights, outer: Weights) -> bool:
    def ends_by(high: int | None, limit: int | None) -> bool:
        return limit is None or (high is not None and high <= limit)

    low = all(a >= b for a, b in zip(inner.low, outer.low))
    return low and all(ends_by(a, b) for a, b in zip(inner.high, outer.high))
