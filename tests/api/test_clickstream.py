from datetime import timedelta
from typing import Any

import mongomock
import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.errors import NotFound
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.store.mongo import MongoDocuments
from tests.api.samples import START, Clock, event_json, session_json

NOW = int(START.timestamp())


def released(api: TestClient, release_id: str = "r-1") -> str:
    batch_id: str = api.post(
        "/clickstream/internal/batch/release", json={"release_id": release_id}
    ).json()["batch_id"]
    return batch_id


def batch_sessions(api: TestClient, batch_id: str, **params: int) -> Any:
    response = api.get(
        "/clickstream/internal/batch/sessions", params={"batch_id": batch_id, **params}
    )
    assert response.status_code == 200, response.text
    return response.json()


def test_a_session_comes_back_as_posted(api: TestClient) -> None:
    """What was posted is read back, times in the Unix seconds that were posted."""
    posted = session_json(
        user_id="u-1", search_meta={"page": 1}, created_at=NOW - 60, events=[event_json()]
    )
    answer = api.post("/clickstream/session", json=posted)
    assert answer.status_code == 200
    outcome = answer.json()
    assert [outcome.pop("warnings")[0][:16]] == ["1 of 2 results h"]
    assert outcome == {
        "session_id": "s-1",
        "status": "created",
        "new_events": 1,
        "early_events": 0,
        "error": None,
    }
    read = api.get("/clickstream/session", params={"session_id": "s-1"}).json()
    assert read == {
        **posted,
        "search_results": [
            {"object_id": "shoe-1", "rank": 0.9, "meta": {"text": "Runner, red"}},
            {"object_id": "shoe-2", "rank": None, "meta": {}},
        ],
        "is_irrelevant": False,
        "events": [
            {
                "event_id": "e-1",
                "object_id": "shoe-1",
                "event_type": "click",
                "created_at": NOW,
                "meta": {},
            }
        ],
    }
    assert isinstance(read["created_at"], int)


def test_fractions_of_a_second_are_kept(api: TestClient) -> None:
    """A fractional timestamp is echoed to the millisecond."""
    api.post("/clickstream/session", json=session_json(created_at=NOW - 0.125))
    read = api.get("/clickstream/session", params={"session_id": "s-1"}).json()
    assert read["created_at"] == NOW - 0.125


def test_nulls_of_other_clients_are_taken(api: TestClient) -> None:
    """Optional fields sent as null are fine."""
    posted = session_json(search_meta=None, user_id=None, created_at=None)
    posted["search_results"][0]["meta"] = None
    assert api.post("/clickstream/session", json=posted).status_code == 200
    events = {
        "session_id": "s-1",
        "events": [event_json(created_at=None, meta=None, event_type="buy")],
    }
    assert api.post("/clickstream/session/events", json=events).json()["new_events"] == 1


def test_posting_again_changes_nothing(api: TestClient) -> None:
    """A session and an event posted twice are there once, as first posted, and burn no number."""
    for query in ("red shoes", "another query"):
        assert (
            api.post("/clickstream/session", json=session_json(search_query=query)).status_code
            == 200
        )
    events = {"session_id": "s-1", "events": [event_json(), event_json()]}
    first = api.post("/clickstream/session/events", json=events)
    again = api.post("/clickstream/session/events", json=events)
    assert (first.json()["new_events"], again.json()["new_events"]) == (1, 0)
    assert again.status_code == 200
    api.post("/clickstream/session", json=session_json("s-2"))
    page = batch_sessions(api, released(api))
    assert [
        (one["session_number"], one["session_id"], one["search_query"]) for one in page["sessions"]
    ] == [
        (1, "s-1", "red shoes"),
        (2, "s-2", "red shoes"),
    ]
    assert len(page["sessions"][0]["events"]) == 1


