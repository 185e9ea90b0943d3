"""What the files of a stored model say of it, read without loading it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from embedding_studio.tasks import ModelFacts, ModelFile
from embedding_studio.tracking.files import hash_of
from embedding_studio.tracking.reader import CARD

_WIDTHS = ("out_features", "embedding_dimension", "word_embedding_dimension")
"""What a module's configuration calls the length of the vectors that it gives."""
_UNKNOWN = "unknown"


def facts_of(folder: Path, files: Sequence[ModelFile]) -> ModelFacts:
    """Return what is known of a saved model; of what is no sentence-transformers model that is its
    hash, its size and what its card says."""
    settings = _read(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    of_queries = _query_folders(folder)
    of_items = [
        file
        for file in files
        if file.path != CARD and not of_queries & {*map(str, PurePosixPath(file.path).parents)}
    ]
    return ModelFacts(
        sha256=_hash_of(files),
        items_sha256=_hash_of(of_items) if settings else None,
        size_bytes=sum(file.size_bytes for file in files),
        dimensions=settings.get("truncate_dim") or _width_of(folder),
        base_model=_entry(folder, "base_model"),
        license=_entry(folder, "license"),
        prompts=prompts if settings else None,
    )


def _hash_of(files: Sequence[ModelFile]) -> str:
    return hash_of(json.dumps([asdict(file) for file in files], sort_keys=True))


def _query_folders(folder: Path) -> set[str]:
    """Return the folders of what a Router takes for queries and not for documents."""
    found = set()
    for module in _read(folder / "modules.json") or ():
        place = str(module.get("path", ""))
        routes = _read(folder / place / "router_config.json").get("structure", {})
        if "document" in routes:
            of_queries = {*routes.get("query", ())} - {*routes["document"]}
            found |= {str(PurePosixPath(place) / name) for name in of_queries}
    return found


def _width_of(folder: Path) -> int | None:
    """Return how long the vectors of a pipeline of modules are, by the last that says so; of
    several routes, those for items."""
    width: int | None = None
    for module in _read(folder / "modules.json") or ():
        place = folder / str(module.get("path", ""))
        routes = _read(place / "router_config.json").get("structure", {})
        steps = routes.get("document") or next(iter(routes.values()), [""])
        for step in steps:
            config = _read(place / step / "config.json")
            found = [config[name] for name in _WIDTHS if isinstance(config.get(name), int)]
            if found:
                width = found[0]
    return width


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _entry(folder: Path, name: str) -> str | None:
    """Return an entry of the card's head."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    head = text.split("---")[1] if text.startswith("---") else ""
    found = re.search(rf"^{name}: *(\S.*)$", head, re.MULTILINE)
    value = found[1].strip() if found else _UNKNOWN
    return None if value == _UNKNOWN else value
