"""What all commands have in common."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from embedding_studio.cli import context
from embedding_studio.cli.app import app, main
from embedding_studio.cli.context import begin, calls_api, options, settings, wants_json
from embedding_studio.errors import ConfigurationError
from embedding_studio.settings import Settings, origins

PROFILES = """
[default]
api_port = 5050
[prod]
api_url = "https://studio.example"
api_key = "es_of_prod"
"""


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of profiles, `default` and `prod`."""
    file = tmp_path / "profiles.toml"
    file.write_text(PROFILES)
    monkeypatch.setenv("ES_PROFILES_FILE", str(file))
    return file


def all_commands() -> Iterator[list[str]]:
    """Yield the words of each command."""

    def walk(group: typer.Typer, words: list[str]) -> Iterator[list[str]]:
        for command in group.registered_commands:
            assert command.callback is not None
            yield [*words, command.name or command.callback.__name__]
        for inner in group.registered_groups:
            assert inner.typer_instance is not None
            yield from walk(inner.typer_instance, [*words, *([inner.name] if inner.name else [])])

    return walk(app, [])


@pytest.mark.parametrize("words", [*all_commands()], ids=" ".join)
def test_every_command_has_help(words: list[str]) -> None:
    """`-h` and `--help` show the same, in plain text, and end with 0."""
    short, long = (CliRunner().invoke(app, [*words, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output
    assert short.output.startswith("Usage: ")
    assert "\x1b" not in short.output


@pytest.mark.parametrize("words", [*all_commands()], ids=" ".join)
def test_every_command_tells_json(words: list[str]) -> None:
    """But for those that run services, or have nothing to show."""
    shown = CliRunner().invoke(app, [*words, "-h"]).output
    assert ("--json" in shown) == (
        words not in (["api"], ["worker"], ["serve"], ["up"], ["demo"], ["migrate"])
    )


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--version` and `version` say the same, `version --json` as JSON."""
    line, same, as_json = (
        CliRunner().invoke(app, words).stdout
        for words in (["--version"], ["version"], ["version", "--json"])
    )
    assert line == same
    assert line.split() == [*json.loads(as_json).values()]


def test_options_count_on_both_sides_of_a_command() -> None:
    """What stands behind the command wins, and nothing is left for the next run."""
    shell, seen = typer.Typer(), []

    @shell.callback()
    def root(url: context.Url = None, key: context.Key = None) -> None:
        begin(url, key, None)

    @shell.command("look")
    @calls_api
    def look(what: str) -> None:
        seen.append((what, options(), wants_json()))

    before = ["--url", "http://a", "--key", "k"]
    for words in ([*before, "look", "x", "--url", "http://b", "--json"], ["look", "y"]):
        assert CliRunner().invoke(shell, words).exit_code == 0
    assert seen == [("x", {"api_url": "http://b", "api_key": "k"}, True), ("y", {}, False)]


def test_a_profile_gives_what_is_not_set(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over the default profile and over ES_PROFILE, an option and the profile
    that it names win over both."""
    assert Settings().api_port == 5050
    monkeypatch.setenv("ES_API_URL", "http://of.environment")
    monkeypatch.setenv("ES_PROFILE", "prod")
    by_environment = Settings()
    assert by_environment.api_url == "http://of.environment"
    assert by_environment.api_key is not None
    assert origins()["api_key"] == f"profile prod in {profiles}"
    assert origins()["api_url"] == "environment"
    begin(None, None, "prod")
    assert settings().api_url == "https://studio.example"
    assert origins(profile="prod")["api_url"] == f"profile prod in {profiles}"
    begin("http://option", None, "prod")
    assert settings().api_url == "http://option"
    assert origins(**options())["api_url"] == "option"
    assert settings().replaced(api_port=1).api_url == "http://option"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[prod]\nurl = 1", "'url' is no setting"),
        ("[prod]\napi_prot = 1", "is api_port meant?"),
        ("[staging]", "has no profile 'prod'; there is staging"),
        ("prod = 1", "has no profile 'prod'"),
        ("[prod", "cannot be read as TOML"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(profiles: Path, text: str, told: str) -> None:
    """The error names the file, the profile and what is wrong."""
    profiles.write_text(text)
    with pytest.raises(ConfigurationError, match=str(profiles)) as caught:
        Settings(profile="prod")
    assert told in str(caught.value)


def test_settings_are_told_with_their_origin(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`settings` shows each with its value and where it came from; secrets are masked."""
    monkeypatch.setenv("ES_SEED", "7")
    words = ["settings", "--json", "--profile", "prod"]
    shown = json.loads(CliRunner().invoke(app, words).stdout)
    told = {one["name"]: (one["value"], one["from"]) for one in shown}
    assert len(told) == len(Settings.model_fields)
    assert told["ES_SEED"] == (7, "environment")
    assert told["ES_API_KEY"] == ("**********", f"profile prod in {profiles}")
    assert told["ES_API_PORT"] == (5000, "default")
    assert told["ES_PROFILE"] == ("prod", "option")
    table = CliRunner().invoke(app, ["settings", "--changed"]).stdout
    assert "es_of_prod" not in table
    assert "ES_LEASE_SECONDS" not in table


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["no-such"], 2, "No such command"),
        (["batch", "export"], 2, "Missing argument"),
        (["--profile", "nobody", "settings"], 1, "no profile 'nobody'"),
        (["--url", "http://127.0.0.1:1", "task", "list"], 1, "`embedding-studio doctor` says"),
    ],
)
def test_exit_codes(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A wrong command line ends with 2, what is refused with 1; the error is on standard error."""
    monkeypatch.setattr(context, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr("sys.argv", ["embedding-studio", *words])
    with pytest.raises(SystemExit, match=str(code)):
        main()
    output, errors = capsys.readouterr()
    assert output == ""
    assert told in errors
    assert "\x1b" not in errors


def test_shells_complete_commands() -> None:
    """The completion that typer offers to shells knows our commands."""
    asked = {"_EMBEDDING_STUDIO_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "embedding_studio"],
        env={**os.environ, **asked, "COMP_WORDS": "embedding-studio ke"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["keys"], done.stderr
