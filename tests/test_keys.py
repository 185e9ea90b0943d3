"""API keys: what is made, kept and checked, and the commands that do it."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from embedding_studio.__main__ import app, main
from embedding_studio.errors import EmbeddingStudioError, InvalidInput, NotFound
from embedding_studio.keys import (
    ApiKey,
    Scope,
    make_key,
    make_successor,
    matches,
    parse_duration,
    parse_expiry,
    read_key,
)
from embedding_studio.store import Store, open_store

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_a_key_is_told_once_and_not_kept() -> None:
    """What is kept matches the text and holds no part of the secret; no two keys are alike."""
    key, text = make_key("shop", [Scope.READ, Scope.INGEST], "acme", NOW, NOW + DAY)
    presented = read_key(text)
    assert presented is not None
    assert text == f"es_{key.id}_{presented.secret}"
    assert len(presented.secret) == 43  # 256 bits in base64
    assert presented.secret not in repr(key)
    assert key.scopes == (Scope.INGEST, Scope.READ)
    assert matches(presented, key)
    other, other_text = make_key("shop", [Scope.READ], "acme", NOW)
    assert (other.id, other.secret_sha256) != (key.id, key.secret_sha256)
    assert not matches(presented, other)
    assert not matches(presented, None)
    assert read_key(other_text) != presented


@pytest.mark.parametrize(
    "text", ["", "es_", "es_1_2", "Bearer x", f"es_{'g' * 12}_{'a' * 43}", f"es_{'0' * 12}_é" * 9]
)
def test_what_is_no_key_is_not_read(text: str) -> None:
    """A text of another form has no parts, so nothing is looked up for it."""
    assert read_key(text) is None


def test_secrets_with_any_letter_are_read() -> None:
    """Underscores and dashes, which base64 brings, do not confuse the parts."""
    presented = read_key(f"es_{'0' * 12}_{'_-' * 21}_")
    assert presented == ("0" * 12, "_-" * 21 + "_")


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    """It is valid up to, and not at, its expiry, and never once it is revoked."""
    key, _ = make_key("k", [Scope.READ], "default", NOW, NOW + DAY)
    assert key.is_valid(NOW)
    assert key.is_valid(NOW + DAY - timedelta(microseconds=1))
    assert not key.is_valid(NOW + DAY)
    revoked = ApiKey("1", "k", "default", (Scope.READ,), "", NOW, revoked_at=NOW + DAY)
    assert not revoked.is_valid(NOW)


@pytest.mark.parametrize("scope", Scope)
def test_admin_allows_everything(scope: Scope) -> None:
    """A scope allows itself; admin allows each, and no other scope allows admin."""
    admin, _ = make_key("k", [Scope.ADMIN], "default", NOW)
    assert admin.allows(scope)
    key, _ = make_key("k", [scope], "default", NOW)
    assert [one for one in Scope if key.allows(one)] == (
        list(Scope) if scope is Scope.ADMIN else [scope]
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_key("k", [], "default", NOW), "without a scope"),
        (lambda: make_key("", [Scope.READ], "default", NOW), "name"),
        (lambda: make_key("k" * 257, [Scope.READ], "default", NOW), "257"),
        (lambda: make_key("k", [Scope.READ], "No Project", NOW), "No Project"),
        (lambda: make_key("k", [Scope.READ], "default", NOW, NOW), "expired already"),
        (lambda: parse_duration("soon"), "90d"),
        (lambda: parse_duration("-1d"), "90d"),
        (lambda: parse_expiry("tomorrow", NOW), "2027-01-31"),
    ],
)
def test_a_key_of_no_use_is_refused(make: Callable[[], object], words: str) -> None:
    """Each refusal says what is wrong."""
    with pytest.raises(InvalidInput, match=words):
        make()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", NOW + 90 * DAY),
        ("24h", NOW + DAY),
        ("30m", NOW + timedelta(minutes=30)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T01:00:00+01:00", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_expiries_are_durations_or_dates(text: str, expected: datetime) -> None:
    """A duration counts from now; a date without an offset is UTC."""
    assert parse_expiry(text, NOW) == expected


def test_a_successor_lives_as_long() -> None:
    """It has the use and the length of life of the former key, and another id; an ended key has
    none."""
    key, _ = make_key("k", [Scope.TUNE], "acme", NOW, NOW + 90 * DAY)
    later = NOW + 80 * DAY
    successor, _ = make_successor(key, later)
    assert (successor.name, successor.scopes, successor.project) == ("k", (Scope.TUNE,), "acme")
    assert successor.expires_at == later + 90 * DAY
    assert successor.id != key.id
    with pytest.raises(InvalidInput, match="ended"):
        make_successor(key, NOW + 90 * DAY)


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a `keys` command on a store of the test's own."""
    monkeypatch.setenv("ES_DATA_FOLDER", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
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
    presented = read_key(made.output.strip())
    assert presented is not None
    with closing(opened(tmp_path)) as store:
        (key,) = store.keys.all()
    assert matches(presented, key)
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


def test_a_revoked_key_has_ended(run: Callable[..., Result], tmp_path: Path) -> None:
    """`revoke` ends the key at once; an unknown id is an error that names it."""
    presented = read_key(run("create", "--name", "k", "--scope", "admin").output.strip())
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
    first = read_key(run("create", "--name", "k", "--scope", "tune").output.strip())
    assert first is not None
    second = read_key(run("rotate", first.id, "--overlap", "2h").output.strip())
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
    monkeypatch.setattr("sys.argv", ["embedding-studio", "sweep"])
    with pytest.raises(SystemExit, match="1"):
        main()
    told = capsys.readouterr().err
    assert "ES_LEASE_SECONDS is 'abc': Input should be a valid number" in told
    assert "Traceback" not in told
