"""Slurm jobs that a killed Snakemake left in the queue are cancelled; Slurm's commands are replaced by scripts."""

import os

import pytest

from coincide.workflow import slurm
from coincide.workflow.plan import write_plans
from coincide.workflow.slurm import OrphanedJobsError, cancel_orphans

RUN_ID = "0f5e3c7a-7b1d-4c59-9a51-2f6d1c0a9e11"


@pytest.fixture
def run(tmp_path):
    """Folder of a run whose Snakemake printed the name of its Slurm jobs."""
    log = tmp_path / "snakemake.log"
    log.write_text(f"Using profile slurm\nSLURM run ID: {RUN_ID}\nExecute 1 jobs...\n")
    write_plans({tmp_path / "run": {}}, [], [], log)
    return tmp_path / "run"


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A file that squeue prints and scancel deletes."""
    queue = tmp_path / "queue"
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in (("squeue", f'cat "{queue}"'), ("scancel", f'echo "$@" >"{queue}.cancelled"; rm "{queue}"')):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return queue


def test_orphans_are_cancelled_by_name(run, queue):
    queue.write_text("12\n13\n")
    assert cancel_orphans(run) == [RUN_ID]
    assert queue.with_name("queue.cancelled").read_text() == f"--name={RUN_ID}\n"


def test_nothing_is_cancelled_if_the_queue_is_empty(run, queue):
    queue.write_text("")
    assert cancel_orphans(run) == []
    assert not queue.with_name("queue.cancelled").exists()


def test_nothing_is_cancelled_for_a_run_that_never_started(tmp_path, queue):
    queue.write_text("12\n")
    assert cancel_orphans(tmp_path / "new") == []


def test_orphans_that_stay_in_the_queue_are_an_error(run, queue, tmp_path, monkeypatch):
    (tmp_path / "bin/scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(slurm, "CANCEL_TIMEOUT", 0)
    queue.write_text("12\n")
    with pytest.raises(OrphanedJobsError, match=f"still in the queue .* `scancel --name={RUN_ID}`"):
        cancel_orphans(run)
