"""The default dataset: a small likeness of LLaVA-665K, in LLaVA's format.

Two sources come from installed packages: easy-VQA, and scikit-learn's scanned handwritten digits. The others are
drawings with known answers. What is taken from LLaVA-665K:

- The sizes of the sources, of which the smallest has a tenth of the largest. The first source is three times as large
  as its counterpart.
- Most questions are grouped into conversations of several turns about an image; easy-VQA's images repeat.
- Near-copies: a question about the number of digits occurs four times with its image, in other words, as A-OKVQA's do
  with other orders of the options.
- Wrong answers, in the sources whose counterparts were labelled by a model, a crowd or from metadata.
- 5% of the samples have no image.

The four splits have no image in common: `train` for selection, `pretrain` for the demo's small models, `test` for the
evaluation tasks, `validation` to tune settings on. Evaluation asks the same number of questions of each source, and as
many about compositions of concepts that no training sample shows, such as a purple bar of value 5.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from coincide.demo.drawings import (
    DIGIT_GRID,
    DIGIT_GRID_MAXIMUM,
    ONE_DIGIT,
    TWO_DIGITS,
    digit_drawer,
    draw_bar_chart,
    draw_scene,
    draw_word,
    scene_drawer,
)
from coincide.demo.mix import QUESTION_FOLDERS, Example, Source, write_mix
from coincide.demo.questions import (
    Question,
    ask_about_chart,
    ask_about_relation,
    ask_about_scene,
    ask_about_word,
    ask_for_caption,
    ask_for_count,
    ask_how_many_digits,
    ask_to_reason,
    ask_which_digit,
    ask_without_image,
    is_held_out,
    wrong_answer,
)
from coincide.demo.source_sizes import SOURCE_SIZES

PRETRAIN_EVERY = 4  # every fourth training image of easy-VQA is in the split pretrain
COMPOSITIONS = "compositions"  # the questions about compositions that training does not show


def write_mini_mix(
    output: Path,
    *,
    samples: int,
    pretrain_samples: int,
    test_samples: int,
    validation_samples: int,
    seed: int,
    weights: Mapping[str, int] | None = None,
) -> None:
    """Write the mix: train.json, pretrain.json, images/, evaluation/<source>.parquet and validation/<source>.parquet.

    Args:
        output: folder to write; an existing one is replaced when the new one is complete.
        samples: number of samples in train.json.
        pretrain_samples: number of samples in pretrain.json.
        test_samples: number of questions per source for evaluation.
        validation_samples: number of questions per source for tuning.
        seed: the same seed gives the same files.
        weights: source -> its size relative to the others, where it is not that of SOURCE_SIZES.

    Raises:
        UserError: a source has fewer examples than its share.
    """
    changed = {name: replace(SOURCES[name], weight=weight) for name, weight in (weights or {}).items()}
    sizes = {"train": samples, "pretrain": pretrain_samples, "test": test_samples, "validation": validation_samples}
    write_mix(output, {**SOURCES, **changed}, sizes, seed=seed)


def easy_vqa_questions(split: str) -> list[tuple[str, str, Path]]:
    """(question, answer, path of the image) of the package easy-vqa; its test images are for questions."""
    import easy_vqa

    if split in QUESTION_FOLDERS:
        questions, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
        is_in_split = dict.fromkeys(paths, True)
    else:
        questions, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
        is_in_split = {image: (image % PRETRAIN_EVERY == 0) == (split == "pretrain") for image in paths}
    return [(text, answer, Path(paths[image])) for text, answer, image in zip(*questions) if is_in_split[image]]


def easy_vqa_examples(rng: np.random.Generator, split: str) -> Iterator[Example]:
    """Questions of easy-VQA in random order, one per example."""
    questions = easy_vqa_questions(split)
    for i in rng.permutation(len(questions)):
        text, answer, path = questions[i]
        yield Example(path, [(text, answer)])


def _easy_vqa_conversations(rng, split):
    """Two to four questions about an image; an image is used again until all its questions are."""
    of_image: dict[Path, list[tuple[str, str]]] = {}
    for example in easy_vqa_examples(rng, split):
        of_image.setdefault(example.image, []).extend(example.turns)
    while of_image:
        for path in list(of_image):
            count = int(rng.integers(2, 5))
            turns, of_image[path] = of_image[path][:count], of_image[path][count:]
            if turns:
                yield Example(path, turns)
            else:
                del of_image[path]


def _questions_about(
    draw: Callable, ask: Callable, *, turns: tuple[int, int] = (1, 1), wrong: float = 0.0, copies: int = 1
) -> Callable[[np.random.Generator, str], Iterator[Example]]:
    """A source that draws images and asks about them.

    Args:
        draw: function of (random generator, split) that returns an image and its facts.
        ask: function of (random generator, facts) that returns a question.
        turns: least and most number of questions about an image.
        wrong: share of the answers in the split train that are wrong.
        copies: number of samples with the same image, each with questions of its own.
    """

    def examples(rng, split):
        while True:
            image, facts = draw(rng, split)
            for _ in range(copies):
                questions = _different_questions(rng, ask, facts, int(rng.integers(turns[0], turns[1] + 1)))
                if questions:
                    yield _example(rng, split, image, questions, wrong)

    return examples


def _different_questions(rng, ask, facts, count):
    """Up to `count` questions with different words, none about a composition that is held out."""
    questions: dict[str, Question] = {}
    for _ in range(4 * count):
        question = ask(rng, facts)
        if len(questions) < count and not is_held_out(question):
            questions.setdefault(question.text, question)
    return list(questions.values())


def _example(rng, split, image, questions, wrong=0.0, facts=()):
    turns = []
    for question in questions:
        is_wrong = split == "train" and rng.random() < wrong
        turns.append((question.text, wrong_answer(rng, question.answer) if is_wrong else question.answer))
    return Example(image, turns, list(facts))


def _draw_word(rng, split):
    return draw_word(rng)


def _draw_chart(rng, split):
    return draw_bar_chart(rng)


_DRAW_PAIR = digit_drawer(TWO_DIGITS, 2, 2)
_DRAW_CROWD = scene_drawer(1, 6, 4)
_DRAW_TWO_SHAPES = scene_drawer(2, 2, 2)


def _caption(rng, split):
    while True:
        image, shapes = draw_scene(rng, int(rng.integers(2, 4)))
        facts = [f"{len(shapes)} shapes", *(f"{shape.colour} {shape.kind}" for shape in shapes)]
        yield _example(rng, split, image, [ask_for_caption(rng, shapes)], facts=facts)


def _conversation(rng, split):
    while True:
        image, shapes = draw_scene(rng, 3)
        yield _example(rng, split, image, ask_about_scene(rng, shapes)[: int(rng.integers(2, 5))], 0.1)


def _text_only(rng, split):
    while True:
        yield _example(rng, split, None, [ask_without_image(rng) for _ in range(int(rng.integers(1, 4)))])


def _compositions(rng, split):
    """Questions about compositions that are held out, of all skills that combine concepts, in turn."""
    skills: list[tuple[Callable, Callable]] = [
        (_DRAW_PAIR, ask_to_reason),
        (_draw_chart, ask_about_chart),
        (_DRAW_CROWD, ask_for_count),
        (_DRAW_TWO_SHAPES, ask_about_relation),
    ]
    while True:
        for draw, ask in skills:
            question = Question("", "")
            while not is_held_out(question):
                image, facts = draw(rng, split)
                question = ask(rng, facts)
            yield _example(rng, split, image, [question])


_EXAMPLES = {
    "easy_vqa": _easy_vqa_conversations,
    "counting": _questions_about(_DRAW_CROWD, ask_for_count, turns=(2, 4), wrong=0.1),
    "text_reading": _questions_about(_draw_word, ask_about_word, turns=(1, 2), wrong=0.05),
    "digits_add": _questions_about(_DRAW_PAIR, ask_to_reason),
    "spatial": _questions_about(_DRAW_TWO_SHAPES, ask_about_relation, turns=(2, 4)),
    "digits_count": _questions_about(digit_drawer(DIGIT_GRID, 1, DIGIT_GRID_MAXIMUM), ask_how_many_digits, copies=4),
    "conversation": _conversation,
    "digits_read": _questions_about(digit_drawer(ONE_DIGIT, 1, 1), ask_which_digit),
    "text_only": _text_only,
    "caption": _caption,
    "bar_chart": _questions_about(_draw_chart, ask_about_chart, turns=(1, 3)),
}
SOURCES = {name: Source(examples, SOURCE_SIZES[name]) for name, examples in _EXAMPLES.items()}
SOURCES[COMPOSITIONS] = Source(_compositions, 0)  # only in questions
