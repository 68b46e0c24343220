"""The images of the demo: scanned digits, words, bar charts and scenes of coloured shapes, with what they show.

The order of the random draws in a function is fixed: another order would make other images from the same seed.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 64  # pixels per side, as in easy-VQA
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 140, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 0),
    "black": (0, 0, 0),
    "purple": (140, 60, 180),
}
SHAPES = ("circle", "square", "triangle")
WORDS = (
    "stop exit taxi open sale bank cafe park milk bread hotel music north south east west "
    "left right push pull red blue gold iron fish bird tree moon star ship"
).split()

# Range of the scans of each split. The 1,797 scans are in the order of their writers. Test and validation share
# scans but no image, because `coincide.demo.mix` skips images of other splits.
DIGIT_SCANS = {"test": (0, 300), "validation": (0, 300), "pretrain": (300, 800), "train": (800, 1797)}
SCAN_MAXIMUM = 16  # value of a black pixel in a scan
# Size of a digit in pixels (width, height): one digit per image, two next to each other, several on a grid.
ONE_DIGIT = (64, 64)
TWO_DIGITS = (32, 64)
DIGIT_GRID = (16, 16)
DIGIT_GRID_MAXIMUM = 7  # digits on a grid

WORD_FONT_SIZE = 19
WORD_LEFT, WORD_TOP = 4, 16

BARS = 3
BAR_VALUES = range(1, 6)
BAR_WIDTH, BAR_SPACING, FIRST_BAR_LEFT = 11, 18, 8
CHART_LEFT, CHART_RIGHT, CHART_BOTTOM = 4, 63, 60
PIXELS_PER_VALUE = 11


class Word(NamedTuple):
    """A word on a sign."""

    text: str
    colour: str


class Bar(NamedTuple):
    """A bar of a chart."""

    colour: str
    value: int


class Shape(NamedTuple):
    """A shape of a scene, in a cell of its grid."""

    colour: str
    kind: str
    row: int
    column: int


def draw_digits(
    rng: np.random.Generator, split: str, count: int, size: tuple[int, int]
) -> tuple[Image.Image, list[int]]:
    """Draw scanned handwritten digits on a grid.

    Args:
        rng: random generator.
        split: each split has its scans (see DIGIT_SCANS).
        count: number of digits.
        size: width and height of a digit in pixels.

    Returns:
        the image, and the values of the digits from left to right and top to bottom.
    """
    scans, values = _load_scans()
    chosen = rng.choice(np.arange(*DIGIT_SCANS[split]), count)
    canvas = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 255)
    width, height = size
    columns, rows = IMAGE_SIZE // width, IMAGE_SIZE // height
    cells = np.sort(rng.choice(columns * rows, count, replace=False))
    for cell, scan in zip(cells, chosen):
        digit = Image.fromarray(scans[scan]).resize(size, Image.Resampling.BICUBIC)
        row, column = divmod(cell, columns)
        canvas.paste(digit, (column * width, row * height))
    return canvas.convert("RGB"), [int(values[scan]) for scan in chosen]


def digit_drawer(size: tuple[int, int], least: int, most: int) -> Callable[[np.random.Generator, str], tuple]:
    """A function of (random generator, split) that draws `least` to `most` digits (see `draw_digits`)."""
    return lambda rng, split: draw_digits(rng, split, int(rng.integers(least, most + 1)), size)


@cache
def _load_scans():
    """scikit-learn's digits: (n, 8, 8) uint8 scans, black on white, and (n,) values."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (255 - data.images * (255 / SCAN_MAXIMUM)).astype(np.uint8), data.target


def draw_word(rng: np.random.Generator) -> tuple[Image.Image, Word]:
    """Draw one of WORDS in a colour on a light background."""
    text = WORDS[rng.integers(len(WORDS))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    image = _light_canvas(rng, 225)
    position = (WORD_LEFT, WORD_TOP + int(rng.integers(0, 4)))
    font = ImageFont.load_default(size=WORD_FONT_SIZE)
    ImageDraw.Draw(image).text(position, text, fill=COLOURS[colour], font=font)
    return image, Word(text, colour)


def _light_canvas(rng, darkest):
    """An empty image whose colour values are between `darkest` and 255."""
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(int(value) for value in rng.integers(darkest, 256, 3)))


