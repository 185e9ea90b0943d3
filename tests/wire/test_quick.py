"""Sessions that are read in one pass are those that `SessionBody` takes, and they are the same."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import from_json

from embedding_studio.clickstream import Session
from embedding_studio.settings import Settings
from embedding_studio.wire.clickstream import SessionBody, from_unix_seconds
from embedding_studio.wire.quick import QuickSession, quick_session, read_sessions
from tests.api.samples import event_json, session_json

SETTINGS = Settings(
    max_id_chars=6,
    max_query_chars=8,
    max_results_per_session=3,
    max_events_per_session=2,
    max_meta_bytes=60,
    max_meta_depth=3,
)


def instant(seconds: float | None, _: str) -> Any:
    return from_unix_seconds(1e9 if seconds is None else min(max(seconds, 0), 1e10))


def judged(body: bytes) -> Session | None:
    """Return the session of a body as `SessionBody` reads it, None if it refuses it."""
    try:
        posted = SessionBody.model_validate(from_json(body), context=SETTINGS)
    except (ValidationError, ValueError):
        return None
    return posted.to_session(instant)


texts = st.one_of(
    st.sampled_from(
        ["", "a", "item-1", "item-10", "é", "\0", "\x1b", "\u2028", "\ud800", "x" * 70]
    ),
    st.text(max_size=9),
)
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 1e308, True]),
    st.floats(),
    st.sampled_from(["1e9", "nan", " 5 ", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00", "soon"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
metas = st.one_of(st.none(), st.dictionaries(texts, texts, max_size=2), st.just([]), values)


def objects(required: dict[str, Any], optional: dict[str, Any]) -> Any:
    return st.fixed_dictionaries(
        required, optional={**optional, "strange": values}
    ) | st.fixed_dictionaries(required, optional=optional)


plain_ids = st.sampled_from(["a", "b", "c-1"])
ids = plain_ids | texts
results = objects({"object_id": ids}, {"rank": st.none() | numbers, "meta": metas})
events = objects(
    {"event_id": ids, "object_id": ids},
    {"event_type": ids, "created_at": st.none() | numbers, "meta": metas},
)
sessions = objects(
    {"session_id": ids, "search_query": texts, "search_results": st.lists(results, max_size=4)},
    {
        "search_meta": metas,
        "user_id": st.none() | ids,
        "created_at": st.none() | numbers,
        "events": st.lists(events, max_size=3),
        "is_irrelevant": st.booleans() | st.sampled_from([0, "true"]),
    },
)


@given(sessions)
def test_what_is_read_quickly_is_what_would_be_judged_right(posted: dict[str, Any]) -> None:
    """Whatever is posted: it is left to `SessionBody`, or both take it and read the same."""
    body = json.dumps(posted).encode()
    quick = quick_session(body, SETTINGS)
    if quick is not None:
        assert quick.to_session(instant) == judged(body)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"created_at": 1e9, "user_id": "u-1", "search_meta": {"page": 1}, "is_irrelevant": True},
        {
            "created_at": "2026-01-31T12:00:00Z",
            "events": [event_json(meta={"a": [1, {"b": None}]})],
        },
    ],
    ids=["bare", "full", "ISO time"],
)
def test_what_people_post_is_read_quickly(more: dict[str, Any]) -> None:
    """Otherwise nothing would be gained."""
    body = json.dumps(session_json(**more)).encode()
    quick = quick_session(body, Settings())
    assert quick is not None
    assert quick.to_session(instant) == SessionBody(**session_json(**more)).to_session(instant)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b'{"a":' * 5000, b'"\\ud800"', b"null"]
)
def test_what_is_no_session_is_left_to_others(body: bytes) -> None:
    """Also where it is no JSON, or nested too deep for any reader."""
    assert quick_session(body, SETTINGS) is None


def test_of_many_only_the_others_are_left() -> None:
    """Those that are right are read; the rest is as it was posted."""
    body = json.dumps({"sessions": [session_json(), {"session_id": 1}, 5]}).encode()
    read = read_sessions(Settings(), from_json, body).sessions
    assert isinstance(read[0], QuickSession)
    assert read[1:] == [{"session_id": 1}, 5]
