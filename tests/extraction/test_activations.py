"""Activations against one plain forward pass per sample; rejected samples; resuming."""

import copy
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from coincide.base.activation_store import Activations
from coincide.base.sections import ReferenceModel
from coincide.dataset.images import open_image
from coincide.dataset.samples import Sample
from coincide.extraction import activations, extractor
from coincide.extraction.activations import WindowFiles, extract
from coincide.extraction.encoding import Encoder, group_by_images
from coincide.extraction.extractor import Extractor, image_token
from coincide.extraction.features import decoder_layers
from coincide.extraction.packing import batches, build_rows, single_row
from coincide.models.chat import ImageCountError, encode, fixed_prefix, render, to_messages
from coincide.models.loading import load_model

LAYERS = [0, 2]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, device="cpu")


def open_images(record, folder):
    return [open_image(folder, record["image"])] if "image" in record else []


def plain_features(model, processor, record, folder, layers):
    """The feature formula, written again: a whole forward pass of one sample, attention outputs kept by hooks."""
    outputs = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, o, i=i: outputs.__setitem__(i, o[0][0].double()))
        for i, layer in enumerate(decoder_layers(model))
    ]
    text = "<s>Look and answer."
    for turn in record["conversations"]:
        text += (" USER: " if turn["from"] == "human" else " ASSISTANT: ") + turn["value"]
        text += "</s>" if turn["from"] == "gpt" else ""
    inputs = processor(text=text, images=open_images(record, folder) or None,
                       add_special_tokens=False, return_tensors="pt")  # fmt: skip
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    ids = inputs["input_ids"][0].numpy()
    visual = ids == processor.image_token_id
    prefix = processor.tokenizer("<s>Look and answer. USER:", add_special_tokens=False)["input_ids"]
    # the template writes a space before an image, which is not part of the conversation
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
    reader = Extractor(model, processor, layers=layers, batch_tokens=10**6)
    encode_group = encoder_of(model, processor, folder)
    groups = [encode_group(group) for group in group_by_images(as_samples(records))]
    results = reader.run([row for group in groups for row in build_rows(group, share=share)])
    vectors = {sample.dataset_row: vector for sample, vector in results}
    return np.stack([vectors[row] for row in sorted(vectors)])


def test_a_batch_of_mixed_lengths_equals_its_samples_read_separately(loaded, tiny_data):
    records, folder = tiny_data
    together = batch_features(*loaded, records, folder, LAYERS)
    for row, record in zip(together, records):
        separate = batch_features(*loaded, [record], folder, LAYERS)[0]
        assert np.linalg.norm(row - separate) <= 1e-5 * np.linalg.norm(separate)


def test_features_equal_a_plain_forward_pass(loaded, tiny_data):
    records, folder = tiny_data
    together = batch_features(*loaded, records, folder, LAYERS)
    for row, record in zip(together, records):
        plain = plain_features(*loaded, record, folder, LAYERS)
        assert np.linalg.norm(row - plain) <= 1e-3 * np.linalg.norm(plain)


def test_attention_implementations_agree(tiny_model, loaded, tiny_data):
    records, folder = tiny_data
    eager = load_model(tiny_model, device="cpu", attention="eager")
    assert eager[0].config._attn_implementation == "eager" != loaded[0].config._attn_implementation
    vectors = batch_features(*eager, records, folder, LAYERS)
    np.testing.assert_allclose(vectors, batch_features(*loaded, records, folder, LAYERS), atol=1e-6)


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
    np.testing.assert_allclose(early * 2, late[:, : 4 * h] * 6**0.5, atol=1e-7)  # except for the 1/sqrt(2M)


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
        (encoded,) = encode_group(as_samples([record]))
        kept = tokenizer.decode(encoded.ids[encoded.masks.text])
        assert "Look and answer" not in kept
        assert record["conversations"][0]["value"].removeprefix("<image>\n") in kept
        assert int(encoded.masks.visual.sum()) == (16 if "image" in record else 0)
        answers = tokenizer.decode(encoded.ids[encoded.masks.answer], skip_special_tokens=True).split("answer")
        assert len(answers) - 1 == len(record["conversations"]) // 2
        assert "what" not in "".join(answers)
    rendered = [render(processor, r["conversations"]) for r in records]
    inputs, masks, _ = encode(processor, rendered, [open_images(r, folder) for r in records])
    assert not (masks.text | masks.visual)[inputs["attention_mask"].numpy() == 0].any()


