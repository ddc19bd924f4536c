"""Results as pandas DataFrames, and the page about searching, which the code writes in part."""

from __future__ import annotations

import re
import sys

import pytest

from docs.write_search_page import PAGE, write_page
from registry import Registry
from registry.errors import PackageMissing
from registry.search.grammar import parse_search
from tests.search_registry import fill


def test_every_list_of_results_is_a_frame_in_one_call(any_registry: Registry) -> None:
    rows = fill(any_registry)
    found = any_registry.search("model in ('run', 'team/b')", order_by="-metric.loss", show=["tag.lr", "step"])
    frame = found.to_pandas()
    assert list(frame.columns[:3]) == ["ref", "model", "number"]
    assert list(frame.columns[-2:]) == ["metric.loss", "tag.lr"], "a field that is there already comes once"
    assert list(frame["ref"]) == found.refs
    assert frame["metric.loss"].dtype == "Float64" and frame["metric.loss"].isna().sum() == 3
    assert frame["step"].dtype == "Int64" and frame["created_at"].dt.tz is not None
    by_ref = any_registry.search().to_pandas().set_index("ref")
    assert by_ref.loc["team/b@v1", "n_parameters"] == 2**53 + 1, "floating point would lose the 1"
    assert by_ref["step"].isna().sum() == 3
    history = any_registry.history("run").to_pandas()
    assert list(history["ref"]) == ["run@v4", "run@v3", "run@v2", "run@v1"] and "values" not in history
    assert len(any_registry.models().to_pandas()) == len({row["model"] for row in rows})
    assert set(any_registry.aliases().to_pandas()["ref"]) >= {"base@best", "team/b@x_y"}
    assert any_registry.events(limit=3).to_pandas().columns[0] == "sequence"
    assert list(any_registry.sql("SELECT ref, ref FROM version_overview").to_pandas().columns) == ["ref", "ref_2"]


def test_an_empty_frame_has_its_columns(registry: Registry) -> None:
    for frame in (
        registry.search().to_pandas(),
        registry.models().to_pandas(),
        registry.sql("SELECT 1 AS n WHERE 0").to_pandas(),
    ):
        assert len(frame) == 0 and len(frame.columns) > 0


def test_without_pandas_it_says_what_to_install(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PackageMissing) as refused:
        registry.search().to_pandas()
    assert refused.value.package == "pandas" and "pip install 'lens-registry[pandas]'" in str(refused.value.hint)


def test_a_result_shows_itself_in_a_notebook(registry: Registry) -> None:
    fill(registry)
    html = registry.search("model = 'run'", show=["note"])._repr_html_()
    assert "run@v1" in html and "it&#x27;s" in html and "<th>note</th>" in html


def test_the_page_about_searching_is_current() -> None:
    assert write_page(PAGE.read_text()) == PAGE.read_text(), "docs/search.md is out of date: make docs"


def test_the_searches_on_the_page_can_be_read() -> None:
    searches = re.findall(r'(?:reg\.search\(|lensreg search )"([^"]+)"', PAGE.read_text())
    assert len(searches) >= 5
    for one in searches:
        assert parse_search(one) is not None
