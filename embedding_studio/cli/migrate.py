"""The command that brings along what version 0.1 kept; it opens the database."""

from contextlib import closing

import typer

from embedding_studio.cli.context import settings, tell_store

app = typer.Typer()


@app.command()
def migrate() -> None:
    """Bring along what version 0.1 kept; run it once, with the API and all workers stopped."""
    from embedding_studio.store import open_documents
    from embedding_studio.store.migrate import bring_along, former_of

    found = settings()
    tell_store(found, may_make=False)
    with closing(open_documents(found.resolved_store_url, is_migrating=True)) as documents:
        former = former_of(documents)
        if former is None:
            typer.echo("nothing to do: the store has nothing of version 0.1")
            return
        brought = bring_along(former, documents)
    counted = ", ".join(f"{count} {noun}" for noun, count in brought.items())
    typer.echo(f"brought along: {counted or 'nothing, for it was empty'}")
