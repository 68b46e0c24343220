"""Finetuning: resuming, adapters, several processes, and errors."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPO
from finetuning import SETTINGS, changed_settings, features_of, killed_at, log_entries, losses, run, weights
from jobs import error_in_log
from safetensors.torch import load_file

from coincide.base.sections import Checkpoint
from coincide.models.loading import load_model
from coincide.training.distributed import LaunchError, launch
from coincide.training.finetune import DeviceError, _fingerprint, finetune
from coincide.training.trainers import SCORING_NETWORK


@pytest.mark.parametrize(
    ("lora", "scoring"),
    [(None, False), ({"r": 4, "alpha": 8, "dropout": 0.1}, False), (None, True), ({"r": 4, "alpha": 8}, True)],
    ids=["all weights", "lora", "scoring", "scoring with lora"],
)
def test_a_killed_training_resumes_with_the_same_result(tiny_model, tiny_data, tmp_path, monkeypatch, lora, scoring):
    features = features_of(tiny_data[0], tmp_path) if scoring else None
    whole = run(tiny_model, tiny_data, tmp_path, "whole", lora=lora, features=features)
    assert (whole / SCORING_NETWORK).exists() == scoring

    with killed_at(8, monkeypatch):
        run(tiny_model, tiny_data, tmp_path, "killed", lora=lora, features=features)
    assert not (tmp_path / "killed").exists()
    checkpoints = (tmp_path / "checkpoints").rglob("checkpoint-*")
    assert [p.name for p in checkpoints] == ["checkpoint-6"]
    resumed = run(tiny_model, tiny_data, tmp_path, "killed", lora=lora, features=features)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert log_entries(resumed)[-1]["step"] == 12
    assert (resumed / "trainer_state.json").exists()
    assert not list(resumed.glob("*.bin")) + list(resumed.glob("*.pt")) + list(resumed.glob("*.pkl"))


def test_checkpoints_of_other_settings_are_not_used(tiny_model, tiny_data, tmp_path):
    records, _ = tiny_data
    checkpoint = Checkpoint(str(tiny_model))
    other_answer = [*records[:-1], {**records[-1], "conversations": [*records[-1]["conversations"][:-1]]}]
    other_model = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other_model / "config.json").read_text())
    (other_model / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -1}))
    other_template = replace(checkpoint, chat_template="{{ messages }}")
    fingerprints = {
        _fingerprint(checkpoint, records, SETTINGS, 1),
        _fingerprint(checkpoint, records, SETTINGS, 2),
        _fingerprint(checkpoint, records[1:], SETTINGS, 1),
        _fingerprint(checkpoint, other_answer, SETTINGS, 1),
        _fingerprint(checkpoint, records, changed_settings(epochs=3), 1),
        _fingerprint(checkpoint, records, changed_settings(lora={"r": 4}), 1),
        _fingerprint(Checkpoint(str(other_model)), records, SETTINGS, 1),
        _fingerprint(other_template, records, SETTINGS, 1),
        _fingerprint(checkpoint, records, SETTINGS, 1, version=2),
    }
    assert len(fingerprints) == 9


def test_a_checkpoint_is_used_wherever_the_same_training_continues(tiny_model, tiny_data, tmp_path):
    records, _ = tiny_data
    expected = _fingerprint(Checkpoint(str(tiny_model)), records, SETTINGS, 1)
    copied = shutil.copytree(tiny_model, tmp_path / "copied")
    reordered = [dict(reversed(record.items())) for record in records]
    changes = {"save_every": 7, "loader_workers": 2, "device": "auto", "processes": 2, "nodes": 2}
    assert _fingerprint(Checkpoint(str(copied)), records, SETTINGS, 1) == expected
    assert _fingerprint(Checkpoint(str(tiny_model)), reordered, SETTINGS, 1) == expected
    for name, value in changes.items():
        changed = changed_settings(**{name: value})
        assert _fingerprint(Checkpoint(str(tiny_model)), records, changed, 1) == expected, name


def test_a_hub_model_is_identified_by_its_commit(tiny_model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    fingerprints = set()
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
        (repository / "refs/main").write_text(commit)
        fingerprints.add(_fingerprint(Checkpoint("someone/model"), tiny_data[0], SETTINGS, 1))
    assert len(fingerprints) == 2
    pinned = Checkpoint("someone/model", revision="b" * 40)
    assert _fingerprint(pinned, tiny_data[0], SETTINGS, 1) in fingerprints


def test_a_training_resumes_after_an_operational_setting_changed(tiny_model, tiny_data, tmp_path, monkeypatch, caplog):
    whole = run(tiny_model, tiny_data, tmp_path, "whole")
    with killed_at(8, monkeypatch):
        run(tiny_model, tiny_data, tmp_path, "killed")
    with caplog.at_level("INFO"):
        resumed = run(tiny_model, tiny_data, tmp_path, "killed", save_every=4, loader_workers=1)
    assert "resuming from" in caplog.text
    assert "checkpoint-6" in caplog.text
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)


def test_a_training_is_not_repeated_for_a_model_of_another_name(tiny_model, tiny_data, tmp_path, caplog):
    records, images = tiny_data

    def train(label, records=records, reuse=()):
        output = tmp_path / label / "full/1/1"
        finetune(
            tiny_model, records, images, SETTINGS, seed=1, output=output, checkpoints=tmp_path / "c", reusable=reuse
        )
        return output

    first = train("first")
    (first / ".snakemake_timestamp").touch()
    caplog.clear()
    with caplog.at_level("INFO"):
        second = train("second", reuse=[first])
    assert f"the same training as {first}" in caplog.text
    files = {path.name for path in first.iterdir()} - {".snakemake_timestamp"}
    assert {path.name for path in second.iterdir()} == files
    assert (second / "model.safetensors").stat().st_ino == (first / "model.safetensors").stat().st_ino
    third = train("third", records[1:], reuse=[first, second])
    assert third.stat().st_ino != first.stat().st_ino
    assert (third / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()


def test_training_lowers_the_loss(tiny_model, tiny_data, tmp_path):
    folder = run(tiny_model, tiny_data, tmp_path, "m", epochs=30.0, learning_rate=3e-3, save_every=1000)
    assert losses(folder)[-1] < 0.5 * losses(folder)[0]


def test_an_adapter_is_saved_without_its_base_model_and_loads_with_it(tiny_model, tiny_data, tmp_path):
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    folder = run(base, tiny_data, tmp_path, "adapter", lora=lora, gradient_checkpointing=True)
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    tuned, processor = load_model(str(folder), device="cpu")
    untuned, _ = load_model(base, device="cpu")
    inputs = processor(text="<s>what is thing1?", add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        difference = (tuned(**inputs).logits - untuned(**inputs).logits).abs().max()
    assert difference > 1e-4
    names = load_file(folder / "adapter_model.safetensors")
    assert all("language_model" in name or "multi_modal_projector" in name for name in names)
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, untuned.get_parameter(n))}
    assert not [name for name in changed if "vision" in name]
    assert [name for name in changed if "q_proj" in name]


def test_two_processes_have_the_losses_of_one(tiny_model, tiny_data, tmp_path, monkeypatch):
    one = run(tiny_model, tiny_data, tmp_path, "one", epochs=5)
    two = run(tiny_model, tiny_data, tmp_path, "two", epochs=5, processes=2)
    assert len(losses(one)) == 3
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    weights_of_one, weights_of_two = weights(one), weights(two)
    assert weights_of_two.keys() == weights_of_one.keys()
    for name, value in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-3, atol=1e-4)
    assert not list(two.glob("*.bin"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match="fsdp requires GPUs"):
        run(tiny_model, tiny_data, tmp_path, "sharded", processes=2, sharding="fsdp", device="auto")


def test_processes_do_not_copy_frozen_weights(tiny_model, tiny_data, tmp_path, monkeypatch):
    """On one node they are pages of the same files."""

    def launch_and_compare(module, *arguments, **options):
        launch("mapped_worker", *arguments, **options)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests")]))
    monkeypatch.setattr("coincide.training.finetune.launch", launch_and_compare)
    run(tiny_model, tiny_data, tmp_path, "adapter", epochs=1, lora={"r": 4, "alpha": 8}, processes=2)


def test_a_failing_process_fails_the_training(tiny_model, tiny_data, tmp_path):
    records, images = tiny_data
    broken = [{**record, "image": "nowhere.png"} if "image" in record else record for record in records]
    with pytest.raises(LaunchError, match=r"failed with exit code 1 \(training.processes: 2, training.nodes: 1\)"):
        run(tiny_model, (broken, images), tmp_path, "broken", processes=2)
    assert not (tmp_path / "broken").exists()


FAILING_TRAINING = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from coincide.base.sections import Training
from coincide.training.finetune import finetune
training = Training(learning_rate=1e-3, {settings})
finetune("model", [], "images", training, seed=0, output="output", checkpoints="checkpoints")
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("nodes=2", "error: training.nodes > 1 requires a Slurm job; set training.nodes to 1"),
        ("sharding='fsdp', processes=2", "error: training.sharding: fsdp requires GPUs"),
    ],
)
def test_settings_that_cannot_run_here_are_one_message_in_the_log(tmp_path, settings, message):
    lines = error_in_log(tmp_path, FAILING_TRAINING.format(settings=settings))
    assert [line[: len(message)] for line in lines] == [message]
    assert not (tmp_path / "checkpoints").exists()
