"""The lock of a run, jobs that end with their workflow, and files that are written atomically."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from coincide.base.files import replacing
from coincide.workflow.lock import RunIsLocked, hold_run

HOLD = """
import sys, time
from coincide.workflow.lock import hold_run
hold_run(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_is_locked_until_its_process_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunIsLocked, match=f"process {holder.pid} on "):
        hold_run(tmp_path)
    holder.kill()
    holder.wait()
    hold_run(tmp_path)


JOB = """
import subprocess, sys, time
from coincide.workflow.job import prepare
prepare(sys.argv[1], 1)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("children", child.pid, flush=True)
time.sleep(60)
"""


def test_a_job_ends_with_the_workflow_that_started_it(tmp_path):
    log = tmp_path / "logs/job.log"
    # processes as with Snakemake: workflow > shell > job
    workflow = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess; subprocess.run(['bash', '-c', '''{sys.executable} -c '{JOB}' {log}; true'''])",
        ]
    )
    deadline = time.monotonic() + 30
    while not (log.exists() and "children" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = psutil.Process(workflow.pid).children(recursive=True)
    assert len(processes) >= 3
    workflow.kill()
    workflow.wait()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert "the workflow that started this job is gone" in log.read_text()


def test_a_file_is_written_atomically(tmp_path):
    target = tmp_path / "sub/file.txt"
    with replacing(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_a_folder_replaces_one_that_is_not_empty(tmp_path):
    target = tmp_path / "folder"
    for name in ("a", "b"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [p.name for p in target.iterdir()] == ["b"]


WRITE = """
import sys, time
from coincide.base.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("x", flush=True)
    time.sleep(60)
"""


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    target = tmp_path / "file.txt"
    killed = subprocess.Popen([sys.executable, "-c", WRITE, target], stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline() == "x\n"
    with replacing(target) as temporary:
        temporary.write_text("one")  # next to the temporary file of the other process, which is still running
        assert len(list(tmp_path.iterdir())) == 2
    killed.kill()
    killed.wait()
    with replacing(target) as temporary:
        temporary.write_text("two")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


EMPTY_CACHE = """
import sys
from coincide.workflow.job import prepare
prepare(sys.argv[1], 1)
import numpy as np
from coincide import select, spherical_kmeans
from coincide.base.threads import threads
x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float16)
clustering = spherical_kmeans(x, 8)
print("picked", len(select(x, clustering.labels, clustering.centroids, fraction=0.2).indices), threads())
"""


def test_a_job_with_one_thread_compiles_into_an_empty_cache(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    log = tmp_path / "job.log"
    code = subprocess.run([sys.executable, "-c", EMPTY_CACHE, log], env=environment, check=False).returncode
    assert code == 0, log.read_text()
    assert "picked 80 1" in log.read_text()
