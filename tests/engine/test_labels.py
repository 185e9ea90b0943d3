"""Tasks that name labels."""

from typing import Any

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.labels import Label
from embedding_studio.tasks import TaskStatus
from tests.iterations import Bench


@pytest.mark.parametrize("name", ["labels_id", "judge_labels_id"])
def test_a_method_without_labels_refuses_them(bench: Bench, name: str) -> None:
    """The task is an error that says so, and releases no batch."""
    bench.house.store.labels.put("judged", [Label("query 1", "item-0", 1.0)], utc_now())
    named: dict[str, Any] = {name: "judged"}
    task = bench.run_task("Toy", **named)
    assert task.status is TaskStatus.ERROR
    assert "'Toy' takes no labels" in (task.error or "")
    assert bench.house.store.clickstream.collecting_batch() is not None
