"""What runs again after a change: the table of docs/reruns.md, and changes that leave content the same."""

import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args, get_origin

import pytest
import yaml
from conftest import REPO, copy_of, jobs_of
from snakemake.utils import update_config

from coincide.base.sections import Section
from coincide.workflow.config import check_config
from coincide.workflow.content import dataset_content, kept_text, read_content, record_content, write_digest
from coincide.workflow.reruns import COLUMNS, OTHER_RULES, READERS, dependents, reruns, settings, with_table
from coincide.workflow.stages import STAGES, VERSIONS

SMALL = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
RUN = "results/small"


def small_with(changes):
    """The small config with changes."""
    values = json.loads(json.dumps(SMALL))
    update_config(values, changes)
    return values


def write_config(folder, name, changes):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small_with(changes)))
    return path


def model_times(workplace):
    weights = (workplace / RUN / "models/target").glob("*/*/0/model.safetensors")
    return {path.relative_to(workplace.folder).parts[4]: path.stat().st_mtime_ns for path in weights}


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_of_the_documentation_is_current():
    page = (REPO / "docs/reruns.md").read_text()
    assert page == with_table(page), "run `make schema`"


def test_every_rule_has_a_version_and_a_column():
    scripts = {path.stem for path in (REPO / "workflow_scripts").glob("*.py")}
    # preflight is repeated when its settings change, and no result depends on it
    assert set(VERSIONS) == scripts - {"preflight"}
    in_columns = {rule for rules in COLUMNS.values() for rule in rules}
    not_in_a_run = {"mini_mix", "even_mix", "tiny_model", "converted_model"}
    assert in_columns == {*STAGES, *OTHER_RULES} - not_in_a_run
    for path in (REPO / "rules").glob("*.smk"):
        for name, body in re.findall(r"^(?:rule|checkpoint) (\w+):\n((?:(?:[ \t].*)?\n)*)", path.read_text(), re.M):
            if "    script:\n" in body and name in VERSIONS:
                assert f'settings("{name}")' in body or f'VERSIONS["{name}"]' in body, name


def values_that_a_rule_cannot_derive(folder):
    """Another valid value for settings of which the type does not tell one."""
    return {
        "dataset.annotations": str(folder / "data.json"),
        "dataset.images": str(folder / "images"),
        "dataset.sample": 600,
        "dataset.extends": str(folder / "earlier"),
        "clustering.centroids": str(folder / "earlier/centroids.parquet"),
        "reference_model.name": str(folder / "model"),
        "target_model.name": str(folder / "model"),
        "clip_model.name": str(folder / "model"),
        "reference_model.layers": [1],
        "reference_model.extra_metrics": ["vision_features"],
        "selection.fractions": [0.2, 0.3],
        "selection.methods": ["coincide", "random", "self_sup"],
        "selection.method_settings": {"el2n": {"keep": "top"}},
        "selection.constraints.at_least": {"text_reading": 0.1},
        "selection.constraints.at_most": {"easy_vqa": 0.5},
        "selection.constraints.text_only.at_least": 2,
        "selection.constraints.text_only.at_most": 0.5,
        "selection.constraints.keep": ["a"],
        "selection.constraints.exclude": ["b"],
        "target_model.label": "renamed",
        "target_model.seeds": [0, 1],
        "target_model.training.freeze": ["vision_tower"],
        "target_model.training.lora.target_modules": ["q_proj"],
        "target_model.training.lora.modules_to_save": [],
        "target_model.training.processes": 2,
        "target_model.training.nodes": 2,
        "evaluation.groups": [{"name": "mini_mix", "tasks": ["mini_mix"]}, {"name": "more", "tasks": ["mini_mix"]}],
        "evaluation.include_path": str(REPO / "config/tasks"),
        "evaluation.python": sys.executable,
        "evaluation.backend": "llava_hf",
        "evaluation.learned_above": 0.1,
        "evaluation.model_args": {"max_length": 100},
    }


