"""How commands print: tables for people, JSON for programs, and sentences."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer

from embedding_studio.cli.context import wants_json
from embedding_studio.plain import escape

WIDE = 100_000
"""Columns of a table that no terminal shows: each of its rows is a line."""


def printed_json(found: Any) -> bool:
    """Print what the API answered, or plain data, as JSON if that is wanted; return whether it was:
    then a command is done."""
    if wants_json():
        from pydantic_core import to_json

        typer.echo(to_json(found, indent=2).decode())
    return wants_json()


def say(text: str) -> None:
    """Print a sentence: to standard error where standard output is for JSON alone."""
    typer.echo(escape(text), err=wants_json())


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")  # what does not fit goes on, it is not left out
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))  # which is no markup
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console.width = WIDE
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def minute(time: datetime | None) -> str:
    """Return a time to the minute, nothing for None."""
    return f"{time:%Y-%m-%d %H:%M}" if time else ""


def second(time: datetime) -> str:
    """Return a time to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S}"
