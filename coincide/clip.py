"""CLIP: how well a sample's text fits its image (Radford et al. 2021; Hessel et al. 2021)."""

import logging

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from coincide.chat import IMAGE_MARK
from coincide.devices import pick_device
from coincide.files import replacing
from coincide.images import ImageError, image_names, open_image
from coincide.models import DTYPES, placed, train_tokenizer
from coincide.progress import Progress

log = logging.getLogger(__name__)

EMBEDDING = np.dtype("<f2")


def load_clip(name, *, revision=None, dtype="float32", device="auto"):
    """(model, processor) of a CLIP, from a folder or the hub, safetensors only."""
    model = CLIPModel.from_pretrained(name, revision=revision, dtype=DTYPES[dtype], use_safetensors=True)
    return model.to(pick_device(device)).eval(), AutoProcessor.from_pretrained(name, revision=revision)


def text_of(record):
    """The words of a conversation, questions and answers, without image marks."""
    return " ".join(turn["value"].replace(IMAGE_MARK, " ").strip() for turn in record["conversations"])


def clip_scores(model, processor, samples, images, *, batch_size):
    """Cosine of image and text of each sample, of several images the mean, and the embeddings themselves.

    Args:
        model, processor: of a CLIP. Text beyond its limit is cut off.
        samples: list of dicts with sample_id and record (see `coincide.shards`).
        images: folder that image names are relative to.
        batch_size: samples at once.

    Returns:
        table of sample_id, clip_score (NaN for a sample without an image that can be opened), embedding: float16
        bytes of the image's unit vector (the mean of several; zeros of none) and, behind it, the text's.
    """
    progress = Progress(len(samples), "CLIP scores")
    scores, embeddings = np.full(len(samples), np.nan), []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        opened, of_sample = [], []
        for i, sample in enumerate(batch):
            try:
                own = [open_image(images, name) for name in image_names(sample["record"])]
            except ImageError as error:  # the reference model's job sets it aside
                log.warning("%s: %s", sample["sample_id"], error)
                continue
            opened += own
            of_sample += [i] * len(own)
        text, pictures = _embedded(model, processor, [text_of(sample["record"]) for sample in batch], opened)
        count = np.bincount(of_sample, minlength=len(batch))
        mean = np.zeros((len(batch), text.shape[1]), np.float32)
        np.add.at(mean, of_sample, pictures)
        mean /= np.maximum(count, 1)[:, None]
        scores[start : start + len(batch)] = np.where(count > 0, (mean * text).sum(axis=1), np.nan)
        embeddings += [row.tobytes() for row in np.hstack([mean, text]).astype(EMBEDDING)]
        progress.update(len(batch))
    progress.close()
    return pd.DataFrame({"sample_id": [s["sample_id"] for s in samples], "clip_score": scores, "embedding": embeddings})


def _embedded(model, processor, texts, pictures):
    """((t, e) unit vectors of texts, (p, e) of pictures)."""
    with torch.inference_mode():
        inputs = _inputs(model, processor, texts, pictures or None)
        of_pictures = {"pixel_values": inputs.pop("pixel_values")} if pictures else None
        found = [model.get_text_features(**inputs).pooler_output]
        if pictures:
            found.append(model.get_image_features(**of_pictures).pooler_output)
    unit = [torch.nn.functional.normalize(part.float(), dim=1).cpu().numpy() for part in found]
    return unit if pictures else (unit[0], np.zeros((0, unit[0].shape[1]), np.float32))


def _inputs(model, processor, texts, pictures):
    limit = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True, max_length=limit
    )
    return placed(inputs, model)


def build_clip(records, images, settings, *, output, device="auto"):
    """Build a small CLIP and train it on image samples of LLaVA records, for runs that name no CLIP of their own.

    Args:
        records: list of LLaVA records.
        images: folder that image names are relative to.
        settings: dict of shape, training, seed (see BuiltModel in `coincide.config`).
        output: folder to write.
    """
    shape, training = settings["shape"], settings["training"]
    records = [record for record in records if image_names(record)]
    texts = [text_of(record) for record in records]
    processor = _processor(texts, shape)
    torch.manual_seed(settings["seed"])
    model = CLIPModel(_config(processor.tokenizer, shape)).to(pick_device(device)).train()
    batch, random = training["batch_size"], np.random.default_rng(settings["seed"])
    steps = int(training["epochs"] * (len(records) // batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training["learning_rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training["learning_rate"], total_steps=max(steps, 2))
    progress = Progress(steps, "CLIP", unit="steps")
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = random.permutation(len(records))
        chosen, order = order[:batch], order[batch:]
        pictures = [open_image(images, image_names(records[i])[0]) for i in chosen]
        loss = model(**_inputs(model, processor, [texts[i] for i in chosen], pictures), return_loss=True).loss
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


def _processor(texts, shape):
    size = shape["image_size"]
    tokenizer = train_tokenizer(texts, shape["vocabulary"], begin_and_end=True)
    return CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}), tokenizer
    )


def _config(tokenizer, shape):
    heads = shape["heads"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape["hidden"], intermediate_size=4 * shape["hidden"],
        num_hidden_layers=shape["layers"], num_attention_heads=heads, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=shape["vision_hidden"], intermediate_size=4 * shape["vision_hidden"],
        num_hidden_layers=shape["vision_layers"], num_attention_heads=heads,
        image_size=shape["image_size"], patch_size=shape["patch_size"],
    )  # fmt: skip
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=shape["hidden"])


def score_shard(samples, images, *, name, revision, dtype, device, batch_size):
    """`clip_scores` of a shard's samples by a CLIP from a folder or the hub."""
    return clip_scores(
        *load_clip(name, revision=revision, dtype=dtype, device=device), samples, images, batch_size=batch_size
    )
