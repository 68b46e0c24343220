"""Time what each of reference_model.extra_metrics adds to the pass for activations and sample metrics, in one run.

    .venv/bin/python bench/extra_metrics.py [--output bench/results/extra_metrics] [--samples 96] [--repeats 3]
    .venv/bin/python bench/extra_metrics.py --shape 2b --dtype bfloat16 --device cuda    # on a GPU

Encoding and model run in one process, one after the other. The settings take turns, so that a change of the machine's
load meets all of them; the smallest time of each counts. On a CPU, that is the time of the process's threads, which
depends less on other work of the machine than the wall-clock time. Ratios are to the pass with sample metrics alone.
"""

import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from common import parser, write
from extraction import LAYERS, TINY_LLAVA, load, prepare

from coincide.base.sections import Dtype, ReferenceModel
from coincide.dataset.images import image_names
from coincide.extraction.encoding import Encoded, group_by_images
from coincide.extraction.extractor import build_extractor, try_sharing

SMALL = {
    "vocabulary": 1000, "image_size": 224, "patch_size": 14, "vision_hidden": 64, "vision_layers": 2,
    "hidden": 128, "layers": 12, "heads": 4,
}  # fmt: skip
SMALL_LAYERS = [1, 3, 5, 7, 9]
SETTINGS = {
    "activations": (False, []),
    "sample metrics": (True, []),
    "loss_no_image": (True, ["loss_no_image"]),
    "question_losses": (True, ["question_losses"]),
    "vision_features": (True, ["vision_features"]),
    "all three": (True, ["loss_no_image", "question_losses", "vision_features"]),
}


def read(model, processor, samples, images, layers, sample_metrics, extra_metrics):
    """Read the samples; returns (seconds, tokens computed)."""
    reference = ReferenceModel(
        name="benchmark", layers=layers, max_tokens=4096, sample_metrics=sample_metrics, extra_metrics=extra_metrics
    )
    extractor, encoder = build_extractor(model, processor, images, reference)
    try_sharing(extractor, encoder, samples)
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    tokens, began = extractor.tokens, clock()
    groups = [[x for x in encoder(group) if isinstance(x, Encoded)] for group in group_by_images(samples)]
    for _ in extractor.read(groups):
        pass
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began, extractor.tokens - tokens


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=96)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--shape", choices=["small", "2b"], default="small")
    arguments.add_argument("--dtype", choices=get_args(Dtype), default="float32")
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    shape, layers = {"small": (SMALL, SMALL_LAYERS), "2b": (TINY_LLAVA, LAYERS)}[options.shape]
    with tempfile.TemporaryDirectory() as folder:
        model_folder, samples, images = prepare(Path(folder), shape, options.samples, options.device)
        model, processor = load(model_folder, "sdpa", options.dtype, options.device)
        read(model, processor, samples[:16], images, layers, True, SETTINGS["all three"][1])
        times = {name: [] for name in SETTINGS}
        tokens = {}
        for _ in range(options.repeats):
            for name, setting in SETTINGS.items():
                seconds, tokens[name] = read(model, processor, samples, images, layers, *setting)
                times[name].append(seconds)
    names = {name for sample in samples for name in image_names(sample.record)}
    text_only = sum(not image_names(sample.record) for sample in samples)
    print(f"{len(samples)} samples of {len(names)} images, {text_only} of them text-only; {options.dtype}")
    print("| pass | seconds | times sample metrics | tokens | times |\n| --- | --- | --- | --- | --- |")
    rows = []
    for name, seconds in times.items():
        row = {
            "pass": name, "seconds": min(seconds), "ratio": min(seconds) / min(times["sample metrics"]),
            "tokens": tokens[name], "token_ratio": tokens[name] / tokens["sample metrics"], "all_seconds": seconds,
        }  # fmt: skip
        rows.append(row)
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['tokens']:,} | {row['token_ratio']:.2f} |")
    write(
        options.output,
        None,
        samples=len(samples),
        images=len(names),
        text_only=text_only,
        shape=shape,
        dtype=options.dtype,
        device=options.device,
        rows=rows,
    )


if __name__ == "__main__":
    main()