def draw_bar_chart(rng: np.random.Generator) -> tuple[Image.Image, list[Bar]]:
    """Draw a chart of three bars with different colours and values; returns the bars from left to right."""
    colours = rng.choice(list(COLOURS), BARS, replace=False)
    values = rng.choice(np.array(BAR_VALUES), BARS, replace=False)
    bars = [Bar(str(colour), int(value)) for colour, value in zip(colours, values)]
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    draw = ImageDraw.Draw(image)
    for value in BAR_VALUES:
        height = CHART_BOTTOM - PIXELS_PER_VALUE * value
        draw.line([(CHART_LEFT, height), (CHART_RIGHT, height)], fill=(215, 215, 215))
    for i, bar in enumerate(bars):
        left = FIRST_BAR_LEFT + BAR_SPACING * i + int(rng.integers(0, 3))
        top = CHART_BOTTOM - PIXELS_PER_VALUE * bar.value
        draw.rectangle([left, top, left + BAR_WIDTH, CHART_BOTTOM], fill=COLOURS[bar.colour])
    draw.line([(CHART_LEFT, CHART_BOTTOM), (CHART_RIGHT, CHART_BOTTOM)], fill="black")
    return image, bars


def draw_scene(rng: np.random.Generator, count: int, *, cells: int = 2) -> tuple[Image.Image, list[Shape]]:
    """Draw shapes on a grid; no two have the same colour and kind.

    Args:
        rng: random generator.
        count: number of shapes.
        cells: cells per side of the grid.
    """
    cell_size = IMAGE_SIZE // cells
    positions = rng.choice(cells * cells, count, replace=False)
    variants = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    image = _light_canvas(rng, 235)
    draw = ImageDraw.Draw(image)
    shapes = []
    for position, variant in zip(positions, variants):
        kind, colour = divmod(variant, len(COLOURS))
        row, column = divmod(int(position), cells)
        shape = Shape(list(COLOURS)[colour], SHAPES[kind], row, column)
        jitter_x, jitter_y = map(int, rng.integers(-1, 2, 2))
        x = column * cell_size + cell_size // 2 + jitter_x
        y = row * cell_size + cell_size // 2 + jitter_y
        radius = int(rng.integers(cell_size // 2 - cell_size // 8, cell_size // 2))
        _draw_shape(draw, shape, x, y, radius)
        shapes.append(shape)
    return image, shapes


def scene_drawer(least: int, most: int, cells: int) -> Callable[[np.random.Generator, str], tuple]:
    """A function of (random generator, split) that draws `least` to `most` shapes (see `draw_scene`)."""
    return lambda rng, split: draw_scene(rng, int(rng.integers(least, most + 1)), cells=cells)


def relations(first: Shape, second: Shape) -> list[str]:
    """How the first of two shapes lies to the second: left of or right of, then above or below."""
    found = []
    if first.column != second.column:
        found.append("left of" if first.column < second.column else "right of")
    if first.row != second.row:
        found.append("above" if first.row < second.row else "below")
    return found


def count_kinds(shapes: list[Shape]) -> dict[str, int]:
    """The number of shapes of each kind."""
    return {kind: sum(shape.kind == kind for shape in shapes) for kind in SHAPES}


def tallest(bars: list[Bar]) -> Bar:
    """The bar with the largest value."""
    return max(bars, key=lambda bar: bar.value)


def shortest(bars: list[Bar]) -> Bar:
    """The bar with the smallest value."""
    return min(bars, key=lambda bar: bar.value)


def _draw_shape(draw, shape, x, y, radius):
    colour = COLOURS[shape.colour]
    box = [x - radius, y - radius, x + radius, y + radius]
    if shape.kind == "circle":
        draw.ellipse(box, fill=colour)
    elif shape.kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)


def corner(shape: Shape) -> str:
    """Words for the cell of a shape on a grid of two by two: top left, …"""
    return f"{('top', 'bottom')[shape.row]} {('left', 'right')[shape.column]}"
