"""What means harm or is damaged: every file of the corpus gets its verdict, runs nothing, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Registry, RegistryError
from registry.regular_files import open_regular
from registry.store import LocalStore
from tests.hostile.case import SECRET, Case, make_place
from tests.hostile.corpus import CASES, IN_CHILDREN
from tests.hostile.judge import judge
from tests.hostile.watch import Watch
from tests.reliability_page import write_section
from tests.sampling import is_sampled

pytestmark = pytest.mark.filterwarnings("ignore")  # of what makes such files


@pytest.fixture(scope="module", autouse=True)
def open_stamps() -> Iterator[None]:
    """Cases are judged in forks, some of which have no rights."""
    Path(os.environ["LENSREG_STAMPS"]).chmod(0o755)
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forks
    yield
    if before is None:
        del os.environ["TOKENIZERS_PARALLELISM"]


def _mark(index: int, case: Case) -> object:
    """Let the quick tests take every fifth case, of those that start no process which imports torch."""
    is_quick = index % 5 == 0 and case.group not in IN_CHILDREN and case.base not in ("pickle", "pieces")
    if is_quick:
        return pytest.param(case, id=case.name)
    # `check` and `identify` read by the same code; `python -m tests.hostile` asks them of every case
    return pytest.param(replace(case, only_register=True), id=case.name, marks=[pytest.mark.slow])


# all of them take too long beside the other tests; `python -m tests.hostile` judges the whole corpus
_JUDGED = [_mark(index, case) for index, case in enumerate(CASES) if index % 20 == 0 or is_sampled(case.name)]


@pytest.mark.parametrize("case", _JUDGED)
def test_every_file_of_the_corpus_gets_its_verdict(case: Case) -> None:
    if case.as_nobody and os.geteuid() != 0:
        pytest.skip("only root can give up root's rights")
    assert judge(case).faults == ()


def test_names_of_cases_are_unique_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 300


def test_a_fault_of_any_kind_is_seen(tmp_path: Path) -> None:
    """Otherwise the verdicts above would prove little: a case that does everything that it must not."""
    place = make_place(tmp_path, "huggingface")
    watch = Watch(place.source, [tmp_path / "allowed"], place.outside)
    (place.source / "evil.py").write_text("x = 1")
    with watch:
        place.secret.read_bytes()
        (place.source / "new").write_text("x")
        (tmp_path / "elsewhere").mkdir()
        exec(compile("1", str(place.source / "evil.py"), "exec"))
        (tmp_path / "renamed").symlink_to("x")
        os.system("true")
    seen = " ".join(watch.breaches)
    for what in ("secret.json", "new for writing", "os.mkdir", "compile of", "exec of", "os.symlink", "os.system"):
        assert what in seen, what


def test_a_link_put_in_a_files_place_between_looking_and_copying_is_not_followed(
    registry: Registry, tmp_path: Path
) -> None:
    """A thread swaps a file for a link to a secret and back, while the folder is registered again and again."""
    (tmp_path / "place").mkdir()
    place = make_place(tmp_path / "place", "huggingface")
    target, good, link = (place.source / name for name in ("chat_template.jinja", "good.tmp", "link.tmp"))
    good.write_text("{{ messages }}")
    link.symlink_to(place.secret)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one in (good, link):
                other = target.with_name("swap.tmp")
                if one is link:
                    other.symlink_to(place.secret)
                else:
                    shutil.copy(one, other)
                other.replace(target)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    try:
        store, until = registry.store, time.monotonic() + 3
        from registry.sources import open_source
        from registry.stage import stage_files

        while time.monotonic() < until:
            scratch = tmp_path / "scratch"
            scratch.mkdir()
            try:
                source = open_source(place.source, scratch)
                with store.stage() as folder:
                    stage_files(
                        store, source, None, folder, link=False, lazy=False, dry_run=False, progress=lambda *_: None
                    )
                    kept = folder / "files" / target.name
                    outcomes.add("kept" if kept.exists() else "left out")
                    assert not kept.exists() or SECRET not in kept.read_bytes()
            except RegistryError as error:
                outcomes.add(error.code)
            shutil.rmtree(scratch)
    finally:
        stop.set()
        thread.join()
    assert outcomes <= {"kept", "left out", "unsafe-artifact", "source-not-found", "source-changed"}
    assert {"kept", "unsafe-artifact"} <= outcomes


def test_what_is_copied_is_a_file_and_no_link(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    for link in (False, True):
        for name in ("link", "pipe", "store"):
            with store.stage() as folder, pytest.raises(RegistryError):
                store.copy_in(tmp_path / name, folder / "x", link=link)
    for name in ("pipe", "store"):
        with pytest.raises(OSError):
            open_regular(tmp_path / name)


def test_a_table_goes_between_the_marks_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- hostile -->\nold\n<!-- /hostile -->\nb\n")
    write_section("hostile", "| new |", page)
    assert page.read_text() == "a\n<!-- hostile -->\n\n| new |\n\n<!-- /hostile -->\nb\n"
    with pytest.raises(SystemExit):
        write_section("faults", "| new |", page)
