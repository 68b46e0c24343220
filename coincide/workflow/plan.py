"""The plan of a run, and what the logs of its jobs tell.

The workflow writes plan.json when it starts: every job with its log and its outputs. Each job writes a
line into its log when it starts and one when it ends (`coincide.workflow.job`), and touches the log while it
lives. Snakemake removes the log before it tries again; a hard link beside it keeps that of an attempt
that did not end well.
"""

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from coincide.base.files import write_json
from coincide.base.progress import rate_and_left
from coincide.workflow.job import ENDED, HEARTBEAT, STARTED

PLAN = "plan.json"
SILENT = 6 * HEARTBEAT  # seconds after which a job that does not touch its log counts as dead
RUN_NAME = re.compile(r"^SLURM run ID: (\S*[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$", re.MULTILINE)
CANCELLED_WITHIN = 120  # seconds


@dataclass(frozen=True)
class Attempt:
    """One start of a job: what its log says of it.

    Attributes:
        started: time, seconds since 1970.
        host: where.
        slurm: job id, <array>_<task> for a task of an array; None outside Slurm.
        gpus: number of devices it was given.
        seconds: how long it has lived.
        state: done, failed, terminated (by SIGTERM), orphaned (its Snakemake was gone), running, or
            silent: it ended without a word.
        rate: units of work a second, from its last line of progress.
        left: seconds left by that line.
        last_line: of its output.
        log: file.
    """

    started: float
    host: str
    slurm: str | None
    gpus: int
    seconds: float
    state: str
    rate: float | None
    left: float | None
    last_line: str
    log: Path


def write_plans(folders, jobs, needs, snakemake_log):
    """Write what each run is going to do: its own jobs, and those whose results it needs.

    Args:
        folders: dict of a run's folder -> what others make for it (`Runs.shared`).
        jobs: (rule, log, outputs, to_run) of each job of all runs.
        needs: for each job, the numbers of the jobs it needs.
        snakemake_log: Snakemake's own log of this start.
    """
    for folder, shared in folders.items():
        wanted, new = set(), {i for i, job in enumerate(jobs) if _writes_into(folder, job)}
        while new:
            wanted |= new
            new = {before for i in new for before in needs[i]} - wanted
        rows = [
            {"rule": rule, "log": str(log), "outputs": [str(o) for o in outputs], "to_run": bool(to_run)}
            for rule, log, outputs, to_run in (jobs[i] for i in sorted(wanted))
        ]
        plan = {"written": time.time(), "snakemake_log": str(snakemake_log), "shared": shared, "jobs": rows}
        write_json(plan, Path(folder) / PLAN)


def _writes_into(folder, job):
    return any(Path(output).is_relative_to(folder) for output in job[2])


def read_plan(folder):
    """The plan of a run's last start: dict of written, snakemake_log, shared and jobs.

    Raises:
        FileNotFoundError: the run has never started.
    """
    return json.loads((Path(folder) / PLAN).read_text())


def attempts(log):
    """Every attempt at a job, oldest first, from its log and the logs of earlier ones: list of Attempt."""
    log = Path(log)
    found = [_attempt(path) for path in (*log.parent.glob(f".{log.name}.*"), log)]
    return sorted({a.started: a for a in found if a}.values(), key=lambda a: a.started)


def _attempt(log):
    try:
        lines, touched = log.read_text(errors="replace").splitlines(), log.stat().st_mtime
    except OSError:
        return None
    start, end = _facts(lines, STARTED), _facts(lines, ENDED)
    if start is None:
        return None
    lines = [line for line in lines if line.strip() and not line.startswith((STARTED, ENDED))]
    rate, left = next(filter(None, map(rate_and_left, reversed(lines))), (None, None))
    if end:
        state, seconds = end["state"], end["seconds"]
    else:
        state = "running" if time.time() - touched < SILENT else "silent"
        seconds = max(0.0, (time.time() if state == "running" else touched) - start["started"])
    return Attempt(
        start["started"], start["host"], start["slurm"], start["gpus"], seconds, state,
        rate, left, lines[-1] if lines else "", log,
    )  # fmt: skip


def _facts(lines, mark):
    """What the first line with a mark says, or None."""
    return next((json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)), None)


def cancel_orphans(folder):
    """Cancel what a killed Snakemake left in Slurm's queue, for who holds the run's lock now.

    Left alone, these jobs would write the same files as the ones that are submitted anew, and one
    that fails late would take a file away that is complete by then.

    Returns:
        names of the runs whose jobs were cancelled.

    Raises:
        RuntimeError: they do not end.
    """
    if not shutil.which("scancel"):
        return []
    try:
        said = Path(read_plan(folder)["snakemake_log"]).read_text(errors="replace")
    except OSError:  # it has never started, or Snakemake's log is gone
        return []
    # the executor gives all its jobs one name and says it
    names = [name for name in sorted(set(RUN_NAME.findall(said))) if _in_queue(name)]
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
