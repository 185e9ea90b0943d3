"""Routes for tasks that come by themselves."""

import hashlib
import secrets

from fastapi import APIRouter
from fastapi.responses import Response

from embedding_studio.api.context import Context, ReadContext, TuneContext
from embedding_studio.api.errors import problems
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
from embedding_studio.api.routing import Route
from embedding_studio.clickstream import TimeRange
from embedding_studio.errands.schedules import next_time
from embedding_studio.errors import Conflict, InvalidInput
from embedding_studio.schedules import Schedule
from embedding_studio.wire.fields import AsPosted
from embedding_studio.wire.schedules import ScheduleBody, ScheduleView

router = APIRouter(prefix="/fine-tuning/schedule", tags=["schedules"], route_class=Route)


@router.post(
    "", summary="Have tasks created by the clock", responses=problems(400, 404, 409, 413, 422)
)
def create_schedule(body: AsPosted[ScheduleBody], context: TuneContext) -> ScheduleView:
    """At each time, a task is created if the batch now collecting, or the time range, holds enough
    sessions with clicks. The same idempotency_key gives the same schedule, and is refused for
    another body."""
    now = context.clock()
    posted = judged(ScheduleBody, body, context).given()
    key = posted.pop("idempotency_key")
    wanted = Schedule(
        id=_id_of(context, key),
        project=context.store.project,
        created_at=now,
        next_at=next_time(posted["cron"], posted["interval_seconds"], now, now),
        **posted,
    )
    made = TimeRange.of(wanted.last, wanted.since, None, now)
    if wanted.labels_id is not None and made is None:
        raise InvalidInput(
            "labels_id: a schedule waits for new sessions, so its tasks learn from labels beside a "
            "time range: give last or since too"
        )
    check_labels(context, wanted.fine_tuning_method, wanted.labels_id, wanted.judge_labels_id)
    check_method(context, wanted.fine_tuning_method)
    check_model(context, wanted.fine_tuning_method, wanted.model_name)
    check_initial_model(context, wanted.initial_model)
    check_trials(context, wanted.budget)
    check_webhook(context, wanted.webhook_url)
    most = context.settings.max_schedules
    if not context.store.schedules.add(wanted, most):
        raise Conflict(
            f"the project has {most} schedules already, the most there may be "
            "(ES_MAX_SCHEDULES): delete one"
        )
    kept = context.store.schedules.get(wanted.id)
    different = [name for name in posted if getattr(kept, name) != getattr(wanted, name)]
    if different:
        raise Conflict(
            f"the idempotency key {key!r} belongs to schedule {kept.id}, which "
            f"differs in {', '.join(different)}: use another key for another schedule"
        )
    return ScheduleView.model_validate(kept)


@router.get("", summary="List schedules, oldest first")
def list_schedules(context: ReadContext) -> list[ScheduleView]:
    return [ScheduleView.model_validate(found) for found in context.store.schedules.all()]


@router.get("/{schedule_id}", summary="Read one schedule", responses=problems(404))
def get_schedule(schedule_id: str, context: ReadContext) -> ScheduleView:
    return ScheduleView.model_validate(context.store.schedules.get(schedule_id))


@router.put("/{schedule_id}/pause", summary="Create no more tasks", responses=problems(404))
def pause_schedule(schedule_id: str, context: TuneContext) -> ScheduleView:
    """Until it is resumed. Pausing it again changes nothing."""
    seen = context.store.schedules.get(schedule_id)
    paused = context.store.schedules.pause(schedule_id, True, seen.next_at)
    return ScheduleView.model_validate(paused)


@router.put("/{schedule_id}/resume", summary="Go on creating tasks", responses=problems(404))
def resume_schedule(schedule_id: str, context: TuneContext) -> ScheduleView:
    """From the next time on: what passed meanwhile is not made up for."""
    seen = context.store.schedules.get(schedule_id)
    next_at = seen.next_at
    if seen.is_paused:
        next_at = next_time(seen.cron, seen.interval_seconds, seen.created_at, context.clock())
    resumed = context.store.schedules.pause(schedule_id, False, next_at)
    return ScheduleView.model_validate(resumed)


@router.delete(
    "/{schedule_id}",
    summary="Delete it",
    status_code=204,
    response_class=Response,
    responses=problems(404),
)
def delete_schedule(schedule_id: str, context: TuneContext) -> None:
    """The tasks that it created stay."""
    context.store.schedules.remove(schedule_id)


def _id_of(context: Context, idempotency_key: str | None) -> str:
    """Return the id that the key gives, of its spellings the one that made a schedule."""
    if idempotency_key is None:
        return secrets.token_hex(12)
    known = {schedule.id for schedule in context.store.schedules.all()}
    keys = [f"{context.store.project}:{key}" for key in spellings_of(idempotency_key)]
    hashes = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() for key in keys)
    ids = [its_hash[:24] for its_hash in hashes]
    return next(filter(known.__contains__, ids), ids[0])
