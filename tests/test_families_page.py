"""docs/families.md: it was written by the code that is here, and a family that passes a bound is a fault."""

from __future__ import annotations

import pytest

from docs.write_families import PAGE, digest_inputs, measure_bridged_family, measure_family
from registry.families import BRIDGED_FAMILIES, FAMILIES
from registry.families.family import Family
from tests.sampling import take_sample

# each takes seconds; `make families` and `make test-long` measure all
_TAKEN, _BRIDGED = (
    take_sample(tuple(families.values()), lambda family: family.name) for families in (FAMILIES, BRIDGED_FAMILIES)
)


def test_the_page_is_current() -> None:
    assert f"measured: {digest_inputs()}" in PAGE.read_text(), "docs/families.md is out of date: make families"
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    tables = [sorted(family.name for family in families.values()) for families in (FAMILIES, BRIDGED_FAMILIES)]
    assert rows == ["family", *tables[0], "family", *tables[1]]


@pytest.mark.slow
@pytest.mark.parametrize("family", _TAKEN, ids=lambda family: family.name)
def test_no_bound_is_passed(family: Family) -> None:
    measured = measure_family(family)
    assert measured.faults == []
    # in post-norm blocks nothing that these hooks see is processed
    assert measured.n_hooks >= 12 and (measured.activations > 0) == (measured.family not in ("olmo2", "olmo3"))


@pytest.mark.slow
@pytest.mark.parametrize("family", _BRIDGED, ids=lambda family: family.name)
def test_no_bound_of_a_bridge_is_passed(family: Family) -> None:
    assert measure_bridged_family(family).faults == []
