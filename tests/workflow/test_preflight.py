"""The check before the first job: every problem at once, each with its fix, and the versions of the models."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import transformers
import yaml
from conftest import REPO, make_record
from PIL import Image
from snakemake.utils import update_config

from coincide.base.sections import Lora, Node, Training
from coincide.dataset.examples import KINDS, find_examples
from coincide.evaluation import lmms_start
from coincide.models.loading import load_processor
from coincide.models.revisions import folder_digest
from coincide.workflow.config import ConfigError, check_config
from coincide.workflow.demand_table import recipe, recipe_sizes
from coincide.workflow.job_resources import demand, training_gpu_memory, training_memory
from coincide.workflow.preflight import (
    REVISIONS,
    Machine,
    PreflightError,
    _unchanged,
    as_text,
    estimated_bytes,
    preflight,
    this_machine,
    write_preflight,
)
from coincide.workflow.recheck import RecheckError, is_stale, repeat_checks
from coincide.workflow.stages import preflight_settings

LAPTOP = Machine(gpus=0, gpu_memory=None, memory=16, source="this machine")
NODE = Machine(gpus=4, gpu_memory=80, memory=500, source="this machine")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Folder of a dataset that has a sample of each kind."""
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "folder").mkdir()
    records = [make_record(0), make_record(1, image=False), make_record(2, turns=3), make_record(3, words=40)]
    pair = make_record(4)
    pair |= {"image": ["folder/0.png", "folder/2.png"]}
    pair["conversations"][0]["value"] = "<image><image>\nwhat differs?"
    for name in ("0", "2", "3"):
        Image.new("RGB", (40, 30)).save(folder / f"folder/{name}.png")
    (folder / "data.json").write_text(json.dumps([*records, pair]))
    return folder


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """File with what the installed lmms-eval lists, which takes seconds."""
    path = tmp_path_factory.mktemp("listing") / "names.json"
    script = REPO / "coincide/workflow/lmms_names.py"
    with open(path, "w") as file:
        subprocess.run(lmms_start.command(None, script, str(REPO / "config/tasks")), stdout=file, check=True)
    return path


