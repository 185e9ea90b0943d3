"""What searchers saw and what they did: sessions, results, events, batches."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """An impression: an item that was shown; its position is its place in the session's list.

    rank: the search engine's own score, whatever its scale, or None.
    """

    object_id: str
    rank: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """A click (or another action) on a shown result. Times are UTC."""

    event_id: str
    object_id: str
    created_at: datetime
    event_type: str = "click"
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """One search: the query, the results in the order shown, and what happened to them."""

    session_id: str
    search_query: str
    search_results: tuple[SearchResult, ...]
    created_at: datetime
    search_meta: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    events: tuple[SessionEvent, ...] = ()
    is_irrelevant: bool = False

    def clicked_ids(self) -> set[str]:
        """Return the object ids that some event of type "click" names."""
        return {event.object_id for event in self.events if event.event_type == "click"}


@dataclass(frozen=True, slots=True)
class NumberedSession:
    """A session and its place in its batch: numbers run 1, 2, 3, ... without gaps."""

    session: Session
    batch_id: str
    number: int


class BatchStatus(StrEnum):
    COLLECTING = "collecting"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """Sessions collected together. Once released, its membership never changes."""

    batch_id: str
    status: BatchStatus
    created_at: datetime
    session_count: int
    release_id: str | None = None
    released_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Splits(Generic[Part]):
    """The three parts of a data set; no query occurs in two of them."""

    train: Part
    validation: Part
    test: Part


def normalize_query(query: str) -> str:
    """Return the form under which two spellings count as the same query: case folded, white space
    made one, and of Unicode's spellings of a character (é, or e and an accent; full width, half
    width; ligatures) one, by NFKC."""
    folded = unicodedata.normalize("NFKC", query).casefold()  # which may leave what is not NFKC
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def split_by_query(
    sessions: Iterable[Session], validation_share: float = 0.15, test_share: float = 0.15
) -> Splits[list[Session]]:
    """Split sessions by a hash of their normalized query.

    The hash alone decides, so a query stays on its side for ever: a champion is never tested on
    queries that an earlier iteration trained on. Shares are in [0, 1] and sum to at most 1.
    """
    parts: Splits[list[Session]] = Splits([], [], [])
    for session in sessions:
        digest = hashlib.sha256(normalize_query(session.search_query).encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < test_share:
            parts.test.append(session)
        elif place < test_share + validation_share:
            parts.validation.append(session)
        else:
            parts.train.append(session)
    return parts
