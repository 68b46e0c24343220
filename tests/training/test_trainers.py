"""The projector's learning rate, and the weighted loss of the scoring network."""

import numpy as np
import pytest
import torch
from finetuning import features_of, run, weights
from transformers import AutoConfig

from coincide.training.trainers import ProjectorTrainer, ScoringTrainer, TrainingError


def test_the_projector_has_a_separate_learning_rate(tiny_model, tiny_data, tmp_path, monkeypatch):
    groups, create_optimizer = {}, ProjectorTrainer.create_optimizer

    def recording(self, *arguments, **options):
        optimizer = create_optimizer(self, *arguments, **options)
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups.update({names[id(p)]: g["initial_lr" if "initial_lr" in g else "lr"]
                       for g in optimizer.param_groups for p in g["params"]})  # fmt: skip
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(groups)
        return optimizer

    monkeypatch.setattr(ProjectorTrainer, "create_optimizer", recording)
    trained = run(tiny_model, tiny_data, tmp_path, "out", projector_learning_rate=1e-9)
    assert {groups[name] for name in groups if "multi_modal_projector" in name} == {1e-9}
    assert {groups[name] for name in groups if "multi_modal_projector" not in name} == {1e-3}
    before, after = weights(tiny_model), weights(trained)
    for name, value in after.items():
        close = torch.allclose(value, before[name], atol=1e-6)
        assert close == ("multi_modal_projector" in name) or not value.any() or "vision" in name, name


def test_the_loss_is_weighted_by_a_softmax_over_the_batch(tiny_model, tiny_data, tmp_path, monkeypatch):
    calls, compute_loss = [], ScoringTrainer.compute_loss

    def recording(self, model, inputs, **options):
        copies = {k: v.clone() for k, v in inputs.items()}
        loss = compute_loss(self, model, inputs, **options)
        rows, labels = copies.pop("rows"), copies.pop("labels")
        weight = self.network.weight[0].tolist()
        with torch.no_grad():
            logits = model(**copies).logits
        calls.append((float(loss), rows.tolist(), labels, logits, weight))
        return loss

    monkeypatch.setattr(ScoringTrainer, "compute_loss", recording)
    run(tiny_model, tiny_data, tmp_path, "one", features=features_of(tiny_data[0], tmp_path))
    for loss, rows, labels, logits, weight in calls:
        scores = np.array([weight["image" not in tiny_data[0][row]] for row in rows])
        share = np.exp(scores) / np.exp(scores).sum() * len(rows)
        probabilities = torch.softmax(logits, dim=2)
        weighted = [-share[i] * float(torch.log(probabilities[i, t - 1, labels[i, t]]))
                    for i in range(len(rows)) for t in range(1, labels.shape[1]) if labels[i, t] != -100]  # fmt: skip
        assert loss == pytest.approx(sum(weighted) / len(weighted), rel=1e-4)
    assert calls[0][4] != calls[-1][4]


def test_the_scoring_network_starts_as_the_published_one(tiny_model, tiny_data, tmp_path, monkeypatch):
    first, compute_loss = [], ScoringTrainer.compute_loss

    def recording(self, *arguments, **options):
        first.append(self.network.weight.detach().clone())
        return compute_loss(self, *arguments, **options)

    monkeypatch.setattr(ScoringTrainer, "compute_loss", recording)
    features = tmp_path / "features.npy"
    np.save(features, np.ones((len(tiny_data[0]), 1536), np.float32))
    run(tiny_model, tiny_data, tmp_path, "out", features=features, epochs=0.1)
    assert first[0].shape == (1, 1536)
    std = AutoConfig.from_pretrained(tiny_model).get_text_config().initializer_range
    assert float(first[0].std()) == pytest.approx(std, rel=0.1)
    assert float(first[0].mean()) == pytest.approx(0, abs=0.1 * std)
    # a normal distribution: a uniform one ends at 1.7 standard deviations
    assert 3 * std < float(first[0].abs().max()) < 5 * std


def test_settings_that_do_not_fit_are_errors_for_the_user(tiny_model, tiny_data, tmp_path):
    features = features_of(tiny_data[0], tmp_path)
    with pytest.raises(TrainingError, match=r"training\.batch_size must be 2 or more"):
        run(tiny_model, tiny_data, tmp_path, "out", features=features, batch_size=1)
    with pytest.raises(TrainingError, match=r"projector_learning_rate is set, but no weights of the projector \(model"):
        run(tiny_model, tiny_data, tmp_path, "out", projector_learning_rate=1e-4, lora={"modules_to_save": []})
