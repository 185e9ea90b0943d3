"""What a client's address may make a worker read, and what it may not."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from pydantic import ValidationError

from embedding_studio.errors import ForbiddenAddress, Unreadable
from embedding_studio.loaders.places import Reader
from embedding_studio.settings import Settings
from tests.strangers import OK, Server, endless, once

BUCKET = "s3://shop/images"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a picture, beside one that is not allowed."""
    root = tmp_path / "images"
    root.mkdir()
    (root / "a b.png").write_bytes(b"picture")
    (tmp_path / "images-too").mkdir()
    (tmp_path / "images-too" / "secret").write_bytes(b"secret")
    return root


@pytest.fixture
def reader(root: Path) -> Iterator[Reader]:
    with Reader(Settings(allowed_roots=f"{root}/, {BUCKET}", max_item_mb=1), True) as reader:
        yield reader


@pytest.fixture
def hasty(root: Path) -> Iterator[Reader]:
    """A reader that gives an item 0.3 s."""
    with Reader(Settings(allowed_roots=BUCKET, max_item_seconds=0.3), True) as reader:
        yield reader


def test_files_below_a_root_are_read(reader: Reader, root: Path) -> None:
    """By path, by URL in any case, and through links that stay below."""
    (root / "link").symlink_to(root / "a b.png")
    (root / "here").symlink_to(root)
    places = [root / "a b.png", root / "link", root / "here" / "here" / "link"]
    addresses = [str(place) for place in places] + [
        (root / "a b.png").as_uri(),
        (root / "a b.png").as_uri().replace("file:", "FILE:"),
        (root / "a b.png").as_uri().replace("//", "//LocalHost"),
        f"file:{root}/a%20b.png",
        f"{root}//./a b.png",
    ]
    assert {reader.read(address) for address in addresses} == {b"picture"}


def test_a_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """What is named by the link and by where it leads is below it."""
    (tmp_path / "link").symlink_to(root)
    with Reader(Settings(allowed_roots=str(tmp_path / "link")), allow_private=False) as reader:
        assert reader.read(f"{tmp_path}/link/a b.png") == reader.read(f"{root}/a b.png")


def test_all_that_is_not_below_a_root_is_refused_for_one_reason(reader: Reader, root: Path) -> None:
    """What exists, what does not, what nobody may read: who posts it learns nothing of it."""
    outside = root.parent / "images-too"
    (root / "out").symlink_to(outside)
    (root / "secret").symlink_to(outside / "secret")
    (root / "nowhere").symlink_to(outside / "nothing")
    (root / "around").symlink_to("around")
    addresses = [
        "/etc/passwd", "/etc/shadow", "/etc/nope", "/dev/zero", "/proc/self/environ", "~/.ssh/id",
        "//etc/passwd", "etc/passwd", ".", "", "/", str(root.parent), f"/{root}/a b.png",
        f"{outside}/secret", f"{root}-too/secret", f"{root}/../images-too/secret",
        f"{root}/out/secret", f"{root}/secret", f"{root}/nowhere", f"{root}/../images/a b.png",
        f"file://{outside}/secret", f"file://evil.example{root}/a%20b.png", "file://", "file:",
        f"file://{root}/%2e%2e/images-too/secret", f"file://{root}%2f..%2fimages-too/secret",
        f"file://{root}/..%2fimages-too/secret", f"FILE:{outside}/secret",
        str(root).upper() + "/a b.png",
        "s3://", "s3:", "s3://shop", "s3://shop/", "s3://shop/imagesque/a", "s3://other/images/a",
        "s3://shop/images/../a", "s3://shop/images/%2e%2e/a", "s3://shop/images/..\\a",
        "s3://shop/images%2f..%2fa", "s3:/shop/other", "S3://shop/other", "s3://SHOP/images/a",
        "s3://shop@evil.example/images/a", "gs://shop/images/a", "az://shop/images/a",
        "s3:////shop/images/a",
    ]  # fmt: skip
    reasons = set()
    for address in addresses:
        with pytest.raises(ForbiddenAddress) as refused:
            reader.read(address)
        reasons.add(str(refused.value))
        with pytest.raises(ForbiddenAddress) as refused, reader.opened(address):
            pass
        reasons.add(str(refused.value))
    assert reasons == {"it is not below one of ES_ALLOWED_ROOTS"}


def test_by_default_there_are_no_roots(root: Path) -> None:
    """A worker lends nobody its files."""
    with (
        Reader(Settings(), allow_private=False) as reader,
        pytest.raises(ForbiddenAddress, match="ES_ALLOWED_ROOTS"),
    ):
        reader.read(str(root / "a b.png"))


@pytest.mark.parametrize("roots", ["images", "ftp://host/images", "s3://", "/data,images", "s3"])
def test_roots_that_are_none_are_refused(roots: str) -> None:
    """A misspelt root is told when a service starts."""
    with pytest.raises(ValidationError, match="no absolute path"):
        Settings(allowed_roots=roots)


