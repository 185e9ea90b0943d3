"""How errors go over the wire: the status of each, and what its body says."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from embedding_studio.errors import (
    ConfigurationError,
    Conflict,
    EmbeddingStudioError,
    Forbidden,
    InvalidInput,
    InvalidTime,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
    UnknownMethod,
)

STATUS_BY_ERROR: Mapping[type[EmbeddingStudioError], int] = {
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    InvalidTime: 400,
    UnknownMethod: 422,
    InvalidInput: 422,
    TooManyRequests: 429,
    ConfigurationError: 501,
    StoreUnavailable: 503,
}
"""What the API answers; of two that fit, the first."""

ERROR_BY_STATUS: Mapping[int, type[EmbeddingStudioError]] = {
    **{status: error for error, status in STATUS_BY_ERROR.items()},
    400: InvalidInput,
    413: InvalidInput,
    421: ConfigurationError,
    502: StoreUnavailable,
    504: StoreUnavailable,
}
"""What the client raises, also for the statuses of a proxy between the two."""


class Problem(BaseModel):
    detail: str = Field(description="what is wrong, with which id, and what to do")


class FieldProblem(BaseModel):
    type: str
    loc: list[str | int] = Field(description="the way to the field that is wrong")
    msg: str


class InvalidRequest(BaseModel):
    detail: str | list[FieldProblem]


SUMMARIZED = 3


def summarize_field_errors(errors: Sequence[Mapping[str, Any]], more: int = 0) -> str:
    """Return the first three of pydantic's errors as one line of text, which counts the others."""
    told = [
        f"{'.'.join(map(str, error['loc'])) or 'the item'}: {error['msg']}"
        for error in errors[:SUMMARIZED]
    ]
    left_out = len(errors[SUMMARIZED:]) + more
    and_more = f" (and {left_out} more)" if left_out else ""
    # a posted lone surrogate may be part of a field's name
    return ("; ".join(told) + and_more).encode("utf-8", "backslashreplace").decode()
