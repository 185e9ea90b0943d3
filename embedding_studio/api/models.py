"""Routes for champions: a method's versions, a person's promotion, and the way back."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query

from embedding_studio.api.context import Context, ReadContext, TuneContext
from embedding_studio.api.errors import problems
from embedding_studio.api.requests import judged
from embedding_studio.api.routing import Route
from embedding_studio.errors import ConfigurationError, Conflict, NotFound
from embedding_studio.models import RegisteredModel, Wish
from embedding_studio.tasks import TERMINAL, StoredModel, TaskStatus
from embedding_studio.tracking.reader import open_model
from embedding_studio.wire.fields import AsPosted, Id
from embedding_studio.wire.models import ChampionView, PromoteBody, RollbackBody

router = APIRouter(prefix="/fine-tuning", tags=["champions"], route_class=Route)


@router.get(
    "/champion", summary="List a method's versions, newest first", responses=problems(404, 422)
)
def get_champion(
    fine_tuning_method: Annotated[Id, Query(description="the `meta.name` of a plugin")],
    context: ReadContext,
) -> ChampionView:
    """With the verdict of each, which of them is champion, and who moved it when."""
    found = context.store.models.find(fine_tuning_method)
    return ChampionView.of(_there(found, fine_tuning_method))


@router.post(
    "/champion/rollback",
    summary="Make an earlier version champion",
    responses=problems(400, 404, 409, 413, 422),
)
def roll_back(body: AsPosted[RollbackBody], context: TuneContext) -> ChampionView:
    """Takes effect at once for the next iteration, and for one that is running: it promotes nothing
    any more. MLflow's alias follows within seconds, while a worker is there. A version that is
    champion already changes nothing: with `version`, the call may be repeated. What is `wanted` is
    so no longer; without a version, that is all."""
    wanted = judged(RollbackBody, body, context)

    def change(model: RegisteredModel) -> RegisteredModel:
        _there(model if model.versions else None, wanted.fine_tuning_method)
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

    return ChampionView.of(context.store.models.update(wanted.fine_tuning_method, change))


@router.post(
    "/task/{task_id}/promote",
    summary="Make a task's model champion",
    responses=problems(400, 404, 409, 413, 422),
)
def promote_task(task_id: str, body: AsPosted[PromoteBody], context: TuneContext) -> ChampionView:
    """Whatever the verdict was: a person decides. A model that was champion before is so at once;
    any other is `wanted` until a worker has registered it in MLflow, within seconds while one is
    there, and stays whatever retention says. One that is champion or wanted already changes
    nothing; of two that are wanted, the last is. A rollback leads back, or ends the wait; if the
    model could not become champion, `moves` says why."""
    reason = judged(PromoteBody, body, context).reason
    task = context.store.tasks.get(task_id)
    if task.status not in TERMINAL - {TaskStatus.CANCELED}:
        raise Conflict(
            f"the model of task {task_id!r} cannot be champion: the task is {task.status}, and "
            "only what a task ended with can"
        )
    model = task.best_model
    if model is None:
        raise Conflict(
            f"task {task_id!r} has no model, or no longer: it is {task.status}. Its history says "
            "what became of it"
        )
    wish = Wish(task_id, model, _caller(context), reason, context.clock(), task.promotion)

    def change(registered: RegisteredModel) -> RegisteredModel:
        _there(registered if registered.versions else None, task.fine_tuning_method)
        changed = registered.wished(wish)
        if changed != registered and not registered.is_champion(model.run_id):
            _check_files(context, model, f"the model of task {task_id!r}")
        return changed

    return ChampionView.of(context.store.models.update(task.fine_tuning_method, change))


def _caller(context: Context) -> str:
    """Return who asks, for people."""
    key = context.caller.key
    return f"{key.name} (key {key.id})" if key else "somebody without a key"


def _there(model: RegisteredModel | None, method: str) -> RegisteredModel:
    if model is None:
        raise NotFound(
            f"no model of {method!r} is registered: the initial one is, once its first task runs"
        )
    return model


def _check_files(context: Context, model: StoredModel, what: str) -> None:
    """Raise Conflict when files of a model are not there, as far as this process can see."""
    with suppress(ConfigurationError):
        try:
            open_model(model, context.settings.resolved_tracking_uri).check(model.files)
        except NotFound as error:
            raise Conflict(f"{what} cannot be champion: {error}") from error