def test_what_is_no_regular_file_is_not_opened(reader: Reader, root: Path) -> None:
    """A FIFO would wait for ever, a device never end."""
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(root / "socket"))
    for name in ("fifo", "folder", "socket"):
        with pytest.raises(Unreadable, match="no regular file"):
            reader.read(str(root / name))
    listener.close()
    with (
        Reader(Settings(allowed_roots="/dev"), allow_private=False) as devices,
        pytest.raises(Unreadable, match="no regular file"),
    ):
        devices.read("/dev/zero")


def test_a_folder_that_becomes_a_link_is_not_followed(
    reader: Reader, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged is what is opened, whoever changes folders meanwhile."""
    (root / "day").mkdir()
    (root / "day" / "secret").write_bytes(b"picture")
    resolve = os.path.realpath

    def then_swap(path: Path) -> str:
        found = resolve(path)
        if found.endswith("/day/secret"):
            (root / "day").rename(root / "night")
            (root / "day").symlink_to(root.parent / "images-too")
        return found

    monkeypatch.setattr(os.path, "realpath", then_swap)
    with pytest.raises(OSError, match="day"):
        reader.read(f"{root}/day/secret")


def test_a_larger_file_is_not_read_to_its_end(reader: Reader, root: Path) -> None:
    """A terabyte, on a disk that has not so much."""
    with (root / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_MB"):
        reader.read(f"{root}/large")


def test_an_endless_answer_is_too_large(reader: Reader) -> None:
    """Of what a server sends without end a little more than the limit is read."""
    server = Server()
    server.answer = endless(OK + b"\r\n", b"x" * 100_000)
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_MB"):
        reader.read(server.url)
    server.close()


def test_the_time_of_an_item_is_that_of_all_attempts(hasty: Reader) -> None:
    """Asking again does not begin it anew; the refusal names the setting."""
    server = Server()
    server.answer = endless(OK + b"a: ", b"b", pause=0.02)
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_SECONDS"):
        hasty.read(server.url)
    assert len(server.got) == 1
    server.close()


def test_data_uris_are_read_up_to_the_limit(reader: Reader) -> None:
    """In base64 or not, in any case."""
    assert reader.read("data:image/png;base64,aGk=") == reader.read("DATA:,hi") == b"hi"
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_MB"):
        reader.read("data:," + "x" * 2_000_000)


@pytest.mark.parametrize(
    "address", ["ftp://host/a", "simplecache::file:///etc/passwd", "memory://a", "github://a:b@/c"]
)
def test_no_other_protocol_is_spoken(reader: Reader, address: str) -> None:
    """Who posts an address does not choose among all that fsspec could open."""
    with pytest.raises(Unreadable, match="nothing is read by"):
        reader.read(address)
    with pytest.raises(Unreadable, match="nothing is read by"), reader.opened(address):
        pass


def test_objects_below_a_root_are_read_up_to_the_limit(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked for a part that is a byte larger than what is taken."""
    asked: list[tuple[str, int, int]] = []

    def cat_file(path: str, start: int, end: int, timeout: float) -> bytes:
        asked.append((path, start, end))
        return bytes(end - start) if "large" in path else b"picture"

    store = SimpleNamespace(cat_file=cat_file)
    monkeypatch.setattr(fsspec, "filesystem", {"s3": store}.__getitem__)
    assert reader.read("S3://shop/images/a..b.png") == b"picture"
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_MB"):
        reader.read("s3://shop/images/large")
    assert asked == [(f"shop/images/{name}", 0, 2**20 + 1) for name in ("a..b.png", "large")]


class _SlowStore(AsyncFileSystem):  # type: ignore[misc]
    async def _cat_file(self, path: str, start: int, end: int, **options: object) -> bytes:
        await asyncio.sleep(60)
        return b""


def test_an_object_store_that_hangs_is_left_in_time(
    hasty: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers of object stores have timeouts of their own, if any; the reader's is shorter."""
    monkeypatch.setattr(fsspec, "filesystem", {"s3": _SlowStore()}.__getitem__)
    with pytest.raises(Unreadable, match="ES_MAX_ITEM_SECONDS"):
        hasty.read("s3://shop/images/a")


def test_a_file_of_any_size_is_read_while_it_comes(
    reader: Reader, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder, an object store or a server; what it is bounds nothing but its pace."""
    content = bytes(range(256)) * 20_000
    (root / "large").write_bytes(content)
    store = fsspec.filesystem("memory")
    store.pipe_file("/shop/images/large", content)
    server = Server()
    server.answer = once(OK + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    with monkeypatch.context() as patched:
        patched.setattr(fsspec, "filesystem", lambda protocol: store)
        for address in (f"{root}/large", "s3://shop/images/large", server.url):
            with reader.opened(address) as file:
                assert b"".join(iter(lambda: file.read(100_000), b"")) == content
    store.rm("/shop/images/large")
    server.close()
