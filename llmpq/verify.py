"""The verifier: what must hold of a program after every pass."""

from llmpq.errors import VerifyError
from llmpq.plan import Plan
from llmpq.precision import PRECISIONS
from llmpq.program import Program


def verify_program(program: Program, after: str) -> None:
    """Raises VerifyError, naming the pass, when a value contradicts itself or its neighbours."""
    problems = []
    if program.plan is not None:
        problems += plan_problems(program.plan, program)
    if program.sensitivity is not None and len(program.sensitivity.rows) != program.graph.num_layers:
        problems.append(f"sensitivity has {len(program.sensitivity.rows)} rows for {program.graph.num_layers} layers")
    if program.stages is not None and program.plan is not None and len(program.stages) != len(program.plan.stages):
        problems.append(f"{len(program.stages)} stage modules for {len(program.plan.stages)} stages of the plan")
    if problems:
        raise VerifyError(f"after pass {after}: {'; '.join(problems)}")


def plan_problems(plan: Plan, program: Program) -> list[str]:
    """Every layer once and in order, known devices, allowed options, memory within capacity, micro-batches that divide."""
    problems = []
    layers = [layer for stage in plan.stages for layer in stage.layers]
    if layers != list(range(program.graph.num_layers)):
        problems.append(f"the stages hold layers {layers}, not each of 0..{program.graph.num_layers - 1} once and in order")
    devices = [stage.device for stage in plan.stages]
    known = [device.name for device in program.request.cluster.devices]
    problems += [f"stage device {device!r} is not in the cluster" for device in devices if device not in known]
    if len(set(devices)) != len(devices):
        problems.append(f"a device holds more than one stage: {', '.join(devices)}")
    problems += [f"option {option!r} is unknown" for option in sorted(set(plan.options)) if option not in PRECISIONS]
    problems += [
        f"{memory.device} needs {memory.total} bytes and has {memory.capacity}"
        for memory in plan.prediction.memory
        if memory.total > memory.capacity
    ]
    pipeline = plan.pipeline
    if pipeline.decode_micro_batch % pipeline.prefill_micro_batch:
        problems.append(
            f"prefill micro-batch {pipeline.prefill_micro_batch} does not divide decode micro-batch {pipeline.decode_micro_batch}"
        )
    return problems
