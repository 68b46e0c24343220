"""Converted models in the workflow: what is checked before the first job, and a whole run on such models."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPO, make_record
from PIL import Image
from replicas import build_originals
from snakemake.utils import update_config

from coincide.base.sections import ConvertedModel
from coincide.workflow.config import ConfigError, check_config
from coincide.workflow.job_resources import read_sizes
from coincide.workflow.preflight import Machine, PreflightError, as_text, preflight
from coincide.workflow.stages import preflight_settings

NODE = Machine(gpus=4, gpu_memory=80, memory=500, source="this machine")
TINY_LLAVA, SIGLIP = "bczhou/TinyLLaVA-2.0B", "bczhou/TinyLLaVA-2.0B-SigLIP"
VICUNA, CLIP = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"
PROJECTOR = "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """dict of name -> folder of the replicas in the original format."""
    return build_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Folder with data.json and images."""
    folder = tmp_path_factory.mktemp("converted-data")
    (folder / "folder").mkdir()
    records = [make_record(i, image=i % 3 > 0, turns=1 + i % 2, words=i % 5) for i in range(30)]
    for i, record in enumerate(records):
        if "image" in record:
            Image.new("RGB", (30 + 10 * (i % 4), 40), (8 * i, 255 - 8 * i, i)).save(folder / record["image"])
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def overlay(originals, dataset):
    """A config that reads a converted reference and trains an assembled target."""

    def source(name):
        return {"name": str(originals[name])}

    return {
        "run": "converted",
        "dataset": {"annotations": str(dataset / "data.json"), "images": str(dataset), "shards": 2},
        "converted_models": {
            "tinyllava": {"checkpoint": source(TINY_LLAVA), "vision_tower": source(SIGLIP)},
            "llava-pretrained": {
                "language_model": source(VICUNA),
                "vision_tower": source(CLIP),
                "projector": source(PROJECTOR),
            },
        },
        "reference_model": {"name": "resources/models/tinyllava", "layers": [0, 0.67]},
        "clustering": {"k": 3},
        "selection": {"fractions": [0.3], "methods": ["coincide"]},
        "target_model": {
            "name": "resources/models/llava-pretrained",
            "full": False,
            "training": {
                "epochs": 1,
                "batch_size": 4,
                "learning_rate": 1.0e-2,
                "projector_learning_rate": 1.0e-3,
                "freeze": [],
                "lora": {"r": 2, "alpha": 4},
            },
        },
        "evaluation": {"holdout": 0.15, "groups": [{"name": "holdout", "tasks": ["holdout"]}]},
    }


@pytest.fixture
def values(originals, dataset, tmp_path, monkeypatch):
    """The values of a config without problems, in a working folder without models."""
    monkeypatch.chdir(tmp_path)
    names = json.dumps({"version": "0", "tasks": [], "models": ["coincide"]})  # listing all tasks takes seconds
    monkeypatch.setattr(
        "coincide.workflow.preflight._start_listing",
        lambda config: subprocess.Popen(["echo", names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
    )
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, overlay(originals, dataset))
    values["evaluation"]["include_path"] = None
    return values


def test_models_are_checked_before_they_are_built(values, tmp_path):
    config = check_config(values)
    report = preflight(config, machine=NODE)
    reference, target = report["models"]["reference_model"], report["models"]["target_model"]
    assert (reference["name"], reference["layers"]) == ("resources/models/tinyllava", [0, 1])
    assert reference["dimension"] == 2 * 2 * 32
    assert reference["parameters"] > 0
    assert target["trained_parameters"] > 0
    assert {sample["visual_tokens"] for sample in report["samples"] if sample["kind"] == "one image"} == {4}
    assert "to be converted from" in as_text(report)
    assert not (tmp_path / "resources").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_model": {"layers": [5]}}, "layer 5 does not exist: the model has 3 decoder layers"),
        (
            {"converted_models": {"tinyllava": {"vision_tower": {"name": "CLIP_ONLY_CONFIG"}}}},
            "converted_models.tinyllava: vision_tower: CLIP_ONLY_CONFIG has no weights",
        ),
        (
            {"converted_models": {"llava-pretrained": {"projector": {"name": "EMPTY"}}}},
            "converted_models.llava-pretrained: EMPTY has no mm_projector.bin",
        ),
        (
            {"converted_models": {"llava-pretrained": {"projector": {"name": "WIDE"}}}},
            "converted_models.llava-pretrained: .*the parts do not fit each other: "
            r"model.multi_modal_projector.linear_1.weight is \(32, 24\), but config.json means \(32, 16\)",
        ),
    ],
)
def test_sources_that_do_not_fit_are_problems_before_the_first_job(values, originals, tmp_path, change, message):
    import torch

    places = {name: str(tmp_path / name) for name in ("CLIP_ONLY_CONFIG", "EMPTY", "WIDE")}
    shutil.copytree(originals[CLIP], places["CLIP_ONLY_CONFIG"], ignore=shutil.ignore_patterns("*.bin"))
    Path(places["EMPTY"]).mkdir()
    shutil.copytree(originals[PROJECTOR], places["WIDE"])
    tensors = torch.load(tmp_path / "WIDE/mm_projector.bin", weights_only=True)
    tensors["model.mm_projector.0.weight"] = torch.zeros(32, 24)
    torch.save(tensors, tmp_path / "WIDE/mm_projector.bin")
    text = json.dumps(change)
    for name, path in places.items():
        text, message = text.replace(name, path), message.replace(name, path)
    update_config(values, json.loads(text))
    if "reference_model" in change:
        with pytest.raises(ConfigError, match=message):
            check_config(values)
        return
    with pytest.raises(PreflightError, match=message):
        preflight(check_config(values), machine=NODE)


