"""Routes for sessions, events and batches."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from embedding_studio.api.context import Context, IngestContext, ReadContext, TuneContext
from embedding_studio.api.errors import problems
from embedding_studio.api.groups import Groups
from embedding_studio.api.lines import lines_described, lines_of
from embedding_studio.api.notices import Notices, look_at, look_at_events
from embedding_studio.api.requests import id_in, judged, judged_one, reason_of
from embedding_studio.api.routing import Route, in_turn, reading
from embedding_studio.clickstream import (
    BatchCount,
    EarlyFeedback,
    NumberedSession,
    Session,
    SessionBatch,
    TimeRange,
    Usage,
)
from embedding_studio.errors import (
    InvalidInput,
    InvalidTime,
    NotFound,
    TooManyRequests,
    Unauthorized,
)
from embedding_studio.items import without_content
from embedding_studio.reports import BatchReport, Report
from embedding_studio.store.clickstream import Registered
from embedding_studio.wire.clickstream import (
    BatchPage,
    BatchReportView,
    BatchSessionView,
    BatchSummary,
    BatchView,
    EventsBody,
    EventsOutcome,
    IrrelevantBody,
    PostStatus,
    ReleaseBody,
    ReleaseView,
    SessionBody,
    SessionOutcome,
    SessionOutcomes,
    SessionsBody,
    SessionView,
    ToInstant,
    from_unix_seconds,
)
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, AsPosted
from embedding_studio.wire.quick import QuickSession, QuickSessions, read_session, read_sessions

router = APIRouter(prefix="/clickstream", tags=["clickstream"], route_class=Route)

PostedSession = SessionBody | QuickSession


@router.post("/session", summary="Register a search", responses=problems(400, 413, 422))
@reading(read_session)
async def register_session(
    body: AsPosted[SessionBody], request: Request, context: IngestContext
) -> SessionOutcome:
    """A known session_id keeps what was stored first; only events it did not have are added."""
    if isinstance(body, QuickSession):  # a large one
        return await register_one(body, request, context)
    posted = await in_turn(request, judged, SessionBody, body, context)
    return await register_one(posted, request, context)


async def register_one(posted: PostedSession, request: Request, context: Context) -> SessionOutcome:
    """Register a session that is right, together with those that are posted meanwhile."""
    [outcome] = await _register_together([posted], request, context)
    if isinstance(outcome, InvalidInput):
        raise outcome
    return outcome


@router.post("/sessions", summary="Register many searches", responses=problems(400, 413, 422))
@reading(read_sessions)
async def register_sessions(
    body: AsPosted[SessionsBody], request: Request, context: IngestContext
) -> SessionOutcomes:
    """Answers per item, in order. An invalid item is left out as a whole; the others are stored."""
    if isinstance(body, QuickSessions):
        items = body.sessions
    else:
        items = (await in_turn(request, judged, SessionsBody, body, context)).sessions
    limit = context.settings.max_sessions_per_request
    if len(items) > limit:
        raise InvalidInput(
            f"{len(items)} sessions in one request; at most {limit} are taken, "
            "send the rest in further requests (ES_MAX_SESSIONS_PER_REQUEST)"
        )
    posted: Sequence[PostedSession | ValidationError | InvalidInput] = items
    if not all(isinstance(item, QuickSession) for item in items):
        posted = await in_turn(request, _judged_sessions, items, context)
    right = [one for one in posted if not isinstance(one, Exception)]
    answers = iter(await _register_together(right, request, context))
    outcomes = [one if isinstance(one, Exception) else next(answers) for one in posted]
    return await in_turn(request, _tell, items, outcomes, context)


@router.get("/session", summary="Read one session", responses=problems(404, 422))
def get_session(
    session_id: Annotated[str, Query(min_length=1)], context: ReadContext
) -> SessionView:
    return SessionView.of(context.store.clickstream.get(session_id))


@router.post("/session/events", summary="Add clicks", responses=problems(400, 413, 404, 422))
def append_events(body: AsPosted[EventsBody], context: IngestContext) -> EventsOutcome:
    """Events whose event_id the session has already are left as they are. Events of a session that
    has not come yet wait for it."""
    posted = judged(EventsBody, body, context)
    to_instant = accepted_instant(context, context.clock())
    events = tuple(event.to_event(posted.session_id, to_instant) for event in posted.events)
    try:
        answer = context.store.clickstream.append_events(posted.session_id, events, context.most)
    except NotFound:
        if not (events and context.settings.max_early_events):
            raise
        _keep_early(context, EarlyFeedback(posted.session_id, events))
        return EventsOutcome(session_id=posted.session_id, new_events=0, waiting_events=len(events))
    notices = look_at_events(events, answer)
    _add_counts(context, [(answer, notices)])
    return EventsOutcome(
        session_id=posted.session_id, new_events=answer.new_events, warnings=notices.warnings
    )


@router.post(
    "/session/irrelevant",
    summary="Mark a session whose results were all wrong",
    responses=problems(400, 413, 404, 422),
)
def mark_irrelevant(body: AsPosted[IrrelevantBody], context: IngestContext) -> None:
    """The mark stays for good, and keeps the session out of training. The mark of a session that
    has not come yet waits for it."""
    session_id = judged(IrrelevantBody, body, context).session_id
    try:
        context.store.clickstream.mark_irrelevant(session_id)
    except NotFound:
        if not context.settings.max_early_events:
            raise
        _keep_early(context, EarlyFeedback(session_id, is_irrelevant=True))


@router.post(
    "/internal/batch/release",
    summary="Release the batch now collecting",
    responses=problems(400, 404, 413, 422),
)
def release_batch(body: AsPosted[ReleaseBody], context: TuneContext) -> ReleaseView:
    """Nothing joins a released batch. The same release_id gives the same batch again."""
    now = context.clock()
    release_id = judged(ReleaseBody, body, context).release_id
    batch = context.store.clickstream.release(release_id, now)
    return ReleaseView(
        release_id=release_id,
        batch_id=batch.batch_id,
        released_at=int((batch.released_at or now).timestamp()),
    )


@router.get(
    "/internal/batch", summary="What a batch is worth, before it is spent", responses=problems(404)
)
def get_batch(
    context: ReadContext,
    batch_id: Annotated[str | None, Query(description="absent: the one now collecting")] = None,
) -> BatchView:
    """How many sessions it has, how many of them count, and how often what was noticed as they
    came."""
    batch = (
        context.store.clickstream.get_batch(batch_id)
        if batch_id
        else context.store.clickstream.collecting_batch()
    )
    if batch is None:
        raise NotFound("no batch is collecting: no session came since the last release")
    clicked = context.store.clickstream.count_clicked(batch.batch_id)
    waiting = context.store.clickstream.count_early(context.clock())
    usage = context.store.clickstream.usage().get(context.store.project, Usage())
    return BatchView.valued(batch, clicked, waiting, usage)


@router.get(
    "/internal/batch/sessions", summary="Page through a batch", responses=problems(404, 422)
)
def read_batch(
    batch_id: Annotated[str, Query(min_length=1)],
    context: ReadContext,
    after_number: Annotated[int, Query(ge=0, le=MAX_PAGE_OFFSET)] = 0,
    limit: Annotated[int | None, Query(ge=0, description="10 when absent; 0: the most")] = None,
    events_limit: Annotated[int, Query(ge=0, le=MAX_PAGE_OFFSET)] = 100,
) -> BatchPage:
    """Sessions numbered above `after_number`, each with its first `events_limit` events."""
    size = context.page_size(limit, default=10)
    sessions = context.store.clickstream.read(batch_id, after_number, size, events_limit)
    return BatchPage(
        batch_id=batch_id,
        last_number=sessions[-1].number if sessions else None,
        sessions=[BatchSessionView.numbered(session) for session in sessions],
    )


@router.get("/batches", summary="List batches, newest first", responses=problems(422))
def list_batches(
    context: ReadContext,
    skip: Annotated[int, Query(ge=0, le=MAX_PAGE_OFFSET)] = 0,
    limit: Annotated[int | None, Query(ge=0, description="100 when absent; 0: the most")] = None,
) -> list[BatchSummary]:
    """The one now collecting, if it has a session, and then the released ones."""
    found = context.store.clickstream.page(skip, context.page_size(limit, default=100))
    return [BatchSummary.of(batch) for batch in found]


@router.get(
    "/batch/{batch_id}/report", summary="Know a batch before paying for it", responses=problems(404)
)
async def report_on_batch(batch_id: str, request: Request, context: ReadContext) -> BatchReportView:
    """Counts, click-through by position, concentration, and warnings with what to do."""
    batch = await in_turn(request, context.store.clickstream.get_batch, batch_id)
    return BatchReportView.model_validate(await report_on([batch], request, context))


async def report_on(
    batches: Sequence[SessionBatch],
    request: Request,
    context: Context,
    made: TimeRange | None = None,
    weights: Mapping[str, float] | None = None,
) -> BatchReport:
    """Return the report on the sessions of batches, or on those that were made in a time range.

    weights: of events, as `merge_weights` has them."""

    def count(page: Sequence[NumberedSession]) -> None:
        sessions = [
            one.session for one in page if made is None or made.holds(one.session.created_at)
        ]
        for session in context.store.items.complete(sessions):
            report.count(session)

    report = Report(weights)
    for batch in batches:
        async for page in _pages_of(batch, request, context):
            await in_turn(request, count, page)
    return await in_turn(request, report.told)


@router.get(
    "/batch/{batch_id}/export",
    summary="Export a batch",
    response_class=StreamingResponse,
    responses=lines_described("session"),
)
def export_batch(batch_id: str, request: Request, context: ReadContext) -> StreamingResponse:
    """Each line is what `POST /clickstream/session` takes, with all events. Of a batch that is
    still collecting, it is what the batch has now."""
    batch = context.store.clickstream.get_batch(batch_id)
    pages = _pages_of(batch, request, context)
    return lines_of(
        pages, lambda one: SessionView.of(one.session), f"batch-{batch.batch_id}", request
    )


async def _pages_of(
    batch: SessionBatch, request: Request, context: Context
) -> AsyncIterator[Sequence[NumberedSession]]:
    """Yield a batch's sessions page by page. Breaks off, with an error, where it is deleted
    meanwhile or the caller's key ends: a client sees that the answer is not whole."""
    read, after = context.store.clickstream.read, 0
    last = await in_turn(request, context.store.clickstream.last_number, batch.batch_id)
    while after < last:
        if not await context.still_allowed():
            raise Unauthorized("the key was valid no longer while a batch was read")
        limit = min(context.settings.max_page_size, last - after)
        page = await in_turn(request, read, batch.batch_id, after, limit)
        if not page:  # deleted meanwhile, or erased
            break
        yield page
        after = page[-1].number
    await in_turn(request, context.store.clickstream.get_batch, batch.batch_id)


