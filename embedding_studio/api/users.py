"""Routes for the people whose searches are kept."""

from typing import Annotated

from fastapi import APIRouter, Query

from embedding_studio.api.context import AdminContext
from embedding_studio.api.errors import problems
from embedding_studio.api.routing import Route
from embedding_studio.wire.users import UserErased

router = APIRouter(prefix="/users", tags=["users"], route_class=Route)


@router.delete("", summary="Erase a person", responses=problems(422))
def erase_user(
    context: AdminContext,
    user_id: Annotated[str, Query(min_length=1, description="as sessions have it")],
) -> UserErased:
    """Sessions with this user_id leave every batch, with their events, also the one now collecting;
    others keep their numbers. What a task learns from that has not ended stays until it has: repeat
    the call then. Repeating it is harmless, also after an interruption, which it completes."""
    return UserErased.model_validate(context.store.users.erase(user_id))
