"""A subsample keeps the share of every source."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coincide.base.errors import UserError
from coincide.base.sections import Dataset
from coincide.dataset.manifest import build_manifest, check_rejected
from coincide.dataset.samples import Reason
from coincide.dataset.subsample import subsample


def samples(sizes):
    rows = [(f"{source}-{i}", f"s{source}", f"{i // 2}.png") for source, n in enumerate(sizes) for i in range(n)]
    return pd.DataFrame(rows, columns=["sample_id", "source", "image"]).assign(n_images=1)


def test_sources_keep_their_share_and_one_sample_at_least():
    table = samples([800, 199, 1])
    drawn = table[subsample(table, 100)]["source"].value_counts()
    # one each, and 97 in proportion to 799 : 198 : 0, so 77.7 and 19.3: the larger remainder gets the last
    assert drawn.to_dict() == {"s0": 79, "s1": 20, "s2": 1}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.randoms())
def test_the_size_is_met_and_the_order_does_not_matter(sizes, size, random):
    table = samples(sizes)
    if size < min(len(sizes), len(table)):
        with pytest.raises(UserError, match=f"at least {len(sizes)}"):
            subsample(table, size)
        return
    mask = subsample(table, size)
    assert mask.sum() == min(size, len(table))
    assert table[mask]["source"].nunique() == len(sizes)
    order = list(range(len(table)))
    random.shuffle(order)
    table["image"] = table["sample_id"]  # equal digests would be drawn in the order of the dataset
    assert np.array_equal(subsample(table.iloc[order], size), subsample(table, size)[order])


def test_other_rows_are_rejected_as_not_sampled(tiny_data, tmp_path):
    records, images = tiny_data
    dataset = Dataset(annotations=str(tmp_path / "data.json"), images=str(images), sample=10)
    manifest, rejected = build_manifest(records, images, dataset)
    assert len(manifest) == 10
    assert rejected["reason"].tolist() == [Reason.NOT_SAMPLED] * 14
    assert set(manifest["sample_id"]) | set(rejected["sample_id"]) == {record["id"] for record in records}
    check_rejected(rejected, 24, 0.0)  # they are no faults


def test_the_largest_share_of_rejected_samples_is_that_of_the_sampled():
    reasons = [Reason.NOT_SAMPLED] * 90 + [Reason.TOO_LONG] * 2
    rejected = pd.DataFrame({"reason": reasons, "sample_id": "a", "position": 0, "detail": ""})
    with pytest.raises(UserError, match="2 of 10 samples"):
        check_rejected(rejected, 100, 0.1)
