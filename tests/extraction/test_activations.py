"""Features of the reference model: against one plain forward pass a sample, and what extraction sets aside."""

import copy
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import coincide.extraction.activations as activations
from coincide.base.activation_store import Activations
from coincide.dataset.images import open_image
from coincide.extraction.activations import Extractor, decoder_layers, extract, image_token
from coincide.extraction.encoding import Encoder, group_by_images
from coincide.extraction.packing import alone, batches, rows_of
from coincide.models.chat import ChatError, encode, fixed_prefix, render
from coincide.models.loading import load_model

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


def encoder_of(model, processor, folder):
    token = image_token(model, processor)
    return Encoder(processor, folder, image_token_id=token, prefix=fixed_prefix(processor), max_tokens=10_000)


def batch_features(model, processor, records, folder, layers, *, share=False):
    """Features of records in one batch, in their order."""
    extractor = Extractor(model, processor, layers=layers, batch_tokens=10**6)
    encode_group = encoder_of(model, processor, folder)
    groups = [encode_group(group) for group in group_by_images(as_samples(records))]
    found = extractor.run([row for group in groups for row in rows_of(group, share=share)])
    return np.stack([vector for _, vector in sorted(((s["position"], v) for s, v in found), key=lambda f: f[0])])


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


def test_every_kind_of_attention_gives_the_same(tiny_model, loaded, tiny_data):
    records, folder = tiny_data
    eager = load_model(tiny_model, device="cpu", attention="eager")
    assert eager[0].config._attn_implementation == "eager" != loaded[0].config._attn_implementation
    found = batch_features(*eager, records, folder, LAYERS)
    np.testing.assert_allclose(found, batch_features(*loaded, records, folder, LAYERS), atol=1e-6)


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
    model, processor = loaded
    records, folder = tiny_data
    tokenizer, encode_group = processor.tokenizer, encoder_of(model, processor, folder)
    for record in records:
        (one,) = encode_group(as_samples([record]))
        kept = tokenizer.decode(one.ids[one.masks.text])
        assert "Look and answer" not in kept
        assert record["conversations"][0]["value"].removeprefix("<image>\n") in kept
        assert int(one.masks.visual.sum()) == (16 if "image" in record else 0)
        said = tokenizer.decode(one.ids[one.masks.answer], skip_special_tokens=True).split("answer")
        assert len(said) - 1 == len(record["conversations"]) // 2
        assert "what" not in "".join(said)
    rendered = [render(processor, r["conversations"]) for r in records]
    inputs, masks, _ = encode(processor, rendered, [pictures(r, folder) for r in records])
    assert not (masks.text | masks.visual)[inputs["attention_mask"].numpy() == 0].any()


# --- samples that share their images ------------------------------------------------------------------


def about_one_image(records, count):
    """Records whose samples all ask about the image of one."""
    image = next(r["image"] for r in records if "image" in r)
    chosen = [copy.deepcopy(r) for r in records if "image" in r][:count]
    return [{**r, "image": image} for r in chosen]


def test_samples_of_one_image_run_it_once_and_stay_what_they_are(loaded, tiny_data):
    model, processor = loaded
    records, folder = tiny_data
    records = about_one_image(records, 9) + list(records)
    seen = []
    handle = model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])), prepend=True)
    shared = batch_features(model, processor, records, folder, LAYERS, share=True)
    handle.remove()
    images = len({r["image"] for r in records if "image" in r})
    assert sum(seen) == images
    for row, record in zip(shared, records):
        plain = plain_features(model, processor, record, folder, LAYERS)
        assert np.linalg.norm(row - plain) <= 1e-5 * np.linalg.norm(plain)


def test_rows_hold_every_sample_once_and_batches_keep_to_their_budget(loaded, tiny_data):
    model, processor = loaded
    records, folder = tiny_data
    encoded = encoder_of(model, processor, folder)(as_samples(about_one_image(records, 12)))
    rows = rows_of(encoded, share=True)
    assert sorted(one.sample["position"] for row in rows for one in row.encoded) == list(range(len(encoded)))
    assert all(row.values(lambda one: one.ids).shape == row.segments().shape == (len(row),) for row in rows)
    assert sum(map(len, rows)) < sum(len(one.ids) for one in encoded)
    together = list(batches([alone(one) for one in encoded], 100))
    assert sum(map(len, together)) == len(encoded)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 100 for batch in together)


