"""DICS (Hong et al. 2026): samples whose question, image and answer depend on each other, and that differ.

The score is the smaller of two gains under the reference model: of the image about the answer, exp(loss of the answers
without the images - with them), and of the answer about the question, exp(loss of the question - its loss given the
answer). A sample without an image has the score 1.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coincide.selection.ranking import highest

if TYPE_CHECKING:
    import pandas as pd

    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics", "loss_no_image", "question_losses")


def pick(inputs: "MethodInputs", count: int, *, seed: int) -> tuple[NDArray, NDArray]:
    """Keep samples with high scores that are far from each other, by the embedding of the last token.

    Fewer than half: the farthest points of the 2·count samples with the highest scores. Half: those with the highest
    scores. More: the 2·count - n samples with the highest scores, and the farthest points of the others.
    """
    scores = gains(inputs.sample_metrics)
    n = len(scores)
    ranked = highest(scores, n)
    if count == n // 2:
        return ranked[:count], scores
    start = max(0, 2 * count - n)
    kept, pool = ranked[:start], ranked[start : 2 * count]
    x = np.asarray(inputs.embedding("last_token"), np.float32)[pool]
    return np.concatenate([kept, pool[farthest_points(x, count - len(kept))]]), scores


def gains(metrics: "pd.DataFrame") -> NDArray[np.float64]:
    """(n,) scores of a table of sample metrics; 1 for a sample without an image."""
    of_image = metrics["visual_necessity"].to_numpy(np.float64)
    of_answer = (metrics["question_loss"] - metrics["question_loss_given_answer"]).to_numpy(np.float64)
    return np.exp(np.nan_to_num(np.minimum(of_image, of_answer), nan=0.0))


def farthest_points(x: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Greedy farthest point sampling: each pick is the row farthest from the nearest earlier pick, in L2 distance.

    The first pick is the row with the largest norm; ties go to the first row.

    Args:
        x: (n, d) rows.
        count: number of rows to pick, at most n.

    Returns:
        (count,) rows in the order picked.

    Source: Hong et al. (2026), algorithm 2.

    >>> farthest_points(np.float32([[0], [1], [5], [6], [2]]), 3).tolist()
    [3, 0, 4]
    """
    norms = (x * x).sum(axis=1)
    order = np.empty(count, np.int64)
    distance = np.full(len(x), np.inf)
    best = int(np.argmax(norms)) if len(x) else 0
    for i in range(count):
        order[i] = best
        distance = np.minimum(distance, norms + norms[best] - 2 * (x @ x[best]))
        distance[order[: i + 1]] = -np.inf
        best = int(np.argmax(distance))
    return order
