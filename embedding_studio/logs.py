"""Log lines: one that is written while a task is worked on names the task and the trial."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from embedding_studio.plain import escape_lines

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s"
_CHATTY = ("httpx", "alembic", "sentence_transformers", "stamina")
_about: ContextVar[str] = ContextVar("about", default="")


class _Formatter(logging.Formatter):
    """One line for a record, and indented ones for its traceback: what strangers chose may be part
    of it, and cannot look like a line of ours."""

    def format(self, record: logging.LogRecord) -> str:
        record.about = _about.get()
        return escape_lines(super().format(record))


class OncePerMinute(logging.Filter):
    """Lets one record of a kind pass in a minute; it says how many were left out before it.

    For what strangers can cause as often as they like. A kind is a place in the code, and the type
    of the error that is told with it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed_at: dict[object, float] = {}
        self._left_out: Counter[object] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.pathname, record.lineno, record.exc_info and record.exc_info[0])
        now = self._clock()
        if now - self._passed_at.get(kind, -math.inf) < 60:
            self._left_out[kind] += 1
            return False
        self._passed_at[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{record.msg} [{left_out} more like this were left out before]"
        return True


@contextmanager
def about(what: str) -> Iterator[None]:
    """Let what is logged meanwhile in this thread, by whichever library, begin with `what`."""
    before = _about.set(f"{what}: ")
    try:
        yield
    finally:
        _about.reset(before)


def configure(level: int, own_level: int | None = None) -> None:
    """Write log lines and Python's warnings to standard error. own_level: of our own modules."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("embedding_studio").setLevel(own_level or level)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)


def adopt_libraries() -> None:
    """Have the libraries that are loaded, and write log lines of their own form, write ours.

    What writes elsewhere, as a plugin's to a file, or nowhere, stays as it is."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and not logger.propagate:
            for handler in logger.handlers[:]:
                if type(handler) is logging.StreamHandler:
                    logger.removeHandler(handler)
                    logger.propagate = True
