"""The recipes under config/ are complete, their tasks exist in lmms-eval, and their DAGs can be built."""

import json
import re

import pytest
import yaml
from conftest import REPO, make_record
from PIL import Image
from snakemake.utils import update_config

from coincide import methods
from coincide.workflow.overlay import check_runs

RECIPES = ("llava665k", "vision_flan", "study", "study-small", "study-even", "study-reference", "ablations")
PAPERS = RECIPES[:2]


def recipe(name):
    """A recipe over the default config."""
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, yaml.safe_load((REPO / f"config/{name}.yaml").read_text()))
    return values


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name):
    configs = check_runs(recipe(name), files=False)
    runs = {"study": 5, "study-small": 3, "study-even": 3, "study-reference": 9, "ablations": 42}
    assert len(configs) == runs.get(name, 1)
    if len(configs) > 1:
        assert [c.clustering.seed for c in configs.values()] == [c.target_model.seeds[0] for c in configs.values()]
        assert len({(c.variant, c.replicate) for c in configs.values()}) == len(configs)
    if name not in ("study-reference", "ablations"):
        expected = {"coincide", *methods.names()} if name == "study" else None
        for config in configs.values():
            assert len(config.selection.methods) == (len(expected) if expected else 9)
            assert expected is None or set(config.selection.methods) == expected


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_have_the_settings_of_the_paper(name):
    config = check_runs(recipe(name), files=False)[name]
    k, fraction = {"llava665k": (10_000, 0.2), "vision_flan": (2500, 0.167)}[name]
    assert (config.clustering.k, config.clustering.iterations, config.selection.fractions) == (k, 50, [fraction])
    assert (config.selection.temperature, config.selection.exclude_above) == (0.1, 0.9)
    training = config.target_model.training
    assert (training.lora.r, training.lora.alpha, training.batch_size, training.epochs) == (128, 256, 128, 1)
    assert (training.learning_rate, training.projector_learning_rate, training.max_tokens) == (2e-4, 2e-5, 2048)
    assert (training.schedule, training.warmup) == ("cosine", 0.03)
    # LLaVA's LoRA recipe: adapters on the decoder and the whole projector, which are the defaults of the family.
    assert (training.lora.target_modules, training.lora.modules_to_save, training.freeze) == (None, None, [])


def test_every_task_exists_in_lmms_eval():
    from lmms_eval.tasks import TaskManager

    available = set(TaskManager().all_tasks)
    for name in PAPERS:
        tasks = {task for group in recipe(name)["evaluation"]["groups"] for task in group["tasks"]}
        assert len(tasks) == 14
        assert tasks <= available


@pytest.mark.workflow
@pytest.mark.parametrize("name", PAPERS)
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
    assert jobs["activations"] == jobs["clip_scores"] == shards
    assert (jobs["method_coreset"], jobs["finetune_model"], jobs["evaluate_model"]) == (8, 10, 50)
