"""LLaVA models of a given size with random weights, as folders, for benchmarks of memory and time."""

from pathlib import Path

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
    StableLmConfig,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from coincide.dataset.conversation import IMAGE_MARK
from coincide.demo.tiny_models import CHAT_TEMPLATE, train_tokenizer
from coincide.models.weight_files import write_shards

# TinyLLaVA-2.0B: StableLM-2 1.6B with SigLIP so400m at 384 pixels
STABLELM = {
    "vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 32, "use_qkv_bias": True, "partial_rotary_factor": 0.25,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip


def write_model(folder, texts, decoder=STABLELM, vision=SIGLIP):
    """Write a LLaVA with random weights in bfloat16, tensor by tensor; return its number of parameters.

    Args:
        folder: is created.
        texts: for its tokenizer, which has fewer tokens than the embeddings have rows.
        decoder: values of StableLmConfig.
        vision: values of SiglipVisionConfig.
    """
    tokenizer = train_tokenizer(texts, 1000)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision).to_dict(),
        text_config=StableLmConfig(**decoder, max_position_embeddings=4096).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        architectures=[LlavaForConditionalGeneration.__name__],
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlavaForConditionalGeneration(config).state_dict().items()}
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(do_pad=True, size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE_MARK,
        chat_template=CHAT_TEMPLATE,
    )
    Path(folder).mkdir(parents=True)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_shards(_random_tensors(shapes), folder)
    return sum(shape.numel() for shape in shapes.values())


def _random_tensors(shapes):
    torch.manual_seed(0)
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) == 1:
            yield name, tensor.fill_(float(name.endswith("weight")))
        else:
            yield name, tensor.normal_(0, 0.02)
