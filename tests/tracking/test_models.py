"""What of a model is kept, and what is refused."""

import os
from pathlib import Path

import pytest

from embedding_studio.errors import CorruptModel
from embedding_studio.projects import RegisteredName
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY
from tests.tracking.samples import save_arrays


def test_a_model_round_trips_and_its_bytes_go_when_it_is_deleted(
    tracking: Tracking, tmp_path: Path
) -> None:
    """What is uploaded is what is downloaded; deleted means gone from the disk, the run kept."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    assert tracking.models.stored(model.run_id) == model
    tracking.models.download(model, tmp_path / "copy")
    assert (tmp_path / "copy" / "arrays.safetensors").read_bytes() == (
        tmp_path / "saved" / "arrays.safetensors"
    ).read_bytes()
    tracking.models.delete(model.run_id)
    tracking.models.delete(model.run_id)
    assert list((tmp_path / "artifacts").rglob("*.safetensors")) == []
    run = tracking.client.reading.get_run(model.run_id)
    assert (run.info.lifecycle_stage, run.data.tags["es.model"]) == ("active", "deleted")


def test_an_initial_model_is_uploaded_once(tracking: Tracking, tmp_path: Path) -> None:
    """The same files are the same run; other files, of another ES_INITIAL_MODEL, are another."""
    first = tracking.models.store_initial(TOY, save_arrays(tmp_path / "a"))
    other = tracking.models.store_initial(RegisteredName("Other"), save_arrays(tmp_path / "b"))
    assert tracking.models.store_initial(TOY, save_arrays(tmp_path / "c")) == first
    second = tracking.models.store_initial(TOY, save_arrays(tmp_path / "d", seed=1))
    assert second.run_id not in (first.run_id, other.run_id)
    folders = {path.parts[-5] for path in (tmp_path / "artifacts").rglob("*.safetensors")}
    assert folders == {first.run_id, second.run_id, other.run_id}


def test_a_missing_file_is_noticed(tracking: Tracking, tmp_path: Path) -> None:
    """A model without one of its files is refused with the file's name and the run's id."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (file,) = (tmp_path / "artifacts").rglob("*.safetensors")
    file.unlink()
    with pytest.raises(CorruptModel, match=rf"arrays.safetensors .* {model.run_id}"):
        tracking.models.download(model, tmp_path / "copy")


def test_a_local_model_takes_its_space_once(tracking: Tracking, tmp_path: Path) -> None:
    """Upload and download give the same bytes another name; deleting one leaves the others."""
    saved = save_arrays(tmp_path / "saved")
    model = tracking.models.store_initial(TOY, saved)
    tracking.models.download(model, tmp_path / "copy")
    (stored,) = (tmp_path / "artifacts").rglob("*.safetensors")
    assert stored.samefile(saved / "arrays.safetensors")
    assert stored.samefile(tmp_path / "copy" / "arrays.safetensors")
    tracking.models.delete(model.run_id)
    assert (tmp_path / "copy" / "arrays.safetensors").exists()


def test_where_files_cannot_share_bytes_they_are_copied(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across file systems, and for a link in the saved folder, the bytes themselves are stored."""
    outside = save_arrays(tmp_path / "outside") / "arrays.safetensors"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "arrays.safetensors").symlink_to(outside)
    first = tracking.models.store_initial(RegisteredName("Linked"), linked)

    def refuse(*_: object) -> None:
        raise OSError("invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    second = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    for number, model in enumerate([first, second]):
        copy = tmp_path / f"copy-{number}"
        tracking.models.download(model, copy)
        assert (copy / "arrays.safetensors").read_bytes() == outside.read_bytes()
    for stored in (tmp_path / "artifacts").rglob("*.safetensors"):
        assert not stored.is_symlink()
        assert stored.stat().st_nlink == 1


def test_an_empty_model_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    """A method that saves nothing does not get a model stored."""
    (tmp_path / "saved").mkdir()
    with pytest.raises(CorruptModel, match="saved no file"):
        tracking.models.store_initial(TOY, tmp_path / "saved")
    assert list((tmp_path / "artifacts").rglob("*.*")) == []


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "model.py", "noending"])
def test_files_that_may_run_code_are_refused(tracking: Tracking, tmp_path: Path, name: str) -> None:
    """A pickle or a script is no part of a model: nothing of such a one is stored."""
    saved = save_arrays(tmp_path / "saved")
    (saved / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(CorruptModel, match=f"{name}.*safetensors"):
        tracking.models.store_initial(TOY, saved)
    assert list((tmp_path / "artifacts").rglob("*.*")) == []


def test_a_list_of_files_that_was_changed_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    """Who can write to the artifacts cannot put a model of their own in a champion's place."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (manifest,) = (tmp_path / "artifacts").rglob("files.json")
    manifest.write_text(manifest.read_text().replace(model.files[0].sha256, "0" * 64))
    with pytest.raises(CorruptModel, match=f"files.json of the model of run {model.run_id}"):
        tracking.models.stored(model.run_id)


def test_a_file_that_nobody_saved_is_not_loaded(tracking: Tracking, tmp_path: Path) -> None:
    """What lies beside a model's files stays where it is."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (stored,) = (tmp_path / "artifacts").rglob("*.safetensors")
    (stored.parent / "modules.json").write_text("[]")
    tracking.models.download(model, tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["arrays.safetensors"]
