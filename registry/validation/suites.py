"""Which suites there are, our own and those of plugins, and how one is made from parameters."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from registry.errors import InvalidInput, SourceNotFound
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
    "lm-eval": "registry.validation.harness:LmEval",
}


class Suite(Protocol):
    """What a suite is: a dataclass whose fields are its parameters, with a name and a version.

    One that reads data may also have `digest_data(extent)`, which returns their digest as they are now, read as far as
    `Measured.extent` said; without it a change of the data is not noticed. `prepare()` may raise what would make it
    fail on any version, so that it is refused and not recorded as the failure of each; `record_as(subject)` is what a
    run is recorded as, if not its name.
    """

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


def list_parameters(name: str) -> dict[str, Any]:
    """Return the dataclass fields that are the parameters of a suite, by name."""
    return {one.name: one for one in dataclasses.fields(find_suite(name)) if one.init}


def make_suite(name: str, parameters: Mapping[str, Any]) -> Suite:
    """Make a suite of its parameters, given as they are or as text. Raises InvalidInput for what it does not take."""
    kind = find_suite(name)
    fields = list_parameters(name)
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
    for given, value in values.items():
        if value is not None and fields[given].metadata.get("path"):
            values[given] = str(Path(value).expanduser().absolute())
    suite: Suite = kind(**values)
    return suite


def settle_suite(suite: Any, resolve: Callable[[str], str]) -> Suite:
    """Return a suite whose refs are those of versions, before it is run on many versions.

    Raises SourceNotFound if what it is to read is not there, and what `resolve` and its own `prepare` raise.
    """
    settled = {}
    for one in dataclasses.fields(suite):
        value = getattr(suite, one.name)
        if value is None:
            continue
        if one.metadata.get("path") and not Path(value).exists():
            raise SourceNotFound(f"{value} is not there.", hint=f"It was given as {one.name} of {suite.name}.")
        if one.metadata.get("ref"):
            settled[one.name] = resolve(value)
    prepare = getattr(suite, "prepare", None)
    if prepare is not None:
        prepare()
    whole: Suite = dataclasses.replace(suite, **settled)
    return whole


def name_suite(recorded: str) -> str | None:
    """Return the name of the suite that records as `recorded`, as `parity` does as `parity-bfloat16`; None if none."""
    known = [name for name in list_suites() if recorded == name or recorded.startswith(f"{name}-")]
    return max(known, key=len, default=None)


def parse_value(name: str, value: Any, hint: Any) -> Any:
    """Read a text as what the hint says: int, float, bool, str, or None too. Raises InvalidInput."""
    value = str(value) if isinstance(value, Path) else value
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
