"""What the page shows, and the forms that it takes: the API's own routes, called with what a
browser sends, and told in HTML."""

import secrets
from dataclasses import fields
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from embedding_studio.api import clickstream, models, system, tasks
from embedding_studio.api.context import Context, OpenContext, ReadContext, TuneContext
from embedding_studio.api.routing import Route, in_turn
from embedding_studio.errors import InvalidInput, Unauthorized
from embedding_studio.keys import Scope, make_sign_in, read_key
from embedding_studio.pages import answers, cookies, paths
from embedding_studio.pages.plots import Curves, Gains
from embedding_studio.pages.trials import trials_of
from embedding_studio.report_page import parts_of
from embedding_studio.tasks import LEGAL_TRANSITIONS, TERMINAL, TaskRequest, TaskStatus
from embedding_studio.tracking.reader import run_url
from embedding_studio.wire.fields import MAX_PAGE_OFFSET
from embedding_studio.wire.tasks import TaskEventView, TaskView

router = APIRouter(route_class=Route, include_in_schema=False)

PAGE_SIZE = 30
MOST_FORM_BYTES = 16 * 1024
REFRESH_SECONDS = 3
"""How often a page is brought up to date while something on it goes on."""
Skip = Annotated[int, Query(ge=0, le=MAX_PAGE_OFFSET)]


