"""Whether an installation can work: what was looked at, what was found, and how to mend it."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from embedding_studio.clock import utc_now
from embedding_studio.errors import ConfigurationError, EmbeddingStudioError
from embedding_studio.executors import open_executor
from embedding_studio.executors.base import EVEN_SHARE, Job, Report, Reporter, Verdict
from embedding_studio.executors.process import ProcessExecutor
from embedding_studio.methods import discover_methods
from embedding_studio.services import client_of
from embedding_studio.settings import Settings
from embedding_studio.store import Store, is_there, open_documents, place_of
from embedding_studio.store.codec import moment_of
from embedding_studio.tracking import reader
from embedding_studio.tracking.probe import probe_artifacts
from embedding_studio.workers import silence_allowed

LEAST_FREE_BYTES = 1024**3
FEW_FREE_BYTES = 5 * 1024**3
MOST_SECONDS_OFF = 5.0
JOB_SECONDS = 60.0
"""How long the executor may take for a job that does nothing."""


class Status(StrEnum):
    """How a check went.

    warn: it works, or will, but something is not as one might think; fail: it does not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look came to."""

    check: str
    status: Status
    found: str
    #: what to do about it
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Answer(Job[int]):
    """A job that returns the id of its process."""

    def __call__(self, report: Reporter) -> int:
        return os.getpid()


@dataclass(frozen=True, slots=True)
class Carried:
    """What a worker would carry, and what torch would use."""

    methods: tuple[str, ...]
    failures: Mapping[str, str]
    #: why the initial model of a method is not there, by the method's name
    missing: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LookAtMethods(Job[Carried]):
    """Loads the plugins, and torch, in a process of its own."""

    folder: Path
    import_seconds: float

    def __call__(self, report: Reporter) -> Carried:
        from embedding_studio.training.devices import describe_devices

        catalog = discover_methods(self.folder, self.import_seconds)
        missing = {}
        for name, method in catalog.methods.items():
            try:
                method.check_initial_model()
            except Exception as error:  # noqa: BLE001 - a plugin's: it is what is told
                missing[name] = str(error) or repr(error)
        devices = tuple(describe_devices())
        return Carried(tuple(sorted(catalog.methods)), catalog.failures, missing, devices)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that an installation needs; yield what is found as it is found.

    Nothing is written into a store, an MLflow or a folder that was not there before."""
    for check, look, mend in _LOOKS:
        try:
            yield from look(settings)
        except EmbeddingStudioError as error:
            yield Finding(check, Status.FAIL, str(error), mend)
        except TimeoutError:
            yield Finding(check, Status.FAIL, f"no answer within {JOB_SECONDS:.0f} s", mend)


def _store(settings: Settings) -> Iterator[Finding]:
    url = settings.resolved_store_url
    if not is_there(url):
        mend = "`embedding-studio up` makes one here; ES_DATA_FOLDER names another"
        yield Finding("store", Status.WARN, f"{place_of(url)} is not there yet", mend)
        return
    with closing(open_documents(url)) as documents:
        told, now = moment_of(documents.ping()), utc_now()
        workers = Store(documents).workers.seen(told - silence_allowed(settings))
    yield Finding("store", Status.OK, f"{place_of(url)} answers and can be written")
    yield _clock("the store's", (now - told).total_seconds())
    if workers:
        yield Finding("worker", Status.OK, f"live: {', '.join(one.worker_id for one in workers)}")
    else:
        mend = "tasks wait for one: run `embedding-studio worker`"
        yield Finding("worker", Status.WARN, "no live worker works on this store", mend)


def _clock(whose: str, seconds_ahead: float) -> Finding:
    if abs(seconds_ahead) <= MOST_SECONDS_OFF:
        return Finding("clock", Status.OK, f"agrees with {whose}")
    off = f"this machine's clock is {seconds_ahead:+.0f} s off {whose}"
    return Finding("clock", Status.FAIL, off, "have the machines' clocks set, by NTP say")


def _mlflow(settings: Settings) -> Iterator[Finding]:
    uri = settings.resolved_tracking_uri
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        yield Finding(
            "MLflow", Status.WARN, f"{file} is not there yet", "the first worker makes it"
        )
        return
    try:
        yield Finding("MLflow", Status.OK, reader.look(uri))
    except ConfigurationError as error:
        yield Finding("MLflow", Status.WARN, str(error), "look at it in another way")


