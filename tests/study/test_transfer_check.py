"""The transfer check: its steps, and a planted correlation that it must find."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_record
from jobs import error_in_log

from coincide.base.sections import Training
from coincide.models.loading import load_model
from coincide.study.transfer_check import (
    TransferCheckError,
    answer_loss,
    as_text,
    choose_clusters,
    correlation,
    measure_gains,
)


def test_clusters_are_large_enough_and_no_row_is_both_trained_and_evaluated():
    labels = np.repeat([0, 1, 2, 3, 4], [50, 9, 30, 20, 100])
    chosen = choose_clusters(labels, clusters=3, samples=10, seed=0)
    assert [c for c, _, _ in chosen] == sorted({c for c, _, _ in chosen})
    for cluster, training_rows, evaluation_rows in chosen:
        assert cluster != 1
        assert len({*training_rows, *evaluation_rows}) == 20
        assert set(labels[[*training_rows, *evaluation_rows]]) == {cluster}
    with pytest.raises(TransferCheckError, match=r"lower transfer_check\.samples"):
        choose_clusters(labels, clusters=3, samples=40, seed=0)


def test_answer_loss_is_the_mean_over_samples_of_the_mean_over_tokens(tiny_model, tiny_data):
    records, images = tiny_data
    model, processor = load_model(tiny_model, device="cpu")
    single = [answer_loss(model, processor, [r], images, batch_size=1) for r in records]
    assert answer_loss(model, processor, records, images, batch_size=5) == pytest.approx(np.mean(single), rel=1e-5)
    assert np.mean(single) == pytest.approx(np.log(model.config.get_text_config().vocab_size), rel=0.1)  # untrained
    assert torch.is_grad_enabled()


def test_a_planted_correlation_is_found():
    rng, rows = np.random.default_rng(0), []
    position = rng.normal(size=(12, 3))
    position /= np.linalg.norm(position, axis=1, keepdims=True)
    ease = rng.normal(size=12) * 5  # some clusters gain from anything
    for i in range(12):
        for j in range(12):
            cosine = position[i] @ position[j]
            gain = 0.1 * cosine + ease[j] + 0.02 * rng.normal()
            gain = 0.2 + 0.01 * j if i == j else gain
            rows.append({"trained": i, "evaluated": j, "cosine": cosine, "gain": gain})
    result = correlation(pd.DataFrame(rows))
    assert result["pairs"] == 132
    assert 0.8 < result["low"] < result["r"] < result["high"] < 1
    assert result["self_gain"] == pytest.approx(0.2 + 0.01 * 5.5)
    assert 0.2 < result["self_gain_low"] < result["self_gain"] < result["self_gain_high"] < 0.31
    shuffled = pd.DataFrame(rows)
    shuffled["gain"] = rng.permutation(shuffled["gain"])
    unrelated = correlation(shuffled)
    assert unrelated["low"] < 0 < unrelated["high"]
    assert "r = " in as_text(result)
    assert "too weak" not in as_text(result)
    assert "too weak to measure transfer" in as_text({**result, "self_gain_low": -0.01})


def test_training_on_a_cluster_gains_most_on_itself(tiny_model, tmp_path):
    records = {}
    for i in range(36):
        record = make_record(i, image=False)
        record["conversations"][1]["value"] = ["thing really what", "answer answer 7", "is 3 thing answer"][i % 3]
        records[i] = record
    chosen = [(c, np.arange(c, 18, 3), np.arange(18 + c, 36, 3)) for c in range(3)]
    settings = Training(epochs=4, batch_size=3, learning_rate=3e-3, device="cpu")
    pairs = measure_gains(tiny_model, chosen, np.eye(3), records, tmp_path, settings, seed=0, batch_size=4)
    gain = pairs.pivot_table(index="trained", columns="evaluated", values="gain").to_numpy()
    assert (np.diag(gain) > 0.1).all()
    assert (gain.argmax(axis=0) == np.arange(3)).all()
    assert pairs["cosine"].tolist() == np.eye(3).ravel().tolist()


FAILING_CHECK = """
import numpy as np
from coincide.study.transfer_check import choose_clusters
choose_clusters(np.repeat([0, 1], 5), clusters=3, samples=2, seed=0)
"""


def test_clusters_that_are_too_small_are_one_message_in_the_log(tmp_path):
    assert error_in_log(tmp_path, FAILING_CHECK) == [
        "error: the transfer check requires 3 clusters with at least 4 samples, and there are 2; "
        "lower transfer_check.samples"
    ]
