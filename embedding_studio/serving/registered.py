"""A registered model on this machine, for as long as it is needed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.models import CHAMPION, split_reference
from embedding_studio.serving.export import Encode, encode_by
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.serving import COSINE


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, loaded.

    name: "name/3"; folder: with its files, as they are saved."""

    name: str
    folder: Path
    encode: Encode
    is_cosine: bool


@contextmanager
def registered(client: EmbeddingStudioClient, reference: str) -> Iterator[Registered]:
    """Download the version that `name`, `name@champion` or `name/3` is, and load it.

    Raises NotFound, CorruptModel."""
    name, wanted = split_reference(reference)
    version = client.get_version(name, wanted or CHAMPION).version
    with tempfile.TemporaryDirectory(prefix="embedding-studio-") as place:
        folder = Path(place) / "model"
        client.download_version(name, folder, version)
        model = load_encoder(folder)
        is_cosine = model.similarity_fn_name == COSINE
        yield Registered(f"{name}/{version}", folder, encode_by(model), is_cosine)
