"""A second mix, in the manner of Vision-Flan: many small tasks of even size, one instruction each.

Images are those of the default mix (`coincide.demo.mini_mix`), split in the same way; the tasks ask them other
things. Evaluation is by family: questions of all tasks that ask of the same kind of image.
"""

from coincide.demo.mini_mix import (
    COLOURS,
    OPPOSITES,
    SHAPES,
    WORDS,
    Example,
    Source,
    draw_bar_chart,
    draw_digits,
    draw_scene,
    draw_word,
    easy_vqa_examples,
    where,
    write_mix,
)

NUMBERS = "zero one two three four five six seven eight nine".split()


def write_even_mix(output, *, samples, test_samples, validation_samples, seed):
    """Write the mix: train.json, images/, evaluation/ and validation/<family>.parquet; see `write_mix`.

    Args:
        test_samples, validation_samples: questions of each task.
    """
    size = {"train": samples, "test": test_samples, "validation": validation_samples}
    write_mix(output, SOURCES, size, seed=seed, family=lambda name: FAMILY_OF[name])


def _yes(holds):
    return "yes" if holds else "no"


# --- what a family draws: (rng, split) -> (image, facts); None passes a drawing over -------------------


def _one_digit(rng, split):
    image, (digit,) = draw_digits(rng, split, 1, (64, 64))
    return image, digit


def _two_digits(rng, split):
    return draw_digits(rng, split, 2, (32, 64))


def _digit_grid(rng, split):
    return draw_digits(rng, split, int(rng.integers(1, 8)), (16, 16))


def _scene(rng, split):
    return draw_scene(rng, int(rng.integers(2, 7)), cells=4)


def _pair(rng, split):
    image, things = draw_scene(rng, 2)
    return None if things[0][1] == things[1][1] else (image, things)


def _chart(rng, split):
    image, names, heights = draw_bar_chart(rng)
    return image, list(zip(names, map(int, heights)))


def _sign(rng, split):
    return draw_word(rng)


def _no_image(rng, split):
    return None, None


# --- tasks: (rng, facts) -> (question, answer) -----------------------------------------------------------


def _is_above(rng, digit):
    bound = int(rng.integers(1, 9))
    return f"is the digit above {bound}?", _yes(digit > bound)


def _bar(ask):
    def task(rng, bars):
        i, j = rng.choice(3, 2, replace=False)
        return ask(bars, bars[i], bars[j])

    return task


def _of_shape(rng, things):
    shape = SHAPES[rng.integers(len(SHAPES))]
    return shape, [thing for thing in things if thing[1] == shape]


def _count_shape(rng, things):
    shape, found = _of_shape(rng, things)
    return f"give the number of {shape}s.", str(len(found))


def _any_shape(rng, things):
    shape, found = _of_shape(rng, things)
    return f"can you find a {shape}?", _yes(found)


def _count_colour(rng, things):
    colour = things[rng.integers(len(things))][0]
    return f"how many things are {colour}?", str(sum(thing[0] == colour for thing in things))


def _any_colour(rng, things):
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    return f"is anything {colour}?", _yes(any(thing[0] == colour for thing in things))


def _more(rng, things):
    a, b = (SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False))
    counts = [sum(thing[1] == shape for thing in things) for shape in (a, b)]
    return f"are there more {a}s than {b}s?", _yes(counts[0] > counts[1])


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


