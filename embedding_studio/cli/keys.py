"""Commands for API keys: they open the store, for the first key is made before any can be shown."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from embedding_studio.cli.context import on_this_machine, opened_store
from embedding_studio.cli.render import minute, print_table, printed_json, say
from embedding_studio.clock import parse_duration, utc_now
from embedding_studio.errors import NotFound
from embedding_studio.keys import ApiKey, Scope, make_key, make_successor, parse_expiry
from embedding_studio.projects import DEFAULT_PROJECT

app = typer.Typer(help="Make, list and end API keys.", no_args_is_help=True)


@app.command("create")
@on_this_machine
def create_key(
    name: Annotated[str, typer.Option(help="who will use it, for people")],
    scope: Annotated[list[Scope], typer.Option(help="what it allows; may be given again")],
    project: Annotated[str, typer.Option(help="whose data it reaches")] = DEFAULT_PROJECT,
    expires: Annotated[
        str | None, typer.Option(help="90d, 24h or an ISO date; without it, never")
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="make the store too, where there is none yet")
    ] = False,
) -> None:
    """Make a key and print it; it is shown this once."""
    now = utc_now()
    key, text = make_key(name, scope, project, now, parse_expiry(expires, now) if expires else None)
    with opened_store(may_make=new) as store:
        store.keys.add(key)
    _print_secret(key, text)


@app.command("list")
@on_this_machine
def list_keys() -> None:
    """Show all keys, without their secrets."""
    with opened_store() as store:
        found = store.keys.all()
    if printed_json([_shown(key) for key in found]):
        return
    rows = []
    for key in found:
        times = map(minute, (key.created_at, key.expires_at, key.revoked_at))
        rows.append([key.id, key.name, ",".join(key.scopes), key.project, *times])
    print_table(["id", "name", "scopes", "project", "created", "expires", "revoked"], rows)


@app.command("revoke")
@on_this_machine
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """End a key, within five seconds and for good."""
    with opened_store() as store:
        store.keys.end(key_id, revoked_at=utc_now())
    say(f"key {key_id} is revoked")


@app.command("rotate")
@on_this_machine
def rotate_key(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    overlap: Annotated[str, typer.Option(help="how long the former key goes on: 24h")] = "24h",
) -> None:
    """Make a key for the same use and print it; the former one expires after the overlap."""
    now, both_for = utc_now(), parse_duration(overlap)
    with opened_store() as store:
        former = store.keys.find(key_id)
        if former is None:
            raise NotFound(f"no API key has the id {key_id!r}")
        key, text = make_successor(former, now)
        store.keys.add(key)
        store.keys.end(key_id, expires_at=now + both_for)
    _print_secret(key, text)


def _print_secret(key: ApiKey, text: str) -> None:
    """Print a new key, alone on standard output."""
    if printed_json({**_shown(key), "key": text}):
        return
    typer.echo(text)


def _shown(key: ApiKey) -> dict[str, Any]:
    """Return a key as JSON, without what proves it."""
    return {name: value for name, value in asdict(key).items() if name != "secret_sha256"}
