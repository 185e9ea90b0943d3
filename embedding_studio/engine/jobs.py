"""What runs inside an executor: the jobs of an iteration, each a small picklable recipe."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from html import escape
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Self

from embedding_studio.clickstream import (
    LEAST_QUERIES,
    Session,
    Splits,
    event_kind,
    has_content,
    merge_weights,
)
from embedding_studio.deletion import remove_tree
from embedding_studio.engine.labels import Shares, TakenLabels
from embedding_studio.engine.report import report_on
from embedding_studio.engine.scores import (
    agree,
    finite_means,
    mean_metrics,
    queries_of,
    read_scores,
    say_score,
    suspicions,
)
from embedding_studio.errors import (
    CorruptModel,
    MethodError,
    NotEnoughData,
    TrialCanceled,
    TrialPruned,
)
from embedding_studio.executors.base import Job, Report, Reporter, Verdict
from embedding_studio.labels import LabelledResult, relevant_queries
from embedding_studio.methods import (
    AnyMethod,
    Direction,
    FineTuningMethod,
    MethodCatalog,
    MetricValues,
    Parameters,
    PluginFile,
    Scores,
    TrialRun,
    discover_methods,
    is_better,
)
from embedding_studio.report_page import page_of
from embedding_studio.settings import Settings
from embedding_studio.snapshot import Snapshot, SnapshotSessions

if TYPE_CHECKING:
    from embedding_studio.search import Trial


@dataclass(frozen=True, slots=True)
class MethodRef:
    """A method by name, for a job that loads it where it runs."""

    reads: ClassVar = ("plugins_folder",)

    name: str
    plugins_folder: Path
    #: the plugin that it was loaded from, as it was then; without it, whatever is there when it is
    #: first needed
    file: str = ""
    code: bytes = field(default=b"", repr=False)

    @classmethod
    def to(cls, method: AnyMethod, plugins_folder: Path) -> "MethodRef":
        if method.plugin_file is None:
            return cls(method.meta.name, plugins_folder)
        plugin = method.plugin_file
        return cls(method.meta.name, plugins_folder, plugin.path.name, plugin.code)

    def load(self) -> AnyMethod:
        if not self.file:
            return load_catalog(self.plugins_folder).get(self.name)
        methods, _ = PluginFile(self.plugins_folder / self.file, self.code).load()
        return next(method for method in methods if method.meta.name == self.name)


@cache
def load_catalog(plugins_folder: Path) -> MethodCatalog:
    """Load the plugins of a folder once per process, and of the processes forked from it."""
    return discover_methods(plugins_folder, Settings().plugin_import_seconds)


@contextmanager
def _checking_initial_model(method: AnyMethod) -> Iterator[None]:
    """Around what reads an initial model: where it fails, the method may know why."""
    try:
        yield
    except NotEnoughData:
        raise
    except Exception:
        method.check_initial_model()
        raise


@dataclass(frozen=True, slots=True)
class SaveInitialModel(Job[None]):
    """Write what the method starts from when there is no champion, or what a task names."""

    writes = ("folder",)
    doing = "saving the initial model"

    method: MethodRef
    folder: Path
    #: a folder, or the id of a model on a hub; empty for the method's own
    place: str = ""

    def __call__(self, report: Reporter) -> None:
        method = self.method.load()
        if self.place:
            model = method.load_model(self.place)
        else:
            with _checking_initial_model(method):
                model = method.load_initial_model()
        method.save(model, _empty(self.folder))


@dataclass(frozen=True, slots=True)
class EventCounts:
    """Events by their types as posted, the most frequent first."""

    counted: Mapping[str, int]
    #: of weight 0
    ignored: Mapping[str, int]
    #: of types to which nobody gave a weight; they count as clicks
    unknown: Mapping[str, int]

    @classmethod
    def of(cls, by_type: Counter[str], weights: Mapping[str, float]) -> Self:
        parts: tuple[dict[str, int], ...] = ({}, {}, {})
        for name, number in by_type.most_common():
            weight = weights.get(event_kind(name))
            parts[2 if weight is None else 0 if weight > 0 else 1][name] = number
        return cls(*parts)

    def tell(self) -> str:
        """Return one sentence about what is ignored or unknown; empty where nothing is."""
        told = {
            "events ignored, for their weight is 0": self.ignored,
            "events counted as clicks, for nobody gave their types a weight": self.unknown,
        }
        return "; ".join(
            f"{sum(counts.values())} {what} ({', '.join(map(repr, _first(counts)))})"
            for what, counts in told.items()
            if counts
        )

    def as_data(self) -> dict[str, list[dict[str, str | int]]]:
        """Return the same as JSON; types are no keys, for a database may not take them as such."""
        parts = {
            "events": self.counted, "ignored_events": self.ignored, "unknown_events": self.unknown,
        }  # fmt: skip
        return {
            part: [{"type": name, "events": counts[name]} for name in _first(counts)]
            for part, counts in parts.items()
        }


MOST_TYPES_NAMED = 20
MOST_ITEMS_NAMED = 3


def _first(counts: Mapping[str, int]) -> list[str]:
    return list(counts)[:MOST_TYPES_NAMED]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preparing the data came to."""

    #: the method's, and the counts of sessions, of those marked irrelevant (kept out), of clicks on
    #: items that were not shown, and of events that are ignored or unknown
    figures: Mapping[str, float]
    events: EventCounts
    #: the first items of labels whose contents are nowhere
    bare_items: Sequence[str] = ()
    #: the report on the sessions, as HTML; none where there are none, or another part is held out
    page: str = ""