FAMILIES = {
    "digit": (_one_digit, {
        "read": lambda rng, d: ("transcribe the digit.", str(d)),
        "word": lambda rng, d: ("write the digit as a word.", NUMBERS[d]),
        "parity": lambda rng, d: ("even or odd?", "odd" if d % 2 else "even"),
        "next": lambda rng, d: ("which number follows this one?", str(d + 1)),
        "double": lambda rng, d: ("double the number shown.", str(2 * d)),
        "above": _is_above,
    }),
    "two_digits": (_two_digits, {
        "sum": lambda rng, d: ("give the total of both digits.", str(d[0] + d[1])),
        "difference": lambda rng, d: ("by how much do the digits differ?", str(abs(d[0] - d[1]))),
        "larger": lambda rng, d: ("give the larger digit.", str(max(d))),
        "smaller": lambda rng, d: ("give the smaller digit.", str(min(d))),
        "left": lambda rng, d: ("read the left digit.", str(d[0])),
        "right": lambda rng, d: ("read the right digit.", str(d[1])),
        "same": lambda rng, d: ("are both digits the same?", _yes(d[0] == d[1])),
    }),
    "digit_grid": (_digit_grid, {
        "count": lambda rng, d: ("number of digits on the page:", str(len(d))),
        "many": lambda rng, d: ("are there more than three digits?", _yes(len(d) > 3)),
        "parity": lambda rng, d: ("is the number of digits even or odd?", "odd" if len(d) % 2 else "even"),
    }),
    "sign": (_sign, {
        "read": lambda rng, s: ("copy the text.", s[0]),
        "colour": lambda rng, s: ("in which colour is the text?", s[1]),
        "first": lambda rng, s: ("which letter comes first in the text?", s[0][0]),
        "last": lambda rng, s: ("which letter comes last in the text?", s[0][-1]),
        "length": lambda rng, s: ("how many letters has the text?", str(len(s[0]))),
        "spell": lambda rng, s: ("spell out the text.", " ".join(s[0])),
    }),
    "chart": (_chart, {
        "tallest": lambda rng, b: ("name the colour of the tallest bar.", max(b, key=lambda bar: bar[1])[0]),
        "shortest": lambda rng, b: ("name the colour of the shortest bar.", min(b, key=lambda bar: bar[1])[0]),
        "maximum": lambda rng, b: ("give the largest value in the chart.", str(max(v for _, v in b))),
        "minimum": lambda rng, b: ("give the smallest value in the chart.", str(min(v for _, v in b))),
        "total": lambda rng, b: ("add up all bars.", str(sum(v for _, v in b))),
        "value": _bar(lambda bars, a, b: (f"value of {a[0]}:", str(a[1]))),
        "higher": _bar(lambda bars, a, b: (f"is {a[0]} higher than {b[0]}?", _yes(a[1] > b[1]))),
        "colours": lambda rng, b: ("list the colours of the bars from left to right.", " ".join(name for name, _ in b)),
    }),
    "scene": (_scene, {
        "count": lambda rng, t: ("total number of shapes:", str(len(t))),
        "count_shape": _count_shape,
        "any_shape": _any_shape,
        "count_colour": _count_colour,
        "any_colour": _any_colour,
        "more": _more,
    }),
    "pair": (_pair, {
        "colour": lambda rng, t: (f"name the colour of the {t[0][1]}.", t[0][0]),
        "other": lambda rng, t: (f"which shape is not the {t[0][1]}?", t[1][1]),
        "place": lambda rng, t: (f"in which corner is the {t[0][1]}?", where(*t[0][2:])),
        "same_row": lambda rng, t: ("do both shapes stand in the same row?", _yes(t[0][2] == t[1][2])),
        "same_colour": lambda rng, t: ("do both shapes have the same colour?", _yes(t[0][0] == t[1][0])),
        "caption": lambda rng, t: ("write a caption.", " and ".join(
            f"a {colour} {shape}" for colour, shape, *_ in sorted(t, key=lambda thing: thing[2:]))),
    }),
    "text_only": (_no_image, {
        "sum": _sum, "product": _product, "larger": _larger, "opposite": _opposite, "letters": _letters,
        "last_letter": _last_letter,
    }),
}  # fmt: skip
EASY_VQA = {"shape": "what shape", "colour": "what color", "what_is": "what is", "there": "is there", "contain": "does"}


def _make(draw, task):
    def examples(rng, split):
        while True:
            drawn = draw(rng, split)
            if drawn is not None:
                image, facts = drawn
                yield Example(image, [task(rng, facts)])

    return examples


def _make_easy_vqa(beginning):
    def examples(rng, split):
        return (e for e in easy_vqa_examples(rng, split) if e.turns[0][0].startswith(beginning))

    return examples


SOURCES = {f"easy_vqa_{name}": Source(_make_easy_vqa(beginning), 1) for name, beginning in EASY_VQA.items()}
FAMILY_OF = dict.fromkeys(SOURCES, "easy_vqa")
for family, (draw, tasks) in FAMILIES.items():
    for name, task in tasks.items():
        SOURCES[f"{family}_{name}"] = Source(_make(draw, task), 1)
        FAMILY_OF[f"{family}_{name}"] = family
