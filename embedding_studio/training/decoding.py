"""Image files of strangers as upright RGB images, within bounds of memory and time."""

import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from embedding_studio.errors import Unreadable

Result = TypeVar("Result")

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP")
"""Those that browsers show. Other readers of Pillow start programs, or are seldom tried."""
_ENLARGED = 4
"""How many times what is needed of a large JPEG is decoded at least, in width and height."""
_MOST_SCANS = 50
_MOST_SEGMENTS = 10_000
# but those that stand alone: restarts and the beginning
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
# what a PNG says in words is not read, but kept: by default up to 64 MB of it
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 1024 * 1024


class Decoder:
    """Decodes images for several threads, in about the memory that two of the largest take.

    max_pixels: of one image. side: how many pixels of width and height are needed of it.
    threads: how many decode at a time. Images of more than their share of the pixels are decoded
    one after the other, in one thread: C's allocator keeps what was freed for each thread."""

    def __init__(self, max_pixels: int, side: int, threads: int) -> None:
        self._max_pixels = max_pixels
        self._side = side
        self._share = max_pixels // threads
        self._for_large = ThreadPoolExecutor(1, thread_name_prefix="large-images")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._for_large.shutdown()

    def apply(self, use: Callable[[Image.Image], Result], content: bytes) -> Result:
        """Return what `use` makes of the image, which is set upright as its EXIF data say, in RGB.

        Raises Unreadable before anything is decoded, and what Pillow raises."""
        image = self._open(content)
        if self._pixels(image) <= self._share:
            return use(_upright(image))
        return self._for_large.submit(self._apply_to_large, use, image).result()

    def _apply_to_large(self, use: Callable[[Image.Image], Result], image: Image.Image) -> Result:
        image.draft("RGB", (_ENLARGED * self._side, _ENLARGED * self._side))
        return use(_upright(image))

    def _open(self, content: bytes) -> Image.Image:
        if content.startswith(b"\xff\xd8") and _has_many_scans(content):
            raise Unreadable(
                f"it is a JPEG of more than {_MOST_SCANS} scans, or {_MOST_SEGMENTS:,} segments"
            )
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise Unreadable(f"it is no image in one of {', '.join(_FORMATS)}") from error
        if self._pixels(image) > self._max_pixels:
            raise Unreadable(
                f"it has {image.width} x {image.height} pixels: these, or those of it at the size "
                f"that is needed, are more than {self._max_pixels / 1e6:g} million "
                "(ES_MAX_IMAGE_MEGAPIXELS)"
            )
        return image

    def _pixels(self, image: Image.Image) -> int:
        """Return the pixels of an image, or of what a model's processor makes of a narrow one
        before it is cropped: it brings the shorter side to the size that is needed."""
        short, long = sorted(image.size)
        return max(short * long, self._side**2 * long // max(1, short))


def _has_many_scans(jpeg: bytes) -> bool:
    """Return whether a JPEG has more scans, each of which takes as long as an image and may be a
    few bytes long, or more segments than any real one.

    Counted as libjpeg reads it, to its end: phones append films, in which any bytes may occur."""
    scans, at = 0, 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(jpeg, at)
        if marker is None or marker[0] == b"\xff\xd9":
            return False
        scans += marker[0] == b"\xff\xda"
        if scans > _MOST_SCANS:
            return True
        at = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2]))
    return True


def _upright(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == "RGB" else image.convert("RGB")
