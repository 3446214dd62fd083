"""Rounds: a profile taken several times, so that no precision is measured at a worse hour of the machine than the others."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Profile
from llmpq.frontend.models import resolve
from llmpq.precision import parse_precisions
from llmpq.profiling.neighbour import measure_beside
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.profiler import profile_model, subject_of
from llmpq.profiling.sizes import Extent


def take_rounds(model: Path, precisions: str, extent: Extent, rounds: int, file: Path) -> Profile:
    """Their medians, alone and beside a busy neighbour, without a link; every round is kept beside `file` and gone on with."""
    subject, chosen, taken = subject_of(resolve(str(model), weights=False), "cpu"), parse_precisions(precisions), []
    for number in range(rounds):
        own = file.with_stem(f"{file.stem}-{number}")
        begun, keep = read_profile(own) if own.exists() else None, partial(write_profile, own)
        alone = profile_model(subject, chosen, extent, keep, begun, with_link=False)
        taken.append(measure_beside(alone, subject, chosen, extent, str(model), keep))
    return merge(taken)


def merge(rounds: Sequence[Profile]) -> Profile:
    """Of each point that all rounds have the median; its low and high are the least and the most of any round."""
    points, beside = (_merged([getattr(taken, name) for taken in rounds]) for name in ("points", "beside"))
    return replace(rounds[0], points=points, beside=beside)


def _merged(rounds: Sequence[tuple[Point, ...]]) -> tuple[Point, ...]:
    points = [{point.key: point for point in taken} for taken in rounds]
    return tuple(_point([found[key] for found in points]) for key in points[0] if all(key in found for found in points))


def _point(found: Sequence[Point]) -> Point:
    merged: dict[str, Any] = {
        field.name: _timings([getattr(point, field.name) for point in found])
        for field in fields(Point)
        if isinstance(getattr(found[0], field.name), Timing | tuple)
    }
    return replace(found[0], **merged)


def _timings(found: Sequence[Any]) -> Any:
    """Of a part of a point, or of one part for each kind of layer."""
    if isinstance(found[0], tuple):
        return tuple(_timings(column) for column in zip(*found, strict=True))
    if found[0] is None:
        return None
    return Timing(median(one.median_s for one in found), min(one.low_s for one in found), max(one.high_s for one in found))
