"""DICS against a case worked by hand and a slow version of its algorithms."""

import numpy as np
import pandas as pd
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_methods import InMemory, clusters_of, pick

from coincide.methods.dics import farthest_points


def metrics_of(of_image, of_answer):
    return pd.DataFrame(
        {
            "visual_necessity": of_image,
            "question_loss": np.add(of_answer, 1.0),
            "question_loss_given_answer": np.ones(len(of_image)),
        }
    )


def test_dics_worked_by_hand():
    # the smaller gain: 1, 2, 3, 0.5, -1, and a sample without an image: 0
    metrics = metrics_of([1.0, 5, 3, 0.5, 2, np.nan], [4.0, 2, 4, 9, -1, np.nan])
    x = np.float32([[1], [3], [2], [9], [0], [7]])
    inputs = InMemory(clusters=clusters_of(6), sample_metrics=metrics, last_token=x)
    indices, scores = pick("dics", inputs, 2)
    np.testing.assert_allclose(scores, np.exp([1, 2, 3, 0.5, -1, 0]))
    assert indices == [3, 0]  # of the 4 highest (rows 2, 1, 0, 3) the largest norm, and the farthest from it
    assert pick("dics", inputs, 3)[0] == [2, 1, 0]  # half of the samples: the highest
    # 5 of 6: the highest 4, and of rows 5 and 4 the one with the larger norm
    assert pick("dics", inputs, 5)[0] == [2, 1, 0, 3, 5]


def slow_farthest_points(x, count):
    if not count:
        return []
    x = x.astype(float)
    chosen = [int(np.argmax(np.linalg.norm(x, axis=1)))]
    while len(chosen) < count:
        distance = [-1 if i in chosen else min(np.linalg.norm(x[i] - x[j]) for j in chosen) for i in range(len(x))]
        chosen.append(int(np.argmax(distance)))
    return chosen


@examples(max_examples=40, deadline=None)
@given(st.integers(4, 40), st.floats(0.05, 1), st.integers(0, 2**32 - 1))
@example(21, 1.0, 0)  # nothing is left to draw by distance
def test_dics_equals_a_slow_version(n, fraction, seed):
    rng = np.random.default_rng(seed)
    text_only = rng.random(n) < 0.2
    of_image, of_answer = (np.where(text_only, np.nan, rng.normal(size=n)) for _ in range(2))
    x = rng.normal(size=(n, 3)).astype(np.float32)
    count = max(1, int(fraction * n))
    inputs = InMemory(clusters=clusters_of(n), sample_metrics=metrics_of(of_image, of_answer), last_token=x)
    indices, _ = pick("dics", inputs, count)
    score = [1.0 if t else min(np.exp(a), np.exp(b)) for t, a, b in zip(text_only, of_image, of_answer)]
    ranked = sorted(range(n), key=lambda i: -score[i])
    if count == n // 2:
        expected = ranked[:count]
    elif count < n / 2:
        pool = ranked[: 2 * count]
        expected = [pool[i] for i in slow_farthest_points(x[pool], count)]
    else:
        core, pool = ranked[: 2 * count - n], ranked[2 * count - n :]
        expected = core + [pool[i] for i in slow_farthest_points(x[pool], n - count)]
    assert indices == expected


def test_farthest_points_of_equal_rows_are_the_first():
    assert farthest_points(np.ones((4, 2), np.float32), 3).tolist() == [0, 1, 2]
    assert farthest_points(np.ones((4, 2), np.float32), 0).tolist() == []
