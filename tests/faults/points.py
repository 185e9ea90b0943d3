"""Where a process under test dies or freezes: before or after the n-th call of a function."""

import functools
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "ES_TEST_FAULT"
CLOCK_AHEAD = "ES_TEST_CLOCK_AHEAD"
"""How many seconds the clock of a worker's machine is ahead."""


@dataclass(frozen=True)
class Fault:
    """function: its module, a colon, and its name in it. moment: before or after its nth call.

    action: kill or stop (freeze) this process; kill_trials: its descendants that run trials;
    kill_all, stop_all: both. marker: a file that exists from that moment on; the fault happens
    only once.
    """

    function: str
    moment: str
    nth: int = 1
    action: str = "kill"
    marker: str = ""

    def __str__(self) -> str:
        return f"{self.action} {self.moment} {self.function.split(':')[1]} #{self.nth}"

    def as_variable(self, marker: Path) -> dict[str, str]:
        return {VARIABLE: json.dumps({**asdict(self), "marker": str(marker)})}


def arm(variable: str) -> None:
    """Make the fault happen in this process."""
    fault = Fault(**json.loads(variable))
    module_name, path = fault.function.split(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _faulty(fault, getattr(owner, name)))


def _faulty(fault: Fault, real: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()
    calls = 0

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            is_due = calls == fault.nth
        if is_due and fault.moment == "before":
            _happen(fault)
        result = real(*args, **kwargs)
        if is_due and fault.moment == "after":
            _happen(fault)
        return result

    return call


def _happen(fault: Fault) -> None:
    Path(fault.marker).touch()
    if fault.action in ("kill_trials", "kill_all", "stop_all"):
        for pid in trial_processes(os.getpid()):
            os.kill(pid, signal.SIGSTOP if fault.action == "stop_all" else signal.SIGKILL)
    if fault.action in ("kill", "kill_all"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action in ("stop", "stop_all"):
        # to this very thread: another one might take it later, when this one is past the point
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def trial_processes(worker_pid: int) -> list[int]:
    """Return the pids of the processes that a worker's fork server forked."""
    running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in running if worker_pid in ancestors(pid)[1:]]


def ancestors(pid: int) -> list[int]:
    """Return the parents of a process, nearest first."""
    chain = []
    while pid > 1:
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
        chain.append(parent)
        pid = parent
    return chain
