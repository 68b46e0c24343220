"""Batches for training: model inputs, with labels on the answer tokens only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import ImageFolders, image_names, open_image
from coincide.models.chat import Masks, RefusedImageError, encode, render, render_prompt

IGNORED_LABEL = -100  # label of tokens that the loss ignores; the default of torch's cross_entropy
EMPTY_IMAGE_SIZE = (64, 64)
ROWS = "rows"  # key of the batch under which `ScoringTrainer` finds the rows of its samples


class Collator:
    """Turns rows of records into a batch that a model takes for training.

    Args:
        processor: of the model.
        records: LLaVA records.
        images: folder that image names are relative to.
        max_tokens: longer batches are truncated to this length, but never within image tokens; None: no limit.
        include_rows: also return the rows, under the key "rows".
        always_images: a batch without images gets a last row with an empty image, of which no token is learned. With
            FSDP all processes have to run the same modules, the vision tower among them.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        records: Sequence[dict],
        images: ImageFolders,
        max_tokens: int | None = None,
        include_rows: bool = False,
        always_images: bool = False,
    ) -> None:
        self.processor, self.records, self.images = processor, records, images
        self.max_tokens, self.include_rows, self.always_images = max_tokens, include_rows, always_images

    def __call__(self, batch: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Model inputs for a list of {"row": row}: input_ids, attention_mask, pixel_values, …, and labels (B, L).

        Raises:
            ChatError, ImageError: a record does not fit the model, or an image cannot be read.
        """
        rows = [item["row"] for item in batch]
        records = [self.records[row] for row in rows]
        rendered = [render(self.processor, record["conversations"]) for record in records]
        opened = [[open_image(self.images, name) for name in image_names(record)] for record in records]
        if self.always_images and not any(opened):
            rendered.append(render_prompt(self.processor, [{"from": "human", "value": IMAGE_MARK}]))
            opened.append([Image.new("RGB", EMPTY_IMAGE_SIZE)])
        try:
            encoded, masks, _ = encode(self.processor, rendered, opened)
        except RefusedImageError as error:
            raise RefusedImageError(f"one of the samples {[record.get('id') for record in records]}: {error}") from None
        inputs = dict(encoded)
        inputs["labels"] = inputs["input_ids"].masked_fill(~torch.from_numpy(masks.answer), IGNORED_LABEL)
        if self.max_tokens:
            inputs = _truncate(inputs, masks, self.max_tokens)
        if self.include_rows:
            inputs[ROWS] = torch.tensor(rows)
        return inputs


def _truncate(inputs: dict[str, Any], masks: Masks, max_tokens: int) -> dict[str, Any]:
    """Cut the (B, L, …) tensors to at most max_tokens tokens, or to the last image token if that is further on."""
    length = inputs["input_ids"].shape[1]
    if length <= max_tokens:
        return inputs
    visual_columns = np.flatnonzero(masks.visual.any(axis=0))
    end_of_images = int(visual_columns[-1]) + 1 if len(visual_columns) else 0
    end = max(max_tokens, end_of_images)
    return {
        name: value[:, :end] if value.ndim > 1 and value.shape[1] == length else value for name, value in inputs.items()
    }
