"""Samples made ready for the reference model, in worker processes ahead of it.

Samples of the same images go together: their images are opened and preprocessed once.
"""

import ctypes
import signal
from dataclasses import dataclass

import numpy as np
import torch
from jinja2 import TemplateError
from torch.utils.data import DataLoader

from coincide.dataset.images import ImageError, image_names, open_image
from coincide.models.chat import ChatError, Masks, encode, encode_again, render

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
AHEAD = 512  # groups of samples that are ready ahead of the model, all workers together


@dataclass
class Encoded:
    """One sample as the reference model takes it.

    Attributes:
        sample: the sample.
        ids: (L,) tokens.
        masks: Masks of (L,) arrays; of the text tokens those of the fixed prefix are left out.
        beside: dict of name -> (L,) array, what the processor says of each token.
        images: dict of name -> array, the processor's tensors of the images; shared by the samples of a group.
    """

    sample: dict
    ids: np.ndarray
    masks: Masks
    beside: dict
    images: dict


@dataclass(frozen=True)
class Rejected:
    """A sample that cannot be used, and why."""

    sample: dict
    reason: str
    detail: str


def group_by_images(samples):
    """Samples of the same images together, in the order of the first of each: list of lists."""
    groups = {}
    for sample in samples:
        names = tuple(image_names(sample["record"]))
        groups.setdefault(names or sample["position"], []).append(sample)
    return list(groups.values())


class Encoder:
    """Makes the samples of a group ready.

    Args:
        processor: of the reference model.
        images: folder that image names are relative to.
        image_token_id: the token that holds an image's features.
        prefix: as `coincide.models.chat.fixed_prefix` gives it.
        max_tokens: longest sample in tokens, visual ones included.
    """

    def __init__(self, processor, images, *, image_token_id, prefix, max_tokens):
        self.processor, self.images = processor, images
        self.image_token_id, self.prefix, self.max_tokens = image_token_id, prefix, max_tokens

    def __call__(self, group):
        """Encoded and Rejected of the samples of a group, in their order.

        Args:
            group: list of samples with the same images.
        """
        ready, opened, first = [], {}, None
        for sample in group:
            try:
                rendered = render(self.processor, sample["record"]["conversations"])
                names = image_names(sample["record"])
                for name in names:
                    if name not in opened:
                        opened[name] = open_image(self.images, name)
                encoded = first and self._again(sample, rendered, first)
                if encoded is None:
                    encoded, shortcut = self._whole(sample, rendered, [opened[name] for name in names])
                    first = first or (shortcut and (encoded, shortcut))
            except ImageError as error:
                ready.append(Rejected(sample, error.reason, str(error)))
            except TemplateError as error:
                ready.append(Rejected(sample, "malformed turns", f"the model's chat template refuses it: {error}"))
            except ChatError as error:
                ready.append(Rejected(sample, "image token count mismatch", str(error)))
            except Exception as error:  # whatever a processor says of one sample must not end the shard
                ready.append(Rejected(sample, "unreadable image", f"{type(error).__name__}: {error}"))
            else:
                ready.append(self._checked(encoded))
        return ready

    def _whole(self, sample, rendered, pictures):
        """Encoded, and what the processor wrote for the images where `_again` can be trusted with it."""
        inputs, masks, replacements = encode(self.processor, [rendered], [pictures], image_token_id=self.image_token_id)
        ids = inputs.pop("input_ids")[0].numpy()
        inputs.pop("attention_mask", None)
        values = {
            name: value.numpy() if torch.is_tensor(value) else np.asarray(value) for name, value in inputs.items()
        }
        beside = {name: value[0] for name, value in values.items() if value.shape == (1, len(ids))}
        images = {name: value for name, value in values.items() if name not in beside}
        masks = Masks(masks.visual[0], masks.text[0], masks.answer[0])
        encoded = Encoded(sample, ids, masks, beside, images)
        again, other = encode_again(self.processor, rendered, replacements[0], image_token_id=self.image_token_id)
        # some processors write more into a text than images, or number its tokens in other ways
        same = np.array_equal(ids, again) and np.array_equal(masks.text, other.text)
        usual = all(np.array_equal(value, masks.visual) for value in beside.values())
        return encoded, replacements[0] if pictures and same and usual else None

    def _again(self, sample, rendered, first):
        encoded, replacements = first
        marks = rendered.text.count(self.processor.image_token)
        if marks != len(replacements):
            raise ChatError(f"{marks} image marks in the conversation, {len(replacements)} images")
        ids, masks = encode_again(self.processor, rendered, replacements, image_token_id=self.image_token_id)
        beside = {name: masks.visual.astype(value.dtype) for name, value in encoded.beside.items()}
        return Encoded(sample, ids, masks, beside, encoded.images)

    def _checked(self, encoded):
        if len(encoded.ids) > self.max_tokens:
            detail = f"{len(encoded.ids)} tokens, reference_model.max_tokens is {self.max_tokens}"
            return Rejected(encoded.sample, "too long", detail)
        encoded.masks.text[: self.prefix[bool(encoded.masks.visual.any())]] = False
        return encoded


class _Groups(torch.utils.data.Dataset):
    def __init__(self, groups, encoder):
        self.groups, self.encoder = groups, encoder

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return self.encoder(self.groups[index])


def _end_with_parent(worker):
    # torch's own watch over the parent is not enough: a worker whose pipe is full would wait for ever
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def encoded_groups(groups, encoder, workers):
    """Iterate over the groups made ready, in their order, by worker processes; in line with 0 workers."""
    return iter(
        DataLoader(
            _Groups(groups, encoder),
            batch_size=None,
            collate_fn=list,
            num_workers=workers,
            prefetch_factor=max(2, AHEAD // workers) if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_end_with_parent,
        )
    )
