"""The command that removes what crashes left behind; it opens the store and MLflow."""

from typing import Annotated

import typer

from embedding_studio.cli.context import on_this_machine, opened_store, settings
from embedding_studio.cli.render import printed_json, say
from embedding_studio.clock import utc_now

app = typer.Typer()


@app.command()
@on_this_machine
def sweep(
    dry_run: Annotated[bool, typer.Option(help="tell what would be removed, and leave it")] = False,
) -> None:
    """Remove what crashes left behind; champions and live iterations are never touched."""
    from embedding_studio.errands import sweep as sweeping
    from embedding_studio.tracking import open_tracking

    with opened_store() as store:
        by = settings()
        tracking = open_tracking(by.resolved_tracking_uri, by.artifacts_folder)
        found = sweeping.sweep(store, tracking, by, utc_now(), dry_run)
    if printed_json(found):
        return
    for what in found:
        say(what)
    say(f"{len(found)} left behind" if dry_run else f"{len(found)} removed or ended")
