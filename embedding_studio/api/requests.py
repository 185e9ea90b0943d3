"""What may be asked of this installation: checks that several routes share."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar
from uuid import UUID

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from embedding_studio.api.context import Context
from embedding_studio.api.errors import describe_fields
from embedding_studio.errands.webhooks import check_url
from embedding_studio.errors import Conflict, InvalidInput, NotFound, UnknownMethod
from embedding_studio.labels import GOLDEN_TEACH_NOTHING, TAKES_NO_LABELS
from embedding_studio.models import is_hub_id
from embedding_studio.tasks import Budget
from embedding_studio.wire.clickstream import Posted, PostedId
from embedding_studio.wire.errors import SUMMARIZED, summarize_field_errors
from embedding_studio.workers import WorkerRecord, silence_allowed

Body = TypeVar("Body", bound=BaseModel)
_ID = TypeAdapter[str](PostedId)

MAX_TOLD_ERRORS = 100
"""Each takes far longer to tell than to post."""
_REMEMBERED = 10
"""How many times longer than it may be silent a worker's methods count: it may be restarting."""


def validated(kind: type[Body], posted: object, context: Context) -> Body:
    """Return what was posted as a model, within the bounds of the settings. Raises pydantic's
    ValidationError, or InvalidInput for more errors than are worth their telling."""
    settings = context.settings
    is_lenient = settings.ignore_unknown_fields and issubclass(kind, Posted)
    extra: Literal["ignore"] | None = "ignore" if is_lenient else None
    try:
        return kind.model_validate(posted, context=settings, extra=extra)
    except ValidationError as error:
        if (count := error.error_count()) > MAX_TOLD_ERRORS:
            raise InvalidInput(
                f"{count} fields are wrong, too many to name: compare what was posted with what "
                "/docs says"
            ) from None
        raise


def judged(kind: type[Body], body: object, context: Context) -> Body:
    """Return the body of a request that its route took as it came. Raises
    RequestValidationError, InvalidInput."""
    try:
        return validated(kind, body, context)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors) from None


def judged_one(
    kind: type[Body], item: object, context: Context
) -> Body | ValidationError | InvalidInput:
    """Return one of many that were posted together, or why it is none."""
    try:
        return validated(kind, item, context)
    except (ValidationError, InvalidInput) as error:
        return error


def reason_of(item: object, error: ValidationError | InvalidInput, kind: type[BaseModel]) -> str:
    """Return in words why one of many is refused."""
    if not isinstance(error, ValidationError):
        return str(error)
    if not isinstance(item, dict):
        return "the item is no JSON object"
    errors = error.errors()
    first, others = errors[:SUMMARIZED], errors[SUMMARIZED:]
    return summarize_field_errors(describe_fields(first, kind), len(others))


def id_in(item: object, name: str, context: Context) -> str | None:
    """Return the id that one of many has, if it is a right one."""
    with suppress(ValidationError):
        if isinstance(item, dict) and name in item:
            return _ID.validate_python(item[name], context=context.settings)
    return None


def spellings_of(key: str) -> list[str]:
    """Return the ways to write an idempotency key, first the one in which a new one is kept: a UUID
    in hex, with hyphens or in capitals is one key."""
    try:
        uuid = UUID(key)
    except ValueError:
        return [key]
    return list(dict.fromkeys([str(uuid), key, uuid.hex, str(uuid).upper(), uuid.hex.upper()]))


def check_method(context: Context, name: str) -> None:
    """Raise UnknownMethod if there are workers and none of them carries the method."""
    workers = _workers(context)
    known = sorted({method for worker in workers for method in worker.methods})
    if workers and name not in known:
        names = ", ".join(map(repr, known)) or "none"
        failed = {place for worker in workers for place in worker.plugin_failures}
        told = f"; these plugins did not load: {', '.join(sorted(failed))}" if failed else ""
        raise UnknownMethod(
            f"no fine-tuning method is named {name!r}; the workers have: {names}{told}. Workers "
            "read their plugins folder when they start and look for changes between tasks"
        )


def _workers(context: Context) -> list[WorkerRecord]:
    """Return the workers there are, or else those there were."""
    recent = context.clock() - _REMEMBERED * silence_allowed(context.settings)
    ever = datetime(1970, 1, 1, tzinfo=UTC)
    return context.store.workers.seen(recent) or context.store.workers.seen(ever)


def check_model(context: Context, method: str, name: str | None) -> None:
    """Raise Conflict if the model of this name is, or may come to be, another method's."""
    registered = context.store.models.find(name or method)
    if registered is not None:
        registered.ensure_made_by(method)
    methods = {one for worker in _workers(context) for one in worker.methods}
    if name != method and name in methods:
        raise Conflict(f"model_name is {name!r}, which is another method: name the model otherwise")


def check_initial_model(context: Context, reference: str | None) -> None:
    """Raise NotFound, Conflict or InvalidInput for what no task can start from, as far as can be
    seen here: a version that there is not, or a folder outside of the allowed roots."""
    if reference is None or context.store.models.referred(reference) is not None:
        return
    if Path(reference).is_absolute():
        if not context.settings.allows_folder(reference):
            raise InvalidInput(
                f"initial_model is {reference!r}, which is not below ES_ALLOWED_ROOTS"
            )
    elif not is_hub_id(reference):
        models, project = context.store.models, context.store.project
        there = [one.name_in(project) for one in (*models.of_project(), *models.shared())]
        known = ", ".join(there) or "none"
        raise NotFound(
            f"initial_model is {reference!r}: no model has that name (there are: {known}), and it "
            "is neither a hub's id, owner/name, nor an absolute path"
        )


def check_labels(
    context: Context, method: str, labels_id: str | None, judge_labels_id: str | None
) -> None:
    """Raise NotFound for a set of labels that there is not, Conflict for one to learn from that is
    golden, and for a method that takes no labels, as all workers that carry it say."""
    if labels_id is None and judge_labels_id is None:
        return
    carrying = [worker for worker in _workers(context) if method in worker.methods]
    if carrying and all(method in worker.without_labels for worker in carrying):
        raise Conflict(f"{method!r} {TAKES_NO_LABELS}")
    if judge_labels_id is not None:
        context.store.labels.get(judge_labels_id)
    if labels_id is not None and context.store.labels.get(labels_id).is_golden:
        raise Conflict(f"labels {labels_id!r} {GOLDEN_TEACH_NOTHING}")


def check_trials(context: Context, budget: Budget) -> None:
    """Raise InvalidInput for more trials than a task may ask for."""
    most = context.settings.max_trials_per_task
    if (budget.max_trials or 0) > most:
        raise InvalidInput(
            f"budget.max_trials is {budget.max_trials}; a task may ask for at most {most} "
            "(ES_MAX_TRIALS_PER_TASK)"
        )


def check_webhook(context: Context, url: str | None) -> None:
    """Raise InvalidInput for a webhook that could never be told."""
    if url is None:
        return
    settings = context.settings
    if settings.webhook_secret is None:
        raise InvalidInput(
            "webhook_url: this installation tells no webhooks, for it has no secret to sign with "
            "(ES_WEBHOOK_SECRET)"
        )
    try:
        check_url(url, settings.allow_private_addresses)
    except InvalidInput as error:
        raise InvalidInput(f"webhook_url: {error}") from error