def test_the_irrelevant_mark_survives(api: TestClient) -> None:
    """A re-post, an event and a release leave the mark; marking twice succeeds."""
    api.post("/clickstream/session", json=session_json())
    for _ in range(2):
        marked = api.post("/clickstream/session/irrelevant", json={"session_id": "s-1"})
        assert marked.status_code == 200
    api.post("/clickstream/session", json=session_json())
    api.post(
        "/clickstream/session/events", json={"session_id": "s-1", "events": [event_json("e-2")]}
    )
    assert batch_sessions(api, released(api))["sessions"][0]["is_irrelevant"] is True
    assert api.get("/clickstream/session?session_id=s-1").json()["is_irrelevant"] is True


def test_feedback_may_come_before_its_session(api: TestClient) -> None:
    """Early events and marks are taken, and join their session however that is posted."""
    for session_id in ("s-1", "s-2", "s-1"):
        body = {"session_id": session_id, "events": [event_json("e-1"), event_json("e-2")]}
        answer = api.post("/clickstream/session/events", json=body)
        assert answer.status_code == 200
        assert (answer.json()["new_events"], answer.json()["waiting_events"]) == (0, 2)
    marked = api.post("/clickstream/session/irrelevant", json={"session_id": "s-2"})
    assert marked.status_code == 200
    one = api.post("/clickstream/session", json=session_json("s-1", events=[event_json("e-1")]))
    assert (one.json()["new_events"], one.json()["early_events"]) == (1, 1)
    batch = api.get("/clickstream/internal/batch").json()
    assert batch["waiting_events"] == 3
    bulk = api.post("/clickstream/sessions", json={"sessions": [session_json("s-2")]}).json()
    assert bulk["sessions"][0]["early_events"] == 2
    read = batch_sessions(api, batch["batch_id"])["sessions"]
    assert [[event["event_id"] for event in s["events"]] for s in read] == [["e-1", "e-2"]] * 2
    assert [s["is_irrelevant"] for s in read] == [False, True]
    after = api.get("/clickstream/internal/batch").json()
    assert (after["waiting_events"], after["counts"]["early_events"]) == (0, 3)
    assert (after["session_count"], after["clicked_sessions"]) == (2, 1)


def test_early_feedback_waits_as_long_as_a_session_may_be_old(
    api: TestClient, clock: Clock
) -> None:
    """After that its session would be refused, and the feedback is gone."""
    api.post("/clickstream/session/events", json={"session_id": "s", "events": [event_json()]})
    clock.now += timedelta(hours=12)
    answer = api.post("/clickstream/session", json=session_json("s")).json()
    assert answer["early_events"] == 0


EARLY: list[tuple[str, dict[str, Any]]] = [
    ("/clickstream/session/events", {"session_id": "nobody", "events": [event_json()]}),
    ("/clickstream/session/irrelevant", {"session_id": "nobody"}),
]


@pytest.mark.parametrize(("path", "body"), EARLY)
def test_only_so_much_waits(
    store: Store, settings: Settings, path: str, body: dict[str, Any]
) -> None:
    """Feedback above the limit is 429 and names session and setting; with none at all it is 404."""
    for most, status in ((1, 429), (0, 404), (2, 200)):
        app = create_app(store, settings.replaced(max_early_events=most), Clock())
        with TestClient(app, base_url="http://localhost/api/v1") as api:
            first = {"session_id": "first", "events": [event_json()]}
            api.post("/clickstream/session/events", json=first)
            response = api.post(path, json=body)
        assert response.status_code == status
        if status != 200:
            assert "'nobody'" in response.json()["detail"]
            assert ("ES_MAX_EARLY_EVENTS" in response.json()["detail"]) == (status == 429)


def test_no_events_of_an_unknown_session_are_404(api: TestClient) -> None:
    """There is nothing to keep, so the answer names the id that nobody knows."""
    nothing: dict[str, Any] = {"session_id": "nobody", "events": []}
    response = api.post("/clickstream/session/events", json=nothing)
    assert response.status_code == 404
    assert "nobody" in response.json()["detail"]


