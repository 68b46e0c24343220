"""Time extraction against the published script's procedure, with a small model on the default mix, in one run.

    .venv/bin/python bench/extraction.py [--output bench/results/extraction] [--samples 192]
    .venv/bin/python bench/extraction.py --shape 2b --dtype bfloat16 --device cuda    # on a GPU

The published procedure: batches of 8 in dataset order, padded to the longest, eager attention, the layers up to the
last one needed, no reuse of images, images opened in the same process. The steps from there to our procedure are timed
one after the other. `--shape 2b` has the shape of TinyLLaVA: 24 layers, h = 2048, a vision tower like SigLIP-so400m,
729 visual tokens. With `--peak`, in TFLOP/s, the share of the device's peak is the operations of our procedure over
the time it takes.
"""

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from common import parser, write

from coincide.base.sections import Dtype, ReferenceModel, Shape
from coincide.dataset.formats import read_records
from coincide.dataset.images import image_names, open_image
from coincide.dataset.samples import Sample
from coincide.demo.mini_mix import write_mini_mix
from coincide.demo.tiny_models import CHAT_TEMPLATE, build_model
from coincide.extraction.encoding import Encoded, encoded_groups, group_by_images, loader_workers
from coincide.extraction.extractor import build_extractor
from coincide.extraction.features import decoder_layers
from coincide.extraction.packing import batches
from coincide.models.chat import encode, fixed_prefix, render
from coincide.models.loading import load_model

LAYERS = [3, 7, 11, 15, 19]
SMALL = {
    "vocabulary": 1000, "image_size": 224, "patch_size": 14, "vision_hidden": 64, "vision_layers": 2,
    "hidden": 256, "layers": 24, "heads": 4,
}  # fmt: skip
TINY_LLAVA = {
    "vocabulary": 1000, "image_size": 384, "patch_size": 14, "vision_hidden": 1152, "vision_layers": 27,
    "hidden": 2048, "layers": 24, "heads": 16,
}  # fmt: skip


def published(model, processor, samples, images):
    """(vectors by dataset row, tokens, share of the time waited) of the published procedure, which never waits."""
    vectors, tokens, prefix = {}, 0, fixed_prefix(processor)
    outputs, handles = {}, []

    class LastLayerReached(Exception):
        pass

    for layer in LAYERS:

        def hook(module, args, output, layer=layer):
            outputs[layer] = output
            if layer == LAYERS[-1]:
                raise LastLayerReached

        handles.append(decoder_layers(model)[layer].self_attn.o_proj.register_forward_hook(hook))
    for start in range(0, len(samples), 8):
        batch = samples[start : start + 8]
        rendered = [render(processor, sample.record["conversations"]) for sample in batch]
        opened = [[open_image(images, name) for name in image_names(sample.record)] for sample in batch]
        inputs, masks, _ = encode(processor, rendered, opened)
        tokens += inputs["input_ids"].numel()
        with torch.inference_mode(), suppress(LastLayerReached):
            model(**inputs.to(model.device, model.dtype), use_cache=False)
        for i, sample in enumerate(batch):
            text = masks.text[i].copy()
            text[: prefix[bool(masks.visual[i].any())]] = False
            blocks = []
            for layer in LAYERS:
                for mask in (masks.visual[i], text):
                    mean = outputs[layer][i][torch.from_numpy(mask).to(model.device)].float().mean(dim=0)
                    mean = torch.nan_to_num(mean)
                    blocks.append(torch.nn.functional.normalize(torch.tanh(mean), dim=0))
            vectors[sample.dataset_row] = (torch.cat(blocks) / (2 * len(LAYERS)) ** 0.5).cpu().numpy()
    for handle in handles:
        handle.remove()
    return vectors, tokens, 0.0


def batches_in_order(rows, batch_tokens):
    """Batches of 8 rows in their order."""
    return (rows[i : i + 8] for i in range(0, len(rows), 8))


def open_extractor(model, processor, images, batch_tokens):
    """(Extractor, Encoder) of a loaded model."""
    reference = ReferenceModel(name="benchmark", layers=LAYERS, batch_tokens=batch_tokens, max_tokens=4096)
    return build_extractor(model, processor, images, reference)


def ours(model, processor, samples, images, *, by_length, share, batch_tokens, workers):
    """(vectors by dataset row, tokens, share of the time waited) of our procedure, without writing files."""
    extractor, encoder = open_extractor(model, processor, images, batch_tokens)
    extractor.share = share
    groups = group_by_images(samples) if share else [[sample] for sample in samples]
    rows, began, waited = [], time.perf_counter(), 0.0
    encoded = encoded_groups(groups, encoder, workers)
    for _ in groups:
        waiting_since = time.perf_counter()
        group = next(encoded)
        waited += time.perf_counter() - waiting_since
        assert all(isinstance(result, Encoded) for result in group), group
        rows += extractor.rows(group)
    vectors = {}
    for batch in (batches if by_length else batches_in_order)(rows, extractor.batch_tokens):
        vectors |= {sample.dataset_row: vector for sample, vector in extractor.run(batch)}
    return vectors, extractor.tokens, waited / (time.perf_counter() - began)


