"""Queries to Slurm: jobs that a killed Snakemake left in the queue, and the reason why a job ended."""

import re
import shutil
import subprocess
import time
from pathlib import Path

from coincide.base.errors import UserError
from coincide.workflow.plan import read_plan

SLURM_LOGS = ".snakemake/slurm_logs"  # folder of the logs that Snakemake's Slurm executor writes
# The Slurm executor gives all jobs of one start this name, and prints it.
SLURM_RUN_ID = re.compile(r"^SLURM run ID: (\S*[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$", re.MULTILINE)
CANCEL_TIMEOUT = 120  # seconds
SACCT_TIMEOUT = 20  # seconds
# Cause -> pattern in Slurm's log of the job, or job state of sacct. The first match counts: Slurm writes
# "CANCELLED AT … DUE TO TIME LIMIT", so the plain "CANCELLED" is last.
CAUSES = {
    "time limit": r"DUE TO TIME LIMIT|TIMEOUT",
    "out of memory": r"oom[-_]kill|Out Of Memory|OUT_OF_MEMORY|DUE TO MEMORY|exceeded memory limit",
    "node failure": r"DUE TO NODE FAILURE|NODE_FAIL",
    "preempted": r"DUE TO PREEMPTION|PREEMPTED",
    "requeued": r"DUE TO JOB REQUEUE|REQUEUED",
    "cancelled": r"CANCELLED",
}


class OrphanedJobsError(UserError):
    """Slurm jobs of an earlier start that cannot be cancelled."""


def cancel_orphans(folder: str | Path) -> list[str]:
    """Cancel the Slurm jobs that a killed Snakemake left in the queue. The caller must hold the lock of the run.

    If these jobs kept running, they would write the same files as the newly submitted jobs, and a late failure would
    delete a file that is complete by then.

    Returns:
        job names (one per earlier start) that were cancelled.

    Raises:
        OrphanedJobsError: the jobs are still in the queue after CANCEL_TIMEOUT seconds.
    """
    if not shutil.which("scancel"):
        return []
    try:
        snakemake_log = Path(read_plan(folder)["snakemake_log"]).read_text(errors="replace")
    except OSError:  # the run has never started, or Snakemake's log was deleted
        return []
    names = [name for name in sorted(set(SLURM_RUN_ID.findall(snakemake_log))) if _in_queue(name)]
    if not names:
        return []
    cancel = ["scancel", f"--name={','.join(names)}"]
    subprocess.run(cancel, check=False)
    deadline = time.monotonic() + CANCEL_TIMEOUT
    while any(map(_in_queue, names)):
        if time.monotonic() > deadline:
            raise OrphanedJobsError(
                f"{folder}: Slurm jobs of an earlier start are still in the queue {CANCEL_TIMEOUT} s after they were "
                f"cancelled; run `{' '.join(cancel)}`, wait until they are gone, and start again"
            )
        time.sleep(1)
    return names


def _in_queue(name):
    """Whether squeue lists a job of this name."""
    command = ["squeue", "-h", f"--name={name}", "-o", "%i"]
    return bool(subprocess.run(command, text=True, capture_output=True, check=False).stdout.strip())


def slurm_log(job: str | None, folder: str | Path = SLURM_LOGS) -> Path | None:
    """The executor's log of a Slurm job, or None."""
    return next(iter(sorted(Path(folder).glob(f"**/{job}.log"))), None) if job else None


def slurm_cause(job: str | None, log: Path | None) -> str | None:
    """Why Slurm ended a job, one of CAUSES, from its log or else from Slurm's accounting; None if neither tells."""
    text = log.read_text(errors="replace") if log else ""
    return _matching_cause(text) or _matching_cause(_sacct_state(job))


def _matching_cause(text):
    return next((cause for cause, pattern in CAUSES.items() if re.search(pattern, text)), None)


def _sacct_state(job):
    """State of a job in Slurm's accounting; empty where there is no accounting."""
    if not job or not shutil.which("sacct"):
        return ""
    command = ["sacct", "-n", "-P", "-j", job, "--format=State"]
    try:
        return subprocess.run(command, text=True, capture_output=True, timeout=SACCT_TIMEOUT, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
