"""Models for tests of what is on MLflow."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def save_arrays(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    save_file({"w": np.random.default_rng(seed).random((4, 4))}, folder / "arrays.safetensors")
    return folder
