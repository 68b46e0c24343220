"""Whole runs of the workflow: the artefacts, what a change reruns, and recovery from kills and damaged files."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPO, Workplace

import coincide
from coincide.base.activation_store import Activations

pytestmark = pytest.mark.workflow
RUN = Path("results/small")


def table(workplace, name):
    return pd.read_parquet(workplace / RUN / name)


def job_counts(output):
    """Jobs of a dry run: dict of rule -> count."""
    stats = output.split("Job stats:")[-1].split("total")[0]
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", stats, re.M)}


def write_config(folder, name, **values):
    """Write a config file that overlays the default config, and return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# --- an uninterrupted run -----------------------------------------------------------------------


def test_every_sample_is_in_the_manifest_or_rejected(finished):
    manifest, rejected = table(finished, "manifest.parquet"), table(finished, "rejected.parquet")
    assert len(manifest) + len(rejected) == 660
    assert list(manifest) == ["sample_id", "source", "image", "n_images", "n_turns", "text_length", "shard", "position"]
    stored = Activations(finished / RUN / "activations.parquet")
    assert stored.sample_ids.tolist() == manifest["sample_id"].tolist()
    stored.verify()
    clusters = table(finished, "clusters.parquet")
    assert list(clusters) == ["sample_id", "cluster", "similarity"]
    assert clusters["sample_id"].tolist() == manifest["sample_id"].tolist()


def test_the_coreset_is_the_one_that_the_public_functions_select(finished):
    stored = Activations(finished / RUN / "activations.parquet")
    x = np.concatenate(list(stored))
    clustering = coincide.spherical_kmeans(x, 12, iterations=50, seed=0)
    clusters = table(finished, "clusters.parquet")
    assert clustering.labels.tolist() == clusters["cluster"].tolist()
    expected = coincide.select(x, clustering.labels, clustering.centroids, fraction=0.2, blocks=stored.text_columns)
    coreset = table(finished, "coresets/coincide/0.2/coreset.parquet")
    assert list(coreset) == ["sample_id", "rank", "cluster", "score"]
    assert coreset["sample_id"].tolist() == stored.sample_ids[expected.indices].tolist()
    assert len(coreset) == 132
    stats = table(finished, "cluster_stats.parquet")
    np.testing.assert_allclose(stats["share"], expected.cluster_stats["share"])
    assert stats["budget_0.2"].sum() == 132


def test_the_report_shows_the_run_in_one_small_file_and_enters_that_of_snakemake(finished):
    page = (finished / RUN / "report.html").read_text()
    assert len(page) < 5_000_000
    assert re.search(r"132 <small>of 660</small>", page)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["samples"]["id"]) == 660
    assert sorted(data["clusters"]["cluster"]) == list(range(12))
    digest = (finished / RUN / "coresets/coincide/0.2/coreset.sha256").read_text().split()[0]
    assert digest in page
    code, output = finished.run("report", "--report", "snakemake.html")
    assert code == 0, output
    assert "the whole report" in (finished / "snakemake.html").read_text()


def test_selection_does_not_wait_for_training(finished):
    clusters, model = finished / RUN / "clusters.parquet", finished / RUN / "models/target/full/1/0"
    assert clusters.stat().st_mtime < model.stat().st_mtime


def test_coresets_are_written_in_the_format_of_the_input(finished):
    source = {r["id"]: r for r in json.loads((finished / "resources/mini-mix/train.json").read_text())}
    for method, fraction in (("coincide", "0.2"), ("random", "0.2"), ("full", "1")):
        records = json.loads((finished / RUN / f"coresets/{method}/{fraction}/coreset.json").read_text())
        picked = table(finished, f"coresets/{method}/{fraction}/coreset.parquet")["sample_id"]
        assert {r["id"] for r in records} == set(picked)
        assert (
            str(pq.read_schema(finished / RUN / f"coresets/{method}/{fraction}/coreset.parquet").field("cluster").type)
            == "int32"
        )
        assert len(records) == len(picked) == (660 if method == "full" else 132)
        assert all(record == source[record["id"]] for record in records)


