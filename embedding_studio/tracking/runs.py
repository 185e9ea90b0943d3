"""The ledger's runs: one for each trial, and those of baseline, data, summary and failure."""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from mlflow.entities import Metric, Param, Run, RunTag

from embedding_studio.executors.base import Report
from embedding_studio.methods import Parameters
from embedding_studio.search import Outcome, Trial
from embedding_studio.tracking import story
from embedding_studio.tracking.client import Client
from embedding_studio.tracking.models import Models
from embedding_studio.tracking.names import TRAINED_TOKENS, from_mlflow, to_mlflow

SLIDING_WINDOW = 3
_MOST_METRICS = 1000  # that MLflow takes in one call
_MOST_PARAMS = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000


class Runs:
    """The runs of iterations."""

    def __init__(self, client: Client, models: Models) -> None:
        self._client = client
        self._models = models

    # -- trials --------------------------------------------------------------------------------

    def start_trial(self, experiment_id: str, trial: Trial, params: Parameters, seed: int) -> str:
        """Open the run of one hyperparameter set. params: as the method sees it."""
        run_id = self._client.create_run(
            experiment_id,
            f"trial {trial.number + 1}",
            {
                "es.kind": "trial",
                "es.trial": str(trial.number),
                "es.study_trial": str(trial.study_number),
                **_long_tag("es.suggested.values", json.dumps(trial.params)),
                **_long_tag("es.suggested.distributions", json.dumps(trial.distributions)),
            },
        )
        self._log_params(run_id, params, seed)
        return run_id

    def start_training(
        self, experiment_id: str, name: str, trial_run_id: str, params: Parameters, seed: int
    ) -> str:
        """Open the run of a trial's set that is trained once more, on other data."""
        tags = {"es.kind": "training", "es.training_of": trial_run_id}
        run_id = self._client.create_run(experiment_id, name, tags)
        self._log_params(run_id, params, seed)
        return run_id

    def _log_params(self, run_id: str, params: Parameters, seed: int) -> None:
        logged = [Param(to_mlflow(str(k)), _shortened(str(value))) for k, value in params.items()]
        logged.append(Param("es.seed" if "seed" in params else "seed", str(seed)))
        for first in range(0, len(logged), _MOST_PARAMS):
            self._client.writing.log_batch(run_id, params=logged[first : first + _MOST_PARAMS])

    def finish_training(
        self,
        run_id: str,
        name: str,
        metrics: Mapping[str, float],
        value: float,
        trained_tokens: int,
        reports: Sequence[Report],
    ) -> None:
        """End such a run with its scores and what it reported. value: the main metric."""
        final = {**_keyed(metrics), **_cost(trained_tokens)}
        last = _metrics(final, step=reports[-1].step + 1 if reports else 0)
        tags = {"mlflow.runName": f"{name} · {story.short(value)}"}
        self._finish(run_id, [*_reported(reports), *last], tags, Outcome.COMPLETE, value)

    def delete_trainings(self, experiment_id: str) -> None:
        """Delete what an earlier attempt trained beside its trials: it is trained anew."""
        for run in list(self._of_kind(experiment_id, "training")):
            self._models.delete_artifacts(run)
            self._client.writing.delete_run(run.info.run_id)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Keep a text as a file of a run."""
        self._client.writing.log_text(run_id, text, name)

    def log_output(self, run_id: str, printed: Path) -> None:
        """Keep what was printed, if anything was: a file, or a folder of them."""
        if printed.is_dir():
            self._client.patiently(
                lambda: self._client.writing.log_artifacts(run_id, str(printed), printed.name)
            )
        elif printed.exists():
            self._client.writing.log_artifact(run_id, str(printed))

    def log_reports(self, run_id: str, reports: Sequence[Report]) -> None:
        """Log the scores of some steps, and the cost so far, in one call."""
        self._log(run_id, _reported(reports))

    def _log(self, run_id: str, metrics: Sequence[Metric], tags: Sequence[RunTag] = ()) -> None:
        """Log metrics in as many calls as MLflow takes them in; the tags come with the last."""
        first = 0
        while len(metrics) - first > _MOST_METRICS:
            self._client.writing.log_batch(run_id, metrics[first : first + _MOST_METRICS])
            first += _MOST_METRICS
        self._client.writing.log_batch(run_id, metrics[first:], tags=tags)

    def finish_trial(
        self,
        trial: Trial,
        metrics: Mapping[str, float],
        reports: Sequence[Report],
        unlogged: Sequence[Report],
        seconds: Mapping[str, float] = MappingProxyType({}),
        failure: str | None = None,
        why: str | None = None,
    ) -> None:
        """End a trial's run with its final scores, the aggregates of its reports, and what took how
        long.

        The outcome and value are written before the status: a run that is terminated is complete
        in the ledger. unlogged: those of its reports that are yet to be logged. failure: the
        traceback of a failed trial, kept as artifact `traceback.txt`; why: it failed, for people.
        """
        assert trial.outcome is not None
        totals = {f"{story.ASIDE}seconds.{phase}": seconds[phase] for phase in seconds}
        final = {**_keyed(metrics), **_cost(trial.trained_tokens)}
        points = [
            *_reported(unlogged),
            *_metrics({**aggregate(reports), **totals}),
            *_metrics(final, step=reports[-1].step + 1 if reports else 0),
        ]
        last_step = reports[-1].step if reports else None
        reason = why.partition("\n")[0] if why else None
        name = story.name_of(trial.number + 1, trial.outcome, trial.value, last_step, reason)
        tags = {"es.attrs": trial.attrs, "mlflow.runName": name}
        if trial.outcome is Outcome.PRUNED and last_step is not None:
            tags["es.pruned_at_step"] = str(last_step)
            tags["mlflow.note.content"] = f"Pruned at step {last_step}: it had no prospects."
        if failure is not None:
            self._client.writing.log_text(trial.run_id, failure, "traceback.txt")
            tags["es.failure"] = (reason or "")[:500]
            tags["mlflow.note.content"] = story.block(failure)
        self._finish(trial.run_id, points, tags, trial.outcome, trial.value)

    def _finish(
        self,
        run_id: str,
        points: Sequence[Metric],
        tags: Mapping[str, str],
        outcome: Outcome,
        value: float | None,
    ) -> None:
        valued = {} if value is None else {"es.value": repr(value)}
        all_tags = {**tags, "es.outcome": outcome.value, **valued}
        self._log(run_id, points, [RunTag(k, v) for k, v in all_tags.items()])
        status = {Outcome.COMPLETE: "FINISHED", Outcome.PRUNED: "KILLED", Outcome.FAILED: "FAILED"}
        self._client.writing.set_terminated(run_id, status[outcome])

    def warn(self, run_id: str, what: str) -> None:
        """Tell in a run's note of something that is no failure."""
        former = self._client.reading.get_run(run_id).data.tags.get("mlflow.note.content")
        notes = [*filter(None, [former]), story.prose(what)]
        self._client.writing.set_tag(run_id, "mlflow.note.content", "\n\n".join(notes))

    def kill(self, run_id: str, why: str | None = None) -> None:
        """End a run that does not count: interrupted, or left behind by a dead worker."""
        if why is not None:
            note = f"Ended before it was done: {story.prose(why)}."
            self._client.writing.set_tag(run_id, "mlflow.note.content", note)
        self._client.writing.set_terminated(run_id, "KILLED")

    def kill_unfinished(self, experiment_id: str) -> None:
        """End the runs that a dead worker left RUNNING, and delete what they uploaded."""
        for run in list(self._client.runs(experiment_id)):
            if run.info.status == "RUNNING":
                self._models.delete_of(run)
                self.kill(run.info.run_id)

    def log_test_scores(self, run_id: str, scores: Mapping[str, float]) -> None:
        """Log scores on the test split, as `test_<metric>`, to a run that has ended."""
        named = {f"{story.TEST}{to_mlflow(name)}": value for name, value in scores.items()}
        self._client.writing.log_batch(run_id, metrics=_metrics(named))

    def has_unfinished(self, experiment_id: str) -> bool:
        """Return whether a run of the experiment is RUNNING."""
        return any(run.info.status == "RUNNING" for run in self._client.runs(experiment_id))

    def finished_trials(self, experiment_id: str, metric: str | None = None) -> list[Trial]:
        """Return the trials that count against the budget, in the order of their numbers.

        metric: whose reported values to fetch with them; None for none."""
        runs = (
            run
            for run in self._of_kind(experiment_id, "trial")
            if "es.outcome" in run.data.tags and run.info.status != "RUNNING"
        )
        return [
            _as_trial(run, self._reported(run, metric) if metric else None)
            for run in sorted(runs, key=lambda run: int(run.data.tags["es.trial"]))
        ]

    def trials(self, experiment_id: str, kind: str = "trial") -> list[Trial]:
        """Return all trials, however they ended, without what they reported. kind: superseded for
        those that count no more."""
        return [*map(_as_trial, self._of_kind(experiment_id, kind))]

    def trained_tokens(self, experiment_id: str) -> dict[str, int]:
        """Return what each run of an experiment has cost by its last report, however it ended."""
        return {
            run.info.run_id: int(run.data.metrics[TRAINED_TOKENS])
            for run in self._client.runs(experiment_id)
            if TRAINED_TOKENS in run.data.metrics
        }

    def _reported(self, run: Run, metric: str) -> dict[int, float]:
        history = self._client.reading.get_metric_history(run.info.run_id, to_mlflow(metric))
        reported = {point.step: point.value for point in history}
        if "es.value" in run.data.tags:  # the last one is the final score, which was no report
            del reported[max(reported)]
        return reported

    def keep_best(
        self, experiment_id: str, best_run_id: str, kept_run_ids: Collection[str] = ()
    ) -> None:
        """Tag one run of an experiment as its best, then delete the model files of all others.

        The runs stay, tagged; bytes are gone from the disk or object store. Repeating it is safe.
        kept_run_ids: whose models are those of registered versions, and stay."""
        runs = list(self._client.runs(experiment_id))
        self._client.writing.set_tag(best_run_id, "es.is_best", "true")
        for run in runs:
            if run.info.run_id == best_run_id:
                self._rename(run, run.info.run_name.removesuffix(story.BEST) + story.BEST)
                continue
            if "es.is_best" in run.data.tags:
                self._rename(run, run.info.run_name.removesuffix(story.BEST))
                self._client.writing.delete_tag(run.info.run_id, "es.is_best")
            if run.info.run_id not in kept_run_ids:
                self._models.delete_of(run)

    def supersede_failures(self, experiment_id: str) -> None:
        """Free the budget of a restarted task from the sets that failed before the restart."""
        for run in list(self._client.runs(experiment_id)):
            if run.info.status == "FAILED":
                self.supersede(run)

    def supersede_trial(self, run_id: str) -> None:
        """Let a trial count no more, so that its set is tried again."""
        self.supersede(self._client.reading.get_run(run_id))

    def supersede(self, run: Run) -> None:
        """Let a trial count no more."""
        name = run.info.run_name.removesuffix(", superseded")
        self._rename(run, f"{name}, superseded")
        self._client.writing.set_tag(run.info.run_id, "es.kind", "superseded")

    def _rename(self, run: Run, name: str) -> None:
        if run.info.run_name != name:
            self._client.writing.set_tag(run.info.run_id, "mlflow.runName", name)

    # -- other runs ----------------------------------------------------------------------------

    def start_baseline(self, experiment_id: str) -> str:
        """Open the run without training."""
        return self._client.create_run(experiment_id, "baseline", {"es.kind": "baseline"})

    def finish_baseline(self, run_id: str, metrics: Mapping[str, float], value: float) -> None:
        """End the run with its scores. value: the main metric."""
        name = story.name_of(None, Outcome.COMPLETE, value, None, None)
        points = _metrics(_keyed(metrics))
        self._finish(run_id, points, {"mlflow.runName": name}, Outcome.COMPLETE, value)

    def finished_baseline(self, experiment_id: str) -> tuple[str, Mapping[str, float]] | None:
        """Return the id and the metrics of the experiment's baseline run, if it is finished."""
        run = self.finished(experiment_id, "baseline")
        if run is None:
            return None
        return run.info.run_id, {from_mlflow(k): value for k, value in run.data.metrics.items()}

    def record_data(self, experiment_id: str, figures: Mapping[str, float], page: str) -> None:
        """Keep what the data is, as `data/<name>` and as a page, on a run of its own. Repeating it
        is safe."""
        if self.finished(experiment_id, "data") is not None:
            return
        run_id = self._client.create_run(experiment_id, "data", {"es.kind": "data"})
        named = {f"data/{to_mlflow(name)}": value for name, value in figures.items()}
        self._client.writing.log_batch(run_id, metrics=_metrics(named))
        if page:
            self._client.patiently(
                lambda: self._client.writing.log_text(run_id, page, "report.html")
            )
        self._client.writing.set_terminated(run_id)

    def store_summary(self, experiment_id: str, folder: Path | None, failure: str) -> None:
        """Keep the files of a folder in the iteration's summary run; None: say what failed."""
        begun = next(self._of_kind(experiment_id, "summary"), None)
        run_id: str = (
            begun.info.run_id
            if begun
            else self._client.create_run(experiment_id, "summary", {"es.kind": "summary"})
        )
        if folder is None:
            note = f"Not drawn: {story.prose(failure)}"
        else:
            self._client.patiently(lambda: self._client.writing.log_artifacts(run_id, str(folder)))
            note = "What the search found: see the artifacts."
        self._client.writing.set_tag(run_id, "mlflow.note.content", note)
        self._client.writing.set_terminated(run_id)

    def store_failure(self, experiment_id: str, traceback: str) -> None:
        """Keep the traceback of what ended an iteration in a run of its own."""
        note = {"mlflow.note.content": story.block(traceback)}
        run_id = self._client.create_run(experiment_id, "failure", {"es.kind": "failure", **note})
        try:
            self._client.writing.log_text(run_id, traceback, "traceback.txt")
        finally:
            self._client.writing.set_terminated(run_id, "FAILED")

    def finished(self, experiment_id: str, kind: str) -> Run | None:
        """Return the run of a kind that an iteration has one of, if it is finished."""
        runs = self._of_kind(experiment_id, kind)
        return next((run for run in runs if run.info.status == "FINISHED"), None)

    def _of_kind(self, experiment_id: str, kind: str) -> Iterator[Run]:
        return (
            run for run in self._client.runs(experiment_id) if run.data.tags.get("es.kind") == kind
        )


