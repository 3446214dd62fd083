"""Figures: an assignment problem as arrays, and its objective as weights of sums and of slowest stages."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.problem import RELATIVE_TOLERANCE, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int32]
    Flags = NDArray[np.uint8]


@dataclass(frozen=True)
class Figures:
    """The problem in arrays; `allowed` [layer, device, option] leaves out unsupported and forbidden cells.

    Objective = sum P + prefill_slowest * max P + decode_sum * sum D + decode_slowest * max D
              + round_trip * max(sum D, micro_batches * max D) + theta * sum of sensitivity.
    """

    problem: Problem
    allowed: "Flags"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Devices, layers, options."""
        return len(self.problem.devices), self.problem.num_layers, len(self.problem.options)

    @cached_property
    def kind(self) -> "Ints":
        return np.array(self.problem.layer_kind, np.int32)

    @cached_property
    def prefill(self) -> "Floats":
        return np.nan_to_num(self.problem.array("prefill_s"))

    @cached_property
    def decode(self) -> "Floats":
        return np.nan_to_num(self.problem.array("decode_s"))

    @cached_property
    def bytes(self) -> "Floats":
        return np.nan_to_num(self.problem.array("layer_bytes"))

    @cached_property
    def capacity(self) -> "Floats":
        return self.problem.array("capacity_bytes")

    @cached_property
    def sensitivity(self) -> "Floats":
        return self.problem.array("sensitivity")

    @cached_property
    def link_prefill(self) -> "Floats":
        return self.problem.array("link_prefill_s")

    @cached_property
    def link_decode(self) -> "Floats":
        return self.problem.array("link_decode_s")

    @cached_property
    def ends(self) -> "Floats":
        """[6, device]: first stage prefill, decode, bytes; last stage prefill, decode, bytes."""
        parts = (self.problem.first_stage, self.problem.last_stage)
        return np.array([row for part in parts for row in (part.prefill_s, part.decode_s, part.bytes)], np.float64)

    @cached_property
    def micro_batches(self) -> float:
        return float(self.problem.decode_micro_batches)

    @cached_property
    def theta(self) -> float:
        return self.problem.theta or 0.0

    @cached_property
    def budget(self) -> float:
        """The most sensitivity that counts as within the budget; infinite without one."""
        budget = self.problem.sensitivity_budget
        return np.inf if budget is None else budget + 0.5 * RELATIVE_TOLERANCE * max(abs(budget), RELATIVE_TOLERANCE)

    @cached_property
    def prefill_slowest(self) -> float:
        return self.problem.prefill_micro_batches - 1.0

    @cached_property
    def decode_sum(self) -> float:
        rounds = {"llm_pq": 1.0, "per_token_flush": self.problem.gen_len - 1.0, "round_trip": 0.0}
        return rounds[self.problem.decode_model]

    @cached_property
    def round_trip(self) -> float:
        return self.problem.gen_len - 1.0 if self.problem.decode_model == "round_trip" else 0.0

    @cached_property
    def decode_slowest(self) -> float:
        """Weight of the slowest decode stage; for a round trip, where nothing but it counts."""
        rounds, micro_batches = self.problem.gen_len - 1.0, self.problem.decode_micro_batches
        return rounds * (micro_batches if self.round_trip else micro_batches - 1.0)
