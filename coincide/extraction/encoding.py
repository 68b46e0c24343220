"""Encoding samples for the reference model, in worker processes ahead of it.

Samples with the same images form a group: their images are opened and preprocessed once.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info

from coincide.base.errors import UserError
from coincide.base.processes import end_with_parent
from coincide.dataset.conversation import SYSTEM
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image
from coincide.dataset.samples import Reason, RejectedSample, Sample
from coincide.extraction.readings import NO_IMAGE, readings
from coincide.models.chat import (
    ChatTemplateError,
    ImageCountError,
    Masks,
    RefusedImageError,
    RefusedTurnsError,
    check_image_count,
    encode,
    encode_with_replacements,
    render,
)

GROUPS_AHEAD = 512  # groups encoded ahead of the model, over all workers
BYTES_AHEAD = 2**30  # bytes encoded ahead of the model, over all workers; each may hold one more group
BUDGET_POLL = 0.005  # seconds
MAX_WORKERS = 16


@dataclass
class Encoded:
    """A sample as the reference model takes it.

    Attributes:
        sample: the sample.
        ids: (L,) tokens.
        masks: Masks of (L,) arrays; the fixed prefix is not part of the text tokens.
        token_inputs: dict of name -> (L,) array, further inputs of the model with a value per token.
        image_inputs: dict of name -> array, inputs made from the images; shared by the samples of a group.
        reading: which reading of the sample this is (`coincide.extraction.readings`); empty: the sample itself.
        readings: dict of name -> the sample's further readings.
    """

    sample: Sample
    ids: NDArray[np.int64]
    masks: Masks
    token_inputs: dict[str, NDArray]
    image_inputs: dict[str, NDArray]
    reading: str = ""
    readings: dict[str, Encoded] = field(default_factory=dict)


def group_by_images(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Groups of samples with the same images, in the order of their first samples."""
    groups: dict[tuple[str, ...] | int, list[Sample]] = {}
    for sample in samples:
        names = tuple(image_names(sample.record))
        groups.setdefault(names or sample.dataset_row, []).append(sample)
    return list(groups.values())


def reject(sample: Sample, reason: Reason, detail: object) -> RejectedSample:
    """The sample as a rejected one."""
    return RejectedSample(sample.id, sample.dataset_row, reason, str(detail))


