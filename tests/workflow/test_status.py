"""Progress of a run, from its plan and the logs of its jobs."""

import json
import os
import subprocess
import sys
import time

import pytest

from coincide.workflow.plan import SILENT, attempts, finish_plans, write_plans
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
    """Run a job with the given code at its end, and return its exit code."""
    environment = {**os.environ, **variables}
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "CUDA_VISIBLE_DEVICES"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.run([sys.executable, "-c", JOB.format(code), log], env=environment, check=False).returncode


def test_logs_record_every_attempt(tmp_path):
    log = tmp_path / "job.log"
    for code in (
        "raise ValueError('too small')",
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ):
        assert run_job(log, code) != 0
        log.unlink()  # as Snakemake does before it retries
    variables = {
        "SLURM_JOB_ID": "13",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    assert run_job(log, "", **variables) == 0
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 2 * SILENT,) * 2)
    failed, terminated, killed, done = recorded = attempts(log)
    assert [a.state for a in recorded] == ["failed", "terminated", "silent", "done"]
    assert failed.last_line == "ValueError: too small"
    assert killed.rate > 0
    assert killed.seconds_left == 0
    assert (done.slurm_job, done.gpus) == ("12_1", 2)
    assert len(list(tmp_path.iterdir())) == 4  # no hard link to the log of the attempt that succeeded
    assert failed.slurm_job is None
    assert terminated.slurm_job is None
    assert attempts(tmp_path / "none.log") == []


def write_log(log, state, *, slurm=None, gpus=0, seconds=1800.0, lines=("loading",)):
    """Write the log of an attempt that started `seconds` ago."""
    start = {"started": time.time() - seconds, "host": "n1", "pid": 1, "slurm": slurm}
    text = ["== started " + json.dumps({**start, "gpus": gpus}), *lines]
    if state not in ("running", "silent"):
        text.append("== ended " + json.dumps({"state": state, "seconds": seconds}))
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(text) + "\n")
    touched = time.time() - (2 * SILENT if state == "silent" else 0)
    os.utime(log, (touched, touched))


def test_status_counts_every_job_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [("activations", f"logs/{i}.log", [f"shard-{i}"], True) for i in range(5)]
    jobs += [("manifest", "logs/manifest.log", ["manifest"], False), ("merge", "logs/merge.log", ["all"], True)]
    jobs += [("select", "", [], True)]
    logs = [tmp_path / "logs" / f"{i}.log" for i in range(5)]
    jobs = [(rule, log, [f"run/{output}" for output in outputs], to_run) for rule, log, outputs, to_run in jobs]
    jobs.append(("clusters", "other/clusters.log", ["other/clusters"], True))  # not needed by this run
    write_plans({"run": {"other": ["shards"]}}, jobs, [[]] * len(jobs), "")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    (tmp_path / "run/plan.json").write_text(json.dumps({**plan, "written": time.time() - 7200}))
    for name in ("shard-0", "manifest"):
        (tmp_path / "run" / name).touch()
    write_log(logs[0], "done", gpus=1)
    write_log(logs[1], "running", gpus=1, lines=["extraction: 30 of 40 samples, 2.0/s, 00:05 left"])
    write_log(logs[2], "failed", gpus=2, slurm="7_3", lines=["error: shard-2: cannot read x.png"])
    write_log(logs[3], "silent", gpus=1, slurm="7_4")
    slurm_log = tmp_path / "slurm/rule_activations/7_4.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO TIME LIMIT ***")
    text = status("run", slurm_logs=tmp_path / "slurm")
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["activations"])
    assert row[1:6] == ["5", "1", "1", "1", "2"]  # jobs, done, running, waiting, failed
    assert row[6] == "2.0/s"
    assert "run: not running; 2 of 7 jobs done" in text
    assert "FAILED activations (2), attempt 1: error raised by the job" in text
    assert "error: shard-2: cannot read x.png" in text
    assert "FAILED activations (3), attempt 1: time limit" in text
    assert "slurm/rule_activations/7_4.log" in text
    assert "GPU-hours so far, including failed attempts: 2.47" in text


@pytest.mark.parametrize(
    ("slurm_log", "expected"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks have been OOM", "memory"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO NODE FAILURE ***", "node failure"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-24T10:00:00 ***", "cancelled"),
        ("no cause here", "killed without an error message on n1"),
    ],
)
def test_causes_from_slurms_log(tmp_path, slurm_log, expected, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no sacct
    write_log(tmp_path / "logs/a.log", "silent", slurm="3")
    (tmp_path / "3.log").write_text(slurm_log)
    reason, log = cause(attempts(tmp_path / "logs/a.log")[0], tmp_path)
    assert expected in reason
    assert log == tmp_path / "3.log"


def test_a_plan_holds_the_jobs_that_a_run_depends_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [(name, f"{name}.log", [f"{name}/output"], True) for name in ("a", "b", "c", "d")]
    write_plans({"a": {}, "c": {}}, jobs, [[1], [2], [], []], "")  # a needs b, b needs c
    plans = {run: json.loads((tmp_path / run / "plan.json").read_text()) for run in ("a", "c")}
    assert {run: [job["rule"] for job in plan["jobs"]] for run, plan in plans.items()} == {
        "a": ["a", "b", "c"],
        "c": ["c"],
    }


def test_status_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == "no run under results/ has started yet"
    assert "results/x/plan.json does not exist" in main(["results/x"])


def test_a_run_is_finished_when_all_its_jobs_are_done_or_were_not_necessary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [("activations", "logs/a.log", ["run/a"], True), ("finetune_model", "logs/f.log", ["run/f"], True)]
    write_plans({"run": {}}, jobs, [[], [0]], "")
    for name in ("a", "f"):
        (tmp_path / "run" / name).touch()
    write_log(tmp_path / "logs/a.log", "done", seconds=0)
    write_log(tmp_path / "logs/f.log", "done")  # by an earlier start; this start skips the job
    assert "run: not running; 1 of 2 jobs done" in status("run")
    finish_plans(["run"])
    assert "run: finished; 2 of 2 jobs done" in status("run")
    (tmp_path / "run/f").unlink()
    assert "run: not running; 1 of 2 jobs done" in status("run")


def test_a_job_that_was_killed_on_this_machine_is_not_running(tmp_path):
    log = tmp_path / "job.log"
    assert run_job(log, "os.kill(os.getpid(), signal.SIGKILL)") != 0
    assert [attempt.state for attempt in attempts(log)] == ["silent"]
    process = subprocess.Popen([sys.executable, "-c", JOB.format("time.sleep(60)"), log])
    while not [a for a in attempts(log) if a.state == "running"]:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert attempts(log)[-1].state == "silent"
