"""Vectors of a catalogue, from the shell."""

import json
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.executors import open_executor
from embedding_studio.executors.base import Verdict
from embedding_studio.items import Item
from embedding_studio.serving import embed, vectors
from embedding_studio.serving.vectors import About
from embedding_studio.store import Store
from tests.cli.conftest import Shell
from tests.serving.conftest import NAME, register

TEXTS = [f"lamp number {n} {'for the garden ' * (n % 4)}".strip() for n in range(25)]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    file = tmp_path / "items.parquet"
    pq.write_table(pa.table({"sku": [f"lamp-{n}" for n in range(25)], "title": TEXTS}), file)
    return file


def read(file: Path) -> tuple[list[str], Any]:
    table = pq.read_table(file)
    return table["object_id"].to_pylist(), np.stack(table["vector"].to_numpy())


def expected(folder: Path, side: str = "document", texts: Sequence[str] = TEXTS) -> Any:
    model = SentenceTransformer(str(folder), device="cpu")
    return (model.encode_query if side == "query" else model.encode_document)([*texts])


def test_a_file_of_items_becomes_vectors(
    shell: Shell, store: Store, encoders: tuple[Path, Path], items: Path, tmp_path: Path
) -> None:
    """One file with ids and the champion's vectors of documents, and what they are of."""
    register(store, encoders[0])
    out = tmp_path / "vectors.parquet"
    done = shell("embed", "--items", str(items), "--model", NAME, "--out", str(out), "--rows", "10")
    assert done.exit_code == 0, done.output
    assert f"has 25 vectors of 32 dimensions by {NAME}/1, 25 of them made" in done.output
    ids, vectors = read(out)
    assert ids == [f"lamp-{n}" for n in range(25)]
    np.testing.assert_allclose(vectors, expected(encoders[0]), atol=1e-5)
    metadata = pq.read_schema(out).metadata
    assert metadata[b"embedding_studio.model"] == f"{NAME}/1".encode()
    assert metadata[b"embedding_studio.side"] == b"document"
    assert len(metadata[b"embedding_studio.model_sha256"]) == 64
    assert not [*tmp_path.glob("*.part")]
    again = shell("embed", "--items", str(items), "--model", NAME, "--out", str(out))
    assert again.exit_code == 1
    assert "is there already" in str(again.exception)


