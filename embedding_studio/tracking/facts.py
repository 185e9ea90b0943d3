"""What the files of a stored model say of it, read without loading it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from embedding_studio.tasks import ModelFacts, ModelFile
from embedding_studio.tracking.files import hash_of
from embedding_studio.tracking.reader import CARD

_WIDTHS = ("out_features", "embedding_dimension", "word_embedding_dimension")
"""What a module's configuration calls the length of the vectors that it gives."""
_UNKNOWN = "unknown"
_TOKENIZER = "tokenizer.json"
_AS_LAST_USED = ("padding", "truncation")
"""What a tokenizer's file has of the last call, and each call says anew."""
_OF_THE_WHOLE = {CARD, "modules.json", "config_sentence_transformers.json"}


def facts_of(folder: Path, files: Sequence[ModelFile]) -> ModelFacts:
    """Return what is known of a saved model; of what is no sentence-transformers model that is its
    hash, its size and what its card says."""
    settings = _read(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    return ModelFacts(
        sha256=hash_of(json.dumps([asdict(file) for file in files], sort_keys=True)),
        items_sha256=_items_hash(folder, files, settings) if settings else None,
        size_bytes=sum(file.size_bytes for file in files),
        dimensions=settings.get("truncate_dim") or _width_of(folder),
        base_model=_entry(folder, "base_model"),
        license=_entry(folder, "license"),
        prompts=prompts if settings else None,
    )


def _items_hash(folder: Path, files: Sequence[ModelFile], settings: Mapping[str, Any]) -> str:
    """Return the hash of what gives items their vectors: of the modules that they pass, wherever
    these lie, and of the settings that concern them."""
    modules = [*_item_modules(folder)]
    parts: dict[str, list[tuple[str, str]]] = {place: [] for _, place in modules}
    places = {str(PurePosixPath(one.get("path", ""))) for one in _modules(folder)} | parts.keys()
    for file in files:
        path = PurePosixPath(file.path)
        place = next((one for one in map(str, path.parents) if one in places), "")
        if place in parts and file.path not in _OF_THE_WHOLE:
            digest = file.sha256
            if path.name == _TOKENIZER:
                tokenizer = _read(folder / path)
                digest = hash_of(json.dumps({**tokenizer, **dict.fromkeys(_AS_LAST_USED)}))
            parts[place].append((str(path.relative_to(place)), digest))
    prompts = {k: v for k, v in (settings.get("prompts") or {}).items() if k != "query" and v}
    own = [settings.get(k) for k in ("default_prompt_name", "similarity_fn_name", "truncate_dim")]
    passed = [(kind.rpartition(".")[2], sorted(parts[place])) for kind, place in modules]
    return hash_of(json.dumps([passed, prompts, own], sort_keys=True))


def _width_of(folder: Path) -> int | None:
    """Return how long the vectors of a pipeline of modules are, by the last that says so."""
    width: int | None = None
    for _, place in _item_modules(folder):
        config = _read(folder / place / "config.json")
        found = [config[name] for name in _WIDTHS if isinstance(config.get(name), int)]
        if found:
            width = found[0]
    return width


def _item_modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the type and the folder of each module that items pass; of several routes, theirs."""
    for module in _modules(folder):
        place = str(PurePosixPath(module.get("path", "")))
        router = _read(folder / place / "router_config.json")
        if not (routes := router.get("structure")):
            yield str(module.get("type", "")), place
            continue
        for step in routes.get("document", next(iter(routes.values()))):
            kind = str(router.get("types", {}).get(step, ""))
            yield kind, str(PurePosixPath(place) / step)


def _modules(folder: Path) -> Sequence[Mapping[str, Any]]:
    return _read(folder / "modules.json") or ()


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
