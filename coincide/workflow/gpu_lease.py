"""Leases of the GPUs of this machine: no two jobs of a user use the same one.

A lease is a lock (flock) on a file per GPU. The kernel releases it when the job ends, however it ends. It is taken
before torch is loaded, because CUDA reads CUDA_VISIBLE_DEVICES only once.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from coincide.base.errors import UserError
from coincide.base.gpus import Gpu, machine_gpus

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between attempts
WAIT_MESSAGE = 60  # seconds between messages of a job that waits
_leased_files: list[IO[str]] = []  # kept open until this process ends: closing a file releases its lock


class LeaseError(UserError):
    """More GPUs than this machine has."""


def lease_gpus(count: int, folder: str | Path | None = None, *, gpus: Sequence[Gpu] | None = None) -> list[str]:
    """Lease GPUs until this process ends, and set CUDA_VISIBLE_DEVICES to them. Waits until enough are free.

    A job that leases none sees no GPU. GPUs that Slurm assigned to this job only are used without a lease.

    Args:
        count: number of GPUs.
        folder: of the lock files; None: a folder of the user's in the temporary folder of the machine.
        gpus: the GPUs to choose from; None: those of this machine.

    Returns:
        names of the leased GPUs.

    Raises:
        LeaseError: the machine has fewer GPUs.
    """
    gpus = list(machine_gpus() if gpus is None else gpus)
    if not gpus and not count:
        return []
    if "SLURM_JOB_ID" in os.environ and len(gpus) <= count:
        return [gpu.name for gpu in gpus]  # Slurm assigned them to this job only
    if len(gpus) < count:
        raise LeaseError(f"the job needs {count} GPUs, but {len(gpus)} are visible on {os.uname().nodename}")
    names = [gpu.name for gpu in _wait_for(count, gpus, Path(folder or _default_folder()))] if count else []
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    if names:
        log.info("GPUs of this job: %s", ", ".join(names))
    return names


def _default_folder():
    """A folder that all runs of the user on this machine share, and nobody else writes to."""
    return Path(tempfile.gettempdir()) / f"coincide-gpus-{os.getuid()}"


def _wait_for(count, gpus, folder):
    """Lock `count` of the GPUs; those with the lowest positions first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = told = time.monotonic()
    while True:
        # One process chooses at a time, so that two jobs that need several GPUs never each hold some of them.
        with open(folder / "choosing.lock", "w") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            chosen = _lock_free(count, gpus, folder)
        if chosen:
            return chosen
        if time.monotonic() - told >= WAIT_MESSAGE or told == started:
            log.info("waiting for %d of %d GPUs: other jobs use them", count, len(gpus))
            told = time.monotonic()
        time.sleep(POLL)


def _lock_free(count, gpus, folder):
    """Lock `count` free GPUs and return them; an empty list, and no lock, if fewer are free."""
    chosen, files = [], []
    for gpu in gpus:
        file = open(folder / f"{gpu.uuid or gpu.name}.lock", "a+")  # noqa: SIM115 - must stay open to keep the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        chosen.append(gpu)
        files.append(file)
        if len(chosen) == count:
            _leased_files.extend(files)
            return chosen
    for file in files:
        file.close()
    return []
