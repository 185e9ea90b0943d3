"""A folder that several delete at once is deleted, and nobody is hurt by it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from embedding_studio.deletion import remove_tree

DELETERS = 4


def fill(folder: Path, folders: int = 20, files: int = 50) -> Path:
    for number in range(folders):
        inner = folder / str(number) / "deeper"
        inner.mkdir(parents=True)
        for name in range(files):
            (inner / str(name)).touch()
    return folder


def test_several_delete_the_same_folder(tmp_path: Path) -> None:
    """Each of four that delete a thousand files at once finds nothing wrong, and nothing stays."""
    together = Barrier(DELETERS)

    def delete(folder: Path) -> None:
        together.wait()
        remove_tree(folder)

    with ThreadPoolExecutor(DELETERS) as pool:
        for turn in range(5):
            folder = fill(tmp_path / str(turn))
            list(pool.map(delete, [folder] * DELETERS))
            assert not folder.exists()


def test_a_folder_that_is_not_there_is_deleted_already(tmp_path: Path) -> None:
    """To delete it again, or what never was, is fine."""
    remove_tree(tmp_path / "never")


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[str], Any]) -> None:
    """Have `before` called with the path once, before the first call of one of os's functions."""
    real = getattr(os, name)

    def call(path: str, **options: Any) -> None:
        monkeypatch.setattr(os, name, real)
        before(path)
        real(path, **options)

    monkeypatch.setattr(os, name, call)


def test_what_is_written_meanwhile_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that comes just before its folder is removed is deleted with it."""
    folder = fill(tmp_path / "folder", folders=1, files=1)
    late = folder / "0" / "deeper" / "late"
    failing_once(monkeypatch, "rmdir", lambda _: late.touch())
    remove_tree(folder)
    assert not folder.exists()


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file that stays keeps no other: they go, and then its error is raised, if wanted."""
    folder = fill(tmp_path / "folder", folders=1, files=9)

    def refuse(path: str) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    failing_once(monkeypatch, "unlink", refuse)
    with pytest.raises(PermissionError):
        remove_tree(folder)
    assert sum(path.is_file() for path in folder.rglob("*")) == 1
    failing_once(monkeypatch, "unlink", refuse)
    remove_tree(folder, ignore_errors=True)
    assert folder.exists()
