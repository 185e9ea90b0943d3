"""docs/shell.md lists what there is."""

import re
from pathlib import Path

import pytest

from embedding_studio.cli.app import app
from embedding_studio.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "shell.md").read_text(encoding="utf-8")


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