def test_reading_an_unknown_session_or_batch_is_404(api: TestClient) -> None:
    """Reading names the id that nobody knows."""
    session = api.get("/clickstream/session?session_id=nobody")
    batch = api.get("/clickstream/internal/batch/sessions?batch_id=nowhere")
    assert (session.status_code, batch.status_code) == (404, 404)
    assert "nobody" in session.json()["detail"]
    assert "nowhere" in batch.json()["detail"]


@pytest.mark.parametrize(
    ("seconds", "status", "limit"),
    [
        (NOW - 12 * 3600, 200, ""),
        (NOW - 12 * 3600 - 1, 400, "43200 seconds ago; too old to be taken (ES_MAX_EVENT_AGE_"),
        (-1, 400, "ES_MAX_EVENT_AGE_SECONDS"),
        (NOW + 300, 200, ""),
        (NOW + 301, 400, "300 seconds ahead of the server's clock (ES_MAX_EVENT_AHEAD_SECONDS)"),
        (NOW * 1000, 400, "not milliseconds"),
    ],
)
def test_stale_and_future_times_are_refused(
    api: TestClient, seconds: int, status: int, limit: str
) -> None:
    """The limits themselves are still taken; a refusal names id, value, limit and setting."""
    as_session = api.post("/clickstream/session", json=session_json("s-1", created_at=seconds))
    api.post("/clickstream/session", json=session_json("s-2"))
    events = {"session_id": "s-2", "events": [event_json(created_at=seconds)]}
    as_event = api.post("/clickstream/session/events", json=events)
    assert (as_session.status_code, as_event.status_code) == (status, status)
    if status == 400:
        for response, name in ((as_session, "s-1"), (as_event, "e-1")):
            detail = response.json()["detail"]
            assert name in detail
            assert str(seconds) in detail
            assert limit in detail


def test_without_a_time_it_is_now(api: TestClient, clock: Clock) -> None:
    """A missing created_at is the time of the post, in whole seconds as other clients expect."""
    clock.now = START + timedelta(seconds=9, microseconds=999_999)
    api.post("/clickstream/session", json=session_json())
    assert api.get("/clickstream/session?session_id=s-1").json()["created_at"] == NOW + 9


BAD_SESSIONS: list[dict[str, Any]] = [
    session_json(""),
    session_json("a\0b"),
    session_json(search_results=[{"object_id": ""}]),
    session_json(search_results=None),
    session_json(created_at="yesterday"),
    session_json(created_at="2026-01-31T12:00:00"),
    session_json(created_at="nan"),
    session_json(search_meta={"n": 2**63}),
    session_json(search_meta={"a\0b": 1}),
]


@pytest.mark.parametrize(
    "written",
    ["2026-01-31T11:59:00Z", "2026-01-31T12:59:00.000+01:00", "20260131T115900Z", f"{NOW - 60}"],
)
def test_times_may_be_iso_8601(api: TestClient, written: str) -> None:
    """A time with its zone is the same as its Unix seconds, of a session and of an event."""
    posted = session_json(created_at=written, events=[event_json(created_at=written)])
    assert api.post("/clickstream/session", json=posted).status_code == 200
    read = api.get("/clickstream/session?session_id=s-1").json()
    assert (read["created_at"], read["events"][0]["created_at"]) == (NOW - 60, NOW - 60)


def test_a_time_without_a_zone_is_refused(api: TestClient) -> None:
    """It would be off by hours where it is not UTC: the refusal says what to append."""
    response = api.post("/clickstream/session", json=session_json(created_at="2026-01-31 12:00"))
    assert response.status_code == 422
    assert "append Z for UTC" in response.json()["detail"][0]["msg"]


