"""Every job in a process of its own, forked from a server that has the imports behind it.

Memory comes back when the job ends, and a job starts in milliseconds: the fork server imported
the plugins, and so torch, once. A job's process dies with the worker that started it, however the
worker ended.
"""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import Any, TypeVar

from embedding_studio.errors import MethodError, TrialCanceled, TrialCrashed
from embedding_studio.executors.base import (
    EVEN_SHARE,
    Executor,
    Job,
    Report,
    Resources,
    Verdict,
    obey,
)

Result = TypeVar("Result")

OUTPUT_LINES = 20
OUTPUT_BYTES = 8192
OUTPUT_SECONDS = 1.0
_PRELOAD = "embedding_studio.executors.preload"


class ProcessExecutor(Executor):
    """slots: jobs at a time; each gets cores // slots threads, at least one.

    devices: the GPUs, by what CUDA_VISIBLE_DEVICES calls them; each job gets that of its slot, and
    so has it alone while there are no more slots than devices.
    """

    def __init__(self, slots: int, cores: int, devices: Sequence[str] = ()) -> None:
        self._slots = slots
        self._free_devices = queue.SimpleQueue[str]()
        for slot in range(slots if devices else 0):
            self._free_devices.put(devices[slot % len(devices)])
        self._has_devices = bool(devices)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        _start_fork_server(threads=max(1, cores // slots))
        self._supervisors = ThreadPoolExecutor(slots, thread_name_prefix="trial")
        self._processes: dict[Future[Any], _Supervised] = {}

    def slots(self, needs: Resources) -> int:
        return self._slots

    def submit(
        self,
        job: Job[Result],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
    ) -> Future[Result]:
        future: Future[Result] = Future()
        supervised = _Supervised(self._context.Process, job, on_report)
        self._processes[future] = supervised
        future.add_done_callback(lambda done: self._processes.pop(done))
        self._supervisors.submit(self._supervise, supervised, future)
        return future

    def _supervise(self, supervised: "_Supervised", future: "Future[Any]") -> None:
        device = self._free_devices.get() if self._has_devices else None
        try:
            supervised.run(future, device)
        finally:
            if device is not None:
                self._free_devices.put(device)

    def kill(self, future: "Future[Result]") -> None:
        if supervised := self._processes.get(future):
            supervised.kill()

    def close(self) -> None:
        for supervised in list(self._processes.values()):
            supervised.kill()
        self._supervisors.shutdown()


class _Supervised:
    """One job's process, and the thread that answers its reports."""

    def __init__(
        self,
        make_process: Callable[..., ForkServerProcess],
        job: Job[Any],
        on_report: Callable[[Report], Verdict],
    ) -> None:
        self._make_process = make_process
        self._job = job
        self._on_report = on_report
        self._lock = threading.Lock()
        self._is_killed = False
        self._process: ForkServerProcess | None = None

    def kill(self) -> None:
        with self._lock:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def run(self, future: "Future[Any]", device: str | None) -> None:
        """Give the future its result at once, what went wrong when the process has ended."""
        try:
            self._run(future.set_result, device)
        except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
            future.set_exception(error)

    def _run(self, answer: Callable[[Any], None], device: str | None) -> None:
        ours, theirs = multiprocessing.Pipe()
        with ours, _Output() as output:
            with self._lock, theirs, output.writer as writer:
                if self._is_killed:
                    raise TrialCanceled("killed before it started")
                process = self._make_process(
                    target=_child, args=(theirs, writer, self._job, device)
                )
                process.start()
                self._process = process
            output.pass_on()
            try:
                answer(self._converse(ours, process, output))
            finally:
                with self._lock:
                    self._process = None  # its pid may be another's once it is joined
                    process.kill()
                    process.join()
                process.close()

    def _converse(
        self, connection: Connection, process: ForkServerProcess, output: "_Output"
    ) -> Any:
        while True:
            try:
                kind, payload = connection.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                if self._is_killed:
                    raise TrialCanceled("killed on request") from None
                raise TrialCrashed(_describe_exit(process.exitcode) + output.tail()) from None
            if kind == "result":
                return payload
            if kind == "error":
                error, remote_traceback = payload
                raise error from RemoteTraceback(remote_traceback)
            verdict = self._on_report(payload)
            if verdict is Verdict.CANCEL:  # not asked to end: leaving `run` kills its process
                obey(verdict)
            connection.send(verdict)


class _Output:
    """What a job's process prints: passed on to our own standard error, its end kept."""

    def __init__(self) -> None:
        self._reader, self.writer = multiprocessing.Pipe(duplex=False)
        self._end = b""
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread.ident is not None:
            self._thread.join(OUTPUT_SECONDS)  # a process of the job's own may live on and write
        if not self._thread.is_alive():
            self._reader.close()

    def pass_on(self) -> None:
        self._thread.start()

    def _pass_on(self) -> None:
        while printed := os.read(self._reader.fileno(), 65536):
            self._end = (self._end + printed)[-OUTPUT_BYTES:]
            os.write(2, printed)

    def tail(self) -> str:
        """Return the last lines of what an ended job has printed, introduced; "" for nothing."""
        self._thread.join(OUTPUT_SECONDS)
        lines = self._end.decode(errors="replace").strip().splitlines()[-OUTPUT_LINES:]
        return "; its last output:\n" + "\n".join(lines) if lines else ""


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return (
            f"the trial's process was killed by {signal.Signals(-exit_code).name}; "
            "if nobody sent it, the machine may be out of memory"
        )
    return f"the trial's process ended with exit status {exit_code} and no answer"


def _child(
    connection: Connection, output: "Connection[Any, Any]", job: Job[Any], device: str | None
) -> None:
    if device is not None:  # read when CUDA is first used, which the fork server never does
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which decides
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def report(report: Report) -> Verdict:
        connection.send(("report", report))
        return obey(connection.recv())

    try:
        answer: tuple[str, Any] = ("result", job(report))
    except Exception as error:  # noqa: BLE001 - around a trial: it is raised again over there
        answer = ("error", (error, traceback.format_exc()))
    try:
        connection.send(answer)
    except Exception:  # noqa: BLE001 - an answer that cannot be pickled is described instead
        description = f"the trial's answer cannot be sent between processes: {answer[1]!r}"
        connection.send(("error", (MethodError(description), traceback.format_exc())))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start_fork_server(threads: int) -> None:
    # OpenMP reads this when it loads, which the fork server does for every job to come
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
