"""MLflow's local database."""

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as LedgerStore

from embedding_studio.errors import ConfigurationError
from embedding_studio.settings import Settings
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_database_that_is_gone_is_noticed(
    tracking: Tracking, settings: Settings, is_replaced: bool
) -> None:
    """Removed or replaced under a worker, MLflow's database takes nothing that others rely on, and
    no new one is made in its place."""
    tracking.iterations.open("a task", TOY, "a batch", "start")
    tracking.settle()
    file = settings.data_folder / "mlflow.db"
    kept = Path(shutil.copy(file, settings.data_folder / "kept.db"))
    file.unlink()
    if is_replaced:
        kept.rename(file)
    with pytest.raises(ConfigurationError, match=f"{file} was removed or replaced"):
        tracking.settle()
    assert file.exists() == is_replaced


def test_only_mlflows_own_connections_are_made_quick(
    tracking: Tracking, settings: Settings
) -> None:
    """The ledger's and the registry's wait for the disk when they are told to; others always do."""
    uri = settings.resolved_tracking_uri
    synchronous = []
    for engine in (
        LedgerStore(uri, str(settings.artifacts_folder)).engine,  # type: ignore[no-untyped-call]
        RegistryStore(uri).engine,  # type: ignore[no-untyped-call]
    ):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            synchronous.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
    other = sa.create_engine(uri)
    with other.connect() as connection:
        synchronous.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
    other.dispose()
    normal, full = 1, 2
    assert synchronous == [normal, normal, full]
