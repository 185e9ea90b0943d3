"""Commands on the installation: its version, its settings with their origins, what it lacks."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_studio.cli.context import calls_api, on_this_machine, options, settings, wants_json
from embedding_studio.cli.render import print_table, printed_json, say

if TYPE_CHECKING:
    from embedding_studio.settings import Settings

app = typer.Typer()
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


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


@app.command("doctor")
@calls_api
def examine_installation() -> None:
    """Check everything that is needed here, and say how to mend what fails; ends with 1 then.

    Nothing is made that was not there."""
    from dataclasses import asdict

    from embedding_studio.doctor import Status, examine

    findings = []
    for one in examine(settings()):
        findings.append(one)
        if not wants_json():
            colour = None if os.environ.get("NO_COLOR") else _COLOURS[one.status]
            typer.secho(f"{one.status:<5}", fg=colour, nl=False)
            say(f"{one.check:<14} {one.found}")
            if one.mend:
                say(f"{'':<20}to mend: {one.mend}")
    printed_json([asdict(one) for one in findings])
    if any(one.status is Status.FAIL for one in findings):
        raise typer.Exit(1)


def _shown(found: "Settings", name: str) -> Any:
    """Return a value as it may be read by whoever looks over one's shoulder."""
    from pydantic import SecretStr

    value = getattr(found, name)
    return str(value) if isinstance(value, SecretStr) else value