# --- samples that share their images ------------------------------------------------------------------


def about_one_image(records, count):
    """Records with different conversations about the same image."""
    image = next(r["image"] for r in records if "image" in r)
    chosen = [copy.deepcopy(r) for r in records if "image" in r][:count]
    return [{**r, "image": image} for r in chosen]


def test_samples_that_share_an_image_process_it_once_with_the_same_features(loaded, tiny_data):
    model, processor = loaded
    records, folder = tiny_data
    records = about_one_image(records, 9) + list(records)
    counts = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args: counts.append(len(args[0])), prepend=True
    )
    shared = batch_features(model, processor, records, folder, LAYERS, share=True)
    handle.remove()
    images = len({r["image"] for r in records if "image" in r})
    assert sum(counts) == images
    for row, record in zip(shared, records):
        plain = plain_features(model, processor, record, folder, LAYERS)
        assert np.linalg.norm(row - plain) <= 1e-5 * np.linalg.norm(plain)


def test_rows_hold_every_sample_once_and_batches_keep_within_their_tokens(loaded, tiny_data):
    model, processor = loaded
    records, folder = tiny_data
    encoded = encoder_of(model, processor, folder)(as_samples(about_one_image(records, 12)))
    rows = build_rows(encoded, share=True)
    assert sorted(e.sample.dataset_row for row in rows for e in row.encoded) == list(range(len(encoded)))
    assert all(row.values(lambda e: e.ids).shape == row.segments().shape == (len(row),) for row in rows)
    assert sum(map(len, rows)) < sum(len(e.ids) for e in encoded)
    together = list(batches([single_row(e) for e in encoded], 100))
    assert sum(map(len, together)) == len(encoded)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 100 for batch in together)


def test_an_image_after_different_text_is_not_shared(loaded, tiny_data):
    records = about_one_image(tiny_data[0], 3)
    for i, record in enumerate(records):
        record["conversations"] = [
            {"from": "human", "value": f"question {i}?"},
            {"from": "gpt", "value": "yes"},
            {"from": "human", "value": "<image> and this?"},
            {"from": "gpt", "value": "no"},
        ]
    encoded = encoder_of(*loaded, tiny_data[1])(as_samples(records))
    assert [len(row.encoded) for row in build_rows(encoded, share=True)] == [1, 1, 1]


def test_samples_share_tokens_only_if_their_features_stay_the_same(tiny_model, tiny_data):
    model, processor = load_model(tiny_model, device="cpu")
    encoded = encoder_of(model, processor, tiny_data[1])(as_samples(about_one_image(tiny_data[0], 4)))
    causal = Extractor(model, processor, layers=LAYERS, batch_tokens=10**6)
    causal.try_sharing(encoded)
    assert causal.share
    # a model whose tokens attend to later ones
    for layer in decoder_layers(model):
        layer.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs: (args, {**kwargs, "attention_mask": torch.zeros(1, 1, 1, 1)}), with_kwargs=True
        )
    bidirectional = Extractor(model, processor, layers=LAYERS, batch_tokens=10**6)
    bidirectional.try_sharing(encoded)
    assert not bidirectional.share


