"""What every job of the workflow does first, and the lock that a run holds."""

import errno
import fcntl
import logging
import os
import sys
import threading
import time
from pathlib import Path

import psutil

SHELLS = {"sh", "bash", "dash", "zsh", "ksh"}
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


def start(log, threads):
    """Prepare a job: output goes to its log, threads are bounded, and it ends with its workflow.

    Args:
        log: file that takes everything the job prints, also from the programs it starts.
        threads: for numerical libraries.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.excepthook = _report
    _end_with_parent()


def _report(kind, error, traceback):
    # What the user can mend is said in one line, what only we can mend with its traceback.
    if isinstance(error, ValueError | OSError | ImportError) and kind.__module__.startswith("coincide"):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _end_with_parent():
    """End this process when the workflow that started it is gone.

    A workflow killed with SIGKILL leaves its jobs behind, and the next one would start them again
    beside them.
    """
    try:
        parent = next((p for p in psutil.Process().parents() if p.name() not in SHELLS), None)
    except psutil.Error:
        return
    if parent is None or parent.pid == 1:
        return

    def watch():
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
        print("the workflow that started this job is gone: ending", file=sys.stderr, flush=True)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
