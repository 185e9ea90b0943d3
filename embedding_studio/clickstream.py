"""What searchers saw and what they did: sessions, results, events, batches."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from itertools import count
from math import comb
from typing import Any, Generic, Self, TypeVar

from embedding_studio.clock import parse_duration
from embedding_studio.errors import InvalidInput

Part = TypeVar("Part", covariant=True)
Other = TypeVar("Other")

EVENT_WEIGHTS: Mapping[str, float] = {
    **dict.fromkeys(["purchase", "buy", "order", "conversion", "transaction"], 3.0),
    **dict.fromkeys(
        ["add to cart", "add to basket", "begin checkout", "checkout", "add to wishlist",
         "wishlist", "favorite", "favourite", "like", "save", "bookmark"],
        2.0,
    ),
    "click": 1.0,
    **dict.fromkeys(
        ["view", "view item", "view item list", "impression", "show", "hover", "scroll",
         "remove from cart", "remove from basket", "refund", "return", "dislike"],
        0.0,
    ),
}  # fmt: skip
"""As how many clicks an event of a type counts, unless a method or a task says otherwise; types are
compared as `event_kind` has them, and one that is not here counts as a click."""
OTHER_WEIGHT = 1.0
CLICK = "click"
"""The type of an event that says none."""
MAX_WEIGHT = 100.0


def event_kind(event_type: str) -> str:
    """Return the form under which two spellings count as the same type: Add to cart, addToCart."""
    return "".join(filter(str.isalnum, event_type.casefold())) or event_type


def check_weights(weights: Mapping[str, float]) -> Mapping[str, float]:
    """Return the weights. Raises ValueError for one that is not between 0 and 100, and for a type
    that has two."""
    spellings: dict[str, str] = {}
    for name, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"the weight of {name!r} is {weight!r}: give 0 to {MAX_WEIGHT:g}")
        if (first := spellings.setdefault(event_kind(name), name)) != name:
            raise ValueError(f"{first!r} and {name!r} are one type of events: give it one weight")
    return weights


def merge_weights(*layers: Mapping[str, float]) -> dict[str, float]:
    """Return weights by `event_kind`: EVENT_WEIGHTS, changed by each layer in turn."""
    named = (layer.items() for layer in (EVENT_WEIGHTS, *layers))
    return {event_kind(name): weight for layer in named for name, weight in layer}


def ignored_kinds(weights: Mapping[str, float]) -> frozenset[str]:
    """Return the kinds that count for nothing."""
    return frozenset(kind for kind, weight in weights.items() if weight <= 0)


_BY_KIND = merge_weights()
IGNORED_KINDS = ignored_kinds(_BY_KIND)
_USER_SHARE, _USER_SESSIONS = 0.01, 100


@dataclass(frozen=True, slots=True)
class SearchResult:
    """An impression: an item that was shown; its position is its place in the session's list."""

    object_id: str
    #: the search engine's own score, whatever its scale, or None
    rank: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """A click (or another action) on a shown result. Times are UTC."""

    event_id: str
    object_id: str
    created_at: datetime
    event_type: str = CLICK
    meta: Mapping[str, Any] = field(default_factory=dict)
    #: as how many clicks it counts; None where nobody has said, for what EVENT_WEIGHTS says
    weight: float | None = None

    @property
    def kind(self) -> str:
        """Its type, whatever its spelling."""
        return event_kind(self.event_type)