def test_an_image_after_the_words_is_not_shared(loaded, tiny_data):
    records = about_one_image(tiny_data[0], 3)
    for i, record in enumerate(records):
        record["conversations"] = [
            {"from": "human", "value": f"question {i}?"},
            {"from": "gpt", "value": "yes"},
            {"from": "human", "value": "<image> and this?"},
            {"from": "gpt", "value": "no"},
        ]
    encoded = encoder_of(*loaded, tiny_data[1])(as_samples(records))
    assert [len(row.encoded) for row in rows_of(encoded, share=True)] == [1, 1, 1]


def test_sharing_is_tried_before_it_is_trusted(tiny_model, tiny_data):
    model, processor = load_model(tiny_model, device="cpu")
    encoded = encoder_of(model, processor, tiny_data[1])(as_samples(about_one_image(tiny_data[0], 4)))
    extractor = Extractor(model, processor, layers=LAYERS, batch_tokens=10**6)
    extractor.try_sharing(encoded)
    assert extractor.share
    # a model whose tokens see what follows them
    for layer in decoder_layers(model):
        layer.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs: (args, {**kwargs, "attention_mask": torch.zeros(1)}), with_kwargs=True
        )
    extractor = Extractor(model, processor, layers=LAYERS, batch_tokens=10**6)
    extractor.try_sharing(encoded)
    assert not extractor.share


def test_a_batch_that_does_not_fit_is_halved(loaded, tiny_data, monkeypatch):
    model, processor = loaded
    records, folder = tiny_data
    records = about_one_image(records, 8)
    expected = batch_features(model, processor, records, folder, LAYERS, share=True)
    sizes, real = [], activations.features

    def small_device(model, batch, layers, **options):
        sizes.append(batch.inputs["input_ids"].numel())
        if sizes[-1] > 90:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, layers, **options)

    monkeypatch.setattr(activations, "features", small_device)
    found = batch_features(model, processor, records, folder, LAYERS, share=True)
    assert max(sizes) > 90 > min(sizes)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    monkeypatch.setattr(activations, "features", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("gone")))
    with pytest.raises(torch.OutOfMemoryError):  # one sample alone does not fit: no endless halving
        batch_features(model, processor, records[:1], folder, LAYERS)


def run_extract(loaded, samples, folder, output, **changes):
    options = {
        "layers": LAYERS,
        "batch_tokens": 300,
        "max_tokens": 200,
        "metadata": {"model": "m", "revision": None},
        **changes,
    }
    return extract(*loaded, samples, folder, output=output, **options)


def as_samples(records):
    return [{"sample_id": r["id"], "position": i, "record": r} for i, r in enumerate(records)]


def test_extraction_writes_rows_in_order_whatever_the_batches(loaded, tiny_data, tmp_path, monkeypatch):
    records, folder = tiny_data
    expected = np.stack([plain_features(*loaded, r, folder, LAYERS) for r in records])
    for i, (batch_tokens, window, workers) in enumerate([(1, 2048, 0), (200, 2048, 2), (10**6, 10, 0), (300, 7, 1)]):
        monkeypatch.setattr(activations, "WINDOW", window)
        path = tmp_path / f"{i}.parquet"
        options = {"batch_tokens": batch_tokens, "workers": workers}
        assert run_extract(loaded, as_samples(records), folder, path, **options) == []
        stored = Activations(path)
        assert stored.sample_ids.tolist() == [r["id"] for r in records]
        assert stored.metadata[0]["layers"] == LAYERS
        np.testing.assert_allclose(np.concatenate(list(stored)), expected, atol=2e-3)
        assert list(tmp_path.glob(".*")) == []


def test_compiled_layers_give_the_same(tiny_model, loaded, tiny_data, tmp_path):
    records, folder = tiny_data
    run_extract(loaded, as_samples(records), folder, tmp_path / "a.parquet", layers=[0, 3])
    again = load_model(tiny_model, device="cpu")
    run_extract(again, as_samples(records), folder, tmp_path / "b.parquet", layers=[0, 3], compiled=True)
    a, b = (np.asarray(Activations(tmp_path / name)) for name in ("a.parquet", "b.parquet"))
    np.testing.assert_allclose(a, b, atol=1e-3)


