"""MLflow's local database, made quick: a ledger is written to with every report of every trial.

By default SQLite waits for the disk several times per write. In WAL mode with `synchronous=NORMAL`
a write that was answered survives the death of every process, but the last ones may be lost with
the machine's power; `settle` waits for the disk, before anything elsewhere relies on them. It also
notices a file that was removed or replaced: SQLite would go on writing to what nobody finds again.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from embedding_studio.errors import ConfigurationError

SCHEME = "sqlite:///"
BUSY_SECONDS = 30.0
_quick: dict[Path, os.stat_result | None] = {}
"""What each such file was when it was first opened."""


def speed_up(tracking_uri: str) -> Callable[[], None]:
    """Make a local database quick, from MLflow's next connection on; return its `settle`.

    A server's database is its own matter: then there is nothing to settle.
    """
    if not tracking_uri.startswith(SCHEME):
        return lambda: None
    file = Path(tracking_uri.removeprefix(SCHEME)).absolute()
    _quick.setdefault(file, None)

    def settle() -> None:
        opened = _quick[file]
        if not file.exists() or (opened and not os.path.samestat(file.stat(), opened)):
            raise ConfigurationError(
                f"MLflow's database {file} was removed or replaced while this worker used it: "
                "put it back, or restore a backup, and restart the worker and MLflow"
            )
        address = f"file:{quote(str(file))}?mode=rw"  # not made anew
        with closing(sqlite3.connect(address, timeout=BUSY_SECONDS, uri=True)) as connection:
            # the log is on the disk before any of it is copied into the database
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    return settle


@sa.event.listens_for(sa.Engine, "connect")
def _relax(connection: Any, _: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    file = _file_of(connection)
    if file not in _quick:
        return
    _quick[file] = _quick[file] or file.stat()
    with suppress(sqlite3.OperationalError):  # in use as it was: so it stays for now
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL").close()


def _file_of(connection: sqlite3.Connection) -> Path:
    with closing(connection.execute("PRAGMA database_list")) as found:
        return Path(found.fetchone()[2])
