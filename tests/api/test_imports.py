"""Files over HTTP: read while they come, and nothing kept of them."""

import gzip
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api import imports
from embedding_studio.api.app import create_app
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.api.samples import START, Clock, session_json
from tests.imports.samples import HOW, NASTY, ROWS, jsonl, spoil

IMPORTS = "/imports"
NOW = START.timestamp()

FORMATS = dict.fromkeys(("ubi", "ga4", "events"), "impressions")
TABLE = """search_id,query,item,position,clicked,time
a,shoes,i1,1,0,2024-05-01T10:00:00Z
a,shoes,i2,2,1,2024-05-01T10:00:00Z
b,coat,i1,1,0,2024-05-01
b,coat,i3,2,1,2024-05-02T10:00:00+02:00
"""


def import_(api: TestClient, content: Any, **params: Any) -> Any:
    """Import rows of JSON lines, or a file as it is, and return the report."""
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    response = api.post(IMPORTS, params={"import_id": "imp", **params}, content=content)
    assert response.status_code == 200, response.text
    return response.json()


def sessions(count: int) -> list[Any]:
    return [session_json(f"s-{i}", created_at=1e9 + i) for i in range(count)]


def test_sessions_of_any_age(api: TestClient, store: Store) -> None:
    """History is taken as it was made, with its marks and events; a row without an id has one by
    the import and the row."""
    event = {"event_id": "e", "object_id": "shoe-1", "created_at": "2001-09-09T01:46:50Z"}
    nameless = session_json(created_at=1e9, events=[event], is_irrelevant=True)
    del nameless["session_id"]
    report = import_(api, [*sessions(2), nameless])
    assert report["format"] == "sessions"
    assert (report["rows"], report["sessions"], report["created"]) == (3, 3, 3)
    assert report["refused"] == 0
    stored = store.clickstream.get("imp-3")
    assert stored.created_at == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert stored.is_irrelevant
    assert len(stored.events) == 1


def test_a_table_of_impressions(api: TestClient, store: Store) -> None:
    """Its rows become sessions; a wrong one is told by row and column, and left out."""
    report = import_(api, gzip.compress(TABLE.encode()))
    assert report["format"] == "impressions"
    assert (report["rows"], report["created"], report["refused"]) == (4, 2, 1)
    [note] = report["refusals"]
    assert (note["row"], note["column"]) == (4, "time")
    assert "no time zone" in note["reason"]
    session = store.clickstream.get("a")
    assert [one.object_id for one in session.search_results] == ["i1", "i2"]
    assert session.clicked_ids() == {"i2"}
    assert report["warned"] == 2  # neither has content
    assert report["warnings"][0]["row"] == 2


def test_an_import_that_is_repeated_adds_nothing(api: TestClient) -> None:
    """The same file with the same import_id finds all of it there, however far it came before."""
    nameless = [{k: v for k, v in one.items() if k != "session_id"} for one in sessions(30)]
    assert import_(api, nameless[:20])["created"] == 20
    report = import_(api, nameless)
    assert (report["created"], report["existing"]) == (10, 20)
    assert import_(api, TABLE)["new_events"] == 2
    again = import_(api, TABLE)
    assert (again["created"], again["existing"], again["new_events"]) == (0, 2, 0)
    assert api.get("/clickstream/internal/batch").json()["session_count"] == 32


def test_a_dry_run_keeps_nothing(api: TestClient) -> None:
    """It judges as the import would."""
    report = import_(api, TABLE, dry_run=True)
    assert (report["sessions"], report["created"], report["refused"]) == (2, 0, 1)
    assert api.get("/clickstream/internal/batch").status_code == 404


@pytest.mark.parametrize(
    ("wrong", "column", "word"),
    [
        ({"search_query": 7}, "search_query", "string"),
        ({"search_quer": "x"}, "search_quer", "Did you mean search_query"),
        ({"search_results": [{"object_id": "a", "rank": float("nan")}]}, None, "finite"),
        ({"search_results": [{"object_id": "a", "meta": {"x": float("inf")}}]}, None, "meta"),
        ({"created_at": NOW + 3600}, "created_at", "ahead"),
        ({"created_at": NOW * 1000}, "created_at", "not milliseconds"),
        ({"created_at": -1e18}, "created_at", "before 1970"),
        ({"created_at": "2024-01-01T00:00:00"}, "created_at", "no time zone"),
        ({"session_id": "a\nb"}, "session_id", "control character"),
    ],
)
def test_a_wrong_session_costs_only_itself(
    api: TestClient, wrong: Any, column: str | None, word: str
) -> None:
    """It is refused in the words of a post, with its row and column."""
    report = import_(api, [*sessions(1), {**session_json("s-bad"), **wrong}, *sessions(2)[1:]])
    assert (report["rows"], report["created"], report["refused"]) == (3, 2, 1)
    [note] = report["refusals"]
    assert note["row"] == 2
    assert column is None or note["column"] == column
    assert word in note["reason"]


