"""Routes for registered models: their versions, what a person decides of them, and their files."""

from contextlib import suppress

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from embedding_studio.api.artifacts import ZIP, in_download_thread, zip_of
from embedding_studio.api.context import Context, ReadContext, TuneContext
from embedding_studio.api.errors import problems
from embedding_studio.api.requests import check_webhook, judged
from embedding_studio.api.routing import Route
from embedding_studio.errors import ConfigurationError, Conflict, Forbidden, NotFound
from embedding_studio.models import RegisteredModel, Wish
from embedding_studio.projects import split_owner
from embedding_studio.tasks import OWNED, TERMINAL, StoredModel, TaskStatus
from embedding_studio.tracking.reader import open_model
from embedding_studio.wire.fields import AsPosted
from embedding_studio.wire.models import (
    ModelSummary,
    ModelView,
    PromoteBody,
    RollbackBody,
    VersionView,
    WebhookBody,
)

router = APIRouter(prefix="/models", tags=["models"], route_class=Route)


@router.get("", summary="List models by their names")
def list_models(context: ReadContext) -> list[ModelSummary]:
    """Those of this project, then those that others share with it, which are named
    `owner:name`."""
    models, project = context.store.models, context.store.project
    return [ModelSummary.of(one, project) for one in (*models.of_project(), *models.shared())]


@router.get("/{name}", summary="Read a model with its versions", responses=problems(404))
def get_model(name: str, context: ReadContext) -> ModelView:
    """The versions, newest first, with the verdict of each, and who moved the champion."""
    return _view(context, _there(context, name))


@router.get("/{name}/versions/{version}", summary="Read a version", responses=problems(404, 422))
def get_version(name: str, version: str, context: ReadContext) -> VersionView:
    """By its number, or `champion`: its verdict, what it was made of, and what its files say."""
    model = _there(context, name)
    return VersionView.of(model.named(version), model, context.store.project)


@router.post(
    "/{name}/promote",
    summary="Make a version, or a task's model, champion",
    responses=problems(400, 404, 409, 413, 422),
)
def promote(name: str, body: AsPosted[PromoteBody], context: TuneContext) -> ModelView:
    """Whatever the verdict was: a person decides. A version is champion at once. So is a task's
    model that is a version; any other is `wanted` until a worker has registered it in MLflow,
    within seconds while one is there, and stays whatever retention says. What is champion or wanted
    already changes nothing; of two that are wanted, the last is. A rollback leads back, or ends the
    wait; if the model could not become champion, `moves` says why."""
    posted, name = judged(PromoteBody, body, context), _own(context, name)
    by, now = _caller(context), context.clock()
    wish = None
    if posted.task_id is not None:
        wish = _wish(context, name, posted.task_id, by, posted.reason)

    def change(model: RegisteredModel) -> RegisteredModel:
        _ensure_there(model, name)
        is_champion = model.champion == posted.version or (
            wish is not None and model.is_champion(wish.model.run_id)
        )
        if posted.expected_champion is not None and not is_champion:
            model.ensure_champion(posted.expected_champion)
        if wish is not None:
            changed, wanted = model.wished(wish), wish.model
            what = f"the model of task {wish.task_id!r}"
        else:
            assert posted.version is not None
            wanted = model.version(posted.version).model
            what = f"version {posted.version}"
            changed = model.promoted(posted.version, by, posted.reason, now)
        if changed != model and not is_champion:
            _check_files(context, wanted, what)
        return changed

    return _view(context, context.store.models.update(name, change))


def _wish(context: Context, name: str, task_id: str, by: str, reason: str) -> Wish:
    """Return the wish for a task's model. Raises NotFound; Conflict where there is none."""
    task = context.store.tasks.get(task_id)
    if task.registered_as != name:
        raise Conflict(f"the model of task {task_id!r} is one of {task.registered_as!r}")
    if task.status not in TERMINAL - {TaskStatus.CANCELED}:
        raise Conflict(
            f"the model of task {task_id!r} cannot be champion: the task is {task.status}, and "
            "only what a task ended with can"
        )
    if task.best_model is None:
        raise Conflict(
            f"task {task_id!r} has no model, or no longer: it is {task.status}. Its history says "
            "what became of it"
        )
    return Wish(task_id, task.best_model, by, reason, context.clock(), task.promotion)


@router.post(
    "/{name}/rollback",
    summary="Make an earlier champion champion again",
    responses=problems(400, 404, 409, 413, 422),
)
def roll_back(name: str, body: AsPosted[RollbackBody], context: TuneContext) -> ModelView:
    """Takes effect at once for the next iteration, and for one that is running: it promotes nothing
    any more. MLflow's alias follows within seconds, while a worker is there. A version that is
    champion already changes nothing: with `version`, the call may be repeated. What is `wanted` is
    so no longer; without a version, that is all."""
    wanted, name = judged(RollbackBody, body, context), _own(context, name)

    def change(model: RegisteredModel) -> RegisteredModel:
        _ensure_there(model, name)
        if wanted.version == model.champion and model.wanted is None:
            return model
        if wanted.expected_champion is not None:
            model.ensure_champion(wanted.expected_champion)
        by, now = _caller(context), context.clock()
        changed = model.rolled_back(wanted.version, by, wanted.reason, now)
        if changed.champion != model.champion:
            version = changed.version(changed.champion)
            _check_files(context, version.model, f"version {version.number}")
        return changed

    return _view(context, context.store.models.update(name, change))


