"""Routes for fine-tuning methods."""

from fastapi import APIRouter

from embedding_studio.api.context import ReadContext
from embedding_studio.api.routing import Route
from embedding_studio.wire.methods import MethodList, MethodView
from embedding_studio.workers import WorkerRecord, silence_allowed

router = APIRouter(prefix="/fine-tuning", tags=["methods"], route_class=Route)


@router.get("/methods", summary="List the methods that a task may name")
def list_methods(context: ReadContext) -> MethodList:
    """As the workers say that live; where there are none, there are no methods."""
    live = context.store.workers.seen(context.clock() - silence_allowed(context.settings))
    carrying: dict[str, list[WorkerRecord]] = {}
    for one in live:
        for name in one.methods:
            carrying.setdefault(name, []).append(one)
    return MethodList(
        methods=[MethodView.of(name, carrying[name]) for name in sorted(carrying)],
        failed_plugins=sorted({place for one in live for place in one.plugin_failures}),
    )
