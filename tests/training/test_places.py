"""Where initial models are found, and how it is told that they are not."""

from pathlib import Path

import huggingface_hub
import pytest

from embedding_studio.errors import MethodError
from embedding_studio.training import places
from embedding_studio.training.places import require_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "cache"))

    def fail(self: object, name: str, timeout: float) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    places._find_on_hub.cache_clear()
    return tmp_path / "cache"


def test_a_folder_with_a_model_is_enough(tmp_path: Path) -> None:
    """Nothing is loaded, no hub is asked."""
    (tmp_path / "modules.json").write_text("[]")
    require_model(str(tmp_path), "ES_INITIAL_MODEL")


@pytest.mark.parametrize("place", ["/no/such/folder", "./folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_told(place: str) -> None:
    """The setting that named it, and what to do."""
    with pytest.raises(MethodError, match=r"ES_INITIAL_MODEL names .* no such folder: copy a"):
        require_model(place, "ES_INITIAL_MODEL")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    """An empty mount, say."""
    with pytest.raises(MethodError, match="in which there is no model"):
        require_model(str(tmp_path), "ES_INITIAL_IMAGE_MODEL")


def test_a_model_that_was_downloaded_needs_no_network(cache: Path) -> None:
    """By the name that sentence-transformers fills up; what was begun only does not count."""
    repository = cache / "models--sentence-transformers--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "modules.json").write_text("[]")
    with pytest.raises(MethodError):
        require_model("tiny", "ES_INITIAL_MODEL")
    (snapshot / "model.safetensors").write_bytes(b"")
    require_model("tiny", "ES_INITIAL_MODEL")
    require_model("sentence-transformers/tiny", "ES_INITIAL_MODEL")


def test_no_network_and_no_local_model_is_told() -> None:
    """Which setting, which model, why, and both ways out."""
    with pytest.raises(MethodError) as told:
        require_model("intfloat/e5-small", "ES_INITIAL_MODEL")
    message = str(told.value)
    assert "ES_INITIAL_MODEL names 'intfloat/e5-small'" in message
    assert "(Name or service not known): name a folder" in message
    assert "access to the hub" in message


def test_the_hub_is_asked_until_it_has_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is there stays there: nobody asks every minute for ever."""
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, name, timeout: asked.append(name)
    )
    require_model("a/b", "ES_INITIAL_MODEL")
    require_model("a/b", "ES_INITIAL_MODEL")
    assert asked == ["a/b"]
