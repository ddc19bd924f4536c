"""Which suites there are, our own and those of plugins, and how one is made from parameters."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from registry.errors import InvalidInput
from registry.validation.metric import Measured
from registry.validation.subject import Subject

GROUP = "lens_registry.suites"
"""The entry points by which other packages bring suites: name = "module:Class"."""

BUILT_IN = {
    "parity": "registry.validation.parity:ParityAgain",
    "structure": "registry.validation.structure:Structure",
    "loss": "registry.validation.loss:Loss",
    "accuracy": "registry.validation.accuracy:Accuracy",
    "drift": "registry.validation.drift:Drift",
}


class Suite(Protocol):
    """What a suite is: a dataclass whose fields are its parameters, with a name and a version."""

    @property
    def name(self) -> str:
        """Its name, as people give it."""

    @property
    def version(self) -> str:
        """Changes when it measures something else under the same names."""

    def run(self, subject: Subject) -> Measured:
        """Measure. Whatever it raises is recorded as a failure."""


def list_suites() -> list[str]:
    """Name the suites that there are; ours come first, and no plugin takes the place of one of them."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=GROUP)} - BUILT_IN.keys())]


def find_suite(name: str) -> Any:
    """Return the class of a suite. Raises InvalidInput if there is none, or if a plugin cannot be imported."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        known = list_suites()
        near = get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
        raise InvalidInput(f"There is no suite {name!r}.", hint=hint)
    try:
        found = points[0].load()
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"The suite {name!r} of {points[0].value} cannot be imported: {error}.", hint="Install its package again."
        ) from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InvalidInput(
            f"The suite {name!r} is no dataclass.", hint="Its fields are its parameters; tell its author."
        )
    return found


def make_suite(name: str, parameters: Mapping[str, Any]) -> Suite:
    """Make a suite of its parameters, given as they are or as text. Raises InvalidInput for what it does not take."""
    kind = find_suite(name)
    fields = {one.name: one for one in dataclasses.fields(kind) if one.init}
    hints = get_type_hints(kind)
    for given in parameters:
        if given not in fields:
            near = get_close_matches(given, fields, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(fields) or 'none'}."
            raise InvalidInput(f"The suite {name} has no parameter {given!r}.", hint=hint)
    missing = [
        one.name
        for one in fields.values()
        if one.name not in parameters
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InvalidInput(
            f"The suite {name} needs {', '.join(missing)}.", hint="Give it with --data or --set NAME=VALUE."
        )
    values = {given: parse_value(f"{name}.{given}", value, hints[given]) for given, value in parameters.items()}
    suite: Suite = kind(**values)
    return suite


def list_refs(suite: Suite) -> list[str]:
    """Name the parameters of a suite that are refs: those whose field says so, with `metadata={"is_ref": True}`."""
    given: Any = suite
    return [one.name for one in dataclasses.fields(given) if one.metadata.get("is_ref")]


def parse_value(name: str, value: Any, hint: Any) -> Any:
    """Read a text as what the hint says: int, float, bool, str, or None too. Raises InvalidInput."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not isinstance(value, str) or (value == "none" and type(None) in kinds):
        wanted = tuple(kind for kind in kinds if isinstance(kind, type))
        value = None if value == "none" else value
        mistaken = isinstance(value, bool) and bool not in wanted  # True is an int to Python
        if not wanted or (isinstance(value, wanted) and not mistaken):
            return value
    elif str in kinds:
        return value
    elif bool in kinds and value in ("true", "false"):
        return value == "true"
    else:
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(value)
                except ValueError:
                    continue
    listed = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise InvalidInput(f"{name} = {value!r} is no {listed}.", hint="See lensreg validate --help.")
