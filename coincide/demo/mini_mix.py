"""The default dataset: a visual-instruction-tuning mix in LLaVA's format, small but real enough to select from.

Two sources come from installed packages: easy-VQA, and scikit-learn's scanned handwritten digits. The others are
drawings with known answers, for skills of a real mix that those two lack. As in a real mix, the sources differ in
size, phrase a question in several ways, and are partly redundant.

The four splits have no image in common: `train` for selection, `pretrain` to train the demo's small models, `test`
for the evaluation tasks, `validation` to tune settings on.

Each source is a function of (random generator, split) that yields examples. The order of the random draws in it is
fixed: another order would make another dataset from the same seed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coincide.demo.drawings import (
    DIGIT_GRID,
    DIGIT_GRID_MAXIMUM,
    ONE_DIGIT,
    SHAPES,
    TWO_DIGITS,
    WORDS,
    corner,
    draw_bar_chart,
    draw_digits,
    draw_scene,
    draw_word,
)
from coincide.demo.mix import QUESTION_FOLDERS, Example, Source, write_mix

OPPOSITES = [("hot", "cold"), ("up", "down"), ("left", "right"), ("big", "small"), ("open", "shut"), ("new", "old")]
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
PRETRAIN_EVERY = 4  # every fourth training image of easy-VQA is in the split pretrain


def write_mini_mix(
    output: Path, *, samples: int, pretrain_samples: int, test_samples: int, validation_samples: int, seed: int
) -> None:
    """Write the mix: train.json, pretrain.json, images/, evaluation/<source>.parquet and validation/<source>.parquet.

    Args:
        output: folder to write; an existing one is replaced when the new one is complete.
        samples: number of samples in train.json.
        pretrain_samples: number of samples in pretrain.json.
        test_samples: number of questions per source for evaluation.
        validation_samples: number of questions per source for tuning.
        seed: the same seed gives the same files.

    Raises:
        UserError: a source has fewer examples than its share.
    """
    sizes = {"train": samples, "pretrain": pretrain_samples, "test": test_samples, "validation": validation_samples}
    write_mix(output, SOURCES, sizes, seed=seed)


def _choose(rng, options):
    return options[rng.integers(len(options))]


# --- data of installed packages ----------------------------------------------------------------------


def easy_vqa_examples(rng: np.random.Generator, split: str) -> Iterator[Example]:
    """Questions of the package easy-vqa in random order; its test images are for questions, the others for samples."""
    import easy_vqa

    if split in QUESTION_FOLDERS:
        (questions, answers, image_ids), paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
        in_split = np.ones(len(image_ids), dtype=bool)
    else:
        (questions, answers, image_ids), paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
        is_pretrain = np.array(image_ids) % PRETRAIN_EVERY == 0
        in_split = is_pretrain == (split == "pretrain")
    for i in rng.permutation(np.flatnonzero(in_split)):
        yield Example(Path(paths[image_ids[i]]), [(questions[i], answers[i])])


def _digits_read(rng, split):
    phrasings = [
        "which digit is this?",
        "what number is written here?",
        "read the number.",
        "what does the image say?",
    ]
    while True:
        image, digits = draw_digits(rng, split, 1, ONE_DIGIT)
        yield Example(image, [(_choose(rng, phrasings), str(digits[0]))])


def _digits_add(rng, split):
    phrasings = [
        "what is the sum of the two digits?",
        "add the digits.",
        "what do you get if you add the two numbers?",
    ]
    while True:
        image, digits = draw_digits(rng, split, 2, TWO_DIGITS)
        yield Example(image, [(_choose(rng, phrasings), str(sum(digits)))])


def _digits_count(rng, split):
    phrasings = ["how many digits are there?", "count the digits.", "how many numbers are written here?"]
    while True:
        count = int(rng.integers(1, DIGIT_GRID_MAXIMUM + 1))
        image, digits = draw_digits(rng, split, count, DIGIT_GRID)
        yield Example(image, [(_choose(rng, phrasings), str(len(digits)))])


# --- drawings ----------------------------------------------------------------------------------------


def _text_reading(rng, split):
    phrasings = [
        "what does the sign say?",
        "read the word.",
        "which word is written here?",
        "what is written in the image?",
    ]
    while True:
        image, word = draw_word(rng)
        yield Example(image, [(_choose(rng, phrasings), word.text)])


def _bar_chart(rng, split):
    tallest = ["which bar is the tallest?", "what colour is the highest bar?", "which colour has the largest value?"]
    shortest = ["which bar is the shortest?", "what colour is the lowest bar?"]
    value = ["what is the value of the {} bar?", "how high is the {} bar?", "read the {} bar."]
    while True:
        image, bars = draw_bar_chart(rng)
        kind = rng.integers(4)  # half of the questions are about a value
        if kind == 0:
            turn = (_choose(rng, tallest), max(bars, key=lambda bar: bar.value).colour)
        elif kind == 1:
            turn = (_choose(rng, shortest), min(bars, key=lambda bar: bar.value).colour)
        else:
            bar = _choose(rng, bars)
            turn = (_choose(rng, value).format(bar.colour), str(bar.value))
        yield Example(image, [turn])


def _counting(rng, split):
    count_all = ["how many shapes are there?", "count the objects.", "how many objects do you see?"]
    count_kind = ["how many {}s are there?", "count the {}s.", "what is the number of {}s?"]
    while True:
        image, shapes = draw_scene(rng, int(rng.integers(1, 7)), cells=4)
        if rng.random() < 0.5:
            turn = (_choose(rng, count_all), str(len(shapes)))
        else:
            kind = _choose(rng, SHAPES)
            turn = (_choose(rng, count_kind).format(kind), str(sum(shape.kind == kind for shape in shapes)))
        yield Example(image, [turn])


def _spatial(rng, split):
    phrasings = ["is the {} {} {} the {} {}?", "do you see the {} {} {} the {} {}?"]
    while True:
        image, (a, b) = draw_scene(rng, 2)
        # a diagonal pair can be compared in either direction
        is_horizontal = a.column != b.column and (a.row == b.row or rng.random() < 0.5)
        relation = _choose(rng, ["left of", "right of"] if is_horizontal else ["above", "below"])
        is_true = {
            "left of": a.column < b.column,
            "right of": a.column > b.column,
            "above": a.row < b.row,
            "below": a.row > b.row,
        }[relation]
        question = _choose(rng, phrasings).format(a.colour, a.kind, relation, b.colour, b.kind)
        yield Example(image, [(question, "yes" if is_true else "no")])


def _caption(rng, split):
    phrasings = ["describe the image.", "what do you see? answer in sentences.", "give a description of the picture."]
    while True:
        image, shapes = draw_scene(rng, int(rng.integers(2, 4)))
        shapes.sort(key=lambda shape: (shape.row, shape.column))
        sentences = [f"the image shows {len(shapes)} shapes."]
        sentences += [f"there is a {shape.colour} {shape.kind} in the {corner(shape)}." for shape in shapes]
        facts = [f"{len(shapes)} shapes", *(f"{shape.colour} {shape.kind}" for shape in shapes)]
        yield Example(image, [(_choose(rng, phrasings), " ".join(sentences))], facts)


def _conversation(rng, split):
    """Two to four turns about a scene."""
    while True:
        image, shapes = draw_scene(rng, 3)
        shape = shapes[0]
        kinds = [shape.kind for shape in shapes]
        colour_question = _choose(rng, ["what colour is the {}?", "which colour does the {} have?"])
        count_question = _choose(rng, ["how many shapes are there in all?", "how many things can you count?"])
        presence_question = _choose(rng, ["is there a {} in the picture?", "do you see a {}?"])
        other_kind = _choose(rng, SHAPES)
        if kinds.count(shape.kind) > 1:  # "the circle" would be ambiguous
            continue
        turns = [
            (colour_question.format(shape.kind), shape.colour),
            (count_question, str(len(shapes))),
            (f"where is the {shape.colour} {shape.kind}?", corner(shape)),
            (presence_question.format(other_kind), "yes" if other_kind in kinds else "no"),
        ]
        rng.shuffle(turns)
        yield Example(image, turns[: int(rng.integers(2, 5))])


# --- text only ---------------------------------------------------------------------------------------


def _addition(rng):
    a, b = map(int, rng.integers(0, 10, 2))
    return _choose(rng, ["what is {} plus {}?", "add {} and {}."]).format(a, b), str(a + b)


def _opposite(rng):
    word, opposite = _choose(rng, OPPOSITES + [pair[::-1] for pair in OPPOSITES])
    return _choose(rng, ["what is the opposite of {}?", "give the opposite of {}."]).format(word), opposite


def _first_letter(rng):
    word = _choose(rng, WORDS)
    phrasings = ["what is the first letter of {}?", "which letter does {} begin with?"]
    return _choose(rng, phrasings).format(word), word[0]


def _spelled_number(rng):
    tens = int(rng.integers(1, 10))
    return _choose(rng, ["write {} in words.", "spell the number {}."]).format(10 * tens), TENS[tens]


def _text_only(rng, split):
    tasks = [_addition, _opposite, _first_letter, _spelled_number]
    while True:
        yield Example(None, [_choose(rng, tasks)(rng)])


SOURCES = {
    "easy_vqa": Source(easy_vqa_examples, 80),
    "digits_read": Source(_digits_read, 24),
    "digits_add": Source(_digits_add, 15),
    "digits_count": Source(_digits_count, 10),
    "text_reading": Source(_text_reading, 16),
    "bar_chart": Source(_bar_chart, 16),
    "counting": Source(_counting, 14),
    "spatial": Source(_spatial, 12),
    "caption": Source(_caption, 9),
    "conversation": Source(_conversation, 8),
    "text_only": Source(_text_only, 6),
}
