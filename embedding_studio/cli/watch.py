"""A task as one watches it: its trials side by side, then its verdict in words."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from embedding_studio.cli.context import wants_json
from embedding_studio.cli.render import printed_json, say
from embedding_studio.errors import StoreUnavailable
from embedding_studio.plain import escape
from embedding_studio.tasks import TERMINAL, TaskEventKind, TaskStatus
from embedding_studio.wire.told import describe, verdict_lines

if TYPE_CHECKING:
    from rich.console import Group

    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.wire.tasks import TaskEventView, TaskView

POLL_SECONDS = 1.0
MOST_SILENT_SECONDS = 600.0
"""An API that does not answer for so long is given up."""
MOST_ROWS = 12
"""Trials that have ended are shown as far as there is room beside those at work."""
_BARS = "▁▂▃▄▅▆▇█"
_ENDED = {
    TaskEventKind.TRIAL_FINISHED: "done",
    TaskEventKind.TRIAL_PRUNED: "pruned",
    TaskEventKind.TRIAL_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of a trial."""

    state: str
    step: int | None
    #: the main metric of its reports
    curve: tuple[float, ...]
    #: the last one; of a trial that is done, its result
    value: float | None


class Watch:
    """One task, looked at until it ends."""

    def __init__(self, client: "EmbeddingStudioClient", task_id: str) -> None:
        self._client = client
        self._task_id = task_id
        self._ended: dict[int, Row] = {}
        self._seen = 0  # the number of the last event

    def follow(self) -> None:
        """Show the task until it has ended, then its verdict.

        Raises typer.Exit: 1 where it failed or was canceled, 130 on Ctrl-C."""
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=wants_json())
        first = self._client.get_task(self._task_id)  # which may not be there
        if first.status is TaskStatus.PENDING:
            worker = self._client.health().worker
            if worker.status == "unavailable":
                typer.echo(escape(worker.detail), err=True)
        try:
            if console.is_terminal:
                with Live(console=console, refresh_per_second=4) as live:
                    for look in self._looks(first):
                        live.update(self._picture(look))
            else:
                self._print_changes(first)
            task = self._client.get_task(self._task_id)
        except KeyboardInterrupt:
            say(f"task {self._task_id} goes on: `task watch` shows it again, `task stop` ends it")
            raise typer.Exit(130) from None
        if not printed_json(task):
            for line in verdict_lines(task):
                say(line)
        if task.status in (TaskStatus.ERROR, TaskStatus.CANCELED):
            raise typer.Exit(1)

    def _looks(self, task: "TaskView") -> "Iterator[TaskView]":
        """Yield the task each second until it has ended, its events read; an API that does not
        answer for a while, for it is started again, say, is asked again."""
        answered = time.monotonic()
        while True:
            try:
                for event in self._client.task_events(self._task_id, self._seen):
                    self._take(event)
                task = self._client.get_task(self._task_id)
                answered = time.monotonic()
            except StoreUnavailable as error:
                if time.monotonic() - answered > MOST_SILENT_SECONDS:
                    raise
                typer.echo(escape(f"{error}; the task goes on, trying again"), err=True)
            yield task
            if task.status in TERMINAL:
                return
            time.sleep(POLL_SECONDS)

    def _take(self, event: "TaskEventView") -> None:
        self._seen = event.number
        if event.kind in _ENDED:
            curve, value = event.data.get("main_metrics", ()), event.data.get("value")
            row = Row(_ENDED[event.kind], len(curve) or None, tuple(curve), value)
            self._ended[event.data["trial"]] = row
        elif event.kind is TaskEventKind.RESTARTED:
            self._ended.clear()

    def _rows(self, task: "TaskView") -> dict[int, Row]:
        """Return the trials that there is room for, by their numbers."""
        at_work = {
            one.trial: Row("runs", one.step, one.main_metrics, one.main_metric)
            for one in (task.progress.running_trials if task.progress else ())
        }
        ended = {number: row for number, row in self._ended.items() if number not in at_work}
        room = max(0, MOST_ROWS - len(at_work))
        kept = sorted(ended)[len(ended) - room :] if room < len(ended) else sorted(ended)
        return {**{number: ended[number] for number in kept}, **at_work}

    def _picture(self, task: "TaskView") -> "Group":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        metric = task.progress.main_metric_name if task.progress else None
        best = task.progress.best_so_far if task.progress else None
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "", "reports", metric or "", "now", ""):
            table.add_column(Text(escape(name)), justify="right" if name == "now" else "left")
        rows = self._rows(task)
        scale = [value for row in rows.values() for value in row.curve]
        for number, row in rows.items():
            value = "" if row.value is None else f"{row.value:.4f}"
            mark = "best" if row.state == "done" and row.value == best else ""
            step = "" if row.step is None else str(row.step)
            line = sparkline(row.curve, scale)
            table.add_row(*map(Text, (str(number), row.state, step, line, value, mark)))
        head = Text(escape(f"{task.fine_tuning_method}: {describe(task)}"))
        return Group(head, table) if rows else Group(head)

    def _print_changes(self, first: "TaskView") -> None:
        """Print a line for each change: what a pipe or a log gets."""
        shown: object = None
        for task in self._looks(first):
            now = task.progress
            state = (task.status, now and (now.phase, now.trial, now.step, now.finished_trials))
            if state != shown and task.status not in TERMINAL:
                typer.echo(escape(describe(task)), err=wants_json())
            shown = state


def sparkline(values: Sequence[float], scale: Sequence[float]) -> str:
    """Return values as bars, of which the lowest and the highest stand for the ends of a scale."""
    low, high = min(scale, default=0.0), max(scale, default=0.0)
    steps = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * steps)] for value in values)
