"""The config is checked before any job starts, and the message names each wrong key and its fix."""

import copy
import json
import re

import jsonschema
import pytest
import yaml
from conftest import REPO, make_record, write_dataset

from coincide.models.layers import resolve_layers
from coincide.workflow.config import ConfigError, check_config, schema

DEFAULT = yaml.safe_load((REPO / "config.yaml").read_text())


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPO)


def changed(key, value):
    """The default config with a changed value, by its dotted key."""
    config = copy.deepcopy(DEFAULT)
    *path, last = key.split(".")
    section = config
    for name in path:
        section = section[name]
    section[last] = value
    return config


def test_the_default_config_is_valid_and_defaults_are_filled_in():
    config = check_config(DEFAULT)
    assert config.target_model.training.weight_decay == 0
    assert check_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("selection.fractoins", [0.2], r"selection\.fractoins: unknown key.*fractions"),
        ("nonsense", 1, r"nonsense: unknown key.*clustering"),
        ("target_model.training.epoch", 1, r"target_model\.training\.epoch: unknown key.*epochs"),
        ("clustering.k", "many", r"clustering\.k: .*integer.*'many'"),
        ("clustering.k", True, r"clustering\.k: .*integer"),
        ("selection.fractions", [0.2, 1.5], r"selection\.fractions\[1\]: .*less than or equal to 1.*1\.5"),
        ("selection.fractions", [0.0], r"selection\.fractions\[0\]: .*greater than 0"),
        ("selection.fractions", [], r"selection\.fractions: .*at least 1"),
        ("selection.fractions", [0.2, 0.2], "duplicate value; remove one"),
        ("selection.fractions", [0.00001], r"selection\.fractions: 1e-05 of 15000 samples keeps none"),
        (
            "selection.methods",
            ["magic"],
            r"selection\.methods: unknown method 'magic'; available: coincide, clip_score",
        ),
        (
            "selection.methods",
            ["el2n"],
            r"selection\.methods: el2n needs .*; set reference_model\.sample_metrics: true",
        ),
        ("selection.methods", ["visnec"], r"visnec needs loss_no_image; add it to reference_model\.extra_metrics"),
        (
            "reference_model.extra_metrics",
            ["vision_features"],
            r"reference_model\.extra_metrics: .*; set reference_model\.sample_metrics: true",
        ),
        ("reference_model.extra_metrics", ["loss_no_image"] * 2, "extra_metrics: duplicate value; remove one"),
        ("reference_model.extra_metrics", ["loss"], r"reference_model\.extra_metrics\[0\]: .*'loss'"),
        ("selection.method_settings", {"el2n": {"keep": "x"}}, r"selection\.method_settings\.el2n: keep: .*'x'"),
        ("selection.method_settings", {"eln": {}}, r"selection\.method_settings\.eln: unknown method 'eln'"),
        ("mini_mix.weights", {"digit": 9}, r"mini_mix\.weights: unknown source 'digit'; available: .*counting"),
        ("mini_mix.weights", {"compositions": 9}, r"mini_mix\.weights: unknown source 'compositions'"),
        ("clustering.k", 30000, r"clustering\.k: 30000 clusters for 15000 samples; at most 15000"),
        ("reference_model.layers", [1, 4], r"reference_model\.layers: layer 4 does not exist: the model has 4"),
        ("reference_model.layers", [0.5, 1], r"reference_model\.layers: .* name a layer twice"),
        ("reference_model.dtype", "int4", r"reference_model\.dtype"),
        ("tiny_models.target", {}, r"tiny_models\.target: set shape and training, .*, or pretrained"),
        (
            "tiny_models.target",
            {"pretrained": "target", "training": {"learning_rate": 0.1}},
            r"tiny_models\.target: pretrained and shape or training exclude each other",
        ),
        ("reference_model.name", "/no/such/model", r"reference_model\.name: the folder /no/such/model does not exist"),
        ("dataset.annotations", "none.json", r"dataset\.annotations: none\.json does not exist: set"),
        ("dataset.images", "none", r"dataset\.images: the folder none does not exist; set"),
        ("run", "../elsewhere", r"run: "),
        ("run", None, r"run: "),
        ("evaluation.groups", [], r"evaluation\.groups: "),
        ("evaluation.groups", [{"name": "a", "task": ["x"]}], r"evaluation\.groups\[0\]\.task: unknown key.*tasks"),
        ("evaluation.include_path", "nowhere", r"evaluation\.include_path: the folder nowhere does not exist"),
    ],
)
def test_an_error_names_the_key_and_the_fix(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_config(changed(key, value))


def test_one_message_lists_all_errors():
    config = changed("clustering.k", 0)
    del config["dataset"]
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert "dataset: missing; add it" in str(error.value)
    assert "clustering.k: " in str(error.value)


def test_sizes_are_checked_against_the_users_dataset(tmp_path):
    path = write_dataset(tmp_path, [make_record(i) for i in range(10)])
    config = changed("dataset.annotations", str(path))
    config["dataset"]["images"] = str(tmp_path)
    with pytest.raises(ConfigError, match="227 clusters for 10 samples"):
        check_config(config)
    config["clustering"]["k"] = 3
    assert check_config(config)


def test_layers_are_checked_against_the_users_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 2}}))
    with pytest.raises(ConfigError, match="layer 2 does not exist: the model has 2"):
        check_config(changed("reference_model.name", str(tmp_path)) | {"run": "x"})


