"""Image files of strangers as upright RGB images, within bounds of memory and time."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from embedding_studio.errors import Unreadable

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP")
"""Those that browsers show. Other readers of Pillow start programs, or are seldom tried."""
_ENLARGED = 8
"""A JPEG that is larger than needed by this factor, twice, is decoded at half its size or less."""
_MOST_SCANS = 100
# what a PNG says in words is not read, but kept: by default up to 64 MB of it
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 1024 * 1024


class Decoder:
    """Decodes images, in several threads at once as long as they fit into memory together.

    max_pixels: of one image, and of all that are being decoded. side: how many pixels of width and
    height are needed of an image; one far larger may come out smaller than it is."""

    def __init__(self, max_pixels: int, side: int) -> None:
        self._max_pixels = max_pixels
        self._side = side
        self._free = max_pixels
        self._changed = threading.Condition()

    @contextmanager
    def decoded(self, content: bytes) -> Iterator[Image.Image]:
        """Yield the image, set upright as its EXIF data say; others wait for its memory.

        Raises Unreadable before anything is decoded, and what Pillow raises."""
        image = self._open(content)
        with self._room_for(self._pixels(image)):
            image.draft("RGB", (_ENLARGED * self._side, _ENLARGED * self._side))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode != "RGB":
                image = image.convert("RGB")  # the other one is let go of
            yield image

    def _open(self, content: bytes) -> Image.Image:
        # each scan of a JPEG takes as long as an image and may be a few bytes long
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MOST_SCANS:
            raise Unreadable(f"it is a JPEG of more than {_MOST_SCANS} scans")
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

    @contextmanager
    def _room_for(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()
