"""Routes for fine-tuning tasks and the models they made."""

from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import EventSourceResponse

from embedding_studio.api.artifacts import (
    STUDY,
    STUDY_FILE,
    ZIP,
    in_download_thread,
    study_of,
    zip_of,
)
from embedding_studio.api.clickstream import report_on
from embedding_studio.api.context import Context, ReadContext, TuneContext
from embedding_studio.api.errors import problems
from embedding_studio.api.events import follow_events
from embedding_studio.api.labels import report_on_labels
from embedding_studio.api.requests import (
    check_initial_model,
    check_labels,
    check_method,
    check_model,
    check_trials,
    check_webhook,
    judged,
    spellings_of,
)
from embedding_studio.api.routing import Route, in_turn
from embedding_studio.clickstream import BatchStatus, SessionBatch, TimeRange, merge_weights
from embedding_studio.errors import Conflict, InvalidInput, NotFound, UnknownMethod
from embedding_studio.store.tasks import ensure_room
from embedding_studio.tasks import TERMINAL, Budget, FineTuningTask, TaskRequest, TaskStatus
from embedding_studio.tracking.reader import open_summary
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, AsPosted
from embedding_studio.wire.tasks import (
    LabelConflictsView,
    TaskBody,
    TaskEstimate,
    TaskEventsPage,
    TaskPlan,
    TaskView,
)

router = APIRouter(prefix="/fine-tuning", tags=["fine-tuning"], route_class=Route)

_RELEASE_ROUTE = "POST /api/v1/clickstream/internal/batch/release"


@router.post("/task", summary="Ask for a fine-tuning", responses=problems(400, 413, 404, 409, 422))
async def create_task(
    body: AsPosted[TaskBody],
    request: Request,
    context: TuneContext,
    dry_run: Annotated[bool, Query(description="judge it, and create nothing")] = False,
) -> TaskView | TaskPlan:
    """Without a batch_id, the batch now collecting is used, and released once the task can begin.
    With batch_ids, all of these are, which are released already.
    With a time range, so are all released ones that hold sessions made in it. With labels_id, it
    learns from these too, and from nothing else where neither a batch nor a range is named.
    The same idempotency_key gives the same task, and is refused for another body.

    A dry run is refused as the task would be; else it tells what the task would take, and whether
    that is enough. If the key's task is there, that is its answer too."""
    if not dry_run:
        return await in_turn(request, _create, body, request, context)
    wanted, there = await in_turn(request, _judge, body, context)
    if there is not None:
        return _view(there, request, context)
    made = TimeRange.of(wanted.last, wanted.since, wanted.until, context.clock())
    batches = await in_turn(request, _batches_for, wanted, made, context)
    weights = merge_weights(wanted.event_weights or {})
    report = None
    if not wanted.is_without_sessions:
        report = await report_on(batches, request, context, made, weights)
    labels, judge_labels = [
        None if one is None else await in_turn(request, report_on_labels, one, context)
        for one in (wanted.labels_id, wanted.judge_labels_id)
    ]
    plan = TaskPlan.of(wanted, batches, made, report, labels, judge_labels)
    sets = {wanted.labels_id, wanted.judge_labels_id} - {None}
    if len(sets) > 1:
        found = await in_turn(request, context.store.labels.conflicts, *sorted(map(str, sets)))
        plan.label_conflicts = LabelConflictsView.model_validate(found)
    plan.estimate = await in_turn(request, _estimate, wanted, plan, context)
    return plan


def _estimate(wanted: TaskRequest, plan: TaskPlan, context: Context) -> TaskEstimate | None:
    tasks, clickstream = context.store.tasks, context.store.clickstream
    former = tasks.last_done(wanted.fine_tuning_method)
    if former is None:
        return None
    events = tasks.events(former.id, limit=context.settings.max_page_size)
    former_sessions, sessions = None, plan.report.sessions if plan.report else None
    if former.since is None and former.until is None and former.labels_id is None:
        batches = former.batch_ids or (former.batch_id or "",)
        with suppress(NotFound):  # deleted meanwhile
            former_sessions = sum(clickstream.get_batch(one).session_count for one in batches)
    if wanted.labels_id is not None:
        sessions = None
    each = (one.event for one in events)
    return TaskEstimate.of(former, each, former_sessions, sessions, plan.trainings)


def _create(body: object, request: Request, context: Context) -> TaskView:
    wanted, most = _wanted(body, context), context.settings.max_pending_tasks
    task, _is_new = context.store.tasks.add(wanted, context.clock(), most, context.most)
    return _view(task, request, context)


def _judge(body: object, context: Context) -> tuple[TaskRequest, FineTuningTask | None]:
    """Return what is asked for, and the task that it has made already. Raises as `_create` does."""
    wanted, most = _wanted(body, context), context.settings.max_pending_tasks
    return wanted, context.store.tasks.judge(wanted, most, context.most)


