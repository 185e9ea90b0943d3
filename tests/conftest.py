"""What every test may use."""

import os
from pathlib import Path

import pytest

from embedding_studio.tracking.environment import set_environment

os.environ["ES_PROFILES_FILE"] = os.devnull  # whoever runs the tests has profiles of his own
set_environment()  # before a test loads MLflow
pytest_plugins = ["tests.servers", "tests.iterations", "tests.executors.clusters"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="where to keep pictures of what people see")


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """The folder that the option `--screenshots` names."""
    folder: Path | None = request.config.getoption("--screenshots")
    return folder
