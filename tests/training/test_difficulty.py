"""Difficulty from the scoring network."""

import numpy as np
import pytest
import torch
from finetuning import SETTINGS, changed_settings, features_of, run
from safetensors.torch import load_file

from coincide.base.sections import TargetModel
from coincide.training.difficulty import measure_difficulty
from coincide.training.trainers import SCORING_NETWORK


def test_samples_that_stay_hard_get_small_weights(tiny_model, tiny_data, tmp_path):
    records, images = tiny_data
    rng = np.random.default_rng(0)
    with_image = [record for record in records if "image" in record][:16]
    # the last four answers are noise, which no model learns
    answers = ["yes"] * 12 + ["".join(rng.choice(list("abcdefghij"), 3)) for _ in range(4)]
    mixed = [{**r, "id": str(i), "conversations": [r["conversations"][0], {"from": "gpt", "value": answer}]}
             for i, (r, answer) in enumerate(zip(with_image, answers))]  # fmt: skip
    embeddings = np.array([[1.0, 0.0]] * 12 + [[0.0, 1.0]] * 4, np.float16)

    def gap(learning_rate):
        training = changed_settings(epochs=12, batch_size=8, learning_rate=learning_rate, save_every=100)
        target = TargetModel(name=str(tiny_model), training=training)
        ids = [r["id"] for r in mixed]
        table = measure_difficulty(target, mixed, ids, embeddings, images, seed=0, checkpoints=tmp_path / "c")
        return table["difficulty"][12:].mean() - table["difficulty"][:12].mean()

    assert gap(1e-2) > gap(1e-9) + 0.1
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["features.npy"]
    target = TargetModel(name=str(tiny_model), training=SETTINGS)
    with pytest.raises(ValueError, match="16 records, 15 sample ids"):
        measure_difficulty(target, mixed, ["a"] * 15, embeddings, images, seed=0, checkpoints=tmp_path)


def test_two_processes_weight_the_batch_as_one_does(tiny_model, tiny_data, tmp_path):
    features = features_of(tiny_data[0], tmp_path)
    one, two = (run(tiny_model, tiny_data, tmp_path, str(n), features=features, processes=n, epochs=1) for n in (1, 2))
    weight_of_two, weight_of_one = (load_file(folder / SCORING_NETWORK)["weight"] for folder in (two, one))
    torch.testing.assert_close(weight_of_two, weight_of_one, rtol=0, atol=1e-6)
