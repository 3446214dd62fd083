"""Shares: parts of a batch that one pipeline of several generates, and the programs that plan them."""

from dataclasses import dataclass, field, replace

from llmpq.costs import CostTable, PhaseCosts
from llmpq.costs.kv_blocks import page_size
from llmpq.costs.memory import kv_cache_bytes
from llmpq.costs.profile import by_device, profile_of_dtype
from llmpq.costs.shard import ranks_of, shard
from llmpq.costs.table import micro_batch_sizes, most_rows_of, phase_costs
from llmpq.graph import LayerGraph
from llmpq.planning.candidates import Group
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.planning.option_sets import option_sets
from llmpq.planning.teams import Team
from llmpq.program import Program
from llmpq.workload import Batch

MOST_SHARES = 32  # sizes of a share that are tried: up to there all of them, of a larger batch multiples

Shape = tuple[int, int, int, int]


def share_sizes(batch_size: int) -> tuple[int, ...]:
    """Sequences that a pipeline may be planned for, the whole batch last. It may then be given fewer."""
    step = -(-batch_size // MOST_SHARES)
    return (*range(step, batch_size, step), batch_size)


@dataclass(frozen=True)
class Shares:
    """The program of each share of a batch: the same devices, costs of its own micro-batch sizes."""

    program: Program
    batch: Batch
    phases: dict[Shape, PhaseCosts] = field(default_factory=dict)
    programs: dict[int, Program] = field(default_factory=dict)

    @property
    def part(self) -> LayerGraph:
        """What each device, or each of a group, has of the model."""
        return shard(self.program.graph, ranks_of(self.program.request.cluster.devices))

    def program_of(self, share: int) -> Program:
        """What plans a pipeline for so many sequences."""
        if share not in self.programs:
            request = replace(self.program.request, workload=replace(self.batch, batch_size=share))
            self.programs[share] = replace(self.program, request=request, costs=self._costs(share))
        return self.programs[share]

    def sizes(self, share: int, devices: int) -> tuple[tuple[int, int], ...]:
        """(prefill, decode) micro-batch sizes of a pipeline of so many devices."""
        most_rows = most_rows_of(self.program.request.cluster.devices)
        return micro_batch_sizes(replace(self.batch, batch_size=share), devices, most_rows)

    def groups(self, program: Program, team: Team) -> tuple[Group, ...]:
        """The candidates of a team, of the program of a share."""
        workload = program.request.workload
        assert isinstance(workload, Batch)
        sizes = self.sizes(workload.batch_size, len(team.devices))
        return tuple(Group(team.devices, *pair, options=options) for pair in sizes for options in option_sets(program, *pair))

    def _costs(self, share: int) -> CostTable:
        request, graph, batch = self.program.request, self.part, replace(self.batch, batch_size=share)
        devices, costs = request.cluster.devices, self.program.require("costs")
        pairs = [pair for count in range(1, len(devices) + 1) for pair in self.sizes(share, count)]
        prompt, middle = batch.prompt_len, batch.prompt_len + batch.gen_len // 2
        prefill = [self._phase((rows, prompt, prompt, prompt)) for rows in sorted({p for p, _ in pairs}, reverse=True)]
        decode = [self._phase((rows, 1, middle, batch.kv_len)) for rows in sorted({d for _, d in pairs}, reverse=True)]
        cache = tuple(kv_cache_bytes(kind, batch, page_size(request.engine, devices)) for kind in graph.kinds)
        found: CostTable = replace(costs, prefill=tuple(prefill), decode=tuple(decode), kv_bytes=cache)
        usable = engine_limits(graph, request.cluster, request.precisions, request.engine).usable
        return without_devices(found, usable)

    def _phase(self, shape: Shape) -> PhaseCosts:
        if shape not in self.phases:
            request, dtype = self.program.request, self.program.require("compute_dtype")
            devices, profile = request.cluster.devices, profile_of_dtype(request.profile, dtype)
            profiles = by_device(profile, devices, devices, at_once=True)
            self.phases[shape] = phase_costs(self.part, devices, request.precisions, shape, dtype, request.engine, True, profiles)
        return self.phases[shape]
