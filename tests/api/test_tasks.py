import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from embedding_studio.errors import NotFound
from embedding_studio.labels import Label
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import (
    Promotion,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.tracking.reader import experiment_url
from tests.api.samples import (
    METHOD,
    START,
    Clock,
    claim,
    event_json,
    only_task,
    record_worker,
    session_json,
)
from tests.api.test_models import register

TASK = "/fine-tuning/task"


@pytest.fixture
def collecting(api: TestClient) -> None:
    """One session waits in the batch now collecting."""
    api.post("/clickstream/session", json=session_json())


def release(api: TestClient, release_id: str = "r-1") -> str:
    answer = api.post("/clickstream/internal/batch/release", json={"release_id": release_id})
    batch_id: str = answer.json()["batch_id"]
    return batch_id


def create(api: TestClient, **body: Any) -> Any:
    response = api.post(TASK, json={"fine_tuning_method": METHOD, **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.usefixtures("collecting")
def test_a_task_names_the_model_that_it_goes_on_with(api: TestClient, store: Store) -> None:
    """The name is kept; one that is another method's, or no name, is refused."""
    assert create(api, model_name="Boots", idempotency_key="a")["model_name"] == "Boots"
    assert "model_name" not in create(api, idempotency_key="b")
    store.models.update("Shoes", lambda model: replace(model, champion=1), "Another")
    refused = api.post(TASK, json={"fine_tuning_method": METHOD, "model_name": "Shoes"})
    assert refused.status_code == 409
    assert "'Shoes' are made by 'Another'" in refused.json()["detail"]
    record_worker(store, METHOD, "Another")
    refused = api.post(TASK, json={"fine_tuning_method": METHOD, "model_name": "Another"})
    assert refused.status_code == 409
    assert "which is another method" in refused.json()["detail"]
    for name in ("a/b", "", "a (b)", "champion@2"):
        wrong = api.post(TASK, json={"fine_tuning_method": METHOD, "model_name": name})
        assert wrong.status_code == 422, name


@pytest.mark.usefixtures("collecting")
def test_hyperparameters_are_values_or_lists_of_them(api: TestClient) -> None:
    """Whatever else they are is refused by name; what the method makes of them, its worker says."""
    wanted = {"epochs": 3, "rate": [1e-5, 1e-4], "kind": ["a", None, True]}
    made = create(api, parameters=wanted, seed=5)
    assert (made["parameters"], made["seed"]) == (wanted, 5)
    wrongs: list[dict[str, Any]] = [
        {"a": {}},
        {"a": []},
        {"a": [[1]]},
        {"a": 2**70},
        {"a": [1] * 101},
        {"": 1},
    ]
    for wrong in wrongs:
        body: dict[str, Any] = {"fine_tuning_method": METHOD, "parameters": wrong}
        assert api.post(TASK, json=body).status_code == 422, wrong
    for seed in (-1, 2**31, 1.5):
        body = {"fine_tuning_method": METHOD, "seed": seed}
        assert api.post(TASK, json=body).status_code == 422, seed


@pytest.mark.usefixtures("collecting")
def test_what_no_task_can_start_from_is_refused(
    api: TestClient, store: Store, tmp_path: Path
) -> None:
    """A version that there is not, a name that nobody has, a folder outside of the allowed roots;
    what only a worker can see is taken."""
    register(store, tmp_path)
    store.models.update(METHOD, lambda model: model.retired(["run-1"], 1, START))

    def status(reference: str) -> int:
        body = {"fine_tuning_method": METHOD, "model_name": "New", "initial_model": reference}
        return api.post(TASK, json=body, params={"dry_run": "true"}).status_code

    for reference in (METHOD, f"{METHOD}@champion", f"{METHOD}/2", "acme/e5-small"):
        assert status(reference) == 200, reference
    assert status(f"{METHOD}/1") == 409
    for reference in (f"{METHOD}/9", "Shoes", "Shoes@champion", "a/b/c", "../x", f"b:{METHOD}"):
        assert status(reference) == 404, reference
    assert status(str(tmp_path)) == 422


@pytest.mark.usefixtures("collecting")
def test_a_task_is_created_and_read_back(api: TestClient) -> None:
    """The answer carries the names that clients of the reference read; no model, no model link."""
    body: dict[str, Any] = {"metadata": {"who": "me"}, "idempotency_key": "k-1"}
    body["budget"] = {"max_trials": 3}
    body["search"] = {"pruner": "none"}
    body["event_weights"] = {"add to cart": 2, "click": 0.5}
    body |= {"promote": "never", "folds": 2}
    task = create(api, **body)
    assert task == {
        "id": task["id"],
        "fine_tuning_method": METHOD,
        "status": "pending",
        "created_at": "2026-01-31T12:00:00Z",
        "updated_at": "2026-01-31T12:00:00Z",
        "batch_id": None,
        "metadata": {"who": "me"},
        "idempotency_key": "k-1",
        "budget": {
            "max_trials": 3,
            "max_minutes": None,
            "max_trained_tokens": None,
            "max_minutes_per_trial": None,
        },
        "search": {"sampler": None, "pruner": "none"},
        "event_weights": {"add to cart": 2.0, "click": 0.5},
        "promote": "never",
        "folds": 2,
        "attempt": 0,
        "worker_id": None,
        "progress": None,
        "promotion": None,
        "error": None,
        "mlflow_url": None,
    }
    assert api.get(f"{TASK}/{task['id']}").json() == task
    assert datetime.fromisoformat(task["created_at"]) == START


@pytest.mark.usefixtures("collecting")
def test_a_running_task_shows_where_it_stands(
    api: TestClient, store: Store, settings: Settings
) -> None:
    """Progress, verdict, owner and the link for people appear as the worker writes them."""
    create(api)
    owner = claim(store)
    progress = TaskProgress(
        "search", "val_ndcg10", trial=2, max_trials=3, main_metric=float("nan"),
        trained_tokens=40_000, estimated_trained_tokens=90_000,
    )  # fmt: skip
    store.tasks.renew(owner, START, 60, progress)
    verdict = Promotion(True, "better", "ndcg10", 0.4, 0.5, 0.1, (0.05, 0.15), 700)
    store.tasks.record(owner, START, batch_id="b-1", experiment_id="7", promotion=verdict)
    task = api.get(f"{TASK}/{owner.task_id}").json()
    assert task["status"] == "processing"
    assert task["batch_id"] == "b-1"
    assert (task["attempt"], task["worker_id"]) == (1, "worker-1")
    assert (task["progress"]["trial"], task["progress"]["main_metric"]) == (2, None)
    assert task["progress"]["trained_tokens"] == 40_000
    assert task["progress"]["estimated_trained_tokens"] == 90_000
    assert task["promotion"]["delta_ci95"] == [0.05, 0.15]
    assert task["mlflow_url"] == experiment_url(settings.mlflow_public_url, "7")
    assert "best_model_url" not in task


@pytest.mark.usefixtures("collecting")
def test_one_key_posted_a_hundred_times_is_one_task(api: TestClient, store: Store) -> None:
    """A hundred concurrent posts of one idempotency key all get the same task."""
    body = {"fine_tuning_method": METHOD, "idempotency_key": "k-1"}
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: api.post(TASK, json=body), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["id"] for answer in answers} == {only_task(store).id}


@pytest.mark.usefixtures("collecting")
def test_a_uuid_is_one_key_however_it_is_spelt(api: TestClient, store: Store) -> None:
    """In hex, with hyphens or in capitals: the same task, whose key has hyphens."""
    uuid = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
    spellings = [uuid.hex.upper(), str(uuid), uuid.hex, str(uuid).upper(), f"urn:uuid:{uuid}"]
    tasks = [create(api, idempotency_key=spelling) for spelling in spellings]
    assert {task["id"] for task in tasks} == {only_task(store).id}
    assert tasks[0]["idempotency_key"] == str(uuid)


@pytest.mark.parametrize(
    "kept", ["0F8FAD5BD9CB469FA16570867728950E", "0F8fad5b-d9cb469fa16570867728950E"]
)
@pytest.mark.usefixtures("collecting")
def test_a_key_that_was_kept_as_posted_is_found(api: TestClient, store: Store, kept: str) -> None:
    """A task that an earlier version kept under another spelling of the key is that key's task."""
    task, _ = store.tasks.add(TaskRequest(METHOD, idempotency_key=kept), START)
    assert create(api, idempotency_key=kept)["id"] == task.id
    if kept.isupper():
        assert create(api, idempotency_key=str(UUID(kept)))["id"] == task.id


@pytest.mark.usefixtures("collecting")
def test_a_key_is_bound_to_its_body(api: TestClient, store: Store) -> None:
    """The same key with another body is 409 and names the key; nothing is added."""
    create(api, idempotency_key="k-1")
    other = {"fine_tuning_method": METHOD, "idempotency_key": "k-1", "metadata": {"n": 2}}
    response = api.post(TASK, json=other)
    assert response.status_code == 409
    assert "k-1" in response.json()["detail"]
    assert only_task(store).metadata is None


@pytest.mark.usefixtures("collecting")
def test_a_repost_finds_its_task_whatever_happened_since(api: TestClient, store: Store) -> None:
    """After the batch was released and the method's worker left, the key still gives its task."""
    first = create(api, idempotency_key="k-1")
    release(api)
    record_worker(store, "Another Method")
    assert create(api, idempotency_key="k-1")["id"] == first["id"]
    assert api.post(TASK, json={"fine_tuning_method": METHOD}).status_code == 422


@pytest.mark.usefixtures("collecting")
def test_without_a_key_each_post_is_a_task(api: TestClient, store: Store) -> None:
    """Two posts without a key are two requests."""
    assert create(api)["id"] != create(api)["id"]
    assert len(store.tasks.page()) == 2


def test_nothing_collecting_is_refused(api: TestClient, store: Store) -> None:
    """Without a batch to learn from the post is 409, before and after a release."""
    body = {"fine_tuning_method": METHOD}
    refused = api.post(TASK, json=body)
    assert refused.status_code == 409
    assert "collecting" in refused.json()["detail"]
    api.post("/clickstream/session", json=session_json())
    release(api)
    assert api.post(TASK, json=body).status_code == 409
    assert store.tasks.page() == []


@pytest.mark.usefixtures("collecting")
def test_a_named_batch_must_be_released(api: TestClient, store: Store) -> None:
    """An unknown batch is 404, a collecting one 409, a released one is taken."""
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    unknown = api.post(TASK, json={"fine_tuning_method": METHOD, "batch_id": "nowhere"})
    early = api.post(TASK, json={"fine_tuning_method": METHOD, "batch_id": collecting.batch_id})
    assert (unknown.status_code, early.status_code) == (404, 409)
    assert "nowhere" in unknown.json()["detail"]
    assert "release" in early.json()["detail"]
    batch_id = release(api)
    assert create(api, batch_id=batch_id)["batch_id"] == batch_id


def test_a_task_may_name_a_time_range(api: TestClient, clock: Clock) -> None:
    """By how long it has lasted, or by its bounds, in Unix seconds or ISO 8601; a released batch
    will do, and what is collecting, unless the range has ended."""
    nothing = api.post(TASK, json={"fine_tuning_method": METHOD, "last": "30d"})
    assert (nothing.status_code, "2026-01-01 12:00 UTC" in nothing.text) == (409, True)
    api.post("/clickstream/session", json=session_json())
    ended = {"fine_tuning_method": METHOD, "until": "2026-01-31T11:00:00Z"}
    refused = api.post(TASK, json=ended)
    assert (refused.status_code, "release" in refused.text) == (409, True)
    task = create(api, last="30d", idempotency_key="k")
    assert (task["last"], task["since"]) == ("30d", "2026-01-01T12:00:00Z")
    assert (task["batch_id"], "until" in task) == (None, False)
    clock.now += timedelta(hours=1)
    assert create(api, last="30d", idempotency_key="k") == task
    release(api)
    bounded = create(api, since=START.timestamp() - 0.0625, until="2026-01-31T13:00:00+01:00")
    assert "last" not in bounded
    assert bounded["since"] == "2026-01-31T11:59:59.938000Z"
    assert bounded["until"] == "2026-01-31T12:00:00Z"
    assert "since" not in create(api, until="2026-01-31T11:00:00Z")


def test_a_task_may_name_several_batches(api: TestClient) -> None:
    """Released ones, each once; the task's own is the last of them."""
    ids = []
    for number in range(2):
        api.post("/clickstream/session", json=session_json(f"s-{number}"))
        ids.append(release(api, f"r-{number}"))
    api.post("/clickstream/session", json=session_json("s-2"))
    collecting = api.get("/clickstream/internal/batch").json()["batch_id"]
    told = plan(api, batch_ids=[*ids, ids[0]])
    assert [one["batch_id"] for one in told["batches"]] == ids
    assert (told["releases"], told["report"]["sessions"]) == (None, 2)
    made = create(api, batch_ids=[*ids, ids[0]], idempotency_key="k")
    assert (made["batch_ids"], made["batch_id"]) == (ids, ids[1])
    assert create(api, batch_ids=ids, idempotency_key="k") == made
    assert "batch_ids" not in create(api, batch_ids=None)
    for fields, status, word in (
        ({"batch_ids": [ids[0], "x"]}, 404, "'x'"),
        ({"batch_ids": [ids[0], collecting]}, 409, "still collecting"),
        ({"batch_ids": ids, "batch_id": ids[0]}, 422, "both given"),
        ({"batch_ids": ids, "last": "30d"}, 422, "both given"),
        ({"batch_ids": ["x"] * 101}, 422, "100"),
    ):
        refused = api.post(TASK, json={"fine_tuning_method": METHOD, **fields})
        assert (refused.status_code, word in refused.text) == (status, True), refused.text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"last": "soon"}, "write 90d"),
        ({"last": "100000d"}, "5 characters"),
        ({"last": "1d", "since": 0}, "leave since and until out"),
        ({"since": 20, "until": 20}, "is not before until"),
        ({"since": "2026-01-31T12:00:00"}, "no time zone"),
        ({"since": -1}, "since"),
        ({"until": 1e18}, "until"),
        ({"until": "NaN"}, "until"),
        ({"last": "1d", "batch_id": "b"}, "a batch and a time range"),
    ],
)
def test_a_time_range_that_is_none_is_422(
    api: TestClient, store: Store, fields: dict[str, Any], told: str
) -> None:
    """With what to write; no task is made."""
    refused = api.post(TASK, json={"fine_tuning_method": METHOD, **fields})
    assert (refused.status_code, told in refused.text) == (422, True), refused.text
    assert store.tasks.page() == []


