"""A catalogue's vectors by a registered model, into parquet."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.deletion import remove_tree
from embedding_studio.errors import Conflict, InvalidInput
from embedding_studio.executors import open_executor
from embedding_studio.executors.base import Job, Report, Reporter, Resources, Verdict
from embedding_studio.models import CHAMPION, split_reference
from embedding_studio.serving.batching import Vectors
from embedding_studio.serving.export import (
    ABOUT,
    Encode,
    ExportFormat,
    check_installed,
    encode_by,
    encode_by_graphs,
    export,
)
from embedding_studio.serving.items import KEPT, Texts
from embedding_studio.serving.vectors import About, VectorFiles, write_shard
from embedding_studio.training.encoder import fast_arithmetic, load_encoder


class Side(StrEnum):
    """What texts are encoded as."""

    DOCUMENT = "document"
    QUERY = "query"


class EmbedFormat(StrEnum):
    """What computes the vectors: torch in one of two precisions, or a graph."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    ONNX = ExportFormat.ONNX.value
    ONNX_INT8 = ExportFormat.ONNX_INT8.value
    OPENVINO = ExportFormat.OPENVINO.value


_CHUNK_TEXTS = 1024
"""What is encoded, sorted by length, between two words on how far it is."""
_NEEDS = Resources(gpus=1)
_OWN = "model"


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a run came to. rows: of all vectors; new: of those that this run made."""

    model: str
    rows: int
    new: int
    dimensions: int
    seconds: float


@dataclass(frozen=True)
class EncodeShard(Job[int]):
    """Writes the vectors of some items; returns how many there are."""

    reads: ClassVar = ("models",)
    writes: ClassVar = ("shard",)

    #: the model in its own form, and what was exported of it
    models: Path
    about: About
    #: ids with texts, at least one
    items: Sequence[tuple[str, str]]
    shard: Path

    def __call__(self, report: Reporter) -> int:
        form, model = EmbedFormat(self.about.format), self.about.model_sha256
        encode = encoder_of(self.models, form, model)
        parts: list[Vectors] = []
        for step, start in enumerate(range(0, len(self.items), _CHUNK_TEXTS)):
            texts = [text for _, text in self.items[start : start + _CHUNK_TEXTS]]
            parts.append(encode(self.about.side, texts))
            report(Report(step, {"rows": start + len(texts)}))
        vectors = np.concatenate(parts).astype(np.float32, copy=False)
        write_shard(self.shard, self.about, [object_id for object_id, _ in self.items], vectors)
        return len(vectors)


def embed(
    client: EmbeddingStudioClient,
    texts: Texts,
    source: str,
    reference: str,
    out: Path,
    *,
    side: Side = Side.DOCUMENT,
    form: EmbedFormat = EmbedFormat.FLOAT32,
    rows_per_shard: int = 10_000,
    executor: str = "inline",
    progress: Callable[[int, float], None] = lambda rows, per_second: None,
) -> Embedded:
    """Write the vectors of texts by a version of a model, going on where a run was interrupted.

    form: what computes them; they are float32 in any case. executor: where shards are made, as
    `open_executor` names it. progress: is told of the rows so far, and of how many there are a
    second. Raises Conflict where what was begun is of something else, InvalidInput when there is no
    text, NotFound, ConfigurationError for what is not installed, MethodError for a model that has
    no graph, ExecutorUnavailable."""
    name, wanted = split_reference(reference)
    version = client.get_version(name, wanted or CHAMPION)
    about = About(
        model=f"{name}/{version.version}",
        model_sha256=version.sha256,
        side=side.value,
        items=source if source == KEPT else str(Path(source).resolve()),
        format=form.value,
        rows_per_shard=rows_per_shard,
    )
    if form in {*ExportFormat}:
        check_installed(ExportFormat(form))
    files = VectorFiles(out, about)
    models = files.folder / "_models"
    if not (models / _OWN).is_dir():
        client.download_version(name, models / _OWN, version.version)
    write_form(models, form, about.model)
    left = _after(files, texts, source)
    done, began = sum(1 for _ in files.ids()), time.monotonic()
    made = dict[int, int]()  # by shards
    running, telling = set[Future[int]](), threading.Lock()

    def note(shard: int, report: Report) -> Verdict:
        with telling:  # each shard reports from a thread of its own
            made[shard] = int(report.metrics["rows"])
            new = sum(made.values())
            progress(done + new, new / (time.monotonic() - began))
        return Verdict.CONTINUE

    with closing(open_executor(executor)) as jobs:
        for shard in count(len(files.shards())):
            some = [*islice(left, rows_per_shard)]
            while running and (not some or len(running) >= jobs.slots(_NEEDS)):
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
            if not some:
                break
            job = EncodeShard(models, about, some, files.shard(shard))
            running.add(jobs.submit(job, partial(note, shard), _NEEDS))
    new = sum(made.values())
    if not done + new:
        raise InvalidInput(f"{source} has no item with a text")
    width = files.dimensions()
    files.finish()
    return Embedded(about.model, done + new, new, width, time.monotonic() - began)


def write_form(models: Path, form: EmbedFormat, model: str) -> None:
    """Write the graphs that a form takes beside the model, unless they are there."""
    if form in {*ExportFormat} and not (models / form / ABOUT).exists():
        remove_tree(models / form)
        export(models / _OWN, models / form, ExportFormat(form), model)


@lru_cache(maxsize=1)  # a process may be given several shards
def encoder_of(models: Path, form: EmbedFormat, model_sha256: str | None = None) -> Encode:
    """Return what encodes by a form of the model in a folder. model_sha256: which model that is,
    for another one may come to lie there."""
    encoder = load_encoder(models / _OWN)
    if form in {*ExportFormat}:
        return encode_by_graphs(models / form, encoder)
    exact = encode_by(encoder)

    def encode(side: str, texts: Sequence[str]) -> Vectors:
        with fast_arithmetic(encoder.device):
            return exact(side, texts)

    return encode if form is EmbedFormat.BFLOAT16 else exact


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