@dataclass(frozen=True, slots=True)
class PrepareData(Job[Prepared]):
    """Split a snapshot by query and let the method write what its trials read.

    Of the queries of labels that judge, nothing is to train on or to choose by."""

    reads = ("snapshot", "start_folder")
    writes = ("folder",)
    doing = "preparing the data"

    method: MethodRef
    snapshot: Path
    #: the model that all trials start from
    start_folder: Path
    folder: Path
    #: the task's, over the method's own
    event_weights: Mapping[str, float]
    labels: TakenLabels
    #: as `split_by_query` has them
    folds: int = 1
    fold: int | None = 0

    def __call__(self, report: Reporter) -> Prepared:
        method = self.method.load()
        weights = merge_weights(method.event_weights, self.event_weights)
        snapshot = Snapshot(self.snapshot, weights)
        usable = snapshot.usable()
        shares = Shares(method.validation_share, method.test_share, self.folds, self.fold)
        labels = self.labels.split(shares, snapshot.results)
        if not usable and not self.labels.learnt:
            raise NotEnoughData(
                f"the batch holds {len(snapshot)} sessions and all of them are marked irrelevant: "
                "collect more and start a new task"
            )
        splits = self._split(usable, shares)
        if not splits.train and not labels.train:
            raise NotEnoughData(
                "there is nothing to train on: all queries are held out to choose by and to judge "
                "by, or by labels that judge"
            )
        events = EventCounts.of(snapshot.event_types, weights)
        try:
            with _checking_initial_model(method):  # many read it, for its tokenizer
                folder, learnt = _empty(self.folder), self.labels.learnt
                figures = read_scores(
                    _prepare(method, splits, folder, labels)
                    if learnt
                    else method.prepare(splits, folder),
                    "prepare",
                )
                figures |= read_scores(self._note_start(method), "note_start")
        except NotEnoughData as error:
            raise NotEnoughData("; ".join(filter(None, [str(error), events.tell()]))) from None
        counts = {
            "sessions": len(snapshot),
            "irrelevant_sessions": len(snapshot) - len(usable),
            "clicks_on_items_not_shown": snapshot.strays,
            "ignored_events": sum(events.ignored.values()),
            "unknown_events": sum(events.unknown.values()),
        }
        if self.labels.learnt:
            counts |= {f"{name}_labels": len(part) for name, part in labels.named().items()}
        named = chain.from_iterable(labels.named().values())
        bare = {label.result.object_id for label in named if not has_content(label.result)}
        bare_items = sorted(bare)[:MOST_ITEMS_NAMED]
        page = _page_of(snapshot, weights) if self.fold == 0 and len(snapshot) else ""
        return Prepared({**counts, **finite_means(figures)}, events, bare_items, page)

    def _split(self, sessions: SnapshotSessions, shares: Shares) -> Splits[SnapshotSessions]:
        """Split sessions by query, as labels are."""
        splits = sessions.split_by_query(*astuple(shares))
        if not (held_out := self.labels.held_out(shares)):
            return splits
        train, validation = splits.train.without(held_out), splits.validation.without(held_out)
        test = validation if splits.test is splits.validation else splits.test
        return Splits(train, validation, test)

    def _note_start(self, method: AnyMethod) -> Scores:
        if type(method).note_start is FineTuningMethod.note_start:
            return {}  # to load a model takes its time
        return method.note_start(load_start(method, self.start_folder), self.folder)


def _page_of(snapshot: Snapshot, weights: Mapping[str, float]) -> str:
    """Return the report on a snapshot as a page, or one that says why there is none."""
    try:
        return page_of(report_on(snapshot, weights), "What this iteration learns from")
    except Exception as error:  # noqa: BLE001 - no iteration hangs on a page
        return f"<!doctype html><title>No report</title>{escape(repr(error))}"


