"""A catalogue's vectors by a registered model, into parquet."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import Conflict, InvalidInput
from embedding_studio.models import CHAMPION, split_reference
from embedding_studio.serving.items import KEPT, Texts
from embedding_studio.serving.vectors import About, VectorFiles
from embedding_studio.training.encoder import fast_arithmetic, load_encoder

Dtype = Literal["float32", "bfloat16"]
Side = Literal["document", "query"]

PASS_TEXTS = 64
_CHUNK_TEXTS = 1024
"""What is encoded, sorted by length, between two words on how far it is."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a run came to. rows: of all vectors; new: of those that this run made."""

    model: str
    rows: int
    new: int
    dimensions: int
    seconds: float


def embed(
    client: EmbeddingStudioClient,
    texts: Texts,
    source: str,
    reference: str,
    out: Path,
    *,
    side: Side = "document",
    dtype: Dtype = "float32",
    rows_per_shard: int = 10_000,
    progress: Callable[[int, float], None] = lambda rows, per_second: None,
) -> Embedded:
    """Write the vectors of texts by a version of a model, going on where a run was interrupted.

    progress: is told of the rows so far, and of how many there are a second. Vectors are float32 in
    any case; dtype is what the model computes in. Raises Conflict where what was begun is of
    something else, InvalidInput when there is no text, NotFound."""
    name, wanted = split_reference(reference)
    version = client.get_version(name, wanted or CHAMPION)
    about = About(
        model=f"{name}/{version.version}",
        model_sha256=version.sha256,
        side=side,
        items=source if source == KEPT else str(Path(source).resolve()),
        dtype=dtype,
        rows_per_shard=rows_per_shard,
    )
    files = VectorFiles(out, about)
    place = files.folder / "model"
    if not place.is_dir():
        client.download_version(name, place, version.version)
    model = load_encoder(place)
    encode = model.encode_query if side == "query" else model.encode_document
    left = _after(files, texts, source)
    done, began, new = sum(1 for _ in files.ids()), time.monotonic(), 0
    arithmetic = fast_arithmetic(model.device) if dtype == "bfloat16" else nullcontext()
    while shard := [*islice(left, rows_per_shard)]:
        parts = []
        for start in range(0, len(shard), _CHUNK_TEXTS):
            some = [text for _, text in shard[start : start + _CHUNK_TEXTS]]
            with arithmetic:
                parts.append(encode(some, batch_size=PASS_TEXTS, show_progress_bar=False))
            new += len(some)
            progress(done + new, new / (time.monotonic() - began))
        vectors = np.concatenate(parts).astype(np.float32, copy=False)
        files.write([object_id for object_id, _ in shard], vectors)
    if not done + new:
        raise InvalidInput(f"{source} has no item with a text")
    width = files.dimensions()
    files.finish()
    return Embedded(about.model, done + new, new, width, time.monotonic() - began)


def _after(files: VectorFiles, texts: Texts, source: str) -> Iterator[tuple[str, str]]:
    """Yield what is not done. Raises Conflict where a file has other items than it had."""
    done, former = files.ids(), None
    rest = iter(texts)
    for former in done:
        if source == KEPT:  # in the order of their ids: what came or went since is as it was then
            continue
        if next(rest, (None,))[0] != former:
            raise Conflict(
                f"{source} has other items than it had when {files.folder} was begun: delete that "
                "folder"
            )
    for object_id, text in rest:
        if source != KEPT or former is None or object_id > former:
            yield object_id, text
