"""Commands that run the services, and the demo of them."""

import logging
from typing import Annotated

import typer

from embedding_studio.logs import configure

app = typer.Typer()


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
    sessions: Annotated[int, typer.Option(min=100, help="simulated searches per round")] = 20_000,
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