class Encoder:
    """Encodes the samples of a group.

    Args:
        processor: of the reference model.
        images: folder that image names are relative to.
        image_token_id: the token that holds an image's features.
        prefix: result of `coincide.models.chat.fixed_prefix`.
        max_tokens: longest accepted sample in tokens, visual ones included.
        extra_metrics: of the ReferenceModel section, whose readings of each sample are encoded as well.
    """

    def __init__(
        self,
        processor: Any,
        images: ImageFolders,
        *,
        image_token_id: int,
        prefix: tuple[int, int, int],
        max_tokens: int,
        extra_metrics: Sequence[str] = (),
    ):
        self.processor, self.images = processor, images
        self.image_token_id, self.prefix, self.max_tokens = image_token_id, prefix, max_tokens
        self.extra_metrics = tuple(extra_metrics)

    def __call__(self, group: Sequence[Sample]) -> list[Encoded | RejectedSample]:
        """Encode samples with the same images, in their order.

        A sample is rejected for what is wrong with the sample: an image that cannot be opened or that the image
        processor refuses, turns that the chat template refuses, a wrong number of image marks, too many tokens. Any
        other error comes from the set-up of the model, processor or template, and is raised.

        Raises:
            ChatTemplateError: a chat template that does not fit; names the sample.
            Exception: as raised by the processor, with a note that names the sample.
        """
        results: list[Encoded | RejectedSample] = []
        opened: dict[str, Any] = {}
        reusable = None
        for sample in group:
            try:
                encoded, reusable = self._encode(sample, sample.record["conversations"], opened, reusable)
                for name, turns in readings(sample.record, self.extra_metrics).items():
                    reading, reusable = self._encode(sample, turns, opened, reusable, reading=name)
                    encoded.readings[name] = self._without_prefix(reading)
            except ImageError as error:
                results.append(reject(sample, Reason(error.reason), error))
            except RefusedTurnsError as error:
                results.append(reject(sample, Reason.MALFORMED_TURNS, error))
            except RefusedImageError as error:
                results.append(reject(sample, Reason.REFUSED_IMAGE, error))
            except ImageCountError as error:
                results.append(reject(sample, Reason.IMAGE_TOKEN_COUNT_MISMATCH, error))
            except ChatTemplateError as error:
                raise ChatTemplateError(f"sample {sample.id} (row {sample.dataset_row}): {error}") from None
            except Exception as error:
                error.add_note(f"while encoding sample {sample.id} (row {sample.dataset_row} of the dataset)")
                raise
            else:
                results.append(self._check_length(encoded))
        return results

    def _encode(self, sample, turns, opened, reusable, *, reading=""):
        """Encode a sample, or a reading of it.

        Args:
            sample: the sample.
            turns: its conversation, or that of the reading.
            opened: dict of name -> image; images that are not in it are opened and added.
            reusable: (Encoded, replacements) of an earlier sample of the group; None if there is none.

        Returns:
            (Encoded, reusable for the next sample)
        """
        rendered = render(self.processor, turns)
        if reading == NO_IMAGE:
            return replace(self._encode_with_images(sample, rendered, [])[0], reading=reading), reusable
        names = image_names(sample.record)
        for name in names:
            if name not in opened:
                opened[name] = open_image(self.images, name)
        if reusable:
            return replace(self._reuse_images(sample, rendered, *reusable), reading=reading), reusable
        encoded, replacements = self._encode_with_images(sample, rendered, [opened[name] for name in names])
        return replace(encoded, reading=reading), (encoded, replacements) if replacements else None

    def _encode_with_images(self, sample, rendered, images):
        """(Encoded, replacements for `_reuse_images`, or None if that would not give the same tokens)."""
        inputs, masks, replacements = encode(self.processor, [rendered], [images], image_token_id=self.image_token_id)
        ids = inputs.pop("input_ids")[0].numpy()
        inputs.pop("attention_mask", None)
        arrays = {
            name: value.numpy() if torch.is_tensor(value) else np.asarray(value) for name, value in inputs.items()
        }
        token_inputs = {name: array[0] for name, array in arrays.items() if array.shape == (1, len(ids))}
        image_inputs = {name: array for name, array in arrays.items() if name not in token_inputs}
        masks = Masks(masks.visual[0], masks.text[0], masks.answer[0])
        encoded = Encoded(sample, ids, masks, token_inputs, image_inputs)
        if not (images and self._reproduces(encoded, rendered, replacements[0])):
            return encoded, None
        return encoded, replacements[0]

    def _reproduces(self, encoded, rendered, replacements):
        """Whether a sample encoded from replacements is the same as encoded from images.

        It is not for processors that add text around the conversation, or whose per-token inputs are not the mask of
        the visual tokens.
        """
        ids, masks = encode_with_replacements(
            self.processor, rendered, replacements, image_token_id=self.image_token_id
        )
        return (
            np.array_equal(encoded.ids, ids)
            and np.array_equal(encoded.masks.text, masks.text)
            and all(np.array_equal(values, encoded.masks.visual) for values in encoded.token_inputs.values())
        )

    def _reuse_images(self, sample, rendered, first, replacements):
        """Encode a sample with the image inputs of the first of its group."""
        check_image_count(self.processor, rendered.text, len(replacements))
        ids, masks = encode_with_replacements(
            self.processor, rendered, replacements, image_token_id=self.image_token_id
        )
        token_inputs = {name: masks.visual.astype(values.dtype) for name, values in first.token_inputs.items()}
        return Encoded(sample, ids, masks, token_inputs, first.image_inputs)

    def _check_length(self, encoded):
        """The encoded sample without the fixed prefix in its text mask, or its rejection if it is too long."""
        if len(encoded.ids) > self.max_tokens:
            detail = f"{len(encoded.ids)} tokens, reference_model.max_tokens is {self.max_tokens}"
            return reject(encoded.sample, Reason.TOO_LONG, detail)
        return self._without_prefix(encoded)

    def _without_prefix(self, encoded):
        """The encoded sample without the fixed prefix in its text mask."""
        with_system_turn = encoded.reading in ("", NO_IMAGE)
        has_system_turn = with_system_turn and encoded.sample.record["conversations"][0]["from"] == SYSTEM
        prefix = self.prefix[2 if has_system_turn else bool(encoded.masks.visual.any())]
        encoded.masks.text[:prefix] = False
        return encoded


