"""Models without weights (on torch's meta device): their layers, names and shapes, within seconds."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from coincide.base.sections import Checkpoint
from coincide.models.families import family_of
from coincide.models.loading import load_config


def build_empty(checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint without weights.

    Raises:
        OSError: no such model.
        ValueError: transformers has no such model for images and text.
        FamilyError: a family that `coincide.models.families` does not have.
    """
    config = load_config(checkpoint)
    family_of(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=checkpoint.trust_remote_code)
    return model.eval()


def count_image_features(model: Any, image_inputs: Mapping[str, Any]) -> int | None:
    """Number of features that a model without weights would make of images, one per visual token.

    Args:
        model: from `build_empty`.
        image_inputs: what the processor makes of the images: dict of name -> (…) array.

    Returns:
        None for a model that needs values rather than shapes to tell.
    """
    tensors = {name: torch.as_tensor(value) for name, value in image_inputs.items()}
    inputs = {name: value.to("meta") if value.is_floating_point() else value for name, value in tensors.items()}
    try:
        with torch.inference_mode():
            output = model.model.get_image_features(**inputs)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # reads values that it does not have
        return None
    features = getattr(output, "pooler_output", output)
    parts = [features] if torch.is_tensor(features) else list(features)
    return sum(part.shape[:-1].numel() for part in parts)


def max_positions(config: Any) -> int | None:
    """Longest text that a model was made for, in tokens; None if its config does not tell."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
