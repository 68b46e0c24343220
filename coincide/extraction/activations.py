"""Activations of a reference model: one vector a sample (paper section 3.2; DESIGN step 1)."""

import hashlib
import inspect
import json
import logging
import os
import shutil
import time
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from coincide.base.activation_store import ROW_GROUP, Activations, StorageError, samples_digest, write_activations
from coincide.base.errors import UserError
from coincide.base.progress import Progress
from coincide.base.tables import write_table
from coincide.dataset.shards import read_shard
from coincide.extraction.encoding import Encoded, Encoder, encoded_groups, group_by_images
from coincide.extraction.packing import alone, batches, collate, rows_of
from coincide.extraction.sample_metrics import (
    EMBEDDINGS,
    METRICS,
    metric_columns,
    metrics_table,
    write_sample_metrics,
)
from coincide.models.chat import fixed_prefix
from coincide.models.layers import resolve_layers
from coincide.models.loading import load_model, placed, weights_digest

log = logging.getLogger(__name__)

WINDOW = 512  # samples that are batched by length together and written at once: what a killed job loses
SHARED_WITHIN = 1e-2  # relative difference that sharing may make in half precision; in float32 a thousandth of it
MAX_WORKERS = 16
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # on a CPU more would not stay in its caches


class ReferenceModelError(UserError):
    """A reference model that cannot be read; the message says what it lacks."""


class _Stop(Exception):
    """Ends a forward pass after the last layer that is needed."""


