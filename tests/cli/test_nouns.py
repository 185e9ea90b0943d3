"""The commands for batches, items and labels print the API's JSON when asked to."""

import json
from datetime import UTC, datetime
from pathlib import Path

from embedding_studio.store import Store
from tests.cli.conftest import Shell
from tests.iterations import make_session

NOW = datetime.now(UTC)


def test_a_batch_is_told_and_released_as_json(shell: Shell, store: Store) -> None:
    """Each command on batches prints what the API answers; a release may be repeated."""
    store.clickstream.register([make_session(number) for number in range(9)], NOW)
    (listed,) = json.loads(shell("batch", "list", "--json").stdout)
    shown = json.loads(shell("batch", "show", "--json").stdout)
    assert shown["batch_id"] == listed["batch_id"]
    assert json.loads(shell("batch", "report", "--json").stdout)["clicked_sessions"] == 9
    first, again = (
        json.loads(shell("batch", "release", "--release-id", "monday", "--json").stdout)
        for _ in range(2)
    )
    assert first["batch_id"] == again["batch_id"] == listed["batch_id"]
    assert store.clickstream.collecting_batch() is None


def test_items_and_labels_are_told_as_json(shell: Shell, tmp_path: Path) -> None:
    """An import's report, items, and what a set of labels has."""
    items = tmp_path / "items.jsonl"
    items.write_text('{"object_id": "p-7", "text": "down parka"}\n')
    report = json.loads(shell("batch", "import", str(items), "--format", "items", "--json").stdout)
    assert (report["items"], report["created"]) == (1, 1)
    listed = json.loads(shell("items", "list", "--json").stdout)
    assert listed == [{"object_id": "p-7", "text": "down parka"}]
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"query": "parka", "object_id": "p-7", "grade": 3}\n')
    assert json.loads(shell("labels", "put", "l", str(labels), "--json").stdout)["created"] == 1
    (one,) = json.loads(shell("labels", "list", "--json").stdout)
    assert one["labels_id"] == "l"
    assert json.loads(shell("labels", "show", "l", "--json").stdout)["labels"] == 1
    deleted = shell("labels", "delete", "l")
    assert deleted.stdout == "labels l are deleted\n"
