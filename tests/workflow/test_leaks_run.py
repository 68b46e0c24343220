"""A run that drops leaks of its evaluation and near-duplicates before anything is extracted."""

import io
import json

import pandas as pd
import pytest
import yaml
from conftest import REPO
from pictures import COPIES
from PIL import Image

PLANTED = ("identical", "quality 60", "half size")


def record(name, question, image=None):
    turns = [{"from": "human", "value": "<image>\n" * bool(image) + question}, {"from": "gpt", "value": "no"}]
    return {"id": name, "source": "planted", "conversations": turns, **({"image": image} if image else {})}


def write_planted(folder, mix):
    """Write a dataset with copies of the evaluation's images, and repeated samples; returns the number of records."""
    (folder / "images/planted").mkdir(parents=True)
    for source in (mix / "images").iterdir():
        (folder / "images" / source.name).symlink_to(source)
    records = json.loads((mix / "train.json").read_text())[:300]
    tests = {path.stem: pd.read_parquet(path) for path in (mix / "evaluation").glob("*.parquet")}
    original = Image.open(io.BytesIO(tests["counting"]["image"][0]["bytes"])).convert("RGB")
    for change in PLANTED:
        name = f"planted/{change.replace(' ', '_')}.png"
        COPIES[change](original).save(folder / "images" / name)
        records.append(record(change, f"what is {change}?", name))
    records.append(record("text", tests["text_only"]["question"][0]))
    records += [{**record, "id": f"{record['id']} again"} for record in records[:4]]
    (folder / "data.json").write_text(json.dumps(records))
    return len(records)


@pytest.mark.workflow
def test_leaks_and_near_duplicates_are_dropped_before_extraction(finished, tmp_path):
    count = write_planted(tmp_path, finished / "resources/mini-mix")
    values = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    data = {"annotations": str(tmp_path / "data.json"), "images": str(tmp_path / "images")}
    values |= {"run": "planted", "dataset": {**data, "shards": 2, "leaks": "drop", "near_duplicates": "drop"}}
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump(values))
    code, output = finished.run("select", config=tmp_path / "planted.yaml")
    assert code == 0, output
    results = finished / "results/planted"
    manifest, rejected = (pd.read_parquet(results / f"{name}.parquet") for name in ("manifest", "rejected"))
    assert sorted([*manifest["position"], *rejected["position"]]) == list(range(count))
    ids = {reason: set(rows["sample_id"]) for reason, rows in rejected.groupby("reason")}
    assert ids["evaluation leak"] >= {*PLANTED, "text"}
    assert {name for name in ids["near-duplicate"] if name.endswith(" again")}
    assert not set(manifest["sample_id"]) & {*PLANTED, "text"}
    assert not manifest["sample_id"].str.endswith(" again").any()
    leaks = pd.read_parquet(results / "leaks.parquet")
    found = {row.sample_id: (row.task, row.kind) for row in leaks.itertuples() if row.source == "planted"}
    assert found == {
        "identical": ("mini_mix_counting", "same pixels"),
        "quality 60": ("mini_mix_counting", "same picture"),
        "half size": ("mini_mix_counting", "same picture"),
        "text": ("mini_mix_text_only", "same question"),
    }
    kept = len(json.loads((results / "coresets/coincide/0.2/coreset.json").read_text()))
    assert kept == int(0.2 * len(manifest))
    code, output = finished.run("select", "-n", config=tmp_path / "planted.yaml")
    assert "Nothing to be done" in output
