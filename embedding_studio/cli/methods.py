"""Commands for fine-tuning methods: which there are, as the workers that carry them say."""

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import print_table, printed_json, say

app = typer.Typer(help="See which fine-tuning methods there are.", no_args_is_help=True)


@app.callback()
def _methods() -> None:
    """A group, be it of one command."""


@app.command("list")
@calls_api
def list_methods() -> None:
    """Show the methods of the workers that live, and which plugins did not load."""
    with open_client() as client:
        found = client.list_methods()
    if printed_json(found):
        return
    rows = []
    for one in found.methods:
        lacks = "" if one.can_start else "cannot start, its initial model is not there"
        labels = "clicks and labels" if one.takes_labels else "clicks"
        rows.append([one.name, str(one.workers), labels, lacks])
    print_table(["method", "workers", "learns from", ""], rows)
    for place in found.failed_plugins:
        say(f"! {place} did not load: `doctor` and the worker's log say why")
    if not found.methods:
        say("! no worker that lives has a method; start one with `embedding-studio worker`")
