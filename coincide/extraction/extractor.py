"""Reading samples with a reference model: batches, out-of-memory halving, sharing of image tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coincide.base.sections import ReferenceModel
from coincide.dataset.images import ImageFolders
from coincide.dataset.samples import Sample
from coincide.extraction.encoding import Encoded, Encoder, group_by_images
from coincide.extraction.features import decoder_layers, features, reading_vectors
from coincide.extraction.packing import Batch, Row, batches, build_rows, collate, single_row
from coincide.extraction.readings import NO_IMAGE, READINGS
from coincide.extraction.sample_metrics import METRICS, embeddings_of, numbers_of
from coincide.models.chat import fixed_prefix
from coincide.models.families import family_of
from coincide.models.layers import resolve_layers
from coincide.models.loading import load_model

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # on a CPU, larger batches do not fit its caches
# relative difference of features up to which samples share tokens
SHARING_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# what models raise for an attention mask or positions that they do not support
REJECTED_INPUTS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
TRIED_GROUPS, TRIED_SAMPLES = 3, 4  # where sharing is tried: in the first groups, on the first samples of each


class Extractor:
    """Reads encoded samples with a reference model.

    Args:
        model, processor: of the reference model.
        layers: zero-based decoder layers.
        batch_tokens: maximum tokens per batch, padding included; a longer sample is a batch. None: BATCH_TOKENS.
        sample_metrics: also compute the columns of `coincide.extraction.sample_metrics`.
        extra_metrics: which further sample metrics, as in the ReferenceModel section.

    Attributes:
        share: whether samples with the same images share tokens (see `try_sharing`).
        columns: numbers per sample: the activation, then the sample metrics.
        tokens: number of tokens computed so far, padding included.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        layers: Sequence[int],
        batch_tokens: int | None = None,
        sample_metrics: bool = False,
        extra_metrics: Sequence[str] = (),
    ):
        self.model, self.layers = model, layers
        self.sample_metrics, self.extra_metrics = sample_metrics, tuple(extra_metrics)
        self.batch_tokens = batch_tokens or BATCH_TOKENS[model.device.type]
        self.pad = processor.tokenizer.pad_token_id or 0
        self.rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
        self.share = False
        self.hidden_size = model.config.get_text_config().hidden_size
        metric_columns = len(numbers_of(extra_metrics)) + len(embeddings_of(extra_metrics)) * self.hidden_size
        self.columns = self.dimension + (metric_columns if sample_metrics else 0)
        self.tokens = 0

    @property
    def dimension(self) -> int:
        """Numbers in an activation, 2·M·h."""
        return 2 * len(self.layers) * self.hidden_size

    def rows(self, group: Sequence[Encoded]) -> list[Row]:
        """Rows of the samples of a group with the same images."""
        return build_rows(group, share=self.share)

    def read(self, groups: Sequence[Sequence[Encoded]]) -> Iterator[list[tuple[Sample, NDArray[np.float32]]]]:
        """Yield, batch by batch, (sample, (columns,) vector) of the samples of groups with the same images.

        Raises:
            torch.OutOfMemoryError, MemoryError: a single sample does not fit.
        """
        of_readings = self._read_readings(groups)
        for batch in batches([row for group in groups for row in self.rows(group)], self.batch_tokens):
            yield [
                (sample, self._completed(vector, of_readings.get(sample.dataset_row)))
                for sample, vector in self.run(batch)
            ]

    def _read_readings(self, groups):
        """Dict of dataset row -> reading -> (1 + h,) columns of `reading_columns`."""
        vectors: dict[int, dict[str, NDArray[np.float32]]] = {}
        rows = []
        for group in groups:
            encoded = [reading for sample in group for reading in sample.readings.values()]
            for with_images in (True, False):
                chosen = [reading for reading in encoded if bool(reading.image_inputs) == with_images]
                rows += self.rows(chosen) if chosen else []
        for batch in batches(rows, self.batch_tokens):
            for encoded, vector in self._run(batch, partial(reading_vectors, self.model)):
                vectors.setdefault(encoded.sample.dataset_row, {})[encoded.reading] = vector
        return vectors

    def _completed(self, vector, of_readings):
        """The vector of a sample with the columns of its readings filled in."""
        if not of_readings:
            return vector
        columns = {column: name for extra in self.extra_metrics for name, column in READINGS[extra].items()}
        numbers, names = numbers_of(self.extra_metrics), embeddings_of(self.extra_metrics)
        for position, column in enumerate(numbers[len(METRICS) :], self.dimension + len(METRICS)):
            vector[position] = of_readings[columns[column]][0]
        if NO_IMAGE in of_readings:
            start = self.dimension + len(numbers) + names.index("question") * self.hidden_size
            vector[start : start + self.hidden_size] = of_readings[NO_IMAGE][1:]
        return vector

    def run(self, rows: list[Row]) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
        """Yield (sample, (columns,) vector) of the samples of a batch, without the columns of their readings.

        A batch that does not fit into memory is halved until it does.

        Raises:
            torch.OutOfMemoryError, MemoryError: a single sample does not fit.
        """
        for encoded, vector in self._run(rows, self._features):
            yield encoded.sample, vector

    def _features(self, batch):
        return features(
            self.model, batch, self.layers, sample_metrics=self.sample_metrics, extra_metrics=self.extra_metrics
        )

    def _run(
        self, rows: list[Row], compute: Callable[[Batch], torch.Tensor]
    ) -> Iterator[tuple[Encoded, NDArray[np.float32]]]:
        """`run`, with a function of a batch."""
        try:
            batch = collate(rows, pad=self.pad, positions=self._position_ids, dtype=self.model.dtype, causal=self.share)
            vectors = compute(batch).cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            halves = _halves(rows)
            if not (_is_out_of_memory(error) and halves):
                raise
            log.warning("out of memory with %d rows of %d tokens: retrying with half", len(rows), len(rows[0]))
        else:
            self.tokens += batch.inputs["input_ids"].numel()
            yield from zip((encoded for row in batch.encoded for encoded in row), vectors)
            return
        torch.cuda.empty_cache()  # outside the handler: the exception refers to the batch's tensors
        for half in halves:
            yield from self._run(half, compute)

    def try_sharing(self, group: Sequence[Encoded]) -> None:
        """Let samples share tokens if that does not change their features, measured on a group.

        Samples do not share if the model rejects the attention mask or positions of shared rows, or if features differ
        by more than SHARING_TOLERANCE. In a family whose decoder is not causal over the prompt they never share.

        Raises:
            Exception: the model cannot read the samples without sharing either, or its error is not one of
                REJECTED_INPUTS.
        """
        family = family_of(self.model.config)
        if not family.causal:
            log.info("samples of one image do not share its tokens: %s is not causal", family.model_type)
            return
        shared_rows = build_rows(group, share=True)
        if len(shared_rows) == len(group):
            return
        # without sharing first: an error that only the second run raises is due to sharing
        separate = self._vectors([single_row(encoded) for encoded in group])
        try:
            shared = self._vectors(shared_rows)
        except REJECTED_INPUTS as error:
            log.info("samples of one image do not share its tokens: the model rejects shared rows (%s)", error)
            return
        difference = max(
            float(np.linalg.norm(shared[row] - vector)) / max(float(np.linalg.norm(vector)), 1e-30)
            for row, vector in separate.items()
        )
        self.share = difference <= SHARING_TOLERANCE[self.model.dtype]
        log.info(
            "samples of one image %s its tokens: features differ by %.1e",
            "share" if self.share else "do not share",
            difference,
        )

    def _vectors(self, rows):
        """Dict of dataset row -> vector."""
        return {sample.dataset_row: vector for sample, vector in self.run(rows)}

    def _position_ids(self, encoded):
        """(..., L) position ids of the tokens of a sample, as the model assigns them."""
        if self.rope_index is None or not encoded.image_inputs:
            positions = torch.arange(len(encoded.ids))
            return positions if self.rope_index is None else positions.expand(3, -1)
        token_inputs = {"input_ids": encoded.ids, **encoded.token_inputs}
        arguments = {name: torch.from_numpy(values)[None] for name, values in token_inputs.items()}
        arguments |= {name: torch.from_numpy(np.asarray(values)) for name, values in encoded.image_inputs.items()}
        accepted = inspect.signature(self.rope_index).parameters
        positions, _ = self.rope_index(**{name: value for name, value in arguments.items() if name in accepted})
        return positions[:, 0]


