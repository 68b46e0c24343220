"""How well new samples fit the centroids of a finished run."""

import logging

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from coincide.clustering.fit import centroid_fit


def table(prefix, similarities):
    return pd.DataFrame({"sample_id": [f"{prefix}{i}" for i in range(len(similarities))], "similarity": similarities})


def test_new_samples_below_the_quantile_are_counted_by_source(caplog):
    earlier = table("a", np.arange(101) / 100)  # the 5% quantile is 0.05
    new = table("b", [0.04, 0.04, 0.05, 0.9, 0.01])
    manifest = pd.concat([earlier, new]).assign(source=["old"] * 101 + ["maps", "maps", "maps", "old", "signs"])
    with caplog.at_level(logging.INFO):
        fit = centroid_fit(earlier, pd.concat([earlier, new]), manifest, quantile=0.05)
    assert fit.to_dict("split")["data"] == [["maps", 3, 2], ["signs", 1, 1], ["old", 1, 0]]
    assert "3 of 5 new samples fit the given centroids badly: their similarity is below 0.0500" in caplog.text
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
    limit = np.quantile(earlier["similarity"], quantile)
    assert fit["badly"].sum() == (new["similarity"] < limit).sum()
    # four standard deviations, of the limit and of the count
    assert abs(fit["badly"].sum() / 4000 - quantile) < 4 * (2 * quantile * (1 - quantile) / 4000) ** 0.5 + 1e-9