@pytest.mark.parametrize("error", [ValueError("no 4D attention mask"), KeyError("a fault of the model")])
def test_only_an_error_about_the_inputs_of_shared_rows_turns_sharing_off(loaded, tiny_data, monkeypatch, error):
    model, processor = loaded
    encoded = encoder_of(model, processor, tiny_data[1])(as_samples(about_one_image(tiny_data[0], 4)))
    real = extractor.features

    def fails_on_shared_rows(model, batch, layers, **options):
        if "position_ids" in batch.inputs:
            raise error
        return real(model, batch, layers, **options)

    monkeypatch.setattr(extractor, "features", fails_on_shared_rows)
    reader = Extractor(model, processor, layers=LAYERS, batch_tokens=10**6)
    if isinstance(error, KeyError):
        with pytest.raises(KeyError, match="a fault of the model"):
            reader.try_sharing(encoded)
    else:
        reader.try_sharing(encoded)
        assert not reader.share


def test_an_error_without_sharing_is_not_taken_for_one_of_sharing(loaded, tiny_data, monkeypatch):
    model, processor = loaded
    encoded = encoder_of(model, processor, tiny_data[1])(as_samples(about_one_image(tiny_data[0], 4)))

    def always_fails(model, batch, layers, **options):
        raise ValueError("the checkpoint lacks a tensor")

    monkeypatch.setattr(extractor, "features", always_fails)
    with pytest.raises(ValueError, match="lacks a tensor"):
        Extractor(model, processor, layers=LAYERS, batch_tokens=10**6).try_sharing(encoded)


def test_a_batch_that_does_not_fit_is_halved(loaded, tiny_data, monkeypatch):
    model, processor = loaded
    records, folder = tiny_data
    records = about_one_image(records, 8)
    expected = batch_features(model, processor, records, folder, LAYERS, share=True)
    sizes, real = [], extractor.features

    def small_device(model, batch, layers, **options):
        sizes.append(batch.inputs["input_ids"].numel())
        if sizes[-1] > 90:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, layers, **options)

    monkeypatch.setattr(extractor, "features", small_device)
    vectors = batch_features(model, processor, records, folder, LAYERS, share=True)
    assert max(sizes) > 90 > min(sizes)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    monkeypatch.setattr(extractor, "features", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("gone")))
    with pytest.raises(torch.OutOfMemoryError):  # a single sample does not fit: no endless halving
        batch_features(model, processor, records[:1], folder, LAYERS)


def run_extract(loaded, samples, folder, output, *, metrics_output=None, workers=0, **changes):
    """Rejected samples of an extraction; `changes` are settings of the reference model."""
    reference = ReferenceModel(**{"name": "m", "layers": LAYERS, "batch_tokens": 300, "max_tokens": 200, **changes})
    options = {"output": output, "metrics_output": metrics_output, "workers": workers}
    return extract(*loaded, samples, folder, reference, **options)


def as_samples(records):
    return [Sample(record["id"], row, record) for row, record in enumerate(records)]


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


def test_compiled_layers_change_nothing(tiny_model, loaded, tiny_data, tmp_path):
    records, folder = tiny_data
    run_extract(loaded, as_samples(records), folder, tmp_path / "a.parquet", layers=[0, 3])
    compiled = load_model(tiny_model, device="cpu")
    run_extract(compiled, as_samples(records), folder, tmp_path / "b.parquet", layers=[0, 3], compiled=True)
    a, b = (np.asarray(Activations(tmp_path / name)) for name in ("a.parquet", "b.parquet"))
    np.testing.assert_allclose(a, b, atol=1e-3)


KILLED = """
import sys, os
from pathlib import Path
from coincide.base.sections import ReferenceModel
from coincide.dataset.samples import Sample
from coincide.extraction import activations
from coincide.models.loading import load_model
import json
records, folder, model, output, windows = json.loads(Path(sys.argv[1]).read_text())
activations.WINDOW = 5
real = activations.WindowFiles.write
def write(self, number, *args):
    real(self, number, *args)
    if number + 1 == windows:
        os.kill(os.getpid(), 9)
activations.WindowFiles.write = write
samples = [Sample(record["id"], row, record) for row, record in enumerate(records)]
reference = ReferenceModel(name="m", layers=[0, 2], batch_tokens=300, max_tokens=200)
activations.extract(*load_model(model, device="cpu"), samples, folder, reference, output=output, workers=1)
"""


