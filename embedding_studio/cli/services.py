"""Commands that run the services, and the demo of them."""

import logging
from typing import Annotated

import typer

from embedding_studio.cli.context import settings, tell_store
from embedding_studio.logs import configure

app = typer.Typer()


@app.command()
def api() -> None:
    """Serve the HTTP API."""
    from embedding_studio.api.server import serve

    configure(logging.INFO)
    found = settings()
    tell_store(found, may_make=True)
    serve(found)


@app.command()
def worker(
    new: Annotated[
        bool, typer.Option("--new", help="make the store, where the API has not made it yet")
    ] = False,
) -> None:
    """Run fine-tuning tasks until asked to end."""
    from embedding_studio.engine.worker import open_worker

    configure(logging.INFO)
    found = settings()
    tell_store(found, may_make=new)
    open_worker(found).run_forever()


@app.command()
def serve() -> None:
    """Serve the vectors of registered models, in the form of OpenAI's embeddings."""
    from embedding_studio.serving.server import serve as serve_vectors

    configure(logging.INFO)
    found = settings()
    tell_store(found, may_make=False)
    serve_vectors(found)


@app.command()
def up() -> None:
    """Run the API, a worker, `serve` and the MLflow UI on this machine until Ctrl-C."""
    from embedding_studio.services import Services

    configure(logging.WARNING)
    with Services(settings(), with_vectors=True) as services:
        typer.echo(services.describe())
        services.wait()


@app.command()
def demo(
    sessions: Annotated[int, typer.Option(min=100, help="simulated searches per round")] = 20_000,
    trials: Annotated[int, typer.Option(min=1, help="hyperparameter sets per round")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, help="later rounds search with the champion, and start from it")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Watch simulated clicks on a real corpus become a better model; starts what it needs."""
    from embedding_studio.demo.run import run_demo

    configure(logging.WARNING)
    run_demo(settings(), sessions, trials, rounds, seed)
