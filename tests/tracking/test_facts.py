"""What a saved model's files say of it, without loading it."""

from pathlib import Path

import pytest

from embedding_studio.models import beware_of
from embedding_studio.tasks import ModelFacts
from embedding_studio.tracking.facts import facts_of
from embedding_studio.tracking.files import describe_files
from embedding_studio.training.encoder import load_encoder, save_encoder, split_sides
from tests.training.tiny import write_tiny_model


def saved(folder: Path, has_sides: bool = False) -> ModelFacts:
    """Save a tiny encoder as methods do, and return the facts."""
    model = load_encoder(write_tiny_model(folder / "base"), "query: ", "item: ")
    if has_sides:
        split_sides(model)
    save_encoder(model, folder / "saved")
    return facts_of(folder / "saved", tuple(describe_files(folder / "saved")))


@pytest.mark.parametrize("has_sides", [False, True])
def test_an_encoder_tells_its_width_prompts_and_base(tmp_path: Path, has_sides: bool) -> None:
    """As its configuration and its card have them, also where queries have an encoder of their own;
    the same files have the same hash."""
    facts = saved(tmp_path, has_sides)
    assert facts.dimensions == load_encoder(tmp_path / "saved").get_embedding_dimension() == 32
    assert facts.prompts is not None
    assert (facts.prompts["query"], facts.prompts["document"]) == ("query: ", "item: ")
    assert facts.base_model is not None
    assert facts.base_model.endswith("/base")
    assert facts.license == "apache-2.0"
    files = [file for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert facts.size_bytes == sum(file.stat().st_size for file in files)
    assert facts_of(tmp_path / "saved", tuple(describe_files(tmp_path / "saved"))) == facts
    (tmp_path / "saved" / "README.md").write_text("---\nlicense: mit\n---\nNo base.")
    changed = facts_of(tmp_path / "saved", tuple(describe_files(tmp_path / "saved")))
    assert changed.sha256 != facts.sha256
    assert (changed.license, changed.base_model) == ("mit", None)


@pytest.mark.parametrize(("side", "is_other"), [("query", False), ("document", True)])
def test_items_keep_their_vectors_where_only_queries_learnt(
    tmp_path: Path, side: str, is_other: bool
) -> None:
    """What tells whether an index is to be made anew differs if the items' encoder does; that of
    the queries, and the card, do not count."""
    before = saved(tmp_path, has_sides=True)
    model = load_encoder(tmp_path / "saved")
    names = dict(model.named_parameters())
    weight = next(weight for name, weight in names.items() if f"sub_modules.{side}." in name)
    weight.data += 1.0
    save_encoder(model, tmp_path / "after")
    (tmp_path / "after" / "README.md").write_text("---\nlicense: mit\n---\nAnother.")
    after = facts_of(tmp_path / "after", tuple(describe_files(tmp_path / "after")))
    assert after.sha256 != before.sha256
    assert (after.items_sha256 != before.items_sha256) is is_other


def test_queries_that_get_an_encoder_of_their_own_leave_items_theirs(tmp_path: Path) -> None:
    """What began as one encoder gives items the same vectors when it is saved as two."""
    one, two = saved(tmp_path / "1", has_sides=False), saved(tmp_path / "2", has_sides=True)
    assert one.sha256 != two.sha256
    assert one.items_sha256 == two.items_sha256 is not None


def test_what_is_no_encoder_tells_little(tmp_path: Path) -> None:
    """A matrix has a hash and a size; nothing is made up, and no licence is asked for."""
    (tmp_path / "arrays.safetensors").write_bytes(b"12345")
    facts = facts_of(tmp_path, tuple(describe_files(tmp_path)))
    assert facts.size_bytes == 5
    assert (facts.dimensions, facts.prompts, facts.base_model) == (None, None, None)
    assert facts.items_sha256 is None
    assert beware_of(facts) == []


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        (None, "no licence of its base model acme/e5 is known"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0, forbids commercial use"),
        ("Non-Commercial", "forbids commercial use"),
        ("apache-2.0", None),
        ("mit", None),
    ],
)
def test_licences_that_speak_against_use_are_told(licence: str | None, told: str | None) -> None:
    """Where none is known, and where one forbids commercial use; others are not."""
    warnings = beware_of(ModelFacts("ab", 1, 32, "acme/e5", licence))
    assert (told in " ".join(warnings)) if told else warnings == []