UNKNOWN: list[tuple[str, dict[str, Any], str, str]] = [
    ("session", session_json(createdat=NOW), "createdat", "Did you mean created_at?"),
    ("session", session_json(clicks=[event_json()]), "clicks", "is_irrelevant"),
    (
        "session",
        session_json(search_results=[{"object_id": "a", "metadata": {}}]),
        "search_results.0.metadata",
        "Did you mean meta? The fields are object_id, rank, meta",
    ),
    ("session", session_json(events=[event_json(type="buy")]), "events.0.type", "event_type"),
    ("session/events", {"session_id": "s", "events": [event_json(at=1)]}, "events.0.at", "meta"),
    ("session/irrelevant", {"session_id": "s", "reason": "x"}, "reason", "session_id"),
    ("internal/batch/release", {"release_id": "r", "batch_id": "b"}, "batch_id", "release_id"),
    ("sessions", {"sessions": [], "batch": 1}, "batch", "sessions"),
]


@pytest.mark.parametrize(("path", "body", "field", "words"), UNKNOWN)
def test_unknown_fields_are_refused(
    api: TestClient, path: str, body: dict[str, Any], field: str, words: str
) -> None:
    """A misspelt field is not dropped: the refusal names it and the fields that exist."""
    response = api.post(f"/clickstream/{path}", json=body)
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert ".".join(map(str, problem["loc"])) == f"body.{field}"
    assert words in problem["msg"]


def test_an_unknown_field_costs_its_own_item_in_bulk(api: TestClient) -> None:
    """The outcome of a misspelt item names item, field and what exists; the others are stored."""
    items = [session_json("bad", clicks=[]), session_json("good")]
    bad, good = api.post("/clickstream/sessions", json={"sessions": items}).json()["sessions"]
    assert (bad["session_id"], bad["status"], good["status"]) == ("bad", "invalid", "created")
    assert "clicks: no field has this name" in bad["error"]
    assert "events" in bad["error"]


@pytest.mark.parametrize(("path", "body", "field", "words"), UNKNOWN)
def test_unknown_fields_may_be_ignored(
    store: Store, settings: Settings, path: str, body: dict[str, Any], field: str, words: str
) -> None:
    """With ES_IGNORE_UNKNOWN_FIELDS they are left out of what is taken, at any depth."""
    lenient = create_app(store, settings.replaced(ignore_unknown_fields=True), Clock())
    with TestClient(lenient, base_url="http://localhost/api/v1") as api:
        api.post("/clickstream/session", json=session_json("s", color="blue"))
        assert api.post(f"/clickstream/{path}", json=body).status_code == 200
        bulk = {"sessions": [session_json("t", clicks=[])]}
        (outcome,) = api.post("/clickstream/sessions", json=bulk).json()["sessions"]
        assert outcome["status"] == "created"


@pytest.mark.parametrize("body", BAD_SESSIONS)
def test_bad_fields_are_422(api: TestClient, body: dict[str, Any]) -> None:
    """What cannot be stored is refused, naming the field, and nothing is stored."""
    response = api.post("/clickstream/session", json=body)
    assert response.status_code == 422
    assert {"type", "loc", "msg"} == set(response.json()["detail"][0])
    assert api.get("/clickstream/session?session_id=s-1").status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        '"search_results": [{"object_id": "o", "rank": NaN}]',
        '"search_results": [{"object_id": "o", "rank": 1e999}]',
        '"search_results": [], "created_at": Infinity',
        '"search_results": [], "search_meta": {"a": NaN}',
        '"search_results": [], "search_meta": {"\\ud800": 1}',
        '"search_results": [], "user_id": "\\udfff"',
    ],
)
def test_values_that_json_cannot_carry_are_422(api: TestClient, fields: str) -> None:
    """NaN, infinity and lone surrogates get a readable answer, alone and in bulk."""
    text = f'{{"session_id": "s-1", "search_query": "q", {fields}}}'
    headers = {"Content-Type": "application/json"}
    response = api.post("/clickstream/session", content=text, headers=headers)
    assert response.status_code == 422
    bulk = api.post("/clickstream/sessions", content=f'{{"sessions": [{text}]}}', headers=headers)
    assert [one["status"] for one in bulk.json()["sessions"]] == ["invalid"]


