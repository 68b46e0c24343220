"""Loading models and processors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from coincide.base.devices import pick_device
from coincide.base.sections import Checkpoint
from coincide.models.adapters import ADAPTER, is_adapter
from coincide.models.families import complete_processor, family_of

DIGESTED_BYTES = 2**22  # per weights file
SETTINGS_FILES = (".json", ".jinja", ".model", ".txt", ".py")  # files of a checkpoint that are not weights


def load_model(
    checkpoint: Checkpoint | str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str | None = None,
) -> tuple[Any, Any]:
    """Load a model and its processor from a folder or the hub, safetensors only, in evaluation mode.

    A folder that holds an adapter (peft) is loaded with its base model, of the revision that it was trained from, and
    merged into it.

    Args:
        checkpoint: Checkpoint, hub name or folder.
        dtype: of weights and computation: "float32", "float16" or "bfloat16".
        device: "auto", "cpu" or "cuda".
        attention: attention implementation, as transformers names it; None: the default of transformers.

    Returns:
        (model, processor)

    Raises:
        OSError: no such model, or no safetensors weights.
        FamilyError: a family that `coincide.models.families` does not have.
    """
    checkpoint = Checkpoint.of(checkpoint)
    base = base_checkpoint(checkpoint)
    device = pick_device(device)
    family_of(load_config(checkpoint))  # before any weights are read
    model = AutoModelForImageTextToText.from_pretrained(
        base.name,
        revision=base.revision,
        trust_remote_code=base.trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation=attention,
        device_map=None if device == "cpu" else device,  # to the device without a copy in host memory
    )
    # The Trainer and peft take a model with this attribute for one that is spread over devices.
    vars(model).pop("hf_device_map", None)
    if is_adapter(checkpoint.name):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, checkpoint.name).merge_and_unload()
    processor = load_processor(checkpoint)
    return model.eval(), processor


def load_processor(checkpoint: Checkpoint | str | Path) -> Any:
    """Load a processor from a folder or the hub. What the checkpoint lacks is filled in from its model's family.

    Raises:
        FamilyError: a family that `coincide.models.families` does not have.
    """
    checkpoint = Checkpoint.of(checkpoint)
    options = {"revision": checkpoint.revision, "trust_remote_code": checkpoint.trust_remote_code}
    processor = AutoProcessor.from_pretrained(checkpoint.name, **options)
    complete_processor(processor, load_config(checkpoint), checkpoint.chat_template)
    return processor


def load_config(checkpoint: Checkpoint) -> Any:
    """The config of a checkpoint's model; for an adapter, that of its base model."""
    base = base_checkpoint(checkpoint)
    return AutoConfig.from_pretrained(base.name, revision=base.revision, trust_remote_code=base.trust_remote_code)


def base_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Where the weights of a checkpoint's base model are: another checkpoint if it is an adapter, otherwise itself.

    The revision is the one that the adapter was trained from. Whether the base's code may run is the caller's setting:
    a file next to an adapter cannot allow it.
    """
    if not is_adapter(checkpoint.name):
        return checkpoint
    config = json.loads((Path(checkpoint.name) / ADAPTER).read_text())
    return replace(checkpoint, name=config["base_model_name_or_path"], revision=config.get("revision"))


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


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """What identifies the content of a checkpoint: the commit of a hub model, a digest of the files of a folder.

    Of a folder it covers the weights (`weights_digest`), config, tokenizer and processor, and the base model of an
    adapter; not the path, so a copy of a checkpoint has the same digest.
    """
    folder = Path(checkpoint.name)
    if not folder.is_dir():
        return str(extract_commit_hash(cached_file(checkpoint.name, CONFIG_NAME, revision=checkpoint.revision), None))
    digest = hashlib.sha256(weights_digest(folder).encode())
    for path in sorted(file for file in folder.iterdir() if file.suffix in SETTINGS_FILES):
        digest.update(f"{path.name} {path.stat().st_size}".encode() + path.read_bytes())
    if is_adapter(folder):
        digest.update(checkpoint_digest(base_checkpoint(replace(checkpoint, name=str(folder)))).encode())
    return digest.hexdigest()[:16]