@pytest.fixture
def listed(listing, monkeypatch):
    """Replay the list of lmms-eval's tasks, for tests of other checks."""

    def start(config):
        return subprocess.Popen(["cat", listing], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr("coincide.workflow.preflight._start_listing", start)


@pytest.fixture
def values(dataset, tiny_model):
    """The values of a config that has no problem."""
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(
        values,
        {
            "dataset": {"annotations": str(dataset / "data.json"), "images": str(dataset), "shards": 1},
            "reference_model": {"name": str(tiny_model), "layers": [1, 2]},
            "target_model": {"name": str(tiny_model)},
            "clustering": {"k": 2},
            "selection": {"fractions": [0.4]},
            "evaluation": {"include_path": str(REPO / "config/tasks")},
        },
    )
    return values


def problems(values, machine=NODE, **options):
    """Lines of the problems of a config."""
    with pytest.raises(PreflightError) as error:
        preflight(check_config(values), machine=machine, **options)
    return error.value.problems


def test_a_run_that_can_work(values, tiny_model, tmp_path):
    values["target_model"]["training"] |= {"lora": {"r": 4, "alpha": 8}, "freeze": []}
    report = preflight(check_config(values), machine=LAPTOP, results=tmp_path)
    reference, target = report["models"]["reference_model"], report["models"]["target_model"]
    assert (reference["revision"], reference["digest"]) == (None, folder_digest(tiny_model))
    assert (reference["layers"], reference["dimension"]) == ([1, 2], 2 * 2 * 32)
    assert 0 < target["trained_parameters"] < target["parameters"]
    assert {sample["kind"] for sample in report["samples"]} == set(KINDS)
    tokens = {sample["kind"]: sample for sample in report["samples"]}
    assert tokens["several images"]["visual_tokens"] == 2 * tokens["one image"]["visual_tokens"] == 32
    assert tokens["text only"]["visual_tokens"] == 0
    assert all(sample["training_tokens"] >= sample["answer_tokens"] > 0 for sample in report["samples"])
    assert "clip_model" not in report["models"]  # no selected method reads it
    assert json.loads(json.dumps(report)) == report
    assert "sample with several turns (s2)" in as_text(report)


def test_all_problems_are_reported_at_once_each_with_its_fix(values, dataset, tiny_model, tmp_path):
    """One broken config; each problem would have surfaced in another job, hours apart."""
    images = tmp_path / "images/folder"
    images.mkdir(parents=True)
    for name in ("0", "3"):  # 2.png is missing
        shutil.copy(dataset / f"folder/{name}.png", images)
    values["dataset"]["images"] = str(images.parent)
    values["evaluation"]["backend"] = "coincid"
    values["evaluation"]["groups"] = [{"name": "vqa", "tasks": ["mini_mix", "popee"]}]
    values["reference_model"]["max_tokens"] = 30
    values["selection"]["methods"] = ["coincide", "clip_score"]
    values["clip_model"]["name"] = str(tiny_model)
    values["node"] = {"gpus": 4, "memory": 0.001, "gpu_memory": 1e-6}
    training = {"processes": 8, "lora": {"target_modules": "no.such.module"}, "freeze": [], "max_tokens": 20}
    values["target_model"]["training"] |= training
    config = check_config(values)
    machine = this_machine(config.node, local=True)
    overrides = {"finetune_model": {"gpu": "1", "mem_mb": "1000 * attempt"}}
    lines = problems(values, machine, overrides=overrides, results=tmp_path)
    expected = [
        ("dataset.images: sample s2 (row 2)", "set it to the folder that image names are relative to"),
        ("reference_model: sample s0 (row 0, one image) would be rejected: too long", "correct the dataset"),
        ("target_model.training: training.lora.target_modules: 'no.such.module' matches no module", "null"),
        ("target_model.training.max_tokens: sample s3 (longest text)", "raise it to at least"),
        (f"clip_model.name: {tiny_model}: ValueError: a model of type llava, not clip", "set it to a CLIP model"),
        ("target_model.training.processes: 8 processes per node", "set it to at most 4"),
        ("the profile sets gpu: 1 for finetune_model", "remove gpu from the profile"),
        ("finetune_model asks for 1 GiB of memory per node, but needs 6", "set mem_mb: 6"),
        ("finetune_model needs 6 GiB of memory per node, but a node", "use fewer processes"),
        ("activations needs at least 0 GiB of GPU memory", "a smaller model"),
        ("evaluation.groups (vqa): lmms-eval 0.7.3 has no task 'popee'", "did you mean pope"),
        ("evaluation.backend: lmms-eval 0.7.3 has no model 'coincid'", "did you mean coincide"),
    ]
    for start, fix in expected:
        assert any(line.startswith(start) and fix in line for line in lines), (start, lines)


def test_a_model_that_does_not_exist_does_not_hide_other_problems(values, listed, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    values["reference_model"]["name"] = "nobody/no-such-model"
    values["target_model"]["training"]["max_tokens"] = 5
    lines = problems(values)
    assert lines[0].startswith("reference_model.name: nobody/no-such-model: no such folder, the hub cannot be reached")
    assert "set it to a hub name that this machine can reach" in lines[0]
    assert any("target_model.training.max_tokens" in line for line in lines)


def test_a_processor_that_writes_other_image_tokens_than_the_model_makes(values, listed, tiny_model, tmp_path):
    """As with the published reference model, whose processor lacks the token of the vision tower's class."""
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    processor = load_processor(broken)
    processor.num_additional_image_tokens += 1
    processor.save_pretrained(broken)
    values["reference_model"]["name"] = str(broken)
    lines = problems(values)
    assert any(
        "the model makes 16 image features, but its processor writes 17 image tokens; correct processor_config.json"
        in x
        for x in lines
    )


def test_samples_longer_than_the_model_was_made_for(values, listed, tiny_model, tmp_path):
    short = tmp_path / "model"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (short / "config.json").write_text(json.dumps(config))
    values["reference_model"]["name"] = values["target_model"]["name"] = str(short)
    lines = problems(values)
    for section in ("reference_model", "target_model.training"):
        assert any(line.startswith(f"{section}.max_tokens") and "set it to at most 40" in line for line in lines)


def test_sharding_without_gpus(values, listed):
    values["target_model"]["training"] |= {"sharding": "fsdp", "processes": 2, "device": "auto"}
    line = "target_model.training.sharding: fsdp requires GPUs, but this machine has none; set it to none"
    assert line in problems(values, LAPTOP)
    preflight(check_config(values), machine=NODE)


def test_two_fractions_with_one_path(values):
    values["selection"]["fractions"] = [0.4, 0.40000001]
    with pytest.raises(ConfigError, match=r"0\.4 and 0\.40000001 would both be written to …/0\.4/; remove one"):
        check_config(values)


def test_a_full_disk(values, listed, tmp_path, monkeypatch):
    values["target_model"]["seeds"] = [0]
    config = check_config(values)
    models = {"reference_model": {"dimension": 100}, "target_model": {"parameters": 1000, "trained_parameters": 1000}}
    # 5 samples; a full model per method and the full data; one checkpoint with the states of Adam
    assert estimated_bytes(config, models) == 5 * 100 * 2 + 4 * 1000 * 3 + 12 * 1000
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    assert any("free some space" in line for line in problems(values, results=tmp_path))


def test_kinds_of_samples():
    records = [{"id": "x"}, make_record(1, image=False), make_record(2, words=9), make_record(3, turns=2)]
    examples = find_examples(records)
    assert {kind: sample.id for kind, sample in examples.items()} == {
        "text only": "s1", "one image": "s2", "several turns": "s3", "longest text": "s3",
    }  # fmt: skip
    assert examples["longest text"].dataset_row == 3
    assert not find_examples(records, limit=1)


RESOLVE = """
import sys
from coincide.base.sections import Checkpoint
from coincide.models.revisions import resolve
print(resolve(Checkpoint("org/model")).revision)
"""


def cache_model(cache, model):
    """Store a model in a cache of the hub as org/model, and return the folder of its commit."""
    folder = cache / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    return shutil.copytree(model, folder / f"snapshots/{COMMIT}")


def test_a_hub_name_becomes_a_commit_that_jobs_use(values, tiny_model, tmp_path):
    cache_model(tmp_path / "hub", tiny_model)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", RESOLVE], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == COMMIT

    from coincide.workflow.job import pin_revisions

    values["reference_model"] |= {"name": str(tiny_model)}
    config = check_config(values)
    config.target_model.name = "org/model"
    facts = {"target_model": {"name": "org/model", "revision": COMMIT}}
    facts["reference_model"] = {"name": str(tiny_model), "revision": None}
    (tmp_path / "preflight.json").write_text(json.dumps({"models": facts}))
    pin_revisions(config, tmp_path / "preflight.json")
    assert config.target_model.checkpoint.revision == COMMIT
    assert config.reference_model.checkpoint.revision is None


UNREACHABLE = """
from coincide.base.sections import Checkpoint
from coincide.models.loading import load_config, load_processor
from coincide.models.revisions import HubError, resolve, use_cache_if_unreachable
use_cache_if_unreachable()
for name in ("nobody/one", "nobody/two"):
    try:
        resolve(Checkpoint(name))
    except HubError as error:
        print(error)
cached = Checkpoint("org/model")
print(resolve(cached).revision, load_config(cached).model_type, type(load_processor(cached)).__name__)
"""


def test_an_unreachable_hub_is_tried_once_and_its_cache_is_used(tiny_model, tmp_path):
    snapshots = cache_model(tmp_path / "hub", tiny_model)
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                connections.append(address)
                connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", UNREACHABLE]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        server.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 0, done.stderr
    *errors, cached = done.stdout.splitlines()
    assert len(errors) == 2
    assert all("the hub cannot be reached" in error and "`hf download`" in error for error in errors)
    assert cached == f"{snapshots.name} llava LlavaProcessor"
    assert len(connections) == 1
    assert "only models in the hub's cache can be used" in done.stderr


def test_the_digest_of_a_folder_follows_config_and_shapes(tiny_model, tmp_path):
    changed = tmp_path / "model"
    shutil.copytree(tiny_model, changed)
    assert folder_digest(changed) == folder_digest(tiny_model)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -2}))
    assert folder_digest(changed) != folder_digest(tiny_model)