def fresh_events(
    events: Iterable[SessionEvent], known_ids: Collection[str] = ()
) -> list[SessionEvent]:
    """Return the first event of each id, but of those that are known."""
    first: dict[str, SessionEvent] = {}
    for event in events:
        if event.event_id not in known_ids:
            first.setdefault(event.event_id, event)
    return list(first.values())


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
        """Return the object ids that some event counts for: its weight is above 0."""
        return set(self.click_weights())

    def click_weights(self) -> dict[str, float]:
        """Return as how many clicks the events on an item count, by object id: as the one among
        them that counts most. Items whose events do not count are not there."""
        weights: dict[str, float] = {}
        for event in self.events:
            weight = event.weight
            if weight is None:
                weight = _BY_KIND.get(event.kind, OTHER_WEIGHT)
            if weight > weights.get(event.object_id, 0.0):
                weights[event.object_id] = weight
        return weights

    def weighed(self, weights: Mapping[str, float]) -> "Session":
        """Return the session with events that know their weights, as `merge_weights` has them."""
        events = (
            replace(event, weight=weights.get(event.kind, OTHER_WEIGHT)) for event in self.events
        )
        return replace(self, events=tuple(events))

    def shown_kinds(self) -> set[str]:
        """Return the kinds of the events on items that were shown. A session counts as a clicked
        one if one of them has a weight above 0, and it is not marked irrelevant."""
        shown = {result.object_id for result in self.search_results}
        return {event.kind for event in self.events if event.object_id in shown}