def decoder_layers(model):
    """The decoder's layers of an image-text-to-text model, in order.

    Raises:
        ReferenceModelError: the model has no such list of layers.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ReferenceModelError(f"{type(model).__name__} has no decoder layers in {type(decoder).__name__}.layers")
    return layers


def image_token(model, processor):
    """The token that holds an image's features: as the model's config says, else the processor."""
    found = getattr(model.config, "image_token_id", None)
    return processor.image_token_id if found is None else found


@contextmanager
def _attention_outputs(model, layers, stop):
    """Collect the self-attention outputs of the given layers; with `stop` end the forward pass after the last.

    The output is taken after the output projection and before the residual sum.
    """
    modules, found, handles = decoder_layers(model), {}, []
    for layer in layers:
        attention = getattr(modules[layer], "self_attn", None)
        if attention is None:
            raise ReferenceModelError(
                f"layer {layer} of {type(model).__name__} has no self-attention: choose other layers"
            )

        def hook(module, args, output, layer=layer):
            found[layer] = output[0] if isinstance(output, tuple) else output
            if stop and layer == max(layers):
                raise _Stop

        handles.append(attention.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def features(model, batch, layers, *, sample_metrics=False):
    """Feature vectors of a batch.

    Of each layer's attention output the mean over the visual tokens and the mean over the text
    tokens; tanh; each scaled to unit norm; concatenated as layer 1 visual, layer 1 text, layer 2
    visual, …; divided by sqrt(2M).

    Args:
        model: the reference model, in evaluation mode.
        batch: a `coincide.extraction.packing.Batch` of n samples.
        layers: zero-based decoder layers, M of them.
        sample_metrics: run the whole model, and append the columns of `metric_columns` to each vector.

    Returns:
        (n, 2·M·h) float32 tensor on the model's device; zeros for a modality that a sample lacks.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.2, and the published code's blocks.
    """
    inputs = placed(batch.inputs, model)
    visual, text = batch.visual.to(model.device), batch.text.to(model.device)
    row, place = zip(*((i, s) for i, samples in enumerate(batch.encoded) for s in range(len(samples))))
    row, place = torch.tensor(row, device=model.device), torch.tensor(place, device=model.device)
    tokens = torch.cat([visual[:, None], text], dim=1).float()  # (B, 1 + S, L)
    count = tokens.sum(dim=2, keepdim=True)
    with torch.inference_mode(), _attention_outputs(model, layers, stop=not sample_metrics) as outputs:
        if sample_metrics:  # without the head, of which few logits are wanted
            last = model.model(**inputs, use_cache=False).last_hidden_state
        else:
            with suppress(_Stop):
                model(**inputs, use_cache=False)
        blocks = []
        for layer in layers:
            mean = torch.bmm(tokens, outputs[layer].float()) / count.clamp(min=1)
            block = torch.nn.functional.normalize(torch.tanh(mean), dim=2) * (count > 0)
            blocks += [block[row, 0], block[row, 1 + place]]
        vectors = torch.cat(blocks, dim=1) / (2 * len(layers)) ** 0.5
        return (
            torch.cat([vectors, metric_columns(model, last, batch, row, place)], dim=1) if sample_metrics else vectors
        )


class Extractor:
    """A reference model that is read.

    Args:
        model, processor: of the reference model.
        layers: zero-based decoder layers.
        batch_tokens: tokens of a batch, padding counted; a longer sample goes by itself; None: BATCH_TOKENS.
        sample_metrics: read the scores of `coincide.extraction.sample_metrics`, too, behind each vector.
    """

    def __init__(self, model, processor, *, layers, batch_tokens=None, sample_metrics=False):
        self.model, self.layers, self.sample_metrics = model, layers, sample_metrics
        self.batch_tokens = batch_tokens or BATCH_TOKENS[model.device.type]
        self.pad = processor.tokenizer.pad_token_id or 0
        self.rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
        self.share = False
        hidden = model.config.get_text_config().hidden_size
        self.columns = 2 * len(layers) * hidden + sample_metrics * (len(METRICS) + len(EMBEDDINGS) * hidden)
        self.tokens = 0  # that went through the model, padding counted

    def run(self, rows):
        """Yield (sample, vector) of the rows' samples; what the device cannot hold is halved and tried again."""
        try:
            batch = collate(rows, pad=self.pad, positions=self._positions, dtype=self.model.dtype, causal=self.share)
            vectors = features(self.model, batch, self.layers, sample_metrics=self.sample_metrics).cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]] if len(rows) > 1 else _halves(rows[0])
            if not parts:
                raise
            log.warning("out of memory with %d rows of %d tokens: going on with half", len(rows), len(rows[0]))
        else:
            self.tokens += batch.inputs["input_ids"].numel()
            yield from zip((one.sample for samples in batch.encoded for one in samples), vectors)
            return
        torch.cuda.empty_cache()  # outside the handler: the error holds the batch's tensors
        for part in parts:
            yield from self.run(part)

    def rows(self, encoded_group):
        """Rows of the samples of a group."""
        return rows_of(encoded_group, share=self.share)

    def try_sharing(self, encoded):
        """See whether samples of an image may share its tokens: whether features stay what they are."""
        rows = rows_of(encoded, share=True)
        if len(rows) == len(encoded):
            return
        try:
            together = dict((s["position"], v) for s, v in self.run(rows))
        except Exception as error:
            log.info("samples of one image do not share its tokens: the model does not take it (%s)", error)
            return
        single = dict((s["position"], v) for s, v in self.run([alone(one) for one in encoded]))
        off = max(np.linalg.norm(together[p] - single[p]) / max(np.linalg.norm(single[p]), 1e-30) for p in single)
        allowed = SHARED_WITHIN * (1e-3 if self.model.dtype == torch.float32 else 1)
        self.share = bool(off <= allowed)
        log.info(
            "samples of one image %s its tokens: features differ by %.1e",
            "share" if self.share else "do not share",
            off,
        )

    def _positions(self, one):
        """(..., L) positions of the tokens of a sample, as the model counts them."""
        if self.rope_index is None or not one.images:
            counted = torch.arange(len(one.ids))
            return counted if self.rope_index is None else counted.expand(3, -1)
        known = {"input_ids": one.ids, **one.beside, **one.images}
        inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in known.items()}
        inputs |= {name: inputs[name][None] for name in ("input_ids", *one.beside)}
        taken = inspect.signature(self.rope_index).parameters
        positions, _ = self.rope_index(**{name: value for name, value in inputs.items() if name in taken})
        return positions[:, 0]


def _is_out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _halves(row):
    return [[half] for half in row.halves()] if len(row.encoded) > 1 else []