def test_a_killed_shard_resumes_after_its_last_window(tiny_model, loaded, tiny_data, tmp_path, monkeypatch, caplog):
    """SIGKILL after two windows of five: only the rest is computed, and the file is that of an undisturbed run."""
    records, folder = copy.deepcopy(tiny_data[0]), tiny_data[1]
    records[3]["conversations"][0]["value"] += " word" * 400  # rejected in a window that is not computed again
    monkeypatch.setattr(activations, "WINDOW", 5)
    undisturbed = run_extract(loaded, as_samples(records), folder, tmp_path / "whole.parquet")
    output = tmp_path / "killed.parquet"
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps([records, str(folder), str(tiny_model), str(output), 2]))
    job = subprocess.run([sys.executable, "-c", KILLED, str(arguments)], check=False, capture_output=True, text=True)
    assert job.returncode == -signal.SIGKILL, job.stderr
    assert not output.exists()
    computed = []
    real = Extractor.run
    monkeypatch.setattr(Extractor, "run", lambda self, rows: (computed.append(f) or f for f in real(self, rows)))
    with caplog.at_level("INFO"):
        assert run_extract(loaded, as_samples(records), folder, output) == undisturbed
    assert "resuming after 10 of 24 samples" in caplog.text
    assert sorted(sample.dataset_row for sample, _ in computed) == list(range(10, 24))
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert list(tmp_path.glob(".*")) == []


def test_windows_that_are_damaged_or_of_other_settings_are_computed_again(loaded, tiny_data, tmp_path, monkeypatch):
    records, folder = tiny_data
    monkeypatch.setattr(activations, "WINDOW", 5)

    def killed_after_two(self, number, *args):
        if number == 2:
            raise KeyboardInterrupt
        return write(self, number, *args)

    write = WindowFiles.write
    for damage in ("none", "revision", "attention", "content"):
        output = tmp_path / f"{damage}.parquet"
        with monkeypatch.context() as patch:
            patch.setattr(WindowFiles, "write", killed_after_two)
            with pytest.raises(KeyboardInterrupt):
                run_extract(loaded, as_samples(records), folder, output)
        windows = sorted((tmp_path / f".{output.name}.parts").iterdir())
        assert len(windows) == 2
        if damage == "content":
            content = bytearray(windows[1].read_bytes())
            content[len(content) // 3] ^= 1
            windows[1].write_bytes(content)
        changes = {"revision": {"revision": "other"}, "attention": {"attention": "eager"}}.get(damage, {})
        written = []
        with monkeypatch.context() as patch:
            patch.setattr(WindowFiles, "write", lambda s, n, *a, written=written: (written.append(n), write(s, n, *a)))
            run_extract(loaded, as_samples(records), folder, output, **changes)
        assert written == {"none": [2, 3, 4], "content": [1, 2, 3, 4]}.get(damage, [0, 1, 2, 3, 4])
        Activations(output).verify()


def test_extraction_rejects_unusable_samples_and_continues(loaded, tiny_data, tmp_path):
    records, folder = copy.deepcopy(tiny_data[0]), tiny_data[1]
    records[1]["image"] = "folder/gone.png"
    records[2]["conversations"][0]["value"] += " word" * 400
    (folder / "broken.png").write_bytes((folder / records[4]["image"]).read_bytes()[:200])
    records[4]["image"] = "broken.png"
    rejected = run_extract(loaded, as_samples(records), folder, tmp_path / "a.parquet")
    assert [(sample.dataset_row, sample.reason) for sample in rejected] == [
        (1, "missing image"),
        (2, "too long"),
        (4, "unreadable image"),
    ]
    stored = Activations(tmp_path / "a.parquet")
    assert stored.sample_ids.tolist() == [r["id"] for i, r in enumerate(records) if i not in (1, 2, 4)]
    assert np.isfinite(np.concatenate(list(stored))).all()


def test_extraction_rejects_non_finite_activations(tiny_model, tiny_data, tmp_path):
    model, processor = load_model(tiny_model, device="cpu")
    records, folder = tiny_data
    with torch.no_grad():  # one token that only some samples have turns everything to NaN
        token = processor.tokenizer("thing7", add_special_tokens=False)["input_ids"][-1]
        model.get_input_embeddings().weight[token] = float("nan")
    rejected = run_extract((model, processor), as_samples(records), folder, tmp_path / "a.parquet")
    assert 0 < len(rejected) < len(records)
    assert {sample.reason for sample in rejected} == {"non-finite activation"}
    assert 7 in {sample.dataset_row for sample in rejected}
    assert len(Activations(tmp_path / "a.parquet")) == len(records) - len(rejected)


def test_a_conversation_without_its_image_is_refused(loaded):
    processor = loaded[1]
    rendered = render(processor, [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}])
    with pytest.raises(ImageCountError, match="1 image marks in the conversation, 0 images"):
        encode(processor, [rendered], [[]])


