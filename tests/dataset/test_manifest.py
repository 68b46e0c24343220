"""Which samples are usable and which are rejected, and that every row is one or the other."""

import json

import pandas as pd
import pytest
from conftest import make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from coincide.base.sections import Dataset
from coincide.dataset.formats import DatasetError, read_records, to_llava
from coincide.dataset.manifest import build_manifest, check_manifest, check_rejected
from coincide.dataset.record_checks import Rejection, check_record
from coincide.dataset.samples import Reason, RejectedSample, rejected_table
from coincide.dataset.shard_assignment import assign_shards


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "folder").mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(images / f"folder/{i}.png")
    return images


def faulty_records(folder):
    """(record, expected reason) pairs: each record has one fault; the reason is None for a good one."""
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("not an image")
    (folder.parent / "secret.png").write_bytes((folder / "folder/1.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    good = make_record(1)
    image = lambda name: {**make_record(50), "id": name, "image": name}  # noqa: E731
    talk = lambda *turns: {"id": str(turns), "conversations": [{"from": f, "value": v} for f, v in turns]}  # noqa: E731
    return [
        (good, None),
        (image("folder/gone.png"), "missing image"),
        (image("folder"), "missing image"),
        (image("truncated.jpg"), "unreadable image"),
        (image("text.png"), "unreadable image"),
        (image("bomb.png"), "decompression bomb"),
        (image("../secret.png"), "image path outside the folder"),
        (image("/etc/passwd"), "image path outside the folder"),
        (image("link.png"), "image path outside the folder"),
        (talk(), "empty conversation"),
        ({"id": "x"}, "empty conversation"),
        (talk(("human", "hello"), ("gpt", "  ")), "empty conversation"),
        (talk(("human", "hello")), "malformed turns"),
        (talk(("gpt", "hello"), ("human", "hello")), "malformed turns"),
        (talk(("human", "hello"), ("gpt", "see <image>")), "malformed turns"),
        (talk(("human", "<image>\nhello"), ("gpt", "hi")), "image token count mismatch"),
        ({**make_record(2, image=False), "image": "folder/2.png"}, "image token count mismatch"),
        ({"id": "y", "conversations": "hello"}, "malformed turns"),
        ({"id": "z", "conversations": [{"from": "human", "value": 3}]}, "malformed turns"),
        ("a string", "malformed record"),
        (None, "malformed record"),
        ({**make_record(3), "image": 7}, "malformed record"),
        ({**make_record(3), "id": [1]}, "malformed record"),
        (make_record(1), "duplicate id"),
    ]  # fmt: skip


@pytest.mark.parametrize("load_truncated", [False, True])
def test_each_fault_is_rejected_with_its_reason(folder, monkeypatch, load_truncated):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", load_truncated)  # lmms-eval sets it
    rows = faulty_records(folder)
    dataset = Dataset(annotations="-", shards=1, follow_links=False)
    manifest, rejected = build_manifest([record for record, _ in rows], folder, dataset)
    assert manifest["sample_id"].tolist() == ["s1"]
    reasons = dict(zip(rejected["position"], rejected["reason"]))
    assert reasons == {i: reason for i, (_, reason) in enumerate(rows) if reason}
    assert rejected["detail"].str.len().min() > 5
    assert set(rejected["reason"]) <= set(Reason)


def test_columns_of_a_good_sample(folder):
    records = [make_record(1, turns=2), {**make_record(0, image=False), "id": 77}, {**make_record(4), "source": "own"}]
    manifest, rejected = build_manifest(records, folder, Dataset(annotations="-", shards=3))
    assert len(rejected) == 0
    first = manifest.iloc[0]
    assert (first["source"], first["image"], first["n_images"], first["n_turns"]) == ("folder", "folder/1.png", 1, 4)
    assert first["text_length"] == sum(len(t["value"]) for t in records[0]["conversations"])
    assert manifest["sample_id"].tolist() == ["s1", "77", "s4"]
    assert manifest["source"].tolist() == ["folder", "text_only", "own"]
    assert manifest["shard"].tolist() == [0, 1, 2]
    assert manifest["shard"].dtype == "int32"
    assert manifest["position"].dtype == "int64"


def test_missing_and_duplicate_ids(folder):
    with_same_id = {**make_record(2), "id": "s1"}
    without_id = make_record(3)
    del without_id["id"]
    records = [make_record(1), with_same_id, without_id, without_id]
    manifest, rejected = build_manifest(records, folder, Dataset(annotations="-", shards=1))
    assert rejected["reason"].tolist() == ["duplicate id"]
    assert manifest["position"].tolist() == [0, 2, 3]
    kept, rejected = build_manifest(records, folder, Dataset(annotations="-", shards=1, duplicate_ids="digest"))
    assert len(rejected) == 0
    assert kept["sample_id"].is_unique
    assert "s1" not in set(kept["sample_id"])
    reversed_manifest, _ = build_manifest(
        records[::-1], folder, Dataset(annotations="-", shards=1, duplicate_ids="digest")
    )
    assert set(reversed_manifest["sample_id"]) == set(kept["sample_id"])  # digests do not depend on the order


def test_shards_are_even_and_in_order(folder):
    records = [make_record(i, image=False) for i in range(10)]
    manifest, _ = build_manifest(records, folder, Dataset(annotations="-", shards=3))
    assert manifest["shard"].is_monotonic_increasing
    assert manifest["shard"].value_counts().sort_index().tolist() == [3, 4, 3]
    for shards, clusters, advice in ((11, 1, "lower dataset"), (1, 11, "lower clustering")):
        dataset = Dataset(annotations="-", shards=shards)
        with pytest.raises(DatasetError, match=advice):
            check_manifest(*build_manifest(records, folder, dataset), dataset, clusters=clusters)


def test_samples_of_the_same_image_are_adjacent_in_one_shard(folder):
    records = [{**make_record(i % 3), "id": f"s{i}"} for i in range(9)] + [make_record(20, image=False)]
    manifest, _ = build_manifest(records, folder, Dataset(annotations="-", shards=2))
    assert manifest["position"].tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8, 9]
    assert manifest.groupby("image")["shard"].nunique().tolist() == [1, 1, 1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(1, 5000)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_shards_contain_every_sample_and_cost_about_the_same(rows, shards):
    samples = pd.DataFrame(rows, columns=["images", "text_length"])
    samples["n_images"] = (samples["images"] != "").astype(int)
    samples["position"] = range(len(samples))
    assigned = assign_shards(samples, shards)
    assert sorted(assigned["position"]) == list(range(len(rows)))
    assert assigned["shard"].is_monotonic_increasing
    with_image = assigned[assigned["n_images"] > 0]
    assert (with_image.groupby("images")["shard"].nunique() == 1).all()
    groups = with_image["images"].nunique() + (assigned["n_images"] == 0).sum()
    if groups >= shards:
        assert set(assigned["shard"]) == set(range(shards))
    tokens = -(-assigned["text_length"] // 4) + 576 * ((assigned["n_images"] > 0) & ~assigned["images"].duplicated())
    shard_tokens = tokens.groupby(assigned["shard"]).sum()
    largest_group = (
        tokens.groupby(assigned["images"].where(assigned["n_images"] > 0, assigned["position"].astype(str))).sum().max()
    )
    assert shard_tokens.max() <= tokens.sum() / shards + 2 * largest_group


def test_the_run_stops_with_examples_if_too_many_samples_are_rejected():
    rejected = rejected_table(RejectedSample(f"s{i}", i, Reason.MISSING_IMAGE, f"{i}.png") for i in range(5))
    check_rejected(rejected, 500, 0.01)
    with pytest.raises(DatasetError) as error:
        check_rejected(rejected, 100, 0.01)
    assert "5 of 100 samples (5.0%)" in str(error.value)
    assert str(error.value).count("row ") == 3
    assert "max_rejected" in str(error.value)


@pytest.mark.parametrize("content", ["[", "{}", "[]", '"x"', "\xff"])
def test_the_error_names_a_file_that_is_not_a_dataset(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DatasetError, match=r"data\.json"):
        read_records(path)
    with pytest.raises(DatasetError, match="set dataset"):
        read_records(tmp_path / "none.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
texts = st.sampled_from(["hi", "<image>\nhi", "", "\ud800", "<image><image>"]) | json_values
turns = st.lists(
    st.fixed_dictionaries({}, optional={"from": st.sampled_from(["human", "gpt"]) | json_values, "value": texts}),
    max_size=4,
)
records = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", 1]) | json_values,
        "image": st.sampled_from(["folder/1.png", "folder/9.png", "\0", "a" * 5000]) | json_values,
        "images": st.just(["folder/1.png"]) | json_values,
        "conversations": turns | json_values,
        "messages": st.just([{"role": "user", "content": [{"type": "image"}]}]) | json_values,
        "texts": st.just([{"user": "hi", "assistant": "ho"}]) | json_values,
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(records | json_values, min_size=1, max_size=6), st.sampled_from(["reject", "digest"]))
def test_every_json_value_is_in_the_manifest_or_rejected(tmp_path_factory, rows, duplicate_ids):
    images = tmp_path_factory.mktemp("fuzz")
    (images / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(images / "folder/1.png")
    good = make_record(1)
    manifest, rejected = build_manifest(
        map(to_llava, [*rows, good]), images, Dataset(annotations="-", shards=1, duplicate_ids=duplicate_ids)
    )
    assert sorted([*manifest["position"], *rejected["position"]]) == list(range(len(rows) + 1))
    assert manifest["sample_id"].is_unique
    assert set(rejected["reason"]) <= set(Reason)


def test_check_record_raises_rejections_only():
    with pytest.raises(Rejection) as error:
        check_record(json.loads('{"conversations": [[]]}'))
    assert error.value.reason == "malformed turns"
