"""What every job of the workflow does first, and the lock that a run holds."""

import atexit
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

SHELLS = {"sh", "bash", "dash", "zsh", "ksh"}
HEARTBEAT = 10  # seconds between touches of a job's log while the job lives
STARTED, ENDED = "== started ", "== ended "  # lines of a log that `coincide.plan` reads, followed by JSON
_held = []  # the lock file of this process, open as long as it lives


class RunIsLocked(RuntimeError):
    """Another process works on the same run."""


def hold_run(folder):
    """Hold a run's folder for this process, until it ends in whatever way.

    Raises:
        RunIsLocked: another process holds it; the message names it.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115 - stays open: the lock lives as long as the file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            logging.warning("%s cannot be locked (%s): take care not to start a second run on it", folder, error)
            return
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RunIsLocked(
            f"{folder} is being worked on by {holder}: wait for it, or end it before you start again"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held.append(file)


def holder(folder):
    """Who holds a run's folder, or None."""
    path = Path(folder) / ".lock"
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return path.read_text().strip() or "another process"
    return None


def offer_package(folder):
    """Let Python programs that this process starts import what is in a folder, whatever their environment."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(folder), *filter(None, before)]))


def start(log, threads):
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
    if isinstance(error, ValueError | OSError | ImportError) and kind.__module__.startswith("coincide"):
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
