"""A thousand requests made from our own OpenAPI document: each answer is as documented."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from embedding_studio.api.app import create_app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from tests.api.samples import METHOD, Clock, claim, session_json
from tests.api.test_models import register

pytestmark = pytest.mark.slow

EXAMPLES = 25
LEAST = 1000
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture
def known() -> dict[str, str]:
    """Ids of things that exist."""
    return {}


@pytest.fixture
def document(tmp_path: Path, known: dict[str, str]) -> Iterator[Any]:
    """The application's own, over a store that holds one of everything."""
    chosen = Settings(data_folder=tmp_path, rate_limit="", max_pending_tasks=5)
    with closing(Store(MemoryDocuments())) as store:
        app = create_app(store, chosen, Clock())
        with TestClient(app, base_url="http://localhost/api/v1") as api:
            api.post("/clickstream/session", json=session_json("s-1"))
            release = api.post("/clickstream/internal/batch/release", json={"release_id": "r-1"})
            task = {"fine_tuning_method": METHOD, "batch_id": release.json()["batch_id"]}
            known["task_id"] = api.post("/fine-tuning/task", json=task).json()["id"]
            claim(store)
            api.put(f"/fine-tuning/task/{known['task_id']}/cancel")
            schedule = {"fine_tuning_method": METHOD, "interval_seconds": 60}
            register(store, tmp_path)
            known["schedule_id"] = api.post("/fine-tuning/schedule", json=schedule).json()["id"]
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def ask(operation: Any, mode: GenerationMode, known: dict[str, str]) -> int:
    """Send requests to one route, every other one about ids that exist; return how many."""
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        nonlocal asked
        asked += 1
        if asked % 2:
            case.path_parameters = {
                name: known.get(name, value) for name, value in case.path_parameters.items()
            }
        response = case.call(base_url="http://localhost")
        # without a worker the installation is not well, and says so by 503
        if not (operation.path.endswith("/health") and response.status_code == 503):
            case.validate_response(response, checks=CHECKS)

    send()
    return asked


def test_every_answer_is_as_documented(document: Any, known: dict[str, str]) -> None:
    """Of at least 1,000 requests over all routes, well formed and not, none gets a 5xx, an
    undocumented status, another content type or a body that is not as its schema says."""
    asked: Counter[GenerationMode] = Counter()
    for found in document.get_all_operations():
        for mode in GenerationMode:
            # a route that takes nothing cannot be asked anything malformed
            with suppress(Unsatisfiable):
                asked[mode] += ask(found.ok(), mode, known)
    assert asked[GenerationMode.NEGATIVE] >= LEAST / 3
    assert asked.total() >= LEAST
