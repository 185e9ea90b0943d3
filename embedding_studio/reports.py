"""What a batch is worth, known before it is paid for: counts, shares, and what is wrong with it."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from math import ceil, sqrt
from typing import Any

from embedding_studio.clickstream import (
    LEAST_QUERIES,
    MIN_NEW_SESSIONS,
    Session,
    busy_users,
    event_kind,
    has_content,
    ignored_kinds,
    merge_weights,
    normalize_query,
    part_of_query,
    text_of,
)

POSITIONS = 20
LONG_TEXT = 2000
"""Characters from which on most encoders cut a text."""
_FEW_CLICKS, _FEW_CONTENTS, _CONCENTRATED = 0.1, 0.05, 0.5
_ALIKE, _MOST_SCRIPTS = 0.2, 5
_LEAST_POSITIONS, _LEAST_SHOWN = 4, 200
_COUNTS = (
    "sessions", "clicked_sessions", "irrelevant_sessions", "results", "results_without_content",
    "long_texts", "events_not_shown",
)  # fmt: skip
# standard errors of differences in bench-verdict, least and most of its two corpora, times the root
# of the sessions, times 2.8: 1.96 for the interval and 0.84 for four of five cases
_GAIN_AT_ONE = (1.7, 4.5)


@dataclass(frozen=True, slots=True)
class PositionCount:
    """How often results were shown at a position of the list, and clicked there."""

    shown: int
    clicked: int


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What is in a batch.

    Counts: clicked_sessions are those that teach (an event that counts on a shown item, and no mark
    that all was wrong), and clicked_queries their queries; queries are distinct as they are split,
    items and users by their ids. held_out_queries: those of the clicked ones that judge, as methods
    split by default. alike_queries: with the same words as another, whatever their order; slips and
    plurals are not among them. text_tokens: of the queries and of the items' texts, each once, at
    four characters a token; how many of them a task reads, and how often, is the method's affair.
    events: by type as posted, the most frequent first; ignored_events and unknown_events: how many
    of them count nothing, or count as clicks because nobody gave their type a weight.
    scripts: the five that most queries with letters are in, and which share of these each has; a
    query is in that of most of its letters.
    positions: the first 20. Shares, in [0, 1]: of sessions, by the most frequent hundredth of the
    queries; of clicks, by that of the items; of sessions with a user, by that of the users.
    recognised_gain: between which two a gain in nDCG@10 must lie to be told from chance in four of
    five cases, as corpora differ; None where nothing was clicked."""

    sessions: int
    clicked_sessions: int
    irrelevant_sessions: int
    queries: int
    clicked_queries: int
    held_out_queries: int
    alike_queries: int
    items: int
    users: int
    results: int
    results_without_content: int
    long_texts: int
    text_tokens: int
    events: Mapping[str, int]
    events_not_shown: int
    ignored_events: int
    unknown_events: int
    scripts: Mapping[str, float]
    positions: tuple[PositionCount, ...]
    share_of_queries: float
    share_of_items: float
    share_of_users: float
    recognised_gain: tuple[float, float] | None
    warnings: tuple[str, ...] = ()


class Enough(StrEnum):
    """Whether there is enough to learn from and to judge by; maybe: the split decides."""

    YES = "yes"
    MAYBE = "maybe"
    NO = "no"


def tell_enough(
    clicked: int | None, labelled: int | None = None, judging: int | None = None
) -> tuple[Enough, str]:
    """Return whether a task has enough to learn from and to judge by, and why, in words.

    clicked: how many queries have a clicked result; labelled: how many a relevant item, by labels;
    None where the task does not learn from such. judging: how many the labels have that judge.

    By the rule of the bundled methods: each part of the queries needs its LEAST_QUERIES. Which part
    a query is in is as good as chance, and what people clicked is probably, not surely, relevant.
    """
    counts = {"a result that was clicked": clicked, "a relevant item by its labels": labelled}
    known = {what: count for what, count in counts.items() if count is not None}
    told = ", and ".join(f"{count} distinct queries have {what}" for what, count in known.items())
    least = sum(LEAST_QUERIES.values())
    if sum(known.values()) < least:
        return Enough.NO, f"{told}, and at least {least} are needed: collect more"
    if judging is not None and judging < LEAST_QUERIES["test"]:
        return Enough.NO, (
            f"{judging} queries of the labels that judge have a relevant item, and at least "
            f"{LEAST_QUERIES['test']} are needed: put more"
        )
    if max(known.values()) < MIN_NEW_SESSIONS:  # some may have both
        return Enough.MAYBE, (
            f"{told}; with {MIN_NEW_SESSIONS} all parts of the split have enough in 19 of 20 "
            "cases. A task that finds too few is an error, and leaves the batch collecting"
        )
    return Enough.YES, f"{told}, and {MIN_NEW_SESSIONS} are enough in 19 of 20 cases"


