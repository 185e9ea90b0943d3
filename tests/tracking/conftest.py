"""Fixtures of what is on MLflow."""

import pytest

from embedding_studio.settings import Settings
from embedding_studio.tracking import open_tracking
from embedding_studio.tracking.tracking import Tracking


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)
