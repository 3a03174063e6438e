"""One setting: its type, its limits, and the only conversion that command line and YAML values go through."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Rule", "Setting", "setting", "settings_of", "show"]

_TRUE, _FALSE, _NONE = ("true", "yes", "on"), ("false", "no", "off"), ("none", "null")

_BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}

# A YAML file can nest aliases until its repr fills the memory; a message needs the beginning only.
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
_short.maxlevel = 2


def show(value: Any) -> str:
    """A received value as an error message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return _short.repr(" ".join(value[:20]))
    return _short.repr(value)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting's value must satisfy beyond its type, and what `--help` says of it."""

    help: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    because: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def limits(self) -> str:
        """The limits in words: `at least 1 and below 10`; empty where there are none."""
        words = [f"{name.replace('_', ' ')} {bound}" for name, bound, _ in self._bounds()]
        if self.choices is not None:
            words.append("one of " + ", ".join(map(str, self.choices)))
        return " and ".join(words)

    def allows(self, value: Any) -> bool:
        """Whether one converted value (for a tuple: each of its parts) lies within the limits."""
        if isinstance(value, tuple | list):
            return all(self.allows(part) for part in value)
        if value is None:
            return True
        in_bounds = all(holds(value, bound) for _, bound, holds in self._bounds())
        return in_bounds and (self.choices is None or value in self.choices)

    def _bounds(self) -> list[tuple[str, float, Callable[[Any, Any], bool]]]:
        bounds = ((name, getattr(self, name), holds) for name, holds in _BOUNDS.items())
        return [each for each in bounds if each[1] is not None]


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    because: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field with its help text and limits; a mutable default is copied for each instance.

    The limits hold for each part of a tuple; `None` is always within them. `because` maps a value that users are
    likely to try to the reason why it is refused.
    """
    rule = Rule(help, at_least, above, at_most, below, None if choices is None else tuple(choices), because or {})
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata={"rule": rule})
    return dataclasses.field(default=default, metadata={"rule": rule})


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _noun(kind: Any, several: bool = False) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (tuple, list):
        parts = get_args(kind)
        if get_origin(kind) is list or parts[-1] is Ellipsis:
            return _noun(parts[0], several=True)
        return f"{len(parts)} {_noun(parts[0], True)}" if len(set(parts)) == 1 else " and ".join(map(_noun, parts))
    if kind is bool:
        return "true or false"
    one, many = {
        int: ("a whole number", "whole numbers"),
        float: ("a finite number", "finite numbers"),
        str: ("text", "texts"),
        Path: ("a path", "paths"),
        NoneType: ("none", "none"),
    }[kind]
    return many if several else one


def _number(kind: type, value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as text, so text is converted for files as it is for the command line.
    if isinstance(value, bool) or not isinstance(value, str | (int if kind is int else int | float)):
        raise ValueError
    try:
        number = kind(value)
    except OverflowError:
        raise ValueError from None
    # No size, count or seed of torch has more bits.
    if not (-(2**63) <= number < 2**63 if kind is int else math.isfinite(number)):
        raise ValueError
    return number


def _text(kind: type, value: Any) -> Any:
    # An empty path is the current folder: what an unset shell variable must not come to mean.
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    try:
        return Path(value).expanduser() if kind is Path else str(value)
    except RuntimeError:  # ~nobody
        raise ValueError from None


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, bool) and value not in [c for c in choices if isinstance(c, bool)]:
        # YAML 1.1 reads a bare `no` as false, and users write `mixed_precision: no`.
        words = _TRUE if value else _FALSE
        value = next((word for word in words if word in choices), value)
    for choice in choices:
        if value == choice and type(value) is type(choice) or isinstance(value, str) and value == str(choice):
            return choice
    raise ValueError


def _tuple(parts: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    variadic = parts[-1] is Ellipsis
    if variadic and isinstance(value, str) and value.lower() in _NONE:
        return ()
    if not isinstance(value, list | tuple) or not variadic and len(value) != len(parts):
        raise ValueError
    return tuple(_convert(parts[0] if variadic else part, v) for part, v in zip(parts * len(value), value))


def _convert(kind: Any, value: Any) -> Any:
    if len(_members(kind)) > 1:
        # None first: the word `none` must not become a text or a path.
        for member in sorted(_members(kind), key=lambda m: m is not NoneType):
            try:
                return _convert(member, value)
            except ValueError:
                continue
        raise ValueError
    if kind is NoneType:
        if value is None or isinstance(value, str) and value.lower() in _NONE:
            return None
        raise ValueError
    if get_origin(kind) is Literal:
        return _literal(get_args(kind), value)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value)
    if get_origin(kind) is list:
        return list(_tuple((*get_args(kind), ...), value))
    if kind is bool:
        if isinstance(value, bool | str) and str(value).lower() in _TRUE + _FALSE:
            return str(value).lower() in _TRUE
        raise ValueError
    if kind in (int, float):
        return _number(kind, value)
    if kind in (str, Path):
        return _text(kind, value)
    raise TypeError(f"a setting cannot have the type {kind}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A named setting of a dataclass: its type, default and rule."""

    name: str
    kind: Any
    default: Any
    rule: Rule

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_bool(self) -> bool:
        return bool in _members(self.kind)

    @property
    def takes_many(self) -> bool:
        return any(get_origin(member) in (tuple, list) for member in _members(self.kind))

    @property
    def expected(self) -> str:
        """What is expected, in words: `a whole number, at least 1, or none`."""
        nouns = [_noun(member) for member in _members(self.kind) if member is not NoneType]
        words, limits = " or ".join(nouns), self.rule.limits()
        if limits:
            words += f", {'each ' if self.takes_many else ''}{limits}"
        return words + (", or none" if NoneType in _members(self.kind) else "")

    def convert(self, value: Any) -> Any:
        """The value of a command line (text, or a list of texts) or of a YAML file, as this setting's type.

        Raises `ValueError` saying what was expected and what was received.
        """
        try:
            converted = _convert(self.kind, value)
            if self.rule.allows(converted):
                return converted
        except ValueError:
            pass
        hint = self.rule.because.get(value.lower(), "") if isinstance(value, str) else ""
        if not hint and not isinstance(value, str | list | NoneType) and {str, Path} & set(_members(self.kind)):
            hint = "put it in quotes"
        raise ValueError(f"expected {self.expected}; got {show(value)}" + (f": {hint}" if hint else ""))


def settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in its order.

    A subclass may change a default by `steps: int = 2000`: the rule of its base then still holds. Raises `TypeError`
    where Python would ignore such a change in silence (no annotation, no `@dataclass`), or where a default is missing.
    """
    if "__dataclass_fields__" not in vars(cls):
        raise TypeError(f"{cls.__name__} holds settings: it needs @dataclass")
    kinds = get_type_hints(cls)
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(cls):
        lineage = [vars(base).get("__dataclass_fields__", {}).get(field.name) for base in cls.__mro__]
        rule = next((f.metadata["rule"] for f in lineage if f is not None and "rule" in f.metadata), Rule())
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif field.default is dataclasses.MISSING:
            raise TypeError(f"{cls.__name__}.{field.name} needs a default; use None and refuse it in check()")
        else:
            default = field.default
            if getattr(cls, field.name) is not default:
                raise TypeError(f"{cls.__name__}.{field.name} has no annotation: its new default would be ignored")
        found[field.name] = Setting(field.name, kinds[field.name], default, rule)
    return found
