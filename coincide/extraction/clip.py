"""CLIP scores: how well a sample's text fits its images (Radford et al. 2021; Hessel et al. 2021)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image
from transformers import AutoProcessor, CLIPModel

from coincide.base.devices import pick_device
from coincide.base.progress import Progress
from coincide.base.sections import ClipModel
from coincide.base.tables import CLIP_EMBEDDING
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image
from coincide.dataset.samples import Sample
from coincide.models.loading import move_to_model

log = logging.getLogger(__name__)

FLOAT32 = np.dtype("<f4")


def score_shard(samples: Sequence[Sample], images: ImageFolders, clip: ClipModel) -> pd.DataFrame:
    """`clip_scores` of a shard's samples with the model of a ClipModel section."""
    model, processor = load_clip(clip.name, revision=clip.revision, dtype=clip.dtype, device=clip.device)
    return clip_scores(model, processor, samples, images, batch_size=clip.batch_size)


def load_clip(
    name: str | Path, *, revision: str | None = None, dtype: str = "float32", device: str = "auto"
) -> tuple[Any, Any]:
    """(model, processor) of a CLIP model from a folder or the hub, safetensors only."""
    options: dict[str, Any] = {"revision": revision}  # transformers' annotation leaves out None
    model = CLIPModel.from_pretrained(name, dtype=dtype, use_safetensors=True, **options)
    return torch.nn.Module.to(model, pick_device(device)).eval(), AutoProcessor.from_pretrained(name, **options)


def clip_scores(
    model: Any, processor: Any, samples: Sequence[Sample], images: ImageFolders, *, batch_size: int
) -> pd.DataFrame:
    """CLIP score and embeddings of each sample. The score is the cosine of its image and its text embedding.

    Args:
        model, processor: of a CLIP model. Text beyond its limit is truncated.
        samples: n samples.
        images: folder that image names are relative to.
        batch_size: samples per batch.

    Returns:
        Table of sample_id, clip_score and embedding_float32: the float32 bytes of the image's unit vector (the mean for
        several images, zeros for none), then the text's. A sample with no image, or with one that cannot be
        opened, has no image vector and the score NaN.
    """
    progress = Progress(len(samples), "CLIP scores")
    scores, embeddings = np.full(len(samples), np.nan), []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        pictures, batch_row = _open_images(batch, images)
        text_vectors, image_vectors = _unit_vectors(
            model, processor, [text_of(sample.record) for sample in batch], pictures
        )
        count = np.bincount(batch_row, minlength=len(batch))
        mean = np.zeros((len(batch), text_vectors.shape[1]), np.float32)
        np.add.at(mean, batch_row, image_vectors)
        mean /= np.maximum(count, 1)[:, None]
        cosine = (mean * text_vectors).sum(axis=1)
        scores[start : start + len(batch)] = np.where(count > 0, cosine, np.nan)
        embeddings += [row.tobytes() for row in np.hstack([mean, text_vectors]).astype(FLOAT32)]
        progress.update(len(batch))
    progress.close()
    sample_ids = [sample.id for sample in samples]
    return pd.DataFrame({"sample_id": sample_ids, "clip_score": scores, CLIP_EMBEDDING: embeddings})


def _open_images(batch, folder):
    """(images, the batch row of each). A sample with an image that cannot be opened has none."""
    opened, batch_row = [], []
    for row, sample in enumerate(batch):
        try:
            pictures = [open_image(folder, name) for name in image_names(sample.record)]
        except ImageError as error:  # the sample is rejected by the job that extracts its activations
            log.warning("%s: %s", sample.id, error)
            continue
        opened += pictures
        batch_row += [row] * len(pictures)
    return opened, batch_row


def text_of(record: Mapping[str, Any]) -> str:
    """The text of a conversation, questions and answers, without image marks."""
    return " ".join(turn["value"].replace(IMAGE_MARK, " ").strip() for turn in record["conversations"])


def _unit_vectors(model, processor, texts, pictures):
    """((t, e) unit vectors of texts, (p, e) unit vectors of images)."""
    inputs = clip_inputs(model, processor, texts, pictures or None)
    pixel_values = inputs.pop("pixel_values", None)
    with torch.inference_mode():
        text_vectors = _normalized(model.get_text_features(**inputs))
        if pixel_values is None:
            return text_vectors, np.zeros((0, text_vectors.shape[1]), np.float32)
        return text_vectors, _normalized(model.get_image_features(pixel_values=pixel_values))


def _normalized(output):
    return torch.nn.functional.normalize(output.pooler_output.float(), dim=1).cpu().numpy()


def clip_inputs(
    model: Any, processor: Any, texts: Sequence[str], pictures: Sequence[Image] | None
) -> dict[str, torch.Tensor]:
    """Inputs of a CLIP model for texts and images, on its device; texts beyond its limit are truncated."""
    limit = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True, max_length=limit
    )
    return move_to_model(inputs, model)
