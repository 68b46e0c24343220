"""coreset.json as trainers read it: one structure, one type per key; and the export with image files."""

import itertools
import json
import shutil

import datasets
import numpy as np
import pytest
from formats import FORMATS, write
from PIL import Image

from coincide.base.files import write_json
from coincide.base.sections import Dataset
from coincide.dataset.conversation import image_list
from coincide.dataset.export import export_coreset
from coincide.dataset.formats import DatasetError, open_dataset, read_records, write_subset
from coincide.dataset.manifest import build_manifest
from coincide.dataset.uniform_records import Structure, dataset_info, write_uniform_records

MARK = "<image>\n"
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
LLAVA = Structure(images="image")


def with_marks(turns, count):
    """Turns with a number of image marks in front of the first text."""
    key = "value" if "value" in turns[0] else "content"
    return [{**turns[0], key: MARK * count + turns[0][key]}, *turns[1:]]


def write_uniform(folder, records):
    """Write records as a JSON dataset and its coreset.json with all of them; returns (structure, written records)."""
    (folder / "data.json").write_text(json.dumps(records))
    sample_ids = [f"sample-{i}" for i in range(len(records))]
    dataset, positions = open_dataset(folder / "data.json"), np.arange(len(records))
    structure = write_uniform_records(dataset, positions, sample_ids, folder / "coreset.json")
    return structure, json.loads((folder / "coreset.json").read_text())


def load(path, folder):
    """The file as `datasets` loads it."""
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))


def test_uniform_records_stay_as_they_are(tmp_path):
    records = [
        {"id": "a", "image": "a.png", "conversations": with_marks(TURNS, 1), "source": "x"},
        {"id": "b", "conversations": TURNS, "width": 3},
        {"id": "c", "width": 3.5, "conversations": [{"from": "system", "value": "Be brief."}, *TURNS]},
    ]
    assert write_uniform(tmp_path, records) == (LLAVA, records)


def test_ids_are_text_and_nulls_are_left_out(tmp_path):
    records = [{"id": 12.0}, {"id": 7, "source": None, "image": None}, {"image": ""}, {"id": "x"}]
    _, written = write_uniform(tmp_path, [{**record, "conversations": TURNS} for record in records])
    assert written == [{"id": i, "conversations": TURNS} for i in ("12", "7", "sample-2", "x")]


def test_images_are_lists_in_all_records_if_any_has_several(tmp_path):
    records = [
        {"id": "a", "image": "a.png", "conversations": with_marks(TURNS, 1)},
        {"id": "b", "image": ["a.png", "b.png"], "conversations": with_marks(TURNS, 2)},
        {"id": "c", "conversations": TURNS},
    ]
    structure, written = write_uniform(tmp_path, records)
    assert structure == LLAVA
    assert [record.get("image") for record in written] == [["a.png"], ["a.png", "b.png"], None]
    assert "image" not in written[2]  # LLaVA's trainer opens what is under this key
    _, written = write_uniform(tmp_path, [{**records[0], "image": ["a.png"]}, records[2]])
    assert written[0]["image"] == "a.png"  # LLaVA's trainer reads one image, as a name


