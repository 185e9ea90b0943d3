"""Commands for fine-tuning tasks: ask for one, follow it, end it, run it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import minute, print_table, printed_json, say, second
from embedding_studio.cli.terms import Method, moment_of, takes_terms
from embedding_studio.cli.watch import Watch
from embedding_studio.clock import in_words
from embedding_studio.errors import NotFound
from embedding_studio.tasks import TERMINAL, TaskStatus
from embedding_studio.wire.told import describe, verdict_lines

if TYPE_CHECKING:
    from typing import Any

    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.wire.tasks import TaskPlan, TaskView

app = typer.Typer(help="Ask for fine-tunings, follow them and end them.", no_args_is_help=True)
LAST = "last"
TaskId = Annotated[str, typer.Argument(metavar="TASK", help=f"the task's id; `{LAST}`: the newest")]


@app.command("create")
@calls_api
@takes_terms
def create_task(
    method: Method,
    terms: "dict[str, Any]",
    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCH",
            help="a released batch, or several; without it, a range or labels, what is collecting",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="the end of the time range")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="tell what it would take; create nothing")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="follow it to its end")] = False,
) -> None:
    """Ask for a fine-tuning; what is left out is the method's own."""
    one, several = (batch[0], None) if batch and len(batch) == 1 else (None, batch)
    terms = {**terms, "batch_id": one, "batch_ids": several, "until": moment_of(until)}
    with open_client() as client:
        if dry_run:
            del terms["idempotency_key"]
            plan = client.plan_task(method, **terms)
            if not printed_json(plan):
                _print_plan(plan)
            return
        task = client.create_task(method, **terms)
        if watch:
            say(f"task {task.id} is created")
            Watch(client, task.id).follow()
    if not watch and not printed_json(task):
        say(f"task {task.id} is {task.status}")
        say(f"follow it: embedding-studio task watch {task.id}")


@app.command("list")
@calls_api
def list_tasks(
    status: Annotated[TaskStatus | None, typer.Option(help="only those")] = None,
    skip: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int, typer.Option(min=1)] = 100,
) -> None:
    """Show tasks, newest first."""
    with open_client() as client:
        found = client.list_tasks(status, skip, limit)
    if printed_json(found):
        return
    rows = []
    for task in found:
        verdict, now = task.promotion, task.progress
        trials = f"{now.finished_trials} of {now.max_trials}" if now and now.max_trials else ""
        told = "" if verdict is None else "promoted" if verdict.promoted else "not promoted"
        gain = "" if verdict is None else f"{verdict.metric_name} {verdict.delta:+.4f}"
        made = minute(task.created_at)
        rows.append([task.id, task.fine_tuning_method, task.status, made, trials, told, gain])
    print_table(["task", "method", "status", "created", "trials", "verdict", ""], rows)


@app.command("show")
@calls_api
def show_task(task: TaskId) -> None:
    """Show a task: what was asked for, where it stands, its verdict."""
    with _open(task) as (client, task):
        found = client.get_task(task)
    if printed_json(found):
        return
    asked = {
        "method": found.fine_tuning_method,
        "model": found.model_name,
        "status": found.status,
        "created": minute(found.created_at),
        "changed": minute(found.updated_at),
        "batch": ", ".join(found.batch_ids) or found.batch_id,
        "since": minute(found.since),
        "until": minute(found.until),
        "labels": found.labels_id,
        "judged by labels": found.judge_labels_id,
        "attempt": str(found.attempt),
        "worker": found.worker_id,
        "MLflow": found.mlflow_url,
        "model as ZIP": found.best_model_url,
    }
    print_table(["task", found.id], [[name, value] for name, value in asked.items() if value])
    for line in verdict_lines(found) if found.status in TERMINAL else [describe(found)]:
        say(line)


@app.command("watch")
@calls_api
def watch_task(task: TaskId) -> None:
    """Follow a task to its end; ends with 1 where it fails or is canceled.

    Ctrl-C leaves the task running. With --json, the task at its end is printed."""
    with _open(task) as (client, task):
        Watch(client, task).follow()


