"""What frozen layers make of every input: computed once per model and depth, for all trials."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_studio.training.encoder import padded_places

_SHARE_OF_FREE_SPACE = 0.5


@dataclass(frozen=True)
class Activations:
    """rows: (n_tokens, d) float16, the inputs end to end; offsets: (n_inputs + 1,) int64."""

    rows: NDArray[np.float16]
    offsets: NDArray[np.int64]

    def padded(self, which: NDArray[np.integer]) -> Tensor:
        """Return (n, longest, d) float32; whatever stands in the padding is masked anyway."""
        places, _ = padded_places(self.offsets, which)
        return torch.from_numpy(self.rows[places]).float()


def open_activations(
    folder: Path,
    frozen: Iterable[Tensor],
    lengths: NDArray[np.int64],
    width: int,
    compute: Callable[[], Iterator[tuple[NDArray[np.integer], Tensor]]],
    max_bytes: int,
) -> Activations | None:
    """Map the file for these frozen weights into memory; make it first if there is none.

    lengths: (n_inputs,) in tokens; width: d. compute: yields numbers of inputs, (n,), and what the
    frozen layers make of them, (n, longest, d). Several processes may make the same file at once:
    the last one's stays. None when the folder's activations would take more than `max_bytes` or
    half of the free space, or do not fit half precision: then they are to be computed each time.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    file = folder / f"activations-{_fingerprint(frozen)}.npy"
    if not file.exists():
        size = int(offsets[-1]) * width * np.dtype(np.float16).itemsize
        taken = sum(other.stat().st_size for other in folder.glob("activations-*.npy"))
        free = shutil.disk_usage(folder).free * _SHARE_OF_FREE_SPACE
        if size > min(max_bytes - taken, free) or not _write(file, offsets, width, compute()):
            return None
    return Activations(np.load(file, mmap_mode="r", allow_pickle=False), offsets)


def _write(
    file: Path,
    offsets: NDArray[np.int64],
    width: int,
    chunks: Iterable[tuple[NDArray[np.integer], Tensor]],
) -> bool:
    """Write the rows and return whether all of them are finite; only then is there a file."""
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        rows = np.lib.format.open_memmap(
            part, mode="w+", dtype=np.float16, shape=(int(offsets[-1]), width)
        )
        for which, hidden in chunks:
            places, mask = padded_places(offsets, which)
            values = hidden.half().cpu().numpy()[mask]
            if not np.isfinite(values).all():
                return False
            rows[places[mask]] = values
        rows.flush()
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return True


def _fingerprint(frozen: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for weights in frozen:
        digest.update(str(tuple(weights.shape)).encode())
        digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