def _is_out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _halves(rows):
    """A batch as two batches; an empty list for one sample."""
    if len(rows) > 1:
        return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return [[half] for half in rows[0].halves()]


def load_reference(reference: ReferenceModel) -> tuple[Any, Any]:
    """(model, processor) of a ReferenceModel section."""
    return load_model(
        reference.checkpoint, dtype=reference.dtype, device=reference.device, attention=reference.attention
    )


def build_extractor(
    model: Any, processor: Any, images: ImageFolders, reference: ReferenceModel
) -> tuple[Extractor, Encoder]:
    """(Extractor, Encoder) of a loaded model.

    Args:
        model, processor: of the reference model.
        images: folder that image names are relative to.
        reference: ReferenceModel section of the config; its layers may be fractions of depth.

    Raises:
        LayerError: the model does not have one of the layers.
    """
    encoder = Encoder(
        processor,
        images,
        image_token_id=image_token(model, processor),
        prefix=fixed_prefix(processor),
        max_tokens=reference.max_tokens,
        extra_metrics=reference.extra_metrics,
    )
    extractor = Extractor(
        model,
        processor,
        layers=resolve_layers(reference.layers, len(decoder_layers(model))),
        batch_tokens=reference.batch_tokens,
        sample_metrics=reference.sample_metrics,
        extra_metrics=reference.extra_metrics,
    )
    return extractor, encoder


def open_extractor(
    reference: ReferenceModel, images: ImageFolders, samples: Iterable[Sample]
) -> tuple[Extractor, Encoder, int]:
    """Load a reference model to read samples with.

    Args:
        reference: ReferenceModel section of the config.
        images: folder that image names are relative to.
        samples: samples on which sharing is tried.

    Returns:
        (Extractor, Encoder, numbers in an activation)
    """
    extractor, encoder = build_extractor(*load_reference(reference), images, reference)
    try_sharing(extractor, encoder, samples)
    return extractor, encoder, extractor.dimension


def try_sharing(extractor: Extractor, encoder: Encoder, samples: Iterable[Sample]) -> None:
    """Let the extractor try sharing on the first usable group, which is the same when a job resumes."""
    groups = (group for group in group_by_images(samples) if len(group) > 1 and group[0].record.get("image"))
    for group in islice(groups, TRIED_GROUPS):
        encoded = [result for result in encoder(group[:TRIED_SAMPLES]) if isinstance(result, Encoded)]
        if len(encoded) > 1:
            extractor.try_sharing(encoded)
            return


def image_token(model: Any, processor: Any) -> int:
    """The token that holds an image's features: from the model's config, or else from the processor."""
    token = getattr(model.config, "image_token_id", None)
    return processor.image_token_id if token is None else token
