"""The command that removes what crashes left behind; it opens the store and MLflow."""

from typing import Annotated

import typer

from embedding_studio.cli.context import opened_store
from embedding_studio.clock import utc_now
from embedding_studio.plain import escape

app = typer.Typer()


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
    with opened_store() as store:
        found = sweeping.sweep(store, tracking, settings, utc_now(), dry_run)
    for what in found:
        typer.echo(escape(what))
    typer.echo(f"{len(found)} left behind" if dry_run else f"{len(found)} removed or ended")
