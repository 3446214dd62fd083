"""Profile files: read, checked against what they are used for, and kept whole while a measurement goes on."""

import os
from pathlib import Path

from llmpq.costs.profile import PROFILE_FORMAT, Profile, kind_digest
from llmpq.errors import InputError
from llmpq.frontend.models import read_utf8
from llmpq.graph import LayerGraph
from llmpq.program import Request
from llmpq.serialize import dumps, loads

OWN_ENGINE = "local"


def read_profile(path: Path, engine: str = OWN_ENGINE) -> Profile:
    """The profile in a file. Raises InputError for another format, one without a point, or one of another engine."""
    try:
        profile = loads(Profile, read_utf8(path, "profile"), str(path))
    except InputError as error:
        raise InputError(f"{error}; `llmpq profile MODEL -o FILE` writes a profile") from error
    if profile.format != PROFILE_FORMAT:
        raise InputError(f"{path}: format is {profile.format!r}, expected {PROFILE_FORMAT!r}; run llmpq profile again")
    if not profile.points:
        raise InputError(f"{path}: no pass was measured yet; run llmpq profile with -o {path} again, it goes on where it stopped")
    if engine != profile.engine:
        again = "" if engine == OWN_ENGINE else f" --engine {engine}"
        raise InputError(
            f"{path}: is of engine {profile.engine}, the plan is for {engine}; "
            f"leave --profile out, or measure another: llmpq profile {profile.model}{again}"
        )
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    """All of it or nothing: a process that is killed leaves the file of before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(dumps(profile), encoding="utf-8")
    partial.replace(path)


def profile_notices(profile: Profile, graph: LayerGraph, request: Request) -> tuple[str, ...]:
    """What a profile does not say of a request, one sentence each."""
    told = []
    measured = {point.precision for point in profile.points}
    used = dict.fromkeys(part.name for option in request.precisions for part in option.parts)
    lacking = [name for name in used if name not in measured]
    if lacking:
        told.append(f"the profile has no times of {', '.join(lacking)}: theirs are from tables or roofline")
    unknown = [kind.name for kind in graph.kinds if kind_digest(kind) not in profile.kinds]
    if unknown:
        told.append(f"the profile is of {profile.model}, which has no layers like {', '.join(unknown)} of {graph.model}")
    if all(device.type.name != profile.device_type for device in request.cluster.devices):
        told.append(f"the profile is of a {profile.device_type}; the cluster has none")
    return tuple(told)
