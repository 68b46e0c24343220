"""LLaVA conversations: turns, roles, the image placeholder, and the conversion of other records to LLaVA's."""

import json
import re
from typing import Any
from urllib.parse import unquote

from coincide.dataset.json_stream import JsonStreamError, parse_json
from coincide.dataset.samples import Reason, UnreadableRow

IMAGE_MARK = "<image>"  # placeholder of an image in a human turn
SYSTEM = "system"  # speaker of a turn before the first question
# speaker in LLaVA's format -> role in a chat template
ROLES = {"human": "user", "gpt": "assistant", SYSTEM: "system"}
# any format's name of a speaker -> LLaVA's
SPEAKERS = {
    **dict.fromkeys(["human", "user"], "human"),
    **dict.fromkeys(["gpt", "assistant", "model", "bot", "chatgpt"], "gpt"),
    **dict.fromkeys([SYSTEM, "developer"], SYSTEM),
}
TURN_KEYS = ("conversations", "messages", "texts")  # keys of the turns; the first one with a value counts
# keys of the question and of the answer, in records with one of each (Alpaca, and ms-swift's query and response)
PROMPT_KEYS = {"instruction": "output", "query": "response"}
IMAGE_PARTS = ("image", "image_url", "input_image")  # types of the parts of a message
TEXT_PARTS = ("text", "input_text", "output_text")
# Keys of media that are not read. A sample with one of them must not pass as a sample with text only.
MEDIUM_KEYS = {
    **dict.fromkeys(["video", "videos", "video_path", "video_url"], "video"),
    **dict.fromkeys(["audio", "audios", "audio_path", "audio_url", "input_audio", "speech", "sound"], "audio"),
}
# keys that name images in other programs
OTHER_IMAGE_KEYS = ("image_path", "image_paths", "image_file", "image_url", "image_urls", "img", "img_path", "pixels")
# Marks of media in a text. HTML has <video>, <audio>, <object> and <img>, too: these count only where placeholders are
# written, at the start of a line and without a closing tag, or with what HTML does not have.
MEDIUM_MARKS = (
    (re.compile(r"(?m)^\s*(?:<image>\s*)*<(video|audio|speech)>(?!.*</\1>)", re.DOTALL), "a placeholder of {}"),
    (re.compile(r"<\|?(video|audio)_?(?:pad|bos|start|\d+)\|?>"), "a placeholder of {}"),
    (re.compile(r"<img>([^<>]+)</img>"), "an image that is named inside the text"),
    (
        re.compile(
            r"<\|(?:image|image_pad|image_\d+|vision_start|vision_end|vision_pad)\|>"
            r"|<IMG_CONTEXT>|<ImageHere>|<image_placeholder>|<image_soft_token>|<start_of_image>"
        ),
        "a token with which models mark images",
    ),
    (
        re.compile(r"<(ref-object|bbox|region\d*|obj_vis)>(?!.*</\1>)", re.DOTALL),
        "a mark that stands for a region of an image",
    ),
)


def text_length(conversations: list[dict[str, Any]]) -> int:
    """Number of characters in all turns; samples are sorted by it before they are tokenised."""
    return sum(len(turn["value"]) for turn in conversations)