def plan(api: TestClient, **body: Any) -> Any:
    response = api.post(TASK, params={"dry_run": True}, json={"fine_tuning_method": METHOD, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_dry_run_creates_and_releases_nothing(
    api: TestClient, store: Store, clock: Clock
) -> None:
    """It tells the batches of the task, which of them it would release, what is in them by the
    task's weights, how often would be trained, and whether there is enough."""
    for day in range(2):
        clock.now = START + timedelta(days=day)
        events = [{"event_id": "e", "object_id": "shoe-1", "event_type": "like"}]
        api.post("/clickstream/session", json=session_json(f"s-{day}", events=events))
        if day == 0:
            released = release(api)
    collecting = api.get("/clickstream/internal/batch").json()["batch_id"]

    told = plan(api, budget={"max_trials": 4}, folds=3)
    assert [batch["batch_id"] for batch in told["batches"]] == [collecting]
    assert (told["releases"], told["since"], told["until"]) == (collecting, None, None)
    assert (told["budget"]["max_trials"], told["folds"], told["trainings"]) == (4, 3, 7)
    assert told["enough"] == "no"
    assert told["verdict"].startswith("1 distinct queries")
    assert (told["report"]["sessions"], told["report"]["clicked_sessions"]) == (1, 1)

    told = plan(api, batch_id=released, event_weights={"like": 0}, folds=1)
    assert [batch["batch_id"] for batch in told["batches"]] == [released]
    assert (told["releases"], told["trainings"]) == (None, None)
    assert (told["report"]["sessions"], told["report"]["clicked_sessions"]) == (1, 0)

    told = plan(api, last="30d")
    assert [batch["batch_id"] for batch in told["batches"]] == [released, collecting]
    assert (told["releases"], told["since"]) == (collecting, "2026-01-02T12:00:00Z")
    assert told["report"]["sessions"] == 2
    told = plan(api, until=(START + timedelta(hours=1)).isoformat())
    assert [batch["batch_id"] for batch in told["batches"]] == [released]
    assert (told["releases"], told["report"]["sessions"]) == (None, 1)
    assert plan(api, last="12h")["report"]["sessions"] == 1

    assert store.tasks.page() == []
    assert api.get("/clickstream/internal/batch").json()["batch_id"] == collecting


def test_a_plan_has_an_estimate(api: TestClient, store: Store) -> None:
    """It is told by the last task of the method that was done, by the ratio of sessions; without
    one, and where either side's sessions or trainings are not known, nothing is made up."""
    api.post("/clickstream/session", json=session_json("s-1"))
    batch_id = release(api)
    assert plan(api, batch_id=batch_id)["estimate"] is None
    task = api.post(TASK, json={"fine_tuning_method": METHOD, "batch_id": batch_id}).json()
    owner = claim(store)
    for seconds in (60.0, 180.0):
        event = TaskEvent(TaskEventKind.TRIAL_FINISHED, START, "", {"seconds": seconds})
        store.tasks.record(owner, START, event=event)
    progress = TaskProgress("search", finished_trials=2, pruned_trials=2, trained_tokens=8000)
    store.tasks.renew(owner, START, 60, progress)
    assert plan(api, batch_id=batch_id)["estimate"] is None
    store.tasks.finish(owner, START, TaskStatus.DONE)
    for n in range(3):
        api.post("/clickstream/session", json=session_json(f"t-{n}"))
    told = plan(api, batch_id=release(api, "r-2"), budget={"max_trials": 4}, folds=3)
    assert told["estimate"] == {
        "task_id": task["id"], "trials": 2, "seconds_per_trial": 120.0, "tokens_per_trial": 2000,
        "sessions": 1, "minutes": 42.0, "trained_tokens": 42000,
    }  # fmt: skip
    told = plan(api, batch_id=batch_id)["estimate"]
    assert (told["seconds_per_trial"], told["minutes"], told["trained_tokens"]) == (120, None, None)


def test_a_method_that_takes_no_labels(api: TestClient, store: Store) -> None:
    """Labels are refused with the task where all workers that carry the method say so; where one
    is of a version that takes them, or says nothing, the one that takes the task judges."""
    store.labels.put("a", [Label("query", "shoe-1", 1)], START)
    record_worker(store, without_labels=(METHOD,))
    for name in ("labels_id", "judge_labels_id"):
        refused = api.post(TASK, json={"fine_tuning_method": METHOD, name: "a"})
        assert (refused.status_code, "takes no labels" in refused.json()["detail"]) == (409, True)
    schedule = {"fine_tuning_method": METHOD, "interval_seconds": 60, "judge_labels_id": "a"}
    told = api.post("/fine-tuning/schedule", json=schedule)
    assert told.status_code == 409, told.text
    assert store.tasks.page() == []
    record_worker(store, name="worker-2")
    task = api.post(TASK, json={"fine_tuning_method": METHOD, "labels_id": "a"})
    assert task.status_code == 200, task.text


def test_a_task_may_learn_from_labels_alone(api: TestClient, store: Store) -> None:
    """Nothing needs to be collecting; a dry run tells what the sets have, and too few queries."""
    assert api.post(TASK, json={"fine_tuning_method": METHOD, "labels_id": "a"}).status_code == 404
    labels = [Label(f"query {n}", "shoe-1", n % 2) for n in range(140)]
    store.labels.put("a", labels, START)
    store.labels.put("few", labels[:8], START)
    told = plan(api, labels_id="a", judge_labels_id="few")
    assert (told["batches"], told["releases"], told["report"]) == ([], None, None)
    assert (told["labels"]["labels"], told["labels"]["relevant_queries"]) == (140, 70)
    assert (told["judge_labels"]["queries"], told["enough"]) == (8, "no")
    assert told["label_conflicts"] == {"pairs": 0, "examples": []}
    store.labels.put("odd", [Label("query 1", "shoe-1", 0), Label("query 3", "shoe-1", 1)], START)
    odd = plan(api, labels_id="a", judge_labels_id="odd")
    assert odd["label_conflicts"] == {"pairs": 1, "examples": [["query 1", "shoe-1"]]}
    assert plan(api, labels_id="a", judge_labels_id="a")["label_conflicts"] is None
    assert told["verdict"].startswith("4 queries of the labels that judge")
    assert plan(api, labels_id="a")["enough"] == "yes"
    assert plan(api, labels_id="few")["verdict"].startswith("4 distinct queries have a relevant")
    made = create(api, labels_id="a", judge_labels_id="few")
    assert (made["labels_id"], made["judge_labels_id"]) == ("a", "few")
    assert store.tasks.get(made["id"]).is_without_sessions
    store.labels.put("golden", labels, START, is_golden=True)
    golden = api.post(TASK, json={"fine_tuning_method": METHOD, "labels_id": "golden"})
    assert (golden.status_code, "are golden" in golden.json()["detail"]) == (409, True)
    assert plan(api, labels_id="a", judge_labels_id="golden")["enough"] == "yes"
    unknown = api.post(TASK, json={"fine_tuning_method": METHOD, "judge_labels_id": "x"})
    assert (unknown.status_code, "'x'" in unknown.json()["detail"]) == (404, True)


def test_labels_stay_until_the_task_has_ended(api: TestClient, store: Store) -> None:
    """What it learns from, and what judges it."""
    for name in ("a", "b"):
        store.labels.put(name, [Label("q", "shoe-1", 1)], START)
    made = create(api, labels_id="a", judge_labels_id="b")
    for name in ("a", "b"):
        refused = api.delete(f"/labels/{name}")
        assert (refused.status_code, made["id"] in refused.json()["detail"]) == (409, True)
    api.put(f"{TASK}/{made['id']}/cancel")
    assert api.delete("/labels/a").status_code == 204


def test_labels_stand_beside_a_time_range(api: TestClient, store: Store) -> None:
    """Then there have to be sessions as well, and both are told."""
    store.labels.put("a", [Label("q", "shoe-1", 1)], START)
    body = {"fine_tuning_method": METHOD, "labels_id": "a", "last": "1d"}
    assert api.post(TASK, json=body).status_code == 409
    api.post("/clickstream/session", json=session_json("s-1", events=[event_json()]))
    told = plan(api, labels_id="a", last="1d")
    assert (told["report"]["sessions"], told["labels"]["labels"]) == (1, 1)
    assert told["verdict"].startswith("1 distinct queries have a result that was clicked, and 1 ")


@pytest.mark.usefixtures("collecting")
def test_a_dry_run_is_refused_as_the_task_would_be(
    api: TestClient, store: Store, settings: Settings
) -> None:
    """In the same words; the task of its key is its answer, as it would be the task's."""
    made = create(api, idempotency_key="k")
    assert plan(api, idempotency_key="k") == made
    wrong: list[dict[str, Any]] = [
        {"idempotency_key": "k", "folds": 2},
        {"batch_id": "unknown"},
        {"batch_id": api.get("/clickstream/internal/batch").json()["batch_id"]},
        {"last": "1d", "batch_id": "b"},
        {"budget": {"max_trials": settings.max_trials_per_task + 1}},
        {"budget": {"max_trials": 0}},
        {"webhook_url": "https://shop.example/hook"},
        {"last": "soon"},
        {"labels_id": "unknown"},
    ]
    for fields in wrong:
        body = {"fine_tuning_method": METHOD, **fields}
        dry, real = (api.post(TASK, params={"dry_run": dry}, json=body) for dry in (True, False))
        assert real.is_client_error, fields
        assert (dry.status_code, dry.json()) == (real.status_code, real.json())
    for n in range(settings.max_pending_tasks - 1):
        store.tasks.add(TaskRequest(METHOD, idempotency_key=f"k-{n}"), START)
    full = api.post(TASK, params={"dry_run": True}, json={"fine_tuning_method": METHOD})
    assert (full.status_code, "ES_MAX_PENDING_TASKS" in full.text) == (409, True)


@pytest.mark.usefixtures("collecting")
def test_an_unknown_method_is_refused_with_the_known(
    api: TestClient, store: Store, clock: Clock
) -> None:
    """Accepted while no worker has told its methods; then refused at once, naming them."""
    create(api, fine_tuning_method="Nobody's Method")
    record_worker(store, "Method A", "Method B")
    clock.now += timedelta(days=1)
    response = api.post(TASK, json={"fine_tuning_method": "Nobody's Method"})
    assert response.status_code == 422
    for name in ("Nobody's Method", "Method A", "Method B"):
        assert name in response.json()["detail"]
    create(api, fine_tuning_method="Method B")


@pytest.mark.usefixtures("collecting")
@pytest.mark.parametrize(
    "fields",
    [
        {"fine_tuning_method": ""},
        {"batch_id": ""},
        {"idempotency_key": "k" * 257},
        {"metadata": "text"},
        {"budget": {"max_trials": 0}},
        {"budget": {"max_minutes": 0}},
        {"budget": {"max_minutes": "inf"}},
        {"budget": {"max_trained_tokens": 0}},
        {"budget": {"max_minutes_per_trial": 0}},
        {"search": {"sampler": "annealing"}},
        {"event_weights": {"buy": -1}},
        {"promote": "always"},
        {"folds": 0},
        {"folds": 11},
        {"event_weights": {"buy": "nan"}},
        {"event_weights": {"buy": 101}},
        {"event_weights": {"": 1}},
        {"event_weights": {"add_to_cart": 1, "addToCart": 2}},
        {"budget": {"max_trials": True}},
        {"budget": {"max_trails": 3}},
        {"budgt": {"max_trials": 3}},
    ],
)
def test_bad_task_fields_are_422(api: TestClient, store: Store, fields: dict[str, Any]) -> None:
    """A field out of range is refused, naming it, and adds nothing."""
    response = api.post(TASK, json={"fine_tuning_method": METHOD, **fields})
    assert response.status_code == 422
    assert next(iter(fields)) in response.json()["detail"][0]["loc"]
    assert store.tasks.page() == []


@pytest.mark.usefixtures("collecting")
def test_tasks_are_listed_newest_first(api: TestClient, clock: Clock) -> None:
    """skip and offset are one thing; status filters; limit is bounded."""
    ids = []
    for _ in range(4):
        clock.now += timedelta(seconds=1)
        ids.append(create(api)["id"])
    api.put(f"{TASK}/{ids[0]}/cancel")

    def listed(**params: str | int) -> list[str]:
        return [task["id"] for task in api.get(TASK, params=params).json()]

    assert listed() == ids[::-1]
    assert listed(skip=1, limit=2) == listed(offset=1, limit=2) == [ids[2], ids[1]]
    assert listed(limit=0) == ids[::-1]
    assert listed(status="canceled") == [ids[0]]
    assert listed(status="done") == []


@pytest.mark.parametrize(
    "query",
    ["limit=51", "limit=-1", "skip=-1", "skip=1&offset=2", "status=asleep", f"skip={2**63}"],
)
def test_bad_list_parameters_are_422(api: TestClient, query: str) -> None:
    """Parameters that make no sense are refused, not clamped."""
    assert api.get(f"{TASK}?{query}").status_code == 422


@pytest.mark.usefixtures("collecting")
def test_cancel_and_restart(api: TestClient, store: Store) -> None:
    """Cancel sticks and repeats, restart makes it pending again, a finished task refuses both."""
    task_url = f"{TASK}/{create(api)['id']}"
    for _ in range(2):
        assert api.put(f"{task_url}/cancel").json()["status"] == "canceled"
    assert api.get(task_url).json()["status"] == "canceled"
    assert api.put(f"{task_url}/restart").json()["status"] == "pending"
    store.tasks.finish(claim(store), START, TaskStatus.DONE)
    for action in ("cancel", "restart", "stop"):
        refused = api.put(f"{task_url}/{action}")
        assert refused.status_code == 409
        assert "done" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/model"),
        ("GET", "/events"),
        ("PUT", "/cancel"),
        ("PUT", "/restart"),
        ("PUT", "/stop"),
    ],
)
def test_an_unknown_task_is_404(api: TestClient, method: str, path: str) -> None:
    """Every route of a task names the id that nobody knows."""
    response = api.request(method, f"{TASK}/no-such-task{path}")
    assert response.status_code == 404
    assert "no-such-task" in response.json()["detail"]


