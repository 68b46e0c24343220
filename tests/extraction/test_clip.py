"""CLIP scores against one sample at a time, with a CLIP model trained here on colours."""

import numpy as np
import pytest
import torch
from conftest import make_record
from PIL import Image

from coincide.base.sections import Shape, Training
from coincide.dataset.images import open_image
from coincide.dataset.samples import Sample
from coincide.demo.tiny_models import build_clip
from coincide.extraction.clip import clip_scores, load_clip, text_of

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (230, 230, 230)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Records that name the colour of their image, one in eight without an image; folder of images."""
    folder, rng, records = tmp_path_factory.mktemp("colours"), np.random.default_rng(0), []
    for i in range(160):
        name = list(COLOURS)[i % 4]
        pixels = np.clip(rng.normal(COLOURS[name], 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        record = make_record(i, image=i % 8 > 0)
        record["conversations"][1]["value"] = f"it is {name}"
        records.append({**record, "image": f"{i}.png"} if i % 8 else record)
    return records, folder


@pytest.fixture(scope="module")
def clip(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "model"
    shape = Shape(
        vocabulary=300, image_size=16, patch_size=8, vision_hidden=32, vision_layers=1, hidden=32, layers=1, heads=2
    )
    training = Training(epochs=12, batch_size=16, learning_rate=2e-3)
    build_clip(*colours, shape, training, seed=0, output=folder, device="cpu")
    return load_clip(folder, device="cpu")


def test_scores_equal_one_sample_at_a_time_and_tell_colours_apart(clip, colours):
    (model, processor), (records, folder) = clip, colours
    samples = [Sample(record["id"], row, record) for row, record in enumerate(records)]
    table = clip_scores(model, processor, samples, folder, batch_size=7)
    assert table["sample_id"].tolist() == [r["id"] for r in records]
    embeddings = np.frombuffer(b"".join(table["embedding_float32"]), "<f4").reshape(len(table), 2, -1)
    np.testing.assert_allclose(np.linalg.norm(embeddings[:, 1], axis=1), 1, atol=1e-6)
    for record, score, (image, text) in zip(records, table["clip_score"], embeddings):
        if "image" not in record:
            assert np.isnan(score)
            assert not image.any()
            continue
        assert score == pytest.approx(float(image @ text), abs=1e-6)
        inputs = processor(text=[text_of(record)], images=[open_image(folder, record["image"])], return_tensors="pt")
        with torch.inference_mode():
            output = model(**inputs)
        assert score == pytest.approx(float((output.image_embeds * output.text_embeds).sum()), abs=1e-5)
    mismatched = [
        Sample(record["id"], row, {**record, "conversations": records[row - 7]["conversations"]})
        for row, record in enumerate(records)
    ]
    other = clip_scores(model, processor, mismatched, folder, batch_size=64)
    assert table["clip_score"].mean() > other["clip_score"].mean() + 0.1


def test_images_of_a_sample_are_averaged_and_a_missing_one_leaves_no_score(clip, colours):
    (model, processor), (records, folder) = clip, colours
    first, second = records[1], records[2]
    crossed = {**first, "image": second["image"]}
    both = {**first, "image": [first["image"], second["image"]]}
    missing = {**first, "image": "missing.png"}
    samples = [Sample(str(row), row, record) for row, record in enumerate([first, crossed, both, missing])]
    a, b, mean, no_score = clip_scores(model, processor, samples, folder, batch_size=4)["clip_score"]
    assert mean == pytest.approx((a + b) / 2, abs=1e-6)
    assert np.isnan(no_score)