def extract(
    model,
    processor,
    samples,
    images,
    *,
    layers,
    batch_tokens,
    max_tokens,
    output,
    metadata,
    workers=0,
    compiled=False,
    sample_metrics=None,
):
    """Extract the activations of a shard and write them.

    Samples are taken a window at a time, batched by length inside it, and written in their order. What
    is written stays: a job that was killed goes on after the last window, with the same result. A
    sample that cannot be used is set aside with its reason; the shard goes on.

    Args:
        model, processor: of the reference model.
        samples: list of dicts of sample_id, position, record (see `coincide.dataset.shards`); those of one
            image side by side are read together.
        images: folder that image names are relative to.
        layers: zero-based decoder layers.
        batch_tokens: tokens of a batch; None: BATCH_TOKENS.
        max_tokens: longest sample in tokens, visual ones included.
        output: Parquet file to write.
        metadata: what to say of the model in the file.
        workers: processes that open images and tokenise ahead of the model.
        compiled: compile the layers whose outputs are not read (torch.compile).
        sample_metrics: folder for the sample metrics (`coincide.extraction.sample_metrics`); None: not computed.

    Returns:
        list of rejected rows (sample_id, position, reason, detail).
    """
    hidden = model.config.get_text_config().hidden_size
    dimension = 2 * len(layers) * hidden
    metadata = {**metadata, "layers": list(layers), "hidden_size": hidden, "blocks": ["visual", "text"]}
    if compiled:
        for number, layer in enumerate(decoder_layers(model)):
            if number < max(layers) and number not in layers:
                layer.compile(dynamic=True)
    extractor, encoder = extractor_of(
        model, processor, images, layers, batch_tokens, max_tokens, sample_metrics=sample_metrics is not None
    )
    windows = [samples[i : i + WINDOW] for i in range(0, len(samples), WINDOW)]
    origin = {**metadata, "max_tokens": max_tokens, "sample_metrics": extractor.sample_metrics}
    parts = _Parts(output, {**origin, "samples": samples_digest(_ids(samples))})
    done = parts.done(windows)
    if done:
        log.info("going on after %d of %d samples", sum(map(len, windows[:done])), len(samples))
    _try_sharing(extractor, encoder, samples)
    progress = Progress(len(samples), "activations", done=sum(map(len, windows[:done])))
    groups = [group_by_images(window) for window in windows]
    ready = encoded_groups(list(chain.from_iterable(groups[done:])), encoder, workers)
    waited, began = 0.0, time.monotonic()
    for number in range(done, len(windows)):
        vectors, rejected, rows = {}, [], []
        for _ in groups[number]:
            asked = time.monotonic()
            group = next(ready)
            waited += time.monotonic() - asked
            rejected += [_rejected_row(one.sample, one.reason, one.detail) for one in group if not _usable(one)]
            rows += extractor.rows([one for one in group if _usable(one)])
        progress.update(len(rejected))
        for batch in batches(rows, extractor.batch_tokens):
            for sample, vector in extractor.run(batch):
                vectors[sample["position"]] = vector
            progress.update(sum(len(row.encoded) for row in batch))
        rejected += _not_finite(windows[number], vectors)
        kept = [s for s in windows[number] if s["position"] in vectors]
        matrix = np.array([vectors[s["position"]] for s in kept]).reshape(len(kept), extractor.columns)
        if extractor.sample_metrics:
            parts.write_metrics(number, metrics_table(_ids(kept), matrix[:, dimension:]))
        parts.write(number, _ids(kept), matrix[:, :dimension].astype(np.float16), rejected)
    progress.close()
    if spent := time.monotonic() - began:
        log.info("waited for samples %.1f%% of the time; %s tokens", 100 * waited / spent, f"{extractor.tokens:,}")
    if sample_metrics is not None:
        write_sample_metrics(parts.metrics(len(windows)), sample_metrics, metadata)
    return parts.join(len(windows), output, dimension, metadata)


def _usable(one):
    return isinstance(one, Encoded)


def _ids(samples):
    return [sample["sample_id"] for sample in samples]


def _rejected_row(sample, reason, detail):
    return {"sample_id": sample["sample_id"], "position": sample["position"], "reason": reason, "detail": detail}


def _not_finite(window, vectors):
    """Take vectors with NaN or infinite numbers out, and return their rejected rows."""
    bad = [s for s in window if s["position"] in vectors and not np.isfinite(vectors[s["position"]]).all()]
    for sample in bad:
        del vectors[sample["position"]]
    detail = "the reference model gave NaN or infinite numbers"
    return [_rejected_row(sample, "non-finite activation", detail) for sample in bad]


def _try_sharing(extractor, encoder, samples):
    """Let the extractor try on the first samples of one image; the same ones whenever the shard is started."""
    groups = (group for group in group_by_images(samples) if len(group) > 1 and group[0]["record"].get("image"))
    for group in islice(groups, 3):
        encoded = [one for one in encoder(group[:4]) if _usable(one)]
        if len(encoded) > 1:
            extractor.try_sharing(encoded)
            return


