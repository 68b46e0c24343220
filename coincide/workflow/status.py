"""Progress of a run: `python -m coincide.workflow.status [results/<run> …]` (`make status`).

The plan of the run says what has to be done, the logs of its jobs say what was done (`coincide.workflow.plan`). For a
job that was killed without an error message, Slurm's log and accounting are read as well (`coincide.workflow.slurm`).
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from coincide.workflow.lock import holder
from coincide.workflow.plan import PLAN, Attempt, attempts, read_plan
from coincide.workflow.slurm import SLURM_LOGS, slurm_cause, slurm_log

STATES = ("done", "running", "waiting", "failed")
MEMORY_ERRORS = re.compile(r"out of memory|MemoryError|Cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class JobStatus:
    """A planned job, the attempts at it (oldest first), its state (one of STATES), and if it was to run."""

    rule: str
    log: str
    attempts: list[Attempt]
    state: str
    to_run: bool

    def __str__(self) -> str:
        return f"{self.rule} ({Path(self.log).stem})"


def job_state(
    job: dict[str, Any], job_attempts: Sequence[Attempt], planned: float, *, run_finished: bool = False
) -> str:
    """State of a job, one of STATES.

    Args:
        job: entry of the plan.
        job_attempts: attempts at the job, oldest first.
        planned: time at which the plan was written, seconds since 1970.
        run_finished: the run ended without an error; a job that it skipped is done.
    """
    last = job_attempts[-1] if job_attempts else None
    if last and last.state == "running":
        return "running"
    if last and last.started < planned:
        last = None  # an attempt of an earlier start of the workflow
    complete = all(Path(output).exists() for output in job["outputs"])
    if complete and (run_finished or not job["to_run"] or (last and last.state == "done")):
        return "done"
    if last and last.state not in ("done", "orphaned"):
        return "failed"
    return "waiting"


def cause(attempt: Attempt, slurm_logs: str | Path = SLURM_LOGS) -> tuple[str, Path | None]:
    """Why an attempt failed, in plain words, and Slurm's log of it (None if there is none).

    Args:
        attempt: a failed, terminated or silent one.
        slurm_logs: folder of the logs that the Slurm executor writes.
    """
    log = slurm_log(attempt.slurm_job, slurm_logs)
    if attempt.state == "failed":
        return "out of memory" if MEMORY_ERRORS.search(attempt.last_line) else "error raised by the job", log
    if reason := slurm_cause(attempt.slurm_job, log):
        return reason, log
    if attempt.state == "terminated":
        return "cancelled or over its time limit (received SIGTERM)", log
    return f"killed without an error message on {attempt.host}: out of memory, node failure or SIGKILL", log


def stage_table(jobs: Sequence[JobStatus]) -> pd.DataFrame:
    """Table of the stages, in the order in which they started.

    Columns: stage, jobs, done, running, waiting, failed, rate (units of work per second), seconds_left, gpu_hours.
    """
    by_rule: dict[str, list[JobStatus]] = {}
    for job in jobs:
        by_rule.setdefault(job.rule, []).append(job)
    rows = sorted(by_rule.items(), key=lambda item: _first_start(item[1]))
    return pd.DataFrame([_stage_row(rule, rule_jobs) for rule, rule_jobs in rows])


def _first_start(jobs):
    return min((attempt.started for job in jobs for attempt in job.attempts), default=inf)


def _stage_row(rule, jobs):
    counts = Counter(job.state for job in jobs)
    all_attempts = [attempt for job in jobs for attempt in job.attempts]
    running = [job.attempts[-1] for job in jobs if job.state == "running"]
    return {
        "stage": rule,
        "jobs": len(jobs),
        **{state: counts[state] for state in STATES},
        "rate": sum(attempt.rate for attempt in running if attempt.rate) or None,
        "seconds_left": _seconds_left(
            running,
            to_start=counts["waiting"] + counts["failed"],
            durations=[attempt.seconds for attempt in all_attempts if attempt.state == "done"],
        ),
        "gpu_hours": sum(attempt.gpus * attempt.seconds for attempt in all_attempts) / 3600,
    }


def _seconds_left(running, *, to_start, durations):
    """Time left for a stage: of its slowest running job, plus the mean duration for each round of jobs to start."""
    left = max((attempt.seconds_left for attempt in running if attempt.seconds_left is not None), default=None)
    if durations and to_start:
        mean = sum(durations) / len(durations)
        left = (left or 0) + mean * to_start / max(1, len(running))
    return left


def status(folder: str | Path, slurm_logs: str | Path = SLURM_LOGS) -> str:
    """Progress of a run as text: a table of its stages, and the cause of each failure.

    Args:
        folder: of the run, with its plan.json; paths in the plan are relative to the working folder.
        slurm_logs: folder of the logs that the Slurm executor writes.

    Raises:
        FileNotFoundError: the run has no plan: it has never started.
    """
    plan, jobs = read_run(folder)
    process = holder(folder)
    table = stage_table(jobs)
    state = "finished" if all(job.state == "done" for job in jobs) else "not running"
    lines = [
        f"{folder}: {f'running ({process})' if process else state}; {_count_done(jobs)} jobs done",
        "",
        _formatted(table),
        "",
        f"GPU-hours so far, including failed attempts: {table['gpu_hours'].sum():.2f}",
    ]
    lines += [f"computed in {other}: {', '.join(stages)}" for other, stages in plan["shared"].items()]
    for job in jobs:
        if job.state == "failed":
            lines += ["", *_failure(job, slurm_logs)]
    return "\n".join(lines)


def read_run(folder: str | Path) -> tuple[dict[str, Any], list[JobStatus]]:
    """The plan of a run and the status of each of its jobs. Rules without a log only collect files: not counted.

    Raises:
        FileNotFoundError: the run has no plan: it has never started.
    """
    plan = read_plan(folder)
    jobs = []
    for job in plan["jobs"]:
        if job["log"]:
            job_attempts = attempts(job["log"])
            state = job_state(job, job_attempts, plan["written"], run_finished="finished" in plan)
            jobs.append(JobStatus(job["rule"], job["log"], job_attempts, state, job["to_run"]))
    return plan, jobs


def _count_done(jobs):
    return f"{sum(job.state == 'done' for job in jobs)} of {len(jobs)}"


def _formatted(table):
    table = table.assign(
        rate=[f"{rate:,.1f}/s" if pd.notna(rate) else "" for rate in table["rate"]],
        seconds_left=[_duration(seconds) if pd.notna(seconds) else "" for seconds in table["seconds_left"]],
        gpu_hours=[f"{hours:.2f}" if hours else "" for hours in table["gpu_hours"]],
    )
    return table.rename(columns={"seconds_left": "time left", "gpu_hours": "GPU-hours"}).to_string(index=False)


def _duration(seconds):
    return str(pd.Timedelta(seconds=round(seconds))).removeprefix("0 days ")


def _failure(job, slurm_logs):
    """Lines on a failed job: cause, last line, logs."""
    last = job.attempts[-1]
    reason, log = cause(last, slurm_logs)
    lines = [
        f"FAILED {job}, attempt {len(job.attempts)}: {reason}",
        f"  last line: {last.last_line[:300]}",
        f"  log: {last.log}",
    ]
    return [*lines, f"  Slurm's log: {log}"] if log else lines


def outcome(folder: str | Path) -> str:
    """One line on how a run ended: done, or what failed and why."""
    try:
        _, jobs = read_run(folder)
    except FileNotFoundError:
        return f"{folder}: not started"
    if all(job.state == "done" for job in jobs):
        return f"{folder}: done"
    failed = [
        f"{job}: {cause(job.attempts[-1])[0]}, {job.attempts[-1].last_line[:200]}"
        for job in jobs
        if job.state == "failed"
    ]
    reasons = "; ".join(failed) or "stopped before the other jobs ran"
    return f"{folder}: FAILED, {_count_done(jobs)} jobs done: {reasons}"


def main(folders: Sequence[str]) -> str | int:
    """Print the status of the given runs, or of all runs under results/, the newest first.

    Returns:
        0, or an error message, as for sys.exit.
    """
    if not folders:
        plans = sorted(Path("results").glob(f"*/{PLAN}"), key=lambda plan: -plan.stat().st_mtime)
        folders = [str(plan.parent) for plan in plans]
    if not folders:
        return "no run under results/ has started yet"
    for folder in folders:
        try:
            print(status(folder), end="\n\n")
        except FileNotFoundError:
            return f"{folder}/{PLAN} does not exist: this run has never started"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
