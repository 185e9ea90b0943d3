"""Commands on the installation: its version, and its settings with where each comes from."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_studio.cli.context import on_this_machine, options, settings
from embedding_studio.cli.render import print_table, printed_json

if TYPE_CHECKING:
    from embedding_studio.settings import Settings

app = typer.Typer()


def version_line() -> str:
    """Return the name of what is installed, and its version."""
    from importlib.metadata import version

    return f"embedding-studio {version('embedding-studio')}"


@app.command("version")
@on_this_machine
def tell_version() -> None:
    """Show the version."""
    name, number = version_line().split()
    if printed_json({"name": name, "version": number}):
        return
    typer.echo(version_line())


@app.command("settings")
@on_this_machine
def show_settings(
    changed: Annotated[
        bool, typer.Option("--changed", help="only those that are not at their default")
    ] = False,
) -> None:
    """Show each setting with its value and where it comes from; secrets are masked."""
    from embedding_studio.settings import origins

    found = settings()
    told = [
        {"name": f"ES_{name.upper()}", "value": _shown(found, name), "from": origin}
        for name, origin in origins(**options()).items()
        if not (changed and origin == "default")
    ]
    if printed_json(told):
        return
    rows = [["" if one is None else str(one) for one in setting.values()] for setting in told]
    print_table(["setting", "value", "from"], rows)


def _shown(found: "Settings", name: str) -> Any:
    """Return a value as it may be read by whoever looks over one's shoulder."""
    from pydantic import SecretStr

    value = getattr(found, name)
    return str(value) if isinstance(value, SecretStr) else value