def _artifacts(settings: Settings) -> Iterator[Finding]:
    uri, folder = settings.resolved_tracking_uri, settings.artifacts_folder
    place = _existing(folder)
    if uri.startswith("http") or place == folder:
        found = f"written, read and deleted in {probe_artifacts(uri, folder)}"
        yield Finding("artifacts", Status.OK, found)
    elif os.access(place, os.W_OK):
        mend = "the first worker makes it"
        yield Finding("artifacts", Status.WARN, f"{folder} is not there yet", mend)
    else:
        mend = "name another place in ES_DATA_FOLDER"
        yield Finding("artifacts", Status.FAIL, f"{place} cannot be written", mend)


def _disk(settings: Settings) -> Iterator[Finding]:
    place = _existing(settings.data_folder.absolute())
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GB are free at {place}"
    if free >= FEW_FREE_BYTES:
        yield Finding("disk", Status.OK, found)
    else:
        status = Status.WARN if free >= LEAST_FREE_BYTES else Status.FAIL
        yield Finding("disk", status, found, "make room, or name another disk in ES_DATA_FOLDER")


def _existing(folder: Path) -> Path:
    """Return a folder that is there: this one, or the nearest above it."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _executor(settings: Settings) -> Iterator[Finding]:
    with closing(open_executor(settings.executor)) as executor:
        executor.submit(Answer(), _go_on).result(JOB_SECONDS)
        slots = executor.slots(EVEN_SHARE)
    at_a_time = "one trial" if slots == 1 else f"{slots} trials"
    yield Finding("executor", Status.OK, f"ran a job; {at_a_time} at a time")


def _go_on(report: Report) -> Verdict:
    return Verdict.CONTINUE


def _methods(settings: Settings) -> Iterator[Finding]:
    folder = settings.plugins_folder.absolute()
    with closing(ProcessExecutor(1, 1)) as executor:
        look = LookAtMethods(folder, settings.plugin_import_seconds)
        carried = executor.submit(look, _go_on).result()
    for place, why in carried.failures.items():
        mend = "mend this plugin; the others work without it"
        yield Finding("plugin", Status.FAIL, f"{place} does not load: {why}", mend)
    if not carried.methods:
        mend = "name the folder of your methods in ES_PLUGINS_FOLDER"
        yield Finding("plugin", Status.FAIL, f"there is no method in {folder}", mend)
    for name in carried.methods:
        yield Finding("plugin", Status.OK, f"{name} loads")
        if name in carried.missing:
            # how to mend it is the method's to say
            found = f"{name} cannot start: {carried.missing[name]}"
            yield Finding("initial model", Status.FAIL, found)
        else:
            yield Finding("initial model", Status.OK, f"{name} has what it starts from")
    devices = "; ".join(carried.devices) or "none: training takes the CPU"
    yield Finding("GPU", Status.OK, devices)


def _api(settings: Settings) -> Iterator[Finding]:
    with client_of(settings, timeout=5.0, retry_seconds=1.0) as client:
        try:
            told = client.ping()
        except EmbeddingStudioError as error:
            mend = "run `embedding-studio up`, or name another by --url or ES_API_URL"
            yield Finding("API", Status.WARN, str(error), mend)
            return
    yield Finding("API", Status.OK, f"{settings.api_address} answers")
    yield _clock("the API's", (utc_now() - told).total_seconds())


_LOOKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]], str], ...] = (
    ("store", _store, "have the database answer, or name another in ES_STORE_URL"),
    ("MLflow", _mlflow, "have it answer, or name another in ES_MLFLOW_TRACKING_URI"),
    ("artifacts", _artifacts, "start MLflow's server with --serve-artifacts; locally, make room"),
    ("disk", _disk, ""),
    ("API", _api, ""),
    ("executor", _executor, "see ES_EXECUTOR in `embedding-studio settings`"),
    ("plugin", _methods, "see ES_PLUGINS_FOLDER in `embedding-studio settings`"),
)
"""What is looked at, in this order, and how to mend it where the look itself fails."""
