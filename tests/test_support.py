"""Support matrix: the contract of every cell, and the cells that decide plans."""

from dataclasses import replace
from itertools import product

import pytest

from llmpq.errors import InputError
from llmpq.hardware.devices import DeviceType, device_types
from llmpq.hardware.support import compute_dtype, engines, support, supported_precisions
from llmpq.precision import PRECISIONS

ALL = tuple(PRECISIONS.values())
TYPES = device_types()


def names(engine: str, device: str) -> str:
    return " ".join(precision.name for precision in supported_precisions(engine, TYPES[device], ALL))


def test_the_engines_of_the_design_are_there() -> None:
    assert set(engines()) == {"local", "vllm", "transformers", "llama.cpp"}


@pytest.mark.parametrize(
    ("engine", "device_type"),
    list(product(engines(), TYPES.values())),
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_cell_answers_with_a_reason_and_a_source(engine: str, device_type: DeviceType) -> None:
    answers = [support(engine, device_type, precision) for precision in ALL]
    assert {answer.level for answer in answers} <= {"native", "dequantize", "unsupported"}
    assert all(answer.reason and answer.source for answer in answers)


@pytest.mark.parametrize("device", list(TYPES))
def test_the_own_runtime_runs_all_that_can_be_quantized_everywhere(device: str) -> None:
    assert names("local", device) == "16 w8a8 w8a16 w4a16 w3a16 fp8"


@pytest.mark.parametrize(
    ("engine", "device", "expected"),
    [
        ("vllm", "V100-32", ""),
        ("vllm", "P100-16", ""),
        ("vllm", "T4", "16 w8a8 w8a16 w4a16 fp8"),
        ("vllm", "B200", "16 w8a16 w4a16 fp8"),
        ("vllm", "RTX5090", "16 w8a16 w4a16 fp8"),
        ("vllm", "CPU", "16 w8a8 w8a16 w4a16 fp8"),
        ("vllm", "MI300X", "16 w8a8 w4a16 fp8"),
        ("vllm", "MI250X", "16 w8a8 w4a16"),
        ("llama.cpp", "P100-16", "16 w8a16 w4a16"),
        ("transformers", "A100-40", "16 w8a8 w8a16 w4a16 fp8"),
    ],
)
def test_engines_run_what_their_sources_say(engine: str, device: str, expected: str) -> None:
    assert names(engine, device) == expected


@pytest.mark.parametrize(
    ("engine", "device", "precision", "level"),
    [
        ("local", "A100-40", "16", "native"),
        ("local", "A100-40", "w4a16", "dequantize"),
        ("vllm", "T4", "fp8", "dequantize"),
        ("vllm", "A100-40", "fp8", "dequantize"),
        ("vllm", "L4", "fp8", "native"),
        ("vllm", "CPU", "w8a16", "dequantize"),
        ("vllm", "CPU", "w4a16", "native"),
        ("vllm", "CPU", "w8a8", "native"),
        ("vllm", "T4", "w8a8", "native"),
        ("transformers", "T4", "w4a16", "dequantize"),
    ],
)
def test_levels_tell_kernels_from_dequantization(engine: str, device: str, precision: str, level: str) -> None:
    assert support(engine, TYPES[device], PRECISIONS[precision]).level == level


@pytest.mark.parametrize("engine", ["local", "transformers"])
def test_cards_that_new_torch_builds_left_behind_are_told_which_build_to_use(engine: str) -> None:
    assert "cu126" in support(engine, TYPES["V100-16"], PRECISIONS["16"]).reason
    assert "cu126" not in support(engine, TYPES["T4"], PRECISIONS["16"]).reason


def test_a_type_that_lists_its_precisions_runs_no_others() -> None:
    picky = replace(TYPES["A100-40"], name="PICKY", precisions=("16", "w8a16"), source="my.yaml")
    assert [precision.name for precision in supported_precisions("vllm", picky, ALL)] == ["16", "w8a16"]
    answer = support("vllm", picky, PRECISIONS["w4a16"])
    assert (answer.reason, answer.source) == ("the precisions listed for PICKY are 16, w8a16", "my.yaml")


@pytest.mark.parametrize(
    ("devices", "engine", "dtype"),
    [
        (("A100-40", "L4"), "vllm", "bfloat16"),
        (("A100-40", "T4"), "vllm", "float16"),
        (("CPU", "CPU"), "local", "bfloat16"),
        (("CPU", "V100-16"), "local", "float16"),
        (("A100-40",), "llama.cpp", "float16"),
    ],
)
def test_one_device_without_bf16_makes_the_plan_fp16(devices: tuple[str, ...], engine: str, dtype: str) -> None:
    assert compute_dtype(tuple(TYPES[name] for name in devices), engine) == dtype


def test_an_unknown_engine_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"engine 'vlm' is unknown; known are .*; did you mean 'vllm'"):
        support("vlm", TYPES["T4"], PRECISIONS["16"])
    with pytest.raises(InputError, match="engine 'vlm' is unknown"):
        compute_dtype((TYPES["T4"],), "vlm")
