"""Champions over HTTP: what is listed, what a person promotes, where a rollback leads, and what is
refused."""

import io
import shutil
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.models import ChampionMove, ModelVersion, MoveKind, Training
from embedding_studio.store import Store
from embedding_studio.tasks import (
    MetricChange,
    ModelFacts,
    Promotion,
    StoredModel,
    TaskRequest,
    TaskStatus,
)
from tests.api.samples import METHOD, START, claim, write_model

MODEL = f"/models/{METHOD}"
CHANGE = MetricChange("ndcg10", 0.4, 0.5, 0.1, (0.05, 0.15))
VERDICT = Promotion(True, "better", "ndcg10", 0.4, 0.5, 0.1, (0.05, 0.15), 700, (CHANGE,))


def register(store: Store, folder: Path, count: int = 3) -> None:
    """Register so many versions, each champion after the one before."""
    for number in range(1, count + 1):
        place = folder / f"model-{number}"
        model = StoredModel(f"run-{number}", str(place), write_model(place))
        verdict = VERDICT if number > 1 else None
        new = ModelVersion(number, model, START, f"task-{number}" if verdict else None, verdict)
        kind = MoveKind.PROMOTED if verdict else MoveKind.INITIAL
        move = ChampionMove(kind, START, number - 1 or None, number, f"task task-{number}", "")
        store.models.update(METHOD, lambda model, m=move, new=new: model.moved(m, new))  # type: ignore[misc]


@pytest.fixture
def three(store: Store, tmp_path: Path) -> None:
    register(store, tmp_path)


def roll_back(api: TestClient, **body: Any) -> Any:
    return api.post(f"{MODEL}/rollback", json=body)


@pytest.mark.usefixtures("three")
def test_versions_are_listed_newest_first(api: TestClient) -> None:
    """Each with its verdict and whether a rollback may name it, and the moves of the champion."""
    answer = api.get(MODEL).json()
    assert (answer["name"], answer["champion"], answer["previous_version"]) == (METHOD, 3, 2)
    assert answer["is_mirrored"] is False
    assert [one["version"] for one in answer["versions"]] == [3, 2, 1]
    newest, *_, first = answer["versions"]
    assert newest == {
        "version": 3,
        "state": "champion",
        "is_champion": True,
        "can_be_champion": False,
        "created_at": "2026-01-31T12:00:00Z",
        "run_id": "run-3",
        "task_id": "task-3",
        "promotion": {
            "promoted": True,
            "reason": "better",
            "metric_name": "ndcg10",
            "baseline": 0.4,
            "best": 0.5,
            "delta": 0.1,
            "delta_ci95": [0.05, 0.15],
            "test_queries": 700,
            "metrics": [
                {
                    "name": "ndcg10",
                    "before": 0.4,
                    "after": 0.5,
                    "delta": 0.1,
                    "delta_ci95": [0.05, 0.15],
                }
            ],
            "gained": [],
            "lost": [],
            "warnings": [],
            "folds": 1,
            "served_model": "trial",
            "sessions_needed": None,
            "judge_labels_id": None,
            "has_lists": False,
            "others": [],
        },
        "removed_at": None,
        "fine_tuning_method": METHOD,
        "warnings": [],
    }
    assert (first["can_be_champion"], first["promotion"], first["task_id"]) == (True, None, None)
    assert [move["kind"] for move in answer["moves"]] == ["promoted", "promoted", "initial"]


@pytest.mark.usefixtures("three")
def test_a_rollback_moves_the_champion_with_an_event(api: TestClient) -> None:
    """Without a version it leads back step by step; the history says who, why, from and to."""
    answer = roll_back(api, reason="fewer orders")
    assert answer.status_code == 200
    assert (answer.json()["champion"], answer.json()["previous_version"]) == (2, 1)
    assert answer.json()["moves"][0] == {
        "kind": "rolled_back",
        "at": "2026-01-31T12:00:00Z",
        "from_version": 3,
        "to_version": 2,
        "by": "somebody without a key",
        "why": "fewer orders",
    }
    assert roll_back(api).json()["champion"] == 1
    refused = roll_back(api)
    assert refused.status_code == 409
    assert "there is no previous version" in refused.json()["detail"]
    assert roll_back(api, version=3).json()["champion"] == 3
    assert api.get(MODEL).json()["champion"] == 3


