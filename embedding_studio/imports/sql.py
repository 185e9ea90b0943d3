"""Rows of a database that SQLAlchemy opens, by a statement."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.stream import check_columns

_AT_ONCE = 1000


def shown_url(url: str) -> str:
    """Return a database's URL without its password. Raises InvalidInput where it is none."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        raise InvalidInput(
            "the database's URL is not one that SQLAlchemy reads, such as "
            "postgresql+psycopg://user:password@host/database"
        ) from None


def sql_rows(url: str, statement: str) -> Iterator[dict[str, Any]]:
    """Yield the rows that a statement selects, while the database gives them; nothing that it
    changes is kept.

    Raises InvalidInput with what the database says, its password left out."""
    shown = shown_url(url)
    try:
        engine = sqlalchemy.create_engine(url)
        try:
            with engine.connect() as database:
                found = database.exec_driver_sql(
                    statement,
                    # a % in it is itself
                    execution_options={
                        "no_parameters": True, "stream_results": True, "yield_per": _AT_ONCE,
                    },
                )  # fmt: skip
                if not found.returns_rows:
                    raise InvalidInput(f"{shown}: the statement selects no rows")
                names = [*found.keys()]
                check_columns(names)
                for values in found:
                    yield dict(zip(names, values, strict=True))
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        told = str(getattr(error, "orig", None) or error)
        password = make_url(url).password
        if password:
            told = told.replace(str(password), "***")
        raise InvalidInput(f"{shown}: {told}"[:1000]) from None