def test_a_body_that_is_no_json_is_422(api: TestClient) -> None:
    """Broken JSON is answered as a mistake of the client's."""
    headers = {"Content-Type": "application/json"}
    response = api.post("/clickstream/session", content="{not json", headers=headers)
    assert response.status_code == 422


def test_one_bad_bulk_item_costs_only_itself(api: TestClient) -> None:
    """Outcomes come in order; a session with one bad event is left out as a whole."""
    items = [
        session_json("good-1", events=[event_json("e-1"), event_json("e-2")]),
        session_json("", events=[]),
        session_json("half", events=[event_json("e-1"), event_json("e-2", created_at=1)]),
        "not an object",
        session_json("good-1", events=[event_json("e-2"), event_json("e-3")]),
        session_json("good-2", is_irrelevant=True),
    ]
    answer = api.post("/clickstream/sessions", json={"sessions": items})
    assert answer.status_code == 200
    outcomes = answer.json()["sessions"]
    assert [(one["session_id"], one["status"], one["new_events"]) for one in outcomes] == [
        ("good-1", "created", 2),
        (None, "invalid", 0),
        ("half", "invalid", 0),
        (None, "invalid", 0),
        ("good-1", "existing", 1),
        ("good-2", "created", 0),
    ]
    assert "session_id" in outcomes[1]["error"]
    assert "e-2" in outcomes[2]["error"]
    assert outcomes[3]["error"] == "the item is no JSON object"
    assert api.get("/clickstream/session?session_id=half").status_code == 404
    sessions = batch_sessions(api, released(api))["sessions"]
    assert [(one["session_number"], one["session_id"]) for one in sessions] == [
        (1, "good-1"),
        (2, "good-2"),
    ]
    assert [event["event_id"] for event in sessions[0]["events"]] == ["e-1", "e-2", "e-3"]
    assert sessions[1]["is_irrelevant"] is True


def test_one_item_that_the_store_refuses_costs_only_itself(settings: Settings) -> None:
    """A session beyond 16 MB is its own outcome, by its id and with what to do; posted alone it is
    422."""
    roomy = settings.replaced(max_body_mb=64, max_meta_bytes=2**25)
    large = session_json("large", search_meta={"text": "x" * 17_000_000})
    items = [session_json("a"), large, session_json("b")]
    client: Any = mongomock.MongoClient()
    app = create_app(Store(MongoDocuments("mongodb://nowhere", client)), roomy, Clock())
    with TestClient(app, base_url="http://localhost/api/v1") as api:
        answer = api.post("/clickstream/sessions", json={"sessions": items})
        outcomes = answer.json()["sessions"]
        assert [one["status"] for one in outcomes] == ["created", "invalid", "created"]
        assert [one["session_id"] for one in outcomes] == ["a", "large", "b"]
        assert "a document has 16777216 at most; post fewer results" in outcomes[1]["error"]
        batch = api.get("/clickstream/internal/batch").json()
        assert batch["session_count"] == 2
        alone = api.post("/clickstream/session", json=large)
        assert alone.status_code == 422
        assert "session 'large': " in alone.json()["detail"]


def counts(api: TestClient, **params: str) -> dict[str, int]:
    """Return what is counted of a batch, but for what is 0."""
    batch = api.get("/clickstream/internal/batch", params=params).json()
    return {name: count for name, count in batch["counts"].items() if count}


def readable_json(session_id: str, **more: Any) -> dict[str, Any]:
    """Return a session of which a text method, an image method or the demo's can read each item."""
    metas = [{"text": "a"}, {"image": "http://host/b.png"}, {"bucket": "b", "file": "c.png"}]
    results = [{"object_id": f"i-{n}", "meta": meta} for n, meta in enumerate(metas)]
    return session_json(session_id, search_results=results, **more)


