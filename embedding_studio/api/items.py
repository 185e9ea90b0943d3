"""Routes for what can be found."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ValidationError

from embedding_studio.api.context import Context, IngestContext, ReadContext
from embedding_studio.api.errors import problems
from embedding_studio.api.requests import id_in, judged, judged_one, reason_of
from embedding_studio.api.routing import Route
from embedding_studio.errors import InvalidInput
from embedding_studio.items import PutStatus
from embedding_studio.wire.fields import AsPosted
from embedding_studio.wire.items import (
    ItemBody,
    ItemOutcome,
    ItemOutcomes,
    ItemPage,
    ItemsBody,
    ItemsDeleted,
)

router = APIRouter(prefix="/items", tags=["items"], route_class=Route)


@router.put("", summary="Put many items", responses=problems(400, 413, 422))
def put_items(body: AsPosted[ItemsBody], context: IngestContext) -> ItemOutcomes:
    """Each takes the place of what was known of its object_id. Answers per item, in order; an
    invalid one is left out, the others are kept. Sessions may then name ids alone."""
    posted = judged(ItemsBody, body, context).items
    read = [judged_one(ItemBody, one, context) for one in posted]
    right = [one.to_item() for one in read if isinstance(one, ItemBody)]
    answers = iter(context.store.items.put(right, context.most))
    ended = [next(answers) if isinstance(one, ItemBody) else one for one in read]
    return ItemOutcomes(
        items=[_outcome(one, answer, context) for one, answer in zip(posted, ended, strict=True)]
    )


@router.get("", summary="Read items", responses=problems(404, 422))
def get_items(
    context: ReadContext,
    object_id: Annotated[Sequence[str], Query(description="these; absent: all, by pages")] = (),
    after_id: Annotated[str, Query(description="of the page before")] = "",
    limit: Annotated[int | None, Query(ge=0, description="10 when absent; 0: the most")] = None,
) -> ItemPage:
    """Those that are named, or a page of all in the order of their ids."""
    items = context.store.items
    if object_id:
        found = [items.get(one) for one in object_id]
    else:
        found = items.page(after_id, context.page_size(limit, default=10))
    return ItemPage(
        last_id=found[-1].object_id if found and not object_id else None,
        item_count=items.count(),
        items=[ItemBody.of(item) for item in found],
    )


@router.delete("", summary="Delete items", responses=problems(422))
def delete_items(
    context: IngestContext, object_id: Annotated[list[str], Query(min_length=1, max_length=1000)]
) -> ItemsDeleted:
    """Those that there are; what batches hold of sessions stays."""
    return ItemsDeleted(deleted=context.store.items.delete(object_id))


def _outcome(
    posted: object, answer: PutStatus | ValidationError | InvalidInput, context: Context
) -> ItemOutcome:
    its_id = id_in(posted, "object_id", context)
    if isinstance(answer, PutStatus):
        return ItemOutcome(object_id=its_id, status=answer)
    error = reason_of(posted, answer, ItemBody)
    return ItemOutcome(object_id=its_id, status=PutStatus.INVALID, error=error)
