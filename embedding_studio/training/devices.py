"""The GPUs of this machine, as torch sees them."""

import torch


def describe_devices() -> list[str]:
    """Return the name and memory of each GPU that torch can use; none where it uses the CPU."""
    return [
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        for number in range(torch.cuda.device_count())
        if (properties := torch.cuda.get_device_properties(number))
    ]