def changed_value(name, folder):
    """Another valid value of a setting."""
    given = values_that_a_rule_cannot_derive(folder)
    if name in given:
        return given[name]
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, SMALL)
    value = check_config(values, files=False)
    section = None
    for key in name.split("."):
        section, value = value, getattr(value, key, None)
        if section is None or not isinstance(section, Section):
            break
    if section is None:  # a field of a section that is null
        from coincide.base.sections import Lora

        section, value = Lora(), getattr(Lora(), name.rpartition(".")[2])
    annotation = type(section).model_fields[name.rpartition(".")[2]].annotation
    choices = [c for a in (annotation, *get_args(annotation)) if get_origin(a) is Literal for c in get_args(a)]
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9 or 0.1
    if value is None:
        return {int: 100, float: 1e-3}.get(
            next((t for t in (int, float) if t.__name__ in str(annotation)), None), "main"
        )
    raise AssertionError(f"{name}: add another value to `values_that_a_rule_cannot_derive`")


def nested(name, value):
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.workflow
def test_a_dry_run_lists_what_the_table_says_for_every_setting(finished, tmp_path):
    (tmp_path / "data.json").write_bytes((finished / "resources/mini-mix/train.json").read_bytes())
    (tmp_path / "images").symlink_to(finished / "resources/mini-mix/images")
    shutil.copytree(finished / RUN, tmp_path / "earlier", symlinks=True)  # a run does not extend itself
    shutil.copytree(finished / "resources/models/reference", tmp_path / "model")
    in_run = {job["rule"] for job in json.loads((finished / RUN / "plan.json").read_text())["jobs"]} - {
        "preflight",
    }

    def check(setting):
        """None, or what a dry run lists and what the table says."""
        name, rules, kind = setting
        changes = nested(name, changed_value(name, tmp_path))
        if name == "dataset.annotations":
            changes["dataset"]["images"] = "resources/mini-mix/images"
        if name == "reference_model.extra_metrics":
            changes["reference_model"]["sample_metrics"] = True
        if name == "target_model.training.sharding":  # over several processes, whose number changes no result
            changes["target_model"]["training"]["processes"] = 2
        if name in ("selection.fraction_of", "selection.keep_earlier"):  # they need an earlier run, which reruns more
            changes["dataset"] = {"extends": str(tmp_path / "earlier")}
            rules = (*rules, *READERS["dataset.extends"])
        code, output = finished.run("-n", config=write_config(tmp_path, name, changes))
        assert code == 0, f"{name}: {output}"
        listed = set(jobs_of(output)) & in_run
        certain, if_changed = reruns(name)
        if "extends" in changes.get("dataset", {}):
            certain = certain | reruns("dataset.extends")[0]
        expected = (certain | if_changed) & dependents(rules, any_method=False) & in_run
        if listed != expected and not (kind == "expanded" and listed <= expected):
            return sorted(listed), sorted(expected)
        return None

    all_settings = list(settings())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip([name for name, *_ in all_settings], pool.map(check, all_settings)))
    differing = {name: wrong for name, wrong in results.items() if wrong}
    assert not differing, json.dumps(differing, indent=1)


# --- content that stays the same ------------------------------------------------------------------------------------


