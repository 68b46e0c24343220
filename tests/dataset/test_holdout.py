"""Samples that are held out of every coreset."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from coincide.dataset.holdout import hold_out
from coincide.dataset.manifest import MANIFEST_COLUMNS


def make_manifest(sources):
    n = len(sources)
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "source": sources,
            "image": [f"{i % 7}.png" if i % 3 else None for i in range(n)],
            "n_images": [int(i % 3 > 0) for i in range(n)],
            "n_turns": 2,
            "text_length": 10,
            "shard": 0,
            "position": np.arange(n),
        }
    ).astype(MANIFEST_COLUMNS)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.floats(0, 0.6), st.integers(1, 3))
def test_every_sample_is_in_one_part_and_no_image_in_both(sources, share, shards):
    manifest = make_manifest(sources)
    rest, held_out = hold_out(manifest, share, shards)
    assert sorted([*rest["sample_id"], *held_out["sample_id"]]) == sorted(manifest["sample_id"])
    assert not set(rest["image"].dropna()) & set(held_out["image"].dropna())
    assert rest.dtypes.equals(manifest.dtypes)
    assert rest["shard"].is_monotonic_increasing
    assert rest["shard"].lt(shards).all()
    assert held_out["position"].is_monotonic_increasing


def test_each_source_gives_its_share_up_to_chance():
    manifest = make_manifest(["a", "b"] * 4000).assign(image=None, n_images=0)
    _, held_out = hold_out(manifest, 0.05, 1)
    assert held_out["source"].value_counts().between(160, 240).all()  # 200 expected, standard deviation 14


def test_a_larger_share_holds_out_the_same_samples_and_more_whatever_their_order():
    manifest = make_manifest(["a"] * 400 + ["b"] * 200)
    small, large = (set(hold_out(manifest, share, 1)[1]["sample_id"]) for share in (0.1, 0.3))
    assert small < large
    assert set(hold_out(manifest[::-1].reset_index(drop=True), 0.1, 1)[1]["sample_id"]) == small


def test_nothing_is_held_out_by_default():
    manifest = make_manifest(["a", "b"])
    rest, held_out = hold_out(manifest, 0.0, 1)
    assert rest is manifest
    assert len(held_out) == 0
    assert list(held_out.columns) == list(manifest.columns)