def accepted_instant(context: Context, now: datetime, is_history: bool = False) -> ToInstant:
    """Return what turns posted times into those that are taken: of history, however old."""
    settings = context.settings
    oldest = 0.0 if is_history else now.timestamp() - settings.max_event_age_seconds
    newest = now.timestamp() + settings.max_event_ahead_seconds

    def to_instant(seconds: float | None, owner: str) -> datetime:
        if seconds is None:
            return now.replace(microsecond=0)  # clients of the reference read whole seconds
        if seconds < oldest and is_history:
            raise InvalidTime(f"{owner}: created_at {seconds:.15g} is before 1970")
        if seconds < oldest:
            raise InvalidTime(
                f"{owner}: created_at {seconds:.15g} is more than "
                f"{settings.max_event_age_seconds:g} seconds ago; too old to be taken "
                "(ES_MAX_EVENT_AGE_SECONDS)"
            )
        if seconds > newest:
            raise InvalidTime(
                f"{owner}: created_at {seconds:.15g} is more than "
                f"{settings.max_event_ahead_seconds:g} seconds ahead of the server's clock "
                "(ES_MAX_EVENT_AHEAD_SECONDS); post Unix seconds (not milliseconds), UTC"
            )
        return from_unix_seconds(seconds)

    return to_instant


