"""The lock that a running workflow holds on the folder of a run."""

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from coincide.base.errors import UserError

_locked_files: list[IO[str]] = []  # kept open until this process ends: closing a file releases its lock


class RunIsLocked(UserError):
    """Another process is working on the same run."""


def hold_run(folder: str | Path) -> None:
    """Lock the folder of a run until this process ends, even by SIGKILL.

    On a file system without locks, a warning is logged instead.

    Raises:
        RunIsLocked: another process holds the lock; the message names it.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115 - must stay open to keep the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            logging.warning("%s cannot be locked (%s); make sure that no second run is started on it", folder, error)
            return
        file.seek(0)
        process = file.read().strip() or "another process"
        raise RunIsLocked(f"{folder} is in use by {process}; wait until it ends, or stop it first") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _locked_files.append(file)


def holder(folder: str | Path) -> str | None:
    """The process that holds the lock of a run, as `hold_run` describes it (pid, host, time); None if there is none."""
    path = Path(folder) / ".lock"
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return path.read_text().strip() or "another process"
    return None
