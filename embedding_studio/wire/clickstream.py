"""The JSON of sessions, events and batches."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from embedding_studio.clickstream import (
    MIN_NEW_SESSIONS,
    BatchCount,
    BatchStatus,
    NumberedSession,
    SearchResult,
    Session,
    SessionBatch,
    SessionEvent,
    Usage,
)
from embedding_studio.plain import check_plain
from embedding_studio.reports import LONG_TEXT, POSITIONS, PositionCount
from embedding_studio.wire.fields import AsPosted, Id, Meta


def _at_most(setting: str, units: str, kind: type[str] | type[list[Any]] = str) -> BeforeValidator:
    """Return the validator that bounds a length by a setting, which its refusal names.

    It comes first: what is in a list that is too long is not looked at."""

    def check(value: object, info: ValidationInfo) -> object:
        if info.context is None or not isinstance(value, kind):
            return value
        if len(value) > (most := getattr(info.context, setting)):
            raise PydanticCustomError(
                "too_long",
                "has {length} {units}; at most {most} are taken ({setting})",
                {
                    "length": len(value),
                    "units": units,
                    "most": most,
                    "setting": f"ES_{setting.upper()}",
                },
            )
        return value

    return BeforeValidator(check)


def to_seconds(posted: Any) -> Any:
    """Return an ISO 8601 time as Unix seconds; what is no such text is for others to judge."""
    if not isinstance(posted, str):
        return posted
    with suppress(ValueError):
        return float(posted)
    try:
        time = datetime.fromisoformat(posted)
    except ValueError:
        raise PydanticCustomError(
            "time", "is neither Unix seconds nor an ISO 8601 time such as 2026-01-31T12:00:00Z"
        ) from None
    if time.tzinfo is None:
        raise PydanticCustomError(
            "time_zone", "has no time zone: append Z for UTC, or an offset such as +02:00"
        )
    return time.timestamp()


def _whole_as_int(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


AsSeconds = PlainSerializer(_whole_as_int, return_type=int | float)
UnixSeconds = Annotated[
    float, Field(allow_inf_nan=False, description="Unix time, seconds, UTC"), AsSeconds
]
PostedTime = Annotated[
    float,
    BeforeValidator(to_seconds, json_schema_input_type=float | AwareDatetime),
    Field(
        allow_inf_nan=False,
        description="Unix seconds, or ISO 8601 with a time zone; now when absent",
    ),
    AsSeconds,
]


def _check_plain(value: str, info: ValidationInfo) -> str:
    # a client may read what was posted before it was checked
    return value if info.context is None else check_plain(value)


Text = Annotated[str, StringConstraints(min_length=0)]  # a bound: it refuses lone surrogates
PostedId = Annotated[
    str,
    StringConstraints(min_length=1),
    _at_most("max_id_chars", "characters"),
    AfterValidator(_check_plain),
]
Query = Annotated[Text, _at_most("max_query_chars", "characters")]
ToInstant = Callable[[float | None, str], datetime]
"""Turns posted seconds, or none, into a time; the string says whose time it is, for errors."""


def from_unix_seconds(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Posted(BaseModel):
    """What is posted to the clickstream: a field that is not known here is refused."""

    model_config = ConfigDict(extra="forbid")


class ResultBody(Posted):
    object_id: PostedId
    rank: FiniteFloat | None = Field(None, description="the search engine's own score")
    meta: Meta | None = None


class EventBody(Posted):
    event_id: PostedId
    object_id: PostedId
    event_type: PostedId = "click"
    created_at: PostedTime | None = None
    meta: Meta | None = None

    def to_event(self, session_id: str, to_instant: ToInstant) -> SessionEvent:
        owner = f"event {self.event_id!r} of session {session_id!r}"
        return SessionEvent(
            event_id=self.event_id,
            object_id=self.object_id,
            created_at=to_instant(self.created_at, owner),
            event_type=self.event_type,
            meta=self.meta or {},
        )


class SessionBody(Posted):
    """One search: what was asked, what was shown, and what happened so far."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "session_id": "s-1042",
                    "search_query": "red running shoes",
                    "search_results": [
                        {"object_id": "shoe-7", "rank": 0.91, "meta": {"text": "Runner, red"}},
                        {"object_id": "shoe-3", "rank": 0.88, "meta": {"text": "Trail, blue"}},
                    ],
                    "user_id": "u-5",
                }
            ]
        }
    )

    session_id: PostedId
    search_query: Query
    search_results: Annotated[
        list[ResultBody], _at_most("max_results_per_session", "results", list)
    ]
    search_meta: Meta | None = None
    user_id: (
        Annotated[Text, _at_most("max_id_chars", "characters"), AfterValidator(_check_plain)] | None
    ) = None
    created_at: PostedTime | None = None
    events: Annotated[list[EventBody], _at_most("max_events_per_session", "events", list)] = []
    is_irrelevant: bool = False

    def to_session(self, to_instant: ToInstant) -> Session:
        return Session(
            session_id=self.session_id,
            search_query=self.search_query,
            search_results=tuple(
                SearchResult(shown.object_id, shown.rank, shown.meta or {})
                for shown in self.search_results
            ),
            created_at=to_instant(self.created_at, f"session {self.session_id!r}"),
            search_meta=self.search_meta or {},
            user_id=self.user_id,
            events=tuple(event.to_event(self.session_id, to_instant) for event in self.events),
            is_irrelevant=self.is_irrelevant,
        )


