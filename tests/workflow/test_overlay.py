"""Settings that --config gives on the command line have the types that they would have in a file."""

import json
import shlex

import pytest
import yaml
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake.cli import parse_config
from snakemake.utils import update_config

from coincide.workflow.config import ConfigError
from coincide.workflow.overlay import check_runs, with_types

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), items),
    max_leaves=8,
)
SECTIONS = st.lists(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), VALUES), min_size=1, max_size=3)


def from_command_line(*entries, configfile=()):
    """What a config file and the arguments of --config give, as in the Snakefile."""
    merged = dict(configfile)
    update_config(merged, parse_config(entries))
    return with_types(merged, entries)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("selection='{fractions: [0.1, 1e-3]}'", {"selection": {"fractions": [0.1, "1e-3"]}}),  # 1e-3: as in YAML
        ("""'selection={"temperature": 0.5}'""", {"selection": {"temperature": 0.5}}),
        ("""'selection={"temperature":0.5}'""", {"selection": {"temperature": 0.5}}),
        ("""dataset='{images: null, shards: 8, decode_images: false}'""",)
        + ({"dataset": {"images": None, "shards": 8, "decode_images": False}},),
        ("""target_model='{label: "12"}'""", {"target_model": {"label": "12"}}),
        ("replicates='[0, 1]'", {"replicates": [0, 1]}),
        ("runs='[{run: a, clustering: {k: 7}}]'", {"runs": [{"run": "a", "clustering": {"k": 7}}]}),
        ("run=mine", {"run": "mine"}),
        ("clustering='k: 7'", {"clustering": {"k": 7}}),
        (
            "selection='{fractions: [0.1'",
            {"selection": "{fractions: [0.1"},
        ),  # not YAML: the check of the config says so
    ],
)
def test_arguments_of_config_are_read_as_yaml(argument, expected):
    assert from_command_line(*shlex.split(argument)) == expected


@given(SECTIONS)
@settings(max_examples=50, deadline=None)
def test_a_mapping_on_the_command_line_is_what_a_file_with_it_gives(sections):
    texts = [json.dumps(section) for section in sections]
    from_file = {}
    for text in texts:
        update_config(from_file, {"section": yaml.safe_load(text)})
    assert from_command_line(*(f"section={text}" for text in texts)) == from_file


def test_values_of_the_config_file_keep_their_types():
    configfile = {"target_model": {"label": "7", "seeds": [1]}, "run": "7"}
    entries = ["target_model={seeds: [7]}"]
    assert from_command_line(*entries, configfile=configfile) == {
        "target_model": {"label": "7", "seeds": [7]},
        "run": "7",
    }


def test_an_own_dataset_on_the_command_line_does_not_inherit_that_of_the_demo():
    overrides = from_command_line("dataset={annotations: /data/mine/train.json}", "run=mine")
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(config, overrides)
    checked = check_runs(config, files=False, overrides=overrides)["mine"]
    assert (checked.dataset.images, checked.clustering.k) == ("/data/mine", None)
    assert checked.selection.budget == "published"


def test_another_target_model_does_not_inherit_the_seeds_of_the_demo():
    assert target_model("target_model={training: {epochs: 2}}").seeds == [0, 1, 2]
    assert target_model("target_model={name: some/model}").seeds == [0]
    assert target_model("target_model={name: some/model, seeds: [4, 5]}").seeds == [4, 5]


def test_adapters_do_not_inherit_what_the_demo_freezes():
    assert frozen("target_model={training: {epochs: 2}}") == ["vision_tower"]
    assert frozen("target_model={training: {lora: null}}") == ["vision_tower"]
    assert frozen("target_model={training: {lora: {r: 8, alpha: 16}}}") == []
    with pytest.raises(ConfigError, match="freeze applies to training without lora"):
        frozen("target_model={training: {lora: {r: 8, alpha: 16}, freeze: [vision_tower]}}")


def frozen(entry):
    return target_model(entry).training.freeze


def target_model(entry):
    overrides = from_command_line(entry)
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(config, overrides)
    return check_runs(config, files=False, overrides=overrides)["demo"].target_model


def test_a_missing_space_after_a_colon_is_named():
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(config, from_command_line("selection={temperature:0.5}"))
    with pytest.raises(ConfigError, match=r"selection\.temperature:0\.5: unknown key; .*space after the colon"):
        check_runs(config, files=False)


def test_runs_that_differ_in_more_than_seeds_are_variants_and_the_others_replicates():
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    entries = [
        {"run": "first"},
        {"run": "floor", "selection": {"constraints": {"at_least": {"text_only": 0.03}}}},
        {"run": "again", "clustering": {"seed": 1}, "selection": {"seed": 1}, "target_model": {"seeds": [1]}},
        {"run": "larger", "clustering": {"seed": 1, "k": 20}},
    ]
    configs = check_runs({**values, "runs": entries}, files=False)
    assert {run: (config.variant, config.replicate) for run, config in configs.items()} == {
        "first": ("", 0),
        "floor": ("floor", 0),
        "again": ("", 2),
        "larger": ("larger", 0),
    }
    repeated = check_runs({**values, "runs": entries[:2], "replicates": [3, 4]}, files=False)
    assert {run: (config.variant, config.replicate) for run, config in repeated.items()} == {
        "first-3": ("", 0),
        "first-4": ("", 1),
        "floor-3": ("floor", 0),
        "floor-4": ("floor", 1),
    }
