"""What a task is asked for with, as options: the same for a task and for those of a schedule."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from embedding_studio.cli.context import with_options
from embedding_studio.tasks import Budget, Promote, Pruner, Sampler, SearchOptions

Method = Annotated[
    str, typer.Argument(metavar="METHOD", help="the method's name; `methods list` has them")
]
_OPTIONS: dict[str, Any] = {
    "last": Annotated[
        str | None, typer.Option(help="learn from the sessions of the last 30d, 2w or 12h")
    ],
    "since": Annotated[
        str | None, typer.Option(help="learn from sessions made from this date or time on (UTC)")
    ],
    "labels": Annotated[
        str | None, typer.Option(metavar="LABELS", help="learn from these labels, too or alone")
    ],
    "judge_labels": Annotated[
        str | None, typer.Option(metavar="LABELS", help="these labels decide what is promoted")
    ],
    "model_name": Annotated[
        str | None, typer.Option(help="the registered model that it goes on with")
    ],
    "initial_model": Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="NAME/3, a hub's id or a folder to start from"),
    ],
    "seed": Annotated[int | None, typer.Option(min=0, help="of the search, the trials, the gate")],
    "parameters": Annotated[
        str | None,
        typer.Option(metavar="JSON", help='{"epochs": 3, "learning_rate": [1e-5, 1e-4]}'),
    ],
    "trials": Annotated[int | None, typer.Option(min=1, help="most hyperparameter sets")],
    "minutes": Annotated[float | None, typer.Option(help="most minutes of the search")],
    "trial_minutes": Annotated[float | None, typer.Option(help="most minutes of a trial")],
    "tokens": Annotated[int | None, typer.Option(min=1, help="most trained tokens of all trials")],
    "sampler": Annotated[Sampler | None, typer.Option(help="who proposes hyperparameter sets")],
    "pruner": Annotated[Pruner | None, typer.Option(help="who ends hopeless trials early")],
    "weight": Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=NUMBER", help="as how many clicks an event counts; repeatable"),
    ],
    "promote": Annotated[
        Promote | None, typer.Option(help="what a model has to show to become champion")
    ],
    "folds": Annotated[int | None, typer.Option(min=1, help="how many parts of the queries judge")],
    "metadata": Annotated[
        str | None, typer.Option(metavar="JSON", help="an object that is kept with it")
    ],
    "webhook_url": Annotated[str | None, typer.Option(help="is told when a task has ended")],
    "idempotency_key": Annotated[str | None, typer.Option(help="the same key asks once")],
}


def takes_terms(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; its parameter `terms` gets them as the client takes them."""
    return with_options(command, _OPTIONS, _terms, "terms")


def moment_of(text: str | None) -> datetime | None:
    """Return the time that an ISO date or time says, in UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} says no time: write 2026-01-31 or 2026-01-31T12:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _terms(given: dict[str, Any]) -> dict[str, Any]:
    budget = Budget(*(given.pop(name) for name in ("trials", "minutes", "tokens", "trial_minutes")))
    search = SearchOptions(given.pop("sampler"), given.pop("pruner"))
    terms = {
        "since": moment_of(given.pop("since")),
        "labels_id": given.pop("labels"),
        "judge_labels_id": given.pop("judge_labels"),
        "event_weights": _weights_of(given.pop("weight")),
        "metadata": _object_of("metadata", given.pop("metadata")),
        "parameters": _object_of("parameters", given.pop("parameters")),
    }
    return {"terms": {"budget": budget, "search": search, **terms, **given}}


def _weights_of(words: Sequence[str] | None) -> dict[str, float] | None:
    weights = {}
    for word in words or ():
        kind, _, number = word.rpartition("=")
        try:
            weights[kind] = float(number if kind else "")
        except ValueError:
            raise typer.BadParameter(f"--weight {word!r}: write it as purchase=5") from None
    return weights or None


def _object_of(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--{option} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f'--{option} is no JSON object: write {{"name": "value"}}')
    return found
