"""Any order of operations, by hypothesis, against a model of what there should be in plain Python."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from registry import Registry, RegistryError
from registry.errors import UnknownRef, VersionInUse, VersionRetired
from registry.files import open_files
from tests.faults.invariant import find_breaches
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.faults.workload import N_SOURCES, Home, find_unexplained, make_home, prepare, register

NAMES = st.sampled_from(["base", "tuned", "org/other"])
ALIASES = st.sampled_from(["prod", "best"])
SOURCES = st.integers(0, N_SOURCES - 1)
NUMBERS = st.integers(1, 4)
_STEPS = 30
_DAMAGE = st.sampled_from(["flip", "cut", "delete"])


@dataclass
class Model:
    """What one name should hold: the source of every version, which are retired, aliases, whether it is protected."""

    contents: list[int] = field(default_factory=list)
    retired: set[int] = field(default_factory=set)
    aliases: dict[str, int] = field(default_factory=dict)
    is_protected: bool = False


class RegistryMachine(RuleBasedStateMachine):
    """Operations on one registry, and the same on plain Python."""

    n_steps = 0
    """Of all machines together."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.home = Home(self.folder / "home")
        self.models: dict[str, Model] = {}

    @initialize()
    def begin(self) -> None:
        make_home(self.home.folder)
        self.models["base"] = Model([0], set(), {"first": 1})
        self.registry = Registry(str(self.home.database), self.home.store)

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.registry.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, source=SOURCES)
    def register(self, name: str, source: int) -> None:
        model = self.models.setdefault(name, Model())
        there = [n for n, one in enumerate(model.contents, 1) if one == source and n not in model.retired]
        ref = register(self.registry, name, prepare().sources[source])
        if not there:
            model.contents.append(source)
        assert ref == f"{name}@v{there[0] if there else len(model.contents)}"

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS)
    def set_alias(self, name: str, alias: str, number: int) -> None:
        usable = self._expect(name, number)
        with _refused(usable, UnknownRef, VersionRetired):
            self.registry.set_alias(f"{name}@{alias}", f"{name}@v{number}")
        if usable:
            self.models[name].aliases[alias] = number

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name: str, alias: str) -> None:
        there = name in self.models and alias in self.models[name].aliases
        with _refused(there, UnknownRef):
            self.registry.remove_alias(f"{name}@{alias}")
        if there:
            del self.models[name].aliases[alias]

    @rule(name=NAMES, number=NUMBERS, force=st.booleans())
    def retire(self, name: str, number: int, force: bool) -> None:
        usable = self._expect(name, number)
        model = self.models.get(name, Model())
        free = number not in model.aliases.values() or force
        may = usable and not model.is_protected and free
        with _refused(may, UnknownRef, VersionRetired, VersionInUse):
            self.registry.retire(f"{name}@v{number}", force=force)
        if may:
            model.retired.add(number)
            model.aliases = {alias: one for alias, one in model.aliases.items() if one != number}

    @rule(name=NAMES, number=NUMBERS)
    def restore(self, name: str, number: int) -> None:
        there = number in self.models.get(name, Model()).retired
        with _refused(there, RegistryError):
            self.registry.restore(f"{name}@v{number}")
        if there:
            self.models[name].retired.discard(number)

    @rule(name=NAMES, protect=st.booleans())
    def protect(self, name: str, protect: bool) -> None:
        with _refused(name in self.models, UnknownRef):
            self.registry.protect(name, protect=protect)
        if name in self.models:
            self.models[name].is_protected = protect

    @rule(name=NAMES, number=NUMBERS, damage=_DAMAGE)
    def damage_and_heal(self, name: str, number: int, damage: str) -> None:
        """Damage the weights; opening refuses them; registering the same content, under any name, heals them."""
        if not self._expect(name, number):
            return
        version = self.registry.version(f"{name}@v{number}")
        (weights,) = version.with_role("weights")
        blob = self.registry.store.blob_path(weights.digest)
        _damage(blob, damage)
        with _refused(False, RegistryError):
            open_files(self.registry.store, version)
        assert [fault.subject for fault in self.registry.verify(read_data=True).faults] == [weights.digest]
        self.register(name, self.models[name].contents[number - 1])

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = Registry(str(self.home.database), self.home.store)

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "registry"):
            return
        RegistryMachine.n_steps += 1
        assert find_breaches(self.registry) == []
        assert find_unexplained(self.home) == []

    @invariant()
    def names_mean_what_they_should(self) -> None:
        if not hasattr(self, "registry"):
            return
        there = {model.name for model in self.registry.models()}
        assert there == {name for name, model in self.models.items() if model.contents}
        for name, model in self.models.items():
            for alias, number in model.aliases.items():
                assert self.registry.version(f"{name}@{alias}").number == number
            for number in range(1, len(model.contents) + 1):
                version = self.registry.version(f"{name}@v{number}")
                assert (version.retired_at is not None) == (number in model.retired)

    def _expect(self, name: str, number: int) -> bool:
        """Whether that version is there and in use."""
        model = self.models.get(name, Model())
        return number <= len(model.contents) and number not in model.retired


class _refused:  # noqa: N801 it reads as a statement
    """Expect that the block raises one of these errors, unless it `may` be done."""

    def __init__(self, may: bool, *errors: type[RegistryError]) -> None:
        self._may, self._errors = may, errors

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if self._may:
            return False
        assert kind is not None, "it should have been refused"
        return issubclass(kind, self._errors)


def _damage(blob: Path, way: str) -> None:
    if way == "delete":
        blob.unlink()
        return
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:-1] if way == "cut" else content[:-1] + bytes([content[-1] ^ 1]))


def run_machines(n: int, steps: int, seed: int) -> None:
    """Run so many machines of so many steps; raises what is broken, with the steps that lead to it."""
    options = settings(
        max_examples=n,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to look for a shorter way takes minutes
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(with_seed(seed)(RegistryMachine), settings=options)


def strike(chance: Chance) -> Outcome:
    """Run machines until the time is up."""
    rng = random.Random(chance.seed)
    n_machines = 0
    try:
        while not chance.must_end(RegistryMachine.n_steps):
            run_machines(1, _STEPS, rng.randrange(2**32))
            n_machines += 1
    except (AssertionError, RegistryError) as error:
        said = "\n".join([repr(error), *getattr(error, "__notes__", [])])
        return Outcome(RegistryMachine.n_steps, (said,))
    return Outcome(RegistryMachine.n_steps, (), f"{n_machines} machines")


SCENARIOS = [Scenario("stateful", "all", "operations in any order, against a model", strike, share=1.5, least=30)]