@pytest.mark.usefixtures("collecting")
def test_stop_answers_at_once_and_repeats(api: TestClient, store: Store) -> None:
    """A task at work is stopping, however often it is asked; one that waits has nothing to keep."""
    task_url = f"{TASK}/{create(api)['id']}"
    refused = api.put(f"{task_url}/stop")
    assert refused.status_code == 409
    assert "cancel it" in refused.json()["detail"]
    owner = claim(store)
    for _ in range(2):
        assert api.put(f"{task_url}/stop").json()["status"] == "stopping"
    store.tasks.finish(owner, START, TaskStatus.DONE)
    assert api.put(f"{task_url}/stop").json()["status"] == "stopped"
    assert api.put(f"{task_url}/restart?fresh=true").json()["status"] == "pending"
    assert store.tasks.get(owner.task_id).fresh_starts == 1


@pytest.mark.usefixtures("collecting")
def test_a_history_is_paged(api: TestClient, store: Store) -> None:
    """Events come oldest first; a page's last number leads to the next, null ends it."""
    url = f"{TASK}/{create(api)['id']}/events"
    owner = claim(store)
    store.tasks.finish(owner, START, TaskStatus.ERROR, "no data")
    first = api.get(url, params={"limit": 2}).json()
    assert [event["kind"] for event in first["events"]] == ["created", "claimed"]
    assert first["events"][1]["data"] == {"attempt": 1, "worker_id": "worker-1"}
    second = api.get(url, params={"after_number": first["last_number"]}).json()
    assert [(event["number"], event["detail"]) for event in second["events"]] == [(3, "no data")]
    assert api.get(url, params={"after_number": 3}).json()["last_number"] is None


