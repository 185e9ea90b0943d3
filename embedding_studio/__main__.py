"""The command line: wiring only. Imports wait until a command needs them."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from embedding_studio.clock import utc_now
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.keys import Scope
from embedding_studio.logs import configure
from embedding_studio.plain import escape, escape_lines
from embedding_studio.projects import DEFAULT_PROJECT

if TYPE_CHECKING:
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.store import Store

WIDE = 250
"""Columns of a table that no terminal shows."""

app = typer.Typer(
    name="embedding-studio",
    help="Turn the clicks of a search product into a better embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="Make, list and end API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
champion = typer.Typer(help="List a method's models, and go back to one.", no_args_is_help=True)
app.add_typer(champion, name="champion")
Method = Annotated[str, typer.Argument(metavar="METHOD", help="the method's name")]
Url = Annotated[str | None, typer.Option("--url", help="the API's address, if not this machine's")]


@app.command()
def api() -> None:
    """Serve the HTTP API."""
    from embedding_studio.api.server import serve
    from embedding_studio.settings import Settings

    configure(logging.INFO)
    serve(Settings())


@app.command()
def worker() -> None:
    """Run fine-tuning tasks until asked to end."""
    from embedding_studio.engine.worker import open_worker
    from embedding_studio.settings import Settings

    configure(logging.INFO)
    open_worker(Settings()).run_forever()


@app.command()
def up() -> None:
    """Run the API, a worker and the MLflow UI on this machine until Ctrl-C."""
    from embedding_studio.services import Services
    from embedding_studio.settings import Settings

    configure(logging.WARNING)
    with Services(Settings()) as services:
        typer.echo(services.describe())
        services.wait()


@app.command()
def demo(
    sessions: Annotated[int, typer.Option(min=100, help="simulated searches per round")] = 60_000,
    trials: Annotated[int, typer.Option(min=1, help="hyperparameter sets per round")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, help="later rounds search with the champion, and start from it")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Watch simulated clicks on a real corpus become a better model; starts what it needs."""
    from embedding_studio.demo.run import run_demo
    from embedding_studio.settings import Settings

    configure(logging.WARNING)
    run_demo(Settings(), sessions, trials, rounds, seed)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="who will use it, for people")],
    scope: Annotated[list[Scope], typer.Option(help="what it allows; may be given again")],
    project: Annotated[str, typer.Option(help="whose data it reaches")] = DEFAULT_PROJECT,
    expires: Annotated[
        str | None, typer.Option(help="90d, 24h or an ISO date; without it, never")
    ] = None,
) -> None:
    """Make a key and print it; it is shown this once."""
    from embedding_studio.keys import make_key, parse_expiry

    now = utc_now()
    key, text = make_key(name, scope, project, now, parse_expiry(expires, now) if expires else None)
    with _store() as store:
        store.keys.add(key)
    typer.echo(text)


@keys.command("list")
def list_keys() -> None:
    """Show all keys, without their secrets."""
    rows = []
    with _store() as store:
        for key in store.keys.all():
            times = map(_minute, (key.created_at, key.expires_at, key.revoked_at))
            rows.append([key.id, key.name, ",".join(key.scopes), key.project, *times])
    _print_table(["id", "name", "scopes", "project", "created", "expires", "revoked"], rows)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """End a key, within five seconds and for good."""
    with _store() as store:
        store.keys.end(key_id, revoked_at=utc_now())
    typer.echo(f"key {key_id} is revoked")


@keys.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    overlap: Annotated[str, typer.Option(help="how long the former key goes on: 24h")] = "24h",
) -> None:
    """Make a key for the same use and print it; the former one expires after the overlap."""
    from embedding_studio.errors import NotFound
    from embedding_studio.keys import make_successor, parse_duration

    now, both_for = utc_now(), parse_duration(overlap)
    with _store() as store:
        former = store.keys.find(key_id)
        if former is None:
            raise NotFound(f"no API key has the id {key_id!r}")
        key, text = make_successor(former, now)
        store.keys.add(key)
        store.keys.end(key_id, expires_at=now + both_for)
    typer.echo(text)


@champion.command("list")
def list_versions(method: Method, url: Url = None) -> None:
    """Show the versions of a method's model, newest first, and who moved the champion."""
    with _client(url) as client:
        found = client.champion(method)
    rows = []
    for version in found.versions:
        state = "champion" if version.is_champion else "" if version.can_be_champion else "removed"
        verdict = version.promotion
        figures = f"{verdict.baseline:.4f} -> {verdict.best:.4f}" if verdict else ""
        reason = verdict.reason if verdict else ""
        made = _minute(version.created_at)
        rows.append([str(version.version), state, made, version.task_id or "", figures, reason])
    _print_table(["version", "state", "created", "task", "test", "verdict"], rows)
    rows = []
    for move in found.moves:
        from_to = [str(move.from_version or ""), str(move.to_version)]
        rows.append([_minute(move.at), *from_to, move.kind, move.by, move.why])
    typer.echo()
    _print_table(["moved", "from", "to", "kind", "by", "why"], rows)


@champion.command("rollback")
def roll_back(
    method: Method,
    version: Annotated[
        int | None, typer.Option(min=1, help="without it, the one before the present champion")
    ] = None,
    reason: Annotated[str, typer.Option(help="for the model's history")] = "",
    url: Url = None,
) -> None:
    """Make an earlier version champion; MLflow's alias follows within seconds."""
    with _client(url) as client:
        found = client.roll_back(method, version, reason)
    typer.echo(escape(f"version {found.champion} is champion: models:/{found.name}@champion"))


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option(help="tell what would be removed, and leave it")] = False,
) -> None:
    """Remove what crashes left behind; champions and live iterations are never touched."""
    from embedding_studio.errands import sweep as sweeping
    from embedding_studio.settings import Settings
    from embedding_studio.tracking import open_tracking

    settings = Settings()
    tracking = open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)
    with _store() as store:
        found = sweeping.sweep(store, tracking, settings, utc_now(), dry_run)
    for what in found:
        typer.echo(escape(what))
    typer.echo(f"{len(found)} left behind" if dry_run else f"{len(found)} removed or ended")


def _store() -> "AbstractContextManager[Store]":
    from embedding_studio.settings import Settings
    from embedding_studio.store import open_store

    return closing(open_store(Settings().resolved_store_url))


def _client(url: str | None) -> "EmbeddingStudioClient":
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.settings import Settings

    settings = Settings()
    key = settings.api_key
    here = f"http://{settings.api_host}:{settings.api_port}"
    return EmbeddingStudioClient(url or here, key.get_secret_value() if key else None)


def _print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")  # what does not fit goes on, it is not left out
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))  # which is no markup
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def _minute(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else ""


def main() -> None:
    """The entry point `embedding-studio`."""
    from pydantic import ValidationError

    try:
        app()
    except EmbeddingStudioError as error:
        _fail(f"{type(error).__name__}: {error}")
    except ValidationError as error:
        if error.title != "Settings":
            raise
        for wrong in error.errors():
            name = "_".join(map(str, wrong["loc"])).upper()
            typer.secho(f"ES_{name} is {wrong['input']!r}: {wrong['msg']}", fg="red", err=True)
        _fail("ConfigurationError: the environment has settings that cannot be")


def _fail(why: str) -> NoReturn:
    typer.secho(escape_lines(why), fg="red", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
