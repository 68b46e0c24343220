"""Extraction from every family of models: against one plain, whole forward pass of one sample at a time."""

import warnings

import numpy as np
import pytest
import torch
from families import FAMILIES, build
from PIL import Image

from coincide.base.activation_store import Activations
from coincide.dataset.images import image_names, open_image
from coincide.extraction.activations import decoder_layers, extract, image_token
from coincide.extraction.encoding import Encoder
from coincide.models.chat import fixed_prefix, render
from coincide.models.loading import load_model

LAYERS = [1, 2]
# A decoder that reads in both directions inside an image (or the whole prompt) does not share its tokens.
SHARES = {name: name not in ("paligemma", "gemma3") for name in FAMILIES}
# What the processors write around images: not the sample's own words.
AROUND = ("<row_", "<fake_token", "<global-img>", "<img>", "</img>", "<end_of_image>")


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families") / request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(request.param, folder)
        return request.param, *load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(samples, images folder): none, one and several images, one or more turns, sizes of all kinds."""
    folder = tmp_path_factory.mktemp("families-data")
    rng = np.random.default_rng(0)
    for name, size in (("wide", (96, 40)), ("tall", (40, 120)), ("square", (64, 64))):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")

    def record(images, *turns):
        conversations = []
        for i, turn in enumerate(turns):
            marks = "<image>\n" * len(images) if i == 0 else ""
            conversations += [
                {"from": "human", "value": marks + turn},
                {"from": "gpt", "value": f"answer {len(turn)} yes"},
            ]
        return {
            "conversations": conversations,
            **({"image": images[0] if len(images) == 1 else images} if images else {}),
        }

    records = [
        record(["wide.png"], "what is this?"),
        record(["wide.png"], "number of colours", "really?"),
        record(["wide.png"], "one two three"),
        record([], "who are you?", "what is yes?"),
        record(["tall.png"], "what"),
        record(["square.png", "wide.png"], "same thing?"),
        record(["square.png"], "is this a thing?"),
    ]
    return [{"sample_id": f"s{i}", "position": i, "record": r} for i, r in enumerate(records)], folder


def encoder_of(model, processor, folder):
    token = image_token(model, processor)
    return Encoder(processor, folder, image_token_id=token, prefix=fixed_prefix(processor), max_tokens=10_000)


def plain_features(model, processor, one, record, folder):
    """DESIGN step 1 by itself: the whole model on what the processor makes of one sample."""
    outputs = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, o, i=i: outputs.__setitem__(i, o[0][0].double().numpy()))
        for i, layer in enumerate(decoder_layers(model))
    ]
    text = render(processor, record["conversations"]).text
    special = not text.startswith(processor.tokenizer.bos_token)
    pictures = [open_image(folder, name) for name in image_names(record)]
    if pictures:
        inputs = processor(text=[text], images=[pictures], add_special_tokens=special, return_tensors="pt")
    else:
        inputs = processor.tokenizer([text], add_special_tokens=special, return_tensors="pt")
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert inputs["input_ids"][0].tolist() == one.ids.tolist()
    blocks = []
    for layer in LAYERS:
        for mask in (inputs["input_ids"][0].numpy() == model.config.image_token_id, one.masks.text):
            mean = outputs[layer][mask].mean(axis=0) if mask.any() else None
            block = np.zeros(outputs[layer].shape[1]) if mean is None else np.tanh(mean)
            blocks.append(block / max(np.linalg.norm(block), 1e-30))
    return np.concatenate(blocks) / np.sqrt(2 * len(LAYERS))


def test_features_equal_a_plain_forward_pass(family, data, tmp_path, caplog):
    name, model, processor = family
    samples, folder = data
    with caplog.at_level("INFO"):
        rejected = extract(
            model, processor, samples, folder, layers=LAYERS, batch_tokens=500, max_tokens=2000,
            output=tmp_path / "a.parquet", metadata={"model": name, "revision": None},
        )  # fmt: skip
    assert rejected == []
    stored = np.asarray(Activations(tmp_path / "a.parquet"), np.float64)
    encode = encoder_of(model, processor, folder)
    for row, sample in zip(stored, samples):
        (one,) = encode([sample])
        plain = plain_features(model, processor, one, sample["record"], folder)
        assert np.linalg.norm(row - plain) < 1e-3 * np.linalg.norm(plain), sample["sample_id"]  # float16 on disk
    assert f"samples of one image {'share' if SHARES[name] else 'do not share'} its tokens" in caplog.text, caplog.text
    different = stored @ stored.T
    assert (different[~np.eye(len(samples), dtype=bool)] < 0.99999).all()  # the test would see a mix-up


def test_the_words_that_are_averaged_are_the_samples_own(family, data):
    _, model, processor = family
    samples, folder = data
    for sample in samples:
        (one,) = encoder_of(model, processor, folder)([sample])
        kept = processor.tokenizer.decode(one.ids[one.masks.text])
        for turn in sample["record"]["conversations"]:
            assert turn["value"].replace("<image>\n", "") in kept
        assert not any(word in kept for word in AROUND)
        assert "helpful assistant" not in kept  # the fixed prefix
        assert processor.image_token not in kept
        said = processor.tokenizer.decode(one.ids[one.masks.answer])
        assert all(turn["value"] in said for turn in sample["record"]["conversations"][1::2])
        assert sample["record"]["conversations"][0]["value"].replace("<image>\n", "") not in said
        images = len(image_names(sample["record"]))
        assert bool(one.masks.visual.any()) == bool(images)
