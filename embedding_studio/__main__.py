"""The command line: wiring only. Imports wait until a command needs them."""

import logging
from typing import Annotated

import typer

from embedding_studio.errors import EmbeddingStudioError

app = typer.Typer(
    name="embedding-studio",
    help="Turn the clicks of a search product into a better embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def api() -> None:
    """Serve the HTTP API."""
    from embedding_studio.api.server import serve
    from embedding_studio.settings import Settings

    _log(logging.INFO)
    serve(Settings())


@app.command()
def worker() -> None:
    """Run fine-tuning tasks until asked to end."""
    from embedding_studio.settings import Settings
    from embedding_studio.worker import open_worker

    _log(logging.INFO)
    open_worker(Settings()).run_forever()


@app.command()
def up() -> None:
    """Run the API, a worker and the MLflow UI on this machine until Ctrl-C."""
    from embedding_studio.services import Services
    from embedding_studio.settings import Settings

    _log(logging.WARNING)
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

    _log(logging.WARNING)
    run_demo(Settings(), sessions, trials, rounds, seed)


def _log(level: int) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "alembic", "sentence_transformers", "stamina"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def main() -> None:
    """The entry point `embedding-studio`."""
    try:
        app()
    except EmbeddingStudioError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
