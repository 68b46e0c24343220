"""The plan of a run, and what the logs of its jobs tell.

The workflow writes plan.json when it starts: every job with its log and its outputs. Each job writes a
line into its log when it starts and one when it ends (`coincide.jobs`), and touches the log while it
lives.
"""

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from coincide.jobs import ENDED, HEARTBEAT, STARTED
from coincide.tables import write_json

PLAN = "plan.json"
SILENT = 6 * HEARTBEAT  # seconds after which a job that does not touch its log counts as dead
PROGRESS = re.compile(r"^.+: ([\d,]+) of ([\d,]+) (\w+), ([\d,.]+)/s, ([\d:]+|\?) left$")
EXECUTOR_NAME = re.compile(r"(^|_)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
CANCELLED_WITHIN = 120  # seconds


@dataclass(frozen=True)
class Attempt:
    """One start of a job: what its log says of it.

    Attributes:
        started: time, seconds since 1970.
        host: where.
        slurm: job id, <array>_<task> for a task of an array; None outside Slurm.
        slurm_run: name that all jobs of one start of Snakemake have in Slurm.
        gpus: number of devices it was given.
        seconds: how long it has lived.
        state: done, failed, terminated (by SIGTERM), orphaned (its Snakemake was gone), running, or
            silent: it ended without a word.
        rate: units of work a second, from its last line of progress.
        left: seconds left by that line.
        last_line: of its output.
    """

    started: float
    host: str
    slurm: str | None
    slurm_run: str | None
    gpus: int
    seconds: float
    state: str
    rate: float | None
    left: float | None
    last_line: str


def write_plan(folder, jobs):
    """Write what a run is going to do.

    Args:
        folder: of the run.
        jobs: (rule, log, outputs, to_run) of each job.
    """
    rows = [
        {"rule": rule, "log": str(log), "outputs": [str(o) for o in outputs], "to_run": bool(to_run)}
        for rule, log, outputs, to_run in jobs
    ]
    write_json({"written": time.time(), "jobs": rows}, Path(folder) / PLAN)


def attempts(log):
    """Every attempt that a job's log tells of, oldest first: list of Attempt."""
    log = Path(log)
    try:
        lines, touched = log.read_text(errors="replace").splitlines(), log.stat().st_mtime
    except OSError:
        return []
    starts = [i for i, line in enumerate(lines) if line.startswith(STARTED)]
    found = []
    for first, last in zip(starts, [*starts[1:], len(lines)]):
        start, part = json.loads(lines[first].removeprefix(STARTED)), lines[first + 1 : last]
        end = next((json.loads(line.removeprefix(ENDED)) for line in part if line.startswith(ENDED)), None)
        part = [line for line in part if line.strip() and not line.startswith(ENDED)]
        alive = end is None and last == len(lines) and time.time() - touched < SILENT
        rate = left = None
        if progress := next((m for m in map(PROGRESS.match, reversed(part)) if m), None):
            done, total, rate = (float(progress[i].replace(",", "")) for i in (1, 2, 4))
            left = (total - done) / rate if rate else None
        if end:
            state, seconds = end["state"], end["seconds"]
        else:
            state = "running" if alive else "silent"
            seconds = max(0.0, (time.time() if alive else touched) - start["started"])
        found.append(
            Attempt(
                start["started"], start["host"], start["slurm"], start["slurm_run"], start["gpus"], seconds, state,
                rate, left, part[-1] if part else "",
            )
        )  # fmt: skip
    return found


def end_orphans(folder):
    """Cancel what a killed Snakemake left in Slurm's queue, for who holds the run's lock now.

    Left alone, these jobs would write the same files as the ones that are submitted anew, and one
    that fails late would take a file away that is complete by then.

    Returns:
        names of the runs whose jobs were cancelled.

    Raises:
        RuntimeError: they do not end.
    """
    plan = Path(folder) / PLAN
    if not plan.exists() or not shutil.which("scancel"):
        return []
    jobs = json.loads(plan.read_text())["jobs"]
    names = {a.slurm_run for job in jobs if job["log"] for a in attempts(job["log"])[-1:]} - {None}
    # the executor names its jobs by a UUID: nobody's own job, in which a run may have been started, is touched
    names = [name for name in sorted(names) if EXECUTOR_NAME.search(name) and _in_queue(name)]
    if names:
        subprocess.run(["scancel", f"--name={','.join(names)}"], check=False)
        deadline = time.monotonic() + CANCELLED_WITHIN
        while any(map(_in_queue, names)):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Slurm jobs that an earlier start left behind do not end: scancel --name={names[0]}"
                )
            time.sleep(1)
    return names


def _in_queue(name):
    listed = subprocess.run(["squeue", "-h", f"--name={name}", "-o", "%i"], text=True, capture_output=True, check=False)
    return bool(listed.stdout.strip())
