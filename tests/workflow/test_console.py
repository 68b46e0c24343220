"""The lines that a run prints."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coincide.workflow.console import Console, coreset_lines
from coincide.workflow.plan import write_plans


def write_log(log, state, seconds, *lines):
    """Write the log of an attempt that started `seconds` ago, on another machine."""
    start = {"started": time.time() - seconds, "host": "n1", "pid": 1, "slurm": None, "gpus": 0}
    end = [] if state == "running" else ["== ended " + json.dumps({"state": state, "seconds": seconds})]
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(["== started " + json.dumps(start), *lines, *end]) + "\n")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The console of two runs that share the manifest: three jobs to extract, one to cluster, one that is done."""
    monkeypatch.chdir(tmp_path)
    jobs = [("activations", f"logs/{i}.log", [f"a/shard-{i}"], True) for i in range(3)]
    jobs += [("clusters", "logs/clusters.log", ["b/clusters"], True), ("manifest", "logs/m.log", ["a/manifest"], False)]
    needed = [[4], [4], [4], [4], []]
    write_plans({"a": {}, "b": {}}, jobs, needed, "")
    plan = json.loads((tmp_path / "a/plan.json").read_text())
    for run in "ab":
        plan = json.loads((tmp_path / run / "plan.json").read_text())
        (tmp_path / run / "plan.json").write_text(json.dumps({**plan, "written": time.time() - 1000}))
    console = Console(["a", "b"])
    console.started -= 1000
    return console


def printed(console, capsys):
    """The lines of a report, without the time."""
    console.report()
    return [line[10:] for line in capsys.readouterr().err.splitlines()]


def test_a_stage_has_a_line_when_it_runs_and_one_when_it_is_done(runs, tmp_path, capsys):
    assert printed(runs, capsys) == []
    logs = [tmp_path / "logs" / f"{i}.log" for i in range(3)]
    write_log(logs[0], "running", 5)
    assert printed(runs, capsys) == []  # a short stage has only the line of its end
    write_log(logs[0], "running", 20, "extraction: 30 of 40 samples, 2.0/s, 00:05 left")
    assert printed(runs, capsys) == ["activations: 0 of 3 jobs done, 1 running, 2.0/s, 00:05 left"]
    assert printed(runs, capsys) == []  # nothing new within the next seconds
    for i, log in enumerate(logs):
        write_log(log, "done", 100 - 10 * i)
        (tmp_path / f"a/shard-{i}").touch()
    [line] = printed(runs, capsys)
    assert line == "activations: done in 01:40 (3 jobs)"
    assert printed(runs, capsys) == []


def test_each_failed_attempt_is_reported_once(runs, tmp_path, capsys):
    write_log(tmp_path / "logs/clusters.log", "failed", 3, "error: clustering.k is 300, but there are 20 samples")
    [line] = printed(runs, capsys)
    assert line.startswith("clusters (clusters): attempt 1 failed, error raised by the job: error: clustering.k is 300")
    assert line.endswith("log: logs/clusters.log")
    assert printed(runs, capsys) == []


def test_where_the_coresets_are(tmp_path):
    folder = tmp_path / "coresets/coincide/0.2"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"sample_id": list("ab")}), folder / "coreset.parquet")
    pq.write_table(pa.table({"sample_id": list("abcdefghij")}), tmp_path / "manifest.parquet")
    reasons = ["image missing", "too long", "image missing"]
    pq.write_table(pa.table({"reason": reasons}), tmp_path / "rejected.parquet")
    tables = tmp_path / "manifest.parquet", tmp_path / "rejected.parquet"
    assert coreset_lines([folder / "coreset.json"], *tables) == [
        f"coincide, fraction 0.2: 2 of 10 samples: {folder}/coreset.json",
        f"3 samples were rejected (2 image missing, 1 too long): {tmp_path}/rejected.parquet",
    ]
    pq.write_table(pa.table({"reason": pa.array([], pa.string())}), tmp_path / "rejected.parquet")
    assert coreset_lines([folder / "coreset.json"], *tables)[1:] == ["no sample was rejected"]


@pytest.mark.workflow
def test_a_run_prints_its_stages_and_little_else(finished):
    lines = finished.output.splitlines()
    assert len(lines) < 130, finished.output
    assert not [line for line in lines if line.startswith(("localrule", "Finished jobid", "    input:"))]
    for stage in ("manifest", "activations", "clusters", "finetune_model", "evaluate_model", "write_report"):
        assert [line for line in lines if f"  {stage}: done in " in line], stage
    assert "coincide, fraction 0.2: 132 of 660 samples: results/small/coresets/coincide/0.2/coreset.json" in lines
    log = max((finished.folder / ".snakemake/log").iterdir()).read_text()
    assert "rule activations:" in log  # Snakemake's messages are in its log
