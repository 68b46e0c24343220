"""Text as the family was trained: ends of turns, default templates, prompts of evaluation, attention over answers."""

import numpy as np
import pytest
import torch
from families import FAMILIES as BUILDERS
from families import build
from PIL import Image

from coincide.base.sections import Checkpoint, ReferenceModel
from coincide.dataset.images import open_image
from coincide.dataset.samples import Sample
from coincide.extraction.extractor import build_extractor
from coincide.models.chat import encode, render, render_prompt
from coincide.models.families import FAMILIES, VICUNA
from coincide.models.loading import load_model, load_processor
from coincide.training.collator import IGNORED_LABEL, Collator

# The text of llava-hf/llava-1.5-7b-hf's chat_template.json (snapshot of 2024-12): images first, a space after each
# text, no end of turn.
LLAVA_HF = (
    "{% for m in messages %}"
    "{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TURNS = [
    {"from": "human", "value": "<image>\nwhat is this?"},
    {"from": "gpt", "value": "one thing"},
    {"from": "human", "value": "really?"},
    {"from": "gpt", "value": "yes"},
    {"from": "human", "value": "number of colours?"},
    {"from": "gpt", "value": "three"},
]
ANSWERS = [turn["value"] for turn in TURNS[1::2]]
# What precedes a question in a family's default template; PaliGemma has no roles.
ROLES = {
    **dict.fromkeys(("llava", "llava_next"), "USER: "),
    **dict.fromkeys(("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"), "<|im_start|>user\n"),
    **dict.fromkeys(("idefics3", "smolvlm"), "User:"),
    "gemma3": "<start_of_turn>user\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Function that gives the folder of a family's small model."""
    folder, done = tmp_path_factory.mktemp("chat"), {}

    def folder_of(name):
        if name not in done:
            build(name, folder / name)
            done[name] = folder / name
        return done[name]

    return folder_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder with an image."""
    folder = tmp_path_factory.mktemp("chat-images")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def labelled_answers(processor, conversations, images):
    """The texts of the runs of labelled tokens of a training batch."""
    record = {"id": "a", "image": "image.png", "conversations": conversations}
    batch = Collator(processor, [record], images)([{"row": 0}])
    ids, labelled = batch["input_ids"][0].numpy(), (batch["labels"][0] != IGNORED_LABEL).numpy()
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(labelled)) + 1)
    return [processor.tokenizer.decode(ids[run]) for run in runs if labelled[run[0]]]


def test_every_answer_ends_with_the_end_of_turn_and_is_labelled_llava_hf(built, images):
    processor = load_processor(built("llava"))
    processor.chat_template = LLAVA_HF
    assert labelled_answers(processor, TURNS, images) == [f" {answer}</s>" for answer in ANSWERS]
    # As LLaVA's training code writes Vicuna's format: nothing between an end of turn and the next role.
    assert render(processor, TURNS).text == (
        "USER: <image>\nwhat is this? ASSISTANT: one thing</s>USER: really? ASSISTANT: yes</s>"
        "USER: number of colours? ASSISTANT: three</s>"
    )


def test_every_answer_ends_with_the_end_of_turn_and_is_labelled_qwen(built, images):
    processor = load_processor(built("llava"))
    processor.chat_template = QWEN
    processor.tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    assert labelled_answers(processor, TURNS, images) == [f"{answer}<|im_end|>\n" for answer in ANSWERS]
    processor = load_processor(built("qwen2_5_vl"))  # its end-of-sequence token is another one
    assert labelled_answers(processor, TURNS, images) == [f"{answer}<|im_end|>\n" for answer in ANSWERS]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_default_template_has_roles_and_ends_of_turns(name, built, images):
    processor = load_processor(built(name))
    family = FAMILIES[name]
    special = [token for token in ("<|im_start|>", "<|im_end|>", family.end_of_turn) if token]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": special})
    processor.chat_template = family.chat_template
    rendered = render(processor, TURNS)
    end = family.end_of_turn or "</s>"
    assert [rendered.text[start:stop].strip() for start, stop in rendered.answers] == [f"{a}{end}" for a in ANSWERS]
    if name in ROLES:
        assert rendered.text.count(ROLES[name]) == len(ANSWERS)
    else:
        assert name == "paligemma"
    text_only = render(processor, [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "one"}])
    assert text_only.text.rstrip().endswith(f"one{end}")


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "paligemma"])
@pytest.mark.parametrize("template", ["shipped", "default", "llava_hf"])
def test_the_prompt_of_evaluation_is_the_prefix_that_training_saw(name, template, built, images):
    processor = load_processor(built(name))
    if template == "llava_hf":
        processor.chat_template = LLAVA_HF.replace("<image>\\n", processor.image_token)
    elif template == "default":
        processor.chat_template = FAMILIES[name].chat_template
    image = open_image(images, "image.png")
    inputs, masks, _ = encode(processor, [render(processor, TURNS)], [[image]])
    trained = inputs["input_ids"][0].tolist()
    starts = np.flatnonzero(np.diff(masks.answer[0].astype(int), prepend=0) == 1)
    assert len(starts) == len(ANSWERS)
    for turn, start in zip((1, 3, 5), starts):
        prompt = render_prompt(processor, TURNS[:turn]).text
        bos = processor.tokenizer.bos_token
        special = not prompt.startswith(bos)  # as the model of lmms-eval calls the processor
        tokens = processor(text=[prompt], images=[[image]], add_special_tokens=special, return_tensors="pt")
        assert tokens["input_ids"][0].tolist() == trained[:start]


def without_processor_config(folder, other):
    """A checkpoint as those of 2024 are: no processor_config.json and no chat template."""
    model, processor = load_model(folder, device="cpu")
    model.save_pretrained(other)
    processor.tokenizer.save_pretrained(other)
    processor.image_processor.save_pretrained(other)
    (other / "chat_template.jinja").unlink()
    assert not (other / "processor_config.json").exists()
    return other


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_what_the_processor_lacks_is_filled_in_from_the_model(name, built, images, tmp_path):
    folder = without_processor_config(built(name), tmp_path / "old")
    model, processor = load_model(folder, device="cpu")
    assert (processor.patch_size, processor.vision_feature_select_strategy) == (8, "default")
    assert processor.num_additional_image_tokens == 1
    assert processor.chat_template == VICUNA
    assert labelled_answers(processor, TURNS, images) == [f" {answer}</s>" for answer in ANSWERS]
    record = {"id": "a", "image": "image.png", "conversations": TURNS}
    with torch.inference_mode():
        assert model(**Collator(processor, [record], images)([{"row": 0}])).loss.isfinite()
    given = load_processor(Checkpoint(str(folder), chat_template=LLAVA_HF))
    assert given.chat_template == LLAVA_HF


@pytest.fixture(scope="module")
def paligemma(built):
    return load_model(built("paligemma"), device="cpu")


def test_no_token_of_paligemma_sees_a_later_answer(paligemma, images):
    model, processor = paligemma
    record = {"id": "a", "image": "image.png", "conversations": TURNS}
    text_only = {"id": "b", "conversations": [{**TURNS[0], "value": "what is this?"}, *TURNS[1:]]}
    for records in ([record], [text_only], [record, text_only]):
        batch = Collator(processor, records, images)([{"row": row} for row in range(len(records))])
        row = len(records) - 1
        answers = np.flatnonzero(batch["labels"][row] != IGNORED_LABEL)
        with torch.inference_mode():
            before = model(**batch).logits[row]
            for answer in answers:
                changed = {**batch, "input_ids": batch["input_ids"].clone()}
                changed["input_ids"][row, answer] = processor.tokenizer.convert_tokens_to_ids("Z")
                after = model(**changed).logits[row]
                # the logits at answer - 1 predict the token that was changed
                torch.testing.assert_close(after[:answer], before[:answer], rtol=1e-4, atol=1e-5)
                assert not torch.allclose(after[answer], before[answer], atol=1e-3)


def test_sample_metrics_of_paligemma_attend_answers_causally(paligemma, images):
    model, processor = paligemma
    records = [
        {"id": "a", "image": "image.png", "conversations": TURNS},
        {"id": "b", "conversations": [{"from": "human", "value": "what is this?"}, TURNS[1]]},
    ]
    samples = [Sample(record["id"], row, record) for row, record in enumerate(records)]
    reference = ReferenceModel(name="paligemma", layers=[1], sample_metrics=True, max_tokens=4096)
    extractor, encoder = build_extractor(model, processor, images, reference)
    encoded = [encoder([sample])[0] for sample in samples]
    rows = [row for sample in encoded for row in extractor.rows([sample])]
    losses = {sample.id: float(vector[extractor.dimension]) for sample, vector in extractor.run(rows)}
    for sample in encoded:
        ids, answer = torch.from_numpy(sample.ids)[None], np.flatnonzero(sample.masks.answer)
        types = torch.zeros_like(ids)
        types[0, answer[0] :] = 1
        pixels = {name: torch.from_numpy(value) for name, value in sample.image_inputs.items()}
        with torch.inference_mode():
            log_p = model(input_ids=ids, token_type_ids=types, **pixels).logits[0].log_softmax(dim=1)
        expected = -log_p[answer - 1, ids[0, answer]].mean()
        assert losses[sample.sample.id] == pytest.approx(float(expected), rel=1e-4)