@pytest.mark.usefixtures("three")
def test_a_repeated_rollback_changes_nothing(api: TestClient) -> None:
    """Asked for by its version, whatever was expected; an expectation that fails is 409."""
    first = roll_back(api, version=2, expected_champion=3).json()
    assert roll_back(api, version=2, expected_champion=3).json() == first
    late = roll_back(api, version=1, expected_champion=3)
    assert late.status_code == 409
    assert "is version 2 (rolled back by somebody without a key" in late.json()["detail"]
    assert len(first["moves"]) == 4


def test_what_nobody_registered_is_404(api: TestClient, store: Store, tmp_path: Path) -> None:
    """A method without a model, and a version that there is not, are named; so is what there is."""
    for refused in (api.get(MODEL), roll_back(api)):
        assert refused.status_code == 404
        assert METHOD in refused.json()["detail"]
    assert store.models.find(METHOD) is None
    register(store, tmp_path)
    refused = roll_back(api, version=9)
    assert refused.status_code == 404
    assert "no version 9: there are 1, 2, 3" in refused.json()["detail"]


@pytest.mark.usefixtures("three")
def test_a_version_without_files_is_409(api: TestClient, store: Store, tmp_path: Path) -> None:
    """Whether retention removed them or somebody else: the champion stays."""
    store.models.update(METHOD, lambda model: model.retired(["run-1"], 1, START))
    refused = roll_back(api, version=1)
    assert refused.status_code == 409
    assert "files of version 1" in refused.json()["detail"]
    assert "ES_KEEP_CHAMPIONS" in refused.json()["detail"]
    shutil.rmtree(tmp_path / "model-2")
    refused = roll_back(api, version=2)
    assert refused.status_code == 409
    assert "version 2 cannot be champion" in refused.json()["detail"]
    answer = api.get(MODEL).json()
    assert answer["champion"] == 3
    assert [one["can_be_champion"] for one in answer["versions"]] == [False, True, False]


@pytest.mark.parametrize(
    "fields", [{"version": 0}, {"version": "2"}, {"versoin": 2}, {"reason": "x" * 501}]
)
@pytest.mark.usefixtures("three")
def test_bad_rollbacks_are_422(api: TestClient, fields: dict[str, Any]) -> None:
    """A field out of range or unknown is refused, naming it; nothing moves."""
    refused = roll_back(api, **fields)
    assert refused.status_code == 422
    assert next(iter(fields)) in refused.json()["detail"][0]["loc"]
    assert api.get(MODEL).json()["champion"] == 3


REFUSED = Promotion(False, "may be chance", "ndcg10", 0.4, 0.41, 0.01, (-0.01, 0.03), 700)


def end_task(store: Store, folder: Path, run: str, end: TaskStatus = TaskStatus.DONE) -> str:
    """End a task with a model that was refused; return its id."""
    task, _ = store.tasks.add(TaskRequest(METHOD, idempotency_key=run), START)
    model = StoredModel(run, str(folder / run), write_model(folder / run))
    owner = claim(store)
    store.tasks.record(owner, START, experiment_id="7", best_model=model, promotion=REFUSED)
    store.tasks.finish(owner, START, end)
    return task.id


def promote(api: TestClient, task_id: str, **body: Any) -> Any:
    return api.post(f"{MODEL}/promote", json={"task_id": task_id, **body})


