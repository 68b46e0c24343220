"""What jobs ask for follows from the config, which states it once, and from the size of the models."""

import re
import shutil

import pytest
import yaml
from conftest import REPO, Workplace
from snakemake.utils import update_config

from coincide.workflow.demand_table import recipe, recipe_sizes, tables_of_pages, with_tables
from coincide.workflow.job_resources import JobResources, Sizes, demand, rules_with_demand
from coincide.workflow.overlay import check_runs
from coincide.workflow.stages import Runs


def config(**changes):
    """The default config with changes."""
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, {"run": "x", **changes})
    return check_runs(values, files=False)


def trained_with(**training):
    return config(target_model={"training": {"batch_size": 16, **training}})["x"]


@pytest.mark.parametrize("rule", ["finetune_model", "difficulty"])
def test_a_training_asks_for_a_gpu_per_process(rule):
    need = demand(trained_with(processes=8), rule, Sizes())
    assert (need.gpus, need.nodes) == (8, 1)
    need = demand(trained_with(processes=4, nodes=2), rule, Sizes())
    assert (need.gpus, need.nodes) == (8, 2)
    assert demand(trained_with(processes=8, device="cpu"), rule, Sizes()).gpus == 0


def test_memory_and_time_grow_with_the_model():
    small, large = Sizes(target=1e9, reference=1e9, samples=1e5), Sizes(target=13e9, reference=13e9, samples=1e5)
    for rule in ("activations", "finetune_model", "evaluate_model", "check_transfer"):
        less, more = (demand(trained_with(dtype="bfloat16"), rule, sizes) for sizes in (small, large))
        assert less.memory < more.memory, rule
        assert less.minutes < more.minutes, rule
    more_processes = demand(trained_with(processes=8), "finetune_model", small)
    assert more_processes.memory > 4 * demand(trained_with(), "finetune_model", small).memory
    whole, fifth = (demand(trained_with(processes=8), "finetune_model", small, fraction=f).minutes for f in (1, 0.2))
    assert fifth < whole


@pytest.mark.parametrize("rule", ["activations", "clip_scores", "evaluate_model", "check_transfer", "estimate_cost"])
def test_every_stage_that_runs_a_model_asks_a_cluster_for_a_gpu_and_time(rule):
    need = demand(config()["x"], rule, Sizes())
    assert need.gpus == 1
    assert need.minutes >= 60


def test_clustering_asks_a_cluster_for_gpus_only_with_a_backend_that_uses_them():
    assert demand(config()["x"], "clusters", Sizes()).gpus == 0
    assert demand(config(clustering={"backend": "torch", "gpus": 4})["x"], "clusters", Sizes()).gpus == 4


def jobs(configs=None, **options):
    return JobResources(Runs(configs or config()), **{"local": True, "cores": 64, **options})


@pytest.mark.parametrize(("gpus", "threads"), [(8, 8), (2, 32), (1, 32), (0, 32)])
def test_as_many_extractions_as_gpus_fit_on_this_machine(gpus, threads):
    wildcards = {"run": "x", "shard": "00000"}
    assert jobs(gpus=gpus).threads("activations", wildcards) == threads
    assert jobs(gpus=gpus).resource("activations", "gpu", wildcards, 1) == 1  # Snakemake limits it to those there are


def test_a_training_of_eight_processes_has_the_whole_machine():
    configs = config(target_model={"training": {"batch_size": 16, "processes": 8}})
    wildcards = {"run": "x", "fraction": "0.2"}
    assert jobs(configs, gpus=8).resource("finetune_model", "gpu", wildcards, 1) == 8
    assert jobs(configs, gpus=8).threads("finetune_model", wildcards) == 32


def test_auto_is_the_gpu_of_this_machine_and_none_on_a_cluster():
    for rule in ("clusters", "density", "picks"):
        assert jobs(gpus=2).resource(rule, "gpu", {"run": "x"}, 1) == 1
        assert jobs(gpus=0).resource(rule, "gpu", {"run": "x"}, 1) == 0
        assert jobs(local=False).resource(rule, "gpu", {"run": "x"}, 1) == 0


def test_a_retry_gets_more_memory_and_time():
    cluster = jobs(local=False)
    for name in ("mem_mb", "runtime"):
        first, third = (cluster.resource("activations", name, {"run": "x"}, attempt) for attempt in (1, 3))
        assert third == 3 * first
    assert cluster.resource("activations", "gpu", {"run": "x"}, 3) == 1


def test_several_nodes_run_one_task_each():
    configs = config(target_model={"training": {"batch_size": 16, "processes": 8, "nodes": 2}})
    cluster = JobResources(Runs(configs), local=False)
    names = ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")
    asked = [cluster.resource("finetune_model", name, {"run": "x", "fraction": "1"}, 1) for name in names]
    assert asked == [16, 2, 2, 0, "srun"]
    asked = [cluster.resource("activations", name, {"run": "x"}, 1) for name in names]
    assert asked == [1, None, None, None, None]


def test_every_rule_with_a_demand_exists_and_asks_for_it():
    rules = "".join(path.read_text() for path in (REPO / "rules").glob("*.smk"))
    for rule in rules_with_demand():
        assert re.search(rf"^(rule|checkpoint) {rule}:", rules, re.MULTILINE)
        assert f'**job_needs("{rule}")' in rules, rule
    assert set(re.findall(r'job_(?:needs|threads)\("(\w+)"\)', rules)) == set(rules_with_demand())


def test_the_tables_of_the_documentation_are_current():
    for name, tables in tables_of_pages(REPO).items():
        page = (REPO / "docs" / name).read_text()
        assert with_tables(page, tables) == page, "run `make cluster-table`"


@pytest.mark.parametrize("name", ["llava665k", "vision_flan"])
def test_the_recipes_train_on_as_many_gpus_as_they_start_processes(name):
    settings = recipe(REPO, name)
    need = demand(settings, "finetune_model", recipe_sizes(settings))
    assert need.gpus == settings.target_model.training.processes == 8


@pytest.mark.workflow
def test_eight_gpus_run_eight_extractions(finished, tmp_path, monkeypatch):
    """Jobs that start together use different GPUs; on this machine they are numbers only."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    (tmp_path / "eight.yaml").write_text(yaml.safe_dump({**small, "dataset": {"shards": 8}}))
    code, output = workplace.run("results/small/activations.parquet", "--cores", "16", config=tmp_path / "eight.yaml")
    assert code == 0, output
    logs = [(workplace / f"results/small/logs/activations/{shard:05d}.log").read_text() for shard in range(8)]
    leased = [re.findall(r"GPUs of this job: (.*)", log) for log in logs]
    assert sorted(gpu for [gpu] in leased) == list("01234567")


@pytest.mark.parametrize(("mode", "threads", "gpus"), [("default", 16, 0), ("remote", 8, 1)])
def test_a_job_of_a_cluster_is_sized_as_it_was_submitted(workplace, mode, threads, gpus):
    """There, a local executor runs it in mode `remote`: the node's cores are not those of the job."""
    shard = "results/small/activations/shard-00000.parquet"
    code, output = workplace.run(shard, "--mode", mode, "--cores", "32", "-n")
    assert code == 0, output
    rule = output.split("rule activations:")[1].split("\n\n")[0]
    assert f"threads: {threads}\n" in rule
    assert f"gpu={gpus}," in rule
