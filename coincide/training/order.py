"""The order in which training sees the samples."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coincide.dataset.record_table import text_lengths

POOL_BATCHES = 50  # batches that are formed from one pool of shuffled rows, sorted by length


def training_order(
    records: Sequence[dict], epochs: float, batch_size: int, seed: int, *, group_by_length: bool = True
) -> NDArray[np.int64]:
    """Rows in the order of training, over all epochs.

    Each epoch is shuffled anew. The order is fixed before training starts, so that a resumed training sees
    the same batches as an uninterrupted one.

    Args:
        records: n LLaVA records.
        epochs: passes over the records; may be fractional.
        batch_size: samples per step, over all processes.
        seed: of the shuffles.
        group_by_length: batches hold samples of similar length, which saves padding; False: batches are random.

    Returns:
        (round(epochs · n),) rows; each whole epoch has every row once.
    """
    lengths = text_lengths(records)
    pool_size = POOL_BATCHES * batch_size if group_by_length else batch_size
    order: list[NDArray[np.int64]] = []
    count = 0
    for epoch in range(math.ceil(epochs)):
        rng = np.random.default_rng([seed, epoch])
        shuffled = rng.permutation(len(records))
        # The first rows complete the last batch of the previous epoch.
        missing = -count % batch_size
        pools = _split(shuffled[missing:], pool_size)
        batches = [
            batch for pool in pools for batch in _split(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
        ]
        full = [batch for batch in batches if len(batch) == batch_size]
        incomplete = [batch for batch in batches if len(batch) < batch_size]
        order += [shuffled[:missing], *(full[i] for i in rng.permutation(len(full))), *incomplete]
        count += len(records)
    return np.concatenate(order)[: round(epochs * len(records))]


def _split(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
