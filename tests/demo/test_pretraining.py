"""The demo's pretrained models: what they are trained on, the program that makes them, the models in the package."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from coincide.base.sections import TinyModel
from coincide.demo import PRETRAINED, pretraining
from coincide.demo.drawings import Bar, Shape, Word
from coincide.demo.pictures import FACTS, KINDS, LoneShape, Picture, cell_classes, draw_picture, fact_classes
from coincide.demo.questions import Question
from coincide.demo.tiny_models import build_tiny_model
from coincide.training.collator import Collator

SCENE = [Shape("red", "circle", 0, 0), Shape("blue", "square", 1, 1)]
BARS = [Bar("red", 2), Bar("blue", 5), Bar("black", 1)]


@pytest.mark.parametrize(
    ("kind", "facts", "classes", "statements"),
    [
        (
            "scene",
            SCENE,
            {"cell 0 0": 1, "cell 0 1": 0, "cell 1 1": 9, "shapes": 2, "circle": 1, "triangle": 0},
            {"2 shapes in all", "top left: red circle", "top right: nothing", "bottom right: blue square"},
        ),
        ("crowd", SCENE, {"shapes": 2, "square": 1}, {"number of circles: 1", "number of triangles: 0"}),
        ("sign", Word("moon", "blue"), {"letters": 2}, {"the word moon", "letters: blue"}),
        (
            "chart",
            BARS,
            {"colour 0": 0, "value 0": 1, "value 1": 4},
            {"bars: red 2, blue 5, black 1", "tallest: blue", "shortest: black"},
        ),
        ("digit", [7], {"digit 0": 7, "digit 1": -1}, {"the digit 7"}),
        ("pair", [7, 3], {"digit 0": 7, "digit 1": 3}, {"the digits 7 and 3"}),
        ("grid", [7, 3, 3], {"digits": 3}, {"number of digits: 3"}),
        ("lone", LoneShape("teal", "circle"), {"lone kind": 0, "lone colour": 7}, {"shape: circle", "colour: teal"}),
    ],
)
def test_facts_as_classes_and_in_words(kind, facts, classes, statements):
    found = dict(zip(FACTS, fact_classes(Picture(kind, None, facts))))
    assert {name: found[name] for name in classes} == classes
    assert found["kind"] == list(KINDS).index(kind)
    assert statements <= set(KINDS[kind].statements(np.random.default_rng(0), facts))


@pytest.mark.parametrize(
    ("kind", "facts", "notes"),
    [
        ("scene", SCENE, {"all shapes": "2", "top left": "red circle", "blue square": "bottom right", "circle": "red"}),
        ("crowd", SCENE, {"circles": "1", "triangles": "0"}),
        ("sign", Word("moon", "blue"), {"word": "moon", "letters": "blue"}),
        ("chart", BARS, {"red bar": "2", "tallest": "blue", "shortest": "black"}),
        ("digit", [7], {"digit": "7"}),
        ("pair", [7, 3], {"left digit": "7", "right digit": "3"}),
        ("grid", [7, 3, 3], {"all digits": "3"}),
        ("lone", LoneShape("teal", "circle"), {"shape": "circle", "colour": "teal"}),
    ],
)
def test_facts_as_notes(kind, facts, notes):
    assert notes.items() <= KINDS[kind].notes(facts).items()


def test_a_colour_is_not_noted_for_a_kind_that_occurs_twice():
    assert "circle" not in KINDS["scene"].notes([Shape("red", "circle", 0, 0), Shape("blue", "circle", 1, 1)])


def test_a_patch_knows_the_shape_in_it():
    cells = cell_classes(Picture("scene", None, SCENE)).reshape(4, 4)
    np.testing.assert_array_equal(cells, np.kron([[1, 0], [0, 9]], np.ones((2, 2))))
    cells = cell_classes(Picture("crowd", None, [Shape("red", "circle", 3, 1)])).reshape(4, 4)
    assert cells[3, 1] == 1
    assert cells.sum() == 1
    assert (cell_classes(Picture("digit", None, [7])) == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture(kind):
    rng = np.random.default_rng(0)
    for _ in range(40):
        picture = draw_picture(rng, kind)
        assert (picture.image.size, picture.image.mode) == ((64, 64), "RGB")
        classes = fact_classes(picture)
        assert (classes < list(FACTS.values())).all()
        assert (classes >= -1).all()
        assert isinstance(KINDS[kind].ask(rng, picture.facts), Question)


def test_the_encoder_writes_what_the_chat_template_writes(shipped, tmp_path):
    _, _, processor = shipped
    encode = pretraining.Encoder(processor.tokenizer, image_tokens=17)
    turns = [("which digit is this?", "7"), ("note: digit", "7")]
    messages = [
        {"from": speaker, "value": text} for turn in turns for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for with_image in (True, False):
        first = {**messages[0], "value": f"<image>\n{messages[0]['value']}"} if with_image else messages[0]
        record = {"id": "a", "conversations": [first, *messages[1:]], **({"image": "a.png"} if with_image else {})}
        inputs = Collator(processor, [record], tmp_path)([{"row": 0}])
        token_ids, labels = encode(turns, with_image)
        assert token_ids == inputs["input_ids"][0].tolist()
        assert labels == inputs["labels"][0].tolist()


def test_a_model_of_the_package_is_copied(tmp_path):
    section = TinyModel(pretrained="target")
    build_tiny_model("target", [], tmp_path, section, output=tmp_path / "model", checkpoints=tmp_path / "steps")
    for path in (PRETRAINED / "target").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


def test_questions_about_images_are_left_to_finetuning():
    rng = np.random.default_rng(0)
    pictures = pretraining.draw_pictures(300, seed=0)
    lessons = [pretraining.lesson(rng, picture) for picture in pictures]
    prompts = {question for turns, with_image in lessons if with_image for question, _ in turns}
    assert {prompt for prompt in prompts if not prompt.startswith("note: ")} == set(pretraining.PROMPTS)
    assert 0.2 < np.mean([not with_image for _, with_image in lessons]) < 0.5


def test_the_program_makes_both_models(tmp_path, monkeypatch):
    sizes = ["--pictures", "600", "--tower-steps", "3", "--decoder-steps", "3", "--instructions", "40"]
    monkeypatch.setattr(sys, "argv", ["pretraining", "--output", str(tmp_path), *sizes])
    pretraining.main()
    for name in ("target", "reference"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
            path.name for path in (PRETRAINED / name).iterdir()
        )
        made, shipped = (json.loads((folder / name / "config.json").read_text()) for folder in (tmp_path, PRETRAINED))
        made["text_config"]["vocab_size"] = shipped["text_config"]["vocab_size"]  # few texts give a small vocabulary
        made["image_token_index"] = shipped["image_token_index"]
        assert made == shipped


@pytest.fixture(scope="module", params=["target", "reference"])
def shipped(request):
    folder = PRETRAINED / request.param
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return request.param, model, AutoProcessor.from_pretrained(folder)


def answer(model, processor, image, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_target_describes_images_and_the_reference_answers(shipped):
    name, model, processor = shipped
    rng = np.random.default_rng(5)
    right = []
    for kind in KINDS:
        for _ in range(6):
            picture = draw_picture(rng, kind)
            if name == "target":
                description = answer(model, processor, picture.image, pretraining.PROMPTS[0])
                statements = [s for s in KINDS[kind].statements(rng, picture.facts) if " lies " not in s]
                right += [statement in description for statement in statements]
            else:
                question = KINDS[kind].ask(rng, picture.facts)
                right.append(answer(model, processor, picture.image, question.text) == question.answer)
    assert np.mean(right) > 0.6
