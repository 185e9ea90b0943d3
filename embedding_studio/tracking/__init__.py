"""Everything MLflow: the ledger of trials, the models' files, the registry with its champions.

MLflow is loaded when it is opened, not with this package: `names` and `reader` do without it, and
its environment has to be set before."""

from pathlib import Path
from typing import TYPE_CHECKING

from embedding_studio.tracking.environment import set_environment

if TYPE_CHECKING:
    from embedding_studio.tracking.tracking import Tracking


def open_tracking(tracking_uri: str, artifacts_folder: Path) -> "Tracking":
    """Open an MLflow server or local database. artifacts_folder: as `Client` has it."""
    set_environment()
    from embedding_studio.tracking.client import Client
    from embedding_studio.tracking.tracking import Tracking

    return Tracking(Client(tracking_uri, artifacts_folder))
