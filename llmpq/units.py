"""Units: sizes, bandwidths, times and rates as people write them, in SI base units."""

import re
from collections.abc import Callable
from decimal import Decimal
from math import isfinite

from llmpq.errors import InputError

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(\S*)")
_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}

_BYTES = {f"{prefix}b": scale for prefix, scale in (_DECIMAL | _BINARY).items()}
_BANDWIDTHS = (
    {f"{prefix}B{per}": scale for prefix, scale in (_DECIMAL | _BINARY).items() for per in ("/s", "ps")}
    | {f"{prefix}b{per}": scale / 8 for prefix, scale in _DECIMAL.items() for per in ("/s", "ps")}
    | {f"{prefix}bit/s": scale / 8 for prefix, scale in _DECIMAL.items()}
)
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_RATES = {f"{prefix}{op}": scale for prefix, scale in _DECIMAL.items() for op in ("flops", "flop/s", "ops", "op/s")}


def parse_bytes(text: str | float) -> int:
    """Bytes from "24 MiB" (binary), "16 GB" (decimal) or a plain number."""
    return round(_parse(text, _BYTES, str.lower, "a size such as 24 MiB or 16 GB"))


def parse_bandwidth(text: str | float) -> float:
    """Bytes per second from "12 GB/s", "10 Gbit/s" (b: bits, B: bytes) or a plain number."""
    return _parse(text, _BANDWIDTHS, _lower_but_bytes, "a bandwidth such as 12 GB/s or 10 Gbit/s")


def parse_time(text: str | float) -> float:
    """Seconds from "20 us", "1.5 ms" or a plain number."""
    return _parse(text, _TIMES, str.lower, "a time such as 20 us or 1.5 ms")


def parse_flops(text: str | float) -> float:
    """Operations per second from "65 TFLOPS", "130 TOPS" or a plain number."""
    return _parse(text, _RATES, str.lower, "a rate such as 65 TFLOPS or 130 TOPS")


def parse_number(text: str | float) -> float:
    """A plain number that is at least 0."""
    return _parse(text, {}, str.lower, "a number such as 0.25")


def format_bytes(nbytes: float) -> str:
    """ "1.3 GiB"; whole bytes below 1 KiB."""
    if abs(nbytes) < 1024:
        return f"{nbytes:.0f} B"
    value, unit = nbytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if round(abs(value), 1) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """ "1.24 s", "12.3 ms", "3 min 20 s", "2 h 05 min"."""
    if round(seconds) >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if round(seconds) >= 120:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    if seconds >= 100:
        return f"{seconds:.0f} s"
    return _scaled(seconds, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)))


def format_bandwidth(bytes_per_s: float) -> str:
    """ "12 GB/s", in decimal units as data sheets give it."""
    return _scaled(bytes_per_s, (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3), ("B/s", 1.0)))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    name, scale = next((unit for unit in units if abs(value) >= unit[1]), units[-1])
    number = value / scale
    return f"{number:.0f} {name}" if abs(number) >= 100 else f"{number:.3g} {name}"


def _lower_but_bytes(unit: str) -> str:
    return "".join(letter if letter == "B" else letter.lower() for letter in unit)


def _parse(text: str | float, units: dict[str, float], normalize: Callable[[str], str], expected: str) -> float:
    match = _QUANTITY.fullmatch(str(text).strip())
    unit = normalize(match[2]) if match else ""
    if match is None or (unit and unit not in units):
        raise InputError(f"found {text!r}, expected {expected}")
    value = float(Decimal(match[1]) * Decimal(repr(units.get(unit, 1.0))))  # 20 us is 2e-05, not 1.9999999999999998e-05
    if value < 0 or not isfinite(value):
        raise InputError(f"found {text!r}, expected {expected}, at least 0 and finite")
    return value
