"""Evaluation with lmms-eval: running its tasks on a model."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coincide.base.devices import pick_device
from coincide.base.files import replacing
from coincide.evaluation.results import EvaluationError, read_scores
from coincide.models.loading import is_adapter, load_model

log = logging.getLogger(__name__)


def evaluate(model, tasks, evaluation, *, output, scratch=None):
    """Run lmms-eval's command line on a model and keep what it writes.

    Args:
        model: folder or hub name.
        tasks: names of lmms-eval tasks or groups.
        evaluation: Evaluation section of the config.
        output: folder to write: results.json, and samples/<task>.jsonl with every answer.
        scratch: folder for temporary files.

    Raises:
        EvaluationError: lmms-eval failed, or gave results for fewer tasks than requested.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if is_adapter(model):
            model = _merged(model, evaluation.dtype, Path(folder) / "merged")
        device = pick_device(evaluation.device)
        arguments = f"pretrained={model},device={device},device_map={device},dtype={evaluation.dtype}"
        command = [
            evaluation.python or sys.executable,
            "-m",
            "lmms_eval",
            "--model",
            evaluation.backend,
            "--model_args",
            arguments,
        ]
        command += ["--tasks", ",".join(tasks), "--batch_size", str(evaluation.batch_size)]
        command += ["--output_path", folder, "--log_samples"]
        command += ["--include_path", evaluation.include_path] if evaluation.include_path else []
        command += ["--limit", str(evaluation.limit)] if evaluation.limit else []
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