@pytest.mark.parametrize("name", ["llava665k", "vision_flan"])
def test_the_recipes_ask_for_the_memory_that_their_models_need(name):
    """The size by the name of the model against the exact number of parameters of LLaVA-1.5-7B."""
    import torch

    settings = recipe(REPO, name)
    with torch.device("meta"):  # the defaults of transformers are LLaVA-1.5-7B's
        model = transformers.AutoModelForImageTextToText.from_config(transformers.LlavaConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 7_062_902_784
    training = settings.target_model.training
    assert training_memory(training, parameters) < demand(settings, "finetune_model", recipe_sizes(settings)).memory


def test_gpu_memory_of_a_training():
    training = Training(learning_rate=1e-4, processes=8, batch_size=8)
    assert training_gpu_memory(training, 7e9, 7e9) == pytest.approx(16 * 7e9 / 2**30)
    sharded = training.model_copy(update={"sharding": "fsdp"})
    assert training_gpu_memory(sharded, 7e9, 7e9) == pytest.approx(2 * 7e9 / 2**30)
    adapters = training.model_copy(update={"lora": Lora(), "dtype": "bfloat16"})
    assert training_gpu_memory(adapters, 13e9, 3e8) == pytest.approx((2 * 13e9 + 16 * 3e8) / 2**30)  # fits in 40 GB


def test_what_slurm_tells_of_its_nodes(tmp_path, monkeypatch):
    shim = tmp_path / "sinfo"
    shim.write_text("#!/bin/sh\nprintf '(null)|128000\\ngpu:a100:8(S:0-1)|1031000+\\n'\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    machine = this_machine(Node(), local=False)
    assert (machine.gpus, machine.gpu_memory, round(machine.memory)) == (8, None, 1007)
    assert this_machine(Node(gpus=4, gpu_memory=40), local=False).gpus == 4


def test_a_check_is_repeated_when_its_settings_have_changed(values, tmp_path, capsys):
    config, report = check_config(values), tmp_path / "x/preflight.json"
    options = {"local": True, "overrides": {}}
    write_preflight(check_config(values), report, **options)
    assert not is_stale(config, report)
    values["selection"] |= {"temperature": 0.7, "fractions": [0.6]}  # nothing that is checked
    values["reference_model"]["batch_tokens"] = 500
    assert not is_stale(check_config(values), report)
    before = report.stat().st_mtime_ns
    repeat_checks([report], {"x": config}, **options)
    assert report.stat().st_mtime_ns == before
    values["evaluation"]["groups"] = [{"name": "a", "tasks": ["mini_mix", "no_such_task"]}]
    with pytest.raises(RecheckError, match="has no task 'no_such_task'"):
        repeat_checks([report], {"x": check_config(values)}, **options)
    assert report.stat().st_mtime_ns == before
    values["evaluation"]["groups"] = [{"name": "a", "tasks": ["mini_mix_validation"]}]
    repeat_checks([report], {"x": check_config(values)}, **options)
    assert json.loads(report.read_text())["evaluation"]["tasks"] == ["mini_mix_validation"]
    assert "checking models, samples, tasks and resources again" in capsys.readouterr().err


def test_a_commit_is_kept_until_the_config_asks_for_another(values, tmp_path):
    """The hub's branch may have moved on since the run began."""
    report = tmp_path / "preflight.json"
    write_preflight(check_config(values), report, local=True, overrides={})
    revisions = json.loads((tmp_path / REVISIONS).read_text())
    assert revisions["target_model"]["revision"] is None  # a folder
    settings = preflight_settings(check_config(values))
    revisions["target_model"]["revision"] = COMMIT
    assert _unchanged(revisions, settings)["target_model"]["revision"] == COMMIT
    settings["target_model"]["revision"] = "v2"
    assert "target_model" not in _unchanged(revisions, settings)


@pytest.mark.workflow
def test_a_start_that_cannot_work_is_refused_before_any_job(finished):
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    changed = copy.deepcopy(small)
    update_config(changed, {"selection": {"fractions": [0.2, 0.1]}, "evaluation": {"backend": "coincid"}})
    (finished / "refused.yaml").write_text(yaml.safe_dump(changed))
    code, output = finished.run(config=finished / "refused.yaml")
    assert code != 0
    assert "evaluation.backend: lmms-eval 0.7.3 has no model 'coincid'; did you mean coincide" in output
    assert not (finished / "results/small/coresets/coincide/0.1").exists()
