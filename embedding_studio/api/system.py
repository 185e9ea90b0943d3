"""Routes that tell whether everything is there."""

from fastapi import APIRouter, Request, Response

from embedding_studio.api.context import OpenContext
from embedding_studio.api.errors import problems
from embedding_studio.api.health import without_details
from embedding_studio.api.routing import Route
from embedding_studio.keys import Scope
from embedding_studio.wire.system import HealthView, PartStatus, Pong

router = APIRouter(tags=["system"], route_class=Route)


@router.get("/ping", summary="Is the API there")
async def ping(context: OpenContext) -> Pong:
    return Pong(time=context.clock())


@router.get(
    "/health",
    summary="Are the store, MLflow and a worker there",
    responses={
        **problems(421),
        503: {"model": HealthView, "description": "Something is missing; `detail` says"},
    },
)
async def health(request: Request, response: Response, context: OpenContext) -> HealthView:
    """As of a second ago. Where there are API keys, only who shows one with the scope `admin` is
    told the details."""
    view: HealthView = await request.app.state.health.view()
    if view.status is PartStatus.UNAVAILABLE:
        response.status_code = 503
    return view if context.caller.allows(Scope.ADMIN) else without_details(view)
