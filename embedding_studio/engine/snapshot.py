"""How the sessions of batches become a snapshot."""

import gc
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_studio.clickstream import TimeRange
from embedding_studio.deletion import remove_tree
from embedding_studio.items import Item
from embedding_studio.snapshot import SnapshotWriter
from embedding_studio.store.codec import moment_of

if TYPE_CHECKING:  # trials, which only read a snapshot, load no store
    from embedding_studio.engine.lease import Lease
    from embedding_studio.store import Store

PAGE = 10_000


def take_snapshot(
    store: "Store",
    lease: "Lease",
    batch_ids: Sequence[str],
    folder: Path,
    find_items: Callable[[Collection[str]], Mapping[str, Item]],
    made: TimeRange | None = None,
) -> tuple[str, int]:
    """Copy the sessions of batches, or those of them that were made in a time range, as they are
    now; return a digest of what is written, and how many they are.

    Results without content of their own get that of the items they name, which find_items returns
    by their ids. A snapshot that the folder has is replaced."""
    remove_tree(folder, ignore_errors=True)
    with SnapshotWriter(folder, find_items) as writer, _without_cycles():
        for batch_id in batch_ids:
            read, after = partial(store.clickstream.read_documents, batch_id), 0
            while page := lease.patiently(read, after, PAGE):
                lease.check()
                writer.add([one for one in page.values() if made is None or _is_in(made, one)])
                after = max(page)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest(), writer.count


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Around work that makes no cycles: looking for them in documents, page by page, would take a
    third of its time."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def _is_in(made: TimeRange, session: Mapping[str, Any]) -> bool:
    return made.holds(moment_of(session["created_at"]))