def test_models_evaluations_and_summary(finished):
    for method, fraction in (("coincide", "0.2"), ("random", "0.2"), ("full", "1")):
        model = finished / RUN / f"models/target/{method}/{fraction}/0"
        assert (model / "model.safetensors").exists()
        assert (model / "training_log.jsonl").exists()
        folder = finished / RUN / f"evaluations/target/{method}/{fraction}/0/mini_mix"
        assert len(list((folder / "samples").glob("*.jsonl"))) == 12
        assert json.loads((folder / "results.json").read_text())["lmms_eval_version"]
    summary = pd.read_csv(finished / RUN / "summary.csv")
    assert len(summary) == 3 * 13
    pd.testing.assert_frame_equal(summary, table(finished, "summary.parquet"), check_dtype=False)
    assert not list((finished / RUN / "checkpoints").rglob("checkpoint-*"))


def test_the_report_and_the_final_table(finished):
    page = (finished / RUN / "report.html").read_text()
    assert "May I train on this?" in page
    assert '<th scope="row" data-value="activations">activations</th><td data-value="2">2</td>' in page
    assert "| coincide | 20.0% |" in finished.output
    code, output = finished.run("--report", "bundle.zip")
    assert code == 0, output
    assert (finished / "bundle.zip").stat().st_size > 100_000


def test_logs_show_progress_and_no_temporary_file_remains(finished):
    logs = [(finished / RUN / f"logs/activations/{shard:05d}.log").read_text() for shard in range(2)]
    lines = [re.search(r"activations: (\d+) of (\d+) samples, [\d,.]+/s, 00:00 left", log) for log in logs]
    assert sum(int(line[1]) for line in lines) == sum(int(line[2]) for line in lines) == 660
    assert "finetune: " in (finished / RUN / "logs/finetune_model/target-full-1-0.log").read_text()
    assert not [p for p in (finished / "results").rglob("*") if ".part" in p.name]


# --- what a changed setting reruns ------------------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(finished):
    code, output = finished.run()
    assert code == 0
    assert "Nothing to be done" in output


def jobs_after_change(finished, **values):
    """Jobs that run if settings change after a finished run: dict of rule -> count."""
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    for key, value in values.items():
        small[key] = {**small.get(key, {}), **value} if isinstance(value, dict) else value
    code, output = finished.run("-n", config=write_config(finished, "changed", **small))
    assert code == 0, output
    return job_counts(output)


def test_a_new_fraction_selects_and_trains_only_for_that_fraction(finished):
    jobs = jobs_after_change(finished, selection={"fractions": [0.2, 0.1]})
    assert jobs == {"all": 1, "budget": 1, "picks": 1, "coincide_coreset": 1, "method_coreset": 1, "coreset_json": 2,
                    "finetune_model": 2, "evaluate_model": 2, "cluster_stats": 1,
                    "summary": 1, "write_report": 1}  # fmt: skip


def test_a_new_temperature_does_not_rerun_clustering(finished):
    jobs = jobs_after_change(finished, selection={"fractions": [0.2], "temperature": 0.2})
    assert jobs["shares"] == jobs["budget"] == jobs["picks"] == jobs["finetune_model"] == 1
    assert not {"activations", "merge", "clusters", "density", "transferability", "method_coreset"} & set(jobs)


def test_a_new_k_does_not_rerun_extraction(finished):
    jobs = jobs_after_change(finished, clustering={"k": 10})
    assert jobs["clusters"] == jobs["density"] == 1
    assert not {"activations", "shards", "merge", "tiny_model"} & set(jobs)


def test_new_layers_rerun_extraction_and_not_the_dataset(finished):
    jobs = jobs_after_change(finished, reference_model={"layers": [1]})
    assert jobs["activations"] == 2
    assert not {"mini_mix", "tiny_model", "manifest", "shards"} & set(jobs)


