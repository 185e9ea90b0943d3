"""The promises of `executors/base.py`, held by every executor."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from embedding_studio.engine.jobs import Examine, MethodRef
from embedding_studio.errors import ConfigurationError, TrialCanceled, TrialCrashed, TrialPruned
from embedding_studio.executors import Executor, open_executor
from embedding_studio.executors.base import (
    EVEN_SHARE,
    Job,
    Report,
    Reporter,
    Verdict,
    relocated,
)
from embedding_studio.methods import discover_methods
from tests.executors.clusters import RayCluster, join
from tests.waiting import wait_until


@dataclass(frozen=True)
class Reporting(Job[int]):
    """Reports `steps` times, then answers its process id."""

    steps: int = 0

    def __call__(self, report: Reporter) -> int:
        for step in range(self.steps):
            report(Report(step, {"metric": step / 2}))
        return os.getpid()


@dataclass(frozen=True)
class Raising(Job[None]):
    def __call__(self, report: Reporter) -> None:
        raise ValueError("boom")


@dataclass(frozen=True)
class Large(Job[bytes]):
    def __call__(self, report: Reporter) -> bytes:
        return b"x" * 20_000_000


@dataclass(frozen=True)
class Dying(Job[None]):
    number: signal.Signals = signal.SIGKILL

    def __call__(self, report: Reporter) -> None:
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Waiting(Job[None]):
    """Touches a file, then waits for ever; SIGTERM would not end it."""

    started: Path

    def __call__(self, report: Reporter) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.started.touch()
        threading.Event().wait()


@dataclass(frozen=True)
class Listening(Job[Verdict]):
    def __call__(self, report: Reporter) -> Verdict:
        return report(Report(0, {"metric": 0.5}))


@dataclass(frozen=True)
class Printing(Job[None]):
    """Prints a line to each stream, and a process that it starts a third; then `filler` bytes, then
    a last line. Ends as it is told to."""

    filler: int = 0
    end: str = "return"

    def __call__(self, report: Reporter) -> None:
        sys.stdout.write("to standard output\n")
        sys.stdout.flush()
        subprocess.run(["echo", "from another process"], check=True)
        sys.stderr.write("to standard error\n" + "." * self.filler)
        sys.stdout.write("the last line\n")
        if self.end == "raise":
            raise ValueError("boom")
        if self.end == "die":
            sys.stdout.flush()
            sys.stderr.flush()
            os.abort()


@dataclass(frozen=True)
class Begetting(Job[int]):
    """Forks a process that lives for ever and holds all that is open; ends as it is told to."""

    end: str
    place: Path

    def __call__(self, report: Reporter) -> int:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
        (self.place / "pid").write_text(str(pid))
        if self.end == "die":
            os.abort()
        if self.end == "wait":
            (self.place / "waits").touch()
            threading.Event().wait()
        return pid


class Particular(Exception):
    """One that cannot be made from its message alone, as pickle would."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")


@dataclass(frozen=True)
class RaisingParticularly(Job[None]):
    def __call__(self, report: Reporter) -> None:
        raise Particular("here", "so it is")


@dataclass(frozen=True)
class Exiting(Job[None]):
    def __call__(self, report: Reporter) -> None:
        sys.exit(3)


@dataclass(frozen=True)
class DyingWhileHeard(Job[None]):
    """Dies while its report is being answered."""

    def __call__(self, report: Reporter) -> None:
        threading.Timer(0.1, os.abort).start()
        report(Report(0, {"metric": os.getpid()}))


@dataclass(frozen=True)
class Unpicklable(Job[object]):
    def __call__(self, report: Reporter) -> object:
        return lambda: None


@dataclass(frozen=True)
class CountingThreads(Job[int]):
    def __call__(self, report: Reporter) -> int:
        import torch

        return torch.get_num_threads()


@dataclass(frozen=True)
class Preloaded(Job[bool]):
    def __call__(self, report: Reporter) -> bool:
        return "sentence_transformers" in sys.modules


