"""Each entry of the table of families, against the modules of a small model and two short trainings."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES as BUILDERS
from families import build
from finetuning import run, weights
from test_families import SHARES

from coincide.base.sections import Checkpoint, Lora, Training
from coincide.models.families import FAMILIES, FamilyError, family_of, family_of_processor, matching_modules
from coincide.models.loading import load_config, load_model
from coincide.training.adaptation import freeze, with_lora

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
LINEAR_LAYERS = 7  # of a decoder layer: q, k, v, o, gate, up, down


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Function that gives the folder of a family's small model."""
    folder, done = tmp_path_factory.mktemp("table"), {}

    def folder_of(name):
        if name not in done:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build(name, folder / name)
            done[name] = folder / name
        return done[name]

    return folder_of


def trained(folder, tiny_data, tmp_path, name, **settings):
    """Folder after two steps on samples with an image."""
    records = [record for record in tiny_data[0] if "image" in record][:4]
    settings = {"epochs": 1.0, "batch_size": 2, "learning_rate": 1e-2, **settings}
    return run(folder, (records, tiny_data[1]), tmp_path, name, **settings)


def changes(folder, other):
    """For each part of the model, the share of its tensors with a gradient's worth of difference."""
    models = [load_model(path, device="cpu")[0] for path in (folder, other)]
    before, after = (dict(model.named_parameters()) for model in models)
    assert before.keys() == after.keys()
    family = family_of(models[0].config)
    changed = {"vision_tower": [], "projector": [], "language_model": []}
    for name, value in before.items():
        changed[family.part_of(name)].append(not torch.allclose(value, after[name], atol=1e-6))
    return changed


@pytest.mark.parametrize("name", BUILDERS)
def test_an_entry_names_the_modules_of_its_models(name, built):
    model, processor = load_model(built(name), device="cpu")
    family = FAMILIES[name]
    assert family_of(model.config) is family_of_processor(processor) is family
    names = [module for module, _ in model.named_modules()]
    for pattern in (family.projector, family.vision_tower, family.language_model):
        assert matching_modules(names, pattern), pattern
    assert {family.part_of(parameter) for parameter, _ in model.named_parameters()} == {
        "projector",
        "vision_tower",
        "language_model",
    }
    targets = matching_modules(names, family.lora_targets)
    assert len(targets) == LINEAR_LAYERS * len(model.get_decoder().layers)
    assert all(isinstance(model.get_submodule(target), torch.nn.Linear) for target in targets)
    decoder = {id(parameter) for parameter in model.get_decoder().parameters()}
    assert all(id(model.get_submodule(target).weight) in decoder for target in targets)
    assert family.causal == SHARES[name]
    if family.lmms_model not in (None, "coincide"):
        from lmms_eval.models import AVAILABLE_CHAT_TEMPLATE_MODELS, AVAILABLE_SIMPLE_MODELS

        assert family.lmms_model in {**AVAILABLE_SIMPLE_MODELS, **AVAILABLE_CHAT_TEMPLATE_MODELS}


@pytest.mark.parametrize("name", BUILDERS)
def test_lora_adapts_the_decoder_and_trains_the_projector(name, built, tiny_data, tmp_path):
    folder = trained(built(name), tiny_data, tmp_path, "lora", lora=LORA)
    adapted = {key.split(".lora_")[0] for key in weights(folder) if ".lora_" in key}
    assert len(adapted) == LINEAR_LAYERS * 4
    changed = changes(built(name), folder)
    assert any(changed["projector"])
    assert any(changed["language_model"])
    assert not any(changed["vision_tower"])


@pytest.mark.parametrize("name", BUILDERS)
def test_the_vision_tower_is_frozen_and_the_projector_has_its_learning_rate(name, built, tiny_data, tmp_path):
    settings = {"freeze": ["vision_tower"], "projector_learning_rate": 1e-9}
    changed = changes(built(name), trained(built(name), tiny_data, tmp_path, "frozen", **settings))
    assert not any(changed["vision_tower"])
    assert not any(changed["projector"])
    assert any(changed["language_model"])


def test_the_merger_of_qwen_is_trained_at_its_learning_rate_with_lora(built, tiny_data, tmp_path):
    base = built("qwen2_5_vl")
    slow = changes(base, trained(base, tiny_data, tmp_path, "slow", lora=LORA, projector_learning_rate=1e-9))
    assert not any(slow["projector"])
    assert any(slow["language_model"])
    fast = {"learning_rate": 1e-9, "projector_learning_rate": 1e-2}
    changed = changes(base, trained(base, tiny_data, tmp_path, "fast", lora=LORA, **fast))
    assert all(changed["projector"])


def test_without_freezing_every_part_is_trained(tiny_model, tiny_data, tmp_path):
    changed = changes(tiny_model, trained(tiny_model, tiny_data, tmp_path, "all"))
    assert all(any(of_part) for of_part in changed.values())


def test_each_part_can_be_frozen(tiny_model):
    for part in ("vision_tower", "projector", "language_model"):
        model, _ = load_model(tiny_model, device="cpu")
        freeze(model, [part])
        family = family_of(model.config)
        assert {family.part_of(name) for name, p in model.named_parameters() if not p.requires_grad} == {part}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": r".*no_such_layer"},
            r"training\.lora\.target_modules: '\.\*no_such_layer' matches no module",
        ),
        ({"target_modules": ["q_proj", "kproj"]}, r"training\.lora\.target_modules: 'kproj' matches no module"),
        ({"modules_to_save": ["merger"]}, r"training\.lora\.modules_to_save: 'merger' matches no module"),
    ],
)
def test_a_pattern_that_matches_no_module_is_an_error(tiny_model, settings, message):
    model, _ = load_model(tiny_model, device="cpu")
    with pytest.raises(FamilyError, match=message) as error:
        with_lora(model, Lora(**settings))
    assert re.search(r"Modules: .*language_model\.layers\.N\.self_attn\.\w_proj", str(error.value))


def test_given_modules_are_used_as_they_are(tiny_model):
    model, _ = load_model(tiny_model, device="cpu")
    adapted = with_lora(model, Lora(target_modules=["q_proj"], modules_to_save=[]))
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert names
    assert all(".q_proj.lora_" in name for name in names)


def test_an_unknown_family_is_an_error_that_says_what_to_add(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    with pytest.raises(FamilyError, match=r"unknown model family 'blip-2'; .*coincide/models/families\.py"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(FamilyError, match="unknown processor SimpleNamespace"):
        family_of_processor(SimpleNamespace())


def test_settings_that_contradict_each_other_are_errors():
    for settings, message in (
        ({"freeze": ["vision_tower"], "lora": LORA}, "freeze applies to training without lora"),
        ({"freeze": ["vision_tower", "projector", "language_model"]}, "nothing would be trained"),
        ({"freeze": ["projector"], "projector_learning_rate": 1e-3}, "freeze names the projector"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(learning_rate=1e-3, **settings)


def test_the_config_of_an_adapter_is_that_of_its_base_model(tiny_model, tiny_data, tmp_path):
    adapter = trained(tiny_model, tiny_data, tmp_path, "adapter", lora=LORA)
    assert load_config(Checkpoint(str(adapter))).model_type == "llava"