def busy_users(counts: Mapping[str, int], sessions: int) -> set[str]:
    """Return who made more than a hundredth of the sessions, and more than a hundred of them.

    Nobody, where they made more than half of all: then an id names no person, but a web site, say,
    or the few people there are. counts: how many each made."""
    least = max(_USER_SESSIONS, _USER_SHARE * sessions)
    busy = {user for user, count in counts.items() if count > least}
    return busy if sum(counts[user] for user in busy) <= sessions / 2 else set()


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The sessions that were made at one time or later, and before another; None: no bound."""

    since: datetime | None
    until: datetime | None

    @classmethod
    def of(
        cls, last: str | None, since: datetime | None, until: datetime | None, now: datetime
    ) -> Self | None:
        """Return the one that is asked for, None where none is. last: how long before now it
        begins, "30d" say. Raises InvalidInput for what is none."""
        if last is not None:
            if since or until:
                raise InvalidInput("last is a time range by itself: leave since and until out")
            try:
                since = now - parse_duration(last)
            except InvalidInput as error:
                raise InvalidInput(f"last: {error}") from error
        if since and until and since >= until:
            raise InvalidInput(f"since, {since.isoformat()}, is not before until: nothing is left")
        return cls(since, until) if since or until else None

    def __str__(self) -> str:
        """Return when they were made, in words."""
        bounds = {"from": self.since, "before": self.until}
        told = (f"{word} {time:%Y-%m-%d %H:%M} UTC" for word, time in bounds.items() if time)
        return " and ".join(told)

    def reaches(self, now: datetime) -> bool:
        """Return whether what is being collected is in it."""
        return self.until is None or now < self.until

    def holds(self, made_at: datetime) -> bool:
        is_late_enough = self.since is None or self.since <= made_at
        return is_late_enough and (self.until is None or made_at < self.until)


@dataclass(frozen=True, slots=True)
class EarlyFeedback:
    """Events of a session that has not come yet, or the mark that its results were all wrong."""

    session_id: str
    events: tuple[SessionEvent, ...] = ()
    is_irrelevant: bool = False


def text_of(result: SearchResult) -> str | None:
    """Return the text that the result carries in its meta, or None when there is none."""
    text = result.meta.get("text")
    return text if isinstance(text, str) and text.strip() else None


def image_of(result: SearchResult) -> str | None:
    """Return where the result's meta says that its image is, or None when it does not say.

    It says so as {"image": address}, or as {"bucket": ..., "file": ...}, which is in S3.
    """
    meta = result.meta
    address = meta.get("image")
    if isinstance(address, str) and address.strip():
        return address
    bucket, file = meta.get("bucket"), meta.get("file")
    if isinstance(bucket, str) and isinstance(file, str) and bucket.strip() and file.strip():
        return f"s3://{bucket}/{file.lstrip('/')}"
    return None


def has_content(result: SearchResult) -> bool:
    """Tell whether the result carries a text or an image."""
    return bool(text_of(result) or image_of(result))


@dataclass(frozen=True, slots=True)
class NumberedSession:
    """A session and its place in its batch: numbers run 1, 2, 3, ... without gaps, but for
    sessions that were erased."""

    session: Session
    batch_id: str
    number: int


class BatchStatus(StrEnum):
    COLLECTING = "collecting"
    RELEASED = "released"


class BatchCount(StrEnum):
    """What is counted of a batch as it is posted, for those who are to judge what it is worth."""

    RESULTS_WITHOUT_CONTENT = "results_without_content"
    EVENTS_NOT_SHOWN = "events_not_shown"
    CHANGED_SESSIONS = "changed_sessions"
    LATE_SESSIONS = "late_sessions"
    LATE_EVENTS = "late_events"
    EARLY_EVENTS = "early_events"


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """Sessions collected together. Once released, its membership never changes, but for people
    who are erased.

    since: when the batch before it was released, if there was one. counts: what was noticed as the
    sessions and their events came; what is missing is 0.
    """

    batch_id: str
    status: BatchStatus
    created_at: datetime
    session_count: int
    release_id: str | None = None
    released_at: datetime | None = None
    since: datetime | None = None
    counts: Mapping[BatchCount, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project holds, or may: sessions, and bytes of the JSON of them and their events."""

    sessions: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Splits(Generic[Part]):
    """The three parts of a data set; no query occurs in two of them."""

    train: Part
    validation: Part
    test: Part

    @classmethod
    def of(cls, make: Callable[[str], Part]) -> Self:
        """Return the splits that are made of their names."""
        return cls(*(make(part.name) for part in fields(cls)))

    def named(self) -> dict[str, Part]:
        """Return the parts by their names."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def map(self, change: Callable[[Part], Other]) -> "Splits[Other]":
        """Return what becomes of each part."""
        return Splits(*map(change, self.named().values()))


def normalize_query(query: str) -> str:
    """Return the form under which two spellings count as the same query: case folded, white space
    made one, and of Unicode's spellings of a character (é, or e and an accent; full width, half
    width; ligatures) one, by NFKC."""
    folded = unicodedata.normalize("NFKC", query).casefold()  # which may leave what is not NFKC
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def part_of_query(
    query: str,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    folds: int = 1,
    fold: int | None = 0,
) -> str:
    """Return the name of the part that a query is in, by a hash of its normalized form alone.

    Shares are in [0, 1] and sum to at most 1. folds: in how many parts the queries beside those of
    validation are: the first has the test share, the others equal shares of what is left. fold:
    which part is to test, and what the others are to train; None: all of them are to train."""
    digest = hashlib.sha256(normalize_query(query).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    behind = place - test_share - validation_share
    if test_share <= place and behind < 0:
        return "validation"
    others = 1 - validation_share - test_share
    number = 0 if place < test_share else 1 + int(behind / others * (folds - 1))
    return "test" if number == fold else "train"


def split_by_query(
    sessions: Iterable[Session],
    validation_share: float = 0.15,
    test_share: float = 0.15,
    folds: int = 1,
    fold: int | None = 0,
) -> Splits[list[Session]]:
    """Split sessions as `part_of_query` says. Where nothing is to test, validation stands in for
    the test, for nothing else is held out."""
    parts: Splits[list[Session]] = Splits([], [], [])
    shares = validation_share, test_share
    for session in sessions:
        name = part_of_query(session.search_query, *shares, folds, fold)
        parts.named()[name].append(session)
    return parts if fold is not None else replace(parts, test=parts.validation)


LEAST_QUERIES: Mapping[str, int] = {"train": 10, "validation": 5, "test": 5}
"""How many queries with a probably relevant result each part must have to learn and to judge."""


def sessions_to_fill(validation_share: float = 0.15, test_share: float = 0.15) -> int:
    """Return how many clicked sessions, each of another query, give all three parts their
    LEAST_QUERIES in 19 of 20 cases: a query's hash is as good as chance."""
    shares = [1 - validation_share - test_share, validation_share, test_share]

    def risk(n: int) -> float:
        return sum(
            comb(n, few) * share**few * (1 - share) ** (n - few)
            for share, least in zip(shares, LEAST_QUERIES.values(), strict=True)
            for few in range(least)
        )

    return next(n for n in count() if risk(n) <= 0.05)


MIN_NEW_SESSIONS = sessions_to_fill()
"""How many clicked sessions a schedule waits for unless it says otherwise."""