def test_results_that_nobody_can_read_are_said_and_counted(api: TestClient) -> None:
    """Results with neither text nor image are taken, said in the answer and counted once."""
    assert api.post("/clickstream/session", json=readable_json("fine")).json()["warnings"] == []
    assert counts(api) == {}
    dull = session_json("dull", search_results=[{"object_id": "x", "meta": {"text": " "}}] * 2)
    for body in ({"sessions": [dull, readable_json("more")]}, {"sessions": [dull]}):
        outcomes = api.post("/clickstream/sessions", json=body).json()["sessions"]
    (outcome,) = outcomes
    assert outcome["warnings"] == []  # known: it was said when it was new
    first = api.post("/clickstream/session", json={**dull, "session_id": "dull-2"}).json()
    assert "2 of 2 results have neither meta.text nor meta.image" in first["warnings"][0]
    assert "'x'" in first["warnings"][0]
    assert counts(api) == {"results_without_content": 4}


def test_events_on_what_was_not_shown_are_said_and_counted(api: TestClient) -> None:
    """An event on an item that the session did not show is kept, said, and counted once."""
    hit, miss = event_json("hit", object_id="i-0"), event_json("miss", object_id="z-9")
    api.post("/clickstream/session", json=readable_json("s-1", events=[hit]))
    assert counts(api) == {}
    for _ in range(2):
        body = {"session_id": "s-1", "events": [miss, hit]}
        answer = api.post("/clickstream/session/events", json=body).json()
        (warning,) = answer["warnings"]
        assert "1 of 2 events are on items that the session did not show" in warning
        assert "'miss' on 'z-9'" in warning
    again = readable_json("s-1", events=[event_json("other", object_id="z-8")])
    assert "'z-8'" in api.post("/clickstream/session", json=again).json()["warnings"][0]
    assert counts(api) == {"events_not_shown": 2}


def test_a_known_session_with_other_content_is_said_and_counted(api: TestClient) -> None:
    """What differs is named, and what was stored first stays; a mere repeat is no news."""
    api.post("/clickstream/session", json=readable_json("s-1", search_meta={"a": 1}))
    same = readable_json("s-1", search_meta={"a": 1.0}, is_irrelevant=True, created_at=NOW - 5)
    assert api.post("/clickstream/session", json=same).json()["warnings"] == []
    other = readable_json("s-1", search_query="blue shoes", search_meta={"a": 2})
    (warning,) = api.post("/clickstream/session", json=other).json()["warnings"]
    assert "known with another search_query, search_meta" in warning
    assert counts(api) == {"changed_sessions": 1}


def test_what_comes_after_a_release_is_counted(api: TestClient, clock: Clock) -> None:
    """A late session is in the next batch; a late event stays with its session, and is said."""
    api.post("/clickstream/session", json=readable_json("s-1"))
    first = released(api)
    clock.now += timedelta(seconds=60)
    body = {"session_id": "s-1", "events": [event_json("e-1", object_id="i-0")]}
    for expected in (1, 0):
        answer = api.post("/clickstream/session/events", json=body).json()
        assert answer["new_events"] == expected
        assert len(answer["warnings"]) == expected
    late = readable_json("s-2", created_at=NOW - 60)
    timely = readable_json("s-3")
    for one in (late, timely):
        assert api.post("/clickstream/session", json=one).json()["warnings"] == []
    assert counts(api, batch_id=first) == {"late_events": 1}
    assert counts(api) == {"late_sessions": 1}
    assert [s["session_id"] for s in batch_sessions(api, released(api, "r-2"))["sessions"]] == [
        "s-2",
        "s-3",
    ]


