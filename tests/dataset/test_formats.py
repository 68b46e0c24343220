"""All formats yield the same samples and images, reject the same faulty rows, and can be written as subsets."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPO, Workplace
from formats import FORMATS, write

from coincide.base.sections import Dataset
from coincide.dataset.formats import DatasetError, open_dataset, to_llava, write_subset
from coincide.dataset.images import ImageError, image_names, open_image
from coincide.dataset.manifest import build_manifest

EMBEDDED = ("parquet", "texts", "tar")  # formats that store the images themselves


def images_folder(kind, annotations, folder):
    return annotations if kind in EMBEDDED else folder


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_yield_the_same_samples_and_images(kind, tiny_data, tmp_path):
    records, folder = tiny_data
    annotations = write(kind, records, folder, tmp_path / kind)
    images = images_folder(kind, annotations, folder)
    converted = list(open_dataset(annotations))
    assert [r["id"] for r in converted] == [r["id"] for r in records]
    for record, expected in zip(converted, records):
        assert [(t["from"], t["value"]) for t in record["conversations"]] == [
            (t["from"], t["value"]) for t in expected["conversations"]
        ]
        names = image_names(record)
        assert len(names) == ("image" in expected)
        for name in names:
            assert open_image(images, name).tobytes() == open_image(folder, expected["image"]).tobytes()
    manifest, rejected = build_manifest(converted, images, Dataset(annotations="-", shards=2))
    assert len(rejected) == 0
    assert sorted(manifest["sample_id"]) == sorted(r["id"] for r in records)


@pytest.mark.parametrize("kind", FORMATS)
def test_faulty_rows_are_rejected_in_every_format(kind, tiny_data, tmp_path):
    records, folder = copy.deepcopy(tiny_data[0]), tiny_data[1]
    records[1]["image"] = "folder/gone.png"
    (folder / "short.png").write_bytes((folder / "folder/2.png").read_bytes()[:120])
    records[2]["image"] = "short.png"
    records[3]["conversations"] = records[3]["conversations"][:0]
    records[5]["conversations"][1]["value"] = " "
    annotations = write(kind, records, folder, tmp_path / kind)
    manifest, rejected = build_manifest(
        open_dataset(annotations), images_folder(kind, annotations, folder), Dataset(annotations="-", shards=1)
    )
    # where images are embedded, tests/formats.py writes bytes that are not an image
    missing = "unreadable image" if kind in EMBEDDED else "missing image"
    reasons = {1: missing, 2: "unreadable image", 3: "empty conversation"}
    rejected_reasons = dict(zip(rejected["position"], rejected["reason"]))
    assert {k: rejected_reasons.get(k) for k in reasons} == reasons
    assert sorted([*manifest["position"], *rejected["position"]]) == list(range(len(records)))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_subset_is_written_in_the_format_of_the_dataset(kind, tiny_data, tmp_path):
    records, folder = tiny_data
    annotations = write(kind, records, folder, tmp_path / kind)
    dataset, positions = open_dataset(annotations), np.array([0, 4, 5, 13, 22])
    kept = list(dataset.pick(positions))
    assert [r["id"] for r in kept] == [records[i]["id"] for i in positions]
    if dataset.is_json:  # the records are unchanged
        source = json.loads(annotations.read_text())
        assert kept == [source[i] for i in positions]
        return
    write_subset(dataset, positions, tmp_path / "subset")
    written = tmp_path / "subset" / "data.jsonl" if kind == "jsonl" else tmp_path / "subset"
    subset = list(open_dataset(written))
    assert [r["id"] for r in subset] == [records[i]["id"] for i in positions]
    for record, i in zip(subset, positions):
        for name in image_names(record):
            image = open_image(images_folder(kind, written, folder), name)
            assert image.tobytes() == open_image(folder, records[i]["image"]).tobytes()
    if kind == "parquet":
        schema = pq.read_schema(next(iter(sorted(annotations.glob("*.parquet")))))
        assert all(pq.read_schema(f) == schema for f in (tmp_path / "subset").glob("*.parquet"))


def test_names_of_embedded_images_cannot_leave_the_folder(tiny_data, tmp_path):
    records, folder = tiny_data
    write("tar", records, folder, tmp_path / "data")
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(ImageError) as error:
        open_image(inside, "../data/shard-0.tar#512+100")
    assert error.value.reason == "image path outside the folder"
    for name in ("data/shard-0.tar#0+10", "data/shard-0.tar#999999999+10", "data/none.parquet#1.0"):
        with pytest.raises(ImageError) as error:
            open_image(tmp_path, name)
        assert error.value.reason in ("unreadable image", "missing image")


def test_paths_inside_a_parquet_file_cannot_leave_the_folder(tmp_path):
    rows = pa.array(
        [[{"bytes": None, "path": "/etc/passwd"}]], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    pq.write_table(pa.table({"images": rows}), tmp_path / "a.parquet")
    with pytest.raises(ImageError) as error:
        open_image(tmp_path, "a.parquet#0.0")
    assert error.value.reason == "image path outside the folder"


def test_a_line_that_is_not_json_is_rejected(tiny_data, tmp_path):
    records, folder = tiny_data
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(records[0]) + "\n{broken\n\n" + json.dumps(records[3]) + "\n")
    manifest, rejected = build_manifest(open_dataset(path), folder, Dataset(annotations="-", shards=1))
    assert manifest["position"].tolist() == [0, 2]
    assert rejected["reason"].tolist() == ["malformed record"]
    assert "not valid JSON" in rejected["detail"][0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "unknown dataset format"),
        ("a.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("a.tar", b"not a tar file" * 100, "cannot be read as a tar file"),
        ("a.json", b'[{"id": 1}, {', "not valid JSON after 1 samples"),
    ],
)
def test_the_error_names_a_file_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message) as error:
        list(open_dataset(tmp_path / name))
    assert name in str(error.value)


def test_image_marks_are_added_to_a_record_without_any():
    record = {"images": ["a.png", "b.png"], "texts": [{"user": "same?", "assistant": "no"}]}
    assert to_llava(record)["conversations"][0]["value"] == "<image>\n<image>\nsame?"
    assert to_llava(record)["image"] == ["a.png", "b.png"]
    assert to_llava([1]) == [1]


@pytest.mark.workflow
def test_runs_on_other_formats_select_the_same_coreset_as_json(finished, tmp_path):
    """The coreset is also written in the format of the dataset, and exported with image files."""
    import shutil

    shutil.copytree(finished / "resources", tmp_path / "resources")
    records = json.loads((finished / "resources/mini-mix/train.json").read_text())[:200]
    for i, record in enumerate(
        records
    ):  # one image per sample: formats name a shared image differently, so its samples would be grouped differently
        record["id"] = f"r{i:04d}"
        if "image" in record:
            copy_name = f"copy-{i}.png"
            shutil.copy(finished / "resources/mini-mix/images" / record["image"], tmp_path / copy_name)
            record["image"] = copy_name
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    annotations = {
        kind: write(kind, records, tmp_path, tmp_path / f"data-{kind}") for kind in ("json", "parquet", "tar")
    }
    small["runs"] = [
        {"run": kind, "dataset": {"annotations": str(path), "images": str(tmp_path) if kind == "json" else None}}
        for kind, path in annotations.items()
    ]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(small))
    code, output = Workplace(tmp_path).run("select", "export", config=tmp_path / "config.yml")
    assert code == 0, output
    selected = {kind: tmp_path / "results" / kind / "coresets/coincide/0.2" for kind in annotations}
    coresets = {kind: pd.read_parquet(folder / "coreset.parquet") for kind, folder in selected.items()}
    exported = {kind: json.loads((folder / "export/coreset.json").read_text()) for kind, folder in selected.items()}
    for kind, folder in selected.items():
        assert list(json.loads((folder / "export/dataset_info.json").read_text())) == ["coincide_0.2"]
        assert (folder / "export/images").exists() == (folder / "coreset_dataset").exists() == (kind != "json")
    for kind in ("parquet", "tar"):
        pd.testing.assert_frame_equal(coresets["json"], coresets[kind])
        written = list(open_dataset(selected[kind] / "coreset_dataset"))
        assert {record["id"] for record in written} == set(coresets[kind]["sample_id"])
        for plain, other in zip(exported["json"], exported[kind], strict=True):
            assert plain["id"] == other["id"]
            assert plain["conversations"] == other["conversations"]
            assert plain.get("image", "none")[0] in "/n"  # an absolute path
            if "image" in plain:
                assert (selected[kind] / "export" / other["image"]).read_bytes() == Path(plain["image"]).read_bytes()
