"""Where a run stands, from its files alone: `python -m coincide.workflow.status [results/<run> …]`.

What is to be done stands in the run's plan, what was done in the logs (`coincide.workflow.plan`). Nothing else
is asked but, for a job that died without a word, what Slurm wrote about it.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from math import inf
from pathlib import Path

import pandas as pd

from coincide.workflow.lock import holder
from coincide.workflow.plan import PLAN, attempts, read_plan

SLURM_LOGS = ".snakemake/slurm_logs"
# what Slurm says, in its log of a job or as a state of sacct, in words
CAUSES = {
    r"DUE TO TIME LIMIT|TIMEOUT": "time limit",
    r"oom[-_]kill|Out Of Memory|OUT_OF_MEMORY|DUE TO MEMORY|exceeded memory limit": "out of memory",
    r"DUE TO NODE FAILURE|NODE_FAIL": "node failure",
    r"DUE TO PREEMPTION|PREEMPTED": "preempted",
    r"DUE TO JOB REQUEUE|REQUEUED": "requeued",
    r"CANCELLED": "cancelled",
}
MEMORY_ERRORS = re.compile(r"out of memory|MemoryError|Cannot allocate memory", re.IGNORECASE)


def job_state(job, tried, planned):
    """done, running, waiting or failed, for a job of the plan and its attempts."""
    last = tried[-1] if tried else None
    fresh = last is not None and (last.started >= planned or last.state == "running")
    if fresh and last.state == "running":
        return "running"
    if all(Path(o).exists() for o in job["outputs"]) and (not job["to_run"] or (fresh and last.state == "done")):
        return "done"
    if fresh and last.state not in ("done", "orphaned"):
        return "failed"
    return "waiting"


def cause(attempt, slurm_logs=SLURM_LOGS):
    """Why an attempt failed, in words, and the Slurm log that says so (or None)."""
    text, log = _slurm_log(attempt.slurm, slurm_logs)
    if attempt.state == "failed":
        return ("out of memory" if MEMORY_ERRORS.search(attempt.last_line) else "its own error"), log
    if words := _in_words(text) or _in_words(_sacct(attempt.slurm)):
        return words, log
    if attempt.state == "terminated":
        return "cancelled or over its time (it was sent SIGTERM)", log
    return f"killed without a word on {attempt.host}: out of memory, node failure or SIGKILL", log


def _in_words(said):
    return next((words for pattern, words in CAUSES.items() if re.search(pattern, said)), None)


def stages(jobs, tried, states):
    """Table of the stages, first started first.

    Columns: rule, jobs, done, running, waiting, failed, rate (units of work a second), left (s), gpu_hours.
    """
    rows = {}
    for job, mine, state in zip(jobs, tried, states):
        row = rows.setdefault(
            job["rule"], {"counts": Counter(), "rates": [], "lefts": [], "times": [], "gpu": 0.0, "first": inf}
        )
        row["counts"][state] += 1
        row["first"] = min([row["first"], *(a.started for a in mine)])
        row["gpu"] += sum(a.gpus * a.seconds for a in mine) / 3600
        if state == "running":
            row["rates"] += [mine[-1].rate] if mine[-1].rate else []
            row["lefts"] += [mine[-1].left] if mine[-1].left is not None else []
        row["times"] += [a.seconds for a in mine if a.state == "done"]
    table = []
    for rule, row in sorted(rows.items(), key=lambda item: item[1]["first"]):
        counts, left = row["counts"], max(row["lefts"], default=None)
        if row["times"] and (waiting := counts["waiting"] + counts["failed"]):
            each = sum(row["times"]) / len(row["times"])
            left = (left or 0) + each * waiting / max(1, counts["running"])
        table.append(
            {
                "stage": rule,
                "jobs": counts.total(),
                **{state: counts[state] for state in ("done", "running", "waiting", "failed")},
                "rate": sum(row["rates"]) or None,
                "left": left,
                "gpu_hours": row["gpu"],
            }
        )
    return pd.DataFrame(table)


def status(folder, slurm_logs=SLURM_LOGS):
    """Text that says where a run stands.

    Args:
        folder: of the run, with its plan.json; paths in the plan are relative to the working folder.
        slurm_logs: folder of the logs that the Slurm executor writes.

    Raises:
        FileNotFoundError: no plan: the run has never started.
    """
    plan, jobs, tried, states = _compared(folder)
    who, counts = holder(folder), Counter(states)
    under_way = f"under way: {who}" if who else "no process works on it"
    lines = [f"{folder}: {under_way}; {counts['done']} of {len(jobs)} jobs done", ""]
    table = stages(jobs, tried, states)
    shown = table.assign(
        rate=[f"{r:,.1f}/s" if pd.notna(r) else "" for r in table["rate"]],
        left=[_duration(s) if pd.notna(s) else "" for s in table["left"]],
        gpu_hours=[f"{h:.2f}" if h else "" for h in table["gpu_hours"]],
    )
    shown = shown.rename(columns={"gpu_hours": "GPU-hours", "left": "time left"})
    lines += [
        shown.to_string(index=False),
        "",
        f"GPU-hours so far, lost attempts included: {table['gpu_hours'].sum():.2f}",
    ]
    lines += [f"made and kept in {other}: {', '.join(made)}" for other, made in plan["shared"].items()]
    for job, mine, state in zip(jobs, tried, states):
        if state != "failed":
            continue
        why, log = cause(mine[-1], slurm_logs)
        lines += ["", f"FAILED {job['rule']} ({Path(job['log']).stem}), attempt {len(mine)}: {why}"]
        lines += [f"  last line: {mine[-1].last_line[:300]}", f"  log: {mine[-1].log}"]
        lines += [f"  Slurm's log: {log}"] if log else []
    return "\n".join(lines)


def _compared(folder):
    """The plan, its jobs, the attempts at each and its state."""
    plan = read_plan(folder)
    jobs = [job for job in plan["jobs"] if job["log"]]
    tried = [attempts(job["log"]) for job in jobs]
    return plan, jobs, tried, [job_state(job, mine, plan["written"]) for job, mine in zip(jobs, tried)]


def outcome(folder):
    """One line on how a run ended: done, or what failed and why."""
    try:
        _, jobs, tried, states = _compared(folder)
    except FileNotFoundError:
        return f"{folder}: not started"
    if set(states) <= {"done"}:
        return f"{folder}: done"
    failed = [
        f"{job['rule']} ({Path(job['log']).stem}): {cause(mine[-1])[0]}, {mine[-1].last_line[:200]}"
        for job, mine, state in zip(jobs, tried, states)
        if state == "failed"
    ]
    what = "; ".join(failed) if failed else "ended early"
    return f"{folder}: FAILED, {Counter(states)['done']} of {len(jobs)} jobs done: {what}"


def main(arguments):
    """Print the status of the runs named, or of all under results/, the newest first."""
    folders = arguments or [
        str(plan.parent) for plan in sorted(Path("results").glob(f"*/{PLAN}"), key=lambda p: -p.stat().st_mtime)
    ]
    if not folders:
        return "no run under results/ has started yet"
    for folder in folders:
        try:
            print(status(folder), end="\n\n")
        except FileNotFoundError:
            return f"{folder}/{PLAN} is not there: this run has never started"
    return 0


def _duration(seconds):
    return str(pd.Timedelta(seconds=round(seconds))).removeprefix("0 days ")


def _slurm_log(job, folder):
    if not job:
        return "", None
    found = sorted(Path(folder).glob(f"**/{job}.log"))
    return (found[0].read_text(errors="replace"), found[0]) if found else ("", None)


def _sacct(job):
    """State of a job by Slurm's accounting, or nothing where there is none."""
    if not job or not shutil.which("sacct"):
        return ""
    command = ["sacct", "-n", "-P", "-j", job, "--format=State"]
    try:
        return subprocess.run(command, text=True, capture_output=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
