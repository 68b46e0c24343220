"""Extraction with every model family, against one whole forward pass per sample."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES, build
from PIL import Image

from coincide.base.activation_store import Activations
from coincide.base.sections import ReferenceModel
from coincide.dataset.images import image_names, open_image
from coincide.dataset.samples import Sample
from coincide.extraction.activations import extract
from coincide.extraction.encoding import Encoder
from coincide.extraction.extractor import image_token
from coincide.extraction.features import decoder_layers
from coincide.models.chat import fixed_prefix, render
from coincide.models.loading import load_model

LAYERS = [1, 2]
# A decoder with bidirectional attention inside an image (or in the whole prompt) does not share image tokens.
SHARES = {name: name not in ("paligemma", "gemma3") for name in FAMILIES}
# What the processors write around images, which is not text of the sample.
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
    """(samples, images folder): no, one and several images, one or more turns, images of different shapes."""
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
    return [Sample(f"s{row}", row, record) for row, record in enumerate(records)], folder


def encoder_of(model, processor, folder):
    token = image_token(model, processor)
    return Encoder(processor, folder, image_token_id=token, prefix=fixed_prefix(processor), max_tokens=10_000)


def plain_features(model, processor, encoded, record, folder):
    """The feature formula, written again: the whole model on the processor's output for one sample."""
    outputs = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, o, i=i: outputs.__setitem__(i, o[0][0].double().numpy()))
        for i, layer in enumerate(decoder_layers(model))
    ]
    text = render(processor, record["conversations"]).text
    special = not text.startswith(processor.tokenizer.bos_token)
    images = [open_image(folder, name) for name in image_names(record)]
    if images:
        inputs = processor(text=[text], images=[images], add_special_tokens=special, return_tensors="pt")
    else:
        inputs = processor.tokenizer([text], add_special_tokens=special, return_tensors="pt")
    if model.config.model_type == "paligemma":  # attends the prompt in both directions, the answer causally
        causal = np.arange(len(encoded.ids)) >= encoded.masks.answer.argmax()
        inputs["token_type_ids"] = torch.from_numpy(causal).long()[None]
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert inputs["input_ids"][0].tolist() == encoded.ids.tolist()
    blocks = []
    for layer in LAYERS:
        for mask in (inputs["input_ids"][0].numpy() == model.config.image_token_id, encoded.masks.text):
            mean = outputs[layer][mask].mean(axis=0) if mask.any() else None
            block = np.zeros(outputs[layer].shape[1]) if mean is None else np.tanh(mean)
            blocks.append(block / max(np.linalg.norm(block), 1e-30))
    return np.concatenate(blocks) / np.sqrt(2 * len(LAYERS))


def test_features_equal_a_plain_forward_pass(family, data, tmp_path, caplog):
    name, model, processor = family
    samples, folder = data
    with caplog.at_level("INFO"):
        rejected = extract(
            model, processor, samples, folder,
            ReferenceModel(name=name, layers=LAYERS, batch_tokens=500, max_tokens=2000),
            output=tmp_path / "a.parquet",
        )  # fmt: skip
    assert rejected == []
    stored = np.asarray(Activations(tmp_path / "a.parquet"), np.float64)
    encode = encoder_of(model, processor, folder)
    for row, sample in zip(stored, samples):
        (encoded,) = encode([sample])
        plain = plain_features(model, processor, encoded, sample.record, folder)
        assert np.linalg.norm(row - plain) < 1e-3 * np.linalg.norm(plain), sample.id  # float16 on disk
    assert f"samples of one image {'share' if SHARES[name] else 'do not share'} its tokens" in caplog.text, caplog.text
    cosine = stored @ stored.T
    assert (cosine[~np.eye(len(samples), dtype=bool)] < 0.99999).all()  # a mix-up of samples would fail


def plain_pass(model, processor, record, folder):
    """(Encoded, model output with hidden states) of one pass over one record, without batches."""
    (encoded,) = encoder_of(model, processor, folder)([Sample("a", 0, record)])
    inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in encoded.image_inputs.items()}
    inputs |= {name: torch.from_numpy(value)[None] for name, value in encoded.token_inputs.items()}
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(encoded.ids)[None], output_hidden_states=True, **inputs)
    return encoded, output


def plain_loss(encoded, output):
    answer = np.flatnonzero(encoded.masks.answer)
    log_p = output.logits[0].log_softmax(dim=1)
    return -log_p[answer - 1, encoded.ids[answer]].mean().item()