@pytest.mark.usefixtures("three")
def test_a_person_promotes_a_model_that_was_refused(
    api: TestClient, store: Store, tmp_path: Path
) -> None:
    """It is wanted, by whom and why, until a worker comes; asked again, nothing changes."""
    task_id = end_task(store, tmp_path, "run-4")
    answer = promote(api, task_id, reason="reads better")
    assert answer.status_code == 200
    found = answer.json()
    assert found["wanted"] == {
        "task_id": task_id,
        "run_id": "run-4",
        "by": "somebody without a key",
        "why": "reads better",
        "at": "2026-01-31T12:00:00Z",
    }
    assert (found["champion"], found["previous_version"], found["is_mirrored"]) == (3, 3, False)
    assert promote(api, task_id, reason="again").json() == found
    kept = store.models.find(METHOD)
    assert kept is not None
    assert kept.wanted is not None
    assert kept.wanted.promotion == REFUSED


@pytest.mark.usefixtures("three")
def test_a_former_champion_is_promoted_at_once(
    api: TestClient, store: Store, tmp_path: Path
) -> None:
    """It has its number in MLflow; promoted again, nothing changes."""
    task_id = end_task(store, tmp_path, "run-2")
    found = promote(api, task_id, reason="back").json()
    assert (found["champion"], found["wanted"]) == (2, None)
    assert found["moves"][0]["kind"] == "promoted_by_hand"
    assert found["moves"][0]["why"] == "back"
    assert promote(api, task_id).json() == found
    shutil.rmtree(tmp_path / "model-3")
    shutil.rmtree(tmp_path / "run-2")
    assert roll_back(api, version=3).status_code == 409
    assert promote(api, task_id).status_code == 200  # it is so already


@pytest.mark.usefixtures("three")
def test_a_rollback_ends_the_wait(api: TestClient, store: Store, tmp_path: Path) -> None:
    """Without a version, or with that of the champion, it ends it and nothing else."""
    task_id = end_task(store, tmp_path, "run-4")
    for body in ({}, {"version": 3}, {"version": 3, "expected_champion": 3}):
        promote(api, task_id)
        found = roll_back(api, reason="on second thoughts", **body).json()
        assert (found["champion"], found["wanted"]) == (3, None)
        assert found["moves"][0]["kind"] == "wish_ended"
        assert found["moves"][0]["why"].endswith("champion: on second thoughts")
    promote(api, task_id)
    found = roll_back(api, version=1).json()
    assert (found["champion"], found["wanted"]) == (1, None)


@pytest.mark.usefixtures("three")
def test_what_cannot_be_promoted_is_409(api: TestClient, store: Store, tmp_path: Path) -> None:
    """A task that has not ended, one without a model, files that are gone: nothing is wanted."""
    pending, _ = store.tasks.add(TaskRequest(METHOD, idempotency_key="pending"), START)

    def refusal(task_id: str) -> str:
        refused = promote(api, task_id)
        assert refused.status_code == 409
        detail: str = refused.json()["detail"]
        assert task_id in detail
        return detail

    assert "the task is pending" in refusal(pending.id)
    owner = claim(store)
    assert "the task is processing" in refusal(pending.id)
    store.tasks.finish(owner, START, TaskStatus.ERROR, "no data")
    assert "has no model, or no longer: it is error" in refusal(pending.id)
    canceled, _ = store.tasks.add(TaskRequest(METHOD, idempotency_key="canceled"), START)
    store.tasks.cancel(canceled.id, START)
    assert "the task is canceled" in refusal(canceled.id)
    gone = end_task(store, tmp_path, "run-4")
    shutil.rmtree(tmp_path / "run-4")
    assert "cannot be champion: the model's file" in refusal(gone)
    refused = end_task(store, tmp_path, "run-5")
    store.tasks.forget_iteration(refused, "7", START, "a newer one", is_whole=False)
    assert "has no model, or no longer: it is done" in refusal(refused)
    assert promote(api, "unknown").status_code == 404
    kept = store.models.find(METHOD)
    assert kept is not None
    assert kept.wanted is None