@app.command("events")
@calls_api
def show_events(task: TaskId) -> None:
    """Show what has happened to a task, oldest first."""
    with _open(task) as (client, task):
        found = [*client.task_events(task)]
    if not printed_json(found):
        rows = [[str(one.number), second(one.at), one.kind, one.detail] for one in found]
        print_table(["", "at", "event", ""], rows)


@app.command("study")
@calls_api
def save_study(
    task: TaskId,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="is replaced if it exists; by default study-TASK.db"),
    ] = None,
) -> None:
    """Write the Optuna study of a task's search to a file, which optuna-dashboard opens."""
    with _open(task) as (client, task):
        file = file or Path(f"study-{task}.db")
        client.download_study(task, file)
    if not printed_json({"task": task, "file": str(file)}):
        say(f"the study is in {file}")
        say(f"open it: optuna-dashboard sqlite:///{file}")


@app.command("stop")
@calls_api
def stop_task(task: TaskId) -> None:
    """End a task with the best model that it has so far, which is judged like any other."""
    with _open(task) as (client, task):
        _tell_status(client.stop_task(task))


@app.command("cancel")
@calls_api
def cancel_task(task: TaskId) -> None:
    """End a task at once; nothing of it is kept."""
    with _open(task) as (client, task):
        _tell_status(client.cancel_task(task))


@app.command("restart")
@calls_api
def restart_task(
    task: TaskId,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="without the trials of earlier attempts")
    ] = False,
    trials: Annotated[
        int | None, typer.Option(min=1, help="most hyperparameter sets, with the finished ones")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="most minutes of the search")] = None,
) -> None:
    """Run a stopped, canceled or failed task again, or a done one with more trials; finished trials
    are kept."""
    with _open(task) as (client, task):
        restarted = client.restart_task(task, fresh, max_trials=trials, max_minutes=minutes)
    _tell_status(restarted)


@contextmanager
def _open(task: str) -> "Iterator[tuple[EmbeddingStudioClient, str]]":
    """Open a client; yield it with the task's id."""
    with open_client() as client:
        if task == LAST:
            newest = client.list_tasks(limit=1)
            if not newest:
                raise NotFound("there is no task yet; `task create` asks for one")
            task = newest[0].id
        yield client, task


def _tell_status(task: "TaskView") -> None:
    if not printed_json(task):
        say(f"task {task.id} is {task.status}")


def _print_plan(plan: "TaskPlan") -> None:
    trainings = "as the method says" if plan.trainings is None else str(plan.trainings)
    rows = [
        ["enough", f"{plan.enough}: {plan.verdict}"],
        *([f"batch {one.batch_id}", f"{one.session_count:,} sessions"] for one in plan.batches),
        ["would release", plan.releases or "nothing"],
        ["trainings at most", trainings],
    ]
    if plan.since or plan.until:
        rows.append(["made between", f"{minute(plan.since)} and {minute(plan.until) or 'now'}"])
    if plan.report is not None:
        rows.append(["clicked sessions", f"{plan.report.clicked_sessions:,}"])
        rows.append(["clicked queries", f"{plan.report.clicked_queries:,}"])
    for name, labels in (("labels", plan.labels), ("judging labels", plan.judge_labels)):
        if labels is not None:
            what = f"{labels.labels_id}: {labels.labels:,} for {labels.queries:,} queries"
            rows.append([name, what])
    if (conflicts := plan.label_conflicts) is not None and conflicts.pairs:
        rows.append(["labels at odds", f"{conflicts.pairs:,} pairs are relevant by one set alone"])
    if plan.estimate is not None and plan.estimate.minutes is not None:
        rows.append(["takes about", in_words(60 * plan.estimate.minutes)])
    print_table(["nothing is created", ""], rows)
    for warning in plan.report.warnings if plan.report else ():
        say(f"! {warning}")
