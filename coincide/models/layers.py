"""Decoder layers by index or by fraction of depth."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from coincide.base.errors import UserError


class LayerError(UserError):
    """Layers that a model does not have, or that are named twice."""


def resolve_layers(layers: Sequence[int | float], depth: int) -> list[int]:
    """Zero-based decoder layers from indices or fractions of depth.

    A fraction f in (0, 1) means the layer that ends at that depth, round(f · depth) - 1: a sixth of 24 layers is
    layer 3.

    Args:
        layers: indices (int) or fractions (float).
        depth: number of decoder layers.

    Raises:
        LayerError: the model does not have a layer, or a layer is named twice.
    """
    indices = [max(round(layer * depth) - 1, 0) if isinstance(layer, float) else layer for layer in layers]
    for layer, index in zip(layers, indices):
        if not 0 <= index < depth:
            raise LayerError(f"layer {layer} does not exist: the model has {depth} decoder layers, 0 to {depth - 1}")
    if len(set(indices)) < len(indices):
        raise LayerError(f"layers {list(layers)} name a layer twice: they are {indices} of {depth}")
    return indices


def config_depth(folder: str | Path) -> int | None:
    """Number of decoder layers in a checkpoint folder's config.json; None if the file or the number is missing."""
    path = Path(folder) / "config.json"
    if not os.path.isfile(path):  # False also for a name that is too long
        return None
    config = json.loads(path.read_text())
    return config.get("text_config", config).get("num_hidden_layers")