def go_on(report: Report) -> Verdict:
    return Verdict.CONTINUE


ON_RAY = pytest.param("ray:auto", marks=pytest.mark.slow)  # a cluster takes seconds to start


@pytest.fixture(scope="module")
def on_ray(shared_cluster: RayCluster) -> Iterator[Executor]:
    """One for all tests, which leave it as it was: it takes seconds to open."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        join(shared_cluster, monkeypatch)
        opened = open_executor("ray:auto")
    yield opened
    opened.close()


@pytest.fixture
def forked() -> Iterator[Executor]:
    """Where each job has a process of its own; those of Ray are used again, as it gives them."""
    opened = open_executor("process:2")
    yield opened
    opened.close()


@pytest.fixture(params=["process:2", ON_RAY])
def processes(request: pytest.FixtureRequest) -> Executor:
    """Where jobs are not in the caller's process."""
    opened: Executor = request.getfixturevalue(
        "forked" if request.param == "process:2" else "on_ray"
    )
    return opened


@pytest.fixture(params=["inline", "process:2", ON_RAY])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "inline":
        return open_executor("inline")
    opened: Executor = request.getfixturevalue(
        "forked" if request.param == "process:2" else "on_ray"
    )
    return opened


def test_the_future_holds_the_result(executor: Executor) -> None:
    """A job's return value reaches the future."""
    assert executor.submit(Reporting(), go_on).result(60) > 0


def test_reports_arrive_in_order(executor: Executor) -> None:
    """Every report reaches on_report once, in order, with its step and metrics."""
    seen: list[Report] = []

    def note(report: Report) -> Verdict:
        seen.append(report)
        return Verdict.CONTINUE

    executor.submit(Reporting(3), note).result(60)
    assert seen == [Report(step, {"metric": step / 2}) for step in range(3)]


@pytest.mark.parametrize(
    ("verdict", "error"), [(Verdict.PRUNE, TrialPruned), (Verdict.CANCEL, TrialCanceled)]
)
def test_a_verdict_ends_the_job(
    executor: Executor, verdict: Verdict, error: type[Exception]
) -> None:
    """The answer to a report is raised inside the job and ends it at that report."""
    seen: list[int] = []

    def end_at_second(report: Report) -> Verdict:
        seen.append(report.step)
        return verdict if report.step == 1 else Verdict.CONTINUE

    with pytest.raises(error):
        executor.submit(Reporting(5), end_at_second).result(60)
    assert seen == [0, 1]


def test_a_stop_is_told_to_the_job(executor: Executor) -> None:
    """The job's report returns STOP, and the job may still give a result."""
    future = executor.submit(Listening(), lambda _: Verdict.STOP)
    assert future.result(60) is Verdict.STOP


def test_what_a_job_raises_is_the_futures_exception(executor: Executor) -> None:
    """An exception keeps its type and message, and one can find where it was raised."""
    error = executor.submit(Raising(), go_on).exception(60)
    assert isinstance(error, ValueError)
    assert str(error) == "boom"
    assert error.__cause__ is None or "in __call__" in str(error.__cause__)


def test_what_on_report_raises_ends_the_job(executor: Executor) -> None:
    """A report that cannot be taken is the future's exception, not lost."""

    def refuse(report: Report) -> Verdict:
        raise OSError("the ledger is full")

    with pytest.raises(OSError, match="the ledger is full"):
        executor.submit(Reporting(1), refuse).result(60)


def test_large_results_arrive_whole(executor: Executor) -> None:
    """A result far larger than a pipe's buffer arrives."""
    assert len(executor.submit(Large(), go_on).result(60)) == 20_000_000


