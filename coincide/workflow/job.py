"""Preparation of a job: its log, its threads, its GPUs, and its end when the workflow that started it is gone."""

import atexit
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from coincide.base.errors import UserError
from coincide.base.files import WORKFLOW_FOLDER
from coincide.workflow.gpu_lease import lease_gpus

if TYPE_CHECKING:
    from coincide.base.sections import Config

SHELLS = {"sh", "bash", "dash", "zsh", "ksh"}
HEARTBEAT = 10  # seconds between touches of a job's log while the job is alive
# Start of the lines of a log that `coincide.workflow.plan` reads; JSON follows.
STARTED, ENDED = "== started ", "== ended "


def offer_package(folder: str | Path) -> None:
    """Make the folder of the workflow known to all programs that this process starts, in any environment.

    Python imports this package from there, and paths of the config are looked up there (`in_workflow_folder`).
    """
    os.environ[WORKFLOW_FOLDER] = str(folder)
    current = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(folder), *filter(None, current)]))


def start(snakemake: Any) -> "Config":
    """Prepare the job of a script and return the config of its run.

    Args:
        snakemake: the object that Snakemake defines in a script.
    """
    resources = snakemake.resources
    prepare(snakemake.log[0], snakemake.threads, gpus=resources.get("gpu", 0) // resources.get("nodes", 1))
    from coincide.base.sections import Config

    # a job without the wildcard `run` builds resources that all runs share
    run = snakemake.wildcards.get("run", next(iter(snakemake.config)))
    config = Config.model_validate(snakemake.config[run])
    if checked := snakemake.input.get("preflight"):
        pin_revisions(config, checked)
    return config


def pin_revisions(config: "Config", preflight: str | Path) -> None:
    """Set the revision of every model to the commit that the check before the first job resolved.

    Args:
        config: changed in place.
        preflight: preflight.json of the run.
    """
    set_revisions(config, json.loads(Path(preflight).read_text())["models"])


def set_revisions(config: "Config", models: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the revisions of models.

    Args:
        config: changed in place.
        models: section -> name and revision; sections with another name are left as they are.
    """
    for section, facts in models.items():
        model = getattr(config, section)
        if facts["revision"] and facts["name"] == model.name:
            model.revision = facts["revision"]


def prepare(log: str | Path, threads: int, gpus: int | None = None) -> None:
    """Prepare a job: redirect its output to its log, limit its threads, lease its GPUs, and end it with its workflow.

    Args:
        log: file that receives all output of the job and of the programs that it starts.
        threads: for numerical libraries.
        gpus: number of GPUs on this machine; 0: the job sees none; None: those that are visible, without a lease.

    Raises:
        LeaseError: the machine has fewer GPUs.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "COINCIDE_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _redirect_output(Path(log))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if gpus == 0:
        lease_gpus(0)
    _AttemptRecorder(Path(log), gpus or _count_gpus()).begin()
    if gpus:
        lease_gpus(gpus)  # may wait; the attempt has begun, so that the job ends with its workflow meanwhile


def _redirect_output(log):
    """Send stdout and stderr, at the level of file descriptors, to a new file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())


class _AttemptRecorder:
    """Records in the log when this attempt starts, that it is alive, and how it ends.

    Until the attempt succeeds, a hard link keeps the log, because Snakemake deletes the log before it retries.
    """

    def __init__(self, log, gpus):
        self.log, self.gpus, self.started, self.state = log, gpus, time.time(), "done"
        self.hard_link = log.with_name(f".{log.name}.{self.started * 1e6:.0f}")

    def begin(self):
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(self.log, self.hard_link)
        self._write_line(
            STARTED,
            {
                "started": self.started,
                "host": os.uname().nodename,
                "pid": os.getpid(),
                "slurm": _slurm_job(),
                "gpus": self.gpus,
            },
        )
        atexit.register(self.end)
        sys.excepthook = self._on_exception
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._watch, args=(_workflow_process(),), daemon=True).start()

    def end(self):
        self._write_line(ENDED, {"state": self.state, "seconds": round(time.time() - self.started, 2)})
        if self.state == "done":
            self.hard_link.unlink(missing_ok=True)

    def _write_line(self, mark, facts):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        print(mark + json.dumps(facts), file=sys.stderr, flush=True)

    def _on_exception(self, kind, error, traceback):
        self.state = "terminated" if issubclass(kind, KeyboardInterrupt) else "failed"
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    def _on_sigterm(self, number, frame):
        # an exception, so that incomplete files are removed on the way out
        self.state = "terminated"
        raise SystemExit(128 + number)

    def _watch(self, workflow):
        """Touch the log while the job is alive, and end the job when the workflow process is gone.

        After SIGKILL of the workflow its jobs keep running. The next start would run them a second time.
        """
        touched = time.monotonic()
        while workflow is None or _is_alive(workflow):
            time.sleep(1)
            if time.monotonic() - touched >= HEARTBEAT:
                touched = time.monotonic()
                with contextlib.suppress(OSError):  # a file system that is temporarily unavailable
                    os.utime(self.log)
        print("the workflow that started this job is gone; ending the job", file=sys.stderr, flush=True)
        self.state = "orphaned"
        self.end()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)


def _slurm_job():
    """Id of the Slurm job that this process runs in, <array>_<task> for an array task; None outside Slurm."""
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{task}"
    return os.environ.get("SLURM_JOB_ID")


def _count_gpus():
    """Number of devices in CUDA_VISIBLE_DEVICES."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return sum(device.strip() not in ("", "-1") for device in devices)


def _workflow_process():
    """The process that started this job, without shells in between; None if it cannot be determined."""
    try:
        parent = next((p for p in psutil.Process().parents() if p.name() not in SHELLS), None)
    except psutil.Error:
        return None
    return None if parent is None or parent.pid == 1 else parent


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
