"""Jobs as tasks of a Ray cluster, on whichever of its nodes have room.

The connection to Ray is held by a process of our own, the driver: Ray ends a process whose cluster
is gone, and keeps in it what stands in the way of connecting anew. When the driver has not been
heard of for a while it is killed, and what ran is out of order; `ping` starts another.

What jobs read travels as tar files through Ray's object store, once to each node; what they write
travels back with their answer. Reports go through one actor next to the driver, which waits at it
for all jobs.
"""

import itertools
import multiprocessing
import pickle
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from embedding_studio.errors import (
    ExecutorUnavailable,
    TrialCanceled,
    TrialCrashed,
)
from embedding_studio.executors.base import (
    EVEN_SHARE,
    Executor,
    Job,
    Report,
    Resources,
    Verdict,
    obey,
    relocated,
)
from embedding_studio.executors.ray_driver import CLOSE_SECONDS, Order, drive

Result = TypeVar("Result")

CONNECT_SECONDS = 40.0
SILENCE_SECONDS = 30.0
"""A cluster not heard of for this long is out of order."""


class RayExecutor(Executor):
    """address: "auto" for the cluster that this machine is part of, else one on this machine alone;
    or ray://host:port. Raises ExecutorUnavailable."""

    def __init__(self, address: str) -> None:
        self._numbers = itertools.count()
        self._inboxes: dict[Future[Any], _Inbox] = {}
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
        number, inbox, future = next(self._numbers), _Inbox(), Future[Result]()
        reads, writes = list[Path](), list[Path]()
        absolute = relocated(job, partial(_note, reads), partial(_note, writes))
        kept = output.absolute() if output else None
        order = Order(number, pickle.dumps(absolute), reads, writes, kept, *self._demand(needs))
        link = self._link
        link.submit(order, inbox)
        self._inboxes[future] = inbox
        future.add_done_callback(self._inboxes.pop)

        def supervise() -> None:
            try:
                result = _converse(link, inbox, on_report)
            except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
                link.drop(number)
                future.set_exception(error)
            else:
                link.drop(number)
                future.set_result(result)

        threading.Thread(target=supervise, name=f"trial-{number}", daemon=True).start()
        return future

    def kill(self, future: "Future[Result]") -> None:
        if inbox := self._inboxes.get(future):
            inbox.put(("killed", None))

    def ping(self) -> None:
        if not self._link.is_open:
            # a cluster that was joined is waited for: one on this machine is no stand-in for it
            self._link = _Link(self._link.address, self._link.has_started_cluster)

    def close(self) -> None:
        for future in list(self._inboxes):
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

_Inbox: TypeAlias = queue.SimpleQueue[tuple[str, Any]]
"""What concerns one job: a kind of message, and its content."""


def _converse(link: "_Link", inbox: _Inbox, on_report: Callable[[Report], Verdict]) -> Any:
    while True:
        kind, content = inbox.get()
        match kind:
            case "report":
                sender, report = content
                verdict = on_report(report)
                if verdict is Verdict.CANCEL:  # not asked to end: dropping the job kills it
                    obey(verdict)
                link.send("answer", sender, verdict)
            case "result":
                return pickle.loads(content)
            case "error":
                error, remote_traceback = pickle.loads(content)
                raise error from RemoteTraceback(remote_traceback)
            case "crashed":
                raise TrialCrashed(content)
            case "killed":
                raise TrialCanceled("killed on request")
            case _:
                raise ExecutorUnavailable(content)


class _Link:
    """The driver, seen from the process that submits. Raises ExecutorUnavailable."""

    def __init__(self, address: str, may_start: bool) -> None:
        self.address = address
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=drive, args=(theirs, address, may_start), name="ray-driver", daemon=True
        )
        self._inboxes: dict[int, _Inbox] = {}
        self._lock = threading.Lock()  # around inboxes and is_open
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

    def submit(self, order: Order, inbox: _Inbox) -> None:
        with self._lock:
            if not self.is_open:
                raise ExecutorUnavailable(self._outage)
            self._inboxes[order.number] = inbox
        self.send("submit", order)

    def send(self, command: str, *arguments: Any) -> None:
        """Tell the driver; one that is gone has been, or will be, noticed by the listener."""
        with suppress(OSError), self._sending:
            self._connection.send((command, arguments))

    def drop(self, number: int) -> None:
        """Forget a job, which ends if it still runs."""
        with self._lock:
            self._inboxes.pop(number, None)
        self.send("drop", number)

    def close(self) -> None:
        self.send("close")
        self._process.join(2 * CLOSE_SECONDS)  # by then it has given up the cluster
        self._process.kill()

    @property
    def _outage(self) -> str:
        return f"the Ray cluster at {self.address} does not answer"

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
                    number, *message = content
                    if inbox := self._inboxes.get(number):
                        inbox.put((kind, *message))
        except ExecutorUnavailable as error:
            why = str(error)
        finally:
            self._end()
            with self._lock:
                self.is_open = False
                inboxes = list(self._inboxes.values())
            for inbox in inboxes:
                inbox.put(("unavailable", why))

    def _end(self) -> None:
        self.is_open = False
        self._process.kill()
        self._process.join()