@pytest.mark.parametrize("end", [TaskStatus.STOPPED, TaskStatus.ERROR])
@pytest.mark.usefixtures("three")
def test_whatever_ended_with_a_model_may_be_promoted(
    api: TestClient, store: Store, tmp_path: Path, end: TaskStatus
) -> None:
    """Be it stopped, or ended by an error after its best model was stored."""
    task_id = end_task(store, tmp_path, "run-4", end)
    assert promote(api, task_id).json()["wanted"]["task_id"] == task_id


@pytest.mark.parametrize("body", [{"reason": "x" * 501}, {"reason": None}, {"versoin": 1}])
@pytest.mark.usefixtures("three")
def test_bad_promotions_are_422(
    api: TestClient, store: Store, tmp_path: Path, body: dict[str, Any]
) -> None:
    """A field out of range or unknown is refused, naming it; nothing is wanted."""
    refused = promote(api, end_task(store, tmp_path, "run-4"), **body)
    assert refused.status_code == 422
    assert next(iter(body)) in refused.json()["detail"][0]["loc"]
    assert api.get(MODEL).json()["wanted"] is None


def refuse(store: Store, folder: Path, number: int, awaits_decision: bool = False) -> None:
    """Register a version that was not promoted, with all that is known of it."""
    place, run = folder / f"run-{number}", f"run-{number}"
    facts = ModelFacts("ab", 42, 384, "acme/base", "cc-by-nc-4.0", {"query": "query: "})
    model = StoredModel(run, str(place), write_model(place), facts)
    training = Training("Shoes/2", ("b-1",), "faq", None, "1.2.0", {"epochs": 3, "seed": 0})
    new = ModelVersion(
        number,
        model,
        START,
        end_task(store, folder, run),
        REFUSED,
        awaits_decision=awaits_decision,
        training=training,
    )
    store.models.update(METHOD, lambda found: found.with_refused(new))


@pytest.mark.usefixtures("three")
def test_models_are_listed_by_name(api: TestClient, store: Store, tmp_path: Path) -> None:
    """With their champions; how many versions have files."""
    register(store.in_project("other"), tmp_path)
    new = store.models.find(METHOD)
    assert new is not None
    store.models.update("Boots", lambda model: replace(new, name="Boots", revision=0), METHOD)
    found = api.get("/models").json()
    assert [one["name"] for one in found] == ["Boots", METHOD]
    assert found[0]["fine_tuning_method"] == METHOD
    assert (found[1]["champion"], found[1]["version_count"]) == (3, 3)
    assert "versions" not in found[1]


@pytest.mark.usefixtures("three")
def test_a_version_tells_what_it_is_made_of(api: TestClient, store: Store, tmp_path: Path) -> None:
    """By number or alias: what was never known is absent; one against commerce warns."""
    refuse(store, tmp_path, 4)
    refuse(store, tmp_path, 5, awaits_decision=True)
    found = api.get(f"{MODEL}/versions/4").json()
    assert (found["state"], found["parent"], found["batch_ids"]) == ("refused", "Shoes/2", ["b-1"])
    assert (found["base_model"], found["license"], found["dimensions"]) == (
        "acme/base",
        "cc-by-nc-4.0",
        384,
    )
    assert found["parameters"] == {"epochs": 3, "seed": 0}
    assert (found["labels_id"], found["method_version"], found["sha256"]) == ("faq", "1.2.0", "ab")
    assert found["prompts"] == {"query": "query: "}
    (warning,) = found["warnings"]
    assert "cc-by-nc-4.0, forbids commercial use" in warning
    champion = api.get(f"{MODEL}/versions/champion").json()
    assert (champion["version"], champion["state"]) == (3, "champion")
    assert "license" not in champion
    states = [one["state"] for one in api.get(MODEL).json()["versions"]]
    assert states == ["candidate", "refused", "champion", "former", "former"]
    assert api.get(f"{MODEL}/versions/9").status_code == 404
    assert api.get(f"{MODEL}/versions/latest").status_code == 422


