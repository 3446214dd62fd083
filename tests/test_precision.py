"""Precision: names, group sizes, bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.precision import PRECISIONS, parse_precision, parse_precisions


@pytest.mark.parametrize(
    ("in_features", "size"), [(4096, 128), (192, 64), (96, 32), (100, 100), (60, 60), (14336, 128), (7, 7), (172, 86)]
)
def test_group_size_is_one_that_kernels_know_where_it_divides(in_features: int, size: int) -> None:
    assert PRECISIONS["w4a16"].group_size_for(in_features) == size


@given(st.integers(1, 5000))
def test_group_size_always_divides_the_row(in_features: int) -> None:
    assert in_features % PRECISIONS["w4a16"].group_size_for(in_features) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("16", 256 * 128 * 2),
        ("w8a8", 256 * 128 + 256 * 2),
        ("w8a16", 256 * 128 + 256 * 2),
        ("w4a16", 256 * 64 + 256 * 2),
        ("w3a16", 256 * 48 + 256 * 2),
    ],
)
def test_weight_bytes_count_codes_and_scales(name: str, expected: int) -> None:
    assert PRECISIONS[name].weight_bytes(256, 128) == expected


def test_names_are_read_with_their_synonyms_and_without_repeats() -> None:
    assert [precision.name for precision in parse_precisions("bf16, W8A8,w4a16,16")] == ["16", "w8a8", "w4a16"]


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'w5a16' is unknown; known are 16, w8a8"):
        parse_precision("w5a16")
