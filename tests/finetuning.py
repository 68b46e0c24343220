"""Trainings of the tiny model that several tests share."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.torch import load_file

from coincide.base.sections import Training
from coincide.training import finetune as module
from coincide.training.finetune import finetune

SETTINGS = Training(epochs=2, batch_size=4, learning_rate=1e-3, device="cpu", save_every=3)


def changed_settings(**changes):
    """SETTINGS with some fields changed."""
    return Training(**{**SETTINGS.model_dump(), **changes})


def run(model, data, folder, name, *, features=None, **changes):
    """Finetune with SETTINGS and the given changes; the folder of the finetuned model."""
    records, images = data
    finetune(
        model,
        records,
        images,
        changed_settings(**changes),
        seed=1,
        output=folder / name,
        checkpoints=folder / "checkpoints",
        features=features,
    )
    return folder / name


def weights(folder):
    """Tensors by name of all safetensors files in a folder."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def log_entries(folder):
    """Entries of a finetuned model's training log."""
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def losses(folder):
    """Losses in a finetuned model's training log."""
    return [entry["loss"] for entry in log_entries(folder) if "loss" in entry]


def features_of(records, folder):
    """File with two features per record: whether it has an image, and whether it has none."""
    path = folder / "features.npy"
    np.save(path, np.array([[float("image" in r), float("image" not in r)] for r in records], np.float16))
    return path


@contextmanager
def killed_at(step, monkeypatch):
    """Context in which a training is stopped by an error after this step; fails if it is not."""

    class Killed(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module._ProgressLines, "on_step_end", stop)
        with pytest.raises(Killed):
            yield
