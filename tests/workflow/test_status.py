"""Where a run stands, told from its plan and the logs of its jobs."""

import json
import os
import subprocess
import sys
import time

import pytest

from coincide.workflow.plan import SILENT, attempts, write_plans
from coincide.workflow.status import cause, main, status

JOB = """
import logging, os, signal, sys, time
from coincide.workflow.job import prepare
from coincide.base.progress import Progress
prepare(sys.argv[1], 1)
progress = Progress(40, "extraction")
progress.update(40)
{}
"""


def run_job(log, code, **variables):
    """A job that ends by itself, in whatever way the code says."""
    environment = {**os.environ, **variables}
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "CUDA_VISIBLE_DEVICES"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.run([sys.executable, "-c", JOB.format(code), log], env=environment, check=False).returncode


def test_a_log_tells_of_every_attempt(tmp_path):
    log = tmp_path / "job.log"
    for code in (
        "raise ValueError('too small')",
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ):
        assert run_job(log, code) != 0
        log.unlink()  # as Snakemake does before it tries again
    variables = {
        "SLURM_JOB_ID": "13",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    assert run_job(log, "", **variables) == 0
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 2 * SILENT,) * 2)
    found = attempts(log)
    assert [a.state for a in found] == ["failed", "terminated", "silent", "done"]
    assert found[0].last_line == "ValueError: too small"
    assert found[2].rate > 0
    assert found[2].left == 0
    assert (found[3].slurm, found[3].gpus) == ("12_1", 2)
    assert len(list(tmp_path.iterdir())) == 4  # the last log has one name again
    assert found[0].slurm is None
    assert attempts(tmp_path / "none.log") == []


def said(log, state, *, ago=0.0, slurm=None, gpus=0, seconds=1800.0, lines=("loading",)):
    """Write the log of one attempt."""
    start = {"started": time.time() - ago - seconds, "host": "n1", "pid": 1, "slurm": slurm}
    text = ["== started " + json.dumps({**start, "gpus": gpus}), *lines]
    if state not in ("running", "silent"):
        text.append("== ended " + json.dumps({"state": state, "seconds": seconds}))
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(text) + "\n")
    touched = time.time() - ago - (2 * SILENT if state == "silent" else 0)
    os.utime(log, (touched, touched))


def test_the_table_counts_every_job_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [("activations", f"logs/{i}.log", [f"shard-{i}"], True) for i in range(5)]
    jobs += [("manifest", "logs/manifest.log", ["manifest"], False), ("merge", "logs/merge.log", ["all"], True)]
    jobs += [("select", "", [], True)]
    logs = [tmp_path / "logs" / f"{i}.log" for i in range(5)]
    for job in jobs:
        job[2][:] = [f"run/{output}" for output in job[2]]
    jobs.append(("clusters", "other/clusters.log", ["other/clusters"], True))  # nothing that this run needs
    write_plans({"run": {"other": ["shards"]}}, jobs, [[]] * len(jobs), "")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    (tmp_path / "run/plan.json").write_text(json.dumps({**plan, "written": time.time() - 7200}))
    for name in ("shard-0", "manifest"):
        (tmp_path / "run" / name).touch()
    said(logs[0], "done", gpus=1)
    said(logs[1], "running", gpus=1, lines=["extraction: 30 of 40 samples, 2.0/s, 00:05 left"])
    said(logs[2], "failed", gpus=2, slurm="7_3", lines=["error: shard-2: cannot read x.png"])
    said(logs[3], "silent", gpus=1, slurm="7_4")
    slurm_log = tmp_path / "slurm/rule_activations/7_4.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO TIME LIMIT ***")
    text = status("run", slurm_logs=tmp_path / "slurm")
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["activations"])
    assert row[1:6] == ["5", "1", "1", "1", "2"]  # jobs, done, running, waiting, failed
    assert row[6] == "2.0/s"
    assert "no process works on it; 2 of 7 jobs done" in text
    assert "FAILED activations (2), attempt 1: its own error" in text
    assert "error: shard-2: cannot read x.png" in text
    assert "FAILED activations (3), attempt 1: time limit" in text
    assert "slurm/rule_activations/7_4.log" in text
    assert "GPU-hours so far, lost attempts included: 2.47" in text


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks have been OOM", "memory"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO NODE FAILURE ***", "node failure"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 ***", "cancelled"),
        ("nothing to see", "killed without a word on n1"),
    ],
)
def test_causes_in_words(tmp_path, written, words, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no sacct
    said(tmp_path / "logs/a.log", "silent", slurm="3")
    (tmp_path / "3.log").write_text(written)
    why, log = cause(attempts(tmp_path / "logs/a.log")[0], tmp_path)
    assert words in why
    assert log == tmp_path / "3.log"


def test_without_a_run_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == "no run under results/ has started yet"
    assert "results/x/plan.json is not there" in main(["results/x"])
