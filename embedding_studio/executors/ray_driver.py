"""The process that holds the connection to a Ray cluster.

It takes orders from the process that submits jobs, and passes on what becomes of them."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, get_args

import ray
from pydantic import SecretStr
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedding_studio.errors import TrialCrashed
from embedding_studio.executors.base import Verdict
from embedding_studio.executors.conversation import Answer
from embedding_studio.executors.output import last_lines, read_output, write_output
from embedding_studio.executors.ray_node import (
    Mailbox,
    Packed,
    Sender,
    pack,
    run_job,
    unpack_beside,
    wait_for,
)
from embedding_studio.settings import Settings

BEAT_SECONDS = 2.0
CLOSE_SECONDS = 10.0
"""For a cluster that may not answer."""
PROBE_SECONDS = 30.0
"""A node that does not run the smallest of tasks within this time is lost."""
MAX_ATTEMPTS = 4
"""At a job whose nodes are lost, one after the other."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job, pickled, and what it takes."""

    number: int
    job: bytes
    reads: Sequence[Path]
    writes: Sequence[Path]
    output: Path | None
    cpus: float
    gpus: float


def drive(connection: "Connection[Any, Any]", address: str, may_start: bool) -> None:
    """Serve the process at the other end of the connection until it has had enough.

    It is sent pairs: ("connected", whether a cluster was started for it), then ("nodes", what each
    has), again and again, ("job", (its number, what it says)) and ("unavailable", why)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which decides
    os.dup2(2, 1)
    for secret in _SECRETS:  # trials are given what is left
        os.environ.pop(secret, None)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
    try:
        has_started = _connect(address, may_start)
        driver = _Driver(connection)
    except Exception as error:  # noqa: BLE001 - whatever Ray says of a cluster it cannot join
        connection.send(("unavailable", f"{type(error).__name__}: {error}"))
        return
    connection.send(("connected", has_started))
    driver.run()


_SECRETS = {
    f"ES_{name.upper()}"
    for name, setting in Settings.model_fields.items()
    if SecretStr in (setting.annotation, *get_args(setting.annotation))
}


def _connect(address: str, may_start: bool) -> bool:
    """Join the cluster, or else start one if that is allowed; return whether it was started."""
    options: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": True}
    try:
        ray.init(address, **options)
    except ConnectionError:
        if not may_start or "RAY_ADDRESS" in os.environ:
            raise
        ray.init("local", include_dashboard=False, **options)
        return True
    return False


_GONE = (ConnectionError, ray_errors.LocalRayletDiedError, ray_errors.RaySystemError)
"""What Ray raises when the driver has lost it."""


@dataclass(slots=True)
class _RunningJob:
    attempt: int = 0
    task: Any = None
    is_dropped: bool = False
    #: the steps that earlier attempts had reported
    reported: set[int] = field(default_factory=set)
    #: the steps that this attempt has reported
    reporting: set[int] = field(default_factory=set)


class _Driver:
    """Submits jobs to Ray, again when their node is lost, and passes their messages on."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._is_closing = False
        self._jobs: dict[int, _RunningJob] = {}
        self._packing = threading.Lock()
        self._packed: dict[tuple[Path, int, int], Packed] = {}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = (
            ray.remote(Mailbox)
            .options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000)
            .remote()
        )
        self._environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("ES_")},
            # without this, Ray leaves a job that asked for none all GPUs of its node
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        }

    def run(self) -> NoReturn:
        """Obey until the submitting process says that it is enough, or ends."""
        self._start_thread(self._beat)
        self._start_thread(self._pass_reports_on)
        commands: dict[str, Callable[..., None]] = {
            "submit": self._submit,
            "answer": self._answer,
            "drop": self._drop,
        }
        with suppress(EOFError, ConnectionResetError):
            while True:
                command, arguments = self._connection.recv()
                if command == "close":
                    break
                commands[command](*arguments)
        self._is_closing = True
        threading.Timer(CLOSE_SECONDS, os._exit, [1]).start()
        for number in list(self._jobs):
            self._drop(number)
        ray.shutdown()
        os._exit(0)

    def _start_thread(self, errand: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                errand(*arguments)
            except Exception as error:  # noqa: BLE001 - without any of its threads it is no use
                if not self._is_closing:
                    self._send("unavailable", f"{type(error).__name__}: {error}")
                    os._exit(1)

        threading.Thread(target=run, daemon=True).start()

    def _send(self, kind: str, content: Any) -> None:
        with suppress(OSError), self._sending:
            self._connection.send((kind, content))

    def _beat(self) -> None:
        while True:
            nodes = ray.nodes()  # type: ignore[no-untyped-call]
            self._send("nodes", [node["Resources"] for node in nodes if node["Alive"]])
            time.sleep(BEAT_SECONDS)

    def _pass_reports_on(self) -> None:
        while True:
            for (number, attempt), report in wait_for(self._mailbox.take.remote()):
                job = self._jobs.get(number)
                if job is None or job.attempt != attempt:
                    self._answer((number, attempt), Verdict.CANCEL)
                elif report.step in job.reported:
                    self._answer((number, attempt), Verdict.CONTINUE)
                else:
                    job.reporting.add(report.step)
                    self._send("job", (number, ((number, attempt), report)))

    def _answer(self, sender: Sender, verdict: Verdict) -> None:
        self._mailbox.answer.remote(sender, verdict)

    def _drop(self, number: int) -> None:
        if job := self._jobs.pop(number, None):
            job.is_dropped = True
            if job.task is not None:
                ray.cancel(job.task, force=True)

    def _submit(self, order: Order) -> None:
        job = self._jobs[order.number] = _RunningJob()
        self._start_thread(self._see_through, order, job)

    def _see_through(self, order: Order, job: _RunningJob) -> None:
        try:
            message: Answer | TrialCrashed = self._run(order, job)
        except (*_GONE, ray_errors.RayActorError):
            raise  # the latter is about our mailbox, which lives as long as we do
        except Exception as error:  # noqa: BLE001 - around a trial: it becomes the future's exception
            message = Answer.with_error(error)
        if not job.is_dropped:
            self._send("job", (order.number, message))

    def _run(self, order: Order, job: _RunningJob) -> Answer | TrialCrashed:
        while job.attempt < MAX_ATTEMPTS:
            sender = (order.number, job.attempt)
            try:
                job.task = self._start(order, sender)
                if job.is_dropped:
                    ray.cancel(job.task, force=True)
                answer, written, printed = wait_for(job.task)
            except _GONE:
                raise
            except (ray_errors.ObjectLostError, ray_errors.RayActorError):
                with self._packing:
                    self._packed.clear()
            except ray_errors.RayError as error:
                if job.is_dropped:
                    return TrialCrashed(_describe(error))
                if not isinstance(error, ray_errors.NodeDiedError):
                    printed = self._read_output(sender)
                    if printed is not None:
                        write_output(printed, order.output)
                        return TrialCrashed(_describe(error) + last_lines(printed))
            else:
                if not job.is_dropped:
                    write_output(printed, order.output)
                for path, packed in () if job.is_dropped else written.items():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with unpack_beside(packed, path) as beside:
                        (beside / path.name).rename(path)
                return answer  # type: ignore[no-any-return]
            finally:
                self._mailbox.forget.remote(sender)
            job.reported |= job.reporting
            job.attempt += 1
        return TrialCrashed(f"the nodes that it ran on were lost, {MAX_ATTEMPTS} times in a row")

    def _start(self, order: Order, sender: Sender) -> Any:
        threads = max(1, int(order.cpus))
        # Ray gives a process to jobs of the same environment alone: its threads are theirs
        environment = {**self._environment, "OMP_NUM_THREADS": str(threads)}
        task = ray.remote(run_job).options(
            name="trial",
            num_cpus=order.cpus,
            num_gpus=order.gpus,
            max_retries=0,
            runtime_env={"env_vars": environment},
        )
        packed = {path: self._pack(path) for path in order.reads}
        return task.remote(order.job, packed, order.writes, sender, self._mailbox)

    def _pack(self, path: Path) -> "Packed":
        """Return a file or folder as the object store has it, where it is put once."""
        with self._packing:
            for known in [known for known in self._packed if not known[0].exists()]:
                del self._packed[known]
            status = path.stat()
            key = (path, status.st_ino, status.st_mtime_ns)
            if key not in self._packed:
                content = pack(path)
                digest = hashlib.sha256(content).hexdigest()[:32]
                self._packed[key] = Packed(path.name, digest, [ray.put(content)])
            return self._packed[key]

    def _read_output(self, sender: Sender) -> bytes | None:
        """Return what a job had printed when its process died; None when its node is lost too."""
        place = wait_for(self._mailbox.place_of.remote(sender))
        if place is None:  # it had not begun
            return b""
        node_id, file = place
        read = ray.remote(read_output).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        try:
            printed: bytes = ray.get(read.remote(file), timeout=PROBE_SECONDS)
        except ray_errors.RayTaskError:  # the node is there, the file is not
            return b""
        except ray_errors.RayError:
            return None
        return printed


def _describe(error: ray_errors.RayError) -> str:
    if isinstance(error, ray_errors.WorkerCrashedError):
        return (
            "the trial's process died without an answer. Ray does not say of what: it was killed "
            "(SIGKILL; if nobody sent it, the machine may be out of memory), crashed or exited"
        )
    return f"{type(error).__name__}: {error}"
