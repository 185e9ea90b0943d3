"""Routes for what people and files say of items."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from embedding_studio.api.context import Context, IngestContext, ReadContext
from embedding_studio.api.errors import problems
from embedding_studio.api.lines import lines_described, lines_of
from embedding_studio.api.requests import judged, judged_one, reason_of
from embedding_studio.api.routing import Route, in_turn
from embedding_studio.errors import InvalidInput, Unauthorized
from embedding_studio.keys import Scope
from embedding_studio.labels import Label
from embedding_studio.wire.fields import AsPosted
from embedding_studio.wire.labels import (
    LabelBody,
    LabelsBody,
    LabelSetPage,
    LabelSetReport,
    LabelSetView,
    LabelsId,
    LabelsOutcome,
)

router = APIRouter(prefix="/labels", tags=["labels"], route_class=Route)
_TOLD = 5


@router.get("", summary="List sets of labels", responses=problems(422))
def list_labels(
    context: ReadContext,
    after_id: Annotated[str, Query(description="of the page before")] = "",
    limit: Annotated[int | None, Query(ge=0, description="100 when absent; 0: the most")] = None,
) -> LabelSetPage:
    """In the order of their names."""
    found = context.store.labels.sets(after_id, context.page_size(limit, default=100))
    last_id = found[-1].labels_id if found else None
    return LabelSetPage(last_id=last_id, sets=[LabelSetView.of(one) for one in found])


@router.put("/{labels_id}", summary="Put labels", responses=problems(400, 409, 413, 422))
def put_labels(
    labels_id: LabelsId, body: AsPosted[LabelsBody], context: IngestContext
) -> LabelsOutcome:
    """Adds to the set of that name, which begins with its first. A query and an item have one
    grade, the last. All are kept, or none, and then those that are wrong are told.

    `golden` takes a key with the scope tune too: it decides what is promoted."""
    posted = judged(LabelsBody, body, context)
    if posted.golden is not None:
        context.caller.require(Scope.TUNE, f"to say whether labels {labels_id!r} are golden")
    labels = _judged_labels(posted.labels, context)
    store, now = context.store.labels, context.clock()
    put = store.put(labels_id, labels, now, is_golden=posted.golden, most=context.most)
    return LabelsOutcome(created=put.created, updated=put.updated, unchanged=put.unchanged)


@router.get("/{labels_id}", summary="Tell what a set of labels has", responses=problems(404))
def get_labels(labels_id: str, context: ReadContext) -> LabelSetReport:
    """It is read through."""
    return report_on_labels(labels_id, context)


def report_on_labels(labels_id: str, context: Context) -> LabelSetReport:
    """Return what a set has. Raises NotFound."""
    labels = context.store.labels
    return LabelSetReport.on(labels.get(labels_id), labels.count(labels_id))


@router.get(
    "/{labels_id}/export",
    summary="Export labels",
    response_class=StreamingResponse,
    responses=lines_described("label"),
)
def export_labels(labels_id: str, request: Request, context: ReadContext) -> StreamingResponse:
    """Each line is one of the `labels` that PUT takes; those of a query lie together."""
    its_id = context.store.labels.get(labels_id).labels_id
    pages = _pages_of(its_id, request, context)
    return lines_of(pages, LabelBody.of, f"labels-{its_id}", request)


@router.delete(
    "/{labels_id}",
    summary="Delete labels",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409),
)
def delete_labels(labels_id: str, context: IngestContext) -> None:
    """The whole set; refused while a task that has not ended names it. A golden one takes a key
    with the scope tune too."""
    if context.store.labels.get(labels_id).is_golden:
        context.caller.require(Scope.TUNE, f"to delete labels {labels_id!r}, which are golden,")
    context.store.labels.delete(labels_id)


def _judged_labels(posted: Sequence[object], context: Context) -> list[Label]:
    """Return what was posted as labels. Raises InvalidInput, which tells the first wrong ones."""
    labels: list[Label] = []
    wrong: list[str] = []
    for row, one in enumerate(posted, 1):
        read = judged_one(LabelBody, one, context)
        if isinstance(read, LabelBody):
            labels.append(read.to_label())
            continue
        names = one if isinstance(one, dict) else {}
        told = ", ".join(
            f"{name} {str(names[key])[:100]!r}"
            for name, key in (("query", "query"), ("item", "object_id"))
            if key in names
        )
        reason = reason_of(one, read, LabelBody)
        wrong.append(f"label {row}{f' ({told})' if told else ''}: {reason}")
        if len(wrong) > _TOLD:
            break
    if wrong:
        more = " (and more)" if len(wrong) > _TOLD else ""
        raise InvalidInput(f"nothing is kept. {'; '.join(wrong[:_TOLD])}{more}")
    return labels


async def _pages_of(
    labels_id: str, request: Request, context: Context
) -> AsyncIterator[Sequence[Label]]:
    """Yield labels page by page. Breaks off, with an error, where they are deleted meanwhile or the
    caller's key ends: a client sees that the answer is not whole."""
    last: Label | None = None
    while True:
        if not await context.still_allowed():
            raise Unauthorized("the key was valid no longer while labels were read")
        page = await in_turn(request, context.store.labels.page, labels_id, last)
        if not page:
            return
        yield page
        last = page[-1]