def count_operations(model, processor, samples, images):
    """Multiplications and additions of our procedure: linear layers of vision tower and decoder, and attention."""
    extractor, encoder = open_extractor(model, processor, images, batch_tokens=1)
    extractor.share = True
    hidden_size = model.config.get_text_config().hidden_size
    vision = model.config.vision_config
    per_token = 2 * count_linear_weights(decoder_layers(model)[0])
    per_patch = 2 * count_linear_weights(model.model.vision_tower)
    total = 0
    for group in group_by_images(samples):
        for row in extractor.rows(encoder(group)):
            length, patches = len(row), int(row.encoded[0].masks.visual.sum())
            total += LAYERS[-1] * (length * per_token + 2 * length**2 * hidden_size)
            total += patches * per_patch + 4 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    return total


def count_linear_weights(module):
    """Weights of the linear layers of a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear))


def compare(vectors, reference):
    """(largest relative difference, smallest cosine) between the vectors of two procedures."""
    a, b = (np.array([v[row] for row in sorted(reference)], np.float64) for v in (vectors, reference))
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    difference = (np.linalg.norm(a - b, axis=1) / norm_b).max()
    cosine = ((a * b).sum(axis=1) / norm_a / norm_b).min()
    return float(difference), float(cosine)


def choose(records, count):
    """At least `count` samples, all those of images drawn at random, in dataset order."""
    samples = [Sample(str(row), row, record) for row, record in enumerate(records)]
    groups = group_by_images(samples)
    order = np.random.default_rng(0).permutation(len(groups))
    chosen = []
    for i in order[:count]:
        chosen += groups[i] if len(chosen) < count else []
    return sorted(chosen, key=lambda sample: sample.dataset_row)


def prepare(folder, shape, count, device):
    """Write the mix and the model; return (folder of the model, samples, folder of images)."""
    write_mini_mix(folder / "mix", samples=21_000, pretrain_samples=22, test_samples=1, validation_samples=1, seed=0)
    records = read_records(folder / "mix/train.json")
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    build_model([CHAT_TEMPLATE, *texts], shape=Shape(**shape), seed=0, output=folder / "model")
    return folder / "model", choose(records, count), folder / "mix/images"


def load(folder, attention, dtype, device):
    """(model, processor) with an attention implementation."""
    model, processor = load_model(folder, dtype=dtype, device=device)
    model.set_attn_implementation(attention)
    return model, processor


def time_procedure(procedure, model, processor, samples, images, device, **settings):
    """(seconds, vectors, tokens, share of the time waited) of a procedure, after a first run on a few samples."""
    procedure(model, processor, samples[:16], images, **settings)
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    vectors, tokens, waited = procedure(model, processor, samples, images, **settings)
    return time.perf_counter() - began, vectors, tokens, waited


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=192)
    arguments.add_argument("--shape", choices=["small", "2b"], default="small")
    arguments.add_argument("--dtype", choices=get_args(Dtype), help="default: float32 and bfloat16")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-tokens", type=int)
    arguments.add_argument("--peak", type=float, help="TFLOP/s of the device")
    options = arguments.parse_args()
    shape = {"small": SMALL, "2b": TINY_LLAVA}[options.shape]
    base = {"by_length": True, "share": True, "batch_tokens": options.batch_tokens, "workers": 0}
    steps = [
        ("published procedure", "eager", published, {}),
        ("attention by sdpa", "sdpa", ours, {**base, "by_length": False, "share": False}),
        ("batches by length and tokens", "sdpa", ours, {**base, "share": False}),
        ("images shared", "sdpa", ours, base),
        ("worker processes (ours)", "sdpa", ours, {**base, "workers": loader_workers(options.device)}),
    ]
    rows, reference, published_seconds = [], None, None
    with tempfile.TemporaryDirectory() as folder:
        model_folder, samples, images = prepare(Path(folder), shape, options.samples, options.device)
        names = {name for sample in samples for name in image_names(sample.record)}
        print(f"{len(samples)} samples of {len(names)} images")
        print("| dtype | step | samples/s | times the published | tokens | difference | cosine | waited |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
            all_steps = dtype == "float32" or options.dtype
            for name, attention, procedure, settings in steps if all_steps else [steps[0], steps[-1]]:
                model, processor = load(model_folder, attention, dtype, options.device)
                seconds, vectors, tokens, waited = time_procedure(
                    procedure, model, processor, samples, images, options.device, **settings
                )
                published_seconds, reference = published_seconds or seconds, reference or vectors
                difference, cosine = compare(vectors, reference)
                row = {
                    "dtype": dtype, "step": name, "samples_a_second": len(samples) / seconds,
                    "ratio": published_seconds / seconds, "tokens": tokens,
                    "difference": difference, "cosine": cosine, "waited": waited,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"| {dtype} | {name} | {row['samples_a_second']:.2f} | {row['ratio']:.2f} | {tokens:,} "
                    f"| {difference:.1e} | {cosine:.6f} | {waited:.1%} |",
                    flush=True,
                )
        if options.peak:
            share = count_operations(model, processor, samples, images) / seconds / options.peak / 1e12
            rows[-1]["share_of_peak"] = share
            print(f"share of {options.peak:g} TFLOP/s: {share:.1%}")
    device = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"

    def plot(plt):
        figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
        labels = [f"{row['step']}, {row['dtype']}" for row in rows]
        axis.barh(labels[::-1], [row["ratio"] for row in rows][::-1], color="#3465a4")
        axis.bar_label(axis.containers[0], fmt="%.1f", padding=3)
        axis.set_xlabel("samples per second, relative to the published procedure")
        axis.spines[["top", "right"]].set_visible(False)
        return figure

    write(options.output, plot, device=device, shape=options.shape, samples=len(samples), images=len(names), rows=rows)


if __name__ == "__main__":
    main()