@pytest.mark.workflow
def test_models_are_kept_when_their_coresets_stay_the_same(finished, tmp_path):
    workplace = copy_of(finished, tmp_path / "copy")
    times = model_times(workplace)
    changes = {
        "reference_model": {"layers": [1], "sample_metrics": True},
        "clustering": {"k": 10},
        "dataset": {"shards": 3, "max_rejected": 0.5},
        "selection": {"cluster_groups": 2},
    }
    code, output = workplace.run(config=write_config(tmp_path, "changed", changes))
    assert code == 0, output
    jobs = jobs_of(output)
    assert (jobs["activations"], jobs["clusters"], jobs["coreset_json"]) == (3, 1, 3)
    assert (jobs["finetune_model"], jobs["evaluate_model"]) == (1, 1)
    assert "kept 2 of 3 models and 2 of 3 evaluations: their coresets have the same content as before" in output
    new_times = model_times(workplace)
    assert {method for method in times if times[method] == new_times[method]} == {"full", "random"}
    code, output = workplace.run("-n", config=tmp_path / "changed.yaml")
    assert "Nothing to be done" in output

    # the same models under another label: linked, and only evaluated again
    changes["target_model"] = {"label": "renamed"}
    code, output = workplace.run("finetune", config=write_config(tmp_path, "renamed", changes))
    assert code == 0, output
    assert jobs_of(output) == {"finetune_model": 3}
    for method, fraction in (("coincide", "0.2"), ("random", "0.2"), ("full", "1")):
        weights = [
            workplace / RUN / f"models/{x}/{method}/{fraction}/0/model.safetensors" for x in ("target", "renamed")
        ]
        assert weights[0].stat().st_ino == weights[1].stat().st_ino


@pytest.mark.workflow
def test_difficulty_is_kept_when_the_full_data_stays_the_same(finished, tmp_path):
    workplace = copy_of(finished, tmp_path / "copy")
    changes = {"selection": {"methods": ["self_filter"]}, "target_model": {"training": {"epochs": 1}}}
    target = f"{RUN}/difficulty.parquet"
    code, output = workplace.run(target, config=write_config(tmp_path, "difficulty", changes))
    assert code == 0, output
    assert jobs_of(output)["difficulty"] == 1
    time = (workplace / target).stat().st_mtime_ns
    changes["reference_model"] = {"layers": [1]}
    code, output = workplace.run(target, config=write_config(tmp_path, "changed", changes))
    assert code == 0, output
    jobs = jobs_of(output)
    assert (jobs["activations"], jobs["coreset_json"]) == (2, 1)
    assert not {"clip_scores", "difficulty"} & set(jobs)
    assert (workplace / target).stat().st_mtime_ns == time
    assert "kept 1 of 1 measurements of difficulty" in output
    # what is measured depends on the embeddings, too
    changes["clip_model"] = {"dtype": "bfloat16"}
    code, output = workplace.run(target, "-n", config=write_config(tmp_path, "clip", changes))
    assert {"clip_scores", "difficulty"} <= set(jobs_of(output))


@pytest.mark.workflow
def test_a_touched_dataset_reruns_nothing_and_a_changed_one_everything_that_reads_it(finished, tmp_path):
    workplace = copy_of(finished, tmp_path / "copy")
    annotations = workplace / "resources/mini-mix/train.json"
    os.utime(annotations)
    for _ in range(2):
        code, output = workplace.run("-n")
        assert code == 0, output
        assert "Nothing to be done" in output
    records = json.loads(annotations.read_text())
    records[0]["conversations"][-1]["value"] = "another answer"
    annotations.write_text(json.dumps(records))
    os.utime(annotations, (1e9, 1e9))  # older than the manifest
    code, output = workplace.run("-n")
    assert {"manifest", "shards", "activations", "coreset_json", "finetune_model"} <= set(jobs_of(output))
    assert "mini_mix" not in jobs_of(output)
    code, output = workplace.run("--until", "shards")
    assert code == 0, output
    assert "results/small: the dataset changed since its manifest was made. Reused: the models" in output
    assert jobs_of(output) == {"manifest": 1, "shards": 1}
    code, output = workplace.run("-n", "--until", "shards")
    assert not jobs_of(output)