def _metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def _keyed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {to_mlflow(name): value for name, value in metrics.items()}


def _reported(reports: Sequence[Report]) -> list[Metric]:
    return [
        point
        for report in reports
        for point in _metrics(
            {**_keyed(report.metrics), **_cost(report.trained_tokens)}, report.step
        )
    ]


def _cost(trained_tokens: int) -> dict[str, float]:
    return {TRAINED_TOKENS: trained_tokens} if trained_tokens else {}


def aggregate(reports: Sequence[Report]) -> dict[str, float]:
    """Return `<metric>.last`, `.min`, `.max`, `.mean` and, from two reports on, `.sliding_mean`.

    The sliding mean is that of the last three reports. Names begin with `story.ASIDE`."""
    histories: dict[str, list[float]] = {}
    for report in reports:
        for name, value in _keyed(report.metrics).items():
            histories.setdefault(name, []).append(value)
    totals = {}
    for metric, values in histories.items():
        name = f"{story.ASIDE}{metric}"
        totals[f"{name}.last"] = values[-1]
        totals[f"{name}.min"] = min(values)
        totals[f"{name}.max"] = max(values)
        totals[f"{name}.mean"] = fmean(values)
        if len(values) > 1:
            totals[f"{name}.sliding_mean"] = fmean(values[-SLIDING_WINDOW:])
    return totals


