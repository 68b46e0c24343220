"""Coresets loaded and trained on with the programs of docs/other-trainers.md, each in its own environment.

`make test-clients` makes the environments and runs this.
"""

import copy
import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from formats import write

from coincide.base.files import write_json
from coincide.base.sections import Dataset
from coincide.dataset.conversation import image_list, to_llava
from coincide.dataset.export import export_coreset
from coincide.dataset.formats import open_dataset, write_subset
from coincide.dataset.manifest import build_manifest
from coincide.dataset.uniform_records import dataset_info, write_uniform_records

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        "COINCIDE_CLIENTS" not in os.environ, reason="needs environments of several GB; run it with make test-clients"
    ),
]
HERE = Path(__file__).parent
NAME = "coincide_0.2"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
SYSTEM_TURN = {"from": "system", "value": "Answer briefly."}


def tools(client):
    """The folder of an environment's programs."""
    return Path(os.environ["COINCIDE_CLIENTS"]) / client / "bin"


def call(client, program, *arguments, folder, **variables):
    """Run a program of an environment, without access to a hub or a GPU; returns what it printed."""
    if not (tools(client).parent / "complete").exists():
        pytest.skip(f"{client} is not installed; make test-clients says why")
    caches = {name: str(folder / "cache") for name in ("HF_HOME", "MODELSCOPE_CACHE", "XDG_CACHE_HOME")}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [str(tools(client) / program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **caches, **offline, **variables},
        text=True,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-5000:]
    return process.stdout


def load(client, script, cases, folder, *arguments):
    """What a script of this folder loads in an environment: dict of case -> samples."""
    printed = call(client, "python", HERE / script, *arguments, json.dumps(cases), folder=folder)
    return json.loads(printed.splitlines()[-1])


class Coresets:
    """Coresets of datasets in several formats.

    Attributes:
        folder: of everything.
        cases: dict of name -> {folder, dataset, images}, as the scripts take it.
        records: dict of name -> expected LLaVA records; their images are paths.
    """

    def __init__(self, folder):
        self.folder, self.cases, self.records = folder, {}, {}

    def add(self, name, annotations, records, images):
        """Write the coreset of all samples but one; with `images`, the folder of image files, without export too."""
        section = Dataset(annotations=str(annotations), images=images and str(images))
        dataset = open_dataset(annotations)
        manifest, rejected = build_manifest(dataset, section.image_folders, section)
        assert len(rejected) == 0
        rows = manifest.sort_values("position").iloc[1:]
        positions = rows["position"].to_numpy()
        coreset = self.folder / f"coreset-{name}"
        structure = write_uniform_records(dataset, positions, rows["sample_id"].tolist(), coreset / "coreset.json")
        write_json(dataset_info(NAME, structure), coreset / "dataset_info.json")
        export_coreset(coreset / "coreset.json", section.image_folders, coreset / "export", samples=len(rows))
        self.cases[name] = {"folder": str(coreset / "export"), "dataset": NAME, "images": None}
        self.records[name] = [records[i] for i in positions]
        if images:
            self.cases[f"{name}, not exported"] = {"folder": str(coreset), "dataset": NAME, "images": str(images)}
            self.records[f"{name}, not exported"] = self.records[name]

    def only(self, *names):
        """The cases of these names, without and with export."""
        return {name: case for name, case in self.cases.items() if name.split(",")[0] in names}


@pytest.fixture(scope="module")
def coresets(tmp_path_factory, tiny_data):
    records, images = tiny_data
    folder = tmp_path_factory.mktemp("clients")
    coresets = Coresets(folder)
    expected = [
        {**to_llava(record), "image": [images / name for name in image_list(record.get("image"))]} for record in records
    ]
    for kind in ("json", "sharegpt", "jsonl"):
        coresets.add(kind, write(kind, records, images, folder / kind), expected, images)
    for kind in ("parquet", "tar"):
        coresets.add(kind, write(kind, records, images, folder / kind), expected, None)
    mixed = mixed_records(records)
    (folder / "mixed.json").write_text(json.dumps(mixed))
    resolved = [
        {**to_llava(record), "image": [images / name for name in image_list(to_llava(record).get("image"))]}
        for record in mixed
    ]
    coresets.add("mixed", folder / "mixed.json", resolved, images)
    text_only = [record for record in records if "image" not in record]
    (folder / "text_only.json").write_text(json.dumps(text_only))
    coresets.add("text_only", folder / "text_only.json", [{**record, "image": []} for record in text_only], images)
    return coresets


def mixed_records(records):
    """Records of many structures and types: several images, system turns, messages, numbers as ids, other keys."""
    mixed = copy.deepcopy(records)
    for i, record in enumerate(mixed):
        record["id"] = i if i % 2 else f"s{i}"
        record["note"] = [i, "x", None, {"a": i}][i % 4]
        if i % 4 == 1:
            record["conversations"].insert(0, SYSTEM_TURN)
        if "image" not in record:
            record["image"] = ["", None, []][i % 3]
        elif i % 5 == 0:
            record["image"] = [record["image"], "folder/1.png"]
            first = next(turn for turn in record["conversations"] if turn["from"] == "human")
            first["value"] = f"<image>\n{first['value']}"
    mixed[7] = {
        "images": [mixed[7]["image"]],
        "messages": [{"role": ROLES[t["from"]], "content": t["value"]} for t in mixed[7]["conversations"]],
    }
    mixed[9] = {"instruction": "Say", "input": "ho", "output": "ho"}
    return mixed


