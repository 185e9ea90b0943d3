"""Where trials run: one interface, one implementation per kind of place."""

import os
import re

from embedding_studio.errors import ConfigurationError
from embedding_studio.executors.base import Executor

__all__ = ["Executor", "open_executor"]


def open_executor(spec: str) -> Executor:
    """Open the executor that `spec` names: "inline" or "process:N" with N >= 1.

    Raises ConfigurationError for anything else.
    """
    if spec == "inline":
        from embedding_studio.executors.inline import InlineExecutor

        return InlineExecutor()
    if match := re.fullmatch(r"process:([1-9]\d*)", spec):
        from embedding_studio.executors.process import ProcessExecutor

        return ProcessExecutor(int(match[1]), cores=os.cpu_count() or 1)
    raise ConfigurationError(
        f"ES_EXECUTOR is {spec!r}: use process:N (N trials at a time) or inline"
    )
