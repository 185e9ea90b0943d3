"""The card of a saved encoder: what it came from, and how to use it."""

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.training.encoder import load_encoder, save_encoder
from tests.training.tiny import write_tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model under a licence, with prompts."""
    folder = write_tiny_model(tmp_path / "hub" / "tiny")
    model = SentenceTransformer(str(folder), prompts={"query": "query: ", "document": ""})
    model.save(str(folder), create_model_card=False)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    return folder


def test_a_card_tells_base_licence_and_prompts(base: Path, tmp_path: Path) -> None:
    """In YAML above Markdown, as model hubs read it; the base stays the base when it is saved
    again."""
    save_encoder(load_encoder(base), tmp_path / "first")
    save_encoder(load_encoder(tmp_path / "first"), tmp_path / "second")
    card = (tmp_path / "first" / "README.md").read_text()
    assert card.startswith("---\nbase_model: hub/tiny\nlicense: apache-2.0\n")
    assert "- `query`: `'query: '`" in card
    assert "`document`" not in card  # no prompt is no prompt
    assert (tmp_path / "second" / "README.md").read_text() == card


def test_a_base_without_a_card_is_named_all_the_same(tmp_path: Path) -> None:
    """Its licence is said to be unknown."""
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "README.md").unlink(missing_ok=True)
    save_encoder(load_encoder(folder), tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"base_model: {tmp_path.name}/tiny\nlicense: unknown\n" in card
    assert "None: texts are encoded as they are." in card