class EventView(EventBody):
    model_config = ConfigDict(extra="ignore")

    created_at: UnixSeconds

    @staticmethod
    def of(event: SessionEvent) -> "EventView":
        # constructed, here and below: the API checks it as it is posted
        return EventView.model_construct(
            event_id=event.event_id,
            object_id=event.object_id,
            event_type=event.event_type,
            created_at=event.created_at.timestamp(),
            meta=dict(event.meta),
        )


class SessionView(SessionBody):
    model_config = ConfigDict(extra="ignore")

    created_at: UnixSeconds
    events: list[EventView] = []  # type: ignore[assignment] # narrower than what may be posted

    @staticmethod
    def of(session: Session) -> "SessionView":
        return SessionView.model_construct(**_session_fields(session))


class BatchSessionView(SessionView):
    session_number: int

    @staticmethod
    def numbered(numbered: NumberedSession) -> "BatchSessionView":
        fields = _session_fields(numbered.session)
        return BatchSessionView.model_construct(**fields, session_number=numbered.number)


def _session_fields(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "search_query": session.search_query,
        "search_results": [
            ResultBody.model_construct(object_id=one.object_id, rank=one.rank, meta=dict(one.meta))
            for one in session.search_results
        ],
        "search_meta": dict(session.search_meta),
        "user_id": session.user_id,
        "created_at": session.created_at.timestamp(),
        "events": [EventView.of(event) for event in session.events],
        "is_irrelevant": session.is_irrelevant,
    }


class BatchSummary(BaseModel):
    """A batch as it is listed."""

    batch_id: str
    status: BatchStatus
    created_at: UnixSeconds
    released_at: UnixSeconds | None
    session_count: int
    counts: dict[BatchCount, int] = Field(description="of what was said in `warnings`, and more")

    @staticmethod
    def of(batch: SessionBatch) -> "BatchSummary":
        return BatchSummary(
            batch_id=batch.batch_id,
            status=batch.status,
            created_at=batch.created_at.timestamp(),
            released_at=batch.released_at and batch.released_at.timestamp(),
            session_count=batch.session_count,
            counts={name: batch.counts.get(name, 0) for name in BatchCount},
        )


