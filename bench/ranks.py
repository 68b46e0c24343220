"""Unique memory (USS) of four processes on one node that train one model, now and as earlier versions trained.

    python bench/ranks.py [--output bench/results/ranks]       # five minutes on two cores; 11 GB of memory

Unique memory is what a process would give back if it ended; pages that processes share, such as those of a mapped file,
do not count. The processes train LoRA adapters of a model of some hundred million parameters over gloo. Before: each
loads the base model in float32, torch's DistributedDataParallel broadcasts all weights at the start, and the records
are Python lists. Now: the base model is read in the dtype of the computation, frozen weights are left out of the
broadcast, and the records are a table that is mapped into memory.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from common import parser, write
from memory import make_records
from models import write_model

from coincide.base.sections import Lora, Training
from coincide.dataset.record_table import write_record_table
from coincide.training import finetune as module
from coincide.training import worker

HERE = Path(__file__).resolve().parent
RECORDS, PROCESSES, STEPS = 100_000, 4, 3
DECODER = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20,
    "num_attention_heads": 16, "num_key_value_heads": 16, "use_qkv_bias": True, "partial_rotary_factor": 0.25,
}  # fmt: skip
TOWER = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 56, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
REPORTS, BEFORE = "BENCH_REPORTS", "BENCH_BEFORE"  # in the environment of the processes


# --- one process ---------------------------------------------------------------------------------------------------


def unique_memory():
    """Bytes that this process would give back if it ended."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, flags=re.M)))


def report(self, args, state, control, **kwargs):
    """Write the memory after the last step to a file of this process."""
    if state.global_step == state.max_steps:
        (Path(os.environ[REPORTS]) / f"{os.environ['RANK']}.json").write_text(json.dumps(unique_memory()))


def train_as_before():
    """Undo what has been changed since."""
    load, table = module.load_model, worker.RecordTable

    def load_in_float32(checkpoint, *, dtype, **options):
        return load(checkpoint, dtype="float32", **options)

    module.load_model = load_in_float32
    module.set_dtypes = module.leave_frozen_weights = lambda *arguments: None
    worker.RecordTable = lambda path: list(table(path))


# --- all of them ---------------------------------------------------------------------------------------------------


def measure(folder, records, name):
    """Train in PROCESSES processes.

    Args:
        folder: with the model.
        records: RecordTable.
        name: "before" or "now".
    """
    reports = folder / name
    reports.mkdir()
    os.environ |= {REPORTS: str(reports), "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    os.environ.pop(BEFORE, None)
    if name == "before":
        os.environ[BEFORE] = "1"
    training = Training(
        epochs=STEPS * PROCESSES / len(records),
        batch_size=PROCESSES,
        learning_rate=1e-4,
        dtype="bfloat16",
        lora=Lora(r=16, alpha=32, dropout=0.0),
        device="cpu",
        processes=PROCESSES,
    )
    began, output = time.perf_counter(), folder / f"adapter-{name}"
    module.finetune(
        folder / "model", records, folder, training, seed=0, output=output, checkpoints=folder / f"checkpoints-{name}"
    )
    log = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    return {
        "unique_bytes_per_rank": [json.loads((reports / f"{rank}.json").read_text()) for rank in range(PROCESSES)],
        "seconds": time.perf_counter() - began,
        "loss": log[-1]["train_loss"],
    }


def main():
    """Run both trainings and write the figures."""
    output = parser(__doc__).parse_args().output
    launch = module.launch
    module.launch = lambda _, *arguments, **options: launch("ranks", *arguments, **options)
    results = {"processes": PROCESSES, "records": RECORDS, "steps": STEPS, "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = list(make_records(RECORDS))
        for record in records:  # without images, which take time and no memory that lasts
            del record["image"]
            record["conversations"][0]["value"] = record["conversations"][0]["value"].removeprefix("<image>\n")
        texts = [turn["value"] for record in records[:1000] for turn in record["conversations"]]
        table = write_record_table(records, folder / "records.arrow")
        del records
        results["parameters"] = write_model(folder / "model", texts, DECODER, TOWER)
        for name in ("before", "now"):
            results[name] = measure(folder, table, name)
            print(name, json.dumps(results[name]), flush=True)
    totals = {name: sum(results[name]["unique_bytes_per_rank"]) for name in ("before", "now")}
    results["before_over_now"] = totals["before"] / totals["now"]
    write(output, None, **results)


if __name__ == "__main__":
    if REPORTS in os.environ:
        if BEFORE in os.environ:
            train_as_before()
        module._ProgressLines.on_step_end = report
        worker.main(sys.argv[1])
    else:
        main()
