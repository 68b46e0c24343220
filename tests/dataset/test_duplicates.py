"""Near-duplicates within a dataset, and what is dropped from it."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import as_jpeg, crop, halve, photo_views

from coincide.base.sections import Dataset
from coincide.dataset.dataset_format import DatasetError
from coincide.dataset.duplicates import all_image_names, find_duplicates, sample_records
from coincide.dataset.formats import open_dataset
from coincide.dataset.image_hashes import write_image_hashes
from coincide.dataset.manifest import build_manifest, check_rejected
from coincide.dataset.samples import Reason
from coincide.dataset.screening import screen


def record(name, image, question, answer="yes"):
    turns = [{"from": "human", "value": "<image>\n" * bool(image) + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "source": "s", "conversations": turns, **({"image": image} if image else {})}


@pytest.fixture
def dataset(tmp_path):
    """Dataset section of a dataset with planted copies."""
    import json

    first, second = photo_views()[:2]
    for name, image in {
        "a.png": first,
        "b.png": second,
        "a_again.png": first,
        "a_small.jpg": as_jpeg(halve(first)),
        "a_cut.png": crop(first, 0.4),
    }.items():
        image.save(tmp_path / name)
    records = [
        record("one", "a.png", "what is it?"),
        record("another question", "a.png", "where is it?"),
        record("copied file", "a_again.png", "What is it"),  # spelt differently
        record("small", "a_small.jpg", "what colour is it?"),
        record("small repeats", "a_small.jpg", "what is it?", "Yes."),
        record("another answer", "a_small.jpg", "what is it?", "no"),
        record("cut", "a_cut.png", "what is it?"),
        record("other picture", "b.png", "what is it?"),
        record("text", None, "what is it?"),
        record("text again", None, "what is it?"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return Dataset(annotations=str(tmp_path / "data.json"), images=str(tmp_path))


def search(dataset, tmp_path):
    """(manifest, rejected, duplicates)."""
    opened = open_dataset(dataset.annotations)
    manifest, rejected = build_manifest(opened, dataset.image_folders, dataset)
    write_image_hashes(
        all_image_names(sample_records(opened, manifest)), dataset.image_folders, tmp_path / "hashes.parquet"
    )
    hashes = pd.read_parquet(tmp_path / "hashes.parquet")
    return manifest, rejected, find_duplicates(sample_records(opened, manifest), hashes)


def test_copies_of_images_and_repeated_samples_are_found(dataset, tmp_path):
    _, _, duplicates = search(dataset, tmp_path)
    table = duplicates.astype(object).where(duplicates.notna(), None).set_index("sample_id")
    rows = {name: tuple(table.loc[name, ["image", "copy_of", "kind", "repeats"]]) for name in table.index}
    assert rows == {
        "copied file": ("a_again.png", "a.png", "same pixels", "one"),
        "small": ("a_small.jpg", "a.png", "same picture", None),
        "small repeats": ("a_small.jpg", "a.png", "same picture", "one"),
        "another answer": ("a_small.jpg", "a.png", "same picture", None),
        "text again": (None, None, None, "text"),
    }


def test_repeated_samples_are_dropped_with_a_reason_and_the_first_is_kept(dataset, tmp_path):
    manifest, rejected, duplicates = search(dataset, tmp_path)
    kept, all_rejected = screen(manifest, rejected, 1, duplicates=duplicates)
    assert sorted([*kept["position"], *all_rejected["position"]]) == list(range(10))
    assert set(all_rejected["sample_id"]) == {"copied file", "small repeats", "text again"}
    assert set(all_rejected["reason"]) == {Reason.NEAR_DUPLICATE}
    assert all_rejected["detail"][0] == "the same pictures and text as one"
    check_rejected(all_rejected, 10, max_rejected=0.0)  # what the config drops does not count


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["kept", "leak", "repeat", "both", "rejected"]), min_size=1, max_size=30), st.data())
def test_every_row_is_in_exactly_one_table(fates, data):
    n, shards = len(fates), data.draw(st.integers(1, 3))
    usable = [i for i in range(n) if fates[i] != "rejected"]
    manifest = pd.DataFrame({"sample_id": [f"s{i}" for i in usable], "position": usable}).assign(
        source="s", image=[f"{i % 4}.png" for i in usable], n_images=1, n_turns=2, text_length=9, shard=0
    )
    rejected = pd.DataFrame(
        [(f"s{i}", i, "too long", "") for i in range(n) if fates[i] == "rejected"],
        columns=["sample_id", "position", "reason", "detail"],
    )
    leaks = pd.DataFrame(
        [("t", 0, f"s{i}", "same pixels") for i in usable if fates[i] in ("leak", "both")] * 2,
        columns=["task", "document", "sample_id", "kind"],
    )
    duplicates = pd.DataFrame(
        [(f"s{i}", "s0" if fates[i] in ("repeat", "both") else None) for i in usable if fates[i] != "leak"],
        columns=["sample_id", "repeats"],
    )
    if fates.count("kept") < shards:
        with pytest.raises(DatasetError, match=f"leaves {fates.count('kept')} for {shards} shards"):
            screen(manifest, rejected, shards, leaks=leaks, duplicates=duplicates)
        return
    kept, all_rejected = screen(manifest, rejected, shards, leaks=leaks, duplicates=duplicates)
    assert sorted([*kept["position"], *all_rejected["position"]]) == list(range(n))
    reasons = dict(zip(all_rejected["position"], all_rejected["reason"]))
    expected = {"leak": Reason.EVALUATION_LEAK, "both": Reason.EVALUATION_LEAK, "repeat": Reason.NEAR_DUPLICATE}
    assert reasons == {i: expected.get(fate, "too long") for i, fate in enumerate(fates) if fate != "kept"}
    assert kept["shard"].lt(shards).all()
