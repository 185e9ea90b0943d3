"""Champions over HTTP: what is listed, where a rollback leads, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.models import ChampionMove, ModelVersion, MoveKind
from embedding_studio.store import Store
from embedding_studio.tasks import Promotion, StoredModel
from tests.api.samples import METHOD, START, write_model

CHAMPION = "/fine-tuning/champion"
VERDICT = Promotion(True, "better", "ndcg10", 0.4, 0.5, 0.1, (0.05, 0.15), 700)


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
    return api.post(f"{CHAMPION}/rollback", json={"fine_tuning_method": METHOD, **body})


@pytest.mark.usefixtures("three")
def test_versions_are_listed_newest_first(api: TestClient) -> None:
    """Each with its verdict and whether a rollback may name it, and the moves of the champion."""
    answer = api.get(CHAMPION, params={"fine_tuning_method": METHOD}).json()
    assert (answer["name"], answer["champion"], answer["previous_version"]) == (METHOD, 3, 2)
    assert answer["is_mirrored"] is False
    assert [one["version"] for one in answer["versions"]] == [3, 2, 1]
    newest, *_, first = answer["versions"]
    assert newest == {
        "version": 3,
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
        },
        "removed_at": None,
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
    assert api.get(CHAMPION, params={"fine_tuning_method": METHOD}).json()["champion"] == 3


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
    for refused in (api.get(CHAMPION, params={"fine_tuning_method": METHOD}), roll_back(api)):
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
    answer = api.get(CHAMPION, params={"fine_tuning_method": METHOD}).json()
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
    assert api.get(CHAMPION, params={"fine_tuning_method": METHOD}).json()["champion"] == 3
