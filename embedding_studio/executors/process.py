"""Every job in a process of its own, forked from a server that has the imports behind it.

Memory comes back when the job ends, and a job starts in milliseconds: the fork server imported
the plugins, and so torch, once. A job's process dies with the worker that started it, however the
worker ended."""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from embedding_studio.errors import TrialCanceled, TrialCrashed
from embedding_studio.executors.base import (
    EVEN_SHARE,
    Executor,
    Job,
    Report,
    Resources,
    Verdict,
    obey,
)
from embedding_studio.executors.conversation import Answer, Conversation, answer_of
from embedding_studio.executors.output import (
    Output,
    flush_printed,
    last_lines,
    print_into,
    write_output,
)
from embedding_studio.executors.sockets import claim_folder

Result = TypeVar("Result")

KILL_SECONDS = 10.0
"""A killed process that is there after this long, stuck in a driver say, is waited for no more."""
OUTPUT_SECONDS = 1.0
PIPE_BYTES = 1024 * 1024
_PRELOAD = "embedding_studio.executors.preload"


class ProcessExecutor(Executor):
    """As many jobs at a time as it has slots; the cores are shared evenly among them.

    `devices` are the GPUs as CUDA_VISIBLE_DEVICES names them. Each job gets that of its slot: for
    itself alone where there are no more slots than devices."""

    def __init__(self, slots: int, cores: int, devices: Sequence[str] = ()) -> None:
        self._slots = slots
        self._free_devices = queue.SimpleQueue[str]()
        for slot in range(slots if devices else 0):
            self._free_devices.put(devices[slot % len(devices)])
        self._has_devices = bool(devices)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        self._threads = max(1, cores // slots)
        claim_folder()
        _start_fork_server(self._threads)
        self._supervisors = ThreadPoolExecutor(slots, thread_name_prefix="trial")
        self._processes: dict[Future[Any], _Supervised] = {}

    def slots(self, needs: Resources) -> int:
        return self._slots

    def submit(
        self,
        job: Job[Result],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> Future[Result]:
        future: Future[Result] = Future()
        supervised = _Supervised(self._make_process, job, on_report, output)
        self._processes[future] = supervised
        future.add_done_callback(lambda done: self._processes.pop(done))
        self._supervisors.submit(self._supervise, supervised, future)
        return future

    def _make_process(self, **about: Any) -> ForkServerProcess:
        _start_fork_server(self._threads)  # anew if it has died
        return self._context.Process(**about)

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


class _Supervised(Conversation):
    """One job's process, whose reports are answered in a thread of ours."""

    def __init__(
        self,
        make_process: Callable[..., ForkServerProcess],
        job: Job[Any],
        on_report: Callable[[Report], Verdict],
        output: Path | None,
    ) -> None:
        self._make_process = make_process
        self._job = job
        self._on_report = on_report
        self._output = output
        self._lock = threading.Lock()
        self._killed_at: float | None = None
        self._process: ForkServerProcess | None = None
        self._connection, self._theirs = multiprocessing.Pipe()
        self._printed = _Pipe()

    def kill(self) -> None:
        with self._lock:
            if self._killed_at is None:
                self._killed_at = time.monotonic()
                if self._process is not None:
                    _kill(self._process)

    def run(self, future: "Future[Any]", device: str | None) -> None:
        """Give the future its result at once, what went wrong when the process has ended."""
        try:
            self._run(future.set_result, device)
        except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
            future.set_exception(error)

    def _run(self, answer: Callable[[Any], None], device: str | None) -> None:
        with self._connection, self._printed:
            with self._lock, self._theirs, self._printed.writer as writer:
                if self._killed_at is not None:
                    raise TrialCanceled("killed before it started")
                about = (self._theirs, writer, self._job, device)
                process = self._process = self._make_process(target=_child, args=about)
                process.start()
            try:
                try:
                    with _watched(process) as self._ended:
                        result = self.hold(self._on_report)
                finally:
                    write_output(self._printed.content(), self._output)
                answer(result)
            finally:
                with self._lock:
                    self._process = None  # its pid may be another's once it is joined
                    _kill(process)
                    process.join(KILL_SECONDS)
                if process.exitcode is not None:
                    process.close()

    def receive(self) -> Report | Answer:
        while not multiprocessing.connection.wait([self._connection, self._ended], timeout=1.0):
            killed_at = self._killed_at
            if killed_at is not None and time.monotonic() - killed_at > KILL_SECONDS:
                raise TrialCanceled("killed on request, but its process does not end")
        try:
            if not self._connection.poll():  # a process of the job's own may hold the other end
                raise EOFError
            said: Report | Answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            assert self._process is not None
            self._process.join(KILL_SECONDS)
            if self._killed_at is not None:
                raise TrialCanceled("killed on request") from None
            last_output = last_lines(self._printed.content())
            raise TrialCrashed(_describe_exit(self._process.exitcode) + last_output) from None
        return said

    def reply(self, verdict: Verdict) -> None:
        with suppress(BrokenPipeError):  # it has died meanwhile, as `receive` then finds
            self._connection.send(verdict)


@contextmanager
def _watched(process: ForkServerProcess) -> Iterator[Any]:
    """What is ready once a process has ended, though the fork server may have ended before it."""
    assert process.pid is not None
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:  # it has ended, or this kernel has no such handles
        yield process.sentinel
    else:
        try:
            yield handle
        finally:
            os.close(handle)


def _kill(process: ForkServerProcess) -> None:
    """End a process and those that it started."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have had time to make its group


class _Pipe:
    """What a job's process prints into: the end to read, and the end to write, `writer`."""

    def __init__(self) -> None:
        self._reader, self.writer = multiprocessing.Pipe(duplex=False)
        self._output = Output()
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> "_Pipe":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.close()
        self._thread.join(OUTPUT_SECONDS)  # a process that left the job's group may write on
        if not self._thread.is_alive():
            self._reader.close()

    def content(self) -> bytes:
        """Return what was printed by now, within bounds."""
        self._read()
        return self._output.content

    def _read_on(self) -> None:
        while self._reader.poll(None) and self._read():
            pass

    def _read(self) -> bool:
        """Take all that is there, as much as a pipe holds; False when no more will come."""
        with self._reading:
            if not self._reader.poll():
                return True
            printed = os.read(self._reader.fileno(), PIPE_BYTES)
            self._output.add(printed)
            return bool(printed)


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        # a page of a file that is mapped into memory and that the disk has no room for
        short_of = "disk space" if exit_code == -signal.SIGBUS else "memory"
        return (
            f"the trial's process was killed by {signal.Signals(-exit_code).name}; "
            f"if nobody sent it, the machine may be out of {short_of}"
        )
    return f"the trial's process ended with exit status {exit_code} and no answer"


def _child(
    connection: Connection, output: "Connection[Any, Any]", job: Job[Any], device: str | None
) -> None:
    os.setpgid(0, 0)  # what it starts can be ended with it
    if device is not None:  # read when CUDA is first used, which the fork server never does
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with output:
        print_into(output.fileno())
    faulthandler.enable()  # where a plugin was when it crashed is told as well
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which decides
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def report(report: Report) -> Verdict:
        connection.send(report)
        return obey(connection.recv())

    answer = answer_of(job, report)
    flush_printed()
    connection.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _start_fork_server(threads: int) -> None:
    with _starting:
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


_starting = threading.Lock()
