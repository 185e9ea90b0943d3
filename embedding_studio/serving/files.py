"""The files of registered models on this machine, fetched once and checked."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from embedding_studio.deletion import remove_tree
from embedding_studio.errors import CorruptModel
from embedding_studio.settings import Settings
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking.reader import ModelFolder, open_model


class FetchedModels:
    """A folder with one folder for each model, named by what is in its files; several processes may
    share it."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_folder.absolute() / "serving"
        self._tracking_uri = settings.resolved_tracking_uri

    def fetch(self, model: StoredModel) -> Path:
        """Return the folder of a model's files, if need be by fetching them.

        Raises NotFound when they are gone, CorruptModel when they are not those that were saved,
        StoreUnavailable, ConfigurationError."""
        place = self._folder / _name_of(model)
        if not place.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            source = open_model(model, self._tracking_uri)
            source.check(model.files)
            part = Path(tempfile.mkdtemp(dir=self._folder, suffix=".part"))
            try:
                for file in model.files:
                    _copy(source, file, part / file.path)
                part.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was first
                    raise
            finally:
                remove_tree(part, ignore_errors=True)
        os.utime(place)
        return place

    def keep(self, count: int) -> None:
        """Remove all but the models that were asked for last. One that is removed while it is in
        use stays readable where it is open."""
        places = sorted(self._places(), key=lambda one: one.stat().st_mtime, reverse=True)
        for place in places[count:]:
            remove_tree(place, ignore_errors=True)

    def _places(self) -> Iterator[Path]:
        return (one for one in self._folder.glob("*") if one.suffix != ".part")


def _copy(source: ModelFolder, file: ModelFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as content:
        for chunk in source.read(file.path):
            digest.update(chunk)
            content.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise CorruptModel(f"the model's file {file.path!r} is not the one that was saved")


def _name_of(model: StoredModel) -> str:
    files = sorted((asdict(file) for file in model.files), key=lambda one: str(one["path"]))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
