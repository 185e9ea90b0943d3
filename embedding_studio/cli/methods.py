"""Commands for fine-tuning methods: which there are, as the workers that carry them say."""

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import print_table, printed_json, say
from embedding_studio.errors import Forbidden

app = typer.Typer(help="See which fine-tuning methods there are.", no_args_is_help=True)


@app.callback()
def _methods() -> None:
    """A group, be it of one command."""


@app.command("list")
@calls_api
def list_methods() -> None:
    """Show the methods of the workers that live, and what kept plugins from loading.

    Where there are API keys, it takes one with the scope admin."""
    with open_client() as client:
        found = client.health().worker
    if found.status == "ok" and not found.live:
        raise Forbidden("workers and methods are told to API keys with the scope admin alone")
    if printed_json(found):
        return
    missing = {name: why for one in found.live for name, why in one.missing_models.items()}
    rows = []
    for name in found.methods:
        workers = sum(name in one.methods for one in found.live)
        cannot = f"cannot start, no initial model: {missing[name]}" if name in missing else ""
        rows.append([name, str(workers), cannot])
    print_table(["method", "workers", ""], rows)
    failures = {place: why for one in found.live for place, why in one.plugin_failures.items()}
    for place in sorted(failures):
        say(f"! {place} did not load: {failures[place]}")
    if not found.live:
        say(f"! {found.detail}")