def test_a_batch_is_looked_at_before_it_is_spent(api: TestClient) -> None:
    """The one now collecting, or a named one; 404 where there is none."""
    assert api.get("/clickstream/internal/batch").status_code == 404
    api.post("/clickstream/session", json=readable_json("s-1"))
    collecting = api.get("/clickstream/internal/batch").json()
    assert (collecting["status"], collecting["session_count"]) == ("collecting", 1)
    assert (collecting["created_at"], collecting["released_at"]) == (NOW, None)
    batch_id = released(api)
    assert batch_id == collecting["batch_id"]
    named = api.get("/clickstream/internal/batch", params={"batch_id": batch_id}).json()
    assert named == {**collecting, "status": "released", "released_at": NOW}
    assert api.get("/clickstream/internal/batch?batch_id=nowhere").status_code == 404


def test_a_bulk_mark_reaches_a_known_session(api: TestClient) -> None:
    """is_irrelevant in a bulk request marks a session that was posted before, and sticks."""
    for is_irrelevant in (False, True, False):
        item = session_json(is_irrelevant=is_irrelevant)
        api.post("/clickstream/sessions", json={"sessions": [item]})
    assert api.get("/clickstream/session?session_id=s-1").json()["is_irrelevant"] is True


def test_a_bulk_request_has_a_limit(api: TestClient, settings: Settings) -> None:
    """One session too many is refused with the limit, and nothing is stored."""
    limit = settings.max_sessions_per_request
    items = [session_json(f"s-{i}") for i in range(limit + 1)]
    refused = api.post("/clickstream/sessions", json={"sessions": items})
    assert refused.status_code == 422
    assert str(limit) in refused.json()["detail"]
    assert api.get("/clickstream/session?session_id=s-0").status_code == 404
    taken = api.post("/clickstream/sessions", json={"sessions": items[:limit]})
    assert {one["status"] for one in taken.json()["sessions"]} == {"created"}
    assert api.post("/clickstream/sessions", json={"sessions": []}).json() == {"sessions": []}


def test_releasing_again_gives_the_same_batch(api: TestClient) -> None:
    """A release_id names one release for ever; nothing collecting is 404."""
    body = {"release_id": "r-1"}
    nothing = api.post("/clickstream/internal/batch/release", json=body)
    assert nothing.status_code == 404
    assert nothing.json()["detail"]
    api.post("/clickstream/session", json=session_json())
    first = api.post("/clickstream/internal/batch/release", json=body).json()
    api.post("/clickstream/session", json=session_json("s-2"))
    again = api.post("/clickstream/internal/batch/release", json=body).json()
    assert first == again
    assert first["release_id"] == "r-1"
    assert first["released_at"] == NOW


def test_a_batch_is_read_in_pages(api: TestClient) -> None:
    """last_number leads from page to page; after the last page it is null."""
    api.post(
        "/clickstream/sessions",
        json={
            "sessions": [
                session_json(f"s-{i}", events=[event_json(f"e-{k}") for k in range(3)])
                for i in range(5)
            ]
        },
    )
    batch_id = released(api)
    numbers: list[int] = []
    after_number: int | None = 0
    while after_number is not None:
        page = batch_sessions(api, batch_id, after_number=after_number, limit=2, events_limit=1)
        assert page["batch_id"] == batch_id
        assert all(len(one["events"]) == 1 for one in page["sessions"])
        numbers += [one["session_number"] for one in page["sessions"]]
        after_number = page["last_number"]
    assert numbers == [1, 2, 3, 4, 5]
    no_events = batch_sessions(api, batch_id, events_limit=0)
    assert [one["events"] for one in no_events["sessions"]] == [[]] * 5
    assert len(batch_sessions(api, batch_id, limit=0)["sessions"]) == 5


def test_a_page_has_a_limit(api: TestClient, settings: Settings) -> None:
    """A larger page than allowed is refused with the limit."""
    response = api.get(
        "/clickstream/internal/batch/sessions",
        params={"batch_id": "b", "limit": settings.max_page_size + 1},
    )
    assert response.status_code == 422
    assert str(settings.max_page_size) in response.json()["detail"]


