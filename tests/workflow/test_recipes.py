"""The recipes under config/ are complete, their tasks exist in lmms-eval, and their DAGs can be built."""

import json
import re

import pytest
import yaml
from conftest import REPO, make_record
from PIL import Image
from snakemake.utils import update_config

from coincide import methods
from coincide.models.layers import resolve_layers
from coincide.workflow.config import used_conversions
from coincide.workflow.demand_table import recipe_sizes
from coincide.workflow.overlay import check_runs
from coincide.workflow.stages import Runs

RECIPES = (
    "llava665k",
    "vision_flan",
    "qwen2_5_vl",
    "study",
    "study-small",
    "study-even",
    "study-oversized",
    "study-premise",
    "ablations",
)
PAPERS = RECIPES[:2]
REAL = RECIPES[:3]  # with models of the hub


def recipe(name):
    """A recipe over the default config."""
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, yaml.safe_load((REPO / f"config/{name}.yaml").read_text()))
    return values


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name):
    configs = check_runs(recipe(name), files=False)
    runs = {"study": 5, "study-small": 9, "study-even": 6, "study-oversized": 6, "study-premise": 6}
    runs["ablations"] = 39
    assert len(configs) == runs.get(name, 1)
    if len(configs) > 1:
        assert [c.clustering.seed for c in configs.values()] == [c.target_model.seeds[0] for c in configs.values()]
        assert len({(c.variant, c.replicate) for c in configs.values()}) == len(configs)
    if name not in ("study-oversized", "study-premise", "ablations", "qwen2_5_vl"):
        expected = {"coincide", *methods.names()} if name in ("study", "study-small") else None
        for config in (c for c in configs.values() if not c.variant):
            assert len(config.selection.methods) == (len(expected) if expected else 9)
            assert expected is None or set(config.selection.methods) == expected
        for config in (c for c in configs.values() if c.variant):
            assert config.selection.methods == ["coincide"]


def test_the_runs_with_and_without_a_floor_share_everything_before_the_picks():
    runs = Runs(check_runs(recipe("constraints"), files=False))
    assert list(runs) == ["demo", "published", "with-floor"]
    for stage in ("merge", "clusters"):
        assert runs.folder("with-floor", stage) == "results/demo"
    assert runs.folder("with-floor", "shares") == "results/published"
    for stage in ("picks", "coincide_coreset"):
        assert runs.folder("with-floor", stage) == "results/with-floor"


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_have_the_settings_of_the_paper(name):
    config = check_runs(recipe(name), files=False)[name]
    k, fraction = {"llava665k": (10_000, 0.2), "vision_flan": (2500, 0.167)}[name]
    assert (config.clustering.k, config.clustering.iterations, config.selection.fractions) == (k, 50, [fraction])
    assert (config.selection.temperature, config.selection.exclude_above) == (0.1, 0.9)
    training = config.target_model.training
    assert (training.lora.r, training.lora.alpha, training.batch_size, training.epochs) == (128, 256, 128, 1)
    assert (training.learning_rate, training.projector_learning_rate, training.max_tokens) == (2e-4, 2e-5, 2048)
    assert (training.schedule, training.warmup, training.weight_decay) == ("cosine", 0.03, 0.0)
    assert training.lora.dropout == 0.05
    # LLaVA's LoRA recipe: adapters on the decoder and the whole projector, which are the defaults of the family.
    assert (training.lora.target_modules, training.lora.modules_to_save, training.freeze) == (None, None, [])


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_have_the_models_of_the_paper(name):
    config = check_runs(recipe(name), files=False)[name]
    assert config.reference_model.layers == [3, 7, 11, 15, 19]
    models = used_conversions(config)
    reference, target = models[config.reference_model.name], models[config.target_model.name]
    assert {key: source.name for key, source in reference.sources.items()} == {"checkpoint": "bczhou/TinyLLaVA-2.0B"}
    assert {key: source.name for key, source in target.sources.items()} == {
        "language_model": "lmsys/vicuna-7b-v1.5",
        "vision_tower": "openai/clip-vit-large-patch14-336",
        "projector": "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5",
    }
    sizes = recipe_sizes(config)
    assert (sizes.reference, sizes.target) == (2e9, 7e9)


def test_the_current_pair_is_a_small_and_a_large_model_of_one_family():
    config = check_runs(recipe("qwen2_5_vl"), files=False)["qwen2_5_vl"]
    sizes = recipe_sizes(config)
    assert (sizes.reference, sizes.target) == (3e9, 7e9)
    depth = 36  # num_hidden_layers of Qwen2.5-VL-3B
    assert resolve_layers(config.reference_model.layers, depth) == [5, 11, 17, 23, 29]


def test_every_task_exists_in_lmms_eval():
    from lmms_eval.tasks import TaskManager

    available = set(TaskManager().all_tasks)
    for name in REAL:
        tasks = {task for group in recipe(name)["evaluation"]["groups"] for task in group["tasks"]}
        assert len(tasks) == 14
        assert tasks <= available


@pytest.mark.workflow
@pytest.mark.parametrize("name", REAL)
def test_the_dag_can_be_built(workplace, tmp_path, name):
    records = [make_record(i) for i in range(80)]
    images = tmp_path / "images/folder"
    images.mkdir(parents=True)
    for i in range(80):
        Image.new("RGB", (8, 8)).save(images / f"{i}.png")
    (tmp_path / "data.json").write_text(json.dumps(records))
    values = yaml.safe_load((REPO / f"config/{name}.yaml").read_text())
    values["dataset"] |= {"annotations": str(tmp_path / "data.json"), "images": str(tmp_path / "images")}
    values["clustering"] = {"k": 5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    code, output = workplace.run("-n", config=tmp_path / "recipe.yaml")
    assert code == 0, output
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}
    shards = values["dataset"]["shards"]
    paper = name in PAPERS
    assert jobs["activations"] == shards
    assert (jobs.get("clip_scores"), jobs.get("converted_model")) == ((shards, 2) if paper else (None, None))
    selected, models = (8, 10) if paper else (1, 3)
    assert (jobs["method_coreset"], jobs["finetune_model"], jobs["evaluate_model"]) == (selected, models, 5 * models)
