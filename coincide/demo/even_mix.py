"""A second mix, similar to Vision-Flan: many small tasks of even size, with one instruction each.

The images are those of the default mix (`coincide.demo.mini_mix`), split in the same way, with other tasks. A family
is the tasks on one kind of image; the evaluation has one task per family, with the questions of all its tasks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from coincide.demo.drawings import (
    BARS,
    COLOURS,
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
from coincide.demo.mini_mix import easy_vqa_examples
from coincide.demo.mix import Example, Source, write_mix
from coincide.demo.questions import OPPOSITES

DIGIT_NAMES = "zero one two three four five six seven eight nine".split()


def write_even_mix(output: Path, *, samples: int, test_samples: int, validation_samples: int, seed: int) -> None:
    """Write the mix: train.json, images/, evaluation/<family>.parquet and validation/<family>.parquet.

    Args:
        output: folder to write; an existing one is replaced when the new one is complete.
        samples: number of samples in train.json.
        test_samples: number of questions per task for evaluation.
        validation_samples: number of questions per task for tuning.
        seed: the same seed gives the same files.

    Raises:
        UserError: a task has fewer examples than its share.
    """
    sizes = {"train": samples, "test": test_samples, "validation": validation_samples}
    write_mix(output, SOURCES, sizes, seed=seed, family=lambda name: FAMILY_OF[name])


def _yes_or_no(condition):
    return "yes" if condition else "no"


# --- images of a family: (rng, split) -> (image, facts); None to skip a drawing ----------------------


def _one_digit(rng, split):
    image, (digit,) = draw_digits(rng, split, 1, ONE_DIGIT)
    return image, digit


def _two_digits(rng, split):
    return draw_digits(rng, split, 2, TWO_DIGITS)


def _digit_grid(rng, split):
    return draw_digits(rng, split, int(rng.integers(1, DIGIT_GRID_MAXIMUM + 1)), DIGIT_GRID)


def _scene(rng, split):
    return draw_scene(rng, int(rng.integers(2, 7)), cells=4)


def _pair(rng, split):
    image, (a, b) = draw_scene(rng, 2)
    return None if a.kind == b.kind else (image, [a, b])


def _chart(rng, split):
    return draw_bar_chart(rng)


def _sign(rng, split):
    return draw_word(rng)


def _no_image(rng, split):
    return None, None


# --- tasks: (rng, facts) -> (question, answer) -------------------------------------------------------


def _is_above(rng, digit):
    bound = int(rng.integers(1, 9))
    return f"is the digit above {bound}?", _yes_or_no(digit > bound)


def _bar_value(rng, bars):
    bar, _ = _choose_bars(rng, bars)
    return f"value of {bar.colour}:", str(bar.value)


def _value(bar):
    return bar.value


def _is_higher(rng, bars):
    a, b = _choose_bars(rng, bars)
    return f"is {a.colour} higher than {b.colour}?", _yes_or_no(a.value > b.value)


def _choose_bars(rng, bars):
    """Two different bars."""
    return [bars[i] for i in rng.choice(BARS, 2, replace=False)]


def _count_kind(rng, shapes):
    kind = SHAPES[rng.integers(len(SHAPES))]
    return f"give the number of {kind}s.", str(sum(shape.kind == kind for shape in shapes))


def _any_kind(rng, shapes):
    kind = SHAPES[rng.integers(len(SHAPES))]
    return f"can you find a {kind}?", _yes_or_no(any(shape.kind == kind for shape in shapes))


def _count_colour(rng, shapes):
    colour = shapes[rng.integers(len(shapes))].colour
    return f"how many things are {colour}?", str(sum(shape.colour == colour for shape in shapes))


def _any_colour(rng, shapes):
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    return f"is anything {colour}?", _yes_or_no(any(shape.colour == colour for shape in shapes))


def _more(rng, shapes):
    a, b = (SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False))
    kinds = [shape.kind for shape in shapes]
    return f"are there more {a}s than {b}s?", _yes_or_no(kinds.count(a) > kinds.count(b))


def _pair_caption(rng, pair):
    in_reading_order = sorted(pair, key=lambda shape: (shape.row, shape.column))
    return "write a caption.", " and ".join(f"a {shape.colour} {shape.kind}" for shape in in_reading_order)


def _sum(rng, _):
    a, b = map(int, rng.integers(0, 10, 2))
    return f"compute {a} + {b}.", str(a + b)


def _product(rng, _):
    a, b = map(int, rng.integers(0, 10, 2))
    return f"compute {a} times {b}.", str(a * b)


def _larger(rng, _):
    a, b = map(int, rng.choice(100, 2, replace=False))
    return f"which is larger, {a} or {b}?", str(max(a, b))


def _opposite(rng, _):
    pair = OPPOSITES[rng.integers(len(OPPOSITES))]
    i = int(rng.integers(2))
    return f"name the opposite: {pair[i]}", pair[1 - i]


def _letters(rng, _):
    word = WORDS[rng.integers(len(WORDS))]
    return f"how many letters has the word {word}?", str(len(word))


def _last_letter(rng, _):
    word = WORDS[rng.integers(len(WORDS))]
    return f"which letter ends {word}?", word[-1]


class Family(NamedTuple):
    """The tasks on one kind of image.

    Attributes:
        draw: function of (random generator, split) that returns (image, facts), or None to skip a drawing.
        tasks: functions of (random generator, facts) that return (question, answer), by name.
    """

    draw: Callable[..., tuple[Any, Any] | None]
    tasks: dict[str, Callable[..., tuple[str, str]]]


# The names are part of the seeds and of the file names: a renamed task gets other questions.
FAMILIES = {
    "digit": Family(_one_digit, {
        "read": lambda rng, digit: ("transcribe the digit.", str(digit)),
        "word": lambda rng, digit: ("write the digit as a word.", DIGIT_NAMES[digit]),
        "parity": lambda rng, digit: ("even or odd?", "odd" if digit % 2 else "even"),
        "next": lambda rng, digit: ("which number follows this one?", str(digit + 1)),
        "double": lambda rng, digit: ("double the number shown.", str(2 * digit)),
        "above": _is_above,
    }),
    "two_digits": Family(_two_digits, {
        "sum": lambda rng, digits: ("give the total of both digits.", str(sum(digits))),
        "difference": lambda rng, digits: ("by how much do the digits differ?", str(abs(digits[0] - digits[1]))),
        "larger": lambda rng, digits: ("give the larger digit.", str(max(digits))),
        "smaller": lambda rng, digits: ("give the smaller digit.", str(min(digits))),
        "left": lambda rng, digits: ("read the left digit.", str(digits[0])),
        "right": lambda rng, digits: ("read the right digit.", str(digits[1])),
        "same": lambda rng, digits: ("are both digits the same?", _yes_or_no(digits[0] == digits[1])),
    }),
    "digit_grid": Family(_digit_grid, {
        "count": lambda rng, digits: ("number of digits on the page:", str(len(digits))),
        "many": lambda rng, digits: ("are there more than three digits?", _yes_or_no(len(digits) > 3)),
        "parity": lambda rng, digits: ("is the number of digits even or odd?", "odd" if len(digits) % 2 else "even"),
    }),
    "sign": Family(_sign, {
        "read": lambda rng, word: ("copy the text.", word.text),
        "colour": lambda rng, word: ("in which colour is the text?", word.colour),
        "first": lambda rng, word: ("which letter comes first in the text?", word.text[0]),
        "last": lambda rng, word: ("which letter comes last in the text?", word.text[-1]),
        "length": lambda rng, word: ("how many letters has the text?", str(len(word.text))),
        "spell": lambda rng, word: ("spell out the text.", " ".join(word.text)),
    }),
    "chart": Family(_chart, {
        "tallest": lambda rng, bars: ("name the colour of the tallest bar.", max(bars, key=_value).colour),
        "shortest": lambda rng, bars: ("name the colour of the shortest bar.", min(bars, key=_value).colour),
        "maximum": lambda rng, bars: ("give the largest value in the chart.", str(max(map(_value, bars)))),
        "minimum": lambda rng, bars: ("give the smallest value in the chart.", str(min(map(_value, bars)))),
        "total": lambda rng, bars: ("add up all bars.", str(sum(map(_value, bars)))),
        "value": _bar_value,
        "higher": _is_higher,
        "colours": lambda rng, bars: (
            "list the colours of the bars from left to right.", " ".join(bar.colour for bar in bars)
        ),
    }),
    "scene": Family(_scene, {
        "count": lambda rng, shapes: ("total number of shapes:", str(len(shapes))),
        "count_shape": _count_kind,
        "any_shape": _any_kind,
        "count_colour": _count_colour,
        "any_colour": _any_colour,
        "more": _more,
    }),
    "pair": Family(_pair, {
        "colour": lambda rng, pair: (f"name the colour of the {pair[0].kind}.", pair[0].colour),
        "other": lambda rng, pair: (f"which shape is not the {pair[0].kind}?", pair[1].kind),
        "place": lambda rng, pair: (f"in which corner is the {pair[0].kind}?", corner(pair[0])),
        "same_row": lambda rng, pair: ("do both shapes stand in the same row?", _yes_or_no(pair[0].row == pair[1].row)),
        "same_colour": lambda rng, pair: (
            "do both shapes have the same colour?", _yes_or_no(pair[0].colour == pair[1].colour)
        ),
        "caption": _pair_caption,
    }),
    "text_only": Family(_no_image, {
        "sum": _sum, "product": _product, "larger": _larger, "opposite": _opposite, "letters": _letters,
        "last_letter": _last_letter,
    }),
}  # fmt: skip
# The tasks of the family easy_vqa, by the beginnings of their questions.
EASY_VQA = {"shape": "what shape", "colour": "what color", "what_is": "what is", "there": "is there", "contain": "does"}


def _task_source(draw, task):
    """The source of a task: one question per drawing."""

    def examples(rng, split):
        while True:
            drawn = draw(rng, split)
            if drawn is not None:
                image, facts = drawn
                yield Example(image, [task(rng, facts)])

    return Source(examples, weight=1)


def _easy_vqa_source(beginning):
    """The source of easy-VQA's questions with this beginning."""

    def examples(rng, split):
        for example in easy_vqa_examples(rng, split):
            question, _ = example.turns[0]
            if question.startswith(beginning):
                yield example

    return Source(examples, weight=1)


SOURCES_BY_FAMILY = {
    "easy_vqa": {f"easy_vqa_{name}": _easy_vqa_source(beginning) for name, beginning in EASY_VQA.items()},
    **{
        name: {f"{name}_{task_name}": _task_source(family.draw, task) for task_name, task in family.tasks.items()}
        for name, family in FAMILIES.items()
    },
}
SOURCES = {name: source for sources in SOURCES_BY_FAMILY.values() for name, source in sources.items()}
FAMILY_OF = {name: family for family, sources in SOURCES_BY_FAMILY.items() for name in sources}
