"""Evaluation of a model: runs lmms-eval's tasks on it."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coincide.base.devices import pick_device
from coincide.base.files import replacing
from coincide.base.sections import Evaluation
from coincide.evaluation.results import EvaluationError, read_scores
from coincide.models.loading import is_adapter, load_model

log = logging.getLogger(__name__)


def evaluate(
    model: Path | str,
    tasks: Sequence[str],
    evaluation: Evaluation,
    *,
    output: Path | str,
    scratch: Path | str | None = None,
) -> None:
    """Run lmms-eval's command line on a model and keep its results.

    Args:
        model: folder or hub name.
        tasks: names of lmms-eval tasks or groups.
        evaluation: Evaluation section of the config.
        output: folder to write: results.json, and samples/<task>.jsonl with every answer.
        scratch: folder for temporary files; None: the system's.

    Raises:
        EvaluationError: lmms-eval failed, or a task has no score.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder = Path(temporary)
        if is_adapter(model):
            model = _merge_adapter(model, evaluation.dtype, folder / "merged")
        command = _command(model, tasks, evaluation, folder)
        log.info("running %s", " ".join(command))
        code = subprocess.run(command, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}).returncode
        results = sorted(folder.rglob("*_results.json"))
        if code or not results:
            raise EvaluationError(
                f"lmms-eval failed with exit code {code} and wrote {len(results)} results files; "
                "its output is printed above"
            )
        with replacing(output) as unfinished:
            (unfinished / "samples").mkdir(parents=True)
            shutil.copyfile(results[-1], unfinished / "results.json")
            for path in folder.rglob("*_samples_*.jsonl"):
                task = path.stem.split("_samples_", 1)[1]
                shutil.copyfile(path, unfinished / "samples" / f"{task}.jsonl")
            read_scores(unfinished / "results.json")  # raises if a task has no score


def _command(model, tasks, evaluation, folder):
    """Command line of lmms-eval; results go to the folder."""
    device = pick_device(evaluation.device)
    model_args = f"pretrained={model},device={device},device_map={device},dtype={evaluation.dtype}"
    command = [evaluation.python or sys.executable, "-m", "lmms_eval"]
    command += ["--model", evaluation.backend, "--model_args", model_args]
    command += ["--tasks", ",".join(tasks), "--batch_size", str(evaluation.batch_size)]
    command += ["--output_path", str(folder), "--log_samples"]
    if evaluation.include_path:
        command += ["--include_path", evaluation.include_path]
    if evaluation.limit:
        command += ["--limit", str(evaluation.limit)]
    return command


def _merge_adapter(adapter, dtype, folder):
    """Write an adapter merged into its base model: lmms-eval's models do not load adapters."""
    model, processor = load_model(adapter, dtype=dtype, device="cpu")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
