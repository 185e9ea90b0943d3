"""All commands, and how their errors are told."""

import logging
import os
from typing import Annotated, NoReturn

import typer

from embedding_studio.cli import (
    clickstream,
    embed,
    imports,
    items,
    keys,
    labels,
    methods,
    migrate,
    models,
    schedules,
    services,
    sweep,
    system,
    tasks,
)
from embedding_studio.cli.context import Key, Profile, Url, begin
from embedding_studio.errors import EmbeddingStudioError, StoreUnavailable, Unauthorized
from embedding_studio.plain import escape_lines

app = typer.Typer(
    name="embedding-studio",
    help="Turn the clicks of a search product into a better embedding model.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 a wrong command line, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: quick, and the same in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(services.app)
app.add_typer(embed.app)
app.add_typer(sweep.app)
app.add_typer(migrate.app)
app.add_typer(system.app)
app.add_typer(tasks.app, name="task")
app.add_typer(schedules.app, name="schedules")
app.add_typer(methods.app, name="methods")
app.add_typer(keys.app, name="keys")
clickstream.app.add_typer(imports.app)
app.add_typer(clickstream.app, name="batch")
app.add_typer(items.app, name="items")
app.add_typer(labels.app, name="labels")
app.add_typer(models.app, name="models")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(system.version_line())
        raise typer.Exit


@app.callback()
def _begin(
    url: Url = None,
    key: Key = None,
    profile: Profile = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    begin(url, key, profile)


def main() -> None:
    """Run the command that the arguments name; an error of ours ends it in one line."""
    from pydantic import ValidationError

    logging.getLogger("stamina").setLevel(logging.ERROR)  # what it tries again is not worth a line
    try:
        app(prog_name="embedding-studio")
    except Unauthorized as error:
        _fail(f"Unauthorized: {error}; show one by --key, ES_API_KEY or a profile")
    except StoreUnavailable as error:
        _fail(f"StoreUnavailable: {error}; `embedding-studio doctor` says more")
    except EmbeddingStudioError as error:
        _fail(f"{type(error).__name__}: {error}")
    except ValidationError as error:
        if error.title != "Settings":
            raise
        for wrong in error.errors():
            name = "_".join(map(str, wrong["loc"])).upper()
            _tell(f"ES_{name} is {wrong['input']!r}: {wrong['msg']}")
        _fail("ConfigurationError: the environment or a profile has settings that cannot be")


def _tell(why: str) -> None:
    colour = None if os.environ.get("NO_COLOR") else "red"
    typer.secho(escape_lines(why), fg=colour, err=True)


def _fail(why: str) -> NoReturn:
    _tell(why)
    raise SystemExit(1)
