"""The plan of a run, and the attempts that the logs of its jobs record.

When the workflow starts, it writes plan.json into the folder of each run: every job with its log and outputs. A job
writes one line into its log when it starts and one when it ends, and touches the log while it is alive
(`coincide.workflow.job`). Snakemake deletes the log before it retries a job; a hard link keeps the log of an attempt
that did not succeed. The progress of a run follows from these files, whether or not Snakemake is still running.

Why this is not a Snakemake logger plugin (snakemake-interface-logger-plugins 2.1, tried with Snakemake 9.27):

- A plugin receives the events of the main Snakemake process only. Inside jobs, Snakemake does not load plugins. So it
  never sees on which node a job started, its GPUs, its rate of progress, or whether it is still alive: on Slurm,
  JOB_STARTED means "submitted". Job logs would still have to be read for all of these, and for the cause of a failure.
- After SIGKILL of Snakemake no event follows. Which of its jobs are still running is known only from their logs.
- JOB_INFO is sent when a job is submitted. Before that, a job is only part of the count per rule in RUN_INFO, and jobs
  that are complete appear nowhere. RULEGRAPH has dependencies between rules, not between jobs. Neither can tell which
  jobs of a shared workflow belong to which run, so the DAG would still have to be read.
- Snakemake deletes the log of a failed attempt with or without a plugin, and a retry has the same job id.
- A plugin must be a separate top-level package (`snakemake_logger_plugin_*`), which Snakemake does not discover in an
  editable install, and every profile would have to enable it.

A plugin would therefore be added to the code below, not replace it.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coincide.base.files import write_json
from coincide.base.progress import rate_and_left
from coincide.workflow.job import ENDED, HEARTBEAT, STARTED

PLAN = "plan.json"
SILENT = 6 * HEARTBEAT  # seconds without a touch of its log after which a job counts as dead

Job = tuple[str, str, Sequence[str], bool]  # rule, log ("" if the rule has none), outputs, to_run


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job, as recorded in its log.

    Attributes:
        started: start time, seconds since 1970.
        host: name of the machine.
        slurm_job: Slurm job id, <array>_<task> for an array task; None outside Slurm.
        gpus: number of devices in CUDA_VISIBLE_DEVICES.
        seconds: run time so far, or until the end.
        state: done, failed, terminated (by SIGTERM), orphaned (its Snakemake process was gone), running, or silent
            (the log has no end line and has not been touched for SILENT seconds, or the process is gone: the job was
            killed).
        rate: units of work per second, from the last progress line; None if there is none.
        seconds_left: time left, from the same line.
        last_line: last line that the job printed.
        log: the log file.
    """

    started: float
    host: str
    slurm_job: str | None
    gpus: int
    seconds: float
    state: str
    rate: float | None
    seconds_left: float | None
    last_line: str
    log: Path


def write_plans(
    folders: Mapping[str, Mapping[str, list[str]]],
    jobs: Sequence[Job],
    dependencies: Sequence[Iterable[int]],
    snakemake_log: str | Path,
) -> None:
    """Write the plan of each run: the jobs that write into its folder, and the jobs that these depend on.

    Args:
        folders: dict of a run's folder -> the stages that other runs compute for it (`Runs.shared`).
        jobs: (rule, log, outputs, to_run) of each job of all runs.
        dependencies: for each job, the positions in `jobs` of the jobs that it depends on.
        snakemake_log: log file of this Snakemake process.
    """
    for folder, shared in folders.items():
        rows = []
        for position in sorted(_jobs_of_run(folder, jobs, dependencies)):
            rule, log, outputs, to_run = jobs[position]
            rows.append({"rule": rule, "log": str(log), "outputs": list(map(str, outputs)), "to_run": bool(to_run)})
        plan = {"written": time.time(), "snakemake_log": str(snakemake_log), "shared": shared, "jobs": rows}
        write_json(plan, Path(folder) / PLAN)


def finish_plans(folders: Iterable[str]) -> None:
    """Record in the plan of each run that every job is done; jobs that turned out not to be necessary count as done."""
    for folder in folders:
        write_json({**read_plan(folder), "finished": time.time()}, Path(folder) / PLAN)


def _jobs_of_run(folder, jobs, dependencies):
    """Positions of the jobs that write into a folder and, transitively, of those that they depend on."""
    selected = set()
    to_visit = [
        position
        for position, (_, _, outputs, _) in enumerate(jobs)
        if any(Path(output).is_relative_to(folder) for output in outputs)
    ]
    while to_visit:
        position = to_visit.pop()
        if position not in selected:
            selected.add(position)
            to_visit += dependencies[position]
    return selected


def read_plan(folder: str | Path) -> dict[str, Any]:
    """Plan of the last start of a run: dict of written (time), snakemake_log, shared, jobs; finished (time) at the end.

    Raises:
        FileNotFoundError: the run has never started.
    """
    return json.loads((Path(folder) / PLAN).read_text())


def attempts(log: str | Path) -> list[Attempt]:
    """Every attempt at a job, oldest first, from its log and from the kept logs of earlier attempts."""
    log = Path(log)
    by_start = {}  # the current log and its hard link are the same attempt
    for path in (*log.parent.glob(f".{log.name}.*"), log):
        if attempt := _read_attempt(path):
            by_start[attempt.started] = attempt
    return [by_start[started] for started in sorted(by_start)]


def _read_attempt(log):
    """The attempt that a log records; None if the log does not exist or has no start line."""
    try:
        lines, touched = log.read_text(errors="replace").splitlines(), log.stat().st_mtime
    except OSError:
        return None
    start, end = _marked_facts(lines, STARTED), _marked_facts(lines, ENDED)
    if start is None:
        return None
    if end:
        state, seconds = end["state"], end["seconds"]
    else:
        now = time.time()
        state = "running" if now - touched < SILENT and not _is_gone(start) else "silent"
        seconds = max(0.0, (now if state == "running" else touched) - start["started"])
    printed = [line for line in lines if line.strip() and not line.startswith((STARTED, ENDED))]
    rate, seconds_left = next(filter(None, map(rate_and_left, reversed(printed))), (None, None))
    return Attempt(
        started=start["started"],
        host=start["host"],
        slurm_job=start["slurm"],
        gpus=start["gpus"],
        seconds=seconds,
        state=state,
        rate=rate,
        seconds_left=seconds_left,
        last_line=printed[-1] if printed else "",
        log=log,
    )


def _is_gone(start):
    """Whether the process of an attempt is known to have ended: only a process of this machine can be looked up."""
    if start["host"] != os.uname().nodename:
        return False
    try:
        # another process may have got the same number since
        return psutil.Process(start["pid"]).create_time() > start["started"]
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _marked_facts(lines, mark):
    """The JSON in the first line that starts with a mark, or None."""
    return next((json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)), None)