class _Parts:
    """What a shard has so far: a file a window beside the output, until all are there.

    Args:
        output: file that will hold the shard.
        origin: what it comes from: JSON values; parts of another origin are not taken up.
    """

    def __init__(self, output, origin):
        output = Path(output)
        self.folder = output.with_name(f".{output.name}.parts")
        self.origin = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()

    def _path(self, number):
        return self.folder / f"{number:05d}.parquet"

    def done(self, windows):
        """Number of windows that are there and whole, from the first."""
        for number in range(len(windows)):
            try:
                part = Activations(self._path(number))
                part.verify()
            except StorageError:
                return number
            if part.metadata[0]["origin"] != self.origin:
                shutil.rmtree(self.folder)
                return 0
        return len(windows)

    def write(self, number, ids, matrix, rejected):
        """Keep a window."""
        metadata = {"origin": self.origin, "rejected": rejected}
        write_activations(self._path(number), [(ids, matrix)], dimension=matrix.shape[1], metadata=metadata)

    def write_metrics(self, number, table):
        """Keep the scores of a window; before the window itself, which says that all of it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(table, self._metrics(number))

    def _metrics(self, number):
        return self.folder / f"{number:05d}.sample_metrics"

    def metrics(self, count):
        """For each window a function that reads its scores."""
        return [partial(pd.read_parquet, self._metrics(number)) for number in range(count)]

    def join(self, count, output, dimension, metadata):
        """Write the whole shard and remove its parts; returns the rejected rows by position."""
        parts = [Activations(self._path(number)) for number in range(count)]
        at_once = max(1, ROW_GROUP // WINDOW)

        def groups():
            for first in range(0, count, at_once):
                together = parts[first : first + at_once]
                yield (
                    list(chain.from_iterable(part.sample_ids for part in together)),
                    np.concatenate([np.asarray(part) for part in together]),
                )

        write_activations(output, groups(), dimension=dimension, metadata=metadata)
        rejected = chain.from_iterable(part.metadata[0]["rejected"] for part in parts)
        shutil.rmtree(self.folder, ignore_errors=True)
        return sorted(rejected, key=lambda row: row["position"])


def extract_shard(shard, images, reference, output, metrics_output):
    """Extract the activations of a shard file. See `extract`.

    Args:
        shard: file of `coincide.dataset.shards`.
        images: folder that image names are relative to.
        reference: ReferenceModel section of the config; its layers may be fractions of depth.
        output: Parquet file to write.
        metrics_output: folder for sample metrics; written in any case, empty unless reference.sample_metrics.

    Returns:
        list of rejected rows (sample_id, position, reason, detail).
    """
    if not reference.sample_metrics:
        write_sample_metrics([], metrics_output, None)
    model, processor = load_reference(reference)
    return extract(
        model,
        processor,
        read_shard(shard),
        images,
        layers=resolve_layers(reference.layers, len(decoder_layers(model))),
        batch_tokens=reference.batch_tokens,
        max_tokens=reference.max_tokens,
        output=output,
        metadata={
            "model": reference.name,
            "revision": reference.revision,
            "model_dtype": reference.dtype,
            "weights": weights_digest(reference.name),
        },
        workers=loader_workers(model.device.type),
        compiled=reference.compiled,
        sample_metrics=metrics_output if reference.sample_metrics else None,
    )


def load_reference(reference):
    """(model, processor) of a ReferenceModel section."""
    return load_model(
        reference.checkpoint, dtype=reference.dtype, device=reference.device, attention=reference.attention
    )


def open_extractor(reference, images, samples):
    """A reference model ready to be read: (Extractor, Encoder, numbers in an activation); see `extract`."""
    model, processor = load_reference(reference)
    layers = resolve_layers(reference.layers, len(decoder_layers(model)))
    extractor, encoder = extractor_of(
        model,
        processor,
        images,
        layers,
        reference.batch_tokens,
        reference.max_tokens,
        sample_metrics=reference.sample_metrics,
    )
    _try_sharing(extractor, encoder, samples)
    return extractor, encoder, 2 * len(layers) * model.config.get_text_config().hidden_size


def extractor_of(model, processor, images, layers, batch_tokens, max_tokens, *, sample_metrics=False):
    """(Extractor, Encoder) of a loaded model."""
    encoder = Encoder(
        processor,
        images,
        image_token_id=image_token(model, processor),
        prefix=fixed_prefix(processor),
        max_tokens=max_tokens,
    )
    return Extractor(model, processor, layers=layers, batch_tokens=batch_tokens, sample_metrics=sample_metrics), encoder


def loader_workers(device):
    """Worker processes that prepare samples for a device of this type, in a job with as many threads as it was given.

    A model on the CPU needs the cores itself: it is fastest where few or none prepare beside it.
    """
    threads = int(os.environ.get("COINCIDE_THREADS", 2))
    return min(MAX_WORKERS, threads // 4 if device == "cpu" else max(1, threads - 1))
