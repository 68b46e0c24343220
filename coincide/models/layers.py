"""Decoder layers by index or by fraction of depth."""

import json
from pathlib import Path


def resolve_layers(layers, depth):
    """Zero-based decoder layers from indices or fractions of depth.

    A fraction f in (0, 1) means the layer that ends at that depth, round(f · depth) - 1: a sixth of
    24 layers is layer 3.

    Raises:
        ValueError: a layer that the model lacks, or one named twice.
    """
    found = [max(round(layer * depth) - 1, 0) if isinstance(layer, float) else layer for layer in layers]
    for layer, index in zip(layers, found):
        if not 0 <= index < depth:
            raise ValueError(f"layer {layer} does not exist: the model has {depth} decoder layers, 0 to {depth - 1}")
    if len(set(found)) < len(found):
        raise ValueError(f"layers {list(layers)} name a layer twice: they are {found} of {depth}")
    return found


def config_depth(folder):
    """Number of decoder layers in a checkpoint folder's config.json, None where it does not say."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text())
    return config.get("text_config", config).get("num_hidden_layers")
