"""Loading models and processors."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from coincide.base.devices import pick_device
from coincide.base.sections import Checkpoint

ADAPTER = "adapter_config.json"  # what peft writes beside an adapter
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(checkpoint, *, dtype="float32", device="auto", attention=None):
    """Load model and processor from a folder or the hub, safetensors only, in evaluation mode.

    A folder that holds an adapter (peft) is loaded with its base model, and merged into it. `attention` is an
    implementation as transformers names it; None leaves the choice to transformers.

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
        base, dtype=DTYPES[dtype], use_safetensors=True, attn_implementation=attention, **options
    )
    if is_adapter(name):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.to(pick_device(device)).eval(), load_processor(name, **options)


def placed(inputs, model):
    """Inputs on the model's device, those with a fraction in its dtype: dict of name -> tensor."""
    return {n: v.to(model.device, model.dtype if v.is_floating_point() else None) for n, v in inputs.items()}


def weights_digest(name):
    """Digest that tells one training of a model from another; the same for every hub name."""
    digest = hashlib.sha256()
    for path in sorted(Path(name).glob("*.safetensors")):
        # The header names every tensor; with the first megabytes that is enough, without reading the
        # tens of gigabytes of a large model.
        with open(path, "rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**22))
    return digest.hexdigest()[:16]


def is_adapter(name):
    """Whether a folder holds an adapter (peft) instead of whole weights."""
    return (Path(name) / ADAPTER).is_file()


def load_processor(name, *, revision=None, trust_remote_code=False):
    """Load a processor from a folder or the hub."""
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
