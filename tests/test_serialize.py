"""Serialization: loads(dumps(x)) == x, and what is said of JSON that does not fit."""

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.plan import DeviceMemory, Optimality, Stage
from llmpq.serialize import dumps, loads
from llmpq.workload import Batch
from tests.values import llama_graph

TEXT = st.text(max_size=8)
BYTES = st.integers(0, 2**50)
SECONDS = st.floats(0, 1e6)


@given(st.builds(Batch, st.integers(1, 99), st.integers(1, 99), st.integers(1, 99)))
def test_workloads_round_trip(value: Batch) -> None:
    assert loads(Batch, dumps(value)) == value


@given(st.builds(Stage, TEXT, st.integers(0, 99), st.lists(TEXT, max_size=4).map(tuple)))
def test_stages_round_trip(value: Stage) -> None:
    assert loads(Stage, dumps(value)) == value


@given(st.builds(Optimality, SECONDS, st.none() | SECONDS, st.booleans(), TEXT))
def test_optional_fields_round_trip(value: Optimality) -> None:
    assert loads(Optimality, dumps(value)) == value


@given(st.builds(DeviceMemory, TEXT, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES))
def test_memory_round_trips(value: DeviceMemory) -> None:
    assert loads(DeviceMemory, dumps(value)) == value


@pytest.mark.parametrize("tied", [True, False])
def test_a_layer_graph_round_trips(tied: bool) -> None:
    graph = llama_graph(tied=tied)
    assert loads(type(graph), dumps(graph)) == graph


@dataclass(frozen=True, slots=True)
class Sample:
    kind: Literal["a", "b"]
    size: int
    pair: tuple[int, float] = (1, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "sample: not JSON"),
        ("[]", "expected an object"),
        ('{"kind": "c", "size": 1}', r"sample.kind: found 'c', expected one of 'a', 'b'"),
        ('{"kind": "a", "size": "1"}', r"sample.size: found '1', expected int"),
        ('{"kind": "a", "size": true}', r"sample.size: found True, expected int"),
        ('{"kind": "a", "size": 1, "sise": 2}', "unknown key 'sise'"),
        ('{"kind": "a"}', "sample: no 'size'; found 'kind'"),
        ("{}", "sample: no 'kind', 'size'; found an empty object"),
        ('{"kind": "a", "size": 1, "pair": [1]}', "found 1 entries, expected 2"),
        ('{"kind": "a", "size": 1, "pair": 3}', "expected a list"),
    ],
)
def test_json_that_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loads(Sample, text, "sample")