def test_the_items_that_are_kept_become_shards(
    shell: Shell, store: Store, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """A folder gets a file for every so many vectors; items without a text are counted."""
    register(store, encoders[0])
    store.items.put([Item(f"lamp-{n:02}", text) for n, text in enumerate(TEXTS)])
    store.items.put([Item("picture", image="https://shop.example/1.jpg")])
    out = tmp_path / "vectors"
    words = ["--items", "items", "--model", f"{NAME}/1", "--out", str(out), "--rows", "10"]
    done = shell("embed", *words, "--side", "query", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 25
    assert "1 items had no text" in done.stderr
    shards = sorted(out.glob("*.parquet"))
    assert [len(pq.read_table(shard)) for shard in shards] == [10, 10, 5]
    ids, vectors = zip(*map(read, shards), strict=True)
    assert [*chain(*ids)] == [f"lamp-{n:02}" for n in range(25)]
    np.testing.assert_allclose(np.concatenate(vectors), expected(encoders[0], "query"), atol=1e-5)


@pytest.mark.parametrize("source", ["file", "items"])
def test_what_was_interrupted_goes_on_where_it_was(
    shell: Shell,
    store: Store,
    encoders: tuple[Path, Path],
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    """The shards that were complete are not made again, and the file has each item once."""
    register(store, encoders[0])
    store.items.put([Item(f"lamp-{n:02}", text) for n, text in enumerate(TEXTS)])
    given = str(items) if source == "file" else "items"
    out = tmp_path / "vectors.parquet"
    words = ["embed", "--items", given, "--model", f"{NAME}/1", "--out", str(out), "--rows", "10"]
    with monkeypatch.context() as patch:
        write, written = vectors.write_shard, list[int]()

        def write_two(*rest: Any) -> None:
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(1)
            write(*rest)

        patch.setattr(embed, "write_shard", write_two)
        assert shell(*words).exit_code == 130
    assert not out.exists()
    done = shell(*words)
    assert done.exit_code == 0, done.output
    assert "has 25 vectors" in done.output
    assert "5 of them made" in done.output
    ids, found = read(out)
    assert len(set(ids)) == 25
    np.testing.assert_allclose(found, expected(encoders[0]), atol=1e-5)


def test_what_was_begun_with_something_else_is_not_gone_on_with(
    shell: Shell, store: Store, encoders: tuple[Path, Path], items: Path, tmp_path: Path
) -> None:
    """Vectors of two models, or of another file, never come together."""
    register(store, encoders[0])
    out = tmp_path / "vectors"
    words = ["embed", "--items", str(items), "--out", str(out), "--rows", "10", "--model"]
    assert shell(*words, NAME).exit_code == 0
    register(store, encoders[1])
    moved = shell(*words, NAME)
    assert moved.exit_code == 1
    assert f"was begun with model '{NAME}/1', not '{NAME}/2'" in str(moved.exception)
    (out / "part-00002.parquet").unlink()
    pq.write_table(pa.table({"sku": ["other"] * 25, "title": TEXTS}), items)
    changed = shell(*words, f"{NAME}/1")
    assert changed.exit_code == 1
    assert "has other items than it had" in str(changed.exception)


def test_rows_that_are_no_items_are_told(
    shell: Shell, store: Store, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """They are left out, with what is wrong; a file that begins with none but such is refused."""
    register(store, encoders[0])
    file, out = tmp_path / "items.csv", tmp_path / "vectors.parquet"
    file.write_text("code,label\n1,a lamp\n,no id\n3,a chair\n")
    words = ["embed", "--items", str(file), "--model", NAME, "--out", str(out), "--columns"]
    done = shell(*words, "item=code,text=label")
    assert done.exit_code == 0, done.output
    assert "left out: row 3" in done.stderr
    assert read(out)[0] == ["1", "3"]
    out.unlink()
    file.write_text("code,label\n" + "1,a lamp\n" * 20)
    refused = shell(*words, "text=label")
    assert refused.exit_code == 1
    assert "the first rows are no items" in str(refused.exception)
    missing = shell("embed", "--items", "none.csv", "--model", NAME, "--out", str(out))
    assert "there is no file 'none.csv'" in str(missing.exception)


@pytest.mark.parametrize(
    ("wanted", "least"),
    [("bfloat16", 0.999), pytest.param("onnx-int8", 0.98, marks=pytest.mark.slow)],
)
def test_what_computes_them_may_be_chosen(
    shell: Shell,
    store: Store,
    encoders: tuple[Path, Path],
    items: Path,
    tmp_path: Path,
    wanted: str,
    least: float,
) -> None:
    """The vectors point where those of the model do, each at its item, and are float32."""
    register(store, encoders[0])
    out = tmp_path / "vectors"
    words = ["embed", "--items", str(items), "--model", NAME, "--out", str(out), "--rows", "20"]
    done = shell(*words, "--format", wanted)
    assert done.exit_code == 0, done.output
    ids, vectors = read(out)  # of the folder: what else lies in it is passed over
    assert ids == [f"lamp-{n}" for n in range(25)]
    assert vectors.dtype == np.float32
    exact = expected(encoders[0])
    cosines = (vectors * exact).sum(1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > least
    (out / "part-00001.parquet").unlink()
    again = shell(*words, "--format", wanted)
    assert "25 vectors of 32 dimensions" in again.output, again.output
    assert "5 of them made" in again.output
    other = shell(*words)
    assert f"was begun with format '{wanted}', not 'float32'" in str(other.exception)


def test_a_shard_behind_one_that_is_missing_is_made_anew(
    shell: Shell, store: Store, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where several were at work, a later one may be complete: items that went since do not come
    back with it."""
    register(store, encoders[0])
    store.items.put([Item(f"lamp-{n:02}", text) for n, text in enumerate(TEXTS)])
    out = tmp_path / "vectors"
    words = ["embed", "--items", "items", "--model", f"{NAME}/1", "--out", str(out), "--rows", "10"]
    assert shell(*words).exit_code == 0
    (out / "part-00001.parquet").unlink()
    store.items.delete([f"lamp-{n:02}" for n in range(20, 25)])
    done = shell(*words)
    assert "has 20 vectors" in done.output
    assert read(out)[0] == [f"lamp-{n:02}" for n in range(20)]


@pytest.mark.slow
def test_shards_are_made_by_other_processes(
    shell: Shell, store: Store, encoders: tuple[Path, Path], items: Path, tmp_path: Path
) -> None:
    """Several at a time, and the file has all in their order."""
    register(store, encoders[0])
    out = tmp_path / "vectors.parquet"
    words = ["embed", "--items", str(items), "--model", NAME, "--out", str(out), "--rows", "9"]
    done = shell(*words, "--executor", "process:2")
    assert done.exit_code == 0, done.output
    assert "has 25 vectors of 32 dimensions" in done.output
    ids, found = read(out)
    assert ids == [f"lamp-{n}" for n in range(25)]
    np.testing.assert_allclose(found, expected(encoders[0]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_is_made_on_a_node_of_a_cluster(
    encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The model goes to the node, and the file of the shard comes back."""
    copytree(encoders[0], tmp_path / "models" / "model")
    about = About("lamps/1", None, "document", "items", "float32", 10)
    items = [(f"lamp-{n}", text) for n, text in enumerate(TEXTS[:3])]
    shard = tmp_path / "part-00000.parquet"
    job = embed.EncodeShard(tmp_path / "models", about, items, shard)
    with closing(open_executor("ray:auto")) as executor:
        assert executor.submit(job, lambda _: Verdict.CONTINUE).result(120) == 3
    ids, found = read(shard)
    assert ids == ["lamp-0", "lamp-1", "lamp-2"]
    np.testing.assert_allclose(found, expected(encoders[0], texts=TEXTS[:3]), atol=1e-5)
