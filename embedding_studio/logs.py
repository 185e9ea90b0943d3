"""Log lines: one that is written while a task is worked on names the task and the trial."""

import logging
from collections.abc import Iterator
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
        return escape_lines(super().format(record))


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
    handler.addFilter(_add_about)
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("embedding_studio").setLevel(own_level or level)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)


def _add_about(record: logging.LogRecord) -> bool:
    record.about = _about.get()
    return True
