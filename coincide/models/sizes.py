"""Number of parameters of a checkpoint from the headers of its files, without loading torch or any weights."""

import json
import os
import re
from math import prod
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
BYTES_PER_VALUE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "float32": 4, "float16": 2, "bfloat16": 2}
UNKNOWN_PARAMETERS = 8e9  # assumed where neither files nor name tell: most target models are no larger
# Defaults of transformers' LlamaConfig, which a config.json leaves out where it has them, as llava-1.5-7b's does
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def count_parameters(name: str | Path, revision: str | None = None) -> float:
    """Number of parameters of a checkpoint: from its files, or else from its name, or else UNKNOWN_PARAMETERS.

    Args:
        name: folder, or hub name; of a hub name, only the files in the cache are read.
        revision: of a hub name.
    """
    folder = Path(name) if os.path.isdir(name) else _cached_folder(str(name), revision)
    counted = parameters_in(folder) if folder else None
    return counted or parameters_in_name(str(name)) or UNKNOWN_PARAMETERS


def parameters_in(folder: str | Path) -> float | None:
    """Number of parameters of the checkpoint in a folder, None if its files do not tell.

    They are counted in the headers of the weights, or calculated from the index of the weights or from config.json.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        return sum(prod(tensor["shape"]) for path in weights for tensor in tensors_in(path).values())
    config = _read_json(folder / "config.json")
    metadata = _read_json(folder / INDEX).get("metadata", {})
    if "total_parameters" in metadata:
        return metadata["total_parameters"]
    if "total_size" in metadata:
        dtype = config.get("dtype") or config.get("torch_dtype") or "float16"
        return metadata["total_size"] / BYTES_PER_VALUE.get(dtype, 2)
    return _from_config(config) if config else None


def tensors_in(path: str | Path) -> dict[str, Any]:
    """The header of a safetensors file: dict of tensor -> dtype, shape and offsets."""
    header = json.loads(header_of(path))
    header.pop("__metadata__", None)
    return header


def header_of(path: str | Path) -> bytes:
    """The JSON header of a safetensors file."""
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def parameters_in_name(name: str) -> float | None:
    """Number of parameters that the name of a model names, such as 7b or 0.5B; None if it names none."""
    match = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])", name.rsplit("/", 1)[-1], re.IGNORECASE)
    return float(match[1]) * 1e9 if match else None


def _from_config(config):
    """Rough number of parameters of decoder and vision tower, from a config.json."""
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    value = {key: text.get(key) or default for key, default in LLAMA.items()}
    hidden, heads = value["hidden_size"], value["num_attention_heads"]
    key_value = hidden * (text.get("num_key_value_heads") or heads) / heads
    layer = 2 * hidden * (hidden + key_value) + 3 * hidden * value["intermediate_size"]
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * value["vocab_size"] * hidden
    decoder = value["num_hidden_layers"] * layer + embeddings
    width = vision.get("hidden_size") or vision.get("embed_dim") or 0
    depth = vision.get("num_hidden_layers") or vision.get("depth") or 0
    inner = vision.get("intermediate_size") or 4 * width
    return decoder + depth * (4 * width**2 + 2 * width * inner)


def _cached_folder(name, revision):
    """Folder of a hub name in the cache of huggingface_hub; None if it is not there."""
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    folder = Path(cache).expanduser() / f"models--{name.replace('/', '--')}"
    if not os.path.isdir(folder):
        return None
    commit = revision or "main"
    if (folder / "refs" / commit).is_file():
        commit = (folder / "refs" / commit).read_text().strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _read_json(path):
    return json.loads(path.read_text()) if path.is_file() else {}