def encoded_bytes(group: Iterable[Encoded | RejectedSample]) -> int:
    """Bytes of the arrays of encoded samples; arrays that samples share count once."""
    arrays: dict[int, NDArray] = {}
    for sample in group:
        if isinstance(sample, Encoded):
            for encoded in (sample, *sample.readings.values()):
                masks = (encoded.masks.visual, encoded.masks.text, encoded.masks.answer)
                own = (encoded.ids, *masks, *encoded.token_inputs.values(), *encoded.image_inputs.values())
                arrays |= {id(array): array for array in own}
    return sum(array.nbytes for array in arrays.values())


class _Budget:
    """Limits the bytes of encoded groups that workers hold ahead of the model.

    The counters are shared with forked workers. Each has one writer, so that a worker that is killed leaves no lock.

    Args:
        limit: bytes.
        workers: number of processes.
    """

    def __init__(self, limit, workers):
        self.limit = limit
        self.encoded = RawArray(ctypes.c_int64, max(1, workers))  # bytes, per worker
        self.taken = RawArray(ctypes.c_int64, 2)  # bytes and number of the groups that the model has taken

    @property
    def ahead(self):
        """Bytes that are encoded and not taken."""
        return sum(self.encoded) - self.taken[0]

    def wait(self, worker, index, size):
        """Wait in a worker until its group fits. The group that the model takes next always does."""
        while index > self.taken[1] and self.ahead + size > self.limit:
            time.sleep(BUDGET_POLL)
        self.encoded[worker] += size

    def take(self, size):
        self.taken[0] += size
        self.taken[1] += 1


class _Groups(torch.utils.data.Dataset):
    def __init__(self, groups, encoder, budget):
        self.groups, self.encoder, self.budget = groups, encoder, budget

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        try:
            group = self.encoder(self.groups[index])
        except UserError as error:
            return error  # raised in a worker, it would arrive with a traceback in its message
        worker = get_worker_info()
        if worker:
            self.budget.wait(worker.id, index, encoded_bytes(group))
        return group


def _take(results, budget):
    """Yield the results of a loader, and tell its workers."""
    for result in results:
        if isinstance(result, UserError):
            raise result
        budget.take(encoded_bytes(result))
        yield result


def _unchanged(result):
    return result


def _end_with_parent(worker):
    # torch's check of the parent is not enough: a worker that writes to a full pipe would wait forever
    end_with_parent()


def encoded_groups(
    groups: Sequence[Sequence[Sample]], encoder: Encoder, workers: int
) -> Iterator[list[Encoded | RejectedSample]]:
    """Iterate over the encoded groups, in their order.

    Args:
        groups: groups of samples with the same images.
        encoder: of the reference model.
        workers: processes that encode ahead; 0: encode in this process.

    Raises:
        Exception: see `Encoder`.
    """
    budget = _Budget(BYTES_AHEAD, workers)
    loader = DataLoader(
        _Groups(groups, encoder, budget),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=max(2, GROUPS_AHEAD // workers) if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_end_with_parent,
    )
    return _take(loader, budget)


def loader_workers(device: str) -> int:
    """Number of worker processes that encode for a device type, "cpu" or "cuda", from the threads of the job.

    A model on the CPU needs the cores itself and is fastest with few or no workers.
    """
    threads = int(os.environ.get("COINCIDE_THREADS", 2))
    return min(MAX_WORKERS, threads // 4 if device == "cpu" else max(1, threads - 1))
