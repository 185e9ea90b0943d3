"""What a worker that is killed leaves in the folder for temporary files."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_studio.executors.sockets import claim_folder

_WORKER = """
import sys
from embedding_studio.executors.sockets import claim_folder
claim_folder()
claim_folder()
print("claimed", flush=True)
sys.stdin.read()
"""


def start_worker(folder: Path) -> "subprocess.Popen[str]":
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "claimed\n"
    return worker


@pytest.fixture
def strangers(tmp_path: Path) -> set[Path]:
    """Folders that must stay: another program's, one that its worker is just making."""
    (tmp_path / "pymp-other").mkdir()
    (tmp_path / "pymp-young").mkdir()
    (tmp_path / "pymp-young" / "new").touch()
    return set(tmp_path.iterdir())


def test_a_killed_workers_folder_is_removed_by_the_next(
    tmp_path: Path, strangers: set[Path]
) -> None:
    """Those of live workers and of others stay; who ends by itself takes its own along."""
    living, killed = start_worker(tmp_path), start_worker(tmp_path)
    killed.kill()
    killed.communicate()
    assert len(set(tmp_path.iterdir()) - strangers) == 2
    third = start_worker(tmp_path)
    assert len(set(tmp_path.iterdir()) - strangers) == 2
    living.communicate("")
    third.communicate("")
    assert set(tmp_path.iterdir()) == strangers


def test_a_worker_starts_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems know no locks; nobody takes its folder for a dead one's."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: str(tmp_path))
    monkeypatch.setattr("embedding_studio.executors.sockets.fcntl.flock", no_locks)
    claim_folder()
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write where temporary files are cannot have other folders removed."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "embedding-studio").touch()
    (tmp_path / "pymp-link").symlink_to(precious)
    start_worker(tmp_path).communicate("")
    assert (precious / "embedding-studio").exists()