@pytest.mark.parametrize("end", ["return", "raise", "die"])
def test_what_a_job_prints_is_in_its_file(processes: Executor, end: str, tmp_path: Path) -> None:
    """All of it when the future is done, however it ended, and nothing goes to our own output."""
    file = tmp_path / "deep" / "output.txt"
    processes.submit(Printing(end=end), go_on, output=file).exception(60)
    lines = ["from another process", "the last line", "to standard error", "to standard output"]
    printed = file.read_text().splitlines()
    assert [printed.count(line) for line in lines] == [1, 1, 1, 1]
    if end == "die":  # where it was is there too
        assert any("in __call__" in line for line in printed)


def test_a_file_of_output_is_bounded(processes: Executor, tmp_path: Path) -> None:
    """Its beginning and its end are kept, and how much is not."""
    file = tmp_path / "output.txt"
    processes.submit(Printing(filler=3_000_000), go_on, output=file).result(60)
    content = file.read_text()
    assert content.startswith("to standard output\n")
    assert "bytes are left out here]" in content
    assert content.endswith("the last line\n")
    assert 1_000_000 < len(content) < 1_100_000


def test_a_job_that_prints_nothing_has_no_file(executor: Executor, tmp_path: Path) -> None:
    """There is nothing to keep."""
    executor.submit(Reporting(), go_on, output=tmp_path / "output.txt").result(60)
    assert not (tmp_path / "output.txt").exists()


def test_an_error_that_cannot_be_sent_is_described(executor: Executor) -> None:
    """What was raised is told all the same, by name and message."""
    error = executor.submit(RaisingParticularly(), go_on).exception(60)
    assert "Particular: here: so it is" in f"{type(error).__name__}: {error}"


def test_an_exit_is_an_error_of_the_job(executor: Executor) -> None:
    """A job that calls sys.exit ends itself alone."""
    with pytest.raises(TrialCrashed, match=r"sys\.exit\(3\)"):
        executor.submit(Exiting(), go_on).result(60)


def test_a_job_that_dies_while_its_report_is_answered_has_crashed(forked: Executor) -> None:
    """The answer that reaches nobody is no error of its own."""

    def answer_late(report: Report) -> Verdict:
        wait_until(lambda: not _is_alive(int(report.metrics["metric"])))
        return Verdict.CONTINUE

    with pytest.raises(TrialCrashed, match="SIGABRT"):
        forked.submit(DyingWhileHeard(), answer_late).result(60)


@pytest.mark.parametrize("end", ["return", "die", "wait"])
def test_what_a_job_started_ends_with_it(forked: Executor, end: str, tmp_path: Path) -> None:
    """A process that a job left behind, with its pipes in hand, keeps nobody waiting, nor lives."""
    future = forked.submit(Begetting(end, tmp_path), go_on)
    if end == "wait":
        wait_until((tmp_path / "waits").exists)
        forked.kill(future)
    error = future.exception(10)
    assert type(error) is {"return": type(None), "die": TrialCrashed, "wait": TrialCanceled}[end]
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _is_alive(pid))


def test_a_process_that_kill_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is stuck in a driver keeps neither its future nor its slot."""
    monkeypatch.setattr("embedding_studio.executors.process.KILL_SECONDS", 0.1)
    executor = open_executor("process:1")
    with monkeypatch.context() as stuck:
        stuck.setattr("embedding_studio.executors.process._kill", lambda process: None)
        future = executor.submit(Surviving(tmp_path), go_on)
        wait_until((tmp_path / "pid").exists)
        executor.kill(future)
        assert isinstance(future.exception(10), TrialCanceled)
    assert executor.submit(Reporting(), go_on).result(60) > 0
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    executor.close()


def test_a_finished_job_cannot_be_killed(executor: Executor) -> None:
    """Killing what is done changes nothing."""
    future = executor.submit(Reporting(), go_on)
    result = future.result(60)
    executor.kill(future)
    assert future.result(60) == result


def test_each_job_has_a_process_of_its_own(forked: Executor) -> None:
    """Memory comes back with the process: no two jobs share one, nor the caller's."""
    pids = {forked.submit(Reporting(), go_on).result(60) for _ in range(3)}
    assert len(pids | {os.getpid()}) == 4


