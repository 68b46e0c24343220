"""Evaluation of a model: runs lmms-eval's tasks on it."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coincide.base.devices import pick_device
from coincide.base.files import in_workflow_folder, replacing
from coincide.base.sections import Checkpoint, Evaluation
from coincide.evaluation import lmms_start
from coincide.evaluation.results import FAILED, EvaluationError, read_scores
from coincide.models.adapters import is_adapter
from coincide.models.families import FAMILIES

log = logging.getLogger(__name__)

PROJECT_MODEL = "coincide"  # the model of this project (see `coincide.evaluation.lmms_model`)
ACCEPT_DTYPE = ("llava_hf",)  # lmms-eval's other models choose the dtype themselves
UNUSED_AFTER = 6 * 3600  # seconds without use after which a merged model is removed


def evaluate(
    model: Path | str,
    tasks: Sequence[str],
    evaluation: Evaluation,
    *,
    output: Path | str,
    trust_remote_code: bool = False,
    may_fail: bool = False,
    scratch: Path | str | None = None,
) -> None:
    """Run lmms-eval's command line on a model and keep its results.

    Args:
        model: folder or hub name.
        tasks: names of lmms-eval tasks or groups.
        evaluation: Evaluation section of the config.
        output: folder to write: results.json, and samples/<task>.jsonl with every answer.
        trust_remote_code: run Python code that the model, or the base of an adapter, ships.
        may_fail: record in results.json that lmms-eval failed instead of raising: for tasks that need a judge.
        scratch: folder for temporary files, on this node; None: the system's (TMPDIR).

    Raises:
        EvaluationError: lmms-eval failed, or a task has no score.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as temporary, replacing(output) as unfinished:
        folder = Path(temporary)
        (unfinished / "samples").mkdir(parents=True)
        try:
            _run(model, tasks, evaluation, trust_remote_code, scratch, folder)
            _keep(folder, unfinished)
        except EvaluationError as error:
            if not may_fail:
                raise
            log.warning("%s", error)
            shutil.rmtree(unfinished / "samples")
            (unfinished / "samples").mkdir()
            failed = {"results": {}, FAILED: {"tasks": list(tasks), "reason": str(error)}}
            (unfinished / "results.json").write_text(json.dumps(failed, indent=2))


def _run(model, tasks, evaluation, trust_remote_code, scratch, folder):
    """Run lmms-eval; it writes to the folder."""
    with _loadable(model, evaluation, trust_remote_code, scratch) as name:
        arguments = _model_arguments(name, evaluation, trust_remote_code)
        command = _command(arguments, tasks, evaluation, folder)
        log.info("running %s", " ".join(command))
        code = subprocess.run(command, check=False, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}).returncode
    results = len(list(folder.rglob("*_results.json")))
    if code or not results:
        raise EvaluationError(
            f"lmms-eval failed with exit code {code} and wrote {results} results files; its output is printed above"
        )


def _keep(folder, unfinished):
    """Copy what lmms-eval wrote."""
    shutil.copyfile(sorted(folder.rglob("*_results.json"))[-1], unfinished / "results.json")
    for path in folder.rglob("*_samples_*.jsonl"):
        task = path.stem.split("_samples_", 1)[1]
        shutil.copyfile(path, unfinished / "samples" / f"{task}.jsonl")
    read_scores(unfinished / "results.json")  # raises if a task has no score


def _model_arguments(model, evaluation, trust_remote_code=False):
    """Arguments of lmms-eval's model.

    The classes of lmms-eval that the table of families names get a device as well; any other class gets the model and
    the config's `model_args`, unchanged.
    """
    device = pick_device(evaluation.device)
    arguments = {"pretrained": model}
    if evaluation.backend == PROJECT_MODEL:
        arguments |= {"device": device, "dtype": evaluation.dtype}
        if trust_remote_code:
            arguments["trust_remote_code"] = True
    families = [family for family in FAMILIES.values() if family.lmms_model == evaluation.backend]
    for family in families:
        arguments |= {"device": device, "device_map": device, **family.lmms_arguments}
    if evaluation.backend in ACCEPT_DTYPE:
        arguments["dtype"] = evaluation.dtype
    arguments |= evaluation.model_args
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _command(arguments, tasks, evaluation, folder):
    """Command line of lmms-eval; results go to the folder."""
    options = ["--model", evaluation.backend, "--model_args", arguments]
    options += ["--tasks", ",".join(tasks), "--batch_size", str(evaluation.batch_size)]
    options += ["--output_path", str(folder), "--log_samples"]
    if evaluation.include_path:
        options += ["--include_path", in_workflow_folder(evaluation.include_path)]
    if evaluation.limit:
        options += ["--limit", str(evaluation.limit)]
    return lmms_start.command(evaluation.python, "lmms_eval", *options)


@contextmanager
def _loadable(
    model: Path | str, evaluation: Evaluation, trust_remote_code: bool, scratch: Path | str | None
) -> Iterator[Path | str]:
    """A model in a form that the model of lmms-eval can load.

    The project's model merges adapters in memory. Those of lmms-eval do not load adapters: an adapter is merged on
    this node's scratch, once for all jobs that evaluate it there. A merged model that no job uses is removed later.
    """
    if evaluation.backend == PROJECT_MODEL or not is_adapter(model):
        yield model
        return
    # imported only here: they take seconds and 0.7 GB, which this process would hold while lmms-eval runs
    from coincide.models.loading import checkpoint_digest, load_model

    root = Path(scratch or tempfile.gettempdir()) / f"coincide-merged-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise EvaluationError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
    _remove_unused(root)
    checkpoint = Checkpoint(str(model), trust_remote_code=trust_remote_code)
    merged = root / _merge_digest(checkpoint_digest(checkpoint), evaluation.dtype)
    with open(merged.with_suffix(".lock"), "a") as lock:
        os.utime(lock.name)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not merged.exists():
            log.info("merging %s into its base model", model)
            merged_model, processor = load_model(checkpoint, dtype=evaluation.dtype, device="cpu")
            with replacing(merged) as unfinished:
                merged_model.save_pretrained(unfinished)
                processor.save_pretrained(unfinished)
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield merged
        finally:
            os.utime(lock.name)


def _merge_digest(digest, dtype):
    return hashlib.sha256(f"{digest} {dtype}".encode()).hexdigest()[:16]


def _remove_unused(root):
    """Remove merged models that no job has used for hours."""
    for path in root.glob("*.lock"):
        if time.time() - path.stat().st_mtime < UNUSED_AFTER:
            continue
        with open(path, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
