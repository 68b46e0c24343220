"""Loading models and processors."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from coincide.base.devices import pick_device
from coincide.base.sections import Checkpoint

ADAPTER = "adapter_config.json"  # written by peft next to an adapter's weights
DIGESTED_BYTES = 2**22  # per weights file


def load_model(
    checkpoint: Checkpoint | str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str | None = None,
) -> tuple[Any, Any]:
    """Load a model and its processor from a folder or the hub, safetensors only, in evaluation mode.

    A folder that holds an adapter (peft) is loaded with its base model and merged into it.

    Args:
        checkpoint: Checkpoint, hub name or folder.
        dtype: of weights and computation: "float32", "float16" or "bfloat16".
        device: "auto", "cpu" or "cuda".
        attention: attention implementation, as transformers names it; None: the default of transformers.

    Returns:
        (model, processor)

    Raises:
        OSError: no such model, or no safetensors weights.
    """
    checkpoint = Checkpoint.of(checkpoint)
    name = checkpoint.name
    options = {"revision": checkpoint.revision, "trust_remote_code": checkpoint.trust_remote_code}
    base = json.loads((Path(name) / ADAPTER).read_text())["base_model_name_or_path"] if is_adapter(name) else name
    model = AutoModelForImageTextToText.from_pretrained(
        base, dtype=dtype, use_safetensors=True, attn_implementation=attention, **options
    )
    if is_adapter(name):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    processor = load_processor(name, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code)
    return torch.nn.Module.to(model, pick_device(device)).eval(), processor


def load_processor(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load a processor from a folder or the hub."""
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def is_adapter(name: str | Path) -> bool:
    """Whether a folder holds an adapter (peft) instead of whole weights."""
    return (Path(name) / ADAPTER).is_file()


def move_to_model(inputs: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Move inputs to the model's device, and floating-point inputs to its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def weights_digest(name: str | Path) -> str:
    """Digest that distinguishes the weights in a checkpoint folder; the same for every hub name.

    Of each safetensors file it covers name, size, header (which names every tensor) and the first megabytes: enough to
    tell one training of a model from another without reading all weights of a large model.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(name).glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(DIGESTED_BYTES))
    return digest.hexdigest()[:16]
