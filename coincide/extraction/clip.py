"""CLIP: how well a sample's text fits its image (Radford et al. 2021; Hessel et al. 2021)."""

import logging

import numpy as np
import pandas as pd
import torch
from transformers import AutoProcessor, CLIPModel

from coincide.base.devices import pick_device
from coincide.base.progress import Progress
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import ImageError, image_names, open_image
from coincide.models.loading import DTYPES, placed

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
        samples: list of dicts with sample_id and record (see `coincide.dataset.shards`).
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
        inputs = clip_inputs(model, processor, texts, pictures or None)
        of_pictures = {"pixel_values": inputs.pop("pixel_values")} if pictures else None
        found = [model.get_text_features(**inputs).pooler_output]
        if pictures:
            found.append(model.get_image_features(**of_pictures).pooler_output)
    unit = [torch.nn.functional.normalize(part.float(), dim=1).cpu().numpy() for part in found]
    return unit if pictures else (unit[0], np.zeros((0, unit[0].shape[1]), np.float32))


def clip_inputs(model, processor, texts, pictures):
    """A CLIP's inputs of texts and images, on its device; texts beyond its limit are cut."""
    limit = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True, max_length=limit
    )
    return placed(inputs, model)


def score_shard(samples, images, clip):
    """`clip_scores` of a shard's samples by the model of a ClipModel section."""
    model, processor = load_clip(clip.name, revision=clip.revision, dtype=clip.dtype, device=clip.device)
    return clip_scores(model, processor, samples, images, batch_size=clip.batch_size)
