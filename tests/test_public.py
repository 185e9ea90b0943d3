"""The names that others build on: what is listed here stays, or is told in the changelog."""

import inspect
from typing import get_args

import embedding_studio
import embedding_studio.client
import embedding_studio.testing
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.testing.case import MethodTestCase


def test_what_authors_of_methods_import() -> None:
    """The package exports what a plugin is written with, and nothing else."""
    assert set(embedding_studio.__all__) == {
        "Budget",
        "FineTuningMethod",
        "LabelledResult",
        "Parameters",
        "PluginMeta",
        "Scores",
        "SearchResult",
        "Session",
        "SessionEvent",
        "Splits",
        "TrialRun",
    }
    assert all(hasattr(embedding_studio, name) for name in embedding_studio.__all__)


def test_what_tests_of_methods_import() -> None:
    """The kit is one class, with these options and a test for each check."""
    assert embedding_studio.testing.__all__ == ["MethodTestCase"]
    own = {name for name in vars(MethodTestCase) if not name.startswith("_")}
    assert own == {
        *("bench", "initial_model", "params", "frozen", "keeps_items"),
        *("test_suggest", "test_train", "test_evaluate", "test_save_and_load"),
        *("test_stop", "test_seeds", "test_frozen", "test_served"),
    }


def test_what_callers_of_the_api_import() -> None:
    """The client is one class, and these are its calls with their parameters; those with a `*`
    are given by name alone."""
    assert embedding_studio.client.__all__ == ["EmbeddingStudioClient"]
    terms = (
        "*metadata, *budget, *search, *event_weights, *promote, *folds, *webhook_url, *last, "
        "*since, *labels_id, *judge_labels_id, *model_name, *initial_model, *seed, *parameters"
    )
    source = "*batch_id, *batch_ids, *until"
    options = "*format, *columns, *dry_run, *labels_id, *files"
    assert {
        name: ", ".join(_parameters_of(call))
        for name, call in inspect.getmembers(EmbeddingStudioClient, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    } == {
        "__init__": "base_url, api_key, *timeout, *retry_seconds, *transport",
        "close": "",
        "post_session": "session",
        "post_sessions": "sessions",
        "post_events": "session_id, events",
        "mark_irrelevant": "session_id",
        "release_batch": "release_id",
        "get_batch": "batch_id",
        "list_batches": "skip, limit",
        "report_on_batch": "batch_id",
        "export_batch": "batch_id, file",
        "read_batch": "batch_id, page_size",
        "put_items": "items",
        "get_item": "object_id",
        "read_items": "page_size",
        "delete_items": "object_ids",
        "put_labels": "labels_id, labels, *golden",
        "list_labels": "",
        "get_labels": "labels_id",
        "export_labels": "labels_id, file",
        "delete_labels": "labels_id",
        "erase_user": "user_id",
        "import_file": f"path, *import_id, *on_sent, {options}",
        "import_rows": f"rows, import_id, *on_sent, {options}",
        "import_url": f"url, *import_id, {options}",
        "get_import": "import_id",
        "create_task": f"fine_tuning_method, *idempotency_key, {terms}, {source}",
        "plan_task": f"fine_tuning_method, {terms}, {source}",
        "get_task": "task_id",
        "list_tasks": "status, skip, limit",
        "cancel_task": "task_id",
        "stop_task": "task_id",
        "restart_task": "task_id, fresh, *max_trials, *max_minutes",
        "task_events": "task_id, after_number",
        "wait_for_task": "task_id, on_update, poll_seconds",
        "download_model": "task_id, folder",
        "download_study": "task_id, file",
        "create_schedule": "fine_tuning_method, *cron, *interval_seconds, *min_new_sessions, "
        f"*idempotency_key, {terms}",
        "list_schedules": "",
        "pause_schedule": "schedule_id",
        "resume_schedule": "schedule_id",
        "delete_schedule": "schedule_id",
        "list_methods": "",
        "list_models": "",
        "get_model": "name",
        "get_version": "name, version",
        "promote": "name, version, *task_id, *expected_champion, *reason",
        "roll_back": "name, version, reason",
        "set_webhook": "name, url",
        "delete_version": "name, version",
        "share_model": "name, project",
        "take_model_back": "name, project",
        "download_version": "name, folder, version",
        "ping": "",
        "health": "",
    }


def _parameters_of(call: object) -> list[str]:
    assert callable(call)
    names = []
    for one in inspect.signature(call).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            [options] = get_args(one.annotation)
            names += [f"*{name}" for name in options.__annotations__]
        elif one.name != "self":
            names.append(f"*{one.name}" if one.kind is one.KEYWORD_ONLY else one.name)
    return names
