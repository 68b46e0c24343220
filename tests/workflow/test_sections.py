"""What a rule declares, what its script reads, and what the sections of the config say belong together.

A setting that changes results but is in no rule's params would leave stale results behind.
"""

import ast
import re

import pytest
import yaml
from conftest import REPO
from pydantic import ValidationError

from coincide.base.sections import Config, ConvertedModel, Section, TinyModel, setting
from coincide.workflow.config import check_config
from coincide.workflow.stages import STAGES, section_settings

DEFAULT = check_config(yaml.safe_load((REPO / "config.yaml").read_text()), files=False)
RULES = {
    match[1]: match[0]
    for path in sorted((REPO / "rules").glob("*.smk"))
    for match in re.finditer(r"^(?:rule|checkpoint) (\w+):\n(?:(?:[ \t].*)?\n)*", path.read_text(), re.MULTILINE)
}
SECTIONS = {name: type(value) for name, value in DEFAULT if isinstance(value, Section)}
# rules that take the settings of a stage under params of their own
OWN_PARAMS = {
    "mini_mix": "ANY_RUN.mini_mix",
    "even_mix": "ANY_RUN.even_mix",
    "tiny_model": "ANY_RUN.tiny_models[wildcards.model]",
    "converted_model": '.results_depend_on("converted_model")',
    "comparison": "ANY_RUN.evaluation.learned_above",
    "evaluate_model": "runs.tasks(",
    "method_coreset": "runs.method_settings(",
}


def fields(section, prefix):
    """(dotted name, section, field) of every field, nested sections included."""
    for name, info in section.model_fields.items():
        yield f"{prefix}.{name}", section, name
        nested = [t for t in (info.annotation, *getattr(info.annotation, "__args__", ())) if isinstance(t, type)]
        for inner in nested:
            if issubclass(inner, Section):
                yield from fields(inner, f"{prefix}.{name}")


ALL_FIELDS = [
    *(field for name, section in SECTIONS.items() for field in fields(section, name)),
    *fields(TinyModel, "tiny_models"),
    *fields(ConvertedModel, "converted_models"),
]


@pytest.mark.parametrize(("name", "section", "field"), ALL_FIELDS, ids=[name for name, *_ in ALL_FIELDS])
def test_every_field_says_whose_results_it_changes(name, section, field):
    stages, mark = section.stages_of(field), section.mark(field)
    assert bool(stages) != bool(mark.get("operational") or mark.get("path") or mark.get("expanded")), name
    assert set(stages) <= set(RULES), f"{name} names a stage that is no rule"


def test_every_stage_is_a_rule():
    assert set(STAGES) <= set(RULES)


def test_every_rule_declares_the_settings_of_its_stage():
    with_settings = {stage for _, section, field in ALL_FIELDS for stage in section.stages_of(field)}
    for stage in sorted(with_settings):
        declared = f'**settings("{stage}")' in RULES[stage] or OWN_PARAMS.get(stage, "-") in RULES[stage]
        assert declared, f"rule {stage} lacks **settings"
    for stage, text in RULES.items():
        for other in re.findall(r'settings\("(\w+)"\)', text):
            assert other == stage, f"rule {stage} declares the settings of {other}"


def settings_read(script):
    """Dotted names under `config` that a script reads, the longest of each chain of attributes."""
    tree = ast.parse(script.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            aliases[node.targets[0].id] = ast.unparse(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            root, _, rest = ast.unparse(node).partition(".")
            chain = f"{aliases.get(root, root)}.{rest}"
            if chain.startswith("config."):
                yield chain.removeprefix("config.")


def changing_fields(name):
    """Dotted names of the fields that change results at or below a setting."""
    return {n: s.stages_of(f) for n, s, f in ALL_FIELDS if (n == name or n.startswith(f"{name}.")) and s.stages_of(f)}


# rules that are given the whole config: the report shows it, and no rule reads the estimate
WHOLE_CONFIG = {"write_report", "estimate_cost", "preflight"}
# settings that a script is handed with a section, but that its stage does not use for its results
NOT_USED = {
    ("manifest", "clustering.k"),
    ("clusters", "clustering.poor_fit"),
    ("manifest", "dataset.leaks"),
    ("manifest", "dataset.near_duplicates"),
    ("evaluate_model", "evaluation.learned_above"),
    ("evaluate_model", "evaluation.holdout"),
}


@pytest.mark.parametrize("script", sorted((REPO / "workflow_scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_reads_no_setting_that_its_rule_does_not_declare(script):
    stage = script.stem
    if stage in WHOLE_CONFIG:
        return
    for name in settings_read(script):
        if name.startswith(("tiny_models", "converted_models")):
            continue
        if name.endswith(".checkpoint"):
            parent = name.removesuffix(".checkpoint")
            names = [f"{parent}.{key}" for key in ("name", "revision", "trust_remote_code")]
        else:
            names = [name]
        for dotted in names:
            section = SECTIONS[dotted.split(".")[0]]
            if "." in dotted and dotted.split(".")[1] not in section.model_fields:
                continue  # a method of the section
            for field, stages in changing_fields(dotted).items():
                declared = stage in stages or (stage, field) in NOT_USED
                assert declared, f"{stage} reads {field}, which its rule does not declare"


def test_settings_of_a_stage_are_those_that_are_marked():
    changed = section_settings(DEFAULT, "finetune_model")["target_model"]
    assert set(changed) == {"name", "revision", "trust_remote_code", "chat_template", "training"}
    assert changed["training"]["learning_rate"] == 5e-4
    assert not {"device", "save_every", "loader_workers", "processes", "nodes"} & set(changed["training"])
    assert section_settings(DEFAULT, "density") == {"selection": {"gamma": 1.0, "cluster_groups": 1}}
    assert section_settings(DEFAULT, "merge") == {}
    assert section_settings(DEFAULT, "shards") == {"dataset": {"shards": 4}}


def test_a_new_field_of_a_section_changes_the_results_of_its_stages():
    class Wider(SECTIONS["clustering"]):
        metric: str = setting("cosine", "a setting that was just added")

    assert Wider(k=3).results_depend_on("clusters")["metric"] == "cosine"
    with pytest.raises(ValidationError):
        Config.model_validate({"run": "x"})
