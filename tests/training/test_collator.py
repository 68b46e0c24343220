"""Batches for training: labels and truncation."""

import torch

from coincide.models.loading import load_processor
from coincide.training.collator import Collator


def test_labels_cover_answers_only(tiny_model, tiny_data):
    processor = load_processor(tiny_model)
    records, images = tiny_data
    batch = Collator(processor, records, images)([{"row": i} for i in range(6)])
    for i in range(6):
        labels = batch["labels"][i]
        labelled = processor.tokenizer.decode(labels[labels != -100])
        turns = [t["value"] for t in records[i]["conversations"] if t["from"] == "gpt"]
        assert labelled == "".join(f" {t}</s>" for t in turns)


def test_long_samples_are_truncated_after_their_images(tiny_model, tiny_data):
    processor = load_processor(tiny_model)
    records = [r for r in tiny_data[0] if "image" in r][:2]
    batch = [{"row": 0}, {"row": 1}]
    whole = Collator(processor, records, tiny_data[1])(batch)
    cut = Collator(processor, records, tiny_data[1], 40)(batch)
    assert cut["input_ids"].shape[1] == cut["labels"].shape[1] == cut["attention_mask"].shape[1] == 40
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :40])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    images = Collator(processor, records, tiny_data[1], 3)(batch)["input_ids"] == processor.image_token_id
    assert images.sum() == (whole["input_ids"] == processor.image_token_id).sum()


def test_a_system_turn_is_read_but_not_learned(tiny_model, tiny_data):
    processor = load_processor(tiny_model)
    records, images = tiny_data
    turn = {"from": "system", "value": "answer 7 really"}
    record = {**records[1], "conversations": [turn, *records[1]["conversations"]]}
    batch = Collator(processor, [record], images)([{"row": 0}])
    assert "answer 7 really USER:" in processor.tokenizer.decode(batch["input_ids"][0])
    learned = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    assert record["conversations"][2]["value"] in learned
    assert "answer 7" not in learned
