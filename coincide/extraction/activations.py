"""The activations of one shard: one feature vector per sample, computed and kept window by window."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide.base.activation_store import ROW_GROUP, Activations, StorageError, samples_digest, write_activations
from coincide.base.progress import Progress
from coincide.base.sections import ReferenceModel
from coincide.base.tables import write_table
from coincide.dataset.images import ImageFolders, image_names
from coincide.dataset.samples import Reason, RejectedSample, Sample
from coincide.dataset.shards import read_shard
from coincide.extraction.encoding import (
    Encoded,
    encoded_bytes,
    encoded_groups,
    group_by_images,
    loader_workers,
    reject,
)
from coincide.extraction.extractor import Extractor, build_extractor, load_reference, try_sharing
from coincide.extraction.features import decoder_layers
from coincide.extraction.reuse import EarlierRows
from coincide.extraction.sample_metrics import metrics_table, write_sample_metrics
from coincide.models.loading import weights_digest

log = logging.getLogger(__name__)

# settings that decide what is read, besides the model and the layers
READING = ("attention", "max_tokens", "chat_template")
WINDOW_BYTES = 2**30  # encoded samples of a window that are held at once
WINDOW = 512  # samples that are batched by length together and written together: a killed job loses at most these


def extract_shard(
    shard: str | Path,
    images: ImageFolders,
    reference: ReferenceModel,
    output: str | Path,
    metrics_output: str | Path,
    *,
    extends: str | None = None,
) -> list[RejectedSample]:
    """Extract the activations of a shard file. See `extract`.

    Args:
        shard: file written by `coincide.dataset.shards`.
        images, reference, output, metrics_output: as for `extract`.
        extends: folder of a finished run, whose rows are reused for samples that are the same.

    Returns:
        The samples that were rejected, by dataset row.
    """
    earlier = EarlierRows(extends, shard, sample_metrics=reference.sample_metrics) if extends else None
    model, processor = load_reference(reference)
    return extract(
        model,
        processor,
        read_shard(shard),
        images,
        reference,
        output=output,
        metrics_output=metrics_output,
        workers=loader_workers(model.device.type),
        earlier=earlier,
    )


def extract(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    images: ImageFolders,
    reference: ReferenceModel,
    *,
    output: str | Path,
    metrics_output: str | Path | None = None,
    workers: int = 0,
    earlier: EarlierRows | None = None,
) -> list[RejectedSample]:
    """Extract the activations of the samples of a shard and write them.

    Samples are processed in windows: batched by length within a window, and written in their order. Finished windows
    are kept, so that an interrupted job resumes after the last of them, with the same result. A sample that cannot be
    used is rejected with its reason.

    Args:
        model, processor: of the reference model.
        samples: the samples; samples with the same images share their image tokens if they are adjacent.
        images: folder that image names are relative to.
        reference: ReferenceModel section of the config; its layers may be fractions of depth.
        output: Parquet file to write.
        metrics_output: folder to write for the sample metrics, empty unless reference.sample_metrics; None: not
            written.
        workers: processes that open images and tokenise ahead of the model.
        earlier: rows of a finished run; their samples are not read again.

    Returns:
        The samples that were rejected, by dataset row.

    Raises:
        UserError: the rows of the finished run come from another model or other settings.
        ReferenceModelError: the model's layers cannot be read.
        ChatTemplateError: the processor's chat template cannot be used.
    """
    extractor, encoder = build_extractor(model, processor, images, reference)
    if reference.compiled:
        compile_layers(model, extractor.layers)
    metadata = describe_model(reference, extractor)
    if earlier:
        earlier.check(metadata)
    windows = [samples[i : i + WINDOW] for i in range(0, len(samples), WINDOW)]
    depends_on = {
        **metadata,
        "settings": reference.results_depend_on("activations"),
        "samples": samples_digest(_ids(samples)),
    }
    counts = {}
    if earlier:
        reused = _ids(sample for sample in samples if sample in earlier)
        depends_on["reused"], counts["reused"] = samples_digest(reused), len(reused)
    files = WindowFiles(output, depends_on)
    finished = files.count_finished(len(windows))
    if finished:
        log.info("resuming after %d of %d samples", sum(map(len, windows[:finished])), len(samples))
    try_sharing(extractor, encoder, samples)
    _extract_windows(extractor, encoder, windows, files, finished, workers, earlier)
    if metrics_output is not None:
        readers = files.metrics_readers(len(windows)) if reference.sample_metrics else []
        write_sample_metrics(readers, metrics_output, metadata, reference.extra_metrics)
    return files.join(len(windows), output, extractor.dimension, {**metadata, **counts})


def compile_layers(model: Any, layers: Sequence[int]) -> None:
    """Compile (torch.compile) the decoder layers that run and whose outputs are not read."""
    for number, layer in enumerate(decoder_layers(model)):
        if number < max(layers) and number not in layers:
            layer.compile(dynamic=True)


def describe_model(reference: ReferenceModel, extractor: Extractor) -> dict[str, Any]:
    """Metadata of an activation file: the model, and what its rows consist of."""
    settings = reference.results_depend_on("activations")
    return {
        "model": reference.name,
        "revision": reference.revision,
        "model_dtype": reference.dtype,
        "weights": weights_digest(reference.name),
        "layers": list(extractor.layers),
        "hidden_size": extractor.hidden_size,
        "blocks": ["visual", "text"],
        "settings": {name: value for name, value in settings.items() if name in READING},
    }


def _extract_windows(extractor, encoder, windows, files, finished, workers, earlier):
    """Extract and write the windows after the first `finished` ones."""
    total, done = sum(map(len, windows)), sum(map(len, windows[:finished]))
    progress = Progress(total, "activations", done=done)
    new = [[sample for sample in window if not earlier or sample not in earlier] for window in windows]
    groups = [group_by_images(window) for window in new]
    encoded = _WaitTimer(encoded_groups(list(chain.from_iterable(groups[finished:])), encoder, workers))
    began = time.monotonic()
    for number in range(finished, len(windows)):
        of_window = islice(encoded, len(groups[number]))
        kept, matrix, rejected = _extract_window(extractor, new[number], of_window, progress)
        if earlier:
            kept, matrix = _with_earlier(windows[number], kept, matrix, earlier)
            progress.update(len(windows[number]) - len(new[number]))
        if extractor.sample_metrics:
            text_only = [not image_names(sample.record) for sample in kept]
            columns = matrix[:, extractor.dimension :]
            files.write_metrics(number, metrics_table(_ids(kept), columns, extractor.extra_metrics, text_only))
        files.write(number, _ids(kept), matrix[:, : extractor.dimension].astype(np.float16), rejected)
    progress.close()
    if seconds := time.monotonic() - began:
        share = 100 * encoded.seconds / seconds
        log.info("waited for samples %.1f%% of the time; %s tokens", share, f"{extractor.tokens:,}")


def _extract_window(
    extractor: Extractor,
    samples: Sequence[Sample],
    groups: Iterable[list[Encoded | RejectedSample]],
    progress: Progress,
) -> tuple[list[Sample], NDArray[np.float32], list[RejectedSample]]:
    """Read the samples of a window: (kept samples, (n, columns) matrix of their vectors, rejected samples)."""
    rejected: list[RejectedSample] = []
    vectors: dict[int, NDArray[np.float32]] = {}
    for part in _parts(groups):
        rejected += [result for group in part for result in group if isinstance(result, RejectedSample)]
        _read_part(extractor, part, vectors, progress)
        part.clear()  # before the next one is encoded
    progress.update(len(rejected))
    kept = []
    for sample in samples:
        if sample.dataset_row not in vectors:
            continue
        if np.isfinite(vectors[sample.dataset_row]).all():
            kept.append(sample)
        else:
            detail = "the reference model computed NaN or infinite numbers"
            rejected.append(reject(sample, Reason.NON_FINITE_ACTIVATION, detail))
    matrix = np.array([vectors[sample.dataset_row] for sample in kept]).reshape(len(kept), extractor.columns)
    return kept, matrix, rejected


def _with_earlier(window, kept, matrix, earlier):
    """(samples, vectors) of a window: those that were read, and those of a finished run, in the order of the window."""
    reused = [sample for sample in window if sample in earlier]
    if not reused:
        return kept, matrix
    samples = [*kept, *reused]
    vectors = np.concatenate([matrix, earlier.vectors(reused)], dtype=np.float32)
    place = {sample.dataset_row: number for number, sample in enumerate(window)}
    order = sorted(range(len(samples)), key=lambda i: place[samples[i].dataset_row])
    return [samples[i] for i in order], vectors[order]


def _read_part(extractor, part, vectors, progress):
    """Add the vectors of the encoded samples of a part of a window to a dict of dataset row -> vector."""
    groups = [[result for result in group if isinstance(result, Encoded)] for group in part]
    for batch in extractor.read(groups):
        vectors |= {sample.dataset_row: vector for sample, vector in batch}
        progress.update(len(batch))


def _parts(groups: Iterable[list[Encoded | RejectedSample]]) -> Iterator[list[list[Encoded | RejectedSample]]]:
    """Divide the groups of a window into parts of about WINDOW_BYTES, which depend on the samples only."""
    part, size = [], 0
    for group in groups:
        part.append(group)
        size += encoded_bytes(group)
        if size >= WINDOW_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _ids(samples):
    return [sample.id for sample in samples]


class _WaitTimer:
    """An iterator that measures how long its consumer waits for it.

    Attributes:
        seconds: the time waited so far.
    """

    def __init__(self, iterator):
        self.iterator, self.seconds = iterator, 0.0

    def __iter__(self):
        return self

    def __next__(self):
        began = time.monotonic()
        item = next(self.iterator)
        self.seconds += time.monotonic() - began
        return item


class WindowFiles:
    """The finished windows of a shard: one file per window in a hidden folder next to the output.

    Args:
        output: file that will hold the shard.
        depends_on: what the content depends on, JSON values; windows that depend on other values are discarded.
    """

    def __init__(self, output: str | Path, depends_on: Mapping[str, Any]):
        output = Path(output)
        self.folder = output.with_name(f".{output.name}.parts")
        self.fingerprint = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    def _path(self, number):
        return self.folder / f"{number:05d}.parquet"

    def _metrics_path(self, number):
        return self.folder / f"{number:05d}.sample_metrics"

    def count_finished(self, total: int) -> int:
        """Number of windows, from the first of `total`, that are finished and undamaged."""
        for number in range(total):
            try:
                window = Activations(self._path(number))
                window.verify()
            except StorageError:
                return number
            if window.metadata[0].get("fingerprint") != self.fingerprint:
                shutil.rmtree(self.folder)
                return 0
        return total

    def write(self, number: int, ids: list[str], matrix: NDArray[np.float16], rejected: list[RejectedSample]) -> None:
        """Write a window, which marks it as finished."""
        metadata = {"fingerprint": self.fingerprint, "rejected": [asdict(sample) for sample in rejected]}
        write_activations(self._path(number), [(ids, matrix)], dimension=matrix.shape[1], metadata=metadata)

    def write_metrics(self, number: int, table: pd.DataFrame) -> None:
        """Write the sample metrics of a window, to be called before `write`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(table, self._metrics_path(number))

    def metrics_readers(self, count: int) -> list[Callable[[], pd.DataFrame]]:
        """For each window, a function that reads its sample metrics."""
        return [partial(pd.read_parquet, self._metrics_path(number)) for number in range(count)]

    def join(self, count: int, output: str | Path, dimension: int, metadata: Mapping[str, Any]) -> list[RejectedSample]:
        """Write the shard from its windows and remove them; returns its rejected samples by dataset row."""
        windows = [Activations(self._path(number)) for number in range(count)]
        write_activations(output, _row_groups(windows), dimension=dimension, metadata=metadata)
        rows = chain.from_iterable(window.metadata[0]["rejected"] for window in windows)
        rejected = [RejectedSample(**{**row, "reason": Reason(row["reason"])}) for row in rows]
        shutil.rmtree(self.folder, ignore_errors=True)
        return sorted(rejected, key=lambda sample: sample.dataset_row)


def _row_groups(windows: Sequence[Activations]) -> Iterator[tuple[list[str], NDArray[np.float16]]]:
    """Yield the (ids, matrix) of row groups of about ROW_GROUP rows, each from whole windows."""
    at_once = max(1, ROW_GROUP // WINDOW)
    for first in range(0, len(windows), at_once):
        together = windows[first : first + at_once]
        ids = list(chain.from_iterable(window.sample_ids for window in together))
        yield ids, np.concatenate([np.asarray(window) for window in together])