@pytest.mark.usefixtures("three")
def test_a_refused_version_is_promoted_at_once(
    api: TestClient, store: Store, tmp_path: Path
) -> None:
    """No rollback leads to it before, and one leads back from it; who expected another champion is
    refused, but not for what is so already."""
    refuse(store, tmp_path, 4)
    assert "never was champion" in roll_back(api, version=4).json()["detail"]
    for body in ({}, {"version": 4, "task_id": "t"}):
        assert api.post(f"{MODEL}/promote", json=body).status_code == 422
    late = api.post(f"{MODEL}/promote", json={"version": 4, "expected_champion": 2})
    assert late.status_code == 409
    found = api.post(f"{MODEL}/promote", json={"version": 4, "expected_champion": 3}).json()
    assert (found["champion"], found["previous_version"], found["wanted"]) == (4, 3, None)
    again = api.post(f"{MODEL}/promote", json={"version": 4, "expected_champion": 3})
    assert again.json() == found
    assert roll_back(api).json()["champion"] == 3
    assert api.get(f"{MODEL}/versions/4").json()["state"] == "former"


@pytest.mark.usefixtures("three")
def test_a_deleted_version_stays_on_record(api: TestClient, store: Store, tmp_path: Path) -> None:
    """Its task has no model any more; the champion, and what is wanted, cannot be deleted."""
    refuse(store, tmp_path, 4)
    champion = api.delete(f"{MODEL}/versions/3")
    assert champion.status_code == 409
    assert "is champion: make another version" in champion.json()["detail"]
    for _ in range(2):
        assert api.delete(f"{MODEL}/versions/4").status_code == 204
    found = api.get(MODEL).json()
    assert (found["versions"][0]["state"], found["is_mirrored"]) == ("removed", False)
    assert found["versions"][0]["dimensions"] == 384
    assert [move["kind"] for move in found["moves"]].count("deleted") == 1
    kept = store.models.find(METHOD)
    assert kept is not None
    assert kept.leaving == ("run-4",)
    assert store.tasks.get(found["versions"][0]["task_id"]).best_model is None
    refused = api.post(f"{MODEL}/promote", json={"version": 4})
    assert refused.status_code == 409
    assert api.get(f"{MODEL}/versions/4/download").status_code == 404
    assert api.delete(f"{MODEL}/versions/9").status_code == 404


@pytest.mark.usefixtures("three")
def test_an_address_is_told_of_champions(signing: TestClient, store: Store) -> None:
    """It is shown with how telling goes, and null ends it; an address that cannot be is refused."""
    url = "https://search.example/reindex"
    told = signing.post(f"{MODEL}/webhook", json={"url": url}).json()
    assert (told["webhook_url"], "delivery" in told) == (url, False)
    assert store.champion_deliveries.claim(START + timedelta(days=999), 30) is not None
    assert signing.get(MODEL).json()["delivery"]["attempts"] == 1
    refused = signing.post(f"{MODEL}/webhook", json={"url": "ftp://search.example"})
    assert refused.status_code == 422
    assert "must be http(s)://" in refused.text
    assert "webhook_url" not in signing.post(f"{MODEL}/webhook", json={"url": None}).json()
    assert signing.post("/models/none/webhook", json={"url": url}).status_code == 404


@pytest.mark.usefixtures("three")
def test_a_version_is_downloaded(api: TestClient) -> None:
    """As a ZIP with a name that says which it is."""
    answer = api.get(f"{MODEL}/versions/champion/download")
    assert answer.status_code == 200
    called = "-".join(METHOD.split())
    assert f'filename="{called}-3.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("config.json") == b'{"a": 1}'
