"""Candidate: devices in pipeline order and micro-batch sizes, what the assignment problem is asked for."""

from dataclasses import dataclass

from llmpq.planning.option_sets import OptionSet
from llmpq.planning.orders import Order


@dataclass(frozen=True, slots=True)
class Candidate:
    """Devices (indexes into the cluster) in pipeline order, and sequences per prefill and decode micro-batch.

    When serving: the token budget of a step, its decoding sequences, and the batches `in_flight`, one for each stage; as many
    of a batch's micro-batches decode on an engine that knows no other number.
    resident: sequences of a batch that are in the cache at once, the others wait; None: all.
    options: indexes of those that layers may take; None: all.
    """

    order: Order
    prefill_micro_batch: int
    decode_micro_batch: int
    in_flight: int | None = None
    resident: int | None = None
    options: OptionSet = None

    @property
    def running(self) -> int:
        """Sequences that run at once, where the batches in flight are told."""
        return self.decode_micro_batch * (self.in_flight or 1)


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates of the same sizes: these devices, ascending, in any order; more than one may also be left out.

    As many devices are used as batches are in flight, where that is told.
    """

    devices: Order
    prefill_micro_batch: int
    decode_micro_batch: int
    in_flight: int | None = None
    resident: int | None = None
    options: OptionSet = None

    def candidate(self, order: Order | None = None) -> Candidate:
        """Its candidate of that order, of the cluster's own by default."""
        order = self.devices if order is None else order
        return Candidate(order, self.prefill_micro_batch, self.decode_micro_batch, self.in_flight, self.resident, self.options)
