"""Time extraction against the published script's way, on one small model and the default mix, in one run.

    .venv/bin/python bench/extraction.py [--output bench/results/extraction] [--samples 192]
    .venv/bin/python bench/extraction.py --shape 2b --dtype bfloat16 --device cuda    # on a GPU

The published way: batches of 8 in dataset order, padded to the longest, eager attention, layers one by
one up to the last needed, nothing reused, images opened in line. The steps from there to ours are timed
one after the other. `--shape 2b` is TinyLLaVA's: 24 layers, h = 2048, a SigLIP-so400m-shaped tower,
729 visual tokens; its share of the peak counts the operations of our way, with `--peak` in TFLOP/s.
"""

import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from common import parser, write

from coincide.base.sections import Shape
from coincide.dataset.formats import read_records
from coincide.dataset.images import image_names, open_image
from coincide.demo.mini_mix import write_mini_mix
from coincide.demo.tiny_models import CHAT_TEMPLATE, build_model
from coincide.extraction.activations import decoder_layers, extractor_of, loader_workers
from coincide.extraction.encoding import Encoded, encoded_groups, group_by_images
from coincide.extraction.packing import batches
from coincide.models.chat import encode, fixed_prefix, render
from coincide.models.loading import DTYPES, load_model

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
    """(vectors, tokens) by sample, as the published script goes through a dataset."""
    found, tokens, prefix = {}, 0, fixed_prefix(processor)
    outputs, handles = {}, []

    class Stop(Exception):
        pass

    for layer in LAYERS:

        def hook(module, args, output, layer=layer):
            outputs[layer] = output
            if layer == LAYERS[-1]:
                raise Stop

        handles.append(decoder_layers(model)[layer].self_attn.o_proj.register_forward_hook(hook))
    for start in range(0, len(samples), 8):
        batch = samples[start : start + 8]
        rendered = [render(processor, s["record"]["conversations"]) for s in batch]
        pictures = [[open_image(images, name) for name in image_names(s["record"])] for s in batch]
        inputs, masks, _ = encode(processor, rendered, pictures)
        tokens += inputs["input_ids"].numel()
        with torch.inference_mode(), suppress(Stop):
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
            found[sample["position"]] = (torch.cat(blocks) / (2 * len(LAYERS)) ** 0.5).cpu().numpy()
    for handle in handles:
        handle.remove()
    return found, tokens, 0.0


def in_order(rows, batch_tokens):
    """Batches of 8 rows in their order."""
    return (rows[i : i + 8] for i in range(0, len(rows), 8))


def ours(model, processor, samples, images, *, ordered, share, batch_tokens, workers):
    """(vectors, tokens, share of the time waited) by sample: extraction without its files."""
    extractor, encoder = extractor_of(model, processor, images, LAYERS, batch_tokens, 4096)
    extractor.share = share
    groups = group_by_images(samples) if share else [[sample] for sample in samples]
    rows, began, waited = [], time.perf_counter(), 0.0
    ready = encoded_groups(groups, encoder, workers)
    for _ in groups:
        asked = time.perf_counter()
        group = next(ready)
        waited += time.perf_counter() - asked
        assert all(isinstance(one, Encoded) for one in group), group
        rows += extractor.rows(group)
    found = {}
    for batch in (batches if ordered else in_order)(rows, extractor.batch_tokens):
        found |= {sample["position"]: vector for sample, vector in extractor.run(batch)}
    return found, extractor.tokens, waited / (time.perf_counter() - began)


def operations(model, processor, samples, images):
    """Multiplications and additions of our way, in all: linear layers of tower and decoder, and attention."""
    extractor, encoder = extractor_of(model, processor, images, LAYERS, 1, 4096)
    extractor.share = True
    text = model.config.get_text_config()
    layer = decoder_layers(model)[0]
    a_token = 2 * sum(m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear))
    tower = model.model.vision_tower
    a_patch = 2 * sum(m.weight.numel() for m in tower.modules() if isinstance(m, torch.nn.Linear))
    total = 0
    for group in group_by_images(samples):
        for row in extractor.rows(encoder(group)):
            length, images_in = len(row), row.encoded[0].masks.visual.any()
            total += LAYERS[-1] * (length * a_token + 2 * length**2 * text.hidden_size)
            if images_in:
                patches, config = int(row.encoded[0].masks.visual.sum()), model.config.vision_config
                total += patches * a_patch + 4 * patches**2 * config.hidden_size * config.num_hidden_layers
    return total


