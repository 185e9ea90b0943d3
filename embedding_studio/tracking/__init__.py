"""Everything MLflow: the ledger of trials, the models' files, the registry with its champions."""

import os
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow loads
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A request is given up after half a minute, not after four: the worker waits out what lasts longer.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# models are files that run no code; nothing else is to be loaded in our processes
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_ALLOW_MODEL_CODE_EXECUTION"] = "false"

from embedding_studio.tracking.client import Client
from embedding_studio.tracking.iterations import Iteration, OlderIteration
from embedding_studio.tracking.tracking import Tracking

__all__ = ["Iteration", "OlderIteration", "Tracking", "open_tracking"]


def open_tracking(tracking_uri: str, artifacts_folder: Path) -> Tracking:
    """Open an MLflow server or local database. artifacts_folder: as `Client` has it."""
    return Tracking(Client(tracking_uri, artifacts_folder))
