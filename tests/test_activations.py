"""Features of the reference model: against one plain forward pass a sample, and what extraction sets aside."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from coincide.activations import decoder_layers, extract, features, token_masks
from coincide.chat import ChatError, encode, fixed_prefix, render
from coincide.images import open_image
from coincide.models import load_model
from coincide.storage import Activations

LAYERS = [0, 2]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, device="cpu")


def pictures(record, folder):
    return [open_image(folder, record["image"])] if "image" in record else []


def plain_features(model, processor, record, folder, layers):
    """DESIGN step 1, by itself: a whole forward pass of one sample, attention outputs kept by hooks."""
    outputs = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, o, i=i: outputs.__setitem__(i, o[0][0].double()))
        for i, layer in enumerate(decoder_layers(model))
    ]
    text = "<s>Look and answer."
    for turn in record["conversations"]:
        text += (" USER: " if turn["from"] == "human" else " ASSISTANT: ") + turn["value"]
        text += "</s>" if turn["from"] == "gpt" else ""
    inputs = processor(text=text, images=pictures(record, folder) or None,
                       add_special_tokens=False, return_tensors="pt")  # fmt: skip
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    ids = inputs["input_ids"][0].numpy()
    visual = ids == processor.image_token_id
    prefix = processor.tokenizer("<s>Look and answer. USER:", add_special_tokens=False)["input_ids"]
    # before an image the template writes a space of its own, which belongs to no conversation
    length = int(visual.argmax()) if visual.any() else len(prefix)
    chosen = ~visual
    chosen[:length] = False
    blocks = []
    for layer in layers:
        for mask in (visual, chosen):
            if mask.any():
                block = np.tanh(outputs[layer].numpy()[mask].mean(axis=0))
                blocks.append(block / np.linalg.norm(block))
            else:
                blocks.append(np.zeros(outputs[layer].shape[1]))
    return np.concatenate(blocks) / np.sqrt(2 * len(layers))


def batch_features(model, processor, records, folder, layers):
    rendered = [render(processor, r["conversations"]) for r in records]
    inputs, text_mask, _ = encode(processor, rendered, [pictures(r, folder) for r in records])
    visual, text = token_masks(processor, inputs, text_mask, fixed_prefix(processor))
    return features(model, inputs, visual, text, layers).numpy()


def test_a_batch_of_mixed_lengths_equals_its_samples_one_by_one(loaded, tiny_data):
    records, folder = tiny_data
    together = batch_features(*loaded, records, folder, LAYERS)
    for row, record in zip(together, records):
        alone = batch_features(*loaded, [record], folder, LAYERS)[0]
        assert np.linalg.norm(row - alone) <= 1e-5 * np.linalg.norm(alone)


def test_features_equal_a_plain_forward_pass(loaded, tiny_data):
    records, folder = tiny_data
    together = batch_features(*loaded, records, folder, LAYERS)
    for row, record in zip(together, records):
        plain = plain_features(*loaded, record, folder, LAYERS)
        assert np.linalg.norm(row - plain) <= 1e-3 * np.linalg.norm(plain)


def test_stopping_early_changes_nothing(loaded, tiny_data):
    model, processor = loaded
    records, folder = tiny_data
    ran = []
    handle = decoder_layers(model)[-1].register_forward_hook(lambda *_: ran.append(True))
    early = batch_features(model, processor, records, folder, [0, 1])
    assert not ran  # the last layers did not run
    late = batch_features(model, processor, records, folder, [0, 1, 3])
    handle.remove()
    h = early.shape[1] // 4
    np.testing.assert_allclose(early * 2, late[:, : 4 * h] * 6**0.5, atol=1e-7)  # but for the 1/sqrt(2M)


def test_norms_and_zeros(loaded, tiny_data):
    records, folder = tiny_data
    rows = batch_features(*loaded, records, folder, LAYERS)
    blocks = rows.reshape(len(records), len(LAYERS), 2, -1)
    for block, record in zip(blocks, records):
        if "image" in record:
            assert np.linalg.norm(block) == pytest.approx(1, abs=1e-5)
        else:
            assert not block[:, 0].any()
            assert np.linalg.norm(block) == pytest.approx(0.5**0.5, abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(blocks[:, :, 1], axis=2), 0.5, atol=1e-5)  # each of 4 blocks 1/sqrt(4)


def test_masks_leave_out_prefix_and_padding(loaded, tiny_data):
    _, processor = loaded
    records, folder = tiny_data
    rendered = [render(processor, r["conversations"]) for r in records]
    inputs, text_mask, answers = encode(processor, rendered, [pictures(r, folder) for r in records])
    visual, text = token_masks(processor, inputs, text_mask, fixed_prefix(processor))
    tokenizer = processor.tokenizer
    for i, record in enumerate(records):
        kept = tokenizer.decode(inputs["input_ids"][i][text[i]])
        assert "Look and answer" not in kept
        assert "<pad>" not in kept
        assert record["conversations"][0]["value"].removeprefix("<image>\n") in kept
        assert int(visual[i].sum()) == (16 if "image" in record else 0)
        said = tokenizer.decode(inputs["input_ids"][i][answers[i]], skip_special_tokens=True).split("answer")
        assert len(said) - 1 == len(record["conversations"]) // 2
        assert "what" not in "".join(said)


def run_extract(loaded, samples, folder, output, **changes):
    options = {
        "layers": LAYERS,
        "batch_size": 5,
        "max_tokens": 200,
        "metadata": {"model": "m", "revision": None},
        **changes,
    }
    return extract(*loaded, samples, folder, output=output, **options)


def as_samples(records):
    return [{"sample_id": r["id"], "position": i, "record": r} for i, r in enumerate(records)]


def test_extraction_writes_rows_in_order_whatever_the_batches(loaded, tiny_data, tmp_path, monkeypatch):
    import sys

    records, folder = tiny_data
    expected = np.stack([plain_features(*loaded, r, folder, LAYERS) for r in records])
    for i, (batch_size, row_group) in enumerate([(1, 2048), (7, 2048), (24, 10)]):
        monkeypatch.setattr(sys.modules["coincide.activations"], "ROW_GROUP", row_group)
        path = tmp_path / f"{i}.parquet"
        assert run_extract(loaded, as_samples(records), folder, path, batch_size=batch_size) == []
        stored = Activations(path)
        assert stored.sample_ids.tolist() == [r["id"] for r in records]
        assert stored.metadata[0]["layers"] == LAYERS
        np.testing.assert_allclose(np.concatenate(list(stored)), expected, atol=2e-3)


def test_extraction_sets_bad_samples_aside_and_goes_on(loaded, tiny_data, tmp_path):
    records, folder = copy.deepcopy(tiny_data[0]), tiny_data[1]
    records[1]["image"] = "folder/gone.png"
    records[2]["conversations"][0]["value"] += " word" * 400
    (folder / "broken.png").write_bytes((folder / records[4]["image"]).read_bytes()[:200])
    records[4]["image"] = "broken.png"
    rejected = run_extract(loaded, as_samples(records), folder, tmp_path / "a.parquet")
    assert [(r["position"], r["reason"]) for r in rejected] == [
        (1, "missing image"),
        (2, "too long"),
        (4, "unreadable image"),
    ]
    stored = Activations(tmp_path / "a.parquet")
    assert stored.sample_ids.tolist() == [r["id"] for i, r in enumerate(records) if i not in (1, 2, 4)]
    assert np.isfinite(np.concatenate(list(stored))).all()


def test_extraction_sets_non_finite_activations_aside(tiny_model, tiny_data, tmp_path):
    model, processor = load_model(tiny_model, device="cpu")
    records, folder = tiny_data
    with torch.no_grad():  # one token that only some samples have turns everything to NaN
        token = processor.tokenizer("thing7", add_special_tokens=False)["input_ids"][-1]
        model.get_input_embeddings().weight[token] = float("nan")
    rejected = run_extract((model, processor), as_samples(records), folder, tmp_path / "a.parquet")
    assert 0 < len(rejected) < len(records)
    assert {r["reason"] for r in rejected} == {"non-finite activation"}
    assert 7 in {r["position"] for r in rejected}
    assert len(Activations(tmp_path / "a.parquet")) == len(records) - len(rejected)


def test_a_conversation_whose_image_is_not_there_is_refused(loaded):
    processor = loaded[1]
    rendered = render(processor, [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}])
    with pytest.raises(ChatError, match="1 image marks in the conversation, 0 images"):
        encode(processor, [rendered], [[]])


def test_several_images_of_any_size(loaded):
    model, processor = loaded
    rendered = render(
        processor, [{"from": "human", "value": "<image> and <image>\nsame?"}, {"from": "gpt", "value": "no"}]
    )
    images = [Image.new("RGB", (17, 50), "red"), Image.new("RGB", (300, 20), "blue")]
    inputs, text_mask, _ = encode(processor, [rendered], [images])
    visual, text = token_masks(processor, inputs, text_mask, fixed_prefix(processor))
    assert int(visual.sum()) == 32
    assert np.linalg.norm(features(model, inputs, visual, text, LAYERS).numpy()) == pytest.approx(1, abs=1e-5)