def test_a_process_that_dies_gives_trial_crashed(processes: Executor) -> None:
    """A killed process is an error that names the signal, and the next job runs."""
    with pytest.raises(TrialCrashed, match="SIGKILL"):
        processes.submit(Dying(), go_on).result(60)
    assert processes.submit(Reporting(), go_on).result(60) > 0


def test_a_process_that_sigbus_ends_may_have_filled_the_disk(forked: Executor) -> None:
    """It is what comes of a page of a mapped file for which there is no room."""
    with pytest.raises(TrialCrashed, match=r"SIGBUS; .* out of disk space"):
        forked.submit(Dying(signal.SIGBUS), go_on).result(60)


def test_kill_ends_a_job_that_never_reports(processes: Executor, tmp_path: Path) -> None:
    """A stuck job ends at once, whatever signals it ignores."""
    started = tmp_path / "started"
    future = processes.submit(Waiting(started), go_on)
    wait_until(started.exists)
    processes.kill(future)
    with pytest.raises(TrialCanceled):
        future.result(5)


@pytest.mark.parametrize("spec", ["process:1", ON_RAY])
def test_close_kills_what_runs(spec: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Closing does not wait for jobs."""
    if spec == "ray:auto":
        request.getfixturevalue("ray_cluster")
    processes = open_executor(spec)
    started = tmp_path / "started"
    future = processes.submit(Waiting(started), go_on)
    wait_until(started.exists)
    processes.close()
    assert isinstance(future.exception(5), TrialCanceled)


def test_an_answer_that_cannot_be_sent_is_an_error(processes: Executor) -> None:
    """A result that cannot be pickled is described, not swallowed."""
    with pytest.raises(Exception, match="cannot be sent between processes"):
        processes.submit(Unpicklable(), go_on).result(60)


def test_threads_do_not_oversubscribe(forked: Executor) -> None:
    """Jobs at a time x torch's threads do not exceed the cores."""
    threads = forked.submit(CountingThreads(), go_on).result(60)
    assert threads == max(1, (os.cpu_count() or 1) // 2)


def test_jobs_find_the_plugins_imports_loaded(forked: Executor) -> None:
    """The fork server has imported what the plugins import: no trial pays for it."""
    assert forked.submit(Preloaded(), go_on).result(60)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["process:1", ON_RAY])
def test_jobs_die_with_their_worker(
    spec: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """kill -9 of the process that submitted leaves no trial behind."""
    if spec == "ray:auto":
        request.getfixturevalue("ray_cluster")
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(Path.cwd())!r})
from tests.contracts.test_executor import Surviving, go_on
from embedding_studio.executors import open_executor
if __name__ == "__main__":
    open_executor({spec!r}).submit(Surviving(pathlib.Path({str(tmp_path)!r})), go_on).result()
