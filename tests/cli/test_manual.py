"""docs/shell.md is run, and lists what there is."""

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from embedding_studio.cli.app import app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import TaskStatus
from tests.api.samples import METHOD, claim, only_task, record_worker
from tests.cli.conftest import Shell
from tests.iterations import make_session

PAGE = (Path(__file__).parents[2] / "docs" / "shell.md").read_text(encoding="utf-8")


def test_the_manuals_commands_run(shell: Shell, store: Store) -> None:
    """Every command of the page's shell blocks ends with 0, in the order in which they stand."""
    now = datetime.now(UTC)
    record_worker(store, METHOD, seen_at=now)
    store.clickstream.register([make_session(number) for number in range(9)], now)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 9
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "embedding-studio"
        if "TASK" in words:
            words[words.index("TASK")] = only_task(store).id
        if words[:2] == ["task", "watch"]:  # a worker does its part meanwhile
            store.tasks.finish(claim(store, now), now, TaskStatus.DONE)
        done = shell(*words)
        assert done.exit_code == 0, f"{line}: {done.output}"


def test_the_manual_names_every_command() -> None:
    """A noun or a command that is not in the page's table is missing there."""
    table = " ".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    nouns = [group.name for group in app.registered_groups if group.name]
    alone = [
        command.name or command.callback.__name__
        for group in app.registered_groups
        if not group.name and group.typer_instance
        for command in group.typer_instance.registered_commands
        if command.callback
    ]
    for name in [*nouns, *alone]:
        assert f"`{name}" in table, name


def test_the_manuals_profiles_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file of profiles is read as it says."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    file = tmp_path / "profiles.toml"
    file.write_text(text)
    monkeypatch.setenv("ES_PROFILES_FILE", str(file))
    assert Settings().api_address == "http://127.0.0.1:5050"
    assert Settings(profile="prod").api_address == "https://studio.example"