def to_llava(record: Any) -> Any:
    """Convert a record of any supported format to LLaVA's.

    Args:
        record: any JSON value. It is not validated: what is missing or wrong is kept as it is, and
            `coincide.dataset.record_checks.check_record` reports it.

    Returns:
        a record with `image` (a name or a list of names) and `conversations` (a list of {"from", "value"}), and the
        other keys of the record. A value without turns is returned unchanged, and an UnreadableRow for a record that
        contradicts itself, or that other programs cannot read as JSON.
    """
    if not isinstance(record, dict):
        return record
    fault = _find_json_fault(record)
    if fault:
        return UnreadableRow(fault)
    key = next((key for key in TURN_KEYS if record.get(key)), None)
    if key is None:  # an empty list still says that this is where the turns are
        key = next((key for key in TURN_KEYS if record.get(key) is not None), None)
    if key is None:
        turns, used = _turns_of_prompt(record)
    else:
        turns, used = _to_list(record[key]), set(TURN_KEYS)
    if not isinstance(turns, list):
        return record
    if key is not None and isinstance(record[key], str):  # the escapes of its JSON are text only now
        fault = _find_json_fault(turns)
        if fault:
            return UnreadableRow(fault)
    converted = {name: value for name, value in record.items() if name not in {*used, "images", "image", SYSTEM}}
    pairs = [pair for turn in turns for pair in _to_llava_turns(turn)]
    llava_turns, part_names = [turn for turn, _ in pairs], [name for _, names in pairs for name in names]
    images = _merge_images(record.get("image"), record.get("images"), part_names)
    if isinstance(images, UnreadableRow):
        return images
    system = record.get(SYSTEM)
    if isinstance(system, str) and system:
        first = llava_turns[0] if llava_turns else None
        if not (isinstance(first, dict) and first.get("from") == SYSTEM):
            llava_turns.insert(0, {"from": SYSTEM, "value": system})
        elif first["value"] != system:
            return UnreadableRow("`system` and the first turn are two different system prompts", Reason.MALFORMED_TURNS)
    elif system not in (None, ""):
        converted[SYSTEM] = system
    if images not in (None, []):
        converted["image"] = images
    return {**converted, "conversations": _with_image_marks(llava_turns, converted.get("image"))}


def _find_json_fault(record):
    """Why other programs cannot read a record as JSON, None if they can."""
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        return f"text that is not valid Unicode: {error.object[max(error.start - 20, 0) : error.end]!r}"
    except (ValueError, TypeError, RecursionError) as error:
        return f"the record cannot be written as JSON: {error}"
    return None


def image_list(images: Any) -> list[Any]:
    """The list of names in the value of `image` or `images`; None, "" and empty entries are no image.

    Entries that are no names are kept as they are.
    """
    if images is None or images == "":
        return []
    names = images if isinstance(images, list) else [images]
    return [_image_name(name) for name in names if not _is_no_image(name)]


def _is_no_image(image):
    """Whether a value stands for no image: null, "", and {"bytes": null, "path": null}, as `datasets` writes it."""
    if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:
        return not any(image.values())
    return image is None or image == ""


def _image_name(image):
    """The name of an image: of {"path": …} the path, of a file URL its path."""
    if isinstance(image, dict) and image.get("bytes") is None and isinstance(image.get("path"), str):
        image = image["path"]
    if isinstance(image, str) and image.startswith("file://"):
        return unquote(image.removeprefix("file://"))
    return image


def _merge_images(image, images, part_names):
    """The value of `image`, from the keys `image` and `images` and the names in the messages' parts.

    Returns:
        a name, a list of names, any other value that is no name, or an UnreadableRow where they contradict each other.
    """
    sources = [names for names in map(image_list, (image, images, part_names)) if names]
    if not sources:
        return None
    if any(names != sources[0] for names in sources):
        return UnreadableRow("`image`, `images` and the parts of the messages name different images; keep one of them")
    if image_list(image) == image and image:
        return image  # a list stays a list
    return sources[0][0] if len(sources[0]) == 1 else sources[0]


def _turns_of_prompt(record):
    """(turns, keys that they come from) of a record with one question and one answer; (None, …) without them."""
    for question_key, answer_key in PROMPT_KEYS.items():
        question, answer = record.get(question_key), record.get(answer_key)
        if not (isinstance(question, str) and isinstance(answer, str)):
            continue
        used = {question_key, answer_key, "history"}
        if question_key == "instruction":
            used.add("input")
            if isinstance(record.get("input"), str) and record["input"]:
                question = f"{question}\n{record['input']}" if question else record["input"]
        history = record.get("history") or []
        if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
            return None, set()
        pairs = [*history, [question, answer]]
        speakers = ("human", "gpt")
        return [{"from": who, "value": text} for pair in pairs for who, text in zip(speakers, pair)], used
    return None, set()


