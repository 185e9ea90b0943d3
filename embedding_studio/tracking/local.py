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
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

from embedding_studio.errors import ConfigurationError

SCHEME = "sqlite:///"
BUSY_SECONDS = 30.0


def speed_up(tracking_uri: str, artifacts_folder: Path) -> Callable[[], None]:
    """Make a local database quick, from MLflow's next connection on; return its `settle`.

    A server's database is its own matter: then there is nothing to settle."""
    if not tracking_uri.startswith(SCHEME):
        return lambda: None
    # each keeps one engine for all of its instances: those that MLflow's clients use
    engines = (
        TrackingStore(tracking_uri, str(artifacts_folder)).engine,  # type: ignore[no-untyped-call]
        RegistryStore(tracking_uri).engine,  # type: ignore[no-untyped-call]
    )
    for engine in engines:
        if not sa.event.contains(engine, "connect", _relax):
            sa.event.listen(engine, "connect", _relax)
        engine.dispose()  # its next connections are relaxed, and lead to the file that is there
    file = Path(tracking_uri.removeprefix(SCHEME)).absolute()
    opened = file.stat()

    def settle() -> None:
        if not file.exists() or not os.path.samestat(file.stat(), opened):
            raise ConfigurationError(
                f"MLflow's database {file} was removed or replaced while this worker used it: "
                "put it back, or restore a backup, and restart the worker and MLflow"
            )
        address = f"file:{quote(str(file))}?mode=rw"  # not made anew
        with closing(sqlite3.connect(address, timeout=BUSY_SECONDS, uri=True)) as connection:
            # the log is on the disk before any of it is copied into the database
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()

    return settle


def _relax(connection: Any, _: object) -> None:
    with suppress(sqlite3.OperationalError):  # in use as it was: so it stays for now
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL").close()