def _prepare(
    method: AnyMethod,
    sessions: Splits[Sequence[Session]],
    folder: Path,
    labels: Splits[Sequence[LabelledResult]],
) -> Mapping[str, float]:
    prepare: Any = method.prepare  # which says that it takes labels
    figures: Mapping[str, float] = prepare(sessions, folder, labels=labels)
    return figures


@dataclass(frozen=True, slots=True)
class PrepareJudge(Job[None]):
    """Let the method write what it reads of labels that judge: their queries alone, in all three
    parts. Raises NotEnoughData."""

    reads = ("snapshot",)
    writes = ("folder",)
    doing = "preparing the labels that judge"

    method: MethodRef
    #: where items may have contents
    snapshot: Path
    folder: Path
    labels: TakenLabels
    labels_id: str

    def __call__(self, report: Reporter) -> None:
        method = self.method.load()
        shares = Shares(method.validation_share, method.test_share)
        results = Snapshot(self.snapshot, {}).results
        labels = self.labels.judge(self.labels_id, shares, results)
        found = relevant_queries(labels)
        least = LEAST_QUERIES["test"] if self.labels_id == self.labels.judging else 1
        if found < least:
            raise NotEnoughData(
                f"{found} queries of labels {self.labels_id!r} that are to judge have a relevant "
                f"item, and at least {least} are needed: put more"
            )
        none: Splits[Sequence[Session]] = Splits((), (), ())
        _prepare(method, none, _empty(self.folder), Splits(labels, labels, labels))