class Report:
    """A batch's report as its sessions come: their queries, ids and types are kept in memory.

    weights: of events, as `merge_weights` has them, where some are given beside the usual ones."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = merge_weights() if weights is None else weights
        self._is_weighed = weights is not None
        #: how many sessions queries, as they are split, and users have, and events types
        self.queries, self.users, self.events = Counter[str](), Counter[str](), Counter[str]()
        self.clicked_queries = set[str]()
        #: in how many sessions items were clicked
        self.clicked_items = Counter[str]()
        #: how many characters the texts of items have, the longest of each
        self.shown_items = dict[str, int]()
        #: by position
        self.shown, self.clicked = [0] * POSITIONS, [0] * POSITIONS
        #: of the fields of a BatchReport
        self.counts = Counter[str]()

    def count(self, session: Session) -> None:
        """Take one session, its results with the content of their items."""
        if self._is_weighed:
            session = session.weighed(self._weights)
        results = session.search_results
        ids = {result.object_id for result in results}
        chosen = session.clicked_ids() & ids
        query = normalize_query(session.search_query)
        self.queries[query] += 1
        if chosen and not session.is_irrelevant:
            self.clicked_queries.add(query)
        if session.user_id is not None:
            self.users[session.user_id] += 1
        for object_id in chosen:
            self.clicked_items[object_id] += 1
        for position, result in enumerate(results[:POSITIONS]):
            self.shown[position] += 1
            self.clicked[position] += result.object_id in chosen
        long_texts, bare = 0, set[str]()
        for result in results:
            object_id, length = result.object_id, len(text_of(result) or "")
            long_texts += length > LONG_TEXT
            if not length and not has_content(result):
                bare.add(object_id)
            if length >= self.shown_items.get(object_id, 0):
                self.shown_items[object_id] = length
        for event in session.events:
            self.events[event.event_type] += 1
        counts = self.counts
        counts["sessions"] += 1
        counts["clicked_sessions"] += bool(chosen) and not session.is_irrelevant
        counts["irrelevant_sessions"] += session.is_irrelevant
        counts["results"] += len(results)
        counts["results_without_content"] += len(bare)
        counts["long_texts"] += long_texts
        counts["events_not_shown"] += sum(event.object_id not in ids for event in session.events)

    def told(self) -> BatchReport:
        """Return the report on what has come."""
        root = sqrt(max(1, self.counts["sessions"] - self.counts["irrelevant_sessions"]))
        low, high = (round(scale / root, 3) for scale in _GAIN_AT_ONE)
        counted = zip(self.shown, self.clicked, strict=True)
        counts: dict[str, Any] = {name: int(self.counts[name]) for name in _COUNTS}
        report = BatchReport(
            **counts,
            queries=len(self.queries),
            clicked_queries=len(self.clicked_queries),
            held_out_queries=sum(part_of_query(one) == "test" for one in self.clicked_queries),
            alike_queries=_alike(self.queries),
            text_tokens=(sum(map(len, self.queries)) + sum(self.shown_items.values())) // 4,
            scripts=_scripts(self.queries),
            items=len(self.shown_items),
            users=len(self.users),
            events=dict(self.events.most_common()),
            ignored_events=self._events_of(ignored_kinds(self._weights).__contains__),
            unknown_events=self._events_of(lambda kind: kind not in self._weights),
            positions=tuple(PositionCount(*pair) for pair in counted if pair[0]),
            share_of_queries=_share_of_the_top(self.queries),
            share_of_items=_share_of_the_top(self.clicked_items),
            share_of_users=_share_of_the_top(self.users),
            recognised_gain=(low, high) if self.counts["clicked_sessions"] else None,
        )
        busy = busy_users(self.users, report.sessions)
        return replace(report, warnings=tuple(_warnings(report, busy)))

    def _events_of(self, is_such: Callable[[str], bool]) -> int:
        return sum(count for name, count in self.events.items() if is_such(event_kind(name)))


def _alike(queries: Iterable[str]) -> int:
    """Return how many queries have the same words as another."""
    by_words = Counter(" ".join(sorted(set(query.split()))) for query in queries)
    return sum(count for count in by_words.values() if count > 1)


def _scripts(queries: Iterable[str]) -> dict[str, float]:
    """Return the scripts of the most queries, with their shares of those that have letters."""
    scripts = Counter[str]()
    for query in queries:
        if letters := [*filter(str.isalpha, query)]:
            script = (
                "Latin" if query.isascii() else Counter(map(_script, letters)).most_common(1)[0][0]
            )
            scripts[script] += 1
    most = scripts.most_common(_MOST_SCRIPTS)
    return {script: round(count / scripts.total(), 4) for script, count in most}


@cache
def _script(letter: str) -> str:
    """Return the script of a letter, with which Unicode's names begin."""
    word = unicodedata.name(letter, "unknown").split()[0]
    return "Han" if word in ("CJK", "IDEOGRAPHIC") else word.capitalize()