def _judged_sessions(
    items: Sequence[object], context: Context
) -> list[PostedSession | ValidationError | InvalidInput]:
    return [
        one if isinstance(one, QuickSession) else judged_one(SessionBody, one, context)
        for one in items
    ]


async def _register_together(
    posted: Sequence[PostedSession], request: Request, context: Context
) -> Sequence[SessionOutcome | InvalidInput]:
    groups: Groups[PostedSession, SessionOutcome | InvalidInput] = request.app.state.groups
    return await groups.do(context.store.project, posted, partial(_register, context))


def _register(
    context: Context, posted: Sequence[PostedSession]
) -> list[SessionOutcome | InvalidInput]:
    """Keep sessions, and return what to answer to each."""
    now = context.clock()
    to_instant = accepted_instant(context, now)
    read = [session_of(one, to_instant) for one in posted]
    answers = iter(keep(context, [one for one in read if isinstance(one, Session)], now))
    return [one if isinstance(one, InvalidInput) else next(answers) for one in read]


def keep(
    context: Context, sessions: Sequence[Session], now: datetime
) -> list[SessionOutcome | InvalidInput]:
    """Keep sessions whose times are judged, and return what to answer to each."""
    answers = context.store.clickstream.register(sessions, now, context.most)
    kept = [
        (session, answer)
        for session, answer in zip(sessions, answers, strict=True)
        if isinstance(answer, Registered)
    ]
    outcomes = iter(_outcomes(context, kept))
    return [one if isinstance(one, InvalidInput) else next(outcomes) for one in answers]