def test_layers_by_fraction_of_depth():
    assert resolve_layers([1 / 6, 0.5, 5 / 6], 24) == [3, 11, 19]  # as published
    assert resolve_layers([3, 7, 11, 15, 19], 24) == [3, 7, 11, 15, 19]
    assert resolve_layers([0.01], 4) == [0]


def test_the_committed_schema_is_current():
    assert (REPO / "config/schema.json").read_text() == schema(), "run `make schema`"


def test_every_rule_that_the_slurm_profile_names_exists():
    profile = yaml.safe_load((REPO / "profiles/slurm/config.yaml").read_text())
    rules = "".join(path.read_text() for path in (REPO / "rules").glob("*.smk"))
    text = (REPO / "profiles/slurm/config.yaml").read_text()
    partitions = re.findall(r"^  # (\w+): \{slurm_partition: GPU_PARTITION\} # <--$", text, re.MULTILINE)
    assert {"activations", "clip_scores", "finetune_model", "difficulty", "evaluate_model"} < set(partitions)
    for name in {*partitions, *(profile["set-resources"] or {})}:
        assert f"\nrule {name}:" in rules or f"\ncheckpoint {name}:" in rules


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "10e-4"])
def test_a_number_with_an_exponent_is_a_number_even_where_yaml_reads_text(text):
    value = yaml.safe_load(f"value: {text}")["value"]
    config = check_config(changed("target_model.training.learning_rate", value), files=False)
    assert config.target_model.training.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["0.001", "1e", "e-3", "1e-3x", "many", "nan"])
def test_other_text_is_no_number(text):
    with pytest.raises(ConfigError, match=r"learning_rate: must be a valid number"):
        check_config(changed("target_model.training.learning_rate", text), files=False)


def test_the_schemas_are_current_and_accept_the_configs():
    complete, overlay = (REPO / "config" / name for name in ("schema.json", "overlay.schema.json"))
    assert complete.read_text() == schema(), "run `make schema`"
    assert overlay.read_text() == schema(overlay=True), "run `make schema`"
    jsonschema.validate(DEFAULT, json.loads(complete.read_text()))
    overlays = [*(REPO / "config").glob("*.yaml"), REPO / "tests/config/small.yaml"]
    for path in overlays:
        jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(overlay.read_text()))
        if path.parent == REPO / "config":
            assert path.read_text().startswith("# yaml-language-server: $schema=overlay.schema.json\n")
    with pytest.raises(jsonschema.ValidationError):  # the last one lacks most sections
        jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(complete.read_text()))
    assert (REPO / "config.yaml").read_text().startswith("# yaml-language-server: $schema=config/schema.json\n")


@pytest.mark.parametrize(
    "values",
    [{"selection": {"methods": ["magic"]}}, {"selection": {"method_settings": {"magic": {}}}}, {"selections": {}}],
)
def test_the_schema_for_overlays_knows_keys_and_methods(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json.loads(schema(overlay=True)))
