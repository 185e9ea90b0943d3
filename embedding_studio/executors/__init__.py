"""Where trials run: one interface, one implementation per kind of place."""

import os
import re
from pathlib import Path

from embedding_studio.errors import ConfigurationError
from embedding_studio.executors.base import Executor

__all__ = ["Executor", "open_executor"]

MOST_TRIALS = 4
"""At a time, where nobody says how many: what is tried later learns from what was tried before."""
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def open_executor(spec: str | None) -> Executor:
    """Open the executor that `spec` names: "inline", "process:N" with N >= 1, "ray:auto" or
    "ray://host:port".

    None: a process for each GPU, or else for each core, but no more than four of these.
    Raises ConfigurationError for anything else, ExecutorUnavailable when there is no such cluster.
    """
    cores, devices = len(os.sched_getaffinity(0)), _find_devices()
    if spec is None:
        spec = f"process:{len(devices) or min(cores, MOST_TRIALS)}"
    if spec == "inline":
        from embedding_studio.executors.inline import InlineExecutor

        return InlineExecutor()
    if match := re.fullmatch(r"process:([1-9]\d*)", spec):
        from embedding_studio.executors.process import ProcessExecutor

        return ProcessExecutor(int(match[1]), cores, devices)
    if spec == "ray:auto" or spec.startswith("ray://"):
        try:
            from embedding_studio.executors.ray import RayExecutor
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"the executor {spec!r} takes Ray, which is not installed: "
                "pip install 'embedding-studio[ray]'"
            ) from error

        return RayExecutor("auto" if spec == "ray:auto" else spec)
    raise ConfigurationError(
        f"{spec!r} is no executor (ES_EXECUTOR, --executor): use process:N (N at a time), "
        "ray:auto, ray://host:port or inline"
    )


def _find_devices() -> list[str]:
    """Return this machine's NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them, or those it names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    return [str(number) for number, _ in enumerate(_NVIDIA.glob("*"))]