def test_wrong_sections_are_reported_at_the_start(values):
    values["converted_models"] = {
        "reference": {"checkpoint": {"name": "org/model"}},
        "both": {"checkpoint": {"name": "org/model"}, "projector": {"name": "org/projector"}},
    }
    with pytest.raises(ConfigError, match=r"converted_models\.both: set checkpoint, or language_model and projector"):
        check_config(values)
    values["converted_models"]["both"] = {"checkpoint": {"name": "/nowhere/model"}}
    with pytest.raises(ConfigError) as error:
        check_config(values)
    assert error.value.problems == [
        "reference_model.name: the folder resources/models/tinyllava does not exist; set it to an existing folder or a "
        "hub name, or add tinyllava to converted_models",
        "target_model.name: the folder resources/models/llava-pretrained does not exist; set it to an existing folder "
        "or a hub name, or add llava-pretrained to converted_models",
        "converted_models.reference: the demo's models have this name; rename it",
        "converted_models.both.checkpoint.name: the folder /nowhere/model does not exist; set it to an existing folder "
        "or a hub name",
    ]


def test_the_check_depends_on_the_conversions_that_a_run_uses(values):
    before = preflight_settings(check_config(values))
    values["converted_models"]["other"] = {"checkpoint": {"name": "org/model"}}
    assert preflight_settings(check_config(values)) == before
    values["converted_models"]["tinyllava"]["image_aspect_ratio"] = "square"
    assert preflight_settings(check_config(values)) != before


def test_jobs_are_sized_by_the_sources(values):
    values["converted_models"]["tinyllava"] = {"checkpoint": {"name": "bczhou/TinyLLaVA-2.0B"}}
    values["converted_models"]["llava-pretrained"]["language_model"] = {"name": "lmsys/vicuna-7b-v1.5"}
    sizes = read_sizes(check_config(values, files=False))
    assert (sizes.reference, sizes.target) == (2e9, 7e9)


def test_a_source_is_one_kind():
    with pytest.raises(ValueError, match="set checkpoint, or both language_model and projector"):
        ConvertedModel.model_validate({"language_model": {"name": "org/model"}})


@pytest.mark.workflow
def test_a_run_reads_a_converted_model_and_trains_an_assembled_one(workplace, originals, dataset):
    settings = overlay(originals, dataset)
    (workplace / "converted.yaml").write_text(yaml.safe_dump(settings))
    code, output = workplace.run(config=workplace / "converted.yaml")
    logs = sorted((workplace / "results/converted/logs").rglob("*.log"), key=lambda path: path.stat().st_mtime)
    assert code == 0, output + "".join(f"\n== {log}\n{log.read_text()[-3000:]}" for log in logs[-2:])
    summary = pd.read_csv(workplace / "results/converted/summary.csv")
    assert set(summary["method"]) == {"coincide"}
    assert summary["score"].notna().any()
    for name in settings["converted_models"]:
        assert (workplace / f"resources/models/{name}/CONVERTED.md").exists()
    adapter = workplace / "results/converted/models/target/coincide/0.3/0/adapter_config.json"
    assert json.loads(adapter.read_text())["base_model_name_or_path"].endswith("resources/models/llava-pretrained")
    # another run on the same models, whose sources have been removed
    kept = {name: workplace / name.replace("/", "-") for name in originals}
    for name, folder in originals.items():
        shutil.move(folder, kept[name])
    code, output = workplace.run("-n", config=workplace / "converted.yaml")
    assert code == 0, output
    assert "Nothing to be done" in output
    more = {**settings, "runs": [{"run": "converted"}, {"run": "deep", "reference_model": {"layers": [2]}}]}
    (workplace / "more.yaml").write_text(yaml.safe_dump(more))
    code, output = workplace.run("-n", config=workplace / "more.yaml")
    assert code == 0, output
    assert "activations " in output
    assert "converted_model " not in output
    for name, folder in originals.items():
        shutil.move(kept[name], folder)
    # a conversion with another setting: only what depends on it
    settings["converted_models"]["llava-pretrained"]["image_aspect_ratio"] = "square"
    (workplace / "converted.yaml").write_text(yaml.safe_dump(settings))
    code, output = workplace.run("-n", config=workplace / "converted.yaml")
    assert code == 0, output
    assert "converted_model " in output
    assert "finetune_model " in output
    assert "activations " not in output
