"""Images that were made to cost more than they seem to."""

import base64
import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn
from PIL import Image, PngImagePlugin

from embedding_studio.errors import Unreadable
from embedding_studio.training.decoding import Decoder

PHOTO = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
SIDE = 16


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def black(width: int, height: int) -> bytes:
    """Return a PNG of one bit per pixel, made without the pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def decode(content: bytes, max_pixels: int = 50_000_000, threads: int = 16) -> Image.Image:
    with Decoder(max_pixels, SIDE, threads) as decoder:
        return decoder.apply(lambda image: image, content)


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """29 kB of base64 that would be 13,350 x 13,350 pixels, 2.6 GB when they are resized."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own limit, which only warns
    content = black(13_350, 13_350)
    assert len(base64.b64encode(content)) < 30_000
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(Unreadable, match=r"13350 x 13350 pixels.*ES_MAX_IMAGE_MEGAPIXELS"):
        decode(content)


def test_an_image_of_the_most_pixels_is_decoded() -> None:
    """The limit is the largest that is allowed."""
    assert decode(black(100, 100), 10_000).size == (100, 100)
    with pytest.raises(Unreadable):
        decode(black(100, 101), 10_000)


def test_a_narrow_image_is_as_large_as_it_becomes() -> None:
    """A line of 50,000 pixels would be 16 x 800,000 where its shorter side is brought to 16."""
    assert decode(black(50_000, 1), 16 * 800_000).size == (50_000, 1)
    with pytest.raises(Unreadable, match="50000 x 1 pixels"):
        decode(black(50_000, 1), 16 * 800_000 - 1)
    with pytest.raises(Unreadable, match="1 x 50000 pixels"):
        decode(black(1, 50_000), 16 * 800_000 - 1)


def test_large_images_are_decoded_one_after_the_other() -> None:
    """All in one thread; those of no more than their share stay where they were asked for."""
    used: list[tuple[int, str]] = []

    def use(image: Image.Image) -> None:
        used.append((image.width, threading.current_thread().name))

    with Decoder(40_000, SIDE, 4) as decoder, ThreadPoolExecutor(4, "reader") as readers:
        files = [black(width, 100) for width in (100, 101, 200, 300, 400, 100)]
        list(readers.map(partial(decoder.apply, use), files))
    assert {name.partition("_")[0] for width, name in used if width == 100} == {"reader"}
    assert {name for width, name in used if width > 100} == {"large-images_0"}


def test_a_jpeg_of_many_scans_is_not_decoded() -> None:
    """Each scan costs as much as an image, in a few bytes."""
    content = file_of(Image.open(PHOTO), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    scan = content[start : start + 14]
    with pytest.raises(Unreadable, match="scans"):
        decode(content[:start] + 200 * scan + content[start:])
    assert decode(content).mode == "RGB"


def test_what_phones_append_to_a_jpeg_is_no_scan() -> None:
    """A film of some megabytes has the bytes of a scan's marker by chance, as have its own data."""
    content = file_of(Image.open(PHOTO), "JPEG", progressive=True, exif=100 * b"\xff\xda")
    assert decode(content + 100 * b"\xff\xda").mode == "RGB"


def test_a_jpeg_of_many_segments_is_not_decoded() -> None:
    """Looking at each would take longer than an image."""
    content = file_of(Image.open(PHOTO), "JPEG")
    with pytest.raises(Unreadable, match="scans"):
        decode(content[:2] + 20_000 * b"\xff\xfe\0\2" + content[2:])


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PSD", "PPM", "ICO", "PCX", "PDF"])
def test_formats_that_browsers_do_not_show_are_refused(kind: str) -> None:
    """Pillow reads some by other programs, or by code that is seldom tried."""
    small = Image.new("RGB", (8, 8))
    content = b"8BPS\0\1" + bytes(60) if kind == "PSD" else file_of(small, kind)
    with pytest.raises(Unreadable, match="no image in one of JPEG, PNG"):
        decode(content)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP"])
def test_formats_that_browsers_show_are_decoded(kind: str) -> None:
    """Photographs of phones that hold several pictures are JPEGs."""
    small = Image.new("RGB", (8, 8), "red")
    more = {"save_all": True, "append_images": [small]} if kind == "MPO" else {}
    assert decode(file_of(small, kind, **more)).getpixel((4, 4))[0] > 240  # type: ignore[index]


def test_words_in_a_png_are_bounded() -> None:
    """Ten texts of a megabyte, a kilobyte each in the file."""
    words = PngImagePlugin.PngInfo()
    for number in range(10):
        words.add_text(f"a{number}", "x" * 1_000_000, zip=True)
    with pytest.raises(ValueError, match="text"):
        decode(file_of(Image.new("RGB", (8, 8)), "PNG", pnginfo=words))


def test_a_photograph_far_larger_than_needed_is_decoded_smaller() -> None:
    """A quarter of its pixels, which look the same at the size that is needed; others stay."""
    photo = Image.open(PHOTO).resize((12 * SIDE, 10 * SIDE))
    content = file_of(photo, "JPEG", quality=95)
    drafted = decode(content, photo.width * photo.height)
    assert drafted.size == (6 * SIDE, 5 * SIDE)
    small = [
        np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        for image in (drafted, Image.open(io.BytesIO(content)))
    ]
    assert abs(small[0] - small[1]).mean() < 1.0
    assert decode(content).size == photo.size
    narrow = photo.resize((7 * SIDE, 20 * SIDE))
    assert decode(file_of(narrow, "JPEG"), narrow.width * narrow.height).size == narrow.size