@router.post(
    "/{name}/webhook",
    summary="Have changes of the champion told",
    responses=problems(400, 404, 413, 422),
)
def set_webhook(name: str, body: AsPosted[WebhookBody], context: TuneContext) -> ModelView:
    """A worker posts `champion.changed` to the address, now and after each change: what is champion
    at that time, with what a new index of items takes, and whether one is needed."""
    wanted, name = judged(WebhookBody, body, context), _own(context, name)
    check_webhook(context, wanted.url)
    now = context.clock()

    def change(model: RegisteredModel) -> RegisteredModel:
        return _ensure_there(model, name).telling(wanted.url, now)

    return _view(context, context.store.models.update(name, change))


@router.delete(
    "/{name}/versions/{version}",
    summary="Delete a version's files",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 422),
)
def delete_version(name: str, version: str, context: TuneContext) -> None:
    """Never those of the champion, or of a model that is wanted. A worker removes them, within
    seconds while one is there; the version stays on record, as removed. Repeating it is safe."""
    by, now, tasks = _caller(context), context.clock(), context.store.tasks
    name = _own(context, name)
    found = _there(context, name).named(version)
    task = None
    if found.task_id is not None:
        with suppress(NotFound):
            task = tasks.get(found.task_id)
    if task is not None and task.status in OWNED:
        raise Conflict(
            f"version {found.number} of {name!r} is of task {task.id}, which a worker is at: wait "
            "until it has ended"
        )
    context.store.models.update(name, lambda model: model.deleted(found.number, by, "", now))
    if task is None or task.best_model is None or task.experiment_id is None:
        return
    if task.best_model.run_id == found.model.run_id:
        why = f"its model was deleted by {by}"
        tasks.forget_iteration(task.id, task.experiment_id, now, why, is_whole=False)


@router.put(
    "/{name}/shares/{project}",
    summary="Let another project use a model",
    responses=problems(404, 409, 422),
)
def share(name: str, project: str, context: TuneContext) -> ModelView:
    """It reads, downloads and is served all versions of `owner:name`, and starts tasks from them;
    it changes nothing. Of the verdicts it sees the figures, and nothing of the data behind them.
    Repeating it is safe."""
    name, by, now = _own(context, name), _caller(context), context.clock()

    def change(model: RegisteredModel) -> RegisteredModel:
        return _ensure_there(model, name).shared(project, by, now)

    return _view(context, context.store.models.update(name, change))


@router.delete(
    "/{name}/shares/{project}",
    summary="Take a model back from another project",
    responses=problems(404),
)
def take_back(name: str, project: str, context: TuneContext) -> ModelView:
    """From now on it is 404 there. What was made of it, or downloaded, stays. Repeating it is
    safe."""
    name, by, now = _own(context, name), _caller(context), context.clock()

    def change(model: RegisteredModel) -> RegisteredModel:
        return _ensure_there(model, name).taken_back(project, by, now)

    return _view(context, context.store.models.update(name, change))


@router.get(
    "/{name}/versions/{version}/download",
    summary="Download a version",
    response_class=StreamingResponse,
    responses={**ZIP, **problems(404, 422, 501)},
)
async def download_version(name: str, version: str, context: ReadContext) -> StreamingResponse:
    """By its number, or `champion`. The files lie at the ZIP's root, as those of a task's model."""
    return await in_download_thread(_open_zip, name, version, context)


def _open_zip(name: str, version: str, context: Context) -> StreamingResponse:
    found = _there(context, name).named(version)
    if found.removed_at is not None:
        raise NotFound(f"the files of version {found.number} of {name!r} were removed")
    called = "-".join(f"{name}-{found.number}".replace(":", "-").split())
    called = called if called.isascii() else f"model-{found.number}"
    return zip_of(found.model, called, context.settings.resolved_tracking_uri)


def _caller(context: Context) -> str:
    """Return who asks, for people."""
    key = context.caller.key
    return f"{key.name} (key {key.id})" if key else "somebody without a key"


def _view(context: Context, model: RegisteredModel) -> ModelView:
    return ModelView.of(model, context.store.project)


def _there(context: Context, name: str) -> RegisteredModel:
    """Return a registered model, or one that is shared with the project. Raises NotFound."""
    return _ensure_there(context.store.models.readable(name), name)


def _own(context: Context, name: str) -> str:
    """Return the name of a model that the project may change. Raises Forbidden for one that another
    shares with it, NotFound for one that another does not."""
    owner, own = split_owner(context.store.project, name)
    if owner != context.store.project:
        _there(context, name)
        raise Forbidden(
            f"{name!r} is of project {owner!r}, which alone promotes, rolls back, deletes and "
            "shares it: to go on from it here, name it as a task's initial_model"
        )
    return own


def _ensure_there(model: RegisteredModel | None, name: str) -> RegisteredModel:
    if model is None or not model.versions:
        raise NotFound(
            f"no model of {name!r} is registered: the initial one is, once its first task runs"
            if ":" not in name
            else f"no model {name!r} is shared with this project"
        )
    return model


def _check_files(context: Context, model: StoredModel, what: str) -> None:
    """Raise Conflict when files of a model are not there, as far as this process can see."""
    with suppress(ConfigurationError):
        try:
            open_model(model, context.settings.resolved_tracking_uri).check(model.files)
        except NotFound as error:
            raise Conflict(f"{what} cannot be champion: {error}") from error
