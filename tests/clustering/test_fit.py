"""How well new samples fit the centroids of a finished run."""

import logging

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.clustering.fit import centroid_fit


def table(prefix, similarities, clusters=0):
    ids = [f"{prefix}{i}" for i in range(len(similarities))]
    return pd.DataFrame({"sample_id": ids, "cluster": clusters, "similarity": similarities})


def test_new_samples_above_the_limit_are_counted_by_source(caplog):
    earlier = table("a", np.arange(101) / 100)  # the mean distance is 0.5, the limit of 5% is 0.95 / 0.5
    new = table("b", [0.04, 0.04, 0.06, 0.9, 0.01])
    manifest = pd.concat([earlier, new]).assign(source=["old"] * 101 + ["maps", "maps", "maps", "old", "signs"])
    with caplog.at_level(logging.INFO):
        fit = centroid_fit(earlier, pd.concat([earlier, new]), manifest, quantile=0.05)
    assert fit.to_dict("split")["data"] == [["maps", 3, 2], ["signs", 1, 1], ["old", 1, 0]]
    assert (
        "3 of 5 new samples fit the given centroids badly: their distance is above 1.90 times the mean of their cluster"
        in caplog.text
    )
    nothing = centroid_fit(earlier, earlier, manifest, quantile=0.05)
    assert list(nothing) == ["source", "new", "badly"]
    assert nothing.empty


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_samples_that_are_alike_fit_badly_as_often_as_the_quantile_says(seed, quantile):
    rng = np.random.default_rng(seed)
    earlier, new = table("a", rng.beta(8, 2, 4000)), table("b", rng.beta(8, 2, 4000))
    clusters = pd.concat([earlier, new], ignore_index=True).sample(frac=1, random_state=seed % 2**32)
    manifest = clusters[["sample_id"]].assign(source=rng.choice(list("xyz"), 8000))
    fit = centroid_fit(earlier, clusters, manifest, quantile=quantile)
    assert fit["new"].sum() == 4000
    # four standard deviations, of the limit and of the count
    assert abs(fit["badly"].sum() / 4000 - quantile) < 4 * (2 * quantile * (1 - quantile) / 4000) ** 0.5 + 1e-9


def test_a_distance_is_relative_to_the_cluster():
    rng = np.random.default_rng(0)
    wide, narrow = 1 - rng.uniform(0.2, 0.4, 200), 1 - rng.uniform(0.002, 0.004, 200)
    earlier = table("a", np.concatenate([wide, narrow]), np.repeat([0, 1], 200))
    # near in absolute terms, but ten times as far as any member of the narrow cluster
    new = table("b", [1 - 0.04] * 10, 1)
    clusters = pd.concat([earlier, new])
    fit = centroid_fit(earlier, clusters, clusters.assign(source="x"), quantile=0.01)
    assert fit[["new", "badly"]].to_numpy().tolist() == [[10, 10]]
    # a cluster without members has the width of all, 0.15; one with a single member half of that
    for cluster, members, near in ((2, [], 0.85), (3, [1.0], 0.93)):
        alone = pd.concat([earlier, table("c", members, cluster)])
        joined = pd.concat([alone, table("b", [0.7, 0.7, near], cluster)])
        fit = centroid_fit(alone, joined, joined.assign(source="x"), quantile=0.01)
        assert fit[["new", "badly"]].to_numpy().tolist() == [[3, 2]]
