"""Evaluation with lmms-eval: running its tasks on a model."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coincide.devices import pick_device
from coincide.files import replacing
from coincide.models import is_adapter, load_model
from coincide.results import EvaluationError, read_scores

log = logging.getLogger(__name__)


def evaluate(
    model,
    tasks,
    *,
    output,
    backend,
    batch_size,
    device,
    dtype,
    python=None,
    include_path=None,
    limit=None,
    scratch=None,
):
    """Run lmms-eval's command line on a model and keep what it writes.

    Args:
        model: folder or hub name.
        tasks: names of lmms-eval tasks or groups.
        output: folder to write: results.json, and samples/<task>.jsonl with every answer.
        backend: lmms-eval's name of the model class: "coincide" (batched) or its own "llava_hf".
        batch_size: questions a batch; llava_hf takes 1 only.
        device, dtype: as in the config.
        python: Python of another environment that has lmms-eval; this one's if None.
        include_path: folder of further task files.
        limit: first questions of each task alone, for a look.
        scratch: folder for temporary files.

    Raises:
        EvaluationError: lmms-eval failed, or answered for fewer tasks than asked.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if is_adapter(model):
            model = _merged(model, dtype, Path(folder) / "merged")
        device = pick_device(device)
        arguments = f"pretrained={model},device={device},device_map={device},dtype={dtype}"
        command = [python or sys.executable, "-m", "lmms_eval", "--model", backend, "--model_args", arguments]
        command += ["--tasks", ",".join(tasks), "--batch_size", str(batch_size)]
        command += ["--output_path", folder, "--log_samples"]
        command += ["--include_path", str(include_path)] if include_path else []
        command += ["--limit", str(limit)] if limit else []
        log.info("running %s", " ".join(command))
        code = subprocess.run(command, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}).returncode
        results = sorted(Path(folder).rglob("*_results.json"))
        if code or not results:
            raise EvaluationError(f"lmms-eval ended with code {code} and {len(results)} results; its output is above")
        with replacing(output) as part:
            (part / "samples").mkdir(parents=True)
            shutil.copyfile(results[-1], part / "results.json")
            for path in Path(folder).rglob("*_samples_*.jsonl"):
                shutil.copyfile(path, part / "samples" / f"{path.stem.split('_samples_', 1)[1]}.jsonl")
            read_scores(part / "results.json")


def _merged(adapter, dtype, folder):
    """Write an adapter merged into its base model: lmms-eval's models take whole weights."""
    model, processor = load_model(adapter, dtype=dtype, device="cpu")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
