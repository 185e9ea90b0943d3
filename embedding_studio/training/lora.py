"""Low-rank adapters: for large encoders, a few weights learn in place of all (Hu et al. 2021)."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from embedding_studio.errors import ConfigurationError

Parameters = dict[str, nn.Parameter]


def add_lora(layers: nn.ModuleList, first: int, rank: int) -> tuple[Parameters, Parameters]:
    """Put adapters of `rank` beside every linear map from layer `first` on.

    Returns the weights that the adapters will be merged into, and the adapters' own, which learn.
    Their product starts at zero and is scaled by 2 (lora_alpha = 2 * rank).
    Raises ConfigurationError when peft is not installed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigurationError(
            "lora_rank needs peft: pip install 'embedding-studio[lora]'"
        ) from error
    linear = [
        name
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and int(name.split(".")[0]) >= first
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in layers.modules())
    inject_adapter_in_model(config, layers)
    adapted = dict(_adapted(layers))
    weights = {f"{name}.weight": module.get_base_layer().weight for name, module in adapted.items()}
    learning = {name: p for name, p in layers.named_parameters() if ".lora_" in name}
    return weights, learning


def merge_lora(layers: nn.ModuleList) -> None:
    """Add the adapters to the weights they stand beside and take them out."""
    for name, module in list(_adapted(layers)):
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(layers.get_submodule(parent), child, module.get_base_layer())


def _adapted(layers: nn.ModuleList) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in layers.named_modules() if hasattr(m, "get_base_layer")]