async def form_of(request: Request) -> dict[str, str]:
    """Return what a form has. Raises Forbidden for one that another site may have sent."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM_BYTES:  # which may be sent by anyone who wants to sign in
            raise HTTPException(413, f"a form has at most {MOST_FORM_BYTES} bytes")
    try:
        form = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
    except ValueError as error:
        raise HTTPException(400, "what was sent is no form") from error
    cookies.check_form(request.scope, request.headers, form)
    return form


@router.get("/")
async def show_tasks(request: Request, context: ReadContext, skip: Skip = 0) -> Response:
    size = min(PAGE_SIZE, context.settings.max_page_size)
    found = await in_turn(request, _list_tasks, request, context, skip, size)
    batches = await in_turn(request, clickstream.list_batches, context, 0, size)
    is_live = any(one.status not in TERMINAL for one in found)
    methods, may_tune = [], context.caller.allows(Scope.TUNE)
    if may_tune:
        methods = (await request.app.state.health.view()).worker.methods
    return answers.page(
        request.scope,
        "tasks",
        tasks=found,
        skip=skip,
        size=size,
        methods=methods,
        batches=batches,
        may_tune=may_tune,
        idempotency_key=secrets.token_urlsafe(12),
        refresh_seconds=REFRESH_SECONDS if is_live else None,
    )


def _list_tasks(request: Request, context: Context, skip: int, size: int) -> list[TaskView]:
    return tasks.list_tasks(request, context, skip=skip, limit=size)


@router.post("/tasks")
async def create_task(request: Request, context: TuneContext) -> Response:
    form = await form_of(request)
    body: Any = {name: form[name] for name in _TASK_FIELDS if form.get(name)}
    if trials := form.get("max_trials"):
        body["budget"] = {"max_trials": _number(trials)}
    created = await tasks.create_task(body, request, context)
    assert isinstance(created, TaskView)  # for it was no dry run
    return answers.see(f"/tasks/{quote(created.id)}")


_TASK_FIELDS = ("fine_tuning_method", "batch_id", "idempotency_key")


@router.get("/tasks/{task_id}")
def show_task(task_id: str, request: Request, context: ReadContext) -> Response:
    task = tasks.get_task(task_id, request, context)
    events = _events_of(task_id, context)
    trials = trials_of(events, task.progress)
    return answers.page(
        request.scope,
        "task",
        task=task,
        trials=trials,
        run_url=partial(run_url, context.settings.mlflow_public_url, task.experiment_id or ""),
        metric=(task.progress and task.progress.main_metric_name) or "the main metric",
        curves=Curves.of(trials, task.progress.baseline if task.progress else None),
        events=events,
        asked=_asked_for(task),
        actions=_actions_on(task) if context.caller.allows(Scope.TUNE) else (),
        refresh_seconds=None if task.status in TERMINAL else REFRESH_SECONDS,
    )


def _events_of(task_id: str, context: Context) -> list[TaskEventView]:
    found: list[TaskEventView] = []
    size = context.settings.max_page_size
    while True:
        after = found[-1].number if found else 0
        answer = tasks.list_events(task_id, context, after, size)
        assert not isinstance(answer, Response)  # for no stream was asked for
        found += answer.events
        if len(answer.events) < size:
            return found


def _asked_for(task: TaskView) -> dict[str, Any]:
    """Return what the task was asked for with, by its names, without what it leaves to others."""
    names = {one.name for one in fields(TaskRequest)}
    given = task.model_dump(mode="json", include=names, exclude_none=True)
    found: dict[str, Any] = {}
    for name, value in given.items():
        found |= value if isinstance(value, dict) else {name: value}
    return {name.replace("_", " "): value for name, value in found.items() if value is not None}


def _actions_on(task: TaskView) -> list[str]:
    """Return what may be done to a task as it is."""
    targets = LEGAL_TRANSITIONS[task.status]
    actions = [name for name, status in _TARGETS.items() if status in targets]
    is_promoted = task.promotion is not None and task.promotion.promoted
    if task.status not in TERMINAL or (task.status is TaskStatus.DONE and is_promoted):
        # a worker gives back what it is at, and what was promoted goes on in another task
        actions = [name for name in actions if name != "restart"]
    if task.status in TERMINAL - {TaskStatus.CANCELED} and task.best_model_url:
        actions.append("promote")
    return actions


_TARGETS = {
    "stop": TaskStatus.STOPPING,
    "cancel": TaskStatus.CANCELED,
    "restart": TaskStatus.PENDING,
}
_CHANGES = {"stop": tasks.stop_task, "cancel": tasks.cancel_task, "restart": tasks.restart_task}


@router.post("/tasks/{task_id}/{action}")
async def change_task(
    task_id: str, action: str, request: Request, context: TuneContext
) -> Response:
    form = await form_of(request)
    if action not in _CHANGES:
        raise HTTPException(404)
    given: tuple[object, ...] = ()
    if action == "restart" and (trials := form.get("max_trials")):
        if not isinstance(number := _number(trials), int) or number < 1:
            raise InvalidInput(f"max_trials is {trials!r}: write a whole number from 1 on")
        given = False, number
    await in_turn(request, _CHANGES[action], task_id, request, context, *given)
    return answers.see(f"/tasks/{quote(task_id)}")


@router.get("/batches")
def show_batches(request: Request, context: ReadContext, skip: Skip = 0) -> Response:
    size = min(PAGE_SIZE, context.settings.max_page_size)
    return answers.page(
        request.scope,
        "batches",
        batches=clickstream.list_batches(context, skip, size),
        skip=skip,
        size=size,
        may_tune=context.caller.allows(Scope.TUNE),
        release_id=f"page {secrets.token_urlsafe(12)}",
    )


@router.post("/batches/release")
async def release_batch(request: Request, context: TuneContext) -> Response:
    form = await form_of(request)
    body = {"release_id": form.get("release_id", "")}
    released = await in_turn(request, clickstream.release_batch, body, context)
    return answers.see(f"/batches/{quote(released.batch_id)}")


@router.get("/batches/{batch_id}")
async def show_batch(batch_id: str, request: Request, context: ReadContext) -> Response:
    batch = await in_turn(request, clickstream.get_batch, context, batch_id)
    found = await in_turn(request, context.store.clickstream.get_batch, batch_id)
    report = await clickstream.report_on([found], request, context)
    return answers.page(request.scope, "batch", batch=batch, **parts_of(report))


@router.get("/models")
def show_models(request: Request, context: ReadContext) -> Response:
    return answers.page(request.scope, "models", models=models.list_models(context))


@router.get("/models/{name}")
def show_model(name: str, request: Request, context: ReadContext) -> Response:
    model = models.get_model(name, context)
    return answers.page(
        request.scope,
        "model",
        model=model,
        gains=Gains.of(model),
        may_tune=context.caller.allows(Scope.TUNE),
    )


@router.get("/models/{name}/versions/{version}/download")
async def download_version(name: str, version: str, context: ReadContext) -> Response:
    return await models.download_version(name, version, context)


@router.post("/models/{name}/promote")
async def promote(name: str, request: Request, context: TuneContext) -> Response:
    body = _decision_of(await form_of(request))
    await in_turn(request, models.promote, name, body, context)
    return answers.see(f"/models/{quote(name, safe='')}")


@router.post("/models/{name}/rollback")
async def roll_back(name: str, request: Request, context: TuneContext) -> Response:
    body = _decision_of(await form_of(request))
    await in_turn(request, models.roll_back, name, body, context)
    return answers.see(f"/models/{quote(name, safe='')}")


def _decision_of(form: dict[str, str]) -> dict[str, Any]:
    """Return what a person decides of a model, for its route to judge."""
    body: dict[str, Any] = {name: form[name] for name in ("task_id", "reason") if form.get(name)}
    numbers = {name: form[name] for name in ("version", "expected_champion") if form.get(name)}
    return body | {name: _number(text) for name, text in numbers.items()}


def _number(text: str) -> int | str:
    """Return a field as a number where it is one, as a route expects it."""
    return int(text) if text.isdecimal() and len(text) < 10 else text


@router.get("/health")
async def show_health(request: Request, response: Response, context: ReadContext) -> Response:
    health = await system.health(request, response, context)
    return answers.page(request.scope, "health", health=health)


@router.get(paths.SIGN_IN)
async def ask_for_key(request: Request, next: str = paths.HOME) -> Response:  # noqa: A002
    return answers.page(request.scope, "sign_in", next=paths.or_home(next), problem="")


@router.post(paths.SIGN_IN)
async def sign_in(request: Request, context: OpenContext) -> Response:
    form = await form_of(request)
    wanted = paths.or_home(form.get("next", paths.HOME))
    try:
        caller = await request.app.state.keys.caller_of(read_key(form.get("key", "").strip()))
    except Unauthorized:
        problem = "This is no valid key: it is unknown, has expired, or was revoked."
        return answers.page(request.scope, "sign_in", 401, next=wanted, problem=problem)
    answer = answers.see(wanted)
    if caller.key:
        cookies.keep_sign_in(request.scope, answer, make_sign_in(caller.key, context.clock()))
    return answer


@router.post(paths.SIGN_OUT)
async def sign_out(request: Request) -> Response:
    await form_of(request)
    answer = answers.see(paths.SIGN_IN)
    cookies.end_sign_in(request.scope, answer)
    return answer


@router.get(paths.STYLE)
async def style() -> Response:
    return answers.file("page.css", "text/css")


@router.get(paths.SCRIPT)
async def script() -> Response:
    return answers.file("page.js", "text/javascript")
