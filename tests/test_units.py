"""Units: parsing and printing of quantities."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.units import (
    format_bandwidth,
    format_bytes,
    format_seconds,
    parse_bandwidth,
    parse_bytes,
    parse_flops,
    parse_number,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24 MiB", 24 * 2**20),
        ("24MiB", 24 * 2**20),
        ("24 mib", 24 * 2**20),
        (" 1.5 GiB ", 3 * 2**29),
        ("16 GB", 16 * 10**9),
        ("2e3", 2000),
        ("1e3 kB", 10**6),
        (".5 KiB", 512),
        ("1 TiB", 2**40),
        (4096, 4096),
        ("7 B", 7),
    ],
)
def test_sizes_are_read_in_binary_and_decimal_units(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("12 GB/s", 12e9),
        ("12GB/s", 12e9),
        ("12 GBps", 12e9),
        ("10 Gbit/s", 1.25e9),
        ("10 Gb/s", 1.25e9),
        ("8 gbps", 1e9),
        ("1 MiB/s", 2**20),
    ],
)
def test_bandwidths_tell_bits_from_bytes(text: str, bytes_per_s: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(bytes_per_s)


def test_times_and_rates_are_read_in_si_units() -> None:
    assert parse_time("20 us") == parse_time("20µs") == 2e-5
    assert parse_time("1.5 ms") == 1.5e-3
    assert parse_time("2 min") == 120
    assert parse_time(3) == 3
    assert parse_flops("65 TFLOPS") == parse_flops("65 TFLOP/s") == parse_flops("65 TOPS") == parse_flops("65e12") == 65e12


@pytest.mark.parametrize("parser", [parse_bytes, parse_bandwidth, parse_time, parse_flops, parse_number])
@pytest.mark.parametrize(
    "text", ["", "lots", "12 parsecs", "-5", "nan", "inf", "1e999", "1 2", "12 GiB GiB", "0x10", "1,5", True]
)
def test_what_is_no_quantity_is_named_with_an_example(parser: Callable[[str], float], text: str) -> None:
    with pytest.raises(InputError, match=r"found .*, expected .* such as \d"):
        parser(text)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1395864371, "1.3 GiB"), (2**40 - 1, "1.0 TiB")]
)
def test_sizes_print_in_the_largest_fitting_binary_unit(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@given(st.integers(min_value=0, max_value=2**53))
def test_a_printed_size_reads_back_within_its_rounding(nbytes: int) -> None:
    assert parse_bytes(format_bytes(nbytes)) == pytest.approx(nbytes, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (80e-6, "80 us"),
        (0.0123, "12.3 ms"),
        (0.5, "500 ms"),
        (1.239, "1.24 s"),
        (119.2, "119 s"),
        (119.7, "2 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_times_print_with_three_digits_or_in_minutes(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(min_value=1, max_value=1e14))
def test_a_printed_bandwidth_reads_back_within_its_rounding(bytes_per_s: float) -> None:
    assert parse_bandwidth(format_bandwidth(bytes_per_s)) == pytest.approx(bytes_per_s, rel=0.01)
