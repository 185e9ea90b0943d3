"""Vectors in parquet, written in shards, so that what was interrupted goes on where it was."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_studio.deletion import remove_tree
from embedding_studio.errors import Conflict
from embedding_studio.serving.batching import Vectors

_ABOUT = "_about.json"  # readers of a folder of parquet pass over names with an underscore


@dataclass(frozen=True)
class About:
    """What vectors are of; a run goes on with what another began only if it is of the same."""

    #: "name/3"
    model: str
    #: of the list of the model's files with their hashes
    model_sha256: str | None
    side: str
    items: str
    #: an EmbedFormat
    format: str
    rows_per_shard: int


class VectorFiles:
    """The shards of a run, and what becomes of them.

    out: ending in .parquet it is one file, which is written at the end from shards in a folder
    beside it; else a folder, of which the shards are what is wanted."""

    def __init__(self, out: Path, about: About) -> None:
        """Raises Conflict where vectors of something else were begun, or are there."""
        self.about = about
        self._out = out
        self._is_file = out.suffix == ".parquet"
        self.folder = out.with_name(f"{out.name}.part") if self._is_file else out
        if self._is_file and out.exists():
            raise Conflict(f"{out} is there already: delete it, or name another file")
        begun = self.folder / _ABOUT
        if begun.exists():
            former = json.loads(begun.read_text(encoding="utf-8"))
            for name, value in asdict(about).items():
                if former.get(name) != value:
                    raise Conflict(
                        f"{self.folder} was begun with {name} {former.get(name)!r}, not {value!r}: "
                        "go on with that, or delete the folder"
                    )
            for shard in {*self.folder.glob("part-*.parquet")} - {*self.shards()}:
                shard.unlink()  # of several at a time a later one was complete
        else:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise Conflict(f"{self.folder} has other files: name a new folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            part = begun.with_suffix(".tmp")
            part.write_text(json.dumps(asdict(about)), encoding="utf-8")
            part.replace(begun)

    def shards(self) -> list[Path]:
        """Return the shards that are complete, in their order, up to the first that is missing."""
        found: list[Path] = []
        while (shard := self.shard(len(found))).exists():
            found.append(shard)
        return found

    def shard(self, number: int) -> Path:
        """Return the file of a shard, counted from 0."""
        return self.folder / f"part-{number:05}.parquet"

    def ids(self) -> Iterator[str]:
        """Yield the ids of what is done, in their order."""
        for shard in self.shards():
            yield from pq.read_table(shard, columns=["object_id"])["object_id"].to_pylist()

    def dimensions(self) -> int:
        """Return how long the vectors are."""
        width: int = pq.read_schema(self.shards()[0]).field("vector").type.list_size
        return width

    def finish(self) -> None:
        """Make one file of the shards, where that is wanted."""
        if not self._is_file:
            return
        part = self.folder / "all.tmp"
        shards = self.shards()
        with pq.ParquetWriter(part, pq.read_schema(shards[0])) as writer:
            for shard in shards:
                writer.write_table(pq.read_table(shard))
        part.replace(self._out)
        remove_tree(self.folder)


def write_shard(file: Path, about: About, ids: Sequence[str], vectors: Vectors) -> None:
    """Write (n, d) vectors with their ids: the file is there as a whole, or not at all."""
    rows, width = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(rows * width))
    columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, width)]
    told = {"model": about.model, "model_sha256": about.model_sha256 or ""}
    told |= {"side": about.side, "dimensions": str(width)}
    metadata = {f"embedding_studio.{name}": value for name, value in told.items()}
    table = pa.table(columns, names=["object_id", "vector"])
    part = file.with_suffix(".tmp")
    pq.write_table(table.replace_schema_metadata(metadata), part)
    part.replace(file)