def test_batches_are_listed(api: TestClient) -> None:
    """Newest first, with what was noticed of each; by pages."""
    assert api.get("/clickstream/batches").json() == []
    first, *_ = [post_and_release(api, number) for number in range(3)]
    api.post("/clickstream/session", json=session_json("s-9"))
    found = api.get("/clickstream/batches").json()
    assert [batch["status"] for batch in found] == ["collecting"] + ["released"] * 3
    assert found[-1] == {
        "batch_id": first,
        "status": "released",
        "created_at": NOW,
        "released_at": NOW,
        "session_count": 1,
        "counts": {**dict.fromkeys(found[0]["counts"], 0), "results_without_content": 1},
    }
    assert api.get("/clickstream/batches", params={"skip": 1, "limit": 2}).json() == found[1:3]
    refused = api.get("/clickstream/batches", params={"limit": 51})
    assert (refused.status_code, "ES_MAX_PAGE_SIZE" in refused.json()["detail"]) == (422, True)


def test_an_export_can_be_posted_again(api: TestClient, settings: Settings) -> None:
    """A line per session, in order, with all that was posted, more of them than a page has; what
    another project is given is the same session there."""
    posted = [
        session_json(
            f"s-{number}",
            user_id="u-1",
            created_at=NOW - 60.125,
            events=[event_json(f"e-{n}", created_at=NOW) for n in range(number % 5)],
            is_irrelevant=number % 2 == 1,
        )
        for number in range(120)
    ]
    for session in posted:
        assert api.post("/clickstream/session", json=session).status_code == 200
    batch_id = api.get("/clickstream/internal/batch").json()["batch_id"]
    answer = api.get(f"/clickstream/batch/{batch_id}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = answer.text.splitlines()
    assert released(api) == batch_id
    assert api.get(f"/clickstream/batch/{batch_id}/export").text == answer.text
    with TestClient(
        create_app(Store(MemoryDocuments()), settings, Clock()), base_url="http://localhost/api/v1"
    ) as other:
        headers = {"Content-Type": "application/json"}
        for line in lines:
            assert (
                other.post("/clickstream/session", content=line, headers=headers).json()["status"]
                == "created"
            )
        for session in posted:
            params = {"session_id": session["session_id"]}
            read = other.get("/clickstream/session", params=params).json()
            assert read == api.get("/clickstream/session", params=params).json()
    assert api.get("/clickstream/batch/nowhere/export").status_code == 404


def test_an_export_of_what_is_deleted_meanwhile_breaks_off(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not end as if it were whole."""
    first, _ = (post_and_release(api, number) for number in range(2))
    monkeypatch.setattr(store.clickstream, "read", lambda *_: store.clickstream.delete_older(1)[1:])
    with pytest.raises(RuntimeError, match="response already started") as broken:
        api.get(f"/clickstream/batch/{first}/export")
    assert isinstance(broken.value.__cause__, NotFound)


def post_and_release(api: TestClient, number: int) -> str:
    api.post("/clickstream/session", json=session_json(f"s-{number}"))
    return released(api, f"r-{number}")


def test_a_batch_is_reported_on(api: TestClient) -> None:
    """Of a batch that collects as of one that is released; items are contents of those that name
    them."""
    api.put("/items", json={"items": [{"object_id": "shoe-2", "text": "Trail"}]})
    click = event_json("e-1", event_type="swipe")
    api.post("/clickstream/session", json=session_json("s-1", events=[click]))
    batch_id = api.get("/clickstream/internal/batch").json()["batch_id"]
    collecting = api.get(f"/clickstream/batch/{batch_id}/report").json()
    assert (collecting["sessions"], collecting["clicked_sessions"]) == (1, 1)
    assert (collecting["results"], collecting["results_without_content"]) == (2, 0)
    assert collecting["positions"] == [{"shown": 1, "clicked": 1}, {"shown": 1, "clicked": 0}]
    assert any("event_weights" in warning for warning in collecting["warnings"])
    api.post("/clickstream/internal/batch/release", json={"release_id": "r"})
    assert api.get(f"/clickstream/batch/{batch_id}/report").json() == collecting
