"""The default dataset: a visual-instruction-tuning mix in LLaVA's format, small and real enough to select from.

Two sources are data that installed packages carry (easy-VQA; scikit-learn's scanned handwritten
digits), the others are renderings with known answers for skills that a real mix has and these lack.
As in a real mix, sources are unequal in size, phrased in several ways and partly redundant.

Four splits with no image in common: `train` is offered for selection, `pretrain` is set aside for
the models that the demo builds, `test` is what the evaluation tasks ask, `validation` what settings
may be tuned on.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from coincide.base.files import replacing
from coincide.dataset.conversation import IMAGE_MARK

SIZE = 64  # pixels a side, as easy-VQA's images have
SPLITS = ("test", "pretrain", "train", "validation")
ASKED = {"test": "evaluation", "validation": "validation"}  # split -> folder of its questions
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
OPPOSITES = [("hot", "cold"), ("up", "down"), ("left", "right"), ("big", "small"), ("open", "shut"), ("new", "old")]
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass
class Example:
    """One image (or none) with its conversation: pairs of question and answer."""

    image: Image.Image | Path | None
    turns: list[tuple[str, str]]
    facts: list[str] = field(default_factory=list)  # what a caption must mention


@dataclass(frozen=True)
class Source:
    """A sub-dataset: how to make its examples, and its share of the train split."""

    make: object  # (rng, split) -> iterator of Example, without end or until its data is used up
    weight: int


def write_mini_mix(output, *, samples, pretrain_samples, test_samples, validation_samples, seed):
    """Write the mix: train.json, pretrain.json, images/, evaluation/ and validation/<source>.parquet.

    Args:
        output: folder, made anew; appears whole or not at all.
        samples: size of train.json.
        pretrain_samples: size of pretrain.json.
        test_samples: questions of each evaluation task.
        validation_samples: questions of each task for tuning.
        seed: all is a function of it.
    """
    size = {"train": samples, "pretrain": pretrain_samples, "test": test_samples, "validation": validation_samples}
    write_mix(output, SOURCES, size, seed=seed)


def write_mix(output, sources, size, *, seed, family=lambda name: name):
    """Write a mix of sources.

    Args:
        output: folder, made anew; appears whole or not at all.
        sources: dict of name -> Source.
        size: samples of the splits train and pretrain, questions of each source of test and validation; a split
            that is not named is not written.
        seed: all is a function of it.
        family: function of a source's name: under which its questions stand.
    """
    weights = sum(source.weight for source in sources.values())
    with replacing(output) as folder:
        folder.mkdir()
        owner: dict[bytes, str] = {}  # digest of an image's pixels -> the split that has it
        records: dict[str, list[dict]] = {split: [] for split in size if split not in ASKED}
        questions: dict[str, list[Example]] = {}
        for name, source in sources.items():
            for split in [split for split in SPLITS if split in size]:
                count = size[split] if split in ASKED else size[split] * source.weight // weights
                if split not in ASKED and name == next(iter(sources)):  # what the divisions left over
                    others = list(sources.values())[1:]
                    count = size[split] - sum(size[split] * other.weight // weights for other in others)
                rng = np.random.default_rng([seed, zlib.crc32(name.encode()), SPLITS.index(split)])
                examples = _unshared(source.make(rng, split), split, owner, count, name)
                if split in ASKED:
                    questions.setdefault(f"{ASKED[split]}/{family(name)}.parquet", []).extend(examples)
                else:
                    records[split] += _write_images(folder / "images", name, split, examples)
        for path, examples in questions.items():
            _write_questions(folder / path, examples)
        for split, rows in records.items():
            order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(rows))
            (folder / f"{split}.json").write_text(json.dumps([rows[i] for i in order], indent=1))


def _unshared(examples: Iterator[Example], split, owner, count, name):
    """Take `count` examples, passing over those whose image another split already has."""
    taken = []
    while len(taken) < count:
        example = next(examples, None)
        if example is None:
            raise ValueError(f"source {name} has only {len(taken)} examples for {split}, {count} were asked for")
        if example.image is not None:
            pixels = example.image
            if isinstance(pixels, Path):
                pixels = _open(pixels)
            digest = hashlib.sha256(pixels.tobytes()).digest()
            if owner.setdefault(digest, split) != split:
                continue
        taken.append(example)
    return taken


def _write_images(folder, name, split, examples):
    (folder / name).mkdir(parents=True, exist_ok=True)
    records, written = [], {}
    for i, example in enumerate(examples):
        record = {"id": f"{name}-{split}-{i:05d}", "source": name, "conversations": []}
        if example.image is not None:
            key = example.image if isinstance(example.image, Path) else example.image.tobytes()
            if key not in written:
                written[key] = f"{name}/{split}-{len(written):05d}.png"
                if isinstance(example.image, Path):
                    shutil.copyfile(example.image, folder / written[key])
                else:
                    example.image.save(folder / written[key], compress_level=1)
            record["image"] = written[key]
        for j, (question, answer) in enumerate(example.turns):
            mark = f"{IMAGE_MARK}\n" if j == 0 and example.image is not None else ""
            record["conversations"] += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        records.append(record)
    return records


def _write_questions(path, examples):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    path.parent.mkdir(exist_ok=True)
    rows = [
        {
            "image": None if e.image is None else _open(e.image) if isinstance(e.image, Path) else e.image,
            "question": e.turns[0][0],
            "answer": e.turns[0][1],
            "facts": e.facts,
        }
        for e in examples
    ]
    features = Features(
        {
            "image": ImageFeature(),
            "question": Value("string"),
            "answer": Value("string"),
            "facts": List(Value("string")),
        }
    )
    Dataset.from_list(rows, features=features).to_parquet(path)


def _open(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def _pick(rng, options):
    return options[rng.integers(len(options))]


# --- easy-VQA -------------------------------------------------------------------------------------


def easy_vqa_examples(rng, split):
    """Questions of the package easy-vqa, in an order of rng; a split has images of its own."""
    import easy_vqa

    if split in ASKED:
        (questions, answers, ids), paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
        keep = np.ones(len(ids), dtype=bool)
    else:
        (questions, answers, ids), paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
        keep = (np.array(ids) % 4 == 0) == (split == "pretrain")  # a quarter of the images is set aside
    for i in rng.permutation(np.flatnonzero(keep)):
        yield Example(Path(paths[ids[i]]), [(questions[i], answers[i])])


# --- handwritten digits ---------------------------------------------------------------------------


@cache
def _digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (255 - data.images * (255 / 16)).astype(np.uint8), data.target


def _scans(split):
    """Positions of the scans that a split may use: three parts of the 1,797, by writer order."""
    part = {"test": (0, 300), "validation": (0, 300), "pretrain": (300, 800), "train": (800, 1797)}[split]
    return np.arange(*part)


def draw_digits(rng, split, count, size):
    """Scans on a grid of cells of `size` (width, height) pixels: the image and the digits' values."""
    images, labels = _digits()
    chosen = rng.choice(_scans(split), count)
    canvas = Image.new("L", (SIZE, SIZE), 255)
    width, height = size
    columns = SIZE // width
    cells = np.sort(rng.choice(columns * (SIZE // height), count, replace=False))
    for cell, scan in zip(cells, chosen):
        digit = Image.fromarray(images[scan]).resize(size, Image.Resampling.BICUBIC)
        canvas.paste(digit, ((cell % columns) * width, (cell // columns) * height))
    return canvas.convert("RGB"), [int(labels[s]) for s in chosen]


def _digits_read(rng, split):
    ask = ["which digit is this?", "what number is written here?", "read the number.", "what does the image say?"]
    while True:
        image, values = draw_digits(rng, split, 1, (64, 64))
        yield Example(image, [(_pick(rng, ask), str(values[0]))])


def _digits_add(rng, split):
    ask = ["what is the sum of the two digits?", "add the digits.", "what do you get if you add the two numbers?"]
    while True:
        image, values = draw_digits(rng, split, 2, (32, 64))
        yield Example(image, [(_pick(rng, ask), str(sum(values)))])


def _digits_count(rng, split):
    ask = ["how many digits are there?", "count the digits.", "how many numbers are written here?"]
    while True:
        image, values = draw_digits(rng, split, int(rng.integers(1, 8)), (16, 16))
        yield Example(image, [(_pick(rng, ask), str(len(values)))])


# --- renderings -----------------------------------------------------------------------------------


def draw_word(rng):
    """A word on a light ground: the image, and (word, colour)."""
    word, (name, colour) = _pick(rng, WORDS), _pick(rng, list(COLOURS.items()))
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(225, 256, 3)))
    font = ImageFont.load_default(size=19)
    place = (4, 16 + int(rng.integers(0, 4)))
    ImageDraw.Draw(image).text(place, word, fill=colour, font=font)
    return image, (word, name)


def _text_reading(rng, split):
    ask = ["what does the sign say?", "read the word.", "which word is written here?", "what is written in the image?"]
    while True:
        image, (word, _) = draw_word(rng)
        yield Example(image, [(_pick(rng, ask), word)])


def draw_bar_chart(rng):
    """Three bars: the image, and the colours and values (1 to 5) from left to right."""
    names = rng.choice(list(COLOURS), 3, replace=False)
    heights = rng.choice(np.arange(1, 6), 3, replace=False)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    for level in range(1, 6):
        draw.line([(4, 60 - 11 * level), (63, 60 - 11 * level)], fill=(215, 215, 215))
    for i, (name, height) in enumerate(zip(names, heights)):
        left = 8 + 18 * i + int(rng.integers(0, 3))
        draw.rectangle([left, 60 - 11 * int(height), left + 11, 60], fill=COLOURS[name])
    draw.line([(4, 60), (63, 60)], fill="black")
    return image, [str(name) for name in names], heights


def _bar_chart(rng, split):
    tallest = ["which bar is the tallest?", "what colour is the highest bar?", "which colour has the largest value?"]
    shortest = ["which bar is the shortest?", "what colour is the lowest bar?"]
    value = ["what is the value of the {} bar?", "how high is the {} bar?", "read the {} bar."]
    while True:
        image, names, heights = draw_bar_chart(rng)
        kind = rng.integers(4)
        if kind == 0:
            turn = (_pick(rng, tallest), names[heights.argmax()])
        elif kind == 1:
            turn = (_pick(rng, shortest), names[heights.argmin()])
        else:
            i = int(rng.integers(3))
            turn = (_pick(rng, value).format(names[i]), str(heights[i]))
        yield Example(image, [turn])


def _draw_shape(draw, shape, colour, centre, radius):
    x, y = centre
    box = [x - radius, y - radius, x + radius, y + radius]
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=COLOURS[colour])


def draw_scene(rng, count, *, cells=2):
    """Shapes of different kinds on a grid: the image, and (colour, shape, row, column) of each."""
    step = SIZE // cells
    places = rng.choice(cells * cells, count, replace=False)
    kinds = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(235, 256, 3)))
    draw = ImageDraw.Draw(image)
    things = []
    for place, kind in zip(places, kinds):
        colour, shape = list(COLOURS)[kind % len(COLOURS)], SHAPES[kind // len(COLOURS)]
        row, column = int(place) // cells, int(place) % cells
        jitter = rng.integers(-1, 2, 2)
        centre = (column * step + step // 2 + int(jitter[0]), row * step + step // 2 + int(jitter[1]))
        _draw_shape(draw, shape, colour, centre, int(rng.integers(step // 2 - step // 8, step // 2)))
        things.append((colour, shape, row, column))
    return image, things


def _counting(rng, split):
    ask = ["how many shapes are there?", "count the objects.", "how many objects do you see?"]
    ask_one = ["how many {}s are there?", "count the {}s.", "what is the number of {}s?"]
    while True:
        image, things = draw_scene(rng, int(rng.integers(1, 7)), cells=4)
        if rng.random() < 0.5:
            turn = (_pick(rng, ask), str(len(things)))
        else:
            shape = _pick(rng, SHAPES)
            turn = (_pick(rng, ask_one).format(shape), str(sum(t[1] == shape for t in things)))
        yield Example(image, [turn])


def _spatial(rng, split):
    ask = ["is the {} {} {} the {} {}?", "do you see the {} {} {} the {} {}?"]
    while True:
        image, (a, b) = draw_scene(rng, 2)
        across = a[3] != b[3] and (a[2] == b[2] or rng.random() < 0.5)
        relation = _pick(rng, ["left of", "right of"] if across else ["above", "below"])
        holds = {"left of": a[3] < b[3], "right of": a[3] > b[3], "above": a[2] < b[2], "below": a[2] > b[2]}[relation]
        yield Example(image, [(_pick(rng, ask).format(*a[:2], relation, *b[:2]), "yes" if holds else "no")])


def where(row, column):
    """Words for a place on a grid of two by two."""
    return f"{['top', 'bottom'][row]} {['left', 'right'][column]}"


def _caption(rng, split):
    ask = ["describe the image.", "what do you see? answer in sentences.", "give a description of the picture."]
    while True:
        image, things = draw_scene(rng, int(rng.integers(2, 4)))
        things.sort(key=lambda t: t[2:])
        sentences = [f"there is a {c} {s} in the {where(row, column)}." for c, s, row, column in things]
        sentences.insert(0, f"the image shows {len(things)} shapes.")
        facts = [f"{len(things)} shapes", *(f"{c} {s}" for c, s, _, _ in things)]
        yield Example(image, [(_pick(rng, ask), " ".join(sentences))], facts)


def _conversation(rng, split):
    while True:
        image, things = draw_scene(rng, 3)
        colour, shape, row, column = things[0]
        shapes = [t[1] for t in things]
        turns = [
            (_pick(rng, ["what colour is the {}?", "which colour does the {} have?"]).format(shape), colour),
            (_pick(rng, ["how many shapes are there in all?", "how many things can you count?"]), str(len(things))),
            (f"where is the {colour} {shape}?", where(row, column)),
            (_pick(rng, ["is there a {} in the picture?", "do you see a {}?"]).format(other := _pick(rng, SHAPES)),
             "yes" if other in shapes else "no"),
        ]  # fmt: skip
        if shapes.count(shape) > 1:  # "the circle" must be one
            continue
        rng.shuffle(turns)
        yield Example(image, [tuple(turn) for turn in turns[: int(rng.integers(2, 5))]])


def _text_only(rng, split):
    while True:
        kind = rng.integers(4)
        if kind == 0:
            a, b = (int(v) for v in rng.integers(0, 10, 2))
            turn = (_pick(rng, ["what is {} plus {}?", "add {} and {}."]).format(a, b), str(a + b))
        elif kind == 1:
            a, b = _pick(rng, OPPOSITES + [pair[::-1] for pair in OPPOSITES])
            turn = (_pick(rng, ["what is the opposite of {}?", "give the opposite of {}."]).format(a), b)
        elif kind == 2:
            word = _pick(rng, WORDS)
            turn = (
                _pick(rng, ["what is the first letter of {}?", "which letter does {} begin with?"]).format(word),
                word[0],
            )
        else:
            n = int(rng.integers(1, 10))
            turn = (_pick(rng, ["write {} in words.", "spell the number {}."]).format(10 * n), TENS[n])
        yield Example(None, [turn])


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