def test_messages_keep_their_structure(tmp_path):
    records = [
        {"id": 1, "messages": with_marks(MESSAGES, 1), "images": "a.png"},
        {"id": 2, "messages": MESSAGES},
        {"id": 3, "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES], "images": []},
    ]
    structure, written = write_uniform(tmp_path, records)
    assert structure == Structure("messages", "role", "content", "user", "assistant", "images")
    assert [record["images"] for record in written] == [["a.png"], [], []]
    assert [record["messages"] for record in written] == [record["messages"] for record in records]


@pytest.mark.parametrize(
    "other",
    [
        {"id": "b", "messages": MESSAGES},
        {"id": "b", "instruction": "Hi", "input": "", "output": "Ho"},
        {"id": "b", "image": ["b.png"], "conversations": TURNS},  # marks are missing
        {"id": "b", "system": "Be brief.", "conversations": TURNS},
        {"id": "b", "conversations": [{"from": "human", "value": [{"type": "text", "text": "Hi"}]}, TURNS[1]]},
        {"id": "b", "conversations": [{"user": "Hi", "assistant": "Ho"}]},
        {"id": "b", "conversations": [{**TURNS[0], "weight": 1}, {**TURNS[1], "weight": "low"}]},
        {"id": "b", "conversations": with_marks(TURNS, 1), "images": ["b.png"]},
    ],
)
def test_records_without_a_common_structure_are_written_in_llavas(tmp_path, other):
    record = {"id": "a", "image": "a.png", "conversations": with_marks(TURNS, 1)}
    structure, written = write_uniform(tmp_path, [record, other])
    assert structure == LLAVA
    assert written[0] == record
    assert {*written[1]} <= {"id", "image", "conversations"}
    assert [turn["value"].removeprefix(MARK) for turn in written[1]["conversations"]][-2:] == ["Hi", "Ho"]
    assert all({*turn} == {"from", "value"} for turn in written[1]["conversations"])


def test_values_without_a_common_type_become_text(tmp_path):
    values = [1, "x", [1, "é"], None, {"a": 1}, 2**70]
    records = [{"id": "a", "key": value, "other": [value], "conversations": TURNS} for value in values]
    _, written = write_uniform(tmp_path, records)
    assert [record.get("key") for record in written] == ["1", "x", '[1, "é"]', None, '{"a": 1}', str(2**70)]
    assert [json.loads(record["other"]) for record in written] == [[value] for value in values]


def test_types_differ_only_late_in_the_file(tmp_path):
    """Types are inferred for a thousand records at a time."""
    records = [{"id": "a", "key": 1, "conversations": TURNS}] * 2500
    _, written = write_uniform(tmp_path, [*records, {"id": "b", "key": "x", "conversations": TURNS}])
    assert {record["key"] for record in written} == {"1", "x"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_datasets_loads_every_mixture_with_one_schema(tmp_path, order):
    kinds = [
        {"id": 1, "image": "a.png", "conversations": with_marks(TURNS, 1), "meta": {"w": 1}, "score": None},
        {"id": "b", "conversations": TURNS, "meta": [], "score": 1},
        {"images": ["a.png", "b.png"], "messages": with_marks(MESSAGES, 2), "score": 0.5, "meta": {"w": "x"}},
        {"id": 1.5, "instruction": "Hi", "output": "Ho", "image": None, "tags": []},
    ]
    _, written = write_uniform(tmp_path, [kinds[i] for i in order])
    loaded = load(tmp_path / "coreset.json", tmp_path)
    assert loaded.features["id"] == datasets.Value("string")
    assert loaded.features["image"] == datasets.List(datasets.Value("string"))
    assert loaded.features["meta"] == datasets.Value("string")
    assert loaded.features["score"] == datasets.Value("float64")
    without_nulls = [{key: value for key, value in row.items() if value is not None} for row in loaded]
    assert without_nulls == written


def test_the_entry_for_llamafactory_names_what_the_file_has(tmp_path):
    structure, _ = write_uniform(tmp_path, [{"messages": MESSAGES}])
    entry = dataset_info("random_0.1", structure)["random_0.1"]
    assert entry["columns"] == {"messages": "messages"}  # a column that no record has would be an error
    assert entry["file_name"] == "coreset.json"
    assert (entry["tags"]["role_tag"], entry["tags"]["user_tag"]) == ("role", "user")


def select_all(kind, records, images, folder):
    """Write records in a format, and coreset.json with all usable ones; returns (config section, written records)."""
    annotations = write(kind, records, images, folder / kind)
    is_embedded = kind in ("parquet", "texts", "tar")
    dataset = Dataset(annotations=str(annotations), images=None if is_embedded else str(images))
    manifest, rejected = build_manifest(open_dataset(annotations), dataset.image_folders, dataset)
    assert len(rejected) == 0
    manifest = manifest.sort_values("position")
    structure = write_uniform_records(
        open_dataset(annotations),
        manifest["position"].to_numpy(),
        manifest["sample_id"].tolist(),
        folder / "coreset.json",
    )
    write_json(dataset_info("coincide_0.2", structure), folder / "dataset_info.json")
    return dataset, json.loads((folder / "coreset.json").read_text())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_export_of_every_format_has_image_files_with_the_original_bytes(kind, tiny_data, tmp_path):
    records, images = tiny_data
    dataset, written = select_all(kind, records, images, tmp_path)
    export = tmp_path / "export"
    export_coreset(tmp_path / "coreset.json", dataset.image_folders, export, samples=len(records))
    exported = json.loads((export / "coreset.json").read_text())
    assert (export / "dataset_info.json").read_text() == (tmp_path / "dataset_info.json").read_text()
    names = [image_list(record.get("image", record.get("images"))) for record in exported]
    assert [len(found) for found in names] == ["image" in record for record in records]
    for record, found in zip(records, names):
        for name in found:
            assert (export / name).read_bytes() == (images / record["image"]).read_bytes()
    has_copies = kind in ("parquet", "texts", "tar")
    assert (export / "images").exists() == has_copies
    assert all(name.startswith("images/") == has_copies for found in names for name in found)
    for record, other in zip(written, exported):  # nothing else differs
        assert {**other, **{key: record[key] for key in ("image", "images") if key in record}} == record
    loaded = load(export / "coreset.json", tmp_path)
    assert loaded.num_rows == len(records)
    assert loaded.features["id"] == datasets.Value("string")


def test_the_names_of_exported_images_have_no_text_of_the_dataset(tmp_path):
    """An image named by its path inside a tar file, through "..": what is written stays in the export."""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", format="PNG")
    record = {"id": "s", "image": "a.jpg", "conversations": with_marks(TURNS, 1)}
    other = {**record, "id": "t"}
    write("tar", [record, other], tmp_path, data)
    (name,) = next(iter(open_dataset(data)))["image"].splitlines()
    shutil.copy(data / name.partition("#")[0], data / "x.tar")
    records = [{**record, "image": f"../data/./x.tar#{name.partition('#')[2]}"}]
    (data / "data.json").write_text(json.dumps(records))
    (tmp_path / "dataset_info.json").write_text("{}")
    write_uniform_records(open_dataset(data / "data.json"), [0], ["s"], tmp_path / "coreset.json")
    export_coreset(tmp_path / "coreset.json", [data], tmp_path / "export", samples=1)
    assert read_records(tmp_path / "export/coreset.json")[0]["image"] == "images/00000/00000000-0.png"
    assert (tmp_path / "export/images/00000/00000000-0.png").read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_an_export_of_a_changed_dataset_names_the_image(tiny_data, tmp_path):
    dataset, _ = select_all("tar", *tiny_data, tmp_path)
    for shard in (tmp_path / "tar").iterdir():
        shard.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"shard-0.tar#\d+\+\d+ cannot be exported: .* select again"):
        export_coreset(tmp_path / "coreset.json", dataset.image_folders, tmp_path / "export", samples=24)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_datasets_loads_a_coreset_in_the_format_of_the_dataset(kind, tiny_data, tmp_path):
    records, images = tiny_data
    dataset, picked = open_dataset(write(kind, records, images, tmp_path / "data")), [1, 4, 5, 13, 22]
    write_subset(dataset, np.array(picked), tmp_path / "coreset_dataset")
    files = sorted(map(str, (tmp_path / "coreset_dataset").iterdir()))
    builder = {"parquet": "parquet", "tar": "webdataset"}[kind]
    loaded = datasets.load_dataset(builder, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["__key__" if kind == "tar" else "id"] == [records[i]["id"] for i in picked]
    if kind == "tar":  # it refuses samples without an image
        assert [row["conversations"] for row in loaded["json"]] == [records[i]["conversations"] for i in picked]
