"""The page of a comparison: whole, needing nothing else, and drawn by a real browser."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from registry import Registry
from registry.compare.results import HeadPatterns
from registry.compare_versions import Comparison
from registry.errors import StorageError, VocabularyMismatch
from registry.report.figures import write_png, write_svg
from registry.report.files import check_target
from registry.report.page import save_report, write_report
from registry.report.pictures import (
    draw_head_attributions,
    draw_layers,
    draw_parts,
    draw_pattern_heads,
    draw_patterns,
    draw_weight_heads,
)
from registry.report.save_pictures import save_pictures
from registry.results import Results
from tests.adapters import make_adapted, save_adapter
from tests.browser import draw_page, needs_browser

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Comparison:
    """A base and a LoRA of rank 4 that was merged into it, compared in every way."""
    folder = tmp_path_factory.mktemp("compared")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    registry.register("base", make_checkpoint("llama"), parity="skip")
    adapter = save_adapter(folder / "adapter", make_adapted("llama", r=4, target_modules=["q_proj"]))
    registry.register("lora", adapter, parent="base", parity="skip")
    found = registry.compare("base", "lora", weights=True, prompts=["w1 w2 w3", "w9 w8 w7 w6"])
    registry.close()
    return found


class _Page(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_was_found_and_loads_nothing(compared: Comparison) -> None:
    page = _Page(write_report(compared))
    assert compared.weights is not None and compared.behaviour is not None
    for said in (
        "base@v1 → lora@v1",
        "2 of 34 tensors changed",
        f"{compared.behaviour.kl:.5g} nats",
        "blocks.1.attn.W_Q",
    ):
        assert said in page.text
    kinds = {tag for tag, _ in page.tags}
    assert "svg" in kinds
    assert not kinds & {"script", "img", "image", "link", "iframe"}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")]
    assert all(str(link).startswith("#") for link in links)
    assert "#010203" not in write_report(compared)


def test_pictures_are_the_same_for_the_same_figures_and_in_the_colour_of_the_text(compared: Comparison) -> None:
    assert compared.weights is not None and compared.behaviour is not None
    one, other = (write_svg(draw_parts(compared.weights)) for _ in range(2))
    assert one == other
    assert one.startswith("<svg") and "currentColor" in one
    assert write_png(draw_layers(compared.behaviour)).startswith(b"\x89PNG")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_readable_in_the_light_and_in_the_dark(
    compared: Comparison, tmp_path: Path, scheme: str
) -> None:
    """The text's colour and the ground's, as the browser computes them, are far apart; every picture has its size."""
    import numpy as np

    save_report(compared, tmp_path / "report.html")
    pixels = draw_page(tmp_path / "report.html", tmp_path, scheme, 1800)
    ground = pixels[5, 5]
    assert (ground.mean() > 0.9) == (scheme == "light")
    title = np.abs(pixels[20:80, 20:400] - ground).max()
    assert title > 0.7  # ink on that ground
    colours = np.unique((pixels.reshape(-1, 3) * 15).astype(int), axis=0)
    assert len(colours) > 40  # the heat maps are there


def test_patterns_are_side_by_side_with_tokens_that_stay_text(compared: Comparison) -> None:
    """Tokens are somebody's text: markup, formulas of matplotlib's and control characters mean themselves."""
    assert compared.behaviour is not None
    hostile = ("<script>", "$x$", "\x1b[2J", " word", "\n", "漢", "a_very_long_token_indeed")
    n = len(hostile)
    row = tuple(tuple(1 / (query + 1) if key <= query else 0.0 for key in range(n)) for query in range(n))
    pattern = HeadPatterns(1, 2, 0.5, hostile, row, row)
    behaviour = replace(compared.behaviour, patterns=Results([pattern], HeadPatterns))
    text = write_report(replace(compared, behaviour=behaviour))
    page = _Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    for shown in ("<script>", "$x$", "\ufffd[2J", "word", "↵", "漢", "a_very_long…"):
        assert page.text.count(shown) >= 3  # the rows of the first, the columns of both
    assert "Head 1.2, on the tokens where it moved most" in page.text
    assert "\x1b" not in text
    assert write_png(draw_patterns(pattern, "a", "b")).startswith(b"\x89PNG")


def test_digests_are_short_in_the_table_of_records(compared: Comparison) -> None:
    records = replace(compared.records, facts={"tokenizer": ("ab" * 32, None)})
    page = _Page(write_report(replace(compared, records=records)))
    assert "abababababababab…—" in page.text.replace("\n", "")
    assert "ab" * 9 not in page.text


def test_what_could_not_be_compared_is_said(compared: Comparison) -> None:
    page = _Page(write_report(replace(compared, obstacles=(VocabularyMismatch("Tokens mean <other> things."),))))
    assert "Tokens mean <other> things." in page.text


def test_maps_say_what_their_colours_mean(compared: Comparison) -> None:
    weights, behaviour = compared.weights, compared.behaviour
    assert weights is not None and behaviour is not None
    maps = (draw_parts(weights), draw_weight_heads(weights), draw_pattern_heads(behaviour))
    scales = [one.axes[1].get_ylabel() for one in (*maps, draw_head_attributions(behaviour)) if one is not None]
    assert scales == ["share of the norm", "share of the norm", "JSD (nats)", "more to the logit"]


def test_pictures_are_files_of_a_size_for_a_page_and_say_of_what_they_are(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(
        "registry.report.save_pictures.write_png",
        lambda figure: titles.append(figure.get_suptitle()) or write_png(figure),
    )
    paths = save_pictures(compared, tmp_path / "new" / "folder")
    assert len(paths) == 10
    assert all(title.startswith("base@v1 → lora@v1: ") for title in titles[:7])
    assert len(set(titles)) == 8
    assert titles[7:] == ["", "", ""], "patterns have the versions above each side"
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 300_000 for path in paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_pictures(compared, tmp_path / "file")


def test_what_was_not_asked_for_is_left_out(compared: Comparison) -> None:
    page = write_report(Comparison(compared.a, compared.b, compared.records))
    assert "<h2>What is recorded</h2>" in page
    assert not re.search("<h2>(Weights|Behaviour)</h2>", page)


def test_a_page_that_cannot_be_written_is_said_to_be(compared: Comparison, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_report(compared, tmp_path / "nowhere" / "report.html")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(StorageError, match="is no folder"):
        check_target(Path(__file__), is_folder=True)
    check_target(tmp_path / "report.html")
    check_target(tmp_path / "new" / "folder", is_folder=True)


def test_a_page_that_breaks_off_leaves_what_was_there(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("the last one")

    def replace(partial: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageError, match="No space left"):
        save_report(compared, target)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the last one"]
