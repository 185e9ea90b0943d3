"""What commands have in common: options for how the API is reached, and what they open with them.

A command on what the API keeps is decorated with `calls_api`, one that opens the store or looks at
this machine with `on_this_machine`. Both take `--profile` and `--json`; what was given before the
command's name counts as well."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_studio.errors import NotFound
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.settings import Settings
    from embedding_studio.store import Store

RETRY_SECONDS = 10.0
"""For so long a command tries an API that does not answer."""
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="the API's address [ES_API_URL]")
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="what is shown to it [ES_API_KEY]"),
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="of the file of profiles [ES_PROFILE]"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else")]
_OPTIONS = {"url": Url, "key": Key, "profile": Profile, "as_json": Json}


@dataclass(frozen=True, slots=True)
class Given:
    """The options of this run of the command line, whichever side of the command they stood."""

    url: str | None = None
    key: str | None = None
    profile: str | None = None
    as_json: bool = False


_given: ContextVar[Given] = ContextVar("given")


def begin(url: str | None, key: str | None, profile: str | None) -> None:
    """Forget what was given before, and note the options that stand before a command's name."""
    _given.set(Given(url, key, profile))


def calls_api(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--url`, `--key`, `--profile` and `--json`."""
    return with_options(command, _OPTIONS, _note)


def on_this_machine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--profile` and `--json`."""
    return with_options(command, {name: _OPTIONS[name] for name in ("profile", "as_json")}, _note)


def _note(options: dict[str, Any]) -> dict[str, Any]:
    """Note what a command's own options say over those before its name."""
    _given.set(replace(_given.get(), **{name: value for name, value in options.items() if value}))
    return {}


def with_options(
    command: Callable[..., None],
    options: Mapping[str, Any],
    use: Callable[[dict[str, Any]], dict[str, Any]],
    stands_for: str = "",
) -> Callable[..., None]:
    """Give a command further options, annotated as typer reads them, each None by default.

    use: makes of their values the keyword arguments that the command gets in their place, which is
    the parameter that `stands_for` names, or nothing."""
    parameters = dict(signature(command).parameters)
    parameters.pop(stands_for, None)
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=None)
        for name, kind in options.items()
    ]

    @wraps(command)
    def run(*arguments: Any, **values: Any) -> None:
        given = {name: values.pop(name) for name in options}
        command(*arguments, **values, **use(given))

    shown: Any = run  # typer reads both
    shown.__signature__ = signature(command).replace(parameters=[*parameters.values(), *added])
    own = {name: kind for name, kind in command.__annotations__.items() if name != stands_for}
    shown.__annotations__ = {**own, **options}
    return run


def wants_json() -> bool:
    """Return whether JSON alone may go to standard output."""
    return _given.get().as_json


def options() -> dict[str, str]:
    """Return the settings that the options say."""
    given = _given.get()
    said = {"api_url": given.url, "api_key": given.key, "profile": given.profile}
    return {name: value for name, value in said.items() if value is not None}


def settings() -> "Settings":
    """Return the settings, with what the options say over them."""
    from embedding_studio.settings import Settings

    return Settings(**options())  # type: ignore[arg-type] # pydantic makes secrets of them


def open_client(retry_seconds: float | None = None) -> "EmbeddingStudioClient":
    """Return a client of the API that the options and settings name, to be entered."""
    from embedding_studio.services import client_of

    return client_of(settings(), retry_seconds=retry_seconds or RETRY_SECONDS)


def opened_store(may_make: bool = False) -> "AbstractContextManager[Store]":
    """Return the store that the settings name, to be entered; `tell_store` tells its place."""
    from embedding_studio.store import open_store

    found = settings()
    tell_store(found, may_make)
    return closing(open_store(found.resolved_store_url))


def tell_store(found: "Settings", may_make: bool) -> None:
    """Tell on standard error which store the settings name. Raises NotFound where there is none
    yet, unless it may be made."""
    from embedding_studio.store import is_there, place_of

    url = found.resolved_store_url
    if not may_make and not is_there(url):
        raise NotFound(
            f"there is no store at {place_of(url)}: run this in the folder where the API runs, "
            "name the store by ES_DATA_FOLDER, ES_STORE_URL or a profile; `keys create` and "
            "`worker` make one with --new"
        )
    typer.echo(escape(f"the store is {place_of(url)}"), err=True)
