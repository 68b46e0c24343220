"""The lines that a run prints: the progress of its stages, failures, and where the coresets are.

The lines follow from the plan of the run and the logs of its jobs, as in `coincide.workflow.status`. Snakemake's own
messages go to its log file.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from tqdm import tqdm

from coincide.workflow.status import JobStatus, cause, read_run, stage_table

SECONDS_BETWEEN_READS = 5
SECONDS_BETWEEN_LINES = 30  # of the same stage
SECONDS_BEFORE_LINE = 10  # of a stage; a shorter one has only the line of its end
READING_SHARE = 20  # the logs are read at most this share of the time, as 1 in …
SNAKEMAKE_LOGGER, SNAKEMAKE_STREAM = "snakemake.logging", "DefaultStreamHandler"
STARTING = ("Building DAG", "Using shell", "Updating checkpoint", "Conda environments")  # of every start
ALWAYS = ("Nothing to be done",)


def quieten_snakemake(*, running: bool) -> None:
    """Send messages of Snakemake to its log file only; warnings and errors are printed as well.

    Args:
        running: jobs are about to start, and `Console` prints their progress; otherwise only the description of the
            machine is left out.
    """

    def is_printed(record):
        message = record.getMessage()
        if record.levelno >= logging.WARNING or message.startswith(ALWAYS):
            return True
        event = getattr(getattr(record, "event", None), "value", "")
        is_header = hasattr(record, "quietness") or event == "resources_info" or message.startswith(STARTING)
        return not (running or is_header)

    for handler in logging.getLogger(SNAKEMAKE_LOGGER).handlers:
        if handler.name == SNAKEMAKE_STREAM:
            handler.addFilter(is_printed)


class Console:
    """Prints the progress of runs in short lines, from a thread of the workflow's process.

    Args:
        folders: of the runs, with their plans.
    """

    def __init__(self, folders: Iterable[str]):
        self.folders = list(folders)
        self.started = time.time()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.lines: dict[str, float] = {}  # stage -> time of its last line; inf: it is done
        self.failures: set[tuple[str, float]] = set()  # log and start of the attempts that were reported

    def begin(self) -> None:
        """Say what will run, and follow it."""
        jobs = self._jobs()
        self._print(f"{sum(job.to_run for job in jobs)} of {len(jobs)} jobs to run; details: make status")
        self.thread.start()

    def end(self) -> None:
        """Stop following the runs, and print what ended since the last line."""
        self.stopped.set()
        if self.thread.is_alive():
            self.thread.join()
        self.report()

    def _watch(self):
        pause = float(SECONDS_BETWEEN_READS)
        while not self.stopped.wait(pause):
            began = time.monotonic()
            self.report()
            pause = max(SECONDS_BETWEEN_READS, READING_SHARE * (time.monotonic() - began))

    def _jobs(self):
        """The jobs of all runs; what several runs share is one job."""
        return list({job.log: job for folder in self.folders for job in read_run(folder)[1]}.values())

    def report(self) -> None:
        """Print a line for each stage and each failure that there is something new to say about."""
        jobs = [job for job in self._jobs() if job.to_run]
        if not jobs:
            return
        for row in stage_table(jobs).itertuples():
            self._report_stage(row, [job for job in jobs if job.rule == row.stage])
        for job in jobs:
            self._report_failures(job)

    def _report_stage(self, row, jobs):
        now, last = time.time(), self.lines.get(row.stage, -inf)
        if row.done == row.jobs:
            if last != inf:
                self.lines[row.stage] = inf
                self._print(f"{row.stage}: done{_duration_of(jobs, self.started)}")
        elif row.running and now - last >= SECONDS_BETWEEN_LINES and _seconds_running(jobs) >= SECONDS_BEFORE_LINE:
            self.lines[row.stage] = now
            self._print(f"{row.stage}: {_progress(row)}")

    def _report_failures(self, job):
        for number, attempt in enumerate(job.attempts, 1):
            key = (job.log, attempt.started)
            if attempt.state in ("running", "done") or attempt.started < self.started or key in self.failures:
                continue
            self.failures.add(key)
            reason = cause(attempt)[0]
            text = f"{reason}: {attempt.last_line[:200]}" if attempt.last_line else reason
            self._print(f"{job}: attempt {number} failed, {text}; log: {job.log}")

    def _print(self, text):
        print(f"{tqdm.format_interval(time.time() - self.started):>8}  {text}", file=sys.stderr, flush=True)


def _seconds_running(jobs):
    """For how long the job of a stage that started first has been running."""
    return max(job.attempts[-1].seconds for job in jobs if job.state == "running")


def _progress(row):
    """Jobs, rate and time left of a stage that is running."""
    parts = [f"{row.done} of {row.jobs} jobs done, {row.running} running"] if row.jobs > 1 else ["running"]
    if row.failed:
        parts.append(f"{row.failed} failed")
    if pd.notna(row.rate):
        parts.append(f"{row.rate:,.1f}/s")
    if pd.notna(row.seconds_left):
        parts.append(f"{tqdm.format_interval(row.seconds_left)} left")
    return ", ".join(parts)


def _duration_of(jobs: Sequence[JobStatus], since: float) -> str:
    """From the first start of a stage's jobs to their last end, and the number of jobs that ran."""
    ran = [job for job in jobs if any(attempt.started >= since for attempt in job.attempts)]
    if not ran:  # it turned out not to be necessary
        return ""
    attempts = [attempt for job in ran for attempt in job.attempts if attempt.started >= since]
    end = max(attempt.started + attempt.seconds for attempt in attempts)
    count = f" ({len(ran)} jobs)" if len(ran) > 1 else ""
    return f" in {tqdm.format_interval(end - min(attempt.started for attempt in attempts))}{count}"


def coreset_lines(coresets: Iterable[str | Path], manifest: str | Path, rejected: str | Path) -> list[str]:
    """Where the coresets of a run are, how many samples they have, and how many samples were rejected.

    Args:
        coresets: paths of coreset.json files, next to their coreset.parquet.
        manifest: manifest.parquet of the run.
        rejected: rejected.parquet of the run.
    """
    total = pq.read_metadata(manifest).num_rows
    lines = []
    for path in map(Path, coresets):
        kept = pq.read_metadata(path.with_suffix(".parquet")).num_rows
        method, fraction = path.parts[-3:-1]
        lines.append(f"{method}, fraction {fraction}: {kept:,} of {total:,} samples: {path}")
    reasons = pq.read_table(rejected, columns=["reason"])["reason"].to_pandas().value_counts()
    if len(reasons):
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        lines.append(f"{reasons.sum():,} samples were rejected ({counts}): {rejected}")
    else:
        lines.append("no sample was rejected")
    return lines


def is_quiet(output_settings: Any) -> bool:
    """Whether Snakemake's messages may be left out: no option asks for more of them.

    Args:
        output_settings: Snakemake's settings of its output.
    """
    return not (output_settings.verbose or output_settings.debug_dag or output_settings.dryrun)
