"""Peak memory and time of extraction and finetuning with a model of real size and random weights, on a CPU.

    .venv/bin/python bench/real_size.py [--output bench/results/real_size] [--samples 6] [--steps 3]

The model has the shape of TinyLLaVA-2.0B, the reference model of the paper: StableLM-2 1.6B (24 layers, h = 2,048) with
SigLIP so400m at 384 pixels, in bfloat16. Extraction reads the paper's five layers. Finetuning is the paper's: LoRA of
rank 128 and the projector, gradient checkpointing, here in batches of two. Each runs in a process of its own. Memory is
that of the process and its children, at its peak: unique (USS, what would be given back), and with a share of pages
that are mapped from files (PSS). Needs 5 GB of disk space.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from common import parser, write
from memory import make_records
from models import write_model
from PIL import Image

from coincide.base.sections import Lora, ReferenceModel, Training
from coincide.dataset.samples import Sample

GIB = 2**30
INTERVAL = 0.5  # seconds between two looks at the memory
BATCH_SIZE = 2


def make_data(folder, count):
    """Write LLaVA records and noise images of 640 x 480 pixels; return the records."""
    records = list(make_records(count))
    rng = np.random.default_rng(0)
    for record in records:
        path = folder / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(path)
    return records


def extraction(folder, records):
    """Read the activations of the records; return seconds of loading and of reading."""
    from coincide.extraction.activations import extract
    from coincide.extraction.encoding import loader_workers
    from coincide.extraction.extractor import load_reference

    reference = ReferenceModel(name=str(folder / "model"), layers=[3, 7, 11, 15, 19], dtype="bfloat16", device="cpu")
    began = time.perf_counter()
    model, processor = load_reference(reference)
    loaded = time.perf_counter()
    samples = [Sample(record["id"], i, record) for i, record in enumerate(records)]
    rejected = extract(
        model,
        processor,
        samples,
        folder / "images",
        reference,
        output=folder / "activations.parquet",
        workers=loader_workers("cpu"),
    )
    assert not rejected
    return {"seconds_to_load": loaded - began, "seconds": time.perf_counter() - loaded, "samples": len(samples)}


def finetuning(folder, records):
    """Train some steps; return the seconds of the whole and of a step, and the losses."""
    from coincide.training.finetune import finetune

    training = Training(
        batch_size=BATCH_SIZE,
        learning_rate=2e-4,
        projector_learning_rate=2e-5,
        dtype="bfloat16",
        max_tokens=2048,
        gradient_checkpointing=True,
        lora=Lora(),
        device="cpu",
        save_every=1000,
    )
    began = time.perf_counter()
    finetune(
        folder / "model",
        records,
        folder / "images",
        training,
        seed=0,
        output=folder / "adapter",
        checkpoints=folder / "checkpoints",
    )
    log = [json.loads(line) for line in (folder / "adapter/training_log.jsonl").read_text().splitlines()]
    steps = log[-1]["step"]
    return {
        "seconds": time.perf_counter() - began,
        "steps": steps,
        "seconds_per_step": log[-1]["train_runtime"] / steps,
        "loss": log[-1]["train_loss"],
        "batch_size": BATCH_SIZE,
    }


def measured(stage, folder):
    """Figures of a stage in a process of its own, with its peak memory in GiB."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    peak_unique = peak = 0
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            unique, proportional = memory_of(psutil.Process(process.pid))
            peak_unique, peak = max(peak_unique, unique), max(peak, proportional)
            time.sleep(INTERVAL)
        output = process.stdout.read()
    if process.returncode:
        sys.exit(f"{stage} failed")
    figures = json.loads(output.strip().splitlines()[-1])
    return figures | {"peak_unique_gib": peak_unique / GIB, "peak_gib": peak / GIB}


def memory_of(process):
    """(USS, PSS) of a process and its children, in bytes."""
    unique = proportional = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            info = member.memory_full_info()
        except psutil.Error:  # it has ended
            continue
        unique, proportional = unique + info.uss, proportional + info.pss
    return unique, proportional


def main():
    """Run both stages and write the figures."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=6, help="samples to read")
    arguments.add_argument("--steps", type=int, default=3, help="steps to train")
    arguments.add_argument("--stage", choices=["extraction", "finetuning"], help="run this stage here")
    arguments.add_argument("--folder", type=Path, help="with the model and the data, for --stage")
    options = arguments.parse_args()
    if options.stage:
        records = json.loads((options.folder / f"{options.stage}.json").read_text())
        print(json.dumps({"extraction": extraction, "finetuning": finetuning}[options.stage](options.folder, records)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = make_data(folder / "images", max(options.samples, options.steps * BATCH_SIZE))
        texts = [turn["value"] for record in records for turn in record["conversations"]]
        results = {"parameters": write_model(folder / "model", texts), "dtype": "bfloat16"}
        results["threads"] = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
        for stage, count in (("extraction", options.samples), ("finetuning", options.steps * BATCH_SIZE)):
            (folder / f"{stage}.json").write_text(json.dumps(records[:count]))
            results[stage] = measured(stage, folder)
            print(stage, json.dumps(results[stage]), flush=True)
    write(options.output, None, **results)


if __name__ == "__main__":
    main()
