"""Routes for champions: a method's versions, and the way back to an earlier one."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query

from embedding_studio.api.context import Context, ReadContext, TuneContext
from embedding_studio.api.errors import problems
from embedding_studio.api.requests import judged
from embedding_studio.api.routing import Route
from embedding_studio.errors import ConfigurationError, Conflict, NotFound
from embedding_studio.models import ModelVersion, RegisteredModel
from embedding_studio.tracking.reader import open_model
from embedding_studio.wire.fields import AsPosted, Id
from embedding_studio.wire.models import ChampionView, RollbackBody

router = APIRouter(prefix="/fine-tuning/champion", tags=["champions"], route_class=Route)


@router.get("", summary="List a method's versions, newest first", responses=problems(404, 422))
def get_champion(
    fine_tuning_method: Annotated[Id, Query(description="the `meta.name` of a plugin")],
    context: ReadContext,
) -> ChampionView:
    """With the verdict of each, which of them is champion, and who moved it when."""
    found = context.store.models.find(fine_tuning_method)
    return ChampionView.of(_there(found, fine_tuning_method))


@router.post(
    "/rollback",
    summary="Make an earlier version champion",
    responses=problems(400, 404, 409, 413, 422),
)
def roll_back(body: AsPosted[RollbackBody], context: TuneContext) -> ChampionView:
    """Takes effect at once for the next iteration, and for one that is running: it promotes nothing
    any more. MLflow's alias follows within seconds, while a worker is there. A version that is
    champion already changes nothing: with `version`, the call may be repeated."""
    wanted = judged(RollbackBody, body, context)
    key = context.caller.key
    by = f"{key.name} (key {key.id})" if key else "somebody without a key"

    def change(model: RegisteredModel) -> RegisteredModel:
        _there(model if model.versions else None, wanted.fine_tuning_method)
        if wanted.version == model.champion:
            return model
        if wanted.expected_champion is not None:
            model.ensure_champion(wanted.expected_champion)
        changed = model.rolled_back(wanted.version, by, wanted.reason, context.clock())
        _check_files(context, changed.version(changed.champion))
        return changed

    return ChampionView.of(context.store.models.update(wanted.fine_tuning_method, change))


def _there(model: RegisteredModel | None, method: str) -> RegisteredModel:
    if model is None:
        raise NotFound(
            f"no model of {method!r} is registered: the initial one is, once its first task runs"
        )
    return model


def _check_files(context: Context, version: ModelVersion) -> None:
    """Raise Conflict when files of a version are not there, as far as this process can see."""
    with suppress(ConfigurationError):
        try:
            folder = open_model(version.model, context.settings.resolved_tracking_uri)
            folder.check(version.model.files)
        except NotFound as error:
            raise Conflict(f"version {version.number} cannot be champion: {error}") from error