def _share_of_the_top(counts: Counter[str]) -> float:
    """Return what the hundredth with the highest counts has of them all."""
    most = counts.most_common(ceil(len(counts) / 100))
    return round(sum(count for _, count in most) / max(1, counts.total()), 4)


def _warnings(report: BatchReport, busy: Collection[str]) -> Iterator[str]:
    """Yield what is wrong or worth a look, with what to do."""
    if report.clicked_sessions < MIN_NEW_SESSIONS:
        yield (
            f"{report.clicked_sessions} sessions teach, and {MIN_NEW_SESSIONS} of different "
            "queries are needed as a rule: collect more before a task takes the batch"
        )
    if report.sessions and report.clicked_sessions < _FEW_CLICKS * report.sessions:
        yield (
            f"{report.clicked_sessions} of {report.sessions} sessions have an event that counts on "
            "what was shown: are all clicks posted, with the object ids of the results?"
        )
    if report.results_without_content > _FEW_CONTENTS * report.results:
        yield (
            f"{report.results_without_content} of {report.results} results have no text and no "
            "image here: put them as items (PUT /api/v1/items) or in the results' meta, or have "
            "ES_ITEMS_FROM of the workers say where they are"
        )
    if report.long_texts > _FEW_CONTENTS * report.results:
        yield (
            f"{report.long_texts} of {report.results} results have a text of more than {LONG_TEXT} "
            "characters: most models read its beginning alone, so put first what people look for"
        )
    if report.events_not_shown:
        yield (
            f"{report.events_not_shown} events are on items that their session did not show: "
            "nothing is learnt from them; post all results that were shown, under the same ids"
        )
    if report.unknown_events:
        yield (
            f"{report.unknown_events} events are of types without a weight, and count as clicks: "
            "say what they are worth in a task's event_weights"
        )
    if report.alike_queries > _ALIKE * report.queries:
        yield (
            f"{report.alike_queries} of {report.queries} queries have the same words as another, "
            "and may be split apart: a model may know what it is judged by, so take gains with care"
        )
    if _is_flat(report.positions):
        yield (
            "results are clicked as often at the end of the list as at its top: are they posted in "
            "the order in which they were shown?"
        )
    for what, share, cure in (
        ("queries make", report.share_of_queries, "the others teach little"),
        ("clicked items get", report.share_of_items, "popular items may be clicked for any query"),
        ("users make", report.share_of_users, "are they people?"),
    ):
        if share > _CONCENTRATED and report.clicked_sessions >= MIN_NEW_SESSIONS:
            yield f"a hundredth of the {what} {share:.0%} of the whole: {cure}"
    if busy:
        named = ", ".join(map(repr, sorted(busy)[:3]))
        yield (
            f"{len(busy)} users ({named}, say) search far more than others: their sessions are "
            "taken for those of programs, and left out of learning"
        )


def _is_flat(positions: Sequence[PositionCount]) -> bool:
    """Tell whether the last half of the list is clicked no less than its first position."""
    if len(positions) < _LEAST_POSITIONS or positions[0].shown < _LEAST_SHOWN:
        return False
    last = positions[len(positions) // 2 :]
    shown, clicked = sum(one.shown for one in last), sum(one.clicked for one in last)
    first = positions[0]
    return clicked > 0 and clicked * first.shown >= first.clicked * shown