"""
    script = tmp_path / "owner.py"
    script.write_text(program)
    owner = subprocess.Popen([sys.executable, str(script)])
    pid_file = tmp_path / "pid"
    wait_until(pid_file.exists)
    owner.kill()
    owner.wait()
    pid = int(pid_file.read_text())
    wait_until(lambda: not _is_alive(pid))


@dataclass(frozen=True)
class Surviving(Job[None]):
    folder: Path

    def __call__(self, report: Reporter) -> None:
        (self.folder / "writing").write_text(str(os.getpid()))
        (self.folder / "writing").rename(self.folder / "pid")
        threading.Event().wait()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_unknown_executor_is_refused() -> None:
    """A misspelt setting is an error that names the choices."""
    with pytest.raises(ConfigurationError, match="process:N"):
        open_executor("threads:2")


@dataclass(frozen=True)
class SeeingDevices(Job[str | None]):
    """Answers which GPUs it sees, once as many jobs as there are devices are at work."""

    meeting: Path
    jobs: int

    def __call__(self, report: Reporter) -> str | None:
        (self.meeting / str(os.getpid())).touch()
        wait_until(lambda: len(list(self.meeting.iterdir())) == self.jobs)
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_job_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As many jobs at a time as there are GPUs, each with one that no other has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8a")
    executor = open_executor(None)
    assert executor.slots(EVEN_SHARE) == 2
    futures = [executor.submit(SeeingDevices(tmp_path, 2), go_on) for _ in range(2)]
    assert {future.result(60) for future in futures} == {"3", "GPU-8a"}
    again = executor.submit(SeeingDevices(tmp_path, 3), go_on)
    assert again.result(60) in {"3", "GPU-8a"}
    executor.close()


@pytest.mark.parametrize(("cores", "slots"), [(1, 1), (2, 2), (64, 4)])
def test_the_default_is_a_process_per_core_up_to_four(
    monkeypatch: pytest.MonkeyPatch, cores: int, slots: int
) -> None:
    """Without GPUs the cores decide, and none is used twice."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    executor = open_executor(None)
    assert executor.slots(EVEN_SHARE) == slots
    executor.close()


@dataclass(frozen=True)
class Copying(Job[None]):
    """Copies what it reads to where it writes."""

    reads = ("source",)
    writes = ("target",)

    method: MethodRef
    source: Path
    target: Path

    def __call__(self, report: Reporter) -> None:
        shutil.copytree(self.source, self.target)


def test_a_job_says_which_paths_it_reads_and_writes() -> None:
    """All paths of a job are found, those of its parts too, and nothing else is changed."""
    toy, toy_there = (MethodRef("Toy", Path(place)) for place in ("plugins", "in/plugins"))
    moved = partial(relocated, read=lambda path: "in" / path, write=lambda path: "out" / path)
    copying = Copying(toy, Path("a"), Path("b"))
    assert moved(copying) == Copying(toy_there, Path("in/a"), Path("out/b"))
    examine = Examine(toy, Path("a"), (Path("b"), Path("c")))
    assert moved(examine) == Examine(toy_there, Path("in/a"), (Path("in/b"), Path("in/c")))


def test_a_job_writes_where_it_was_asked_to(executor: Executor, tmp_path: Path) -> None:
    """What a job writes is there, at the place it names, when its future is done."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("content")
    executor.submit(Copying(MethodRef("Toy", tmp_path), source, target), go_on).result(60)
    assert (target / "deep" / "file").read_text() == "content"


@dataclass(frozen=True)
class Naming(Job[str]):
    """Answers the version of a method and where its plugin seems to be."""

    method: MethodRef

    def __call__(self, report: Reporter) -> str:
        method = self.method.load()
        return f"{method.meta.version} {Path(sys.modules[type(method).__module__].__file__).name}"  # type: ignore[arg-type]


def test_a_job_runs_the_plugin_that_was_read_whatever_its_file_holds_by_now(
    executor: Executor, tmp_path: Path
) -> None:
    """So a task goes on with what it began with, and the next one runs what was loaded for it."""
    file = tmp_path / "plugin.py"
    refs = []
    for version in ("1", "2"):
        file.write_text(PLUGIN.format(version=version))
        refs.append(MethodRef.to(discover_methods(tmp_path).get("Versioned"), tmp_path))
    file.write_text("half a")
    for ref, version in zip([*refs, refs[0]], "121", strict=True):
        assert executor.submit(Naming(ref), go_on).result(60) == f"{version} plugin.py"


PLUGIN = """
from embedding_studio import FineTuningMethod, PluginMeta

class Versioned(FineTuningMethod):
    meta = PluginMeta("Versioned", version="{version}")
    main_metric = "m"
    def load_initial_model(self): ...
    def suggest(self, trial): return {{}}
    def train(self, model, params, data, run): return model
    def evaluate(self, model, split): return {{"m": 0.0}}
"""
