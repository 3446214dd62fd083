"""What-if: the best plan on other hardware, a row per alternative, the cluster as it is first."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmpq.answers.cluster_changes import ClusterChange
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.planning.costing import costed
from llmpq.planning.fit import asked, fits
from llmpq.planning.joint import joint_plan
from llmpq.planning.largest import largest
from llmpq.planning.limits import LARGEST_BATCH
from llmpq.program import Program, Target
from llmpq.workload import Batch, with_length

BASELINE = "as it is"
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best plan with one change; figures are None where there is no plan (`reason`) or nobody knows them.

    price_per_hour: of the whole cluster, idle devices too; tokens_per_unit: tokens for one unit of that currency.
    concurrency: the largest batch that fits within the same loss, or the sequences that are served at once.
    used: devices of the plan; plan: itself.
    """

    change: str
    tokens_per_s: float | None
    price_per_hour: float | None
    tokens_per_unit: float | None
    sensitivity: float | None
    kept: bool
    concurrency: int | None
    used: tuple[str, ...]
    proven: bool
    plan: Plan | None = None
    reason: str | None = None


def whatif(program: Program, changes: Iterable[ClusterChange]) -> tuple[Outcome, ...]:
    """The program's own cluster, then every change, each planned for the same request. The program has its sensitivity."""
    cluster = program.request.cluster
    return tuple(_outcome(program, change) for change in (ClusterChange(BASELINE, cluster), *changes))


def _outcome(program: Program, change: ClusterChange) -> Outcome:
    price = price_per_hour(change.cluster)
    request = replace(program.request, cluster=change.cluster)
    try:
        planned = joint_plan(costed(replace(program, request=request, plan=None, notices=())))
    except (InfeasibleError, TimeLimitError) as error:
        reason = error.reasons[0] if isinstance(error, InfeasibleError) else str(error)
        return Outcome(change.words, None, price, None, None, False, None, (), False, None, reason)
    plan: Plan = planned.require("plan")
    budget = program.request.target.budget
    return Outcome(
        change=change.words,
        tokens_per_s=plan.tokens_per_s,
        price_per_hour=price,
        tokens_per_unit=None if not price else plan.tokens_per_s * SECONDS_PER_HOUR / price,
        sensitivity=plan.quality.sensitivity,
        kept=budget is None or plan.quality.sensitivity <= budget * (1 + 1e-9),
        concurrency=concurrency(planned),
        used=tuple(stage.device for stage in plan.stages),
        proven=plan.optimality.proven,
        plan=plan,
    )


def price_per_hour(cluster: Cluster) -> float | None:
    """Of all devices together; None where one has no price."""
    prices = [device.price_per_hour for device in cluster.devices]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def concurrency(program: Program) -> int | None:
    """Sequences served at once by the plan; of a batch the largest that fits within the plan's budget, None if nobody knows."""
    plan: Plan = program.require("plan")
    if not isinstance(plan.workload, Batch):
        return plan.load.running
    request = replace(program.request, target=Target(plan.quality.budget, explicit=True))

    def holds(size: int) -> bool:
        workload = with_length(request.workload, "batch_size", size)
        return fits(asked(program, replace(request, workload=workload)))

    try:
        return largest(holds, plan.workload.batch_size, LARGEST_BATCH)
    except TimeLimitError:
        return None
