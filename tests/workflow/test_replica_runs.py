"""The whole workflow on the replica of every public checkpoint, from the dataset to summary.csv.

Some minutes per model, so `make test` leaves it out: `make test-models` runs it, records what passed in
docs/models.json, and writes the README's list from that.
"""

import datetime
import json
import os

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO, make_record
from lmms_tasks import TASKS, write_tasks
from model_list import TABLE, record_pass
from PIL import Image
from replicas import REPLICAS, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "COINCIDE_MODELS" not in os.environ, reason="takes some minutes per model; run it with make test-models"
    ),
]
WITHOUT_TEXT_ONLY = ("paligemma",)  # its processor needs an image


@pytest.mark.parametrize("name", REPLICAS)
def test_the_whole_workflow(name, workplace):
    family = REPLICAS[name].family
    model = workplace / "model"
    build(name, model)
    images = workplace / "images"
    (images / "folder").mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        record = make_record(i, image=i % 3 > 0 or family in WITHOUT_TEXT_ONLY, turns=1 + i % 2, words=i % 5)
        if "image" in record:
            pixels = rng.integers(0, 256, (40, 48 + 8 * (i % 4), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / record["image"])
        records.append(record)
    (workplace / "data.json").write_text(json.dumps(records))
    shown = [images / f"folder/{i}.png" for i in (1, 2, 4, 5)]
    write_tasks(workplace / "tasks", shown, [f"what is thing{i}?" for i in range(4)], ["answer"] * 4)
    tasks = [f"replica_{task}" for task in TASKS if not (task == "text_only" and family in WITHOUT_TEXT_ONLY)]
    # needs a judge, and data that cannot be downloaded here
    judged = [{"name": "judged", "tasks": ["mmbench_en_dev"]}] if name == next(iter(REPLICAS)) else []
    config = {
        "run": "replica",
        "dataset": {"annotations": str(workplace / "data.json"), "images": str(images), "shards": 2},
        "reference_model": {"name": str(model), "layers": [0, 0.67]},
        "clustering": {"k": 4},
        "selection": {"fractions": [0.25], "methods": ["coincide"]},
        "target_model": {
            "name": str(model),
            "training": {
                "epochs": 5,
                "batch_size": 4,
                "learning_rate": 1.0e-2,
                "save_every": 2,
                "lora": {"r": 2, "alpha": 4},
            },
        },
        "evaluation": {
            "include_path": str(workplace / "tasks"),
            "groups": [{"name": "replica", "tasks": tasks}, *judged],
        },
    }
    (workplace / "replica.yaml").write_text(yaml.safe_dump(config))
    checkpoints = workplace / "results/replica/checkpoints/target-full-1-0"
    workplace.kill_when(
        lambda: list(checkpoints.rglob("checkpoint-*/trainer_state.json")),
        "killed",
        group=True,
        config=workplace / "replica.yaml",
    )
    code, output = workplace.run(config=workplace / "replica.yaml", timeout=1500)
    logs = sorted((workplace / "results/replica/logs").rglob("*.log"), key=lambda path: path.stat().st_mtime)
    assert code == 0, output + "".join(f"\n== {log}\n{log.read_text()[-3000:]}" for log in logs[-2:])
    assert "resuming from" in (workplace / "results/replica/logs/finetune_model/target-full-1-0.log").read_text()
    summary = pd.read_csv(workplace / "results/replica/summary.csv")
    assert set(summary["method"]) == {"coincide", "full"}
    assert set(summary["task"]) == {*tasks, "average"}
    assert summary.loc[summary["task"] != "average", "score"].notna().all()
    different = "replica_text_only" in tasks  # counts words; the others are shares of right answers
    assert summary.loc[summary["task"] == "average", "score"].isna().all() == different
    assert (workplace / "results/replica/report.html").exists()
    text = (workplace / "results/replica/summary.md").read_text()
    assert ("has no scores of the group judged" in text) == bool(judged)
    answers = workplace / "results/replica/evaluations/target/coincide/0.25/0/replica/samples"
    assert len(list(answers.glob("*.jsonl"))) == len(tasks)
    assert not (REPO / "results").is_symlink()
    record_pass(TABLE, name, str(datetime.date.today()))
