"""The small models of the demo: a LLaVA and a CLIP, built here and trained briefly, or read from the package."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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
from coincide.base.sections import Shape, TinyModel, Training
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import image_names, open_image
from coincide.demo import PRETRAINED
from coincide.extraction.clip import clip_inputs, text_of
from coincide.training.finetune import finetune

log = logging.getLogger(__name__)

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
MAX_TOKENS = 1024
CLIP_MAX_TOKENS = 77  # as in OpenAI's CLIP

# The conversation format of Vicuna, as in LLaVA-1.5. A message's content is a string or a list of parts. The tokenizers
# are trained on this text, too, so that a change of it would change the models.
TEMPLATE_WITHOUT_SYSTEM = """\
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
# A system turn takes the place of the fixed prefix.
CHAT_TEMPLATE = TEMPLATE_WITHOUT_SYSTEM.replace(
    "Look and answer.{% for message in messages %}",
    """\
{% if messages and messages[0]['role'] == 'system' %}\
{% if messages[0]['content'] is string %}{{ messages[0]['content'] }}{% else %}\
{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{% set messages = messages[1:] %}\
{% else %}Look and answer.{% endif %}\
{% for message in messages %}""",
)


def build_tiny_model(
    name: str,
    records: list[dict[str, Any]],
    images: str | Path,
    tiny_model: TinyModel,
    *,
    output: str | Path,
    checkpoints: str | Path,
) -> None:
    """Build a small model and train it on LLaVA records, or copy a pretrained one.

    Args:
        name: key in the config's tiny_models; "clip" is a CLIP, any other a LLaVA.
        records: LLaVA records.
        images: folder that image names are relative to.
        tiny_model: section of the config.
        output: folder to write.
        checkpoints: folder for the untrained LLaVA and the checkpoints of its training, removed at the end.
    """
    if tiny_model.pretrained:
        with replacing(Path(output)) as temporary_folder:
            shutil.copytree(PRETRAINED / tiny_model.pretrained, temporary_folder)
        return
    shape, training = tiny_model.shape, tiny_model.training
    assert shape is not None  # the section demands both of a model that is built
    assert training is not None
    if name == "clip":
        build_clip(records, images, shape, training, seed=tiny_model.seed, output=output)
        return
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    untrained = Path(checkpoints) / "untrained"
    with replacing(untrained) as temporary_folder:
        build_model([TEMPLATE_WITHOUT_SYSTEM, *texts], shape=shape, seed=tiny_model.seed, output=temporary_folder)
    finetune(
        untrained,
        records,
        images,
        training,
        seed=tiny_model.seed,
        output=output,
        checkpoints=checkpoints,
    )
    shutil.rmtree(checkpoints)


def build_model(texts: Iterable[str], *, shape: Shape, seed: int, output: str | Path) -> None:
    """Build a small untrained LLaVA and save it with its processor, as checkpoints on the hub are.

    Args:
        texts: the training texts, for the tokenizer.
        shape: section of the config.
        seed: seed of the random weights.
        output: folder to write.
    """
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    torch.manual_seed(seed)
    make_model(tokenizer, shape).save_pretrained(output)
    make_processor(tokenizer, shape).save_pretrained(output)


def make_processor(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlavaProcessor:
    """The processor of a LLaVA."""
    return LlavaProcessor(
        image_processor=_image_processor(shape),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy=shape.vision_features,
        num_additional_image_tokens=1,
        image_token=IMAGE_MARK,
        chat_template=CHAT_TEMPLATE,
    )


def _image_processor(shape):
    size = shape.image_size
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlavaForConditionalGeneration:
    """An untrained LLaVA, with random weights."""
    return LlavaForConditionalGeneration(_llava_config(tokenizer, shape))


def _llava_config(tokenizer, shape):
    class_tokens = 1 if shape.vision_features == "full" else 0
    return LlavaConfig(
        vision_config=vision_config(shape),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            # The usual 0.02 suits widths of thousands. With it, a narrow model ignores the image for its
            # first 25,000 samples.
            initializer_range=shape.hidden**-0.5,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
        vision_feature_layer=-1,
        vision_feature_select_strategy=shape.vision_features,
        tie_word_embeddings=True,
        image_seq_length=(shape.image_size // shape.patch_size) ** 2 + class_tokens,
    )


def vision_config(shape: Shape) -> CLIPVisionConfig:
    """The vision tower of a LLaVA or CLIP."""
    return CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.heads,
        projection_dim=shape.vision_hidden,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
    )


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, *, add_begin_and_end: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: the training texts.
        vocabulary: number of tokens.
        add_begin_and_end: the tokenizer puts the begin and end tokens around each text, as CLIP requires.
    """
    special_tokens = [PAD, BEGIN, END, IMAGE_MARK]
    if add_begin_and_end:
        # CLIPModel treats an end token with id 2 as a mistake of early CLIP configs and takes the largest id for it.
        special_tokens = [PAD, BEGIN, IMAGE_MARK, END]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if add_begin_and_end:
        ids = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE_MARK},
        model_max_length=MAX_TOKENS,
    )


def build_clip(
    records: list[dict[str, Any]],
    images: str | Path,
    shape: Shape,
    training: Training,
    *,
    seed: int,
    output: str | Path,
    device: str = "auto",
) -> None:
    """Build a small CLIP and train it on the records with images, for runs whose config names no CLIP.

    Args:
        records: LLaVA records; of several images the first is used.
        images: folder that image names are relative to.
        shape: section of the config.
        training: section of the config.
        seed: seed of the weights and of the order.
        output: folder to write.
        device: device of the training.
    """
    records = [record for record in records if image_names(record)]
    texts = [text_of(record) for record in records]
    processor = _clip_processor(texts, shape)
    torch.manual_seed(seed)
    model = torch.nn.Module.to(CLIPModel(_clip_config(processor.tokenizer, shape)), pick_device(device))
    model.train()
    _train_clip(model, processor, records, texts, images, training, seed)
    with replacing(output) as temporary_folder:
        model.save_pretrained(temporary_folder)
        processor.save_pretrained(temporary_folder)


def _train_clip(model, processor, records, texts, images, training, seed):
    batch_size = training.batch_size
    steps = int(training.epochs * (len(records) // batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=max(steps, 2))
    progress = Progress(steps, "CLIP", unit="steps")
    for rows in _random_batches(len(records), batch_size, steps, seed):
        batch_texts = [texts[row] for row in rows]
        batch_images = [open_image(images, image_names(records[row])[0]) for row in rows]
        loss = model(**clip_inputs(model, processor, batch_texts, batch_images), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(1)
    progress.close()
    log.info("CLIP: final loss %.3f; %.3f is chance level", loss.item(), np.log(batch_size))


def _random_batches(n, batch_size, steps, seed):
    """Yield rows for each step; each epoch is a new permutation without its incomplete last batch."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = rng.permutation(n)
        yield order[:batch_size]
        order = order[batch_size:]


def _clip_processor(texts, shape):
    return CLIPProcessor(_image_processor(shape), train_tokenizer(texts, shape.vocabulary, add_begin_and_end=True))


def _clip_config(tokenizer, shape):
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=CLIP_MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPConfig(
        text_config=text_config.to_dict(), vision_config=vision_config(shape).to_dict(), projection_dim=shape.hidden
    )
