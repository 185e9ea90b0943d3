"""Jobs as tasks of a Ray cluster, on whichever of its nodes have room.

The connection to Ray is held by a process of our own, the driver: Ray ends a process whose cluster
is gone, and keeps in it what stands in the way of connecting anew. When the driver has not been
heard of for a while it is killed, and what ran is out of order; `ping` starts another.

What jobs read travels as tar files through Ray's object store, once to each node; what they write
travels back with their answer. Reports go through one actor next to the driver, which waits at it
for all jobs."""

import itertools
import multiprocessing
import pickle
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from embedding_studio.errors import EmbeddingStudioError, ExecutorUnavailable, TrialCanceled
from embedding_studio.executors.base import (
    EVEN_SHARE,
    Executor,
    Job,
    Report,
    Resources,
    Verdict,
    relocated,
)
from embedding_studio.executors.conversation import Answer, Conversation
from embedding_studio.executors.ray_driver import CLOSE_SECONDS, Order, drive
from embedding_studio.executors.ray_node import Sender

Result = TypeVar("Result")

CONNECT_SECONDS = 40.0
SILENCE_SECONDS = 30.0
"""A cluster not heard of for this long is out of order."""


class RayExecutor(Executor):
    """Jobs on a cluster: the one at ray://host:port, or with "auto" the one of this machine.

    A machine without a cluster gets one of its own. Raises ExecutorUnavailable."""

    def __init__(self, address: str) -> None:
        self._numbers = itertools.count()
        self._submitted: dict[Future[Any], _Submitted] = {}
        try:
            self._link = _Link(address, may_start=address == "auto")
        except ExecutorUnavailable:  # Ray Client's server now and then lets a connection hang
            self._link = _Link(address, may_start=address == "auto")

    def slots(self, needs: Resources) -> int:
        cpus, gpus = self._demand(needs)
        return max(1, sum(_count_fits(node, cpus, gpus) for node in self._link.nodes))

    def submit(
        self,
        job: Job[Result],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> Future[Result]:
        number, future = next(self._numbers), Future[Result]()
        reads, writes = list[Path](), list[Path]()
        absolute = relocated(job, partial(_note, reads), partial(_note, writes))
        kept = output.absolute() if output else None
        order = Order(number, pickle.dumps(absolute), reads, writes, kept, *self._demand(needs))
        link = self._link
        submitted = link.submit(order)
        self._submitted[future] = submitted
        future.add_done_callback(self._submitted.pop)

        def supervise() -> None:
            try:
                result = submitted.hold(on_report)
            except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
                link.drop(number)
                future.set_exception(error)
            else:
                link.drop(number)
                future.set_result(result)

        threading.Thread(target=supervise, name=f"trial-{number}", daemon=True).start()
        return future

    def kill(self, future: "Future[Result]") -> None:
        if submitted := self._submitted.get(future):
            submitted.tell(TrialCanceled("killed on request"))

    def ping(self) -> None:
        if not self._link.is_open:
            # a cluster that was joined is waited for: one on this machine is no stand-in for it
            self._link = _Link(self._link.address, self._link.has_started_cluster)

    def close(self) -> None:
        for future in list(self._submitted):
            self.kill(future)
        self._link.close()

    def _demand(self, needs: Resources) -> tuple[float, float]:
        has_gpus = any(node.get("GPU") for node in self._link.nodes)
        return needs.cpus or 1, needs.gpus if has_gpus else 0


def _note(paths: list[Path], path: Path) -> Path:
    paths.append(path.absolute())
    return paths[-1]


def _count_fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpus = int(node.get("CPU", 0) / cpus)
    if not gpus:
        return by_cpus
    devices = int(node.get("GPU", 0))
    # a share is a share of one device
    by_gpus = devices * int(1 / gpus + 1e-6) if gpus < 1 else int(devices / gpus)
    return min(by_cpus, by_gpus)


# -- between the submitting process and the driver ---------------------------------------------


class _Submitted(Conversation):
    """A job, as the submitting process hears of it from the driver."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._told = queue.SimpleQueue[tuple[Sender, Report] | Answer | EmbeddingStudioError]()
        self._sender: Sender

    def tell(self, message: tuple[Sender, Report] | Answer | EmbeddingStudioError) -> None:
        """Let the job's thread know; an error ends the job."""
        self._told.put(message)

    def receive(self) -> Report | Answer:
        message = self._told.get()
        if isinstance(message, EmbeddingStudioError):
            raise message
        if isinstance(message, Answer):
            return message
        self._sender, report = message
        return report

    def reply(self, verdict: Verdict) -> None:
        self._send("answer", self._sender, verdict)


class _Link:
    """The driver, seen from the process that submits. Raises ExecutorUnavailable."""

    def __init__(self, address: str, may_start: bool) -> None:
        self.address = address
        self._outage = f"the Ray cluster at {address} does not answer"
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=drive, args=(theirs, address, may_start), name="ray-driver", daemon=True
        )
        self._submitted: dict[int, _Submitted] = {}
        self._lock = threading.Lock()  # around what was submitted and is_open
        self._sending = threading.Lock()
        self._nodes: Sequence[Mapping[str, float]] = []
        self._process.start()
        theirs.close()
        self.is_open = True
        try:
            _, self.has_started_cluster = self._receive(CONNECT_SECONDS)
            _, self._nodes = self._receive(CONNECT_SECONDS)
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._listen, name="ray-listener", daemon=True).start()

    @property
    def nodes(self) -> Sequence[Mapping[str, float]]:
        """Return the resources of each node that is alive."""
        if not self.is_open:
            raise ExecutorUnavailable(self._outage)
        return self._nodes

    def submit(self, order: Order) -> _Submitted:
        submitted = _Submitted(self.send)
        with self._lock:
            if not self.is_open:
                raise ExecutorUnavailable(self._outage)
            self._submitted[order.number] = submitted
        self.send("submit", order)
        return submitted

    def send(self, command: str, *arguments: Any) -> None:
        """Tell the driver; one that is gone has been, or will be, noticed by the listener."""
        with suppress(OSError), self._sending:
            self._connection.send((command, arguments))

    def drop(self, number: int) -> None:
        """Forget a job, which ends if it still runs."""
        with self._lock:
            self._submitted.pop(number, None)
        self.send("drop", number)

    def close(self) -> None:
        self.send("close")
        self._process.join(2 * CLOSE_SECONDS)  # by then it has given up the cluster
        self._process.kill()

    def _receive(self, seconds: float) -> tuple[str, Any]:
        try:
            if self._connection.poll(seconds):
                kind, content = self._connection.recv()
                if kind == "unavailable":
                    raise ExecutorUnavailable(f"{self._outage}: {content}")
                return kind, content
        except (EOFError, ConnectionResetError) as error:
            raise ExecutorUnavailable(f"{self._outage}: its driver ended") from error
        raise ExecutorUnavailable(f"{self._outage} for {seconds:.0f} s")

    def _listen(self) -> None:
        why = self._outage
        try:
            while True:
                kind, content = self._receive(SILENCE_SECONDS)
                if kind == "nodes":
                    self._nodes = content
                else:
                    number, message = content
                    if submitted := self._submitted.get(number):
                        submitted.tell(message)
        except ExecutorUnavailable as error:
            why = str(error)
        finally:
            self._end()
            with self._lock:
                self.is_open = False
                left = list(self._submitted.values())
            for submitted in left:
                submitted.tell(ExecutorUnavailable(why))

    def _end(self) -> None:
        self.is_open = False
        self._process.kill()
        self._process.join()
