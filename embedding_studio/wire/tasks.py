"""The JSON of fine-tuning tasks and of what happens to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from operator import not_
from statistics import fmean
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from embedding_studio.clickstream import BatchStatus, SessionBatch, TimeRange, check_weights
from embedding_studio.plain import check_plain
from embedding_studio.reports import BatchReport, Enough, tell_enough
from embedding_studio.settings import Settings
from embedding_studio.tasks import (
    MOST_FOLDS,
    Budget,
    Delivery,
    FineTuningTask,
    NumberedTaskEvent,
    Promote,
    Promotion,
    Pruner,
    Sampler,
    SearchOptions,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.tracking.reader import QUERIES_PAGE, experiment_url, run_url
from embedding_studio.wire.clickstream import (
    BatchReportView,
    BatchSummary,
    PostedTime,
    from_unix_seconds,
)
from embedding_studio.wire.fields import Id, Meta, ModelName, Plain, is_none
from embedding_studio.wire.labels import LabelSetReport

Minutes = Annotated[FiniteFloat, Field(gt=0, le=525_600)]


class BudgetBody(BaseModel):
    """Ends the search, whichever limit comes first; a limit left out is the method's own."""

    model_config = ConfigDict(extra="forbid")

    max_trials: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_minutes: Minutes | None = Field(
        None, description="of the search; at their end trials at work are asked to end"
    )
    max_trained_tokens: Annotated[int, Field(ge=1, le=2**53, strict=True)] | None = Field(
        None, description="of all trials: tokens seen times epochs, as the method counts them"
    )
    max_minutes_per_trial: Minutes | None = Field(
        None, description="after which a trial is asked to end, at its next report"
    )


class SearchBody(BaseModel):
    """How to search; what is left out is the method's own."""

    model_config = ConfigDict(extra="forbid")

    sampler: Sampler | None = Field(None, description="who proposes hyperparameter sets")
    pruner: Pruner | None = Field(None, description="who ends hopeless trials early")


WebhookUrl = Annotated[
    str,
    StringConstraints(max_length=2048),
    Plain,
    Field(description="is told when the task has ended, however: a signed POST"),
]


EventWeights = Annotated[
    dict[Id, FiniteFloat],
    AfterValidator(check_weights),
    Field(
        max_length=100,
        description="as how many clicks events of a type count, 0: not at all; over the method's",
    ),
]


ModelReference = Annotated[str, StringConstraints(min_length=1, max_length=1024), Plain]
MOST_CHOICES = 100


def _check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    for name, wanted in parameters.items():
        choices = wanted if isinstance(wanted, list) else [wanted]
        if not 1 <= len(choices) <= MOST_CHOICES:
            raise ValueError(f"{name!r} has {len(choices)} choices; 1 to {MOST_CHOICES} are taken")
        for one in choices:
            is_number = isinstance(one, int | float) and abs(one) < 2**63
            if not (one is None or is_number or isinstance(one, str)):
                raise ValueError(f"{name!r} is {wanted!r}: a number, a text, true, false or null")
            if isinstance(one, str):
                check_plain(one)
    return parameters


TaskParameters = Annotated[dict[Id, Any], AfterValidator(_check_parameters), Field(max_length=100)]
MOST_BATCHES = 100
"""How many a task may name."""
RangeTime = Annotated[PostedTime, Field(ge=0, lt=253_402_300_800)]
_TIMES = {"since", "until"}