def _wanted(body: object, context: Context) -> TaskRequest:
    """Return what is asked for. Raises what it is refused with."""
    wanted = _with_its_key(context, TaskRequest(**judged(TaskBody, body, context).given()))
    check_trials(context, wanted.budget)
    check_webhook(context, wanted.webhook_url)
    try:
        _check_can_run(context, wanted)
    except (NotFound, Conflict, UnknownMethod):
        # looked up after the check: if the check failed because this very task has taken the
        # batch meanwhile, the task is there to be found
        key = wanted.idempotency_key
        if key is None or context.store.tasks.find(key) is None:
            raise
    return wanted


def _batches_for(
    wanted: TaskRequest, made: TimeRange | None, context: Context
) -> list[SessionBatch]:
    """Return the batches that a task would learn from; the last may be collecting still."""
    clickstream = context.store.clickstream
    if wanted.is_without_sessions:
        return []
    if wanted.named_batches:
        return [*map(clickstream.get_batch, wanted.named_batches)]
    is_wanted = made is None or made.reaches(context.clock())
    collecting = clickstream.collecting_batch() if is_wanted else None
    if made is not None:
        return clickstream.of_range(made, collecting)
    return [] if collecting is None else [collecting]


@router.get("/task", summary="List tasks, newest first", responses=problems(422))
def list_tasks(
    request: Request,
    context: ReadContext,
    status: TaskStatus | None = None,
    skip: Annotated[int | None, Query(ge=0, le=MAX_PAGE_OFFSET)] = None,
    offset: Annotated[
        int | None, Query(ge=0, le=MAX_PAGE_OFFSET, description="another name of `skip`")
    ] = None,
    limit: Annotated[int | None, Query(ge=0, description="100 when absent; 0: the most")] = None,
) -> list[TaskView]:
    if skip is not None and offset is not None and skip != offset:
        raise InvalidInput(f"skip is {skip} but offset is {offset}: they are one thing, send one")
    size = context.page_size(limit, default=100)
    tasks = context.store.tasks.page(status, skip or offset or 0, size)
    return [_view(task, request, context) for task in tasks]


@router.get("/task/{task_id}", summary="Read one task", responses=problems(404))
def get_task(task_id: str, request: Request, context: ReadContext) -> TaskView:
    return _view(context.store.tasks.get(task_id), request, context)


@router.put("/task/{task_id}/restart", summary="Run it again", responses=problems(404, 409, 422))
def restart_task(
    task_id: str,
    request: Request,
    context: TuneContext,
    fresh: Annotated[bool, Query(description="forget the trials of earlier attempts")] = False,
    max_trials: Annotated[
        int | None, Query(ge=1, description="of the search, with those that are finished")
    ] = None,
    max_minutes: Annotated[
        float | None, Query(gt=0, le=525_600, description="of the search, with those spent")
    ] = None,
) -> TaskView:
    """For a stopped, canceled or failed task, which goes on from its finished trials, and with more
    trials than it had for a done one, whose model was not promoted. Its batch is kept; if it never
    had one, it takes the one that then collects. A pending task stays as it is."""
    more = Budget(max_trials, max_minutes)
    check_trials(context, more)
    if context.store.tasks.get(task_id).status is not TaskStatus.PENDING:
        pending = context.store.tasks.count(TaskStatus.PENDING)
        ensure_room(pending, context.settings.max_pending_tasks)
    return _view(
        context.store.tasks.restart(task_id, context.clock(), fresh, more), request, context
    )


@router.put("/task/{task_id}/stop", summary="End it with what it has", responses=problems(404, 409))
def stop_task(task_id: str, request: Request, context: TuneContext) -> TaskView:
    """The running trial ends at its next report and counts as it stands; the best model so far is
    judged and kept. The task is stopping, then stopped. Stopping it again changes nothing."""
    return _view(context.store.tasks.stop(task_id, context.clock()), request, context)


@router.put("/task/{task_id}/cancel", summary="Give it up", responses=problems(404, 409))
def cancel_task(task_id: str, request: Request, context: TuneContext) -> TaskView:
    """Nothing of a canceled task is kept. Canceling it again changes nothing."""
    return _view(context.store.tasks.cancel(task_id, context.clock()), request, context)


@router.get(
    "/task/{task_id}/model",
    summary="Download the best model",
    response_class=StreamingResponse,
    responses={**ZIP, **problems(404, 501)},
)
async def download_model(task_id: str, context: ReadContext) -> StreamingResponse:
    """The model's files lie at the ZIP's root: unpacked, the folder loads with
    `SentenceTransformer(folder)` where the method makes such models. `README.md` tells what it is
    made of, how good it is and how to use it."""
    return await in_download_thread(_open_zip, task_id, context)


