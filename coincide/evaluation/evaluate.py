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
from coincide.base.files import in_workflow_folder, replacing
from coincide.base.sections import Checkpoint, Evaluation
from coincide.evaluation.results import EvaluationError, read_scores
from coincide.models.families import Family, family_of
from coincide.models.loading import is_adapter, load_config, load_model

log = logging.getLogger(__name__)

BATCHED = "coincide"  # the model of this project (see `coincide.evaluation.lmms_model`)
ACCEPT_DTYPE = (BATCHED, "llava_hf")  # lmms-eval's other models choose the dtype themselves


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
        EvaluationError: evaluation.backend does not evaluate this model, lmms-eval failed, or a task has no score.
    """
    # The workflow evaluates folders; the config of a hub name is left to lmms-eval.
    family = family_of(load_config(Checkpoint.of(model))) if Path(model).is_dir() else None
    _check_backend(evaluation, family)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder = Path(temporary)
        if is_adapter(model):
            model = _merge_adapter(model, evaluation.dtype, folder / "merged")
        command = _command(model, tasks, evaluation, family, folder)
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


def _check_backend(evaluation: Evaluation, family: Family | None) -> None:
    if evaluation.backend != BATCHED or family is None or family.lmms_model == BATCHED:
        return
    advice = f"set it to {family.lmms_model}" if family.lmms_model else "set it to a model of lmms-eval that does"
    raise EvaluationError(f"evaluation.backend: {BATCHED} does not evaluate {family.model_type} models; {advice}")


def _model_arguments(model, evaluation, family):
    """Arguments of lmms-eval's model."""
    device = pick_device(evaluation.device)
    arguments = {"pretrained": model, "device": device, "device_map": device}
    if evaluation.backend in ACCEPT_DTYPE:
        arguments["dtype"] = evaluation.dtype
    if family and evaluation.backend == family.lmms_model:
        arguments |= family.lmms_arguments
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _command(model, tasks, evaluation, family, folder):
    """Command line of lmms-eval; results go to the folder."""
    command = [evaluation.python or sys.executable, "-m", "lmms_eval"]
    command += ["--model", evaluation.backend, "--model_args", _model_arguments(model, evaluation, family)]
    command += ["--tasks", ",".join(tasks), "--batch_size", str(evaluation.batch_size)]
    command += ["--output_path", str(folder), "--log_samples"]
    if evaluation.include_path:
        command += ["--include_path", in_workflow_folder(evaluation.include_path)]
    if evaluation.limit:
        command += ["--limit", str(evaluation.limit)]
    return command


def _merge_adapter(adapter, dtype, folder):
    """Write an adapter merged into its base model: lmms-eval's models do not load adapters."""
    model, processor = load_model(adapter, dtype=dtype, device="cpu")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