def compare(found, reference):
    """(largest relative difference, smallest cosine) of the vectors of two ways."""
    a, b = (np.array([f[p] for p in sorted(reference)], np.float64) for f in (found, reference))
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return float((np.linalg.norm(a - b, axis=1) / norms[1]).max()), float(
        ((a * b).sum(axis=1) / norms[0] / norms[1]).min()
    )


def choose(records, count):
    """Samples of whole images drawn at random, in the mix's order: as many to an image as in the whole mix."""
    groups = group_by_images([{"sample_id": str(i), "position": i, "record": r} for i, r in enumerate(records)])
    drawn = np.random.default_rng(0).permutation(len(groups))
    chosen = []
    for i in drawn[:count]:
        chosen += groups[i] if len(chosen) < count else []
    return sorted(chosen, key=lambda s: s["position"])


def prepare(folder, shape, count, device):
    """Write mix and model; return (folder of the model, samples, folder of images)."""
    write_mini_mix(folder / "mix", samples=21_000, pretrain_samples=22, test_samples=1, validation_samples=1, seed=0)
    records = read_records(folder / "mix/train.json")
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    build_model([CHAT_TEMPLATE, *texts], shape=Shape(**shape), seed=0, output=folder / "model")
    return folder / "model", choose(records, count), folder / "mix/images"


def load(place, attention, dtype, device):
    """Model with a kind of attention, and processor."""
    model, processor = load_model(place, dtype=dtype, device=device)
    model.set_attn_implementation(attention)
    return model, processor


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=192)
    arguments.add_argument("--shape", choices=["small", "2b"], default="small")
    arguments.add_argument("--dtype", choices=list(DTYPES), help="this one alone; float32 and bfloat16 if not given")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-tokens", type=int)
    arguments.add_argument("--peak", type=float, help="TFLOP/s of the device, for its share")
    options = arguments.parse_args()
    shape = {"small": SMALL, "2b": TINY_LLAVA}[options.shape]
    tokens = {"batch_tokens": options.batch_tokens, "workers": loader_workers(options.device)}
    steps = [
        ("published way", "eager", published, {}),
        ("attention by sdpa", "sdpa", ours, {"ordered": False, "share": False, **tokens, "workers": 0}),
        ("batches by length and tokens", "sdpa", ours, {"ordered": True, "share": False, **tokens, "workers": 0}),
        ("images shared", "sdpa", ours, {"ordered": True, "share": True, **tokens, "workers": 0}),
        ("as a job does it (ours)", "sdpa", ours, {"ordered": True, "share": True, **tokens}),
    ]
    rows, reference = [], None
    with tempfile.TemporaryDirectory() as folder:
        place, samples, images = prepare(Path(folder), shape, options.samples, options.device)
        pictures = {name for s in samples for name in image_names(s["record"])}
        print(f"{len(samples)} samples of {len(pictures)} images")
        print("| dtype | step | samples/s | times the published way | tokens | difference | cosine | waited |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        base = None
        for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
            for name, attention, way, choices in (
                steps if dtype == "float32" or options.dtype else [steps[0], steps[-1]]
            ):
                model, processor = load(place, attention, dtype, options.device)
                way(model, processor, samples[:16], images, **choices)  # warm
                if options.device != "cpu":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                found, seen, waited = way(model, processor, samples, images, **choices)
                seconds = time.perf_counter() - began
                base, reference = base or seconds, reference or found
                difference, cosine = compare(found, reference)
                row = {
                    "dtype": dtype, "step": name, "samples_a_second": len(samples) / seconds,
                    "ratio": base / seconds, "tokens": seen,
                    "difference": difference, "cosine": cosine, "waited": waited,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"| {dtype} | {name} | {row['samples_a_second']:.2f} | {row['ratio']:.2f} | {seen:,} "
                    f"| {difference:.1e} | {cosine:.6f} | {waited:.1%} |",
                    flush=True,
                )
        if options.peak:
            share = operations(model, processor, samples, images) / seconds / options.peak / 1e12
            rows[-1]["share_of_peak"] = share
            print(f"share of {options.peak:g} TFLOP/s: {share:.1%}")
    device = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"

    def plot(plt):
        figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
        labels = [f"{row['step']}, {row['dtype']}" for row in rows]
        axis.barh(labels[::-1], [row["ratio"] for row in rows][::-1], color="#3465a4")
        axis.bar_label(axis.containers[0], fmt="%.1f", padding=3)
        axis.set_xlabel("samples a second, times the published way")
        axis.spines[["top", "right"]].set_visible(False)
        return figure

    write(
        options.output, plot, device=device, shape=options.shape, samples=len(samples), images=len(pictures), rows=rows
    )


if __name__ == "__main__":
    main()
