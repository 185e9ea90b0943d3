"""The sessions of a batch as they are at a moment, in a file with one as JSON per line."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from embedding_studio.clickstream import Session
from embedding_studio.items import completed, without_content

if TYPE_CHECKING:  # trials, which only read a snapshot, load no store
    from embedding_studio.engine.lease import Lease
    from embedding_studio.store import Store

PAGE = 1000

_LINES = TypeAdapter(Session)


def take_snapshot(store: "Store", lease: "Lease", batch_id: str, file: Path) -> str:
    """Copy the sessions of a batch as they are now to a file; return a digest of it.

    Results without content of their own get that of the items they name."""
    digest, after = hashlib.sha256(), 0
    read = partial(store.clickstream.read, batch_id)
    with file.open("wb") as lines:
        while page := lease.patiently(read, after, PAGE):
            lease.check()
            sessions = [numbered.session for numbered in page]
            if named := {one for session in sessions for one in without_content(session)}:
                items = lease.patiently(store.items.find, named)
                sessions = [completed(session, items) for session in sessions]
            part = dump_sessions(sessions)
            digest.update(part)
            lines.write(part)
            after = page[-1].number
    return digest.hexdigest()


def dump_sessions(sessions: Sequence[Session]) -> bytes:
    """Return what a snapshot holds of some sessions."""
    return b"".join(_LINES.dump_json(session) + b"\n" for session in sessions)


def read_snapshot(file: Path) -> list[Session]:
    """Return the sessions of a snapshot."""
    with file.open("rb") as lines:
        return [_LINES.validate_json(line) for line in lines]
