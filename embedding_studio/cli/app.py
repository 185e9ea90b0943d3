"""All commands, and how their errors are told."""

from typing import NoReturn

import typer

from embedding_studio.cli import (
    clickstream,
    imports,
    items,
    keys,
    labels,
    migrate,
    models,
    services,
    sweep,
)
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.plain import escape_lines

app = typer.Typer(
    name="embedding-studio",
    help="Turn the clicks of a search product into a better embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(services.app)
app.add_typer(imports.app)
app.add_typer(sweep.app)
app.add_typer(migrate.app)
app.add_typer(keys.app, name="keys")
app.add_typer(clickstream.app, name="batch")
app.add_typer(items.app, name="items")
app.add_typer(labels.app, name="labels")
app.add_typer(models.app, name="champion")


def main() -> None:
    """Run the command that the arguments name; an error of ours ends it in one line."""
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
