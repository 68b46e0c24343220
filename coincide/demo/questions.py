"""Questions of the demo: about the facts of an image, or without an image. Each is phrased in several ways.

The functions of images take a random generator and facts as `coincide.demo.drawings` returns them.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from coincide.demo.drawings import (
    COLOURS,
    SHAPES,
    WORDS,
    Bar,
    Shape,
    Word,
    corner,
    count_kinds,
    relations,
    shortest,
    tallest,
)

OPPOSITES = [("hot", "cold"), ("up", "down"), ("left", "right"), ("big", "small"), ("open", "shut"), ("new", "old")]
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_OUT_EVERY = 5  # of the compositions of a skill
# Answers that may be mistaken for one another. Numbers are mistaken for their neighbours.
SIMILAR_ANSWERS: list[list[str]] = [
    ["yes", "no"],
    list(COLOURS),
    list(WORDS),
    [f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right")],
    [f"{colour} {kind}" for colour in COLOURS for kind in SHAPES],
]


class Question(NamedTuple):
    """A question and its answer.

    Attributes:
        text: the question.
        answer: the answer.
        composition: the concepts that the question combines, such as the colour and the value of a bar; empty if it
            asks about one concept.
    """

    text: str
    answer: str
    composition: tuple[Any, ...] = ()


def is_held_out(question: Question) -> bool:
    """Whether the composition of a question is reserved for evaluation: the samples do not ask it."""
    digest = zlib.crc32(repr(question.composition).encode())
    return bool(question.composition) and digest % HELD_OUT_EVERY == 0


def wrong_answer(rng: np.random.Generator, answer: str) -> str:
    """Another answer of the same kind, as in a mislabelled sample."""
    if answer.isdigit():
        return str(abs(int(answer) + choose(rng, (-1, 1))))
    similar = next(answers for answers in SIMILAR_ANSWERS if answer in answers)
    return choose(rng, [other for other in similar if other != answer])


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


# --- digits and words --------------------------------------------------------------------------------


def ask_which_digit(rng: np.random.Generator, digits: list[int]) -> Question:
    """Which digit is it?"""
    phrasings = [
        "which digit is this?",
        "what number is written here?",
        "read the number.",
        "what does the image say?",
    ]
    return Question(choose(rng, phrasings), str(digits[0]))


def ask_for_sum(rng: np.random.Generator, digits: list[int]) -> Question:
    """The sum of two digits."""
    phrasings = [
        "what is the sum of the two digits?",
        "add the digits.",
        "what do you get if you add the two numbers?",
    ]
    return Question(choose(rng, phrasings), str(sum(digits)))


def ask_to_reason(rng: np.random.Generator, digits: list[int]) -> Question:
    """The sum of two digits with the way to it; a composition is a pair of digits in any order."""
    phrasings = [
        "what is the sum of the two digits? explain.",
        "add the digits step by step.",
        "what do you get if you add the two numbers, and why?",
    ]
    answer = f"{digits[0]} plus {digits[1]} is {sum(digits)}"
    return Question(choose(rng, phrasings), answer, ("sum", *sorted(digits)))


def ask_how_many_digits(rng: np.random.Generator, digits: list[int]) -> Question:
    """The number of digits."""
    phrasings = ["how many digits are there?", "count the digits.", "how many numbers are written here?"]
    return Question(choose(rng, phrasings), str(len(digits)))


def ask_about_word(rng: np.random.Generator, word: Word) -> Question:
    """What a sign says, or less often the colour of its letters."""
    if rng.random() < 0.75:
        phrasings = [
            "what does the sign say?",
            "read the word.",
            "which word is written here?",
            "what is written in the image?",
        ]
        return Question(choose(rng, phrasings), word.text)
    return Question(choose(rng, ["what colour are the letters?", "which colour is the text?"]), word.colour)


# --- charts and scenes -------------------------------------------------------------------------------


def ask_about_chart(rng: np.random.Generator, bars: list[Bar]) -> Question:
    """The highest bar, the lowest bar, or (half of the questions) a value; its composition is colour and value."""
    highest = ["which bar is the tallest?", "what colour is the highest bar?", "which colour has the largest value?"]
    lowest = ["which bar is the shortest?", "what colour is the lowest bar?"]
    value = ["what is the value of the {} bar?", "how high is the {} bar?", "read the {} bar."]
    kind = rng.integers(4)
    if kind == 0:
        return Question(choose(rng, highest), tallest(bars).colour)
    if kind == 1:
        return Question(choose(rng, lowest), shortest(bars).colour)
    bar = choose(rng, bars)
    return Question(choose(rng, value).format(bar.colour), str(bar.value), ("bar", bar.colour, bar.value))


def ask_for_count(rng: np.random.Generator, shapes: list[Shape]) -> Question:
    """The number of shapes, or of those of one kind; its composition is kind and number."""
    count_all = ["how many shapes are there?", "count the objects.", "how many objects do you see?"]
    count_kind = ["how many {}s are there?", "count the {}s.", "what is the number of {}s?"]
    if rng.random() < 0.4:
        return Question(choose(rng, count_all), str(len(shapes)))
    kind = choose(rng, SHAPES)
    count = count_kinds(shapes)[kind]
    return Question(choose(rng, count_kind).format(kind), str(count), ("count", kind, count))


def ask_about_relation(rng: np.random.Generator, shapes: list[Shape]) -> Question:
    """How two shapes lie to each other, as yes or no, or which one lies there.

    Its composition is the relation and the colour and kind of the shape that is asked about.
    """
    first, second = shapes
    # a diagonal pair can be compared in either direction
    is_horizontal = first.column != second.column and (first.row == second.row or rng.random() < 0.5)
    relation = choose(rng, ["left of", "right of"] if is_horizontal else ["above", "below"])
    is_true = relation in relations(first, second)
    if rng.random() < 0.5:
        text = choose(rng, ["is the {} {} {} the {} {}?", "do you see the {} {} {} the {} {}?"])
        text = text.format(first.colour, first.kind, relation, second.colour, second.kind)
        return Question(text, "yes" if is_true else "no", (relation, first.colour, first.kind))
    relation = relation if is_true else REVERSED[relation]
    text = choose(rng, ["what is {} the {} {}?", "which shape lies {} the {} {}?"])
    text = text.format(relation, second.colour, second.kind)
    return Question(text, f"{first.colour} {first.kind}", (relation, first.colour, first.kind))


def ask_for_caption(rng: np.random.Generator, shapes: list[Shape]) -> Question:
    """A description in sentences of a scene on a grid of two by two."""
    phrasings = ["describe the image.", "what do you see? answer in sentences.", "give a description of the picture."]
    shapes = sorted(shapes, key=lambda shape: (shape.row, shape.column))
    sentences = [f"the image shows {len(shapes)} shapes."]
    sentences += [f"there is a {shape.colour} {shape.kind} in the {corner(shape)}." for shape in shapes]
    return Question(choose(rng, phrasings), " ".join(sentences))


def ask_about_scene(rng: np.random.Generator, shapes: list[Shape]) -> list[Question]:
    """All questions of a conversation about a scene on a grid of two by two, in random order."""
    kinds = [shape.kind for shape in shapes]
    count = choose(rng, ["how many shapes are there in all?", "how many things can you count?"])
    presence = choose(rng, ["is there a {} in the picture?", "do you see a {}?"])
    kind = choose(rng, SHAPES)
    questions = [
        Question(count, str(len(shapes))),
        Question(presence.format(kind), "yes" if kind in kinds else "no"),
    ]
    for shape in shapes:
        questions.append(Question(f"where is the {shape.colour} {shape.kind}?", corner(shape)))
        if kinds.count(shape.kind) == 1:  # "the circle" would be ambiguous
            colour = choose(rng, ["what colour is the {}?", "which colour does the {} have?"])
            questions.append(Question(colour.format(shape.kind), shape.colour))
    return [questions[i] for i in rng.permutation(len(questions))]


# --- without an image --------------------------------------------------------------------------------


def ask_without_image(rng: np.random.Generator) -> Question:
    """A sum, an opposite, a first letter or a number in words."""
    return choose(rng, [_addition, _opposite, _first_letter, _spelled_number])(rng)


def _addition(rng):
    a, b = map(int, rng.integers(0, 10, 2))
    return Question(choose(rng, ["what is {} plus {}?", "add {} and {}."]).format(a, b), str(a + b))


def _opposite(rng):
    word, opposite = choose(rng, OPPOSITES + [pair[::-1] for pair in OPPOSITES])
    return Question(choose(rng, ["what is the opposite of {}?", "give the opposite of {}."]).format(word), opposite)


def _first_letter(rng):
    word = choose(rng, WORDS)
    phrasings = ["what is the first letter of {}?", "which letter does {} begin with?"]
    return Question(choose(rng, phrasings).format(word), word[0])


def _spelled_number(rng):
    tens = int(rng.integers(1, 10))
    return Question(choose(rng, ["write {} in words.", "spell the number {}."]).format(10 * tens), TENS[tens])
