"""When `up` says that its services are there."""

from pathlib import Path

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.errors import ConfigurationError
from embedding_studio.services import Services
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.api.samples import record_worker


class Halting(Services):
    """Its worker ends before it has told of itself; the API runs already."""

    spawned: tuple[str, ...] = ()

    def _spawn(self, name: str, command: list[str]) -> None:
        self.spawned += (name,)
        if name == "worker":
            super()._spawn(name, ["sleep", "1"])


def test_the_worker_that_is_waited_for_is_its_own(
    store: Store, api_url: str, tmp_path: Path
) -> None:
    """One that was killed a moment ago, of which the API still tells, does not count."""
    record_worker(store, seen_at=utc_now())
    services = Halting(Settings(data_folder=tmp_path, api_port=0, mlflow_port=0))
    services.api_url = api_url
    with pytest.raises(ConfigurationError, match="worker ended"):
        services.__enter__()
    assert services.spawned == ("API", "worker")
