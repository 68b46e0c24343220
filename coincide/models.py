"""Loading models and processors, and building the small ones that the demo reads and trains."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from coincide.devices import pick_device
from coincide.files import replacing

ADAPTER = "adapter_config.json"  # what peft writes beside an adapter
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Vicuna's form, as LLaVA-1.5 uses it. Takes plain strings and lists of parts, as hub templates do.
CHAT_TEMPLATE = """\
{{ bos_token }}Look and answer.\
{% for message in messages %}\
{% if message['role'] == 'user' %} USER: {% else %} ASSISTANT: {% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %} ASSISTANT:{% endif %}"""


def load_model(name, *, revision=None, dtype="float32", device="auto", trust_remote_code=False, attention=None):
    """Load model and processor from a folder or the hub, safetensors only, in evaluation mode.

    A folder that holds an adapter (peft) is loaded with its base model, and merged into it. `attention` is an
    implementation as transformers names it; None leaves the choice to transformers.

    Returns:
        (model, processor)

    Raises:
        OSError: no such model, or no safetensors weights.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
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


def build_model(texts, *, shape, seed, output):
    """Build a small untrained LLaVA with a tokenizer trained on texts, and save it as hub checkpoints are.

    Args:
        texts: the training texts, for the tokenizer.
        shape: dict with vocabulary, image_size, patch_size, vision_hidden, vision_layers, hidden,
            layers, heads.
        seed: of the random weights.
        output: folder to write.
    """
    tokenizer = train_tokenizer(texts, shape["vocabulary"])
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": shape["image_size"]},
            crop_size={"height": shape["image_size"], "width": shape["image_size"]},
        ),
        tokenizer=tokenizer,
        patch_size=shape["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape["vision_hidden"],
            intermediate_size=4 * shape["vision_hidden"],
            num_hidden_layers=shape["vision_layers"],
            num_attention_heads=shape["heads"],
            projection_dim=shape["vision_hidden"],
            image_size=shape["image_size"],
            patch_size=shape["patch_size"],
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape["hidden"],
            intermediate_size=3 * shape["hidden"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            # The usual 0.02 is made for widths of thousands; with it a narrow model sees nothing for
            # its first 25,000 samples.
            initializer_range=shape["hidden"] ** -0.5,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        image_seq_length=(shape["image_size"] // shape["patch_size"]) ** 2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def build_trained_model(records, images, settings, *, output, checkpoints):
    """Build a small model and train it on LLaVA records.

    Args:
        records: list of LLaVA records.
        images: folder that image names are relative to.
        settings: dict of shape, training, seed (see BuiltModel in `coincide.config`).
        output: folder to write.
        checkpoints: folder for the untrained model and for checkpoints, removed when done.
    """
    from coincide.clip import build_clip
    from coincide.finetune import TrainingSettings, finetune

    if Path(output).name == "clip":
        build_clip(records, images, settings, output=output)
        return
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    untrained = Path(checkpoints) / "untrained"
    with replacing(untrained) as part:
        build_model([CHAT_TEMPLATE, *texts], shape=settings["shape"], seed=settings["seed"], output=part)
    finetune(
        untrained,
        records,
        images,
        settings=TrainingSettings(**settings["training"]),
        seed=settings["seed"],
        output=output,
        checkpoints=checkpoints,
    )
    shutil.rmtree(checkpoints)


def train_tokenizer(texts, vocabulary, *, begin_and_end=False):
    """Byte-level BPE tokenizer trained on texts; with `begin_and_end` it puts its marks around a text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<pad>", "<s>", "</s>", "<image>"]
    if begin_and_end:  # CLIP takes an end of number 2 for a sign of an old mistake, and looks elsewhere for the end
        special = ["<pad>", "<s>", "<image>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if begin_and_end:
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
    )
