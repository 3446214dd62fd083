"""Transports: messages around the ring, in one process and between two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmpq.errors import BackendError, InputError
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.launcher import free_port
from llmpq.runtime.process_group import Place
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import End, Message, Room, Transport, in_process_ring

ROOT = Path(__file__).parent.parent
PAYLOADS = (
    torch.arange(6, dtype=torch.float32).view(1, 2, 3),
    torch.arange(4, dtype=torch.bfloat16).view(2, 1, 2),
    torch.arange(4, dtype=torch.float64).view(2, 2),
    torch.empty(1, 0, dtype=torch.float64),
    torch.arange(400_000, dtype=torch.float16).view(2, 2, -1),
)


def messages() -> list[Message]:
    """Of every kind; the End comes last."""
    steps = [
        Step(Action("P" if i % 2 else "D", i), 3 * i, (Row(i, 7, 2), Row(9, i, 1))[: 1 + i % 2]) for i in range(len(PAYLOADS))
    ]
    return [Message(Room(4, 5)), *map(Message, steps, PAYLOADS), Message(End())]


def same(one: Message, other: Message) -> bool:
    if one.payload is None or other.payload is None:
        return one.content == other.content and one.payload is other.payload
    return one.content == other.content and one.payload.dtype == other.payload.dtype and torch.equal(one.payload, other.payload)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_ring_hands_messages_to_the_next_stage_in_order(num_stages: int) -> None:
    ring: tuple[Transport, ...] = in_process_ring(num_stages)
    for stage, place in enumerate(ring):
        for message in messages():
            place.send(message)
        received = [ring[(stage + 1) % num_stages].receive() for _ in messages()]
        assert all(same(one, other) for one, other in zip(messages(), received))


def test_reading_what_was_not_sent_is_an_error_and_no_hang() -> None:
    with pytest.raises(BackendError, match="reads a message that was not sent before"):
        in_process_ring(2)[0].receive()


BOTH_WAYS = """
from tests.test_transport import messages, same
from llmpq.runtime.heartbeat import Patience
from llmpq.runtime.process_group import Place, ProcessGroup
group = ProcessGroup(Place.from_environment(), "stage {}".format, 2, patience=Patience(20, 10, 20), row_bytes=ROW_BYTES)
if group.place.rank == 0:
    group.publish("a job")
else:
    assert group.next_job() == "a job"
for _ in range(3):  # both send before either receives
    group.begin()
    for message in messages():
        group.send(message)
    for message in messages():
        assert same(group.receive(), message), message
    group.flush()
group.share("name", f"rank {group.place.rank}")
assert group.shared("name") == ["rank 0", "rank 1"]
group.part()
group.close()
"""


def run_ranks(code: str) -> list[int]:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    places = [{**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": str(ROOT)} for rank in range(2)]
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) for environment in places]
    try:
        return [process.wait(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "row_bytes", [0, 12, 4096], ids=["payloads apart", "those of decode with their headers", "most with them"]
)
def test_two_processes_exchange_every_kind_of_message(row_bytes: int) -> None:
    assert run_ranks(BOTH_WAYS.replace("ROW_BYTES", str(row_bytes))) == [0, 0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("MASTER_ADDR", None, "MASTER_ADDR is not set; start the stages with torchrun"), ("RANK", "first", "must be whole numbers")],
)
def test_an_environment_without_a_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        Place.from_environment()
