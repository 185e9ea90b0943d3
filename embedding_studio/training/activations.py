"""What frozen layers make of every input: computed once per model and depth, for all trials."""

import errno
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_studio.training.inputs import new_array, padded_places

_SHARE_OF_FREE_SPACE = 0.5


@dataclass(frozen=True)
class Activations:
    """What frozen layers give, by token.

    rows: (n_tokens, d) float16, the inputs end to end; offsets: (n_inputs + 1,) int64."""

    rows: NDArray[np.float16]
    offsets: NDArray[np.int64]
    is_left_padded: bool = False

    def padded(self, which: NDArray[np.integer]) -> Tensor:
        """Return (n, longest, d) float32; whatever stands in the padding is masked anyway."""
        places, _ = padded_places(self.offsets, which, self.is_left_padded)
        return torch.from_numpy(self.rows[places]).float()


def activations_file(folder: Path, frozen: Iterable[Tensor], depths: Iterable[int]) -> Path:
    """Return where the activations of these frozen weights, up to these depths, are kept."""
    return folder / f"activations-{digest_of(repr(list(depths)), frozen)}.npy"


def digest_of(form: str, tensors: Iterable[Tensor]) -> str:
    """Return what tells these tensors, and how they are used, from others."""
    digest = hashlib.sha256(form.encode())
    for weights in tensors:
        digest.update(str(tuple(weights.shape)).encode())
        digest.update(weights.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def open_activations(
    file: Path,
    lengths: NDArray[np.int64],
    compute: Callable[[], Iterator[tuple[NDArray[np.integer], Tensor]]],
    max_bytes: int,
    is_left_padded: bool = False,
) -> Activations | None:
    """Map the file into memory; make it first if there is none.

    lengths: (n_inputs,) in tokens, 0 where nothing is kept. compute: yields numbers of inputs,
    (n,), and what the frozen layers make of them, (n, longest, d). Several processes may make the
    same file at once: the last one's stays. None when the folder's activations would take more than
    `max_bytes` or half of the free space, or do not fit half precision: then they are to be
    computed each time."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    found = Activations(np.empty((0, 0), np.float16), offsets, is_left_padded)
    if not file.exists() and not _write(file, found, compute(), max_bytes):
        return None
    return replace(found, rows=np.load(file, mmap_mode="r", allow_pickle=False))


def _write(
    file: Path,
    shape: Activations,
    chunks: Iterator[tuple[NDArray[np.integer], Tensor]],
    max_bytes: int,
) -> bool:
    """Write the rows and return whether there is room and all of them are finite; only then is
    there a file.

    shape: where they go."""
    folder, first = file.parent, next(chunks)
    size = (int(shape.offsets[-1]), first[1].shape[-1])
    taken = sum(other.stat().st_size for other in folder.glob("activations-*.npy"))
    free = shutil.disk_usage(folder).free * _SHARE_OF_FREE_SPACE
    if math.prod(size) * np.dtype(np.float16).itemsize > min(max_bytes - taken, free):
        return False
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        rows = new_array(part, np.float16, size)
        for which, hidden in chain([first], chunks):
            places, mask = padded_places(shape.offsets, which, shape.is_left_padded)
            values = hidden.half().cpu().numpy()[mask]
            if not np.isfinite(values).all():
                return False
            rows[places[mask]] = values
        rows.flush()
        part.replace(file)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False  # others have filled the disk meanwhile
    finally:
        part.unlink(missing_ok=True)
    return True
