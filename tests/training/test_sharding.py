"""Trainings whose model is sharded over two processes (FSDP), over gloo: the results are those of one process.

The data has samples with and without images, so that a process may have a batch of text alone.
"""

import os

import numpy as np
import pytest
import torch
from conftest import REPO
from finetuning import features_of, losses, run, weights
from pydantic import ValidationError
from replicas import REPLICAS, build

from coincide.base.sections import Checkpoint, Training
from coincide.extraction.features import decoder_layers
from coincide.models.empty import build_empty
from coincide.models.families import family_of
from coincide.models.loading import load_model
from coincide.training.adaptation import sharded_modules
from coincide.training.collator import IGNORED_LABEL, ROWS, Collator
from coincide.training.distributed import LaunchError, launch
from coincide.training.trainers import SCORING_NETWORK

LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def sharded(monkeypatch):
    """Settings of a sharded training, which this fixture lets run on a CPU."""

    def launch_sharded(module, *arguments, **options):
        launch("sharded_worker", *arguments, **options)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests")]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("coincide.training.finetune.launch", launch_sharded)
    monkeypatch.setattr("coincide.training.finetune.pick_device", lambda device: "cuda")
    return {"sharding": "fsdp", "processes": 2, "device": "auto"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": LORA, "projector_learning_rate": 3e-3, "gradient_checkpointing": True},
        {"freeze": ["vision_tower"], "gradient_accumulation": 2},
    ],
    ids=["all weights", "lora", "frozen vision tower"],
)
def test_a_sharded_training_has_the_result_of_one_process(tiny_model, tiny_data, tmp_path, request, settings):
    one = run(tiny_model, tiny_data, tmp_path, "one", epochs=5, **settings)
    shards = run(tiny_model, tiny_data, tmp_path, "sharded", epochs=5, **settings, **request.getfixturevalue("sharded"))
    assert len(losses(one)) >= 1
    np.testing.assert_allclose(losses(shards), losses(one), rtol=1e-4)
    expected, found = weights(one), weights(shards)
    if "lora" not in settings:  # accelerate gathers tied weights twice
        embeddings = next(value for name, value in found.items() if name.endswith("embed_tokens.weight"))
        assert torch.equal(found.pop("lm_head.weight"), embeddings)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"lora": LORA, "dtype": "bfloat16"}], ids=["all weights", "lora with a base in half precision"]
)
def test_a_sharded_training_resumes_with_the_same_result(
    tiny_model, tiny_data, tmp_path, monkeypatch, sharded, settings, capfd
):
    settings = settings | sharded
    whole = run(tiny_model, tiny_data, tmp_path, "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setenv("STOP_AFTER", "8")
        with pytest.raises(LaunchError):
            run(tiny_model, tiny_data, tmp_path, "killed", **settings)
    capfd.readouterr()
    resumed = run(tiny_model, tiny_data, tmp_path, "killed", **settings)
    assert "checkpoint-6" in capfd.readouterr().err
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)
        assert value.dtype == torch.float32  # what is trained


def test_the_scoring_network_of_a_sharded_training(tiny_model, tiny_data, tmp_path, request):
    features = features_of(tiny_data[0], tmp_path)
    one = run(tiny_model, tiny_data, tmp_path, "one", features=features)
    sharded = request.getfixturevalue("sharded")
    shards = run(tiny_model, tiny_data, tmp_path, "sharded", features=features, **sharded)
    np.testing.assert_allclose(losses(shards), losses(one), rtol=1e-4)
    network, expected = ((folder / SCORING_NETWORK) for folder in (shards, one))
    assert network.exists()
    assert expected.exists()


@pytest.mark.parametrize("name", REPLICAS)
def test_what_is_sharded_is_in_the_model(name, tmp_path):
    """LLaVA's list of classes has CLIP's text tower, which a LLaVA does not have and accelerate therefore refuses."""
    build(name, tmp_path / "model")
    model = build_empty(Checkpoint(str(tmp_path / "model")))
    classes = sharded_modules(model)
    assert set(classes) <= {type(module).__name__ for module in model.modules()}
    assert type(decoder_layers(model)[0]).__name__ in classes


@pytest.mark.parametrize("name", [name for name in REPLICAS if "paligemma" not in name])  # which needs an image
def test_a_batch_without_images_has_an_empty_one_that_teaches_nothing(name, tiny_data, tmp_path):
    build(name, tmp_path / "model")
    model, processor = load_model(tmp_path / "model", device="cpu")
    records, images = tiny_data
    rows = [{"row": i} for i, record in enumerate(records) if "image" not in record][:2]
    plain = Collator(processor, records, images)(rows)
    collator = Collator(processor, records, images, include_rows=True, always_images=True)
    batch = collator(rows)
    assert "pixel_values" in batch
    assert "pixel_values" not in plain
    assert len(batch["input_ids"]) == len(batch["labels"]) == 3
    assert (batch["labels"][-1] == IGNORED_LABEL).all()
    assert batch.pop(ROWS).tolist() == [row["row"] for row in rows]
    loss = model(**batch).loss
    torch.testing.assert_close(loss, model(**plain).loss, rtol=1e-4, atol=1e-5)
    loss.backward()
    family = family_of(model.config)
    gradients = [p.grad for name, p in model.named_parameters() if family.part_of(name) == "projector"]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert len(collator([{"row": 1}, {"row": 2}])["input_ids"]) == 2  # has images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu", "processes": 2}, "fsdp requires GPUs, since accelerate shards no model on a CPU"),
        ({}, "fsdp distributes a model over processes, but there is one"),
    ],
)
def test_sharding_that_cannot_work_is_refused_in_the_config(settings, message):
    with pytest.raises(ValidationError, match=message):
        Training(learning_rate=1e-3, sharding="fsdp", **settings)
