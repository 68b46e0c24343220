"""The small models that the demo reads and trains: a LLaVA and a CLIP, built here and trained briefly."""

import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from coincide.base.devices import pick_device
from coincide.base.files import replacing
from coincide.base.progress import Progress
from coincide.dataset.images import image_names, open_image
from coincide.extraction.clip import clip_inputs, text_of
from coincide.training.finetune import finetune

log = logging.getLogger(__name__)

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


def build_model(texts, *, shape, seed, output):
    """Build a small untrained LLaVA with a tokenizer trained on texts, and save it as hub checkpoints are.

    Args:
        texts: the training texts, for the tokenizer.
        shape: Shape section of the config.
        seed: of the random weights.
        output: folder to write.
    """
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": shape.image_size},
            crop_size={"height": shape.image_size, "width": shape.image_size},
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=4 * shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.heads,
            projection_dim=shape.vision_hidden,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            # The usual 0.02 is made for widths of thousands; with it a narrow model sees nothing for
            # its first 25,000 samples.
            initializer_range=shape.hidden**-0.5,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def build_trained_model(records, images, tiny_model, *, output, checkpoints):
    """Build a small model and train it on LLaVA records.

    Args:
        records: list of LLaVA records.
        images: folder that image names are relative to.
        tiny_model: TinyModel section of the config.
        output: folder to write.
        checkpoints: folder for the untrained model and for checkpoints, removed when done.
    """
    if Path(output).name == "clip":
        build_clip(records, images, tiny_model, output=output)
        return
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    untrained = Path(checkpoints) / "untrained"
    with replacing(untrained) as part:
        build_model([CHAT_TEMPLATE, *texts], shape=tiny_model.shape, seed=tiny_model.seed, output=part)
    finetune(
        untrained,
        records,
        images,
        tiny_model.training,
        seed=tiny_model.seed,
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


def build_clip(records, images, tiny_model, *, output, device="auto"):
    """Build a small CLIP and train it on image samples of LLaVA records, for runs that name no CLIP of their own.

    Args:
        records: list of LLaVA records.
        images: folder that image names are relative to.
        tiny_model: TinyModel section of the config.
        output: folder to write.
    """
    shape, training = tiny_model.shape, tiny_model.training
    records = [record for record in records if image_names(record)]
    texts = [text_of(record) for record in records]
    processor = _clip_processor(texts, shape)
    torch.manual_seed(tiny_model.seed)
    model = CLIPModel(_clip_config(processor.tokenizer, shape)).to(pick_device(device)).train()
    batch, random = training.batch_size, np.random.default_rng(tiny_model.seed)
    steps = int(training.epochs * (len(records) // batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=max(steps, 2))
    progress = Progress(steps, "CLIP", unit="steps")
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = random.permutation(len(records))
        chosen, order = order[:batch], order[batch:]
        pictures = [open_image(images, image_names(records[i])[0]) for i in chosen]
        loss = model(**clip_inputs(model, processor, [texts[i] for i in chosen], pictures), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(1)
    progress.close()
    log.info("CLIP: last loss %.3f, %.3f without learning", loss.item(), np.log(batch))
    with replacing(output) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def _clip_processor(texts, shape):
    size = shape.image_size
    tokenizer = train_tokenizer(texts, shape.vocabulary, begin_and_end=True)
    return CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}), tokenizer
    )


def _clip_config(tokenizer, shape):
    heads = shape.heads
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape.hidden, intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=heads, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers, num_attention_heads=heads,
        image_size=shape.image_size, patch_size=shape.patch_size,
    )  # fmt: skip
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=shape.hidden)
