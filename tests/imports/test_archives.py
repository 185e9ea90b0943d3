"""Archives of labelled files, good and broken: a broken one leaves nothing."""

import gzip
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.archives import table_in, unpacked
from embedding_studio.imports.beside import labelled_files
from tests.imports.samples import zstd

FILES = {"./march/a.txt": b"a coat", "march/deep/b.jpg": b"\xff\xd8", "march/labels.json": b"{}"}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, one in files.items():
            archive.writestr(name, one)
    return content.getvalue()


def tarred(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, one in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(one) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(one))
    return content.getvalue()


def with_type(mode: int) -> bytes:
    member = zipfile.ZipInfo("a")
    member.external_attr = mode << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(member, "/etc/passwd")
    return content.getvalue()


def twice() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    return content.getvalue()


def long_header() -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 100_000_000
    return gzip.compress(member.tobuf(tarfile.USTAR_FORMAT) + os.urandom(2**20) * 20, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("march.zip", zipped(FILES)),
        ("march.tar", tarred(FILES)),
        ("march.tar.gz", gzip.compress(tarred(FILES))),
        ("MARCH.TGZ", gzip.compress(tarred(FILES))),
        ("march.tar.zst", zstd(tarred(FILES))),
    ],
)
def test_an_archive_becomes_a_folder(tmp_path: Path, name: str, content: bytes) -> None:
    """With its name, once all went well; a dry run leaves none, and one that is there stays."""
    archive = tmp_path / name
    archive.write_bytes(content)
    for is_kept in (False, True):
        with unpacked(archive, is_kept) as folder:
            there = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
            assert there == {"march/a.txt", "march/deep/b.jpg", "march/labels.json"}
            assert (folder / "march" / "a.txt").read_bytes() == b"a coat"
            assert table_in(folder) == folder / "march" / "labels.json"
        assert len([*tmp_path.iterdir()]) == 1 + is_kept
    with pytest.raises(InvalidInput, match="is there already"), unpacked(archive, is_kept=True):
        pass
    with pytest.raises(KeyError), unpacked(archive, is_kept=False):
        raise KeyError
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("a.zip", lambda: zipped({"../a": b""}), "leads out"),
        ("a.zip", lambda: zipped({"/a": b""}), "leads out"),
        ("a.zip", lambda: zipped({"a\\..\\..\\b": b""}), "leads out"),
        ("a.tar", lambda: tarred({"a/../../b": b""}), "leads out"),
        ("a.tar", lambda: tarred({"/etc/passwd": b""}), "leads out"),
        ("a.tar", lambda: tarred({"c:/a": b""}), "leads out"),
        ("a.zip", lambda: with_type(0o120777), "link or a device"),
        ("a.zip", lambda: with_type(0o020666), "link or a device"),
        ("a.tar", lambda: tarred({"a": b""}, tarfile.SYMTYPE), "link or a device"),
        ("a.tar", lambda: tarred({"a": b""}, tarfile.LNKTYPE), "link or a device"),
        ("a.tar", lambda: tarred({"a": b""}, tarfile.CHRTYPE), "link or a device"),
        ("a.tar", lambda: tarred({"a": b""}, tarfile.FIFOTYPE), "link or a device"),
        ("a.zip", twice, "there twice"),
        ("a.tar", lambda: tarred({"a": b"", "a/b": b""}), "there twice"),
        ("a.zip", lambda: zipped({"a": bytes(30_000_000)}), "100 times"),
        ("a.zip", lambda: zipped({f"{n}": bytes(2_000_000) for n in range(9)}), "100 times"),
        ("a.tgz", lambda: gzip.compress(tarred({"a": bytes(30_000_000)})), "100 times"),
        ("a.zip", lambda: zipped({"a": b"b" * 99}, compression=zipfile.ZIP_LZMA), "not deflated"),
        ("a.zip", lambda: zipped({"n" * 60_000 + str(n): b"" for n in range(300)}), "has more"),
        ("a.tgz", long_header, "has more than"),
        ("a.tgz", lambda: gzip.compress(tarred({"a": os.urandom(9999)}))[:5000], "no whole gzip"),
        ("a.tar", lambda: tarred({"a": bytes(9999)})[:5000], "no whole archive"),
        ("a.zip", lambda: zipped({"a": os.urandom(9999)})[:5000], "no whole archive"),
        ("a.zip", lambda: b"", "no whole archive"),
        ("a.tar", lambda: b"\0" * 100, "no whole archive"),
    ],
)
def test_an_archive_that_is_refused(
    tmp_path: Path, name: str, made: Callable[[], bytes], words: str
) -> None:
    """It is said why, and nothing of it is on the disk."""
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / name
    archive.write_bytes(made())
    with pytest.raises(InvalidInput, match=words), unpacked(archive, is_kept=True):
        pass
    assert [*tmp_path.rglob("*")] == [tmp_path / "in", archive]


def test_an_archive_has_one_file_with_labels(tmp_path: Path) -> None:
    """The highest; of none, or of two, it is told what is there."""
    archive = tmp_path / "a.zip"
    for files, words in (
        ({"a.jpg": b""}, "here it is none"),
        ({"a.json": b"", "b.csv": b""}, "a.json, b.csv"),
    ):
        archive.write_bytes(zipped(files))
        with (
            pytest.raises(InvalidInput, match=words),
            labelled_files(archive, None, is_kept=True),
        ):
            pass
        assert [*tmp_path.iterdir()] == [archive]
