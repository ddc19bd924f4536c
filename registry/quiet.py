"""Keep the chatter of transformers and transformer-lens away from people, for the length of a `with`."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

_ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, log lines, warnings and prints of the two libraries; errors still raise.

    What must be seen meanwhile has to hold on to the stream it writes to, as the command's progress bars do.
    All of that is the process's own, and so are the switches that transformers turns while it builds a network (two
    threads that build at once leave it broken for good): one thread at a time, the others wait.
    """
    with _ONE_THREAD, _silence(), _keep_modes():
        yield


@contextlib.contextmanager
def _keep_modes() -> Iterator[None]:
    """Have torch's modes in the end as they were before.

    Meta as the default device is one of them. An interrupt between two steps of transformers would leave it so for
    good, also one that somebody there took for an error of theirs, and nothing could be loaded any more.
    """
    from torch import overrides

    stack: Any = overrides
    before = stack._get_current_function_mode_stack()
    try:
        yield
    except GeneratorExit:  # what an interrupt cut off is only collected now, in the middle of something else
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            # torch takes a mode off for a while, and an interrupt has it put on again only when its frame is let go
            traceback.clear_frames(error.__traceback__)
        _put_back(stack, before)
        raise
    _put_back(stack, before)


def _put_back(stack: Any, modes: list[Any]) -> None:
    if stack._get_current_function_mode_stack() == modes:
        return
    while stack._get_current_function_mode_stack():
        stack._pop_mode()
    for mode in modes:
        stack._push_mode(mode)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    import transformers.utils.logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    root = logging.getLogger()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    root.addFilter(_drop)  # transformer-lens logs through the root logger
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_drop)
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
