"""Pictures to pretrain the demo's models on, each with its facts: as classes, in words, and as questions.

Of the images of packages, only those of the split `pretrain` are used: the mix and its evaluation show others.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from coincide.demo.drawings import (
    BAR_VALUES,
    BARS,
    COLOURS,
    DIGIT_GRID,
    DIGIT_GRID_MAXIMUM,
    IMAGE_SIZE,
    ONE_DIGIT,
    SHAPES,
    TWO_DIGITS,
    WORDS,
    Bar,
    Shape,
    Word,
    corner,
    count_kinds,
    digit_drawer,
    draw_bar_chart,
    draw_word,
    relations,
    scene_drawer,
    shortest,
    tallest,
)
from coincide.demo.mini_mix import easy_vqa_questions
from coincide.demo.questions import (
    Question,
    ask_about_chart,
    ask_about_relation,
    ask_about_scene,
    ask_about_word,
    ask_for_caption,
    ask_for_count,
    ask_for_sum,
    ask_how_many_digits,
    ask_to_reason,
    ask_which_digit,
    choose,
)

# easy-VQA's shapes and colours
LONE_SHAPES = ("circle", "rectangle", "triangle")
LONE_COLOURS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "brown": (165, 42, 42),
    "teal": (0, 128, 128),
}
CELL_CLASSES = 1 + len(COLOURS) * len(SHAPES)  # empty, or a colour and a kind
PATCHES = 4  # per side of an image
SHAPE_COUNTS = 8
DISTORTED = 0.8  # share of the scans and lone shapes that are distorted, of which there are few


class LoneShape(NamedTuple):
    """What an image of easy-VQA shows."""

    colour: str
    kind: str


class Picture(NamedTuple):
    """An image and what it shows.

    Attributes:
        kind: key of KINDS.
        image: the image.
        facts: what it shows; the type depends on the kind.
    """

    kind: str
    image: Image.Image
    facts: Any


class Kind(NamedTuple):
    """A kind of picture.

    Attributes:
        share: share of the pictures.
        name: what it is, in words.
        draw: function of a random generator that returns an image and its facts.
        classes: function of facts that returns name of a fact -> class.
        statements: function of (random generator, facts) that returns all facts in words.
        notes: function of facts that returns what a note can be about -> the note.
        ask: function of (random generator, facts) that returns a question.
    """

    share: float
    name: str
    draw: Callable[[np.random.Generator], tuple[Image.Image, Any]]
    classes: Callable[[Any], dict[str, int]]
    statements: Callable[[np.random.Generator, Any], list[str]]
    notes: Callable[[Any], dict[str, str]]
    ask: Callable[[np.random.Generator, Any], Question]


def draw_picture(rng: np.random.Generator, kind: str) -> Picture:
    """Draw a picture of a kind."""
    return Picture(kind, *KINDS[kind].draw(rng))


def cell_classes(picture: Picture) -> np.ndarray:
    """(PATCHES²,) class of the shape in each patch of a scene, 0 if there is none; -1 for other kinds of pictures."""
    if picture.kind not in ("scene", "crowd"):
        return np.full(PATCHES * PATCHES, -1)
    cells = 2 if picture.kind == "scene" else PATCHES
    classes = np.zeros((cells, cells), int)
    for shape in picture.facts:
        classes[shape.row, shape.column] = _shape_class(shape)
    return classes.repeat(PATCHES // cells, 0).repeat(PATCHES // cells, 1).ravel()


def _shape_class(shape):
    return 1 + SHAPES.index(shape.kind) * len(COLOURS) + list(COLOURS).index(shape.colour)


# --- drawing -----------------------------------------------------------------------------------------


def _from_pretrain(draw):
    return lambda rng: draw(rng, "pretrain")


def _sometimes_distorted(draw, share):
    def draw_and_distort(rng):
        image, facts = draw(rng)
        return (_distort(rng, image) if rng.random() < share else image), facts

    return draw_and_distort


def _draw_lone_shape(rng):
    """An image of easy-VQA, or one like it: the split has a thousand, too few to learn shapes from."""
    if rng.random() < 0.6:
        return _imitate_easy_vqa(rng)
    path, facts = choose(rng, _easy_vqa_facts())
    with Image.open(path) as file:
        image = file.convert("RGB")
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if rng.random() < 0.5:
            image = image.transpose(flip)
    return (_distort(rng, image) if rng.random() < DISTORTED else image), facts


def _imitate_easy_vqa(rng):
    facts = LoneShape(choose(rng, list(LONE_COLOURS)), choose(rng, LONE_SHAPES))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(int(value) for value in rng.integers(228, 256, 3)))
    width, height = map(int, rng.integers(8, 33, 2))
    if facts.kind != "rectangle":
        height = width
    x, y = int(rng.integers(0, IMAGE_SIZE - width)), int(rng.integers(0, IMAGE_SIZE - height))
    draw, colour = ImageDraw.Draw(image), LONE_COLOURS[facts.colour]
    if facts.kind == "circle":
        draw.ellipse([x, y, x + width, y + height], fill=colour)
    elif facts.kind == "rectangle":
        draw.rectangle([x, y, x + width, y + height], fill=colour)
    else:
        draw.polygon([(x, y + height), (x + width, y + height), (x + width / 2, y)], fill=colour)
    return image, facts


@cache
def _easy_vqa_facts():
    """Path and facts of the images in the split pretrain."""
    answers: dict[Path, set[str]] = {}
    for _, answer, path in easy_vqa_questions("pretrain"):
        answers.setdefault(path, set()).add(answer)
    facts = []
    for path, words in answers.items():
        colours, kinds = words & set(LONE_COLOURS), words & set(LONE_SHAPES)
        if colours and kinds:
            facts.append((path, LoneShape(colours.pop(), kinds.pop())))
    return facts


def _distort(rng, image):
    """Turn, stretch and shift an image a little."""
    angle, middle = rng.uniform(-0.15, 0.15), IMAGE_SIZE / 2
    (stretch_x, stretch_y), (shift_x, shift_y) = rng.uniform(0.85, 1.12, 2), rng.uniform(-4, 4, 2)
    a, b = np.cos(angle) / stretch_x, np.sin(angle) / stretch_x
    d, e = -np.sin(angle) / stretch_y, np.cos(angle) / stretch_y
    matrix = (a, b, middle - middle * (a + b) + shift_x, d, e, middle - middle * (d + e) + shift_y)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0))
    )


# --- facts as classes and in words -------------------------------------------------------------------


def _scene_classes(shapes):
    cells = {f"cell {row} {column}": 0 for row in range(2) for column in range(2)}
    return {**cells, **{f"cell {s.row} {s.column}": _shape_class(s) for s in shapes}, **_crowd_classes(shapes)}


def _crowd_classes(shapes):
    return {"shapes": len(shapes), **count_kinds(shapes)}


def _word_classes(word: Word) -> dict[str, int]:
    return {"word": WORDS.index(word.text), "letters": list(COLOURS).index(word.colour)}


def _chart_classes(bars: list[Bar]) -> dict[str, int]:
    colours = {f"colour {i}": list(COLOURS).index(bar.colour) for i, bar in enumerate(bars)}
    return {**colours, **{f"value {i}": BAR_VALUES.index(bar.value) for i, bar in enumerate(bars)}}


def _digit_classes(digits):
    return {f"digit {i}": digit for i, digit in enumerate(digits)}


def _grid_classes(digits):
    return {"digits": len(digits)}


def _lone_shape_classes(shape: LoneShape) -> dict[str, int]:
    return {"lone kind": LONE_SHAPES.index(shape.kind), "lone colour": list(LONE_COLOURS).index(shape.colour)}


def _scene_statements(rng: np.random.Generator, shapes: list[Shape]) -> list[str]:
    in_cell = {(shape.row, shape.column): f"{shape.colour} {shape.kind}" for shape in shapes}
    statements = [f"{len(shapes)} shapes in all"]
    for row in range(2):
        for column in range(2):
            cell = corner(Shape("", "", row, column))
            statements.append(f"{cell}: {in_cell.get((row, column), 'nothing')}")
    if len(shapes) > 1:
        first, second = (shapes[i] for i in rng.permutation(len(shapes))[:2])
        relation = choose(rng, relations(first, second))
        statements.append(f"the {first.colour} {first.kind} lies {relation} the {second.colour} {second.kind}")
    return statements


def _crowd_statements(rng, shapes):
    counts = [f"number of {kind}s: {count}" for kind, count in count_kinds(shapes).items()]
    return [f"{len(shapes)} shapes in all", *counts]


def _word_statements(rng, word):
    return [f"the word {word.text}", f"letters: {word.colour}"]


def _chart_statements(rng, bars):
    return [
        "bars: " + ", ".join(f"{bar.colour} {bar.value}" for bar in bars),
        f"tallest: {tallest(bars).colour}",
        f"shortest: {shortest(bars).colour}",
    ]


def _digit_statements(rng, digits):
    return [f"the digit {digits[0]}"]


def _pair_statements(rng, digits):
    return [f"the digits {digits[0]} and {digits[1]}"]


def _grid_statements(rng, digits):
    return [f"number of digits: {len(digits)}"]


def _lone_shape_statements(rng, shape):
    return [f"shape: {shape.kind}", f"colour: {shape.colour}"]


def _scene_notes(shapes: list[Shape]) -> dict[str, str]:
    kinds = [shape.kind for shape in shapes]
    notes = {"all shapes": str(len(shapes))}
    for shape in shapes:
        name = f"{shape.colour} {shape.kind}"
        notes |= {corner(shape): name, name: corner(shape)}
        if kinds.count(shape.kind) == 1:
            notes[shape.kind] = shape.colour
    return notes


def _crowd_notes(shapes: list[Shape]) -> dict[str, str]:
    counts = {f"{kind}s": str(count) for kind, count in count_kinds(shapes).items()}
    return {"all shapes": str(len(shapes)), **counts}


def _word_notes(word: Word) -> dict[str, str]:
    return {"word": word.text, "letters": word.colour}


def _chart_notes(bars: list[Bar]) -> dict[str, str]:
    values = {f"{bar.colour} bar": str(bar.value) for bar in bars}
    return {**values, "tallest": tallest(bars).colour, "shortest": shortest(bars).colour}


def _digit_notes(digits: list[int]) -> dict[str, str]:
    return {"digit": str(digits[0])}


def _pair_notes(digits: list[int]) -> dict[str, str]:
    return {"left digit": str(digits[0]), "right digit": str(digits[1])}


def _grid_notes(digits: list[int]) -> dict[str, str]:
    return {"all digits": str(len(digits))}


def _lone_shape_notes(shape: LoneShape) -> dict[str, str]:
    return {"shape": shape.kind, "colour": shape.colour}


# --- questions ---------------------------------------------------------------------------------------


def _ask_about_scene(rng, shapes):
    if len(shapes) == 2 and rng.random() < 0.5:
        return ask_about_relation(rng, shapes)
    return ask_about_scene(rng, shapes)[0] if rng.random() < 0.5 else ask_for_caption(rng, shapes)


def _ask_about_pair(rng, digits):
    return choose(rng, [ask_for_sum, ask_to_reason])(rng, digits)


def _ask_about_lone_shape(rng, shape):
    """Questions in easy-VQA's words."""
    kind = rng.integers(4)
    if kind == 0:
        phrasings = ["what shape is present?", "what shape does the image contain?", "what shape is in the image?"]
        return Question(choose(rng, phrasings), shape.kind)
    if kind == 1:
        phrasings = [
            "what color is the {}?",
            "what is the color of the {}?",
            "what is the color of the shape?",
            "what color is the shape?",
        ]
        return Question(choose(rng, phrasings).format(shape.kind), shape.colour)
    if kind == 2:
        asked = choose(rng, LONE_SHAPES)
        is_there = asked == shape.kind
    else:
        asked = shape.colour if rng.random() < 0.4 else choose(rng, list(LONE_COLOURS))
        is_there = asked == shape.colour
        asked = f"{asked} shape"
    is_denied = rng.random() < 0.3
    phrasing = choose(rng, ["does the image {}contain a {}?", "is there {}a {}?"])
    return Question(phrasing.format("not " if is_denied else "", asked), "yes" if is_there != is_denied else "no")