@router.get(
    "/task/{task_id}/study",
    summary="Download the search",
    response_class=StreamingResponse,
    responses={**STUDY, **problems(404, 501)},
)
async def download_study(task_id: str, context: ReadContext) -> StreamingResponse:
    """The Optuna study of the task's search, in a file of SQLite that Optuna and optuna-dashboard
    open; there once the search has ended. Trials have the numbers that MLflow shows."""
    return await in_download_thread(_open_study, task_id, context)


@router.get(
    "/task/{task_id}/events",
    summary="Read what happened to a task, or follow it",
    response_model=TaskEventsPage,
    responses={
        200: {"description": "A page; with `Accept: text/event-stream`, events as they happen",
              "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "Nothing more will happen: a follower may end"},
        **problems(404, 422),
    },
)  # fmt: skip
def list_events(
    task_id: str,
    context: ReadContext,
    after_number: Annotated[int, Query(ge=0, le=MAX_PAGE_OFFSET)] = 0,
    limit: Annotated[int | None, Query(ge=0, description="100 when absent; 0: the most")] = None,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(description="set by browsers")] = None,
) -> TaskEventsPage | Response:
    """Oldest first. A stream begins behind `after_number`, or behind Last-Event-ID where a client
    connects again; it ends when the task has."""
    size = context.page_size(limit, default=100)
    if EventSourceResponse.media_type not in accept:
        return TaskEventsPage.of(task_id, context.store.tasks.events(task_id, after_number, size))
    after = max(after_number, _number_of(last_event_id))
    is_over = context.store.tasks.get(task_id).status in TERMINAL
    if is_over and not context.store.tasks.events(task_id, after, 1):
        return Response(status_code=204)
    return EventSourceResponse(
        follow_events(context.store, task_id, after, context.still_allowed),
        headers={"Cache-Control": "no-store"},
    )


def _open_zip(task_id: str, context: Context) -> StreamingResponse:
    task = context.store.tasks.get(task_id)
    if task.best_model is None:
        raise NotFound(f"task {task_id!r} has no model, or no longer: it is {task.status}")
    return zip_of(task.best_model, f"model-{task.id}", context.settings.resolved_tracking_uri)


def _open_study(task_id: str, context: Context) -> StreamingResponse:
    task = context.store.tasks.get(task_id)
    uri = context.settings.resolved_tracking_uri
    folder = task.experiment_id and open_summary(task.experiment_id, uri)
    if not folder or folder.size_bytes(STUDY_FILE) is None:
        raise NotFound(f"task {task_id!r} has no study, not yet or no longer: it is {task.status}")
    return study_of(folder, f"study-{task.id}")


def _with_its_key(context: Context, wanted: TaskRequest) -> TaskRequest:
    """Return the request with its key as the task that it made has it, if there is one."""
    if wanted.idempotency_key is None:
        return wanted
    spellings = spellings_of(wanted.idempotency_key)
    known = next(filter(context.store.tasks.find, spellings), spellings[0])
    return replace(wanted, idempotency_key=known)


def _number_of(last_event_id: str | None) -> int:
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _check_can_run(context: Context, wanted: TaskRequest) -> None:
    check_method(context, wanted.fine_tuning_method)
    check_model(context, wanted.fine_tuning_method, wanted.model_name)
    check_initial_model(context, wanted.initial_model)
    check_labels(context, wanted.fine_tuning_method, wanted.labels_id, wanted.judge_labels_id)
    if wanted.is_without_sessions:
        return
    if wanted.batch_ids and wanted.batch_id is not None:
        raise InvalidInput("batch_id and batch_ids are both given: name all of them in batch_ids")
    made = TimeRange.of(wanted.last, wanted.since, wanted.until, context.clock())
    if made is not None:
        _check_time_range(context, wanted, made)
    elif not wanted.named_batches and context.store.clickstream.collecting_batch() is None:
        raise Conflict(
            "no batch is collecting, so there is nothing to learn from: post sessions first, "
            "or name a released batch in batch_id"
        )
    for batch_id in wanted.named_batches:
        if context.store.clickstream.get_batch(batch_id).status is BatchStatus.COLLECTING:
            raise Conflict(
                f"batch {batch_id!r} is still collecting: release it first with "
                f"{_RELEASE_ROUTE}, or leave it out"
            )


def _check_time_range(context: Context, wanted: TaskRequest, made: TimeRange) -> None:
    if wanted.named_batches:
        raise InvalidInput("a batch and a time range are both given: name one of them")
    clickstream = context.store.clickstream
    if clickstream.of_range(made):
        return
    if not made.reaches(context.clock()):
        raise Conflict(
            f"no batch is released that may hold sessions made {made}: release the one that "
            f"is collecting with {_RELEASE_ROUTE}, or leave until out"
        )
    if clickstream.collecting_batch() is None:
        raise Conflict(
            f"no batch may hold sessions made {made}, so there is nothing to learn from: "
            "post sessions first, or ask for more time"
        )


def _view(task: FineTuningTask, request: Request, context: Context) -> TaskView:
    return TaskView.of(task, context.settings, str(request.base_url))
