"""The lock that a running workflow holds on a run's folder."""

import errno
import fcntl
import logging
import os
import time
from pathlib import Path

from coincide.base.errors import UserError

_held = []  # the lock files of this process, open as long as it lives


class RunIsLocked(UserError):
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
