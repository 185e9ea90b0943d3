"""The sessions of batches as they are at a moment, in a file with one as JSON per line."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from embedding_studio.clickstream import Session, TimeRange

if TYPE_CHECKING:  # trials, which only read a snapshot, load no store
    from embedding_studio.engine.lease import Lease
    from embedding_studio.store import Store

PAGE = 1000

_LINES = TypeAdapter(Session)


def take_snapshot(
    store: "Store",
    lease: "Lease",
    batch_ids: Sequence[str],
    file: Path,
    made: TimeRange | None = None,
) -> str:
    """Copy the sessions of batches, or those of them that were made in a time range, as they are
    now to a file; return a digest of it.

    Results without content of their own get that of the items they name."""
    digest = hashlib.sha256()
    with file.open("wb") as lines:
        for page in _pages(store, lease, batch_ids):
            sessions = [one for one in page if made is None or made.holds(one)]
            part = dump_sessions(lease.patiently(store.items.complete, sessions))
            digest.update(part)
            lines.write(part)
    return digest.hexdigest()


def _pages(store: "Store", lease: "Lease", batch_ids: Sequence[str]) -> Iterator[list[Session]]:
    for batch_id in batch_ids:
        read, after = partial(store.clickstream.read, batch_id), 0
        while page := lease.patiently(read, after, PAGE):
            lease.check()
            yield [numbered.session for numbered in page]
            after = page[-1].number


def dump_sessions(sessions: Sequence[Session]) -> bytes:
    """Return what a snapshot holds of some sessions."""
    return b"".join(_LINES.dump_json(session) + b"\n" for session in sessions)


def read_snapshot(file: Path) -> list[Session]:
    """Return the sessions of a snapshot."""
    with file.open("rb") as lines:
        return [_LINES.validate_json(line) for line in lines]