class Terms(BaseModel):
    """What a task is asked for with, at once or by a schedule."""

    model_config = ConfigDict(extra="forbid")

    fine_tuning_method: Id = Field(description="the `meta.name` of a plugin")
    metadata: Meta | None = None
    budget: BudgetBody | None = None
    search: SearchBody | None = None
    event_weights: EventWeights | None = None
    promote: Promote | None = Field(
        None,
        description="what makes the best model champion: that it is better beyond chance "
        "(significant), that it is better (better), or nothing (never); absent: the method's",
    )
    folds: Annotated[int, Field(ge=1, le=MOST_FOLDS, strict=True)] | None = Field(
        None,
        description="how many parts of the queries judge, each by a model that did not see it; 1: "
        "the test queries alone judge the best trial's model; absent: the method's",
    )
    webhook_url: WebhookUrl | None = None
    last: Annotated[str, StringConstraints(max_length=5)] | None = Field(
        None,
        description="learn from all sessions that were made so long before the task is created, "
        "or later, whichever batches they are in: 30d, 2w, 12h",
        examples=["30d"],
    )
    since: RangeTime | None = Field(
        None, description="the same from a time on: Unix seconds, or ISO 8601 with a time zone"
    )

    labels_id: Id | None = Field(
        None,
        description="labels to learn from: beside batch_id or a time range, or, without these, "
        "alone; then no batch is released",
    )
    judge_labels_id: Id | None = Field(
        None,
        description="labels that decide what is promoted; nothing is learnt of their queries, or, "
        "where they are what is learnt from, of those of the test split",
    )
    model_name: ModelName | None = Field(
        None,
        description="the registered model that it goes on with, and whose next version it makes: "
        "each has a champion, a history and former versions of its own; absent: the method's name",
    )
    initial_model: ModelReference | None = Field(
        None,
        description="start from this one, and not from the champion: a registered model (name, "
        "name/3, name@champion; owner:name of what another project shares), the id of a model on "
        "the Hugging Face hub, or a folder below ES_ALLOWED_ROOTS; the champion is still what the "
        "best model must be better than",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = Field(
        None, description="of the search, the trials and the gate; absent: ES_SEED"
    )
    parameters: TaskParameters | None = Field(
        None,
        description="hyperparameters by the names that the method asks for: a value fixes one, two "
        "numbers narrow a range, a list of choices keeps these",
        examples=[{"epochs": 3, "learning_rate": [1e-5, 1e-4]}],
    )

    @classmethod
    def unchecked(cls, **given: Any) -> "Terms":
        """Return a body of the domain's values as a client sends it, for the server to judge.
        Raises TypeError for what it has not."""
        if unknown := given.keys() - cls.model_fields:
            raise TypeError(f"a task is not asked for with {', '.join(sorted(unknown))}")
        given = {name: value for name, value in given.items() if value is not None}
        for name in _TIMES & given.keys():
            given[name] = given[name].timestamp()
        given["budget"] = asdict(given.get("budget") or Budget())
        given["search"] = asdict(given.get("search") or SearchOptions())
        for name in {"metadata", "event_weights", "parameters"} & given.keys():
            given[name] = dict(given[name])
        if "batch_ids" in given:
            given["batch_ids"] = [*given["batch_ids"]]
        return cls.model_construct(**given)

    def given(self) -> dict[str, Any]:
        """Return the fields, as the domain has them."""
        budget, search = Budget(**dict(self.budget or ())), SearchOptions(**dict(self.search or ()))
        times = {
            # to the millisecond, as they are kept
            name: from_unix_seconds(round(value, 3))
            for name, value in self
            if name in _TIMES and value is not None
        }
        return {**dict(self), "budget": budget, "search": search, **times}


class TaskBody(Terms):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fine_tuning_method": "Default Fine Tuning Method",
                    "idempotency_key": "nightly-2026-01-31",
                    "budget": {"max_trials": 4, "max_minutes": 30},
                }
            ]
        },
    )

    batch_id: Id | None = Field(None, description="a released batch; absent: the one collecting")
    batch_ids: Annotated[list[Id], Field(max_length=MOST_BATCHES)] | None = Field(
        None, description="several released batches, in place of batch_id, which is then the last"
    )
    until: RangeTime | None = Field(
        None, description="the end of the time range, which is not in it; absent: it has none"
    )
    idempotency_key: Id | None = Field(None, description="the same key gives the same task")

    def given(self) -> dict[str, Any]:
        return {**super().given(), "batch_ids": tuple(dict.fromkeys(self.batch_ids or ()))}