class BatchView(BatchSummary):
    """A batch before it is learnt from: how large it is, and what was noticed as it came."""

    clicked_sessions: int = Field(
        description="not marked irrelevant, and with an event of a weight above 0 on a shown item: "
        f"what training counts. {MIN_NEW_SESSIONS} of different queries are enough, as a rule"
    )
    waiting_events: int = Field(description="of the project, whose sessions have not come yet")
    project_sessions: int = Field(
        0, description="of all the project's batches; ES_MAX_PROJECT_SESSIONS at most"
    )
    project_bytes: int = Field(
        0,
        description="of the JSON of those sessions, their events, and the project's items and "
        "tasks; ES_MAX_PROJECT_MB at most",
    )

    @staticmethod
    def valued(
        batch: SessionBatch, clicked_sessions: int, waiting_events: int, usage: Usage
    ) -> "BatchView":
        return BatchView(
            **dict(BatchSummary.of(batch)),
            clicked_sessions=clicked_sessions,
            waiting_events=waiting_events,
            project_sessions=usage.sessions,
            project_bytes=usage.bytes,
        )


class BatchReportView(BaseModel):
    """What a batch is worth, known before it is paid for."""

    model_config = ConfigDict(from_attributes=True)

    sessions: int
    clicked_sessions: int = Field(description="that teach")
    irrelevant_sessions: int
    queries: int = Field(description="distinct, as they are split")
    clicked_queries: int = Field(description="of the sessions that teach")
    held_out_queries: int = Field(description="of these, those that judge, by the usual split")
    alike_queries: int = Field(description="with the same words as another, in whatever order")
    items: int
    users: int
    results: int
    results_without_content: int = Field(description="with no text and no image, nor as items")
    long_texts: int = Field(description=f"results with a text of more than {LONG_TEXT} characters")
    text_tokens: int = Field(
        description="about as many have the queries and the items' texts, each once, at four "
        "characters a token"
    )
    events: dict[str, int] = Field(description="by type")
    scripts: dict[str, float] = Field(
        description="that most queries with letters are written in, and their shares"
    )
    events_not_shown: int
    ignored_events: int = Field(description="whose types have a weight of 0")
    unknown_events: int = Field(description="whose types nobody gave a weight")
    positions: list[PositionCount] = Field(description=f"of the list, the first {POSITIONS}")
    share_of_queries: float = Field(description="of sessions, by a hundredth of the queries")
    share_of_items: float = Field(description="of clicks, by a hundredth of the clicked items")
    share_of_users: float = Field(description="of sessions, by a hundredth of the users")
    recognised_gain: tuple[float, float] | None = Field(
        description="a gain in nDCG@10 that is told from chance in four of five cases lies between "
        "these, as corpora differ"
    )
    warnings: list[str]


class BatchPage(BaseModel):
    batch_id: str
    last_number: int | None = Field(description="the next page's after_number; null: no more")
    sessions: list[BatchSessionView]


class SessionsBody(Posted):
    """Many sessions at once; each item is judged alone, so one bad item costs only itself."""

    sessions: list[AsPosted[SessionBody]]


class PostStatus(StrEnum):
    CREATED = "created"
    EXISTING = "existing"
    INVALID = "invalid"


class SessionOutcome(BaseModel):
    session_id: str | None = Field(description="null when the item's own id is invalid")
    status: PostStatus
    new_events: int = 0
    early_events: int = Field(0, description="that had come before the session and join it now")
    warnings: list[str] = Field([], description="what was taken, but may teach nothing")
    error: str | None = None


class SessionOutcomes(BaseModel):
    sessions: list[SessionOutcome] = Field(description="one per posted item, in the order posted")


class EventsBody(Posted):
    session_id: PostedId
    events: Annotated[list[EventBody], _at_most("max_events_per_session", "events", list)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "session_id": "s-1042",
                    "events": [{"event_id": "e-1", "object_id": "shoe-3", "event_type": "click"}],
                }
            ]
        }
    )


class EventsOutcome(BaseModel):
    session_id: str
    new_events: int
    waiting_events: int = Field(0, description="kept until the session comes, and join it then")
    warnings: list[str] = Field([], description="what was taken, but may teach nothing")


class IrrelevantBody(Posted):
    session_id: PostedId


class ReleaseBody(Posted):
    release_id: Id = Field(description="chosen by the caller; posting it again changes nothing")


class ReleaseView(BaseModel):
    release_id: str
    batch_id: str
    released_at: UnixSeconds