def test_batch_sizes_and_devices_rerun_nothing(finished):
    assert (
        jobs_after_change(
            finished, reference_model={"layers": [0, 1], "batch_tokens": 700}, evaluation={"batch_size": 1}
        )
        == {}
    )


# --- killed runs ---------------------------------------------------------------------------------


def test_a_run_killed_in_four_stages_resumes_with_the_same_result(finished, tmp_path):
    workplace = Workplace(tmp_path)
    run = tmp_path / RUN

    def log_contains(log, text):
        return lambda: (run / log).exists() and text in (run / log).read_text()

    workplace.kill_when((tmp_path / "resources").exists, "mix", group=True)
    workplace.kill_when(log_contains("logs/activations/00000.log", "Loading weights"), "extract", group=False)
    kept = [tmp_path / "resources/mini-mix/train.json", run / "samples/manifest.parquet"]
    kept_times = {path: path.stat().st_mtime_ns for path in kept}
    checkpoints = run / "checkpoints/target-coincide-0.2-0"
    workplace.kill_when(lambda: list(checkpoints.rglob("checkpoint-*/trainer_state.json")), "finetune", group=True)
    selected = [
        run / "clusters.parquet",
        run / "density/group-000.parquet",
        run / "coresets/coincide/0.2/coreset.parquet",
    ]
    kept_times |= {path: path.stat().st_mtime_ns for path in selected}
    workplace.kill_when(
        log_contains("logs/evaluate_model/target-full-1-0-mini_mix.log", "running"), "evaluate", group=False
    )
    model = run / "models/target/full/1/0/model.safetensors"
    kept_times[model] = model.stat().st_mtime_ns

    code, output = workplace.run()
    assert code == 0, output
    assert "resuming from" in (run / "logs/finetune_model/target-coincide-0.2-0.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in kept_times} == kept_times  # no complete result was computed again
    for name in ("coresets/coincide/0.2/coreset.parquet", "coresets/random/0.2/coreset.json", "clusters.parquet"):
        assert (run / name).read_bytes() == (finished / RUN / name).read_bytes()
    summary, expected = pd.read_csv(run / "summary.csv"), pd.read_csv(finished / RUN / "summary.csv")
    assert summary[["method", "task"]].equals(expected[["method", "task"]])
    assert not [p for p in run.rglob("*") if ".part" in p.name]


def test_a_second_snakemake_is_refused_while_the_first_runs(finished, tmp_path):
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    # with three groups of clusters and rows read from disk, the result is that of one job in memory
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    small["selection"]["cluster_groups"], small["clustering"]["backend"] = 3, "stream"
    first = workplace.start("select", log="first.out", config=write_config(tmp_path, "groups", **small))
    while not (tmp_path / RUN / ".lock").exists():
        assert first.poll() is None
        time.sleep(0.02)
    code, output = workplace.run("select")
    assert code != 0
    assert f"results/small is in use by process {first.pid}" in output
    assert first.wait() == 0, (tmp_path / "first.out").read_text()
    assert len(list((tmp_path / RUN / "density").iterdir())) == 3
    for name in ("coresets/coincide/0.2/coreset.parquet", "clusters.parquet", "cluster_stats.parquet"):
        assert (tmp_path / RUN / name).read_bytes() == (finished / RUN / name).read_bytes()


def test_a_damaged_shard_is_detected_before_use_and_only_that_shard_recomputed(finished, tmp_path):
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    code, output = workplace.run("--until", "activations")
    assert code == 0, output
    shards = [tmp_path / RUN / f"activations/shard-{i:05d}.parquet" for i in range(2)]
    intact_time = shards[0].stat().st_mtime_ns
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 1
    shards[1].write_bytes(content)
    code, output = workplace.run("select")
    assert code != 0
    assert "1 of 2 shards cannot be used" in output
    assert "shard-00001.parquet does not match its digest" in output
    code, output = workplace.run("select")
    assert code == 0, output
    assert shards[0].stat().st_mtime_ns == intact_time
    assert re.search(r"activations: done in [\d:]+$", output, re.M), output  # one job
    coreset = "coresets/coincide/0.2/coreset.parquet"
    assert (tmp_path / RUN / coreset).read_bytes() == (finished / RUN / coreset).read_bytes()


def test_the_status_of_a_finished_run(finished):
    command = [sys.executable, "-m", "coincide.workflow.status"]
    text = subprocess.run(command, cwd=finished.folder, text=True, capture_output=True, check=True).stdout
    jobs = re.search(r"results/small: finished; (\d+) of (\d+) jobs done", text)
    assert jobs
    assert jobs[1] == jobs[2]
    assert "FAILED" not in text


# --- a dataset of the user, valid and invalid ---------------------------------------------------------------


@pytest.fixture
def user_data(finished, tmp_path):
    """(working folder with the small models, folder of a dataset outside of it, its records, the config to use it)."""
    (tmp_path / "workplace").mkdir()
    workplace = Workplace(tmp_path / "workplace")
    shutil.copytree(finished / "resources", workplace / "resources")
    data = tmp_path / "data"
    records = json.loads((finished / "resources/mini-mix/train.json").read_text())[:300]
    shutil.copytree(finished / "resources/mini-mix/images", data / "pictures")
    config = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    config["dataset"] |= {"annotations": str(data / "data.json"), "images": str(data / "pictures")}
    return workplace, data, records, config


def add_bad_samples(records, data):
    """Make records invalid, each for a different reason, and return their number."""
    records[5]["image"] = "nowhere.png"
    intact = data / "pictures" / next(r["image"] for r in records[10:] if "image" in r)
    (data / "pictures/truncated.png").write_bytes(intact.read_bytes()[:80])
    with_image = [r for r in records[20:] if "image" in r]
    with_image[0]["image"] = "truncated.png"
    records[200]["conversations"] = []
    records.append(dict(records[0]))
    return 4


def test_bad_samples_are_rejected_and_counted(user_data):
    workplace, data, records, config = user_data
    n_bad = add_bad_samples(records, data)
    (data / "data.json").write_text(json.dumps(records))
    config["dataset"]["max_rejected"] = 0.05
    code, output = workplace.run("select", config=write_config(workplace, "user", **config))
    assert code == 0, output
    rejected = table(workplace, "rejected.parquet")
    assert sorted(rejected["reason"]) == ["duplicate id", "empty conversation", "missing image", "unreadable image"]
    assert len(table(workplace, "manifest.parquet")) + n_bad == len(records)
    selected = json.loads((workplace / RUN / "coresets/coincide/0.2/coreset.json").read_text())
    assert len(selected) == int(0.2 * (len(records) - n_bad))
    assert not (workplace / RUN / "models").exists()  # `select` stops before finetuning


def test_above_max_rejected_the_run_stops_before_any_model_runs(user_data):
    workplace, data, records, config = user_data
    add_bad_samples(records, data)
    (data / "data.json").write_text(json.dumps(records))
    code, output = workplace.run("select", config=write_config(workplace, "user", **config))
    assert code != 0
    assert "4 of 301 samples (1.3%) were rejected, above dataset.max_rejected (1.0%)" in output
    assert "Traceback" not in output
    assert not (workplace / RUN / "activations").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clustering": {"k": 12, "kk": 1}}, "clustering.kk: unknown key"),
        ({"clustering": {"k": 5000}}, "clustering.k: 5000 clusters for 660 samples"),
        ({"selection": {"fractions": [2.0]}}, "selection.fractions[0]: must be less than or equal to 1; got 2.0"),
        ({"dataset": {"annotations": "none.json"}}, "dataset.annotations: none.json does not exist"),
        ({"reference_model": {"layers": [9]}}, "reference_model.layers: layer 9 does not exist"),
    ],
)
def test_an_invalid_config_ends_with_one_message(workplace, values, message):
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    code, output = workplace.run("-n", config=write_config(workplace, "bad", **{**small, **values}))
    assert code != 0
    assert message in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 12
    assert not (workplace / "results").exists()