def test_several_images_of_any_size(loaded, tmp_path):
    model, processor = loaded
    Image.new("RGB", (17, 50), "red").save(tmp_path / "a.png")
    Image.new("RGB", (300, 20), "blue").save(tmp_path / "b.png")
    turns = [{"from": "human", "value": "<image> and <image>\nsame?"}, {"from": "gpt", "value": "no"}]
    record = {"id": "x", "image": ["a.png", "b.png"], "conversations": turns}
    (encoded,) = encoder_of(model, processor, tmp_path)(as_samples([record]))
    assert int(encoded.masks.visual.sum()) == 32
    assert np.linalg.norm(batch_features(model, processor, [record], tmp_path, LAYERS)) == pytest.approx(1, abs=1e-5)


SYSTEM_TURN = {"from": "system", "value": "answer 7 really"}


def test_a_system_turn_reaches_the_text_tokens_of_the_reference_model(loaded, tiny_data):
    records, folder = tiny_data
    _, processor = loaded
    encoder = encoder_of(*loaded, folder)
    for record in (records[0], records[1]):  # without and with an image
        assert ("image" in record) == (record is records[1])
        with_system = {**record, "conversations": [SYSTEM_TURN, *record["conversations"]]}
        text = render(processor, with_system["conversations"]).text
        assert text.startswith("<s>answer 7 really USER:")
        assert render(processor, record["conversations"]).text == text.replace("answer 7 really", "Look and answer.", 1)
        (encoded,) = encoder([Sample("s", 0, with_system)])
        (plain,) = encoder([Sample("s", 0, record)])
        kept = processor.tokenizer.decode(encoded.ids[encoded.masks.text])
        assert kept.startswith("answer 7 really")
        assert "<s>" not in kept
        assert "Look" not in processor.tokenizer.decode(plain.ids[plain.masks.text])
        assert not (encoded.masks.answer & ~encoded.masks.text).any()


def test_without_a_system_turn_the_template_of_the_tiny_models_is_unchanged(loaded, tiny_data):
    from coincide.demo.tiny_models import TEMPLATE_WITHOUT_SYSTEM

    _, processor = loaded
    for record in tiny_data[0]:
        messages = to_messages(record["conversations"])
        for turns in (messages, messages[:1]):
            for prompt in (True, False):
                options = {"add_generation_prompt": prompt}
                assert processor.apply_chat_template(turns, **options) == processor.apply_chat_template(
                    turns, chat_template=TEMPLATE_WITHOUT_SYSTEM, **options
                )