def _to_list(turns):
    """The list of turns in the value of a turn key: a list, its JSON text, or an object of lists of equal length."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            return parse_json(turns)
        except JsonStreamError:
            return turns
    if not isinstance(turns, dict) or not all(isinstance(value, list) for value in turns.values()):
        return turns
    is_table = len({len(value) for value in turns.values()}) == 1
    return [dict(zip(turns, values)) for values in zip(*turns.values())] if is_table else turns


def _to_llava_turns(turn):
    """(LLaVA turn, names of images in it) pairs of one entry: two for a question-answer pair, otherwise one."""
    if not isinstance(turn, dict):
        return [(turn, [])]
    if "user" in turn and "assistant" in turn:
        return [({"from": "human", "value": turn["user"]}, []), ({"from": "gpt", "value": turn["assistant"]}, [])]
    speaker = _first_value(turn, "from", "role")
    if isinstance(speaker, str):
        speaker = SPEAKERS.get(speaker, speaker)
    text, names = _join_parts(_first_value(turn, "value", "content"))
    return [({"from": speaker, "value": text}, names)]


def _first_value(values, *keys):
    """The value of the first of these keys that is not null; Parquet files have null for missing keys."""
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _join_parts(content):
    """(text with image marks, names of images) of a list of text and image parts; other content unchanged."""
    if not isinstance(content, list):
        return content, []
    texts, names = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in IMAGE_PARTS:
            texts.append(f"{IMAGE_MARK}\n")
            name = _first_value(part, "image_url", "image", "path", "url")
            if isinstance(name, dict):
                name = name.get("url", name)
            if name is not None:
                names.append(name)
        elif kind in (None, *TEXT_PARTS) and isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return content, []
    return "".join(texts), names


def _with_image_marks(turns, image):
    """Put one mark per image in front of the first turn of the user, unless a turn already has a mark."""
    images = image_list(image)
    texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns]
    if not images or not turns or not all(isinstance(text, str) for text in texts):
        return turns
    if any(IMAGE_MARK in text for text in texts):
        return turns
    first = 1 if turns[0].get("from") == SYSTEM and len(turns) > 1 else 0
    marked = {**turns[first], "value": f"{IMAGE_MARK}\n" * len(images) + texts[first]}
    return [*turns[:first], marked, *turns[first + 1 :]]


def find_unsupported_medium(record: dict[str, Any]) -> str | None:
    """What a LLaVA record has that is neither text nor a named image, in words; None if there is nothing.

    Args:
        record: a LLaVA record, not yet checked.
    """
    for key, medium in MEDIUM_KEYS.items():
        if record.get(key) not in (None, "", [], {}):
            return f"`{key}`: {medium} is not read"
    if not image_list(record.get("image")):
        for key in OTHER_IMAGE_KEYS:
            if record.get(key) not in (None, "", [], {}):
                return f"`{key}`: images are read from `image` or `images` only; rename the key"
    turns = record.get("conversations")
    for i, turn in enumerate(turns if isinstance(turns, list) else []):
        value = turn.get("value") if isinstance(turn, dict) else None
        if isinstance(value, list):
            kinds = [part.get("type") for part in value if isinstance(part, dict)]
            other = [kind for kind in kinds if isinstance(kind, str) and kind not in (*IMAGE_PARTS, *TEXT_PARTS)]
            if other:
                return f"turn {i} has a part of the type {other[0]!r}, which is not read"
        if isinstance(value, str):
            for pattern, meaning in MEDIUM_MARKS:
                match = pattern.search(value)
                if match:
                    meaning = meaning.format(*match.groups())
                    return f"turn {i} contains {match[0].strip()[:60]!r}, {meaning}, which is not read"
    return None