KINDS = {
    "scene": Kind(
        0.27,
        "large shapes",
        _from_pretrain(scene_drawer(1, 4, 2)),
        _scene_classes,
        _scene_statements,
        _scene_notes,
        _ask_about_scene,
    ),
    "crowd": Kind(
        0.13,
        "small shapes",
        _from_pretrain(scene_drawer(1, 6, PATCHES)),
        _crowd_classes,
        _crowd_statements,
        _crowd_notes,
        ask_for_count,
    ),
    "sign": Kind(0.13, "a sign", draw_word, _word_classes, _word_statements, _word_notes, ask_about_word),
    "chart": Kind(0.14, "a chart", draw_bar_chart, _chart_classes, _chart_statements, _chart_notes, ask_about_chart),
    "digit": Kind(
        0.07,
        "a digit",
        _sometimes_distorted(_from_pretrain(digit_drawer(ONE_DIGIT, 1, 1)), DISTORTED),
        _digit_classes,
        _digit_statements,
        _digit_notes,
        ask_which_digit,
    ),
    "pair": Kind(
        0.12,
        "two digits",
        _sometimes_distorted(_from_pretrain(digit_drawer(TWO_DIGITS, 2, 2)), DISTORTED),
        _digit_classes,
        _pair_statements,
        _pair_notes,
        _ask_about_pair,
    ),
    "grid": Kind(
        0.08,
        "several digits",
        _sometimes_distorted(_from_pretrain(digit_drawer(DIGIT_GRID, 1, DIGIT_GRID_MAXIMUM)), 0.0),
        _grid_classes,
        _grid_statements,
        _grid_notes,
        ask_how_many_digits,
    ),
    "lone": Kind(
        0.06,
        "one shape",
        _draw_lone_shape,
        _lone_shape_classes,
        _lone_shape_statements,
        _lone_shape_notes,
        _ask_about_lone_shape,
    ),
}
# Facts of all kinds and their numbers of classes.
FACTS = {
    "kind": len(KINDS),
    **{f"cell {row} {column}": CELL_CLASSES for row in range(2) for column in range(2)},
    "shapes": SHAPE_COUNTS,
    **dict.fromkeys(SHAPES, SHAPE_COUNTS),
    "word": len(WORDS),
    "letters": len(COLOURS),
    **{f"colour {i}": len(COLOURS) for i in range(BARS)},
    **{f"value {i}": len(BAR_VALUES) for i in range(BARS)},
    "digit 0": 10,
    "digit 1": 10,
    "digits": DIGIT_GRID_MAXIMUM + 1,
    "lone kind": len(LONE_SHAPES),
    "lone colour": len(LONE_COLOURS),
}


def fact_classes(picture: Picture) -> np.ndarray:
    """(len(FACTS),) class of each fact, -1 for those that the kind of picture does not have."""
    classes = {"kind": list(KINDS).index(picture.kind), **KINDS[picture.kind].classes(picture.facts)}
    return np.array([classes.get(fact, -1) for fact in FACTS])