def test_extra_metrics_equal_plain_passes_over_the_readings(family, data, tmp_path):
    name, model, processor = family
    samples, folder = data
    extra = ["loss_no_image", "question_losses", "vision_features"]
    reference = ReferenceModel(
        name=name, layers=LAYERS, batch_tokens=500, max_tokens=2000, sample_metrics=True, extra_metrics=extra
    )
    metrics = tmp_path / "metrics"
    output = tmp_path / "a.parquet"
    assert extract(model, processor, samples, folder, reference, output=output, metrics_output=metrics) == []
    table = pd.read_parquet(metrics / "sample_metrics.parquet")
    vectors = {n: np.asarray(Activations(metrics / f"{n}.parquet"), np.float64) for n in ("question", "vision")}
    for i, sample in enumerate(samples):
        turns, images = sample.record["conversations"], image_names(sample.record)
        without = [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in turns]
        encoded, output = plain_pass(model, processor, {"conversations": without}, folder)
        first_answer = encoded.masks.answer.argmax()
        question = encoded.masks.text.copy()
        question[first_answer:] = False
        mean = (
            model.model(
                input_ids=torch.from_numpy(encoded.ids)[None],
                **{n: torch.from_numpy(value)[None] for n, value in encoded.token_inputs.items()},
            )
            .last_hidden_state[0, question]
            .mean(dim=0)
        )
        mean = (mean / mean.norm()).detach().numpy()
        np.testing.assert_allclose(vectors["question"][i], mean, atol=3e-3, err_msg=sample.id)
        if not images:
            assert table.loc[i, ["loss_no_image", "visual_necessity", "question_loss"]].isna().all()
            assert not vectors["vision"][i].any()
            continue
        assert table["loss_no_image"][i] == pytest.approx(plain_loss(encoded, output), rel=1e-4)
        whole, output = plain_pass(model, processor, sample.record, folder)
        assert whole.ids[whole.masks.answer].tolist() == encoded.ids[encoded.masks.answer].tolist()
        assert table["visual_necessity"][i] == pytest.approx(table["loss_no_image"][i] - table["loss"][i], abs=1e-6)
        assert table["loss"][i] == pytest.approx(plain_loss(whole, output), rel=1e-4)
        visual = output.hidden_states[1][0, whole.masks.visual].mean(dim=0).numpy()
        np.testing.assert_allclose(vectors["vision"][i], visual, atol=3e-3, rtol=3e-3)
        marks = "<image>\n" * len(images)
        asked = {
            "question_loss": "Based on the image, what is the likely question?",
            "question_loss_given_answer": (
                f"Based on the image and answer, what is the likely question? Answer: {turns[1]['value']}"
            ),
        }
        for column, prompt in asked.items():
            conversation = [
                {"from": "human", "value": marks + prompt},
                {"from": "gpt", "value": turns[0]["value"].replace("<image>\n", "")},
            ]
            record = {**sample.record, "conversations": conversation}
            assert table[column][i] == pytest.approx(
                plain_loss(*plain_pass(model, processor, record, folder)), rel=1e-4
            )
    assert table["loss_no_image"].nunique() == table["loss_no_image"].notna().sum()


def test_a_question_of_nothing_but_an_image_has_a_loss_without_it(family, data, tmp_path):
    name, model, processor = family
    conversations = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a thing"}]
    samples = [Sample("a", 0, {"image": "wide.png", "conversations": conversations})]
    extra = ["loss_no_image", "question_losses"]
    reference = ReferenceModel(name=name, layers=LAYERS, max_tokens=2000, sample_metrics=True, extra_metrics=extra)
    metrics = tmp_path / "metrics"
    assert extract(model, processor, samples, data[1], reference, output=tmp_path / "a", metrics_output=metrics) == []
    (row,) = pd.read_parquet(metrics / "sample_metrics.parquet").to_dict("records")
    assert row["loss_no_image"] > 0
    assert row["loss_no_image"] != row["loss"]
    assert row["question_loss"] > 0  # of the end of the turn


def test_the_averaged_text_is_that_of_the_conversation(family, data):
    _, model, processor = family
    samples, folder = data
    for sample in samples:
        (encoded,) = encoder_of(model, processor, folder)([sample])
        kept = processor.tokenizer.decode(encoded.ids[encoded.masks.text])
        turns = sample.record["conversations"]
        for turn in turns:
            assert turn["value"].replace("<image>\n", "") in kept
        assert not any(word in kept for word in AROUND)
        assert "helpful assistant" not in kept  # the fixed prefix
        assert processor.image_token not in kept
        answers = processor.tokenizer.decode(encoded.ids[encoded.masks.answer])
        assert all(turn["value"] in answers for turn in turns[1::2])
        assert turns[0]["value"].replace("<image>\n", "") not in answers
        images = len(image_names(sample.record))
        assert bool(encoded.masks.visual.any()) == bool(images)