def session_of(posted: PostedSession, to_instant: ToInstant) -> Session | InvalidInput:
    try:
        return posted.to_session(to_instant)
    except InvalidInput as error:  # a time that is not taken
        return error


def _outcomes(context: Context, kept: Sequence[tuple[Session, Registered]]) -> list[SessionOutcome]:
    """Return what to answer to sessions that are kept, and see to what follows from them."""
    named = {one for session, answer in kept if answer.is_new for one in without_content(session)}
    items = context.store.items.find(named) if named else {}
    notices = [look_at(session, answer, items) for session, answer in kept]
    for session, answer in kept:
        if session.is_irrelevant and not answer.is_new:
            context.store.clickstream.mark_irrelevant(session.session_id)
    _add_counts(context, [(answer, one) for (_, answer), one in zip(kept, notices, strict=True)])
    return [
        SessionOutcome(
            session_id=session.session_id,
            status=PostStatus.CREATED if answer.is_new else PostStatus.EXISTING,
            new_events=answer.new_events,
            early_events=answer.early_events,
            warnings=one.warnings,
        )
        for (session, answer), one in zip(kept, notices, strict=True)
    ]


def _keep_early(context: Context, feedback: EarlyFeedback) -> None:
    """Keep what came before its session."""
    most = context.settings.max_early_events
    now = context.clock()
    expires_at = now + timedelta(seconds=context.settings.max_event_age_seconds)
    if not context.store.clickstream.keep_early(feedback, now, expires_at, most):
        raise TooManyRequests(
            f"session {feedback.session_id!r} has not come yet, and {most} events wait for theirs "
            "already (ES_MAX_EARLY_EVENTS): post the session first, or post this again later"
        )


def _add_counts(context: Context, noticed: Sequence[tuple[Registered, Notices]]) -> None:
    sums: defaultdict[str, Counter[BatchCount]] = defaultdict(Counter)
    for answer, notices in noticed:
        sums[answer.batch_id] += notices.counts
    for batch_id, counts in sums.items():
        if counts:
            with suppress(NotFound):  # deleted meanwhile
                context.store.clickstream.add_counts(batch_id, counts)


def _tell(
    items: Sequence[object],
    outcomes: Sequence[SessionOutcome | ValidationError | InvalidInput],
    context: Context,
) -> SessionOutcomes:
    return SessionOutcomes(
        sessions=[
            _refusal(item, outcome, context) if isinstance(outcome, Exception) else outcome
            for item, outcome in zip(items, outcomes, strict=True)
        ]
    )


def _refusal(item: Any, error: ValidationError | InvalidInput, context: Context) -> SessionOutcome:
    quick_id = item.session_id if isinstance(item, QuickSession) else None
    return SessionOutcome(
        session_id=quick_id or id_in(item, "session_id", context),
        status=PostStatus.INVALID,
        error=reason_of(item, error, SessionBody),
    )
