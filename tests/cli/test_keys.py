"""The commands for API keys."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from embedding_studio.cli.app import app, main
from embedding_studio.errors import EmbeddingStudioError, InvalidInput, NotFound
from embedding_studio.keys import (
    Scope,
    make_key,
    read_key,
)
from embedding_studio.store import Store, open_store

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a `keys` command on a store of the test's own."""
    monkeypatch.setenv("ES_DATA_FOLDER", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    opened(tmp_path).close()
    return lambda *words: CliRunner().invoke(app, ["keys", *words])


def opened(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'store.db'}")


def test_a_created_key_is_printed_once_and_listed(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """`create` prints the key alone; `list` shows all but the secret, which is nowhere on disk."""
    made = run(
        *("create", "--name", "shop", "--scope", "ingest", "--scope", "read"),
        *("--project", "acme", "--expires", "90d"),
    )
    assert made.exit_code == 0, made.output
    presented = read_key(made.stdout.strip())
    assert presented is not None
    with closing(opened(tmp_path)) as store:
        (key,) = store.keys.all()
    assert presented.is_of(key, key.created_at)
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == 90 * DAY
    listed = run("list").output
    for word in (key.id, "shop", "ingest,read", "acme", f"{key.expires_at:%Y-%m-%d}"):
        assert word in listed
    assert presented.secret not in listed
    for file in tmp_path.iterdir():
        assert presented.secret.encode() not in file.read_bytes()


def test_a_name_is_shown_as_it_is(run: Callable[..., Result], tmp_path: Path) -> None:
    """What looks like markup is none, and a name from before with an escape code is shown in
    letters; a new one is refused."""
    key, _ = make_key("[/x] :smile:", [Scope.READ], "default", NOW)
    with closing(opened(tmp_path)) as store:
        store.keys.add(key)
        store.keys.add(replace(key, id="former", name="shop\x1b[2J\nadmin"))
    listed = run("list").output
    assert "[/x] :smile:" in listed
    assert r"shop\x1b[2J\nadmin" in listed
    refused = run("create", "--name", "a\x1b[2J", "--scope", "read").exception
    assert isinstance(refused, InvalidInput)
    assert "U+001B" in str(refused)


def test_no_store_is_made_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    """Where there is no store, commands that open it say where they looked, and make none; `create
    --new` makes it, and says where."""
    monkeypatch.setenv("ES_DATA_FOLDER", str(tmp_path / "elsewhere"))
    place = str(tmp_path / "elsewhere" / "store.db")
    for words in (("create", "--name", "k", "--scope", "read"), ("list",), ("revoke", "nobody")):
        error = run(*words).exception
        assert isinstance(error, NotFound)
        assert place in str(error)
    assert not (tmp_path / "elsewhere").exists()
    made = run("create", "--name", "k", "--scope", "read", "--new")
    assert read_key(made.stdout.strip()) is not None
    assert made.stderr == f"the store is {place}\n"


def test_keys_are_told_as_json(run: Callable[..., Result]) -> None:
    """`--json` prints the key and what is known of it, later without what proves it."""
    made = json.loads(run("create", "--name", "k", "--scope", "read", "--json").stdout)
    presented = read_key(made.pop("key"))
    assert presented is not None
    (listed,) = json.loads(run("list", "--json").stdout)
    assert {**listed, "created_at": ...} == {**made, "created_at": ...}  # is kept in milliseconds
    assert (listed["id"], listed["scopes"], listed["revoked_at"]) == (presented.id, ["read"], None)
    assert "sha256" not in str(listed)


def test_a_revoked_key_has_ended(run: Callable[..., Result], tmp_path: Path) -> None:
    """`revoke` ends the key at once; an unknown id is an error that names it."""
    presented = read_key(run("create", "--name", "k", "--scope", "admin").stdout.strip())
    assert presented is not None
    assert run("revoke", presented.id).exit_code == 0
    with closing(opened(tmp_path)) as store:
        (key,) = store.keys.all()
    assert not key.is_valid(datetime.now(UTC))
    error = run("revoke", "nobody").exception
    assert isinstance(error, NotFound)
    assert "nobody" in str(error)


def test_rotation_overlaps(run: Callable[..., Result], tmp_path: Path) -> None:
    """`rotate` prints a second key for the same use; the first goes on for the overlap only."""
    first = read_key(run("create", "--name", "k", "--scope", "tune").stdout.strip())
    assert first is not None
    second = read_key(run("rotate", first.id, "--overlap", "2h").stdout.strip())
    assert second is not None
    with closing(opened(tmp_path)) as store:
        former, key = store.keys.all()
    assert (former.id, key.id) == (first.id, second.id)
    assert (key.name, key.scopes, key.project) == (former.name, former.scopes, former.project)
    assert key.expires_at is None
    now = datetime.now(UTC)
    assert former.is_valid(now)
    assert key.is_valid(now)
    assert not former.is_valid(now + timedelta(hours=2))


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--name", "k"),
        ("create", "--name", "k", "--scope", "everything"),
        ("create", "--name", "k", "--scope", "read", "--project", "No Project"),
        ("create", "--name", "k", "--scope", "read", "--expires", "soon"),
        ("rotate", "nobody"),
        ("rotate", "nobody", "--overlap", "soon"),
    ],
)
def test_a_wrong_command_makes_no_key(
    run: Callable[..., Result], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """What cannot be made is refused, and nothing is kept."""
    done = run(*words)
    assert done.exit_code != 0
    assert done.exception is None or isinstance(done.exception, SystemExit | EmbeddingStudioError)
    with closing(opened(tmp_path)) as store:
        assert store.keys.all() == []


def test_a_setting_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad variable ends the command with its name, its value and what is wrong, no traceback."""
    monkeypatch.setenv("ES_LEASE_SECONDS", "abc")
    monkeypatch.setattr("sys.argv", ["embedding-studio", "settings"])
    with pytest.raises(SystemExit, match="1"):
        main()
    told = capsys.readouterr().err
    assert "ES_LEASE_SECONDS is 'abc': Input should be a valid number" in told
    assert "Traceback" not in told