def test_a_file_that_breaks_off(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before is kept, but no search of which rows may be missing; the answer says how
    far it came."""
    monkeypatch.setattr(imports, "GROUP_ROWS", 10)
    lines = "\n".join(map(json.dumps, sessions(3000))).encode()
    cut = gzip.compress(lines)[:-100]
    response = api.post(IMPORTS, params={"import_id": "imp"}, content=cut)
    assert response.status_code == 422
    assert "no whole gzip file" in response.json()["detail"]
    there = api.get("/clickstream/internal/batch").json()["session_count"]
    assert f"{there} sessions are new" in response.json()["detail"]
    assert 0 < there < 3000
    assert import_(api, lines)["existing"] == there
    wide = "x" * 5_000_000
    table = f"search_id,query,item\nt1,q,i1\nt2,q,i1\nt2,q,{wide}\n"
    response = api.post(IMPORTS, params={"import_id": "imp"}, content=table)
    assert "row 4: it is larger than 4 MB" in response.json()["detail"]
    assert api.get("/clickstream/session?session_id=t1").status_code == 404


def test_what_is_told_is_bounded(api: TestClient) -> None:
    """Neither long names and reasons nor many of them make a long answer."""
    wrong = session_json("s", **{"x" * 100_000: 1})
    report = import_(api, [*sessions(1), *[wrong] * 40])
    assert report["refused"] == 40
    assert all(len(one["column"]) == len(one["reason"]) == 500 for one in report["refusals"])
    many = import_(api, b'{"search_query": "q", "search_results": 1}\n' * 11_000)
    assert (many["refused"], len(many["refusals"])) == (11_000, 10_000)
    columns = ",".join(f"{'x' * 1000}{i}" for i in range(1000))
    response = api.post(IMPORTS, params={"import_id": "x"}, content=f"{columns}\n{columns}\n")
    assert response.status_code == 422
    assert len(response.text) < 10_000


def test_items_of_a_table(api: TestClient, store: Store) -> None:
    """They are put in place of what was known; what the database cannot hold costs only itself."""
    table = "id,title\n7,Parka\n8,\n9,Coat\n"
    report = import_(api, table, format="items")
    assert (report["format"], report["rows"], report["items"]) == ("items", 3, 2)
    assert (report["created"], report["refused"]) == (2, 1)
    assert import_(api, table.replace("Coat", "Rain coat"))["existing"] == 2
    assert store.items.get("9").content()["text"] == "Rain coat"
    assert import_(api, "id,title\n5,x\n", dry_run=True)["items"] == 1
    assert store.items.count() == 2


def test_pairs_become_items_and_labels(api: TestClient, store: Store) -> None:
    """They join the set that is named; the same file again changes nothing; a wrong row costs only
    itself."""
    rows = [
        {"prompt": "where is it", "completion": "on its way", "negatives": ["closed"]},
        {"prompt": "where is it", "completion": ""},
        {"prompt": "returns", "completion": "in a box", "score": 0.5},
    ]
    report = import_(api, rows, labels_id="faq")
    assert (report["format"], report["rows"], report["refused"]) == ("pairs", 3, 1)
    assert (report["items"], report["labels"], report["created"]) == (3, 3, 3)
    told = {
        (label.query, store.items.get(label.object_id).text, label.grade)
        for label in store.labels.read("faq")
    }
    assert told == {
        ("where is it", "on its way", 1.0),
        ("where is it", "closed", 0.0),
        ("returns", "in a box", 0.5),
    }
    again = import_(api, rows, labels_id="faq")
    assert (again["created"], again["existing"]) == (0, 3)
    assert import_(api, rows, labels_id="other", dry_run=True)["labels"] == 3
    assert [one.labels_id for one in store.labels.sets()] == ["faq"]


def test_labelled_files(api: TestClient, store: Store) -> None:
    """Their names become items in the folder, and what is not best is warned of."""
    file = json.dumps({"a.jpg": ["coat"], "../b.jpg": ["coat"], "c.txt": ["coat", "red"]}, indent=1)
    report = import_(api, file, labels_id="tags", files="s3://b/march/")
    assert (report["format"], report["labels"], report["refused"]) == ("labels", 3, 1)
    assert report["warnings"][0]["reason"] == "the file has 2 examples: 100 to 10,000 are best"
    assert store.items.get("a.jpg").image == "s3://b/march/a.jpg"
    assert store.items.get("c.txt").url == "s3://b/march/c.txt"
    assert store.labels.count("tags").queries == 2


def test_exported_labels_are_imported(api: TestClient) -> None:
    """What a set is written as is a file of judgements."""
    import_(api, [{"q": "x", "item": "i", "grade": 2}], labels_id="one")
    content = api.get("/labels/one/export").content
    report = import_(api, content, labels_id="two")
    assert (report["format"], report["created"]) == ("qrels", 1)


def test_events_of_known_sessions(api: TestClient, store: Store) -> None:
    """They are added, and only once; others are refused, with their row."""
    import_(api, sessions(1))
    event = {"query_id": "s-0", "action_name": "click", "timestamp": 1e9 + 9}
    event["event_attributes"] = {"object": {"object_id": "shoe-1"}}
    rows = [event, {**event, "query_id": "s-1"}, {**event, "timestamp": NOW + 3600}]
    report = import_(api, rows)
    assert (report["format"], report["rows"], report["new_events"]) == ("impressions", 3, 1)
    first, second = report["refusals"]
    assert (first["row"], second["row"], second["column"]) == (2, 3, "created_at")
    assert "no session 's-1' is known" in first["reason"]
    assert import_(api, rows)["new_events"] == 0
    assert store.clickstream.get("s-0").clicked_ids() == {"shoe-1"}


def test_an_exported_batch_is_imported(api: TestClient) -> None:
    """What a batch is written as is a file of sessions."""
    import_(api, sessions(3))
    batch_id = api.get("/clickstream/internal/batch").json()["batch_id"]
    report = import_(api, api.get(f"/clickstream/batch/{batch_id}/export").content)
    assert (report["existing"], report["refused"], report["format"]) == (3, 0, "sessions")


@pytest.mark.parametrize(
    ("params", "content", "word"),
    [
        ({}, "{}", "import_id"),
        ({"import_id": "a\nb"}, "{}", "control character"),
        ({"import_id": "x" * 65}, "{}", "64"),
        ({"import_id": "x", "format": "orders"}, "{}", "impressions"),
        ({"import_id": "x", "columns": "query"}, "{}", "no field=column"),
        ({"import_id": "x", "columns": "words=q"}, "{}", "none of messages, file"),
        ({"import_id": "x"}, "", "is empty"),
        ({"import_id": "x"}, "[]", "no rows"),
        ({"import_id": "x"}, '{"a": 1}', "neither sessions"),
        ({"import_id": "x"}, '{"input": "a", "output": "b"}', "labels_id"),
        ({"import_id": "x", "labels_id": "x"}, '{"q": "a", "item": "b"}', "make no labels"),
        ({"import_id": "x", "labels_id": "/"}, "{}", "pattern"),
        ({"import_id": "x", "files": "/x"}, '{"q": "a", "item": "b"}', "are those of labels"),
    ],
)
def test_what_cannot_be_imported(api: TestClient, params: Any, content: str, word: str) -> None:
    """A 422 says why."""
    response = api.post(IMPORTS, params=params, content=content)
    assert response.status_code == 422
    assert word in response.text


def test_a_file_is_read_where_it_lies(store: Store, settings: Settings, tmp_path: Path) -> None:
    """Below an allowed root, as if it was sent; what the API may not read is refused in the same
    words, whether it is there or not, and so is a body beside it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "log.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    (tmp_path / "cut.csv.gz").symlink_to(tmp_path / "in" / "log.csv.gz")
    allowed = settings.replaced(allowed_roots=str(tmp_path / "in"))
    with TestClient(create_app(store, allowed, Clock()), base_url="http://localhost/api/v1") as api:
        report = import_(api, None, url=f"file://{tmp_path}/in/log.csv.gz")
        assert (report["rows"], report["created"], report["refused"]) == (4, 2, 1)

        def refused(url: str, content: str = "") -> str:
            params = {"import_id": "imp", "url": url}
            response = api.post(IMPORTS, params=params, content=content)
            assert response.status_code == 422
            return str(response.json()["detail"])

        outside = [
            f"{tmp_path}/store.db",
            "/etc/passwd",
            f"{tmp_path}/in/../in/log.csv.gz",
            "s3://x/y",
        ]
        assert {refused(url) for url in outside} == {
            "url: it is not below one of ES_ALLOWED_ROOTS. Of 0 rows before, 0 sessions are new, 0 "
            "were known and 0 rows are refused; the import may be repeated with the same import_id"
        }
        assert "private network" in refused("http://127.0.0.1:1/log.csv")
        assert "No such file" in refused(f"{tmp_path}/in/nothing")
        assert "both given" in refused(f"{tmp_path}/in/log.csv.gz", "{}")


def test_a_body_may_be_of_any_size(api: TestClient) -> None:
    """Larger than another body may be, with its size declared or in chunks."""
    row = json.dumps(session_json(search_meta={"x": "y" * 30_000}))
    lines = [row.replace("s-1", f"s-{i}").encode() + b"\n" for i in range(800)]
    assert import_(api, iter(lines))["created"] == 800
    assert import_(api, b"".join(lines))["existing"] == 800


@pytest.mark.parametrize("name", ROWS)
def test_whatever_rows_have(api: TestClient, name: str) -> None:
    """An import ends with a report in which each row is taken or refused, or with a 422; nothing
    of a refused row is kept."""
    import_(api, [{**ROWS["sessions"], "session_id": "q"}])
    chance = random.Random(name)
    taken = 0
    for _ in range(25):
        rows = [dict(ROWS[name]) for _ in range(4)]
        for _ in range(chance.randint(1, 4)):
            value = chance.choice(NASTY)
            spoil(rows, chance.randrange(4), chance.choice(HOW), chance.randrange(99), value)
        params = {"import_id": "imp", "format": FORMATS.get(name, name)}
        if params["format"] in ("pairs", "chat", "qrels", "labels"):
            params["labels_id"] = "labels"
        response = api.post(IMPORTS, params=params, content=jsonl(rows))
        assert response.status_code in (200, 422)
        if response.status_code == 422:
            continue
        report = response.json()
        assert report["rows"] == 4
        assert report["refused"] == len(report["refusals"]) <= 4
        taken += 4 - report["refused"]
        if name in ("sessions", "items"):
            assert report[name] == 4 - report["refused"]
        if report["refused"] == 4:
            assert report["created"] == report["existing"] == report["new_events"] == 0
    assert taken > 0


def test_what_is_known_from_another_batch(api: TestClient) -> None:
    """It is not added to the one that is collecting."""
    import_(api, sessions(2))
    api.post("/clickstream/internal/batch/release", json={"release_id": "r"})
    report = import_(api, sessions(3))
    assert (report["created"], report["existing"]) == (1, 2)
    assert api.get("/clickstream/internal/batch").json()["session_count"] == 1


def test_imports_at_once(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project has two under way, and those above are told to come again."""
    monkeypatch.setattr(imports, "OF_A_PROJECT", 0)
    response = api.post(IMPORTS, params={"import_id": "x"}, content=TABLE)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "5"


def test_who_may_import(api: TestClient, store: Store) -> None:
    """A key with the scope ingest; another is refused before a byte is read."""
    texts = {}
    for scope in (Scope.INGEST, Scope.READ):
        key, texts[scope] = make_key("test", [scope], "default", START)
        store.keys.add(key)

    def ask(scope: Scope) -> int:
        headers = {"X-API-Key": texts[scope]}
        params = {"import_id": "x"}
        return api.post(IMPORTS, params=params, content=TABLE, headers=headers).status_code

    assert ask(Scope.INGEST) == 200
    assert ask(Scope.READ) == 403


def test_a_full_project(store: Store, settings: Any, clock: Any) -> None:
    """A 429 says how far the import came."""
    from embedding_studio.api.app import create_app

    app = create_app(store, settings.replaced(max_project_sessions=600), clock)
    with TestClient(app, base_url="http://localhost/api/v1") as api:
        lines = "\n".join(map(json.dumps, sessions(1200)))
        response = api.post(IMPORTS, params={"import_id": "imp"}, content=lines)
        assert response.status_code == 429
        assert "ES_MAX_PROJECT_SESSIONS" in response.json()["detail"]
        assert "500 sessions are new" in response.json()["detail"]
