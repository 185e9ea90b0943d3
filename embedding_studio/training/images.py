"""Images as pixels on disk: fetched and cut once per iteration, memory-mapped by every trial."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session, Splits
from embedding_studio.clickstream import image_of as image_of  # plugins look for it here
from embedding_studio.errors import IterationError, MethodError, NotEnoughData
from embedding_studio.labels import LabelledResult
from embedding_studio.loaders.places import Reader
from embedding_studio.settings import Settings
from embedding_studio.snapshot import columns_of
from embedding_studio.training.augmentation import Augmentation
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks
from embedding_studio.training.decoding import Decoder
from embedding_studio.training.encoder import device
from embedding_studio.training.inputs import new_array
from embedding_studio.training.texts import tokenize

log = logging.getLogger(__name__)

Ints = NDArray[np.integer]

_MOST_UNREADABLE = 0.5
_READERS = 16
_MOST_TIME = 0.5
"""How much of ES_MAX_JOB_MINUTES, which all the preparation has, may be spent on images."""
_MOST_DISK = 0.5
"""How much of the free disk their pixels may take."""


@dataclass(frozen=True)
class PreparedImages:
    """Images as the model's processor resizes and crops them.

    pixels: (n_rows, 3, height, width) uint8, may be memory-mapped; rows: (n_images,) where an image
    stands there; mean, std: of each channel, of values in [0, 1]; tokens: what a transformer makes
    of an image: its patches and one."""

    pixels: NDArray[np.uint8]
    rows: Ints
    mean: Sequence[float]
    std: Sequence[float]
    tokens: int
    folder: Path | None = None
    augmentation: Augmentation | None = None
    random: torch.Generator | None = None

    is_left_padded = False

    @property
    def is_fixed(self) -> bool:
        return self.augmentation is None

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, which: Ints) -> NDArray[np.int64]:
        return np.full(len(which), self.tokens)

    def for_model(self, model: SentenceTransformer) -> "PreparedImages":
        return self

    def same_as(self, which: Ints) -> Ints:
        return which

    def names(self, which: Ints) -> list[str]:
        return [hashlib.sha256(self.pixels[row]).hexdigest() for row in self.rows[which]]

    def samples(self) -> Ints:
        return np.arange(min(4, len(self)))

    def groups(self, which: Ints) -> Ints:
        return np.zeros(len(which), np.int64)

    def options(self, which: Ints) -> dict[str, Any]:
        return {"task": "document"}

    def features(self, which: Ints, model: object = None) -> dict[str, Any]:
        """Return pixel_values, (n, 3, height, width) float, normalised, on the training device.

        Images are augmented only where gradients are enabled: an evaluation sees them as they are.
        """
        pixels = torch.from_numpy(self.pixels[self.rows[which]]).to(device()).float() / 255
        if self.augmentation and self.random and torch.is_grad_enabled():
            pixels = self.augmentation(pixels, self.random)
        mean, std = (pixels.new_tensor(x)[:, None, None] for x in (self.mean, self.std))
        return {"pixel_values": (pixels - mean) / std, "modality": "image"}

    def augmented(self, augmentation: Augmentation, seed: int) -> "PreparedImages":
        """Return the same images, changed at random in training; these if nothing is on."""
        if not augmentation.is_on:
            return self
        return replace(self, augmentation=augmentation, random=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class ImageLists(QueryLists):
    """Text queries; items and distractors are indices into `images`."""

    images: PreparedImages


def prepare_image_clicks(
    sessions: Splits[Sequence[Session]],
    item_image: Callable[[SearchResult], str | None],
    model: SentenceTransformer,
    folder: Path,
    allow_private: bool = False,
    labels: Splits[Sequence[LabelledResult]] | None = None,
) -> Mapping[str, float]:
    """Do what `prepare_clicks` does where items are images, and write their pixels.

    item_image: gives a path, a file:, http(s):, s3:, gs: or az: URL (the last three need fsspec's
    drivers), or a data: URI. Those who post sessions choose them, so http(s) does not reach into
    private networks unless allow_private, paths and objects are below ES_ALLOWED_ROOTS, and none
    is larger or takes longer than the settings say. Images are set upright as their EXIF data say,
    and those of the same content are one item. Results without an image, or with one that cannot be
    read, are left out and counted. Raises NotEnoughData when more than half of the images cannot be
    read, or as `prepare_clicks` does."""
    owners: dict[str, str] = {}  # of each address, the first object_id that came with it
    parts = map(columns_of, sessions.named().values())
    results = [result for part in parts for _, result in part.shown()]
    labels = labels or Splits((), (), ())
    results += [label.result for part in labels.named().values() for label in part]
    for result in results:
        if address := item_image(result):
            owners.setdefault(address, result.object_id)
    if results and not owners:
        raise NotEnoughData(
            f"none of {len(results)} results has an image (object_id {results[0].object_id!r}, "
            'say): post results with meta {"image": ...} or {"bucket": ..., "file": ...}, or '
            "override the method's item_image"
        )
    rows = _write_pixels(owners, model, folder, allow_private)

    def key(result: SearchResult) -> str | None:
        row = rows.get(item_image(result) or "")
        return None if row is None else str(row)

    figures = prepare_clicks(
        sessions,
        key,
        partial(tokenize, model),
        folder,
        encode_items=lambda keys: np.save(folder / "image_rows.npy", np.array(keys, np.int64)),
        labels=labels,
    )
    return {**figures, "unreadable_images": len(owners) - len(rows)}


def open_image_clicks(folder: Path) -> Splits[ImageLists]:
    """Map what `prepare_image_clicks` wrote into memory."""
    images = PreparedImages(
        np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / "image_rows.npy", allow_pickle=False),
        **json.loads((folder / "images.json").read_text(encoding="utf-8")),
        folder=folder,
    )
    return open_clicks(folder).map(lambda lists: ImageLists(**vars(lists), images=images))


def _write_pixels(
    owners: Mapping[str, str], model: SentenceTransformer, folder: Path, allow_private: bool
) -> dict[str, int]:
    """Write the pixels of every address; return the rows of those that could be read."""
    transformer: Any = model[0]
    processor = getattr(getattr(transformer, "processor", None), "image_processor", None)
    if processor is None:
        raise MethodError("the model takes no images: what does ES_INITIAL_IMAGE_MODEL name?")

    def cut(image: Image.Image) -> NDArray[np.uint8]:
        done = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels: NDArray[np.uint8] = done["pixel_values"][0]
        return pixels

    shape = cut(Image.new("RGB", (8, 8))).shape
    patch = transformer.model.config.vision_config.patch_size
    per_unit = 255 * processor.rescale_factor
    description = {
        "mean": [value / per_unit for value in processor.image_mean],
        "std": [value / per_unit for value in processor.image_std],
        "tokens": (shape[1] // patch) * (shape[2] // patch) + 1,
    }
    (folder / "images.json").write_text(json.dumps(description), encoding="utf-8")
    _require_room(folder, len(owners) * math.prod(shape))
    pixels = new_array(folder / "pixels.npy", np.uint8, (max(1, len(owners)), *shape))

    settings = Settings()
    max_pixels = settings.max_image_megapixels * 1_000_000
    ends_at = time.monotonic() + _MOST_TIME * 60 * settings.max_job_minutes

    def read(row: int, address: str) -> str | _Unread:
        if time.monotonic() > ends_at:
            return _TOO_LATE
        try:
            content = reader.read(address)
            pixels[row] = decoder.apply(cut, content)
        except Exception as error:  # noqa: BLE001 - file systems and decoders raise what they like
            # its text alone: what it came from may hold the content
            return _Unread(f"{type(error).__name__}: {str(error)[:500]}")
        return hashlib.sha256(content).hexdigest()

    with (
        Reader(settings, allow_private) as reader,
        Decoder(max_pixels, max(shape[1:]), _READERS) as decoder,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        found = list(readers.map(read, range(len(owners)), owners))
    pixels.flush()
    _require_most(owners, found)
    first: dict[str, int] = {}
    return {
        address: first.setdefault(digest, row)
        for row, (address, digest) in enumerate(zip(owners, found, strict=True))
        if isinstance(digest, str)
    }


def _require_room(folder: Path, size_bytes: int) -> None:
    """Raise IterationError where so many pixels would leave the disk nearly full for others."""
    free = shutil.disk_usage(folder).free
    if size_bytes > _MOST_DISK * free:
        raise IterationError(
            f"the batch's images take {size_bytes:,} bytes as pixels, more than half of the "
            f"{free:,} that are free in {folder}: release smaller batches, or give the worker a "
            "larger disk"
        )


@dataclass(frozen=True)
class _Unread:
    reason: str


_TOO_LATE = _Unread("half of ES_MAX_JOB_MINUTES was over before it was its turn")


def _require_most(owners: Mapping[str, str], found: Sequence[str | _Unread]) -> None:
    """Raises NotEnoughData: so many failures say more of this machine than of the images."""
    failures = [
        (object_id, address, outcome.reason)
        for (address, object_id), outcome in zip(owners.items(), found, strict=True)
        if isinstance(outcome, _Unread)
    ]
    if late := found.count(_TOO_LATE):
        log.warning("%d of %d images are left out: %s", late, len(found), _TOO_LATE.reason)
    if len(failures) > _MOST_UNREADABLE * len(owners):
        object_id, address, reason = failures[0]
        raise NotEnoughData(
            f"{len(failures)} of {len(owners)} images cannot be read; can this machine reach them? "
            f"The first: object_id {object_id!r}, {address[:200]}: {reason}"
            + (f". Of {late}: {_TOO_LATE.reason}" if late else "")
        )
