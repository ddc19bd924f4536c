"""Keep the chatter of transformers and transformer-lens away from people, for the length of a `with`."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

_ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, log lines, warnings and prints of the two libraries; errors still raise.

    What must be seen meanwhile has to hold on to the stream it writes to, as the command's progress bars do.
    All of that is the process's own, and so are the switches that transformers turns while it builds a network (two
    threads that build at once leave it broken for good): one thread at a time, the others wait.
    """
    with _ONE_THREAD, _silence():
        yield


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
