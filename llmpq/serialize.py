"""JSON for the frozen dataclasses of llmpq: `loads(cls, dumps(x)) == x`."""

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llmpq.errors import InputError

T = TypeVar("T")
RARE = {"rare": True}


def to_json(value: Any) -> Any:
    """Plain lists, dicts, numbers and strings, in field order; of fields with the metadata RARE only what is not the default."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {field: getattr(value, field.name) for field in fields(value)}
        return {field.name: to_json(item) for field, item in found.items() if item != field.default or field.metadata != RARE}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(cls: Any, value: Any, where: str = "value") -> Any:
    """`value` as an instance of the annotation `cls`; `where` names it in errors."""
    origin, args = get_origin(cls), get_args(cls)
    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        return from_json(_member(inner, value) if len(inner) > 1 else inner[0], value, where)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return _tuple_from_json(args, value, where)
    if is_dataclass(cls):
        return _dataclass_from_json(cls, value, where)
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, cls) or (cls is not bool and isinstance(value, bool)):
        raise InputError(f"{where}: found {value!r}, expected {cls.__name__}")
    return value


def _member(classes: list[Any], value: Any) -> Any:
    """Of several dataclasses the one that has most of the keys."""
    keys = set(value) if isinstance(value, dict) else set()
    return max(classes, key=lambda cls: len(keys & {field.name for field in fields(cls)}))


def _tuple_from_json(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(f"{where}: found {value!r}, expected a list")
    if args[-1:] == (...,):
        return tuple(from_json(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise InputError(f"{where}: found {len(value)} entries, expected {len(args)}")
    return tuple(from_json(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value)))


def _dataclass_from_json(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {value!r}, expected an object")
    hints = get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    missing = [field.name for field in fields(cls) if field.name not in value and _is_required(field)]
    if missing:
        raise InputError(f"{where}: no {', '.join(map(repr, missing))}; found {', '.join(map(repr, value)) or 'an empty object'}")
    return cls(**{key: from_json(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def dumps(value: Any) -> str:
    return json.dumps(to_json(value), indent=2) + "\n"


def loads(cls: type[T], text: str, where: str = "value") -> T:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    result: T = from_json(cls, parsed, where)
    return result
