"""The files that a model consists of: which are allowed, their hashes, and how they are copied."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from embedding_studio.errors import CorruptModel
from embedding_studio.tasks import ModelFile

_KINDS = frozenset({".json", ".jinja", ".md", ".model", ".npy", ".safetensors", ".txt"})
"""What files of a model may be: reading one runs no code. .model: a SentencePiece vocabulary."""


def describe_files(folder: Path) -> Iterator[ModelFile]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            yield ModelFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def refuse_unknown_kinds(paths: Iterable[str]) -> None:
    for path in paths:
        if PurePosixPath(path).suffix not in _KINDS:
            raise CorruptModel(
                f"{path!r} is no kind of file that a model may consist of: save weights as "
                f"safetensors, the rest as one of {', '.join(sorted(_KINDS))}"
            )


def require_plain(folder: Path) -> None:
    """Raise CorruptModel for what is neither file nor folder: a link may lead anywhere, and a FIFO
    or a device has no end."""
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            name = path.relative_to(folder).as_posix()
            raise CorruptModel(f"{name!r} is no plain file: a model has no links and no devices")


def link_tree(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> None:
    """Give a folder's files a second name each, after a `check`; across file systems, a copy."""

    def link(file: str, name: str) -> None:
        check()
        if not Path(file).is_symlink():
            with suppress(OSError):
                os.link(file, name)
                return
        shutil.copyfile(file, name)

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
