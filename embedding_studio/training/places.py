"""Where an initial model is to be found: on this machine, or on a model hub."""

import os
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from sentence_transformers import __MODEL_HUB_ORGANIZATION__

from embedding_studio.errors import MethodError

HUB_SECONDS = 5.0
_WEIGHTS = (".safetensors", ".bin")
_MARKS = ("modules.json", "config.json", "config_sentence_transformers.json")


def require_model(place: str, setting: str) -> None:
    """Return if a model can be loaded by its folder or its name on a hub, as far as can be seen
    without loading it.

    setting: what named it. Raises MethodError that names it and says what to do."""
    name = place if "/" in place else f"{__MODEL_HUB_ORGANIZATION__}/{place}"
    if Path(place).is_dir():
        if not any((Path(place) / mark).exists() for mark in _MARKS):
            raise MethodError(f"{setting} names the folder {place!r}, in which there is no model")
    elif place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise MethodError(
            f"{setting} names {place!r}, and there is no such folder: copy a model there, or name "
            "another folder or a model of a hub"
        )
    elif not _is_downloaded(name):
        try:
            _find_on_hub(name)
        except Exception as error:  # no network, no such name, no leave to read it
            why = next(iter(str(error).strip().splitlines()), repr(error))
            raise MethodError(
                f"{setting} names {place!r}, which is no folder here, was not downloaded before "
                f"and is not to be had from the model hub ({why}): name a folder with a model in "
                f"{setting}, or give this machine access to the hub"
            ) from error


def _is_downloaded(name: str) -> bool:
    folder = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    for mark in _MARKS:
        found = try_to_load_from_cache(name, mark, cache_dir=folder)
        if isinstance(found, str):  # in the folder of everything that was downloaded
            return any(file.suffix in _WEIGHTS for file in Path(found).parent.rglob("*"))
    return False


@cache
def _find_on_hub(name: str) -> None:
    """Asked until it is found once, not every minute for ever."""
    HfApi().model_info(name, timeout=HUB_SECONDS)