KILLED = """
import sys, os
from pathlib import Path
from coincide.extraction import activations
from coincide.extraction.activations import extract
from coincide.models.loading import load_model
import json
records, folder, model, output, windows = json.loads(Path(sys.argv[1]).read_text())
activations.WINDOW = 5
real = activations._Parts.write
def write(self, number, *args):
    real(self, number, *args)
    if number + 1 == windows:
        os.kill(os.getpid(), 9)
activations._Parts.write = write
extract(*load_model(model, device="cpu"), records, folder, layers=[0, 2], batch_tokens=300, max_tokens=200,
        output=output, metadata={"model": "m", "revision": None}, workers=1)
"""


def test_a_killed_shard_goes_on_after_its_last_window(tiny_model, loaded, tiny_data, tmp_path, monkeypatch, caplog):
    """SIGKILL after two windows of five: the rest is computed, nothing twice, the file is that of no kill."""
    records, folder = copy.deepcopy(tiny_data[0]), tiny_data[1]
    records[3]["conversations"][0]["value"] += " word" * 400  # set aside in a window that is not computed again
    monkeypatch.setattr(activations, "WINDOW", 5)
    undisturbed = run_extract(loaded, as_samples(records), folder, tmp_path / "whole.parquet")
    output = tmp_path / "killed.parquet"
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps([as_samples(records), str(folder), str(tiny_model), str(output), 2]))
    done = subprocess.run([sys.executable, "-c", KILLED, str(arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    computed = []
    real = Extractor.run
    monkeypatch.setattr(Extractor, "run", lambda self, rows: (computed.append(f) or f for f in real(self, rows)))
    with caplog.at_level("INFO"):
        assert run_extract(loaded, as_samples(records), folder, output) == undisturbed
    assert "going on after 10 of 24 samples" in caplog.text
    assert sorted(sample["position"] for sample, _ in computed) == list(range(10, 24))
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert list(tmp_path.glob(".*")) == []


def test_parts_of_other_settings_or_damaged_ones_are_not_taken_up(loaded, tiny_data, tmp_path, monkeypatch):
    records, folder = tiny_data
    monkeypatch.setattr(activations, "WINDOW", 5)

    def killed_after_two(self, number, *args):
        if number == 2:
            raise KeyboardInterrupt
        return write(self, number, *args)

    write = activations._Parts.write
    for damage in ("none", "settings", "content"):
        output = tmp_path / f"{damage}.parquet"
        with monkeypatch.context() as patch:
            patch.setattr(activations._Parts, "write", killed_after_two)
            with pytest.raises(KeyboardInterrupt):
                run_extract(loaded, as_samples(records), folder, output)
        parts = sorted((tmp_path / f".{output.name}.parts").iterdir())
        assert len(parts) == 2
        if damage == "content":
            content = bytearray(parts[1].read_bytes())
            content[len(content) // 3] ^= 1
            parts[1].write_bytes(content)
        metadata = {"model": "m", "revision": "other" if damage == "settings" else None}
        numbers = []
        with monkeypatch.context() as patch:
            patch.setattr(activations._Parts, "write", lambda s, n, *a, seen=numbers: (seen.append(n), write(s, n, *a)))
            run_extract(loaded, as_samples(records), folder, output, metadata=metadata)
        assert numbers == {"none": [2, 3, 4], "settings": [0, 1, 2, 3, 4], "content": [1, 2, 3, 4]}[damage]
        Activations(output).verify()


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


def test_several_images_of_any_size(loaded, tmp_path):
    model, processor = loaded
    Image.new("RGB", (17, 50), "red").save(tmp_path / "a.png")
    Image.new("RGB", (300, 20), "blue").save(tmp_path / "b.png")
    turns = [{"from": "human", "value": "<image> and <image>\nsame?"}, {"from": "gpt", "value": "no"}]
    record = {"id": "x", "image": ["a.png", "b.png"], "conversations": turns}
    (one,) = encoder_of(model, processor, tmp_path)(as_samples([record]))
    assert int(one.masks.visual.sum()) == 32
    assert np.linalg.norm(batch_features(model, processor, [record], tmp_path, LAYERS)) == pytest.approx(1, abs=1e-5)