def expected_turns(record):
    return [[ROLES[turn["from"]], turn["value"]] for turn in record["conversations"]]


def digests(record):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in record["image"]]


def test_llamafactory_reads_the_same_samples_and_images(coresets, tiny_model):
    loaded = load("llamafactory", "load_llamafactory.py", coresets.cases, coresets.folder, tiny_model)
    for name, samples in loaded.items():
        assert [sample["turns"] for sample in samples] == list(map(expected_turns, coresets.records[name])), name
        for sample, record in zip(samples, coresets.records[name]):
            contents = [Path(image).read_bytes() for image in sample["images"]]
            assert contents == [path.read_bytes() for path in record["image"]], name


def test_ms_swift_reads_the_same_samples_and_images(coresets):
    loaded = load("ms-swift", "load_ms_swift.py", coresets.cases, coresets.folder)
    for name, samples in loaded.items():
        assert [sample["turns"] for sample in samples] == list(map(expected_turns, coresets.records[name])), name
        assert [sample["images"] for sample in samples] == list(map(digests, coresets.records[name])), name


def test_llavas_trainer_reads_every_sample_with_its_image(coresets):
    cases = coresets.only("json", "jsonl", "parquet", "tar", "text_only")
    loaded = load("llava", "load_llava.py", cases, coresets.folder)
    for name, samples in loaded.items():
        has_image = [bool(record["image"]) for record in coresets.records[name]]
        assert [sample["has_image"] for sample in samples] == has_image, name
        assert len({sample["pixels"] for sample in samples}) == sum(has_image) + 1, name  # text-only samples: zeros
    names = [name for name in loaded if not name.startswith("text_only")]
    assert all(loaded[name] == loaded["json"] for name in names)


@pytest.mark.parametrize("client", ["llamafactory", "ms-swift"])
def test_older_versions_of_datasets_load_every_coreset_with_one_schema(client, coresets):
    loaded = load(client, "load_datasets.py", coresets.cases, coresets.folder)
    for name, samples in loaded.items():
        assert samples["id"] == "string"
        written = json.loads((Path(coresets.cases[name]["folder"]) / "coreset.json").read_text())
        rows = [{key: value for key, value in row.items() if value is not None} for row in samples["rows"]]
        assert rows == written, name


def test_webdataset_reads_a_coreset_in_the_format_of_the_dataset(coresets, tiny_data, tmp_path):
    records, images = tiny_data
    picked = [0, 4, 5, 13, 22]
    write_subset(open_dataset(coresets.folder / "tar"), np.array(picked), tmp_path / "coreset_dataset")
    shards = sorted((tmp_path / "coreset_dataset").iterdir())
    loaded = json.loads(call("webdataset", "python", HERE / "load_webdataset.py", *shards, folder=tmp_path))
    assert [sample["key"] for sample in loaded] == [records[i]["id"] for i in picked]
    for sample, i in zip(loaded, picked):
        assert sample["json"]["conversations"] == records[i]["conversations"]
        files = [images / records[i]["image"]] if "image" in records[i] else []
        assert sample["images"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        assert sample["size"] == ([48, 40] if files else None)


@pytest.mark.parametrize("kind", ["json", "parquet", "tar"])
def test_llamafactory_trains_with_the_documented_command(kind, coresets, tiny_model, tmp_path):
    command = "train --stage sft --do_train --template llava --finetuning_type lora"
    data = ["--dataset_dir", coresets.cases[kind]["folder"], "--dataset", NAME, "--output_dir", "out"]
    small = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --use_cpu true"
    model = ["--model_name_or_path", tiny_model]
    call("llamafactory", "llamafactory-cli", *command.split(), *model, *data, *small.split(), folder=tmp_path)
    assert json.loads((tmp_path / "out/all_results.json").read_text())["train_loss"] > 0
    assert (tmp_path / "out/adapter_model.safetensors").exists()


@pytest.mark.parametrize("kind", ["json", "parquet", "tar"])
def test_ms_swift_trains_with_the_documented_command(kind, coresets, tiny_model, tmp_path):
    export = coresets.cases[kind]["folder"]
    # a checkpoint of the hub is recognised by its name, the small model is not
    model = ["--model", tiny_model, "--model_type", "llava1_5_hf"]
    data = ["--dataset", f"{export}/coreset.json", "--output_dir", "out"]
    small = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --torch_dtype float32 --use_hf true"
    call("ms-swift", "swift", "sft", *model, *data, *small.split(), folder=tmp_path, ROOT_IMAGE_DIR=export)
    (log,) = (tmp_path / "out").glob("*/logging.jsonl")
    assert any("loss" in json.loads(line) for line in log.read_text().splitlines())
    assert list((tmp_path / "out").glob("*/checkpoint-2/adapter_model.safetensors"))