@pytest.mark.usefixtures("collecting")
def test_a_history_is_followed_until_the_task_ends(api: TestClient, store: Store) -> None:
    """The stream sends what was, then what comes, and ends; a client that connects again behind
    the last event is told that nothing more will come."""
    url = f"{TASK}/{create(api)['id']}/events"
    owner = claim(store)
    threading.Timer(0.2, store.tasks.finish, (owner, START, TaskStatus.DONE)).start()
    stream = api.get(url, headers={"Accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert re.findall("^(?:event|id): (.*)$", stream.text, re.M) == [
        "created", "1", "claimed", "2", "done", "3",
    ]  # fmt: skip
    assert json.loads(re.findall("^data: (.*)$", stream.text, re.M)[-1])["kind"] == "done"
    again = {"Accept": "text/event-stream", "Last-Event-ID": "2"}
    assert re.findall("^event: (.*)$", api.get(url, headers=again).text, re.M) == ["done"]
    again["Last-Event-ID"] = "3"
    assert api.get(url, headers=again).status_code == 204


def test_the_store_agrees_on_what_is_unknown(store: Store) -> None:
    """A key that was never posted finds nothing; an unknown id raises."""
    assert store.tasks.find("k-1") is None
    with pytest.raises(NotFound):
        store.tasks.get("k-1")


@pytest.mark.usefixtures("collecting")
def test_a_concurrent_post_of_the_key_may_take_the_batch(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that finds the batch gone because its twin's task has it gets that task, not 409."""

    def twin_was_faster(_: object) -> None:
        store.tasks.add(TaskRequest(METHOD, idempotency_key="k-1"), START)
        store.clickstream.release("twin", START)

    monkeypatch.setattr(type(store.clickstream), "collecting_batch", twin_was_faster)
    assert create(api, idempotency_key="k-1")["id"] == only_task(store).id
