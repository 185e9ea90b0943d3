"""docs/plugins.md, followed as it stands."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.testing.encoders import write_text_encoder
from tests.servers import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
BEGIN = PAGE[PAGE.index("## From nothing") : PAGE.index("## Debug it")]
DEBUG = PAGE[PAGE.index("## Debug it") : PAGE.index("## Keep it right")]
CASE = PAGE[PAGE.index("## Keep it right") : PAGE.index("## The smallest method")]
SERVICES = "embedding-studio up\n"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_method_is_promoted_as_the_page_says(tmp_path: Path) -> None:
    """Each command of the page ends well, from a small model in an empty folder; the task of the
    new method is promoted, and its class of tests passes."""
    (script,) = blocks(BEGIN, "python")
    (tmp_path / "searches.py").write_text(script)
    (case,) = blocks(CASE, "python")
    commands = [*blocks(BEGIN, "sh"), *blocks(DEBUG, "sh")]
    assert SERVICES in commands
    ports = {"ES_API_PORT": free_port(), "ES_MLFLOW_PORT": free_port()}
    environment = {
        **os.environ,
        **{name: str(port) for name, port in ports.items()},
        "ES_INITIAL_MODEL": str(write_text_encoder(tmp_path / "tiny", {})),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}plugins",
    }
    services: subprocess.Popen[str] | None = None
    try:
        for command in commands:
            if command == SERVICES:
                services = subprocess.Popen(
                    command.split(),
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert services.stdout is not None
                assert str(ports["ES_API_PORT"]) in services.stdout.readline()
                continue
            done = subprocess.run(
                ["bash", "-ec", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, command + done.stdout + done.stderr
        with EmbeddingStudioClient(f"http://127.0.0.1:{ports['ES_API_PORT']}") as client:
            (task,) = client.list_tasks()
        assert task.fine_tuning_method == "House words"
        assert task.promotion is not None
        assert task.promotion.promoted
    finally:
        if services is not None:
            services.send_signal(signal.SIGINT)
            services.wait(60)
            assert services.stdout is not None
            services.stdout.close()
    (tmp_path / "test_house_words.py").write_text(case)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_house_words.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "8 passed" in tested.stdout, tested.stdout
