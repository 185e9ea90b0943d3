"""Files in S3, read by its driver from a server of this machine that speaks as S3 does."""

from collections.abc import Iterator

import fsspec
import pytest

from embedding_studio.errors import ForbiddenAddress, Unreadable
from embedding_studio.loaders.places import Reader
from embedding_studio.settings import Settings

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
server = pytest.importorskip("moto.server", reason="moto is not installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A bucket `shop` with a picture, a large table and what is below no root."""
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = fsspec.filesystem("s3")
    files.mkdir("shop")
    files.pipe(
        {
            "shop/images/a b.png": b"picture",
            "shop/images/large": bytes(2**21),
            "shop/secret": b"secret",
        }
    )
    yield files
    files.clear_instance_cache()
    started.stop()


@pytest.mark.slow
def test_objects_are_read_by_the_driver_of_s3(bucket: fsspec.AbstractFileSystem) -> None:
    """With credentials from the environment: whole up to the limit, of any size while they come,
    and with a version that changes as they do; what is below no root, or missing, is refused."""
    settings = Settings(allowed_roots="s3://shop/images", max_item_mb=1)
    with Reader(settings, True) as reader:
        assert reader.read("s3://shop/images/a b.png") == b"picture"
        with pytest.raises(Unreadable, match="ES_MAX_ITEM_MB"):
            reader.read("s3://shop/images/large")
        with reader.opened("s3://shop/images/large") as file:
            assert sum(map(len, iter(lambda: file.read(100_000), b""))) == 2**21
        with pytest.raises(ForbiddenAddress):
            reader.read("s3://shop/secret")
        with pytest.raises(FileNotFoundError):
            reader.read("s3://shop/images/missing")
        before = reader.version("s3://shop/images/a b.png")
        assert before == reader.version("s3://shop/images/a b.png")
        bucket.pipe("shop/images/a b.png", b"another")
        assert before != reader.version("s3://shop/images/a b.png")
