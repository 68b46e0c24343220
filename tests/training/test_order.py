"""The order of training."""

import numpy as np

from coincide.training.order import training_order


def test_every_epoch_has_every_row_once_in_batches_of_similar_length(tiny_data):
    records, _ = tiny_data
    order = training_order(records, 2.5, 5, seed=0).tolist()
    assert len(order) == 60
    assert sorted(order[:24]) == sorted(order[24:48]) == list(range(24))
    assert order[:24] != order[24:48]
    assert len(set(order[48:])) == 12
    assert order == training_order(records, 2.5, 5, seed=0).tolist()
    length = [sum(len(t["value"]) for t in r["conversations"]) for r in records]
    spread = [np.ptp([length[r] for r in order[i : i + 5]]) for i in (0, 5, 10, 15, 25, 30, 35, 40)]
    assert np.mean(spread) < np.ptp(length) / 2