@pytest.mark.workflow
def test_new_code_reruns_nothing_until_a_version_is_raised(finished, tmp_path, monkeypatch):
    workplace = copy_of(finished, tmp_path / "copy")
    for name in ("Snakefile", "rules", "workflow_scripts", "config", "config.yaml", "envs", "profiles"):
        (workplace / name).unlink()
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, workplace / name)
    shutil.copytree(REPO / "coincide", workplace / "coincide", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(workplace.folder))
    for script in (workplace / "workflow_scripts").glob("*.py"):
        script.write_text(script.read_text() + "\n# edited\n")
    for environment in (workplace / "envs").glob("*.yaml"):
        environment.write_text(environment.read_text() + "\n# edited\n")
    for options in ({"profile": "profiles/local"}, {"profile": "profiles/slurm"}, {"profile": "none"}):
        code, output = workplace.run("-n", **options)
        assert code == 0, output
        assert "Nothing to be done" in output, options
    # a clone has no record of Snakemake's
    shutil.move(workplace / ".snakemake", tmp_path / "moved")
    code, output = workplace.run("-n")
    assert jobs_of(output) == {}
    shutil.rmtree(workplace / ".snakemake")
    shutil.move(tmp_path / "moved", workplace / ".snakemake")
    stages = workplace / "coincide/workflow/stages.py"
    stages.write_text(stages.read_text().replace('"density": 1', '"density": 2'))
    code, output = workplace.run("-n")
    assert {"density", "shares", "picks"} <= set(jobs_of(output))
    assert not {"activations", "clusters", "transferability", "method_coreset"} & set(jobs_of(output))


@pytest.mark.workflow
@pytest.mark.parametrize("name", ["coresets/random/0.2/coreset.json", "models/target/coincide/0.2/0", "summary.csv"])
def test_a_deleted_result_is_made_again_by_the_default_target(finished, tmp_path, name):
    workplace = copy_of(finished, tmp_path / "copy")
    path = workplace / RUN / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, output = workplace.run("-n")
    assert code == 0, output
    expected = {"coresets": "coreset_json", "models": "finetune_model", "summary.csv": "summary"}[name.split("/")[0]]
    assert jobs_of(output)[expected] == 1


def test_the_content_of_a_dataset(tmp_path):
    data, record = tmp_path / "data.jsonl", tmp_path / "record.json"
    data.write_text('{"id": 1}\n')
    assert dataset_content(str(data), record).version == ""
    assert not dataset_content(str(data), record).is_recorded
    record_content(read_content(str(data)), "", record)
    assert dataset_content(str(data), record).is_recorded
    os.utime(data, (1e9, 1e9))
    assert dataset_content(str(data), record).is_recorded
    assert json.loads(record.read_text())["files"][str(data)]["time"] == 10**18  # it is not read a second time
    data.write_text('{"id": 2}\n')
    changed = dataset_content(str(data), record)
    assert changed.is_other
    assert dataset_content(str(data), record) == changed
    record_content(read_content(str(data)), changed.version, record)
    assert dataset_content(str(data), record) == type(changed)(changed.version, is_recorded=True)
    data.write_text('{"id": 22}\n')
    assert dataset_content(str(data), record).version not in ("", changed.version)


def test_a_digest_is_only_written_when_it_differs(tmp_path):
    path, digest = tmp_path / "coreset.json", tmp_path / "coreset.sha256"
    path.write_text("[]")
    write_digest(path)
    os.utime(digest, (1e9, 1e9))
    write_digest(path)
    assert digest.stat().st_mtime == 1e9
    path.write_text("[1]")
    write_digest(path)
    assert digest.stat().st_mtime > 1e9
    assert digest.read_text().split()[1] == "coreset.json"


def test_what_a_run_says_it_kept():
    planned = [("finetune_model", "a"), ("finetune_model", "b"), ("evaluate_model", "c")]
    assert kept_text(planned, ["a", "b", "c"]) is None
    measured = [*planned, ("difficulty", "d")]
    assert kept_text(measured, []).startswith("kept 2 of 2 models, 1 of 1 evaluations and 1 of 1 measurements of ")
    assert kept_text(planned, ["a", "c"]) == "kept 1 of 2 models: their coresets have the same content as before"