def load_start(method: AnyMethod, folder: Path) -> Any:
    """Read the model that all trials start from. Raises CorruptModel when that fails."""
    try:
        return method.load(folder)
    except Exception as error:
        raise CorruptModel(
            f"`load` of {method.meta.name!r} cannot read the model to start from, the champion "
            f"or else what `save` wrote of the initial model: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial came to."""

    #: averaged over the validation queries; none of a trial that the search gave up on
    metrics: Mapping[str, float]
    #: by phase of the trial
    seconds: Mapping[str, float]
    #: what the method counted
    trained_tokens: int
    #: the main metric, per query where the method gives it so
    scores: MetricValues = math.nan
    is_pruned: bool = False


@dataclass(frozen=True, slots=True)
class Train(Job[TrialResult]):
    """One trial: train from the starting model, score on validation, save if it beats the best."""

    reads = ("data_folder", "start_folder")
    writes = ("model_folder",)

    method: MethodRef
    params: Parameters
    seed: int
    data_folder: Path
    start_folder: Path
    model_folder: Path
    #: the best trial's main metric so far, as the method gives it; only a better model is saved
    best: "MetricValues | None"
    #: the starting model's validation metrics
    baseline: Mapping[str, float]

    def __call__(self, report: Reporter) -> TrialResult:
        seconds: dict[str, float] = {}
        method = self.method.load()
        with _measured(seconds, "load"):
            data = method.load_data(self.data_folder)
            model = method.load(self.start_folder)
        with _measured(seconds, "train"):
            run = ReportingRun(
                seed=self.seed, baseline=self.baseline, main_metric=method.main_metric, send=report
            )
            try:
                model = method.train(model, self.params, replace(data, test=None), run)
            except TrialPruned:
                return TrialResult({}, seconds, int(run.trained_tokens), is_pruned=True)
        with _measured(seconds, "evaluate"):
            scores = read_scores(method.evaluate(model, data.validation))
            metrics = mean_metrics(scores, method.main_metric)
        own = scores[method.main_metric]
        if is_better(method.direction, own, self.best):
            with _measured(seconds, "save"):
                method.save(model, _empty(self.model_folder))
        return TrialResult(metrics, seconds, int(run.trained_tokens), own)


@dataclass(frozen=True, slots=True)
class Score(Job[Scores]):
    """Score a saved model on the validation split of the data; arrays stay per query."""

    reads = ("model_folder", "data_folder")
    doing = "scoring a saved model"

    method: MethodRef
    model_folder: Path
    data_folder: Path

    def __call__(self, report: Reporter) -> Scores:
        method = self.method.load()
        split = method.load_data(self.data_folder).validation
        scores = read_scores(method.evaluate(method.load(self.model_folder), split))
        mean_metrics(scores, method.main_metric)
        return scores


@dataclass(frozen=True, slots=True)
class Examined:
    """A model on queries that it did not see."""

    #: arrays are per query, in the order that every model has
    scores: Scores
    #: by the text of a query, as the method explains them
    explained: Mapping[str, float]
    #: what it ranks first for these queries, where its method tells
    ranked: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examine(Job[list[Examined]]):
    """Score a saved model on the test split of each of several folders of data, and explain it."""

    reads = ("model_folder", "data_folders")
    doing = "scoring a model on held-out queries"

    method: MethodRef
    model_folder: Path
    data_folders: tuple[Path, ...]

    def __call__(self, report: Reporter) -> list[Examined]:
        method = self.method.load()
        model = method.load(self.model_folder)
        return [self._examine(method, model, folder) for folder in self.data_folders]

    def _examine(self, method: AnyMethod, model: Any, folder: Path) -> Examined:
        split = method.load_data(folder).test
        scores = read_scores(method.evaluate(model, split))
        mean_metrics(scores, method.main_metric)
        explained = finite_means(read_scores(method.explain(model, split), "explain"))
        return Examined(scores, explained, method.rank(model, split))


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """How the starting model scores, and what training it may cost."""

    #: averaged over the validation queries
    metrics: Mapping[str, float]
    #: what a trial may cost; None when the method does not tell
    tokens_per_trial: float | None
    #: how many values of the main metric there are on validation; None for one number
    queries: int | None = None
    #: what is no failure but may be a mistake in the method
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ScoreBaseline(Job[BaselineResult]):
    """Score the starting model on validation and test, and estimate what training with `sets`
    would cost: one process does it all, for each loads the model anew.

    The model is saved, loaded and scored once more, for what `save` loses, or `evaluate` draws at
    random, would fail every trial after it was trained. Raises MethodError that tells which."""

    reads = ("model_folder", "data_folder")
    writes = ("scratch",)
    doing = "scoring the starting model"

    method: MethodRef
    model_folder: Path
    data_folder: Path
    #: a folder for that copy
    scratch: Path
    sets: Sequence[Parameters]

    def __call__(self, report: Reporter) -> BaselineResult:
        method = self.method.load()
        data = method.load_data(self.data_folder)
        model = load_start(method, self.model_folder)
        scores = read_scores(method.evaluate(model, data.validation))
        metrics = mean_metrics(scores, method.main_metric)
        test_scores = read_scores(method.evaluate(model, data.test))
        mean_metrics(test_scores, method.main_metric)
        untested = replace(data, test=None)
        costs = [method.estimate_trained_tokens(params, untested) for params in self.sets]
        known = [float(cost) for cost in costs if cost is not None]
        method.save(model, _empty(self.scratch))
        del model  # there may be no room for two
        try:
            self._check_copy(method, data.validation, scores)
        finally:
            remove_tree(self.scratch)
        return BaselineResult(
            metrics=metrics,
            tokens_per_trial=fmean(known) if known else None,
            queries=queries_of(scores[method.main_metric]),
            warnings=list(suspicions(scores, test_scores, method.main_metric)),
        )

    def _check_copy(self, method: AnyMethod, split: Any, scores: Scores) -> None:
        metric = method.main_metric
        copy = method.load(self.scratch)
        copied = read_scores(method.evaluate(copy, split))
        if agree(scores, copied, metric):
            return
        first, second = say_score(scores, metric), say_score(copied, metric)
        again = read_scores(method.evaluate(copy, split))
        if not agree(copied, again, metric):
            raise MethodError(
                f"`evaluate` is not deterministic: of the same queries one model's {metric} was "
                f"{second} and then {say_score(again, metric)}. Seed what is drawn at random, and "
                "turn dropout off"
            )
        raise MethodError(
            f"`save` loses something: the starting model's {metric} was {first} before it was "
            f"saved and {second} after it was loaded again"
        )


@dataclass(frozen=True, slots=True)
class DrawSearch(Job[None]):
    """Draw what a search found, and write it as a table."""

    writes = ("folder",)
    doing = "drawing the search"

    trials: "tuple[Trial, ...]"
    direction: Direction
    metric: str
    folder: Path

    def __call__(self, report: Reporter) -> None:
        from embedding_studio.search.plots import draw_search

        draw_search(self.trials, self.direction, self.metric, _empty(self.folder))


@dataclass(kw_only=True)
class ReportingRun(TrialRun):
    """What `train` holds: `send` gets its reports and answers them."""

    seed: int
    baseline: Mapping[str, float] | None
    main_metric: str
    send: Reporter

    def report(self, scores: Scores, step: int) -> None:
        if self.should_stop:
            raise TrialCanceled("asked to stop at its last report, the trial went on")
        means = mean_metrics(scores, self.main_metric)
        verdict = self.send(Report(_whole(step), means, int(self.trained_tokens)))
        self.should_stop = verdict is Verdict.STOP


def _whole(step: Any) -> int:
    """Return a step as Python's int, whatever library it came from."""
    try:
        whole = int(step)
    except (TypeError, ValueError):
        whole = None
    if whole is None or whole != step or whole < -1:
        raise MethodError(f"the step {step!r} is none: report whole numbers, from 0 on")
    return whole


@contextmanager
def _measured(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Note how long what is done meanwhile takes."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
