"""Fields that the JSON of several nouns is made of.

What is posted is validated with the API's Settings as context (see `api.requests.judged`), which
hold its bounds; without a context, as clients read it, nothing is bounded.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, StringConstraints, ValidationInfo, WrapValidator
from pydantic_core import to_json

from embedding_studio.plain import check_plain
from embedding_studio.projects import check_model_name

if TYPE_CHECKING:
    from embedding_studio.settings import Settings

MAX_PAGE_OFFSET = 2**31 - 1


def _check_posted(meta: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # a client reads it from an API that has checked it
    return meta if info.context is None else check_meta(meta, info.context)


def check_meta(meta: dict[str, Any], settings: "Settings") -> dict[str, Any]:
    """Return free-form JSON. Raises ValueError if it is none, or beyond the settings' bounds."""
    _check_storable(meta, settings.max_meta_depth)
    if _is_small(meta, settings.max_meta_bytes):
        return meta
    size_bytes = len(json.dumps(meta, ensure_ascii=False, allow_nan=False).encode())
    if size_bytes > settings.max_meta_bytes:
        raise ValueError(
            f"has {size_bytes} bytes as JSON; at most {settings.max_meta_bytes} are taken "
            "(ES_MAX_META_BYTES)"
        )
    return meta


def _is_small(meta: dict[str, Any], most_bytes: int) -> bool:
    """Tell quickly of nearly every meta that it is JSON, and far from too large: spaces after its
    commas and colons cannot make it twice as large."""
    try:
        text = to_json(meta)
    except ValueError:
        return False
    return 2 * len(text) <= most_bytes and b"NaN" not in text and b"Infinity" not in text


def _check_storable(value: Any, most_depth: int, depth: int = 1) -> None:
    # what BSON and SQLite cannot hold would otherwise fail in the store, as a server's error
    if depth > most_depth and isinstance(value, dict | list):
        raise ValueError(f"is nested more than {most_depth} levels deep (ES_MAX_META_DEPTH)")
    if isinstance(value, dict):
        for key, inner in value.items():
            if "\0" in key:
                raise ValueError(f"has a NUL character in the key {key!r}")
            if not isinstance(inner, str):
                _check_storable(inner, most_depth, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_storable(inner, most_depth, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"has an integer outside the 64-bit range: {value}")


T = TypeVar("T")
AsPosted = Annotated[T, WrapValidator(lambda posted, _: posted)]
"""What its route validates itself: see `requests.judged`."""
Plain = AfterValidator(check_plain)
Id = Annotated[str, StringConstraints(min_length=1, max_length=256), Plain]
ModelName = Annotated[str, Plain, AfterValidator(check_model_name)]
Meta = Annotated[dict[str, Any], AfterValidator(_check_posted)]
"""Free-form JSON, within the bounds of the settings that the validation's context gives."""


def is_none(value: object) -> bool:
    """Tell which fields are left out where there is nothing to say."""
    return value is None