class TaskView(BaseModel):
    """A fine-tuning task as its clients see it. Times are UTC."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    fine_tuning_method: str
    status: TaskStatus
    created_at: datetime
    updated_at: datetime
    batch_id: str | None
    batch_ids: list[str] = Field([], exclude_if=not_, description="where several were named")
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None
    budget: Budget
    search: SearchOptions
    event_weights: Mapping[str, float] | None = Field(None, exclude_if=is_none)
    promote: Promote | None = Field(None, exclude_if=is_none)
    folds: int | None = Field(None, exclude_if=is_none)
    last: str | None = Field(None, exclude_if=is_none)
    since: datetime | None = Field(None, exclude_if=is_none, description="also what `last` is")
    until: datetime | None = Field(None, exclude_if=is_none)
    labels_id: str | None = Field(None, exclude_if=is_none)
    judge_labels_id: str | None = Field(None, exclude_if=is_none)
    model_name: str | None = Field(None, exclude_if=is_none)
    initial_model: str | None = Field(None, exclude_if=is_none)
    seed: int | None = Field(None, exclude_if=is_none)
    parameters: Mapping[str, Any] | None = Field(None, exclude_if=is_none)
    attempt: int
    worker_id: str | None
    progress: TaskProgress | None
    promotion: Promotion | None
    error: str | None
    webhook_url: str | None = Field(None, exclude_if=is_none)
    delivery: Delivery | None = Field(
        None, exclude_if=is_none, description="how telling the webhook of the end goes"
    )
    delivery_due_at: datetime | None = Field(
        None, exclude_if=is_none, description="when the webhook is told, again if need be"
    )
    experiment_id: str | None = Field(None, exclude_if=is_none, description="in MLflow")
    mlflow_url: str | None = Field(None, description="the iteration's experiment, for people")
    queries_url: str | None = Field(
        None,
        exclude_if=is_none,
        description="for people: what was ranked first, before and after, for the queries that "
        "gained and lost most",
    )
    # clients written for the reference take the presence of this field as "there is a model"
    best_model_url: str | None = Field(
        None, exclude_if=is_none, description="the model as a ZIP; absent until there is one"
    )

    @classmethod
    def of(cls, task: FineTuningTask, settings: Settings, api_url: str | None) -> Self:
        """Return the view of a task with its links, to its model only where the API's address is
        known."""
        view = cls.model_validate(task)
        if task.experiment_id:
            view.mlflow_url = experiment_url(settings.mlflow_public_url, task.experiment_id)
            if task.best_model and task.promotion and task.promotion.has_lists:
                best = task.experiment_id, task.best_model.run_id
                view.queries_url = run_url(settings.mlflow_public_url, *best, QUERIES_PAGE)
        if task.best_model and api_url:
            view.best_model_url = f"{api_url.rstrip('/')}/api/v1/fine-tuning/task/{task.id}/model"
        return view


class TaskEstimate(BaseModel):
    """What a task may take, as told by the last one of its method that was done."""

    task_id: str = Field(description="of that task")
    trials: int = Field(description="that it finished")
    seconds_per_trial: float = Field(description="their mean, wherever they ran")
    tokens_per_trial: int | None = Field(description="null: the method does not count them")
    sessions: int | None = Field(
        description="that it learnt from; null where that is not known: a time range, labels, or a "
        "batch that is gone"
    )
    minutes: float | None = Field(
        description="of all trainings one after the other, by the ratio of sessions; null where "
        "trainings or the sessions of either are not known"
    )
    trained_tokens: int | None = Field(description="the same of tokens")

    @classmethod
    def of(
        cls,
        former: FineTuningTask,
        events: Iterable[TaskEvent],
        former_sessions: int | None,
        sessions: int | None,
        trainings: int | None,
    ) -> Self | None:
        """Return the estimate, None where no trial of the former task was finished."""
        seconds = [
            float(one.data["seconds"])
            for one in events
            if one.kind is TaskEventKind.TRIAL_FINISHED and "seconds" in one.data
        ]
        if not seconds:
            return None
        progress = former.progress or TaskProgress("")
        begun = progress.finished_trials + progress.failed_trials + progress.pruned_trials
        tokens = round(progress.trained_tokens / max(1, begun)) or None
        times = None
        if trainings and former_sessions and sessions:
            times = trainings * sessions / former_sessions
        return cls(
            task_id=former.id,
            trials=len(seconds),
            seconds_per_trial=round(fmean(seconds), 1),
            tokens_per_trial=tokens,
            sessions=former_sessions,
            minutes=round(times * fmean(seconds) / 60, 1) if times else None,
            trained_tokens=round(times * tokens) if times and tokens else None,
        )


class LabelConflictsView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    pairs: int = Field(description="of a query and an item, relevant by one set and not the other")
    examples: list[tuple[str, str]] = Field(description="the first of them")


class TaskPlan(BaseModel):
    """What a task would take, were it created now. Nothing is created and nothing released."""

    batches: list[BatchSummary] = Field(description="to learn from, in the order of their release")
    releases: str | None = Field(description="the batch that the task would release, if any")
    since: datetime | None = Field(description="of the time range; also what `last` is")
    until: datetime | None
    budget: Budget = Field(description="a limit that is null is the method's own")
    folds: int | None = Field(description="null: the method's own")
    trainings: int | None = Field(
        description="how often is trained at most: once a trial, once for each fold but the first, "
        "and for the model that is served; null where trials or folds are left to the method"
    )
    enough: Enough = Field(description="whether there is enough to learn from and to judge by")
    verdict: str = Field(description="the same in words")
    report: BatchReportView | None = Field(
        description="on the sessions to learn from, by the task's weights; null: there are none"
    )
    labels: LabelSetReport | None = Field(description="to learn from")
    judge_labels: LabelSetReport | None = Field(description="that decide what is promoted")
    label_conflicts: LabelConflictsView | None = Field(
        None, description="of the labels to learn from and those that decide; null: not both"
    )
    estimate: TaskEstimate | None = Field(
        None, description="null: not known, as no task of the method was done in this project"
    )

    @classmethod
    def of(
        cls,
        wanted: TaskRequest,
        batches: Sequence[SessionBatch],
        made: TimeRange | None,
        report: BatchReport | None,
        labels: LabelSetReport | None,
        judge_labels: LabelSetReport | None,
    ) -> Self:
        collecting = [one.batch_id for one in batches if one.status is BatchStatus.COLLECTING]
        trials, folds = wanted.budget.max_trials, wanted.folds
        enough, verdict = tell_enough(
            report.clicked_queries if report else None,
            labels.relevant_queries if labels else None,
            judge_labels.relevant_queries if judge_labels else None,
        )
        return cls(
            batches=[BatchSummary.of(batch) for batch in batches],
            releases=collecting[0] if collecting else None,
            since=made and made.since,
            until=made and made.until,
            budget=wanted.budget,
            folds=folds,
            # with one fold nothing is trained again
            trainings=trials + (folds if folds > 1 else 0) if trials and folds else None,
            enough=enough,
            verdict=verdict,
            report=BatchReportView.model_validate(report) if report else None,
            labels=labels,
            judge_labels=judge_labels,
        )


class TaskEnded(BaseModel):
    """What a webhook is told: the task as the API shows it, without how the telling goes."""

    type: str
    timestamp: datetime
    data: TaskView

    @classmethod
    def of(cls, task: FineTuningTask, settings: Settings) -> Self:
        return cls(
            type=f"fine_tuning_task.{task.status}",
            timestamp=task.updated_at,
            data=TaskView.of(task, settings, settings.api_public_url),
        )

    def to_json(self) -> bytes:
        # the same each time that it is told
        untold = {"data": {"delivery", "delivery_due_at"}}
        return self.model_dump_json(exclude=untold).encode()


class TaskEventView(BaseModel):
    number: int = Field(description="1 for the first, then one higher each time")
    kind: TaskEventKind
    at: datetime
    detail: str = Field(description="for people")
    data: Mapping[str, Any] = Field(description="its figures, for programs")

    @classmethod
    def of(cls, numbered: NumberedTaskEvent) -> Self:
        return cls(number=numbered.number, **asdict(numbered.event))


class TaskEventsPage(BaseModel):
    task_id: str
    last_number: int | None = Field(description="the next page's after_number; null: no more yet")
    events: list[TaskEventView]

    @classmethod
    def of(cls, task_id: str, events: Sequence[NumberedTaskEvent]) -> Self:
        return cls(
            task_id=task_id,
            last_number=events[-1].number if events else None,
            events=[TaskEventView.of(numbered) for numbered in events],
        )
