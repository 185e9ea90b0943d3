"""Forks workers from one process that has their imports behind it.

Reads one JSON order a line from standard input: {"fork": {...}} starts a worker with these
variables in its environment and answers its pid; {"status": pid} answers its exit code, null while
it runs. Arguments are names of more modules to import.
A worker under test dies or freezes where ES_TEST_FAULT says (see `tests.faults.points`).
"""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from embedding_studio import logs
from embedding_studio.engine import worker
from embedding_studio.engine.jobs import DrawSearch
from embedding_studio.engine.worker import Worker
from embedding_studio.settings import Settings
from tests.faults.points import CLOCK_AHEAD, VARIABLE, arm
from tests.iterations import write_table

_PRELOADED = (
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry",
    "pymongo",
)


def main() -> None:
    for name in (*_PRELOADED, *sys.argv[1:]):
        __import__(name)
    ended: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer = _fork(order["fork"]) if "fork" in order else _status(order["status"], ended)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _fork(environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _become_worker(environment)
        status = 0
    except BaseException:  # noqa: BLE001 - the interpreter would print it and end
        traceback.print_exc()
    finally:
        os._exit(status)


def _become_worker(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # orders are not for us
    log = os.open(environment["ES_TEST_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logs.configure(logging.INFO)
    DrawSearch.__call__ = write_table  # type: ignore[method-assign] # see tests.iterations
    if fault := environment.get(VARIABLE):
        arm(fault)
    _open_worker(timedelta(seconds=float(environment.get(CLOCK_AHEAD, 0)))).run_forever()


def _open_worker(ahead: timedelta) -> Worker:
    """Open a worker on whose machine the clock is so far ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "utc_now", lambda: datetime.now(UTC) + ahead)
        return worker.open_worker(Settings())


def _status(pid: int, ended: dict[int, int]) -> Any:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]
