"""A full disk is an error that says so, not corruption."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from os import environ
from pathlib import Path

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.projects import RegisteredName
from embedding_studio.tasks import TaskStatus
from tests.faults.harness import LOG, Yard, check_ledger
from tests.training.tiny import searches, write_tiny_model
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture
def can_mount() -> None:
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"small disks cannot be mounted here: {tried.stderr.decode()}")


FILL_AND_EMPTY = """
import sys
from pathlib import Path
from embedding_studio.errors import StoreUnavailable
from embedding_studio.store import open_store
from tests.contracts.store_processes import NOW, make_session

folder = Path(sys.argv[1])
(folder / "ballast").write_bytes(b"x" * 1_000_000)
store = open_store(f"sqlite:///{folder}/store.db")
taken = 0

def post():
    global taken
    store.clickstream.register([make_session(f"s-{taken}-{n}") for n in range(100)], NOW)
    taken += 1

def is_refused(call):
    try:
        call()
    except StoreUnavailable as error:
        assert "full" in str(error) or "I/O" in str(error), error
        return True
    return False

while not (is_refused(post) or is_refused(store.ping)):
    pass
for _ in range(3):
    assert is_refused(store.ping)
    assert is_refused(post)
(folder / "ballast").unlink()
post()
store.ping()
batch_id = store.clickstream.collecting_batch().batch_id
assert len(store.clickstream.read(batch_id, 0, 10**6)) == 100 * taken
"""


def test_a_store_on_a_full_disk_says_so_until_there_is_room(
    tmp_path: Path, can_mount: None
) -> None:
    """Posts and pings are refused while the disk is full, and taken again once it is not; what was
    taken before is there."""
    mounted = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    script = ["sh", "-c", mounted, "sh", str(tmp_path), sys.executable, FILL_AND_EMPTY]
    done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def on_small_disk(yard: Yard, can_mount: None) -> Iterator[list[subprocess.Popen[bytes]]]:
    workers: list[subprocess.Popen[bytes]] = []
    yield workers
    for worker in workers:
        worker.kill()
        worker.wait()


def start_on_small_disk(yard: Yard, folder: Path, kilobytes: int) -> subprocess.Popen[bytes]:
    """Start a worker for which `folder` is a disk of that size, with what the folder holds."""
    script = (
        'cp -a "$1" "$1.copy" && mount -t tmpfs -o size=$2k none "$1" '
        '&& cp -a "$1.copy/." "$1" && shift 2 && exec "$@"'
    )
    program = [sys.executable, "-m", "embedding_studio", "worker"]
    with (yard.settings.data_folder / LOG).open("ab") as output:
        return subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", str(folder), str(kilobytes), *program],
            env={**environ, **yard.settings.replaced(lease_seconds=30.0).as_environment()},
            stdout=output,
            stderr=output,
        )


@pytest.mark.parametrize(
    ("where", "kilobytes"),
    [
        pytest.param("work_folder", 6_000, marks=pytest.mark.faults),  # the champion's copy
        pytest.param("work_folder", 12_000, marks=pytest.mark.faults),  # a trial's model
        ("artifacts_folder", 12_000),
    ],
)
def test_a_full_disk_is_an_error_that_says_so(
    yard: Yard, on_small_disk: list[subprocess.Popen[bytes]], where: str, kilobytes: int
) -> None:
    """Where a model of eight megabytes does not fit, the task is an error, and that is not put down
    to the champion, which is as it was, whole."""
    former = yard.bench.run_task("Heavy", trials=1)
    assert former.status is TaskStatus.DONE, former.error
    folder: Path = getattr(yard.settings, where)
    folder.mkdir(exist_ok=True)
    yard.bench.post_sessions(start=1000)
    task = yard.bench.post_task("Heavy", trials=1)
    on_small_disk.append(start_on_small_disk(yard, folder, kilobytes))
    yard.wait_for(task)
    failed = yard.now(task)
    assert failed.status is TaskStatus.ERROR
    assert failed.error is not None
    assert "No space left on device" in failed.error
    assert "roll back" not in failed.error
    assert yard.bench.house.tracking.registry.champion(RegisteredName("Heavy")) == former.best_model
    assert former.best_model is not None
    yard.bench.house.tracking.models.download(former.best_model, yard.settings.data_folder / "copy")


@pytest.mark.faults
@pytest.mark.parametrize("kilobytes", [2_500, 5_000, 9_500, 13_000, 17_000])
def test_the_default_method_on_a_full_disk(
    yard: Yard, on_small_disk: list[subprocess.Popen[bytes]], tmp_path: Path, kilobytes: int
) -> None:
    """Whatever there is no room for, the initial model, its copy, the data or a trial's model, the
    task is an error that says so, the batch is as it was, and nothing is left."""
    tiny = write_tiny_model(tmp_path / "tiny")  # of four megabytes, most of them its words
    yard.settings = yard.settings.replaced(
        plugins_folder=PLUGINS, initial_model=str(tiny), executor="process:2"
    )
    store, now = yard.bench.house.store, utc_now()
    store.clickstream.register([replace(one, created_at=now) for one in searches(400)], now)
    task = yard.bench.post_task("Default Fine Tuning Method", trials=2)
    yard.settings.work_folder.mkdir()
    on_small_disk.append(start_on_small_disk(yard, yard.settings.work_folder, kilobytes))
    yard.wait_for(task, seconds=200)
    failed = yard.now(task)
    assert failed.status is TaskStatus.ERROR
    assert failed.error is not None
    assert "No space left on device" in failed.error
    assert "SIG" not in failed.error
    batch = store.clickstream.collecting_batch()
    assert failed.batch_id is not None or (batch is not None and batch.session_count == 400)
    # MLflow is told once the store is
    wait_until(lambda: all(one.tags["es.state"] != "running" for one in yard.bench.experiments()))
    check_ledger(yard.bench)