def _long_tag(name: str, text: str) -> dict[str, str]:
    """Return a text as tags no longer than MLflow keeps them: `name`, then `name.1` and so on."""
    parts = [text[first : first + _TAG_LENGTH] for first in range(0, len(text), _TAG_LENGTH)]
    return {f"{name}.{number}" if number else name: part for number, part in enumerate(parts)}


def read_tag(tags: Mapping[str, str], name: str) -> str:
    """Return the text that `_long_tag` was given."""
    text, number = tags[name], 1
    while (part := tags.get(f"{name}.{number}")) is not None:
        text, number = text + part, number + 1
    return text


def _shortened(value: str) -> str:
    return value if len(value) <= _PARAM_LENGTH else f"{value[: _PARAM_LENGTH - 1]}…"


def _as_trial(run: Run, reported: dict[int, float] | None = None) -> Trial:
    tags = run.data.tags
    number = int(tags["es.trial"])
    ended, started = run.info.end_time, run.info.start_time
    return Trial(
        number,
        int(tags.get("es.study_trial", number)),
        json.loads(read_tag(tags, "es.suggested.values")),
        json.loads(read_tag(tags, "es.suggested.distributions")),
        run.info.run_id,
        outcome=Outcome(tags["es.outcome"]) if "es.outcome" in tags else None,
        value=float(tags["es.value"]) if "es.value" in tags else None,
        reports=reported or {},
        attrs=tags.get("es.attrs", "{}"),
        trained_tokens=int(run.data.metrics.get(TRAINED_TOKENS, 0)),
        seconds=(ended - started) / 1000 if ended and started else 0.0,
        ended=ended or 0,
        has_model=tags.get("es.model") == "stored",
    )
