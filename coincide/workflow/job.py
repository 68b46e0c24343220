"""What every job of the workflow does first."""

import atexit
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from coincide.base.errors import UserError

SHELLS = {"sh", "bash", "dash", "zsh", "ksh"}
HEARTBEAT = 10  # seconds between touches of a job's log while the job lives
STARTED, ENDED = "== started ", "== ended "  # lines of a log that `coincide.workflow.plan` reads, followed by JSON


def offer_package(folder):
    """Let Python programs that this process starts import what is in a folder, whatever their environment."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(folder), *filter(None, before)]))


def start(snakemake):
    """Prepare the job of a script, and return the typed config of its run.

    Args:
        snakemake: what Snakemake gives a script.
    """
    prepare(snakemake.log[0], snakemake.threads)
    from coincide.base.sections import Config

    # a job without a run builds what all runs share
    run = snakemake.wildcards.get("run", next(iter(snakemake.config)))
    return Config.model_validate(snakemake.config[run])


def prepare(log, threads):
    """Prepare a job: output goes to its log, threads are bounded, and it ends with its workflow.

    The log gets a line at the start and at the end; it has a second name until the job is done, because
    Snakemake removes the first before it tries again.

    Args:
        log: file that takes everything the job prints, also from the programs it starts.
        threads: for numerical libraries.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "COINCIDE_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _Attempt(log).begin()


class _Attempt:
    """Says in the log when this job starts, that it lives, and how it ends."""

    def __init__(self, log):
        self.log, self.began, self.state = Path(log), time.time(), "done"
        self.second_name = self.log.with_name(f".{self.log.name}.{self.began * 1e6:.0f}")

    def begin(self):
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(self.log, self.second_name)
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        job = os.environ.get("SLURM_ARRAY_JOB_ID") if task else os.environ.get("SLURM_JOB_ID")
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self._say(
            STARTED,
            {
                "started": self.began,
                "host": os.uname().nodename,
                "pid": os.getpid(),
                "slurm": f"{job}_{task}" if task else job,
                "gpus": len([d for d in devices.split(",") if d.strip() and d.strip() != "-1"]),
            },
        )
        atexit.register(self.end)
        sys.excepthook = self._failed
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._live, args=(_parent(),), daemon=True).start()

    def end(self):
        self._say(ENDED, {"state": self.state, "seconds": round(time.time() - self.began, 2)})
        if self.state == "done":
            self.second_name.unlink(missing_ok=True)

    def _say(self, what, facts):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        print(what + json.dumps(facts), file=sys.stderr, flush=True)

    def _failed(self, kind, error, traceback):
        self.state = "terminated" if issubclass(kind, KeyboardInterrupt) else "failed"
        _report(kind, error, traceback)

    def _terminated(self, number, frame):
        # an exception, so that half-written files are removed on the way out
        self.state = "terminated"
        raise SystemExit(128 + number)

    def _live(self, parent):
        """Touch the log while the job lives; end the job when the workflow that started it is gone.

        A workflow killed with SIGKILL leaves its jobs behind, and the next one would start them again
        beside them.
        """
        touched = time.monotonic()
        while parent is None or _lives(parent):
            time.sleep(1)
            if time.monotonic() - touched >= HEARTBEAT:
                touched = time.monotonic()
                with contextlib.suppress(OSError):  # a file system that is away for a moment
                    os.utime(self.log)
        print("the workflow that started this job is gone: ending", file=sys.stderr, flush=True)
        self.state = "orphaned"
        self.end()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _report(kind, error, traceback):
    # What the user can mend is said in one line, what only we can mend with its traceback.
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _parent():
    """The process that started this job, or None where that cannot be told."""
    try:
        parent = next((p for p in psutil.Process().parents() if p.name() not in SHELLS), None)
    except psutil.Error:
        return None
    return None if parent is None or parent.pid == 1 else parent
